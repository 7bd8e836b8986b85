//! Several relays that act as one.

use anyhow::{Context, Result, bail, ensure};
use godwit_certs::tls::{self, Crypto};
use godwit_client::{
    Change, Client, ClientOptions, ConnectionState, Content, Error, Member, MessageState, Role, Title,
};
use godwit_tests::cluster::{Cluster, until};
use godwit_tests::lab::PATIENCE;
use godwit_tests::process;
use godwit_tests::talk::{numbered, send, texts};
use godwit_tests::wire::{self, Wire, close_reason};
use godwit_wire::frame::{Ack, Event as Pushed, History, ListChats, Options, Range, Reply, Request};
use godwit_wire::{ALPN_DEVICE, Code};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_carries_devices_of_its_region() -> Result<()> {
    let cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge")]).await?;
    // Enrolled and connected at the edge, which holds no store.
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    let bob = cluster.client("bob@eu/phone", &["eu/eu-1"]).await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    send(&alice, &chat, 0..300, MessageState::Delivered).await?;
    numbered(&texts(&bob, &mut bob.events()?, 300).await?, 0)?;
    send(&bob, &chat, 0..300, MessageState::Delivered).await?;
    numbered(&texts(&alice, &mut alice.events()?, 300).await?, 0)?;
    let at_the_store = cluster.metric("eu/eu-1", "godwit_connections");
    ensure!(at_the_store < 1.5, "bob alone is at the store, not {at_the_store}");
    let text = process::get(&cluster.relay("eu/eu-2").admin.to_string(), "/metrics")?;
    for name in [
        "godwit_link_round_trip_seconds{relay=\"eu/eu-1\"}",
        "godwit_gossip_packets_in_total",
        "godwit_gossip_out_bytes_total",
        "godwit_cluster_claims_own",
    ] {
        ensure!(wire::metric(&text, name).is_some_and(|value| value > 0.0), "{name} in {text}");
    }
    ensure!(wire::metric(&text, "godwit_cluster_members").is_some_and(|members| members > 1.5), "two members");
    let claims = || -> Vec<usize> { cluster.relay("eu/eu-1").cluster().members.iter().map(|m| m.claims).collect() };
    until("a claim of each relay to be known", || claims() == [1, 1]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_comes_back_serves_the_devices_of_its_edges_on() -> Result<()> {
    let mut cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge")]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    let bob = cluster.client("bob@eu/phone", &["eu/eu-2"]).await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    send(&alice, &chat, 0..50, MessageState::Delivered).await?;
    let mut heard = bob.events()?;
    numbered(&texts(&bob, &mut heard, 50).await?, 0)?;
    cluster.down("eu/eu-1").await;
    let ids = alice.send_many(&chat, (50..100).map(|n| Content::text(n.to_string())).collect())?;
    cluster.up("eu/eu-1").await?;
    alice.wait_for(*ids.last().context("sent")?, MessageState::Delivered, PATIENCE).await?;
    numbered(&texts(&bob, &mut heard, 50).await?, 50)?;
    ensure!(matches!(alice.connection_state(), ConnectionState::Connected(_)), "the edge kept its devices");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_comes_back_has_its_devices_again() -> Result<()> {
    let mut cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge")]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let bob = cluster.client("bob@eu/phone", &["eu/eu-2"]).await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let mut heard = bob.events()?;
    send(&alice, &chat, 0..50, MessageState::Sent).await?;
    cluster.down("eu/eu-2").await;
    send(&alice, &chat, 50..100, MessageState::Sent).await?;
    cluster.up("eu/eu-2").await?;
    send(&alice, &chat, 100..150, MessageState::Delivered).await?;
    numbered(&texts(&bob, &mut heard, 150).await?, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_moves_between_relays_of_its_region() -> Result<()> {
    let cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge"), ("eu/eu-3", "edge")]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let credential = cluster.enrol("bob@eu/phone", "eu/eu-2").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let mut before: Option<Wire> = None;
    for (turn, at) in ["eu/eu-2", "eu/eu-3", "eu/eu-1", "eu/eu-2"].into_iter().enumerate() {
        let mut bob = cluster.connect(credential.clone(), at).await?;
        if let Some(before) = before {
            let reason = close_reason(&before.connection).await?;
            ensure!(reason.code == Code::Replaced, "{at}: the older connection is ended: {reason}");
        }
        let id = alice.send(&chat, Content::text(turn.to_string()))?;
        let sent = alice.wait_for(id, MessageState::Sent, PATIENCE).await?.seq.context("a seq")?;
        loop {
            if let Pushed::Entry { entry, .. } = bob.event().await?
                && entry.seq == sent
            {
                break;
            }
        }
        bob.ask(&Request::Ack(vec![Ack { chat: chat.clone(), up_to: sent }])).await?;
        alice.wait_for(id, MessageState::Delivered, PATIENCE).await?;
        before = Some(bob);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_out_at_an_edge_too() -> Result<()> {
    let cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge")]).await?;
    let credential = cluster.enrol("alice@eu/phone", "eu/eu-2").await?;
    let alice = cluster.connect(credential.clone(), "eu/eu-2").await?;
    let admin = cluster.relay("eu/eu-1").admin.to_string();
    let revoke = move || process::succeed("godwit", &["revoke", "--admin", &admin, "alice@eu/phone"]);
    tokio::task::spawn_blocking(revoke).await??;
    let begun = Instant::now();
    let reason = close_reason(&alice.connection).await?;
    ensure!(reason.code == Code::Revoked && begun.elapsed() < Duration::from_secs(5), "{reason}");
    let tls = tls::client(&Crypto::system(), &cluster.root()?, Some(credential.clone()), ALPN_DEVICE)?;
    let again = wire::dial(cluster.address("eu/eu-2"), tls).await?;
    let options = Options::with_ticket(&wire::ticket(&again, &credential)?);
    ensure!(Wire::hello_with(again.clone(), options).await.is_err(), "a later connection");
    let reason = close_reason(&again).await?;
    ensure!(reason.code == Code::Revoked, "at a later connection: {reason}");
    Ok(())
}

const TWO_REGIONS: [(&str, &str); 3] = [("eu/eu-1", "store"), ("eu/eu-2", "edge"), ("us/us-1", "store")];

#[tokio::test(flavor = "multi_thread")]
async fn users_of_two_regions_talk() -> Result<()> {
    let cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    // Homed in eu, since alice sorts first.
    let (chat, _) = alice.direct("bob@us".parse()?)?;
    send(&alice, &chat, 0..300, MessageState::Delivered).await?;
    numbered(&texts(&bob, &mut bob.events()?, 300).await?, 0)?;
    send(&bob, &chat, 0..300, MessageState::Delivered).await?;
    numbered(&texts(&alice, &mut alice.events()?, 300).await?, 0)?;
    // Both homes have all of it.
    for client in [&alice, &bob] {
        let history = client.history(&chat, None, 1000).await?;
        ensure!(history.len() == 601, "{} entries", history.len());
    }
    let (_, unknown) = alice.direct("nobody@us".parse()?)?;
    let refused = alice.wait_for(unknown.context("new")?, MessageState::Sent, PATIENCE).await;
    ensure!(matches!(&refused, Err(Error::Refused(r)) if r.code == Code::NoSuchUser), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_roams_to_another_region() -> Result<()> {
    let cluster = Cluster::start(&TWO_REGIONS).await?;
    // Enrolled, connected and writing in us, at home in eu.
    let alice = cluster.client("alice@eu/phone", &["us/us-1"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    let carol = cluster.client("carol@eu/phone", &["eu/eu-2"]).await?;
    let members = ["bob@us", "carol@eu"].map(|user| Member { user: user.parse().unwrap(), role: Role::Member });
    let (chat, created) = alice.create_group(Title::parse("walks")?, members.to_vec())?;
    alice.wait_for(created, MessageState::Sent, PATIENCE).await?;
    let (mut at_bob, mut at_carol) = (bob.events()?, carol.events()?);
    send(&alice, &chat, 0..100, MessageState::Delivered).await?;
    numbered(&texts(&bob, &mut at_bob, 100).await?, 0)?;
    numbered(&texts(&carol, &mut at_carol, 100).await?, 0)?;
    send(&bob, &chat, 0..100, MessageState::Delivered).await?;
    numbered(&texts(&alice, &mut alice.events()?, 100).await?, 0)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_joins_a_chat_sees_it_from_there_on() -> Result<()> {
    let cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    let carol = cluster.client("carol@us/phone", &["us/us-1"]).await?;
    let (chat, created) = alice.create_group(Title::parse("walks")?, Vec::new())?;
    alice.wait_for(created, MessageState::Sent, PATIENCE).await?;
    let change = async |change: Change| -> Result<()> {
        let id = alice.update_chat(&chat, change)?;
        alice.wait_for(id, MessageState::Sent, PATIENCE).await?;
        Ok(())
    };
    let member = |user: &str| Member { user: user.parse().unwrap(), role: Role::Member };
    send(&alice, &chat, 0..10, MessageState::Sent).await?;
    change(Change::Add(vec![member("bob@us")])).await?;
    send(&alice, &chat, 10..20, MessageState::Sent).await?;
    let mut at_bob = bob.events()?;
    numbered(&texts(&bob, &mut at_bob, 10).await?, 10)?;
    // Gone, and back with another user of the same region: what was between is for neither.
    change(Change::Remove("bob@us".parse()?)).await?;
    send(&alice, &chat, 20..30, MessageState::Sent).await?;
    change(Change::Add(vec![member("carol@us")])).await?;
    send(&alice, &chat, 30..40, MessageState::Sent).await?;
    numbered(&texts(&carol, &mut carol.events()?, 10).await?, 30)?;
    change(Change::Add(vec![member("bob@us")])).await?;
    send(&alice, &chat, 40..50, MessageState::Delivered).await?;
    numbered(&texts(&bob, &mut at_bob, 10).await?, 40)?;
    let participants = bob.participants(&chat)?;
    ensure!(participants.len() == 3, "bob knows who takes part: {participants:?}");
    let seen = bob.history(&chat, None, 1000).await?;
    // Added, ten messages and removed; added again and ten messages.
    ensure!(seen.len() == 12 + 11, "{} entries", seen.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_was_away_gets_what_it_missed() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    // At home in us, connected in eu.
    let dora = cluster.client("dora@us/phone", &["eu/eu-2"]).await?;
    let members = ["bob@us", "dora@us"].map(|user| Member { user: user.parse().unwrap(), role: Role::Member });
    let (chat, created) = alice.create_group(Title::parse("walks")?, members.to_vec())?;
    alice.wait_for(created, MessageState::Sent, PATIENCE).await?;
    send(&alice, &chat, 0..10, MessageState::Delivered).await?;
    cluster.down("us/us-1").await;
    send(&alice, &chat, 10..110, MessageState::Sent).await?;
    // Her home is away, and she is found by her claim.
    let mut at_dora = dora.events()?;
    numbered(&texts(&dora, &mut at_dora, 110).await?, 0)?;
    ensure!(cluster.metric("eu/eu-1", "godwit_direct_pushes_total") > 0.0, "pushed directly");
    cluster.up("us/us-1").await?;
    numbered(&texts(&bob, &mut bob.events()?, 110).await?, 0)?;
    send(&alice, &chat, 110..120, MessageState::Delivered).await?;
    numbered(&texts(&dora, &mut at_dora, 10).await?, 110)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_home_out_of_reach_cannot_take_waits_at_the_edge() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    // Homed in eu, where the store goes away; bob and alice stay connected elsewhere.
    let (chat, _) = alice.direct("bob@us".parse()?)?;
    send(&alice, &chat, 0..10, MessageState::Delivered).await?;
    cluster.down("eu/eu-1").await;
    send(&alice, &chat, 10..60, MessageState::Queued).await?;
    send(&alice, &chat, 60..110, MessageState::Queued).await?;
    // Over a restart of the edge that has them, and without the device.
    alice.close().await;
    drop(alice);
    cluster.down("eu/eu-2").await;
    cluster.up("eu/eu-2").await?;
    cluster.up("eu/eu-1").await?;
    let mut heard = bob.events()?;
    numbered(&texts(&bob, &mut heard, 110).await?, 0)?;
    // The device learns that they are sent, and goes on behind them.
    let alice = Client::open(ClientOptions::new(cluster.home("alice@eu/phone")))?;
    send(&alice, &chat, 110..120, MessageState::Delivered).await?;
    numbered(&texts(&bob, &mut heard, 10).await?, 110)?;
    ensure!(alice.unsent()?.is_empty(), "nothing is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_device_hears_when_what_was_queued_is_sent() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    let (chat, _) = alice.direct("bob@us".parse()?)?;
    send(&alice, &chat, 0..1, MessageState::Delivered).await?;
    cluster.down("eu/eu-1").await;
    let ids = alice.send_many(&chat, (1..101).map(|n| Content::text(n.to_string())).collect())?;
    let last = *ids.last().context("sent")?;
    alice.wait_for(last, MessageState::Queued, PATIENCE).await?;
    cluster.up("eu/eu-1").await?;
    alice.wait_for(last, MessageState::Delivered, PATIENCE).await?;
    numbered(&texts(&bob, &mut bob.events()?, 101).await?, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_left_messages_queued_goes_on_through_another_edge() -> Result<()> {
    let relays = [("eu/eu-1", "store"), ("eu/eu-2", "edge"), ("us/us-1", "store")];
    let mut cluster = Cluster::start(&relays).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    // Writes at eu's edge, then at us.
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2", "us/us-1"]).await?;
    let (chat, _) = alice.direct("bob@us".parse()?)?;
    send(&alice, &chat, 0..10, MessageState::Delivered).await?;
    cluster.down("eu/eu-1").await;
    send(&alice, &chat, 10..60, MessageState::Queued).await?;
    // The edge that has them goes away too, for longer than the home.
    cluster.down("eu/eu-2").await;
    send(&alice, &chat, 60..110, MessageState::Queued).await?;
    cluster.up("eu/eu-1").await?;
    let mut heard = bob.events()?;
    numbered(&texts(&bob, &mut heard, 110).await?, 0)?;
    cluster.up("eu/eu-2").await?;
    cluster.meet().await?;
    send(&alice, &chat, 110..120, MessageState::Delivered).await?;
    numbered(&texts(&bob, &mut heard, 10).await?, 110)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_learns_of_other_relays_and_goes_on_through_them() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    // It was told of one relay alone.
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    let (chat, _) = alice.direct("bob@us".parse()?)?;
    send(&alice, &chat, 0..10, MessageState::Delivered).await?;
    cluster.down("eu/eu-2").await;
    let begun = Instant::now();
    send(&alice, &chat, 10..20, MessageState::Delivered).await?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "within seconds, not after {:?}", begun.elapsed());
    let ConnectionState::Connected(at) = alice.connection_state() else { bail!("not connected") };
    ensure!(at != cluster.address("eu/eu-2").to_string(), "elsewhere");
    numbered(&texts(&bob, &mut bob.events()?, 20).await?, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_to_an_edge_once_however_many_take_it_there() -> Result<()> {
    let cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge")]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let mut others = Vec::new();
    for n in 0..10 {
        others.push(cluster.client(&format!("user{n}@eu/phone"), &["eu/eu-2"]).await?);
    }
    let member = |n: usize| Ok(Member { user: format!("user{n}@eu").parse()?, role: Role::Member });
    let members = (0..10).map(member).collect::<Result<_>>()?;
    let (chat, created) = alice.create_group(Title::parse("walks")?, members)?;
    alice.wait_for(created, MessageState::Delivered, PATIENCE).await?;
    let (pushes, frames) = ("godwit_pushes_total", "godwit_edge_pushes_total");
    let before = (cluster.metric("eu/eu-1", pushes), cluster.metric("eu/eu-1", frames));
    send(&alice, &chat, 0..50, MessageState::Delivered).await?;
    for other in &others {
        numbered(&texts(other, &mut other.events()?, 50).await?, 0)?;
    }
    let pushed = cluster.metric("eu/eu-1", pushes) - before.0;
    let sent = cluster.metric("eu/eu-1", frames) - before.1;
    ensure!(pushed > 499.5 && sent < 50.5, "{pushed} pushes in {sent} frames");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_out_everywhere_while_its_home_is_away_too() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    // At home in us, connected at an edge of eu, where its chat is.
    let credential = cluster.enrol("bob@us/phone", "us/us-1").await?;
    let bob = cluster.connect(credential.clone(), "eu/eu-2").await?;
    let admin = cluster.relay("us/us-1").admin.to_string();
    let revoke = move || process::succeed("godwit", &["revoke", "--admin", &admin, "bob@us/phone"]);
    // The store of eu hears of it at once, its edge only once that is back.
    cluster.down("eu/eu-2").await;
    close_reason(&bob.connection).await?;
    tokio::task::spawn_blocking(revoke).await??;
    let out = async |cluster: &Cluster, at: &str| -> Result<()> {
        let connected = tokio::time::timeout(PATIENCE, async {
            loop {
                match cluster.connect(credential.clone(), at).await {
                    // Not told yet, or let in by its certificate alone.
                    Ok(session) => session.connection.close(0u32.into(), b""),
                    Err(error) => break error,
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let refused = connected.await.with_context(|| format!("bob gets in at {at}"))?;
        ensure!(format!("{refused:#}").contains("34"), "revoked, not {refused:#}");
        Ok(())
    };
    out(&cluster, "eu/eu-1").await?;
    cluster.down("us/us-1").await;
    cluster.up("eu/eu-2").await?;
    cluster.meet().await?;
    out(&cluster, "eu/eu-2").await?;
    // Over a restart of those who were told.
    cluster.down("eu/eu-2").await;
    cluster.down("eu/eu-1").await;
    cluster.up("eu/eu-1").await?;
    out(&cluster, "eu/eu-1").await?;
    // Enrolled anew it is let in, everywhere.
    cluster.up("eu/eu-2").await?;
    cluster.up("us/us-1").await?;
    cluster.meet().await?;
    let again = cluster.enrol("bob@us/phone", "us/us-1").await?;
    for at in ["eu/eu-1", "eu/eu-2", "us/us-1"] {
        cluster.connect(again.clone(), at).await?.connection.close(0u32.into(), b"");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_enrolment_is_out_at_the_homes_of_its_chats() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let old = cluster.enrol("bob@us/phone", "us/us-1").await?;
    let (chat, _) = alice.direct("bob@us".parse()?)?;
    send(&alice, &chat, 0..1, MessageState::Sent).await?;
    let stolen = cluster.connect(old.clone(), "eu/eu-2").await?;
    // A new phone under the same name; the old one may still have its certificate.
    cluster.enrol("bob@us/phone", "us/us-1").await?;
    let reason = close_reason(&stolen.connection).await?;
    ensure!(reason.code == Code::Superseded, "{reason}");
    cluster.down("us/us-1").await;
    for at in ["eu/eu-1", "eu/eu-2"] {
        let refused = cluster.connect(old.clone(), at).await.err().with_context(|| format!("let in at {at}"))?;
        ensure!(format!("{refused:#}").contains("35"), "superseded, not {refused:#}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_read_at_its_own_home_while_the_readers_is_away() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let credential = cluster.enrol("dora@us/phone", "us/us-1").await?;
    let dora = cluster.connect(credential, "eu/eu-2").await?;
    let stranger = cluster.connect(cluster.enrol("eve@us/phone", "us/us-1").await?, "eu/eu-2").await?;
    let member = |user: &str| Member { user: user.parse().unwrap(), role: Role::Member };
    let (chat, created) = alice.create_group(Title::parse("walks")?, vec![member("dora@us")])?;
    alice.wait_for(created, MessageState::Sent, PATIENCE).await?;
    send(&alice, &chat, 0..10, MessageState::Sent).await?;
    cluster.down("us/us-1").await;
    let read = Request::History(History { chat: chat.clone(), range: Range::Before(None), limit: 100 });
    let Reply::HistoryPage(page) = dora.ask(&read).await? else { bail!("no page") };
    ensure!(page.entries.len() == 11, "{} entries", page.entries.len());
    let Reply::Refused(refusal) = stranger.ask(&read).await? else { bail!("a stranger reads") };
    ensure!(refusal.code == Code::NotParticipant, "{refusal}");
    let list = Request::ListChats(ListChats { after: None, limit: 10 });
    let Reply::Refused(refusal) = dora.ask(&list).await? else { bail!("a list without a home") };
    ensure!(refusal.code == Code::Unavailable && refusal.retry_after().is_some(), "{refusal}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_claim_costs_a_detour_and_no_message() -> Result<()> {
    let mut cluster = Cluster::start(&TWO_REGIONS).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let credential = cluster.enrol("dora@us/phone", "us/us-1").await?;
    let member = |user: &str| Member { user: user.parse().unwrap(), role: Role::Member };
    let (chat, created) = alice.create_group(Title::parse("walks")?, vec![member("dora@us")])?;
    alice.wait_for(created, MessageState::Sent, PATIENCE).await?;
    cluster.down("us/us-1").await;
    // Dora leaves the edge again and again, and alice writes before the others can know: pushed to where nobody is.
    let misses = "godwit_direct_push_misses_total";
    let mut sent = 0;
    let missed = async {
        while cluster.metric("eu/eu-2", misses) < 0.5 {
            let dora = cluster.connect(credential.clone(), "eu/eu-2").await?;
            let known = || cluster.relay("eu/eu-1").cluster().claims_known > 0;
            until("the claim to be known", known).await?;
            dora.connection.close(0u32.into(), b"");
            send(&alice, &chat, sent..sent + 1, MessageState::Sent).await?;
            sent += 1;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, missed).await.context("no claim was ever stale")??;
    cluster.up("us/us-1").await?;
    cluster.meet().await?;
    // Her home has all of it for her, in order, wherever she comes back.
    let mut dora = cluster.connect(credential, "eu/eu-2").await?;
    let mut last = 0;
    while last < 1 + sent as u64 {
        if let Pushed::Entry { entry, .. } = dora.event().await? {
            // On the wire delivery is at least once.
            ensure!(entry.seq.get() <= last + 1, "{} after {last}", entry.seq);
            last = last.max(entry.seq.get());
        }
    }
    Ok(())
}
