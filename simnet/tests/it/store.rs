//! A store of redb on disks that fail.

use anyhow::{Context, Result, bail, ensure};
use godwit_certs::tls::Crypto;
use godwit_core::{Action, Command, Outcome, Sender};
use godwit_relay::host::{Host, SystemDisk};
use godwit_relay::metrics::Metrics;
use godwit_relay::store::{InboxChange, InboxWrite, Issued, OpenStore, Store, StoreError, StoreLimits, file};
use godwit_simnet::{SimDisk, Unsynced};
use godwit_wire::entry::{ChatKind, Content, Member, Role, Title};
use godwit_wire::frame::{Range, Stamp};
use godwit_wire::{ChatId, Clock, Code, DeviceId, MessageId, Refusal, Seq, UnixMillis, UserId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store on a disk, with its users.
struct Bench {
    disk: SimDisk,
    open: Option<OpenStore>,
    full: Arc<AtomicBool>,
}

fn opener(disk: &SimDisk) -> godwit_relay::store::Opener {
    file::opener(Arc::new(disk.clone()), file::NAME.into(), "eu".parse().expect("a region"), 1 << 20)
}

impl Bench {
    async fn new() -> Result<Self> {
        let mut bench =
            Self { disk: SimDisk::new(fastrand::u64(..), Arc::new(|| {})), open: None, full: Arc::default() };
        bench.up()?;
        for user in ["alice", "bob"] {
            let id = device(user);
            let issue = |enrolment| Ok(Issued { enrolment, chain: Vec::new(), fingerprint: [0; 32] });
            bench.store().enrol(id, user.to_owned(), UnixMillis(u64::MAX), issue).await?;
        }
        Ok(bench)
    }

    fn up(&mut self) -> Result<()> {
        let full = self.full.clone();
        let free: Box<dyn Fn() -> Option<u64> + Send + Sync> =
            Box::new(move || Some(if full.load(Ordering::Relaxed) { 0 } else { 1 << 40 }));
        let ticks = AtomicU64::new(1_000);
        let clock = Clock::new(move || UnixMillis(ticks.fetch_add(1, Ordering::Relaxed)));
        let host = Host { crypto: Crypto { clock, ..Crypto::system() }, ..Host::system() };
        self.open =
            Some(Store::open(opener(&self.disk), Some(free), &StoreLimits::default(), &host, Metrics::default())?);
        Ok(())
    }

    async fn down(&mut self) -> Result<()> {
        let OpenStore { store, committed, threads } = self.open.take().context("open")?;
        drop((store, committed));
        for thread in threads {
            ensure!(thread.ended().await, "the writer panicked");
        }
        Ok(())
    }

    fn store(&self) -> Store {
        self.open.as_ref().expect("open").store.clone()
    }

    async fn run(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Refusal> {
        self.store().submit(commands).await?.await
    }

    async fn one(&self, command: Command) -> Result<Outcome, Refusal> {
        Ok(self.run(vec![command]).await?.remove(0))
    }

    /// Until the store takes writes again.
    async fn eventually(&self, command: &Command) -> Result<Outcome> {
        let until = async {
            loop {
                match self.one(command.clone()).await {
                    Ok(outcome) => break outcome,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, until).await.context("the store does not come back")
    }

    /// The whole log, as bob sees it.
    async fn log(&self) -> Result<Vec<(Seq, MessageId)>> {
        let mut log = Vec::new();
        let mut from = Seq::FIRST;
        loop {
            let page = self.store().history(user("bob"), chat(), Range::From(from), 512).await??;
            let Some(last) = page.entries.last() else { return Ok(log) };
            from = last.seq.next();
            log.extend(page.entries.iter().map(|entry| (entry.seq, entry.id)));
        }
    }
}

fn user(name: &str) -> UserId {
    format!("{name}@eu").parse().unwrap()
}

fn device(name: &str) -> DeviceId {
    user(name).device("phone").unwrap()
}

fn chat() -> ChatId {
    "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
}

fn command(name: &str, n: u64, action: Action) -> Command {
    let id = |n: u64| MessageId(Uuid::from_u128(u128::from(n) << 32 | name.len() as u128));
    let previous = (n > 1).then(|| id(n - 1));
    let stamp = Stamp { chat: chat(), n, oldest: 1, id: id(n), previous };
    Command { sender: Sender { device: device(name), enrolment: 1 }, stamp, action }
}

fn create() -> Command {
    let participants = vec![Member { user: user("bob"), role: Role::Member }];
    command("alice", 1, Action::Create { kind: ChatKind::Group, title: Title::default(), participants })
}

fn send(name: &str, n: u64) -> Command {
    command(name, n, Action::Send { content: Content(format!("{name} {n}").into()), blobs: Vec::new() })
}

fn sent(outcome: &Outcome) -> Result<u64> {
    match outcome {
        Outcome::Sent { seq, .. } => Ok(seq.get()),
        Outcome::Refused(refusal) => bail!("{refusal:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_answers_unavailable_and_a_retry_is_the_same_message() -> Result<()> {
    let bench = Bench::new().await?;
    bench.one(create()).await?;
    for n in 2..=10 {
        bench.disk.set_fail_sync(true);
        let refusal = bench.one(send("alice", n)).await.expect_err("told as sent without a sync");
        ensure!(refusal.code == Code::Unavailable && refusal.retry_after().is_some(), "{refusal:?}");
        bench.disk.set_fail_sync(false);
        ensure!(sent(&bench.eventually(&send("alice", n)).await?)? == n, "once, at its place");
    }
    let log = bench.log().await?;
    ensure!(log.len() == 10 && log.iter().zip(1..).all(|((seq, _), n)| seq.get() == n), "{log:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() -> Result<()> {
    let bench = Bench::new().await?;
    bench.one(create()).await?;
    bench.disk.set_full(true);
    // There is some room in the file itself.
    let mut n = 2;
    let refusal = loop {
        match bench.one(send("alice", n)).await {
            Ok(_) => n += 1,
            Err(refusal) => break refusal,
        }
        ensure!(n < 100_000, "a full disk takes everything");
    };
    ensure!(refusal.code == Code::Unavailable, "{refusal:?}");
    bench.disk.set_full(false);
    ensure!(sent(&bench.eventually(&send("alice", n)).await?)? == n, "when space returns");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_sends_are_refused_and_acknowledging_goes_on() -> Result<()> {
    let bench = Bench::new().await?;
    bench.one(create()).await?;
    bench.full.store(true, Ordering::Relaxed);
    let noticed = async {
        let mut n = 2;
        loop {
            match bench.one(send("alice", n)).await {
                Ok(_) => n += 1,
                Err(refusal) => break (n, refusal),
            }
        }
    };
    let (n, refusal) = tokio::time::timeout(PATIENCE, noticed).await.context("not noticed")?;
    ensure!(refusal.code == Code::Unavailable && refusal.explanation.contains("disk"), "{refusal:?}");
    let change = InboxChange::Begin(Seq::FIRST);
    let write = InboxWrite { device: device("bob"), enrolment: 1, chat: chat(), change };
    bench.store().write_inbox(vec![write]).await.context("inbox rows")?;
    ensure!(bench.store().revoke(device("bob")).await?, "revoking");
    ensure!(!bench.log().await?.is_empty(), "reading");
    bench.full.store(false, Ordering::Relaxed);
    ensure!(sent(&bench.eventually(&send("alice", n)).await?)? == n, "when space returns");
    Ok(())
}

/// Power is lost at random, with any of the unsynced sectors kept: whatever was told as sent is there, at its place.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_as_sent_survives_a_crash() -> Result<()> {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::new().await?;
    bench.one(create()).await?;
    let mut told = vec![(Seq::FIRST, create().stamp.id)];
    let mut n = 2;
    for round in 0..60 {
        for _ in 0..random.u64(1..8) {
            let batch: Vec<Command> = (n..n + random.u64(1..40)).map(|n| send("alice", n)).collect();
            for (command, outcome) in batch.iter().zip(bench.run(batch.clone()).await?) {
                let Outcome::Sent { seq, .. } = outcome else { bail!("seed {seed}: {outcome:?}") };
                told.push((seq, command.stamp.id));
            }
            n += batch.len() as u64;
        }
        // Something is on its way when the power goes: it may land or not.
        bench.disk.set_fail_sync(true);
        let lost = bench.one(send("alice", n)).await;
        ensure!(lost.is_err(), "seed {seed}: told without a sync");
        bench.down().await?;
        bench.disk.crash(Unsynced::Torn);
        bench.disk.power_on();
        bench.disk.set_fail_sync(false);
        bench.up().with_context(|| format!("seed {seed}, round {round}: does not open"))?;
        let log = bench.log().await?;
        ensure!(log.len() >= told.len() && log[..told.len()] == told[..], "seed {seed}, round {round}: lost");
        ensure!(log.len() <= told.len() + 1, "seed {seed}, round {round}: more than was sent");
        let outcome = bench.eventually(&send("alice", n)).await?;
        let Outcome::Sent { seq, .. } = outcome else { bail!("seed {seed}: {outcome:?}") };
        told.push((seq, send("alice", n).stamp.id));
        ensure!(bench.log().await? == told, "seed {seed}, round {round}: not once, at its place");
        n += 1;
    }
    Ok(())
}

#[test]
fn a_file_that_is_no_store_is_named_and_left_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(file::NAME);
    let open = || file::opener(Arc::new(SystemDisk), path.clone(), "eu".parse().expect("a region"), 1 << 20)();
    for (text, what) in
        [("not a database".repeat(1000), "damaged"), ("short".to_owned(), "damaged"), (String::new(), "damaged")]
    {
        std::fs::write(&path, &text)?;
        ensure!(file::check(&path).is_err() && std::fs::read(&path)? == text.as_bytes(), "a check changed it");
        std::fs::write(&path, &text)?;
        let error = open().map(drop).expect_err("opened").to_string();
        ensure!(error.contains(what), "{error}");
        ensure!(std::fs::read(&path)? == text.as_bytes(), "it was changed");
    }
    std::fs::remove_file(&path)?;
    let store = open()?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path)?.permissions());
    ensure!(mode & 0o777 == 0o600, "others may read it: {mode:o}");
    ensure!(matches!(open(), Err(StoreError::InUse(_))), "in use");
    drop(store);
    let other = file::opener(Arc::new(SystemDisk), path.clone(), "us".parse()?, 1 << 20)();
    ensure!(matches!(other, Err(StoreError::OtherRegion { .. })), "another region's");
    // The format that it had, after which it has the one that is given.
    let set_format = |format: u32| -> Result<Option<u32>> {
        let database = redb::Database::create(&path)?;
        let txn = database.begin_write()?;
        let meta: redb::TableDefinition<&[u8], &[u8]> = redb::TableDefinition::new("meta");
        let former = {
            let mut table = txn.open_table(meta)?;
            let former = table.insert(b"format".as_slice(), format.to_string().as_bytes())?;
            former.and_then(|text| std::str::from_utf8(text.value()).ok()?.parse().ok())
        };
        txn.commit()?;
        Ok(former)
    };
    ensure!(set_format(file::FORMAT - 1)? == Some(file::FORMAT), "a new one");
    file::check(&path)?;
    ensure!(set_format(file::FORMAT - 1)? == Some(file::FORMAT - 1), "a check changed it");
    open()?;
    ensure!(set_format(file::FORMAT + 1)? == Some(file::FORMAT), "the former format is read, and given up");
    ensure!(matches!(open(), Err(StoreError::Newer { .. })), "newer");
    Ok(())
}
