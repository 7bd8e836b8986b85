//! Who is let in, and how it is said to whoever is not.

use anyhow::{Context, Result, ensure};
use godwit_certs::folder::AuthorityDir;
use godwit_certs::tls::{self, Crypto};
use godwit_certs::{DeviceKey, identity};
use godwit_tests::lab::{Lab, PATIENCE};
use godwit_tests::process;
use godwit_tests::wire::{self, Wire, close_reason};
use godwit_wire::frame::{ListChats, Reply, Request};
use godwit_wire::{ALPN_DEVICE, Clock, Code, DeviceId};
use std::time::Duration;

fn phone() -> DeviceId {
    "alice@eu/phone".parse().unwrap()
}

fn list() -> Request {
    Request::ListChats(ListChats { after: None, limit: 1 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once() -> Result<()> {
    let lab = Lab::start().await?;
    let token = lab.token(&phone())?;
    let csr = || DeviceKey::generate()?.request(&phone());
    lab.ask_certificate(token.clone(), csr()?).await?.context("the first time")?;
    let refusal = lab.ask_certificate(token, csr()?).await?.expect_err("the second time");
    ensure!(refusal.code == Code::TokenUsed, "{refusal:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_gets_the_token() -> Result<()> {
    let lab = std::sync::Arc::new(Lab::start().await?);
    let token = lab.token(&phone())?;
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (lab, token, csr) = (lab.clone(), token.clone(), DeviceKey::generate()?.request(&phone())?);
        attempts.spawn(async move { lab.ask_certificate(token, csr).await });
    }
    let mut won = 0;
    while let Some(outcome) = attempts.join_next().await {
        match outcome?? {
            Ok(_) => won += 1,
            Err(refusal) => ensure!(refusal.code == Code::TokenUsed, "{refusal:?}"),
        }
    }
    ensure!(won == 1, "{won} devices got a certificate for one token");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_and_requests_are_refused_with_their_own_reason() -> Result<()> {
    let lab = Lab::start().await?;
    let csr = DeviceKey::generate()?.request(&phone())?;
    let refused = async |token: String, csr: Vec<u8>| -> Result<Code> {
        Ok(lab.ask_certificate(token, csr).await?.expect_err("refused").code)
    };
    // Made a day ago by a clock that is right: long expired.
    let ago = |by: Duration| Clock::system().now().minus(by);
    let minute = Duration::from_mins(1);
    let token = |made| lab.authority.token(&phone(), minute, made);
    ensure!(refused(token(ago(Duration::from_hours(24)))?, csr.clone()).await? == Code::TokenExpired, "expired");
    // Within the skew that is allowed it still counts.
    let late = token(ago(minute + Duration::from_secs(30)))?;
    ensure!(lab.ask_certificate(late, csr.clone()).await?.is_ok(), "skew");
    let ahead = token(Clock::system().now().plus(Duration::from_mins(5)))?;
    ensure!(refused(ahead, csr.clone()).await? == Code::TokenInvalid, "from the future");
    // Signed by another backend.
    let other = AuthorityDir::new(lab.path().join("other"));
    other.init(&"eu".parse()?, Clock::system().now())?;
    let forged = other.token(&phone(), minute, Clock::system().now())?;
    ensure!(refused(forged, csr.clone()).await? == Code::TokenInvalid, "forged");
    ensure!(refused("not a token".into(), csr.clone()).await? == Code::TokenInvalid, "no token");
    lab.authority.init(&"us".parse()?, Clock::system().now())?;
    let abroad = lab.authority.token(&"alice@us/phone".parse()?, minute, Clock::system().now())?;
    ensure!(refused(abroad, csr).await? == Code::WrongDevice, "another region");
    // A request that asks for somebody else's name.
    let bobs = DeviceKey::generate()?.request(&"bob@eu/phone".parse()?)?;
    ensure!(refused(lab.token(&phone())?, bobs).await? == Code::WrongDevice, "another user's name");
    ensure!(refused(lab.token(&phone())?, vec![1, 2, 3]).await? == Code::Invalid, "no request");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    let lab = Lab::start().await?;
    let other = Lab::start().await?;
    let foreign = other.enrol("alice@eu/phone").await?;
    let config = tls::client(&Crypto::system(), &lab.root()?, Some(foreign), ALPN_DEVICE)?;
    // The client's side of a TLS 1.3 handshake ends before the relay has judged it.
    let refused = async {
        let connection = wire::dial(lab.address(), config).await?;
        Wire::hello(connection).await.map(drop)
    };
    let error = refused.await.expect_err("let in").to_string();
    ensure!(!error.contains("timed out"), "refused at once: {error}");
    // And a device does not talk to a relay of another authority.
    let own = lab.enrol("alice@eu/phone").await?;
    let config = tls::client(&Crypto::system(), &other.root()?, Some(own), ALPN_DEVICE)?;
    ensure!(wire::dial(lab.address(), config).await.is_err(), "talked to a stranger");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_or_with_a_relays_nobody_is_let_in() -> Result<()> {
    let lab = Lab::start().await?;
    let config = tls::client(&Crypto::system(), &lab.root()?, None, ALPN_DEVICE)?;
    let connection = wire::dial(lab.address(), config).await?;
    ensure!(close_reason(&connection).await?.code == Code::Unauthenticated, "no certificate");
    let relay = lab.authority.relay(&"eu/eu-2".parse()?, Clock::system().now())?.read()?;
    let config = tls::client(&Crypto::system(), &lab.root()?, Some(relay.credential), ALPN_DEVICE)?;
    let connection = wire::dial(lab.address(), config).await?;
    ensure!(close_reason(&connection).await?.code == Code::NotADevice, "a relay's certificate");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_out_at_once_and_stays_out() -> Result<()> {
    let lab = Lab::start().await?;
    let credential = lab.enrol("alice@eu/phone").await?;
    let alice = lab.connect(credential.clone()).await?;
    // A TLS configuration that resumes its sessions.
    let config = tls::client(&Crypto::system(), &lab.root()?, Some(credential), ALPN_DEVICE)?;
    let warm = wire::dial(lab.address(), config.clone()).await?;
    let warm = Wire::hello(warm).await?;
    ensure!(close_reason(&alice.connection).await?.code == Code::Replaced, "the older one");
    let admin = lab.relay().admin.to_string();
    let begun = std::time::Instant::now();
    let said = tokio::task::spawn_blocking(move || {
        process::succeed("godwit", &["revoke", "--admin", &admin, "alice@eu/phone"])
    });
    ensure!(said.await??.contains("alice@eu/phone is revoked"), "said");
    ensure!(close_reason(&warm.connection).await?.code == Code::Revoked, "at once");
    ensure!(begun.elapsed() < Duration::from_secs(5) + PATIENCE, "within five seconds of the command");
    // Resumption bypasses the verifier; the device is checked all the same.
    let again = wire::dial(lab.address(), config).await?;
    ensure!(close_reason(&again).await?.code == Code::Revoked, "at a later connection");
    // A new token makes it a device again.
    let new = lab.session("alice@eu/phone").await?;
    ensure!(matches!(new.ask(&list()).await?, Reply::ChatList(_)), "enrolled anew");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_enrolment_supersedes_the_old_one() -> Result<()> {
    let lab = Lab::start().await?;
    let old = lab.enrol("alice@eu/phone").await?;
    let session = lab.connect(old.clone()).await?;
    let new = lab.enrol("alice@eu/phone").await?;
    ensure!(close_reason(&session.connection).await?.code == Code::Superseded, "the live connection");
    let config = tls::client(&Crypto::system(), &lab.root()?, Some(old), ALPN_DEVICE)?;
    let again = wire::dial(lab.address(), config).await?;
    ensure!(close_reason(&again).await?.code == Code::Superseded, "a later connection");
    lab.connect(new).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_before_it_expires_and_refused_after() -> Result<()> {
    let lab = Lab::start().await?;
    let device = phone();
    let key = DeviceKey::generate()?;
    let chain = lab.ask_certificate(lab.token(&device)?, key.request(&device)?).await?.context("enrolled")?;
    let first = key.credential(chain);
    let session = lab.connect(first.clone()).await?;
    lab.jump(Duration::from_hours(4 * 24));
    let Reply::Certificate(renewed) = session.ask(&Request::Renew { csr: key.request(&device)?.into() }).await? else {
        anyhow::bail!("not renewed")
    };
    let renewed: Vec<_> = renewed.iter().map(|one| rustls::pki_types::CertificateDer::from(one.0.to_vec())).collect();
    ensure!(identity::expiry(&renewed)? > identity::expiry(&first.chain)?, "lives longer");
    // Somebody else's name is not renewed.
    let other = DeviceKey::generate()?.request(&"bob@eu/phone".parse()?)?;
    let Reply::Refused(refusal) = session.ask(&Request::Renew { csr: other.into() }).await? else {
        anyhow::bail!("renewed for somebody else")
    };
    ensure!(refusal.code == Code::WrongDevice, "{refusal:?}");
    // Beyond the first certificate's life, the second one is let in and the first is not.
    lab.jump(Duration::from_hours(4 * 24));
    lab.connect(key.credential(renewed)).await?;
    let config = tls::client(&Crypto::system(), &lab.root()?, Some(first), ALPN_DEVICE)?;
    let late = async {
        let connection = wire::dial(lab.address(), config).await?;
        Wire::hello(connection).await.map(drop)
    };
    let error = late.await.expect_err("let in after its time");
    let text = format!("{error:#}");
    ensure!(text.contains("expired") || text.contains("Expired") || text.contains("33"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_handshakes_is_bounded_and_devices_still_get_in() -> Result<()> {
    let settings = [("admission.handshakes_per_second", "20"), ("admission.handshakes_burst", "20")];
    let lab = Lab::with(&settings).await?;
    let credential = lab.enrol("alice@eu/phone").await?;
    let (address, root) = (lab.address(), lab.root()?);
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let config = tls::client(&Crypto::system(), &root, Some(credential.clone()), ALPN_DEVICE)?;
        flood.spawn(async move { tokio::time::timeout(Duration::from_secs(5), wire::dial(address, config)).await });
    }
    let mut told = 0;
    while let Some(attempt) = flood.join_next().await {
        if let Ok(Ok(connection)) = attempt?
            && let Ok(Ok(reason)) = tokio::time::timeout(Duration::from_millis(200), close_reason(&connection)).await
            && reason.code == Code::Busy
        {
            ensure!(reason.retry_after() >= Some(Duration::from_secs(1)), "{reason:?}");
            told += 1;
        }
    }
    let refused = lab.metric("godwit_handshakes_refused_total");
    ensure!(refused > 50.0, "only {refused} of 200 attempts were held back");
    ensure!(told > 0, "nobody was told when to come back");
    let back = async {
        loop {
            match lab.connect(credential.clone()).await {
                Ok(session) => break session,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, back).await.context("the relay does not recover")?;
    Ok(())
}
