//! A store on some engine, with its users, that can be stopped, started, and opened by several relays at once.

use anyhow::{Context, Result, bail, ensure};
use godwit_certs::tls::Crypto;
use godwit_core::{Action, Command, Outcome, Sender};
use godwit_relay::host::{Host, SystemDisk, Threads};
use godwit_relay::metrics::Metrics;
use godwit_relay::store::shared::{self, engine::Engine};
use godwit_relay::store::{Committed, Issued, OpenStore, Store, StoreError, StoreLimits, file};
use godwit_wire::entry::{ChatKind, Content, LogEntry, Member, Role, Title};
use godwit_wire::frame::{ChatSummary, Range, Stamp};
use godwit_wire::{ChatId, Clock, DeviceId, MessageId, Refusal, Seq, UnixMillis, UserId};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

/// Longer than anything takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// What is under a store.
#[derive(Debug)]
pub enum Under {
    /// redb, in a folder of its own.
    File(tempfile::TempDir),
    /// A store that is shared.
    Shared(Arc<dyn Engine>),
}

impl Under {
    pub fn file() -> Result<Self> {
        Ok(Self::File(tempfile::tempdir()?))
    }

    pub async fn shared(engine: Arc<dyn Engine>) -> Result<Self> {
        shared::init(engine.clone(), &"eu".parse()?, &Threads::System).await?;
        Ok(Self::Shared(engine))
    }
}

pub struct Bench {
    under: Under,
    open: Option<OpenStore>,
}

fn open_file(folder: &Path, host: &Host) -> Result<OpenStore> {
    let path = folder.join(file::NAME);
    let opener = file::opener(Arc::new(SystemDisk), path, "eu".parse()?, 1 << 20);
    Ok(Store::open(opener, None, &StoreLimits::default(), host, Metrics::default())?)
}

/// Opens a store as one more relay of the region does.
pub async fn open_shared(engine: Arc<dyn Engine>) -> Result<OpenStore, StoreError> {
    let limits = StoreLimits { workers: 4, ..StoreLimits::default() };
    let region = "eu".parse().expect("a region");
    Store::share(engine, &region, &limits, &host(), &Metrics::default()).await
}

fn host() -> Host {
    let ticks = AtomicU64::new(1_000);
    let clock = Clock::new(move || UnixMillis(ticks.fetch_add(1, Ordering::Relaxed)));
    Host { crypto: Crypto { clock, ..Crypto::system() }, ..Host::system() }
}

impl Bench {
    /// With alice, bob and carol, who have a phone each.
    pub async fn new(under: Under) -> Result<Self> {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let mut bench = Self { under, open: None };
        bench.up().await?;
        for user in ["alice", "bob", "carol"] {
            bench.enrol(user, 1).await?;
        }
        Ok(bench)
    }

    /// Enrols a user's phone with a token of its own. Gives the enrolment.
    pub async fn enrol(&self, user: &str, token: u32) -> Result<u32, Refusal> {
        let enrolment = Arc::new(AtomicU64::new(0));
        let issue = {
            let enrolment = enrolment.clone();
            move |n: u32| {
                enrolment.store(n.into(), Ordering::Relaxed);
                Ok(Issued { enrolment: n, chain: Vec::new(), fingerprint: [0; 32] })
            }
        };
        self.store().enrol(device(user), format!("{user} {token}"), UnixMillis(u64::MAX), issue).await?;
        Ok(u32::try_from(enrolment.load(Ordering::Relaxed)).unwrap_or(0))
    }

    async fn up(&mut self) -> Result<()> {
        self.open = Some(match &self.under {
            Under::File(folder) => open_file(folder.path(), &host())?,
            Under::Shared(engine) => open_shared(engine.clone()).await?,
        });
        Ok(())
    }

    /// One that is there already.
    pub async fn reopened(under: Under) -> Result<Self> {
        let mut bench = Self { under, open: None };
        bench.up().await?;
        Ok(bench)
    }

    pub fn under(&self) -> &Under {
        &self.under
    }

    /// Stops in order and starts again.
    pub async fn restart(&mut self) -> Result<()> {
        self.down().await?;
        self.up().await
    }

    /// Stops in order.
    pub async fn stop(mut self) -> Result<Under> {
        self.down().await?;
        Ok(self.under)
    }

    async fn down(&mut self) -> Result<()> {
        let OpenStore { store, committed, threads } = self.open.take().context("open")?;
        drop((store, committed));
        for thread in threads {
            ensure!(thread.ended().await, "a writer panicked");
        }
        Ok(())
    }

    pub fn store(&self) -> Store {
        self.open.as_ref().expect("open").store.clone()
    }

    pub async fn run(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Refusal> {
        run(&self.store(), commands).await
    }

    pub async fn one(&self, command: Command) -> Result<Outcome, Refusal> {
        Ok(self.run(vec![command]).await?.remove(0))
    }

    /// The whole log, as bob sees it.
    pub async fn log(&self) -> Result<Vec<(Seq, MessageId)>> {
        Ok(log(&self.store(), "bob").await?.iter().map(|entry| (entry.seq, entry.id)).collect())
    }
}

pub async fn run(store: &Store, commands: Vec<Command>) -> Result<Vec<Outcome>, Refusal> {
    store.submit(commands).await?.await
}

/// Until the store takes the command.
pub async fn eventually(store: &Store, command: &Command) -> Result<Outcome> {
    let until = async {
        loop {
            match run(store, vec![command.clone()]).await {
                Ok(mut outcomes) => break outcomes.remove(0),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, until).await.context("the store does not take it")
}

/// The whole log, as a user sees it.
pub async fn log(store: &Store, name: &str) -> Result<Vec<LogEntry>> {
    let mut log = Vec::new();
    let mut from = Seq::FIRST;
    loop {
        let page = store.history(user(name), chat(), Range::From(from), 512).await??;
        let Some(last) = page.entries.last() else { return Ok(log) };
        from = last.seq.next();
        log.extend(page.entries);
    }
}

/// The entries that fan-out was told of; those in `unsettled`, where it was told to read what is not settled.
pub fn told_of(committed: &mut UnboundedReceiver<Committed>, unsettled: RangeInclusive<u64>) -> BTreeSet<u64> {
    let mut told = BTreeSet::new();
    while let Ok(event) = committed.try_recv() {
        match event {
            Committed::TakenUp { dirty: true, .. } => told.extend(unsettled.clone()),
            Committed::Entry { entry, .. } => drop(told.insert(entry.seq.get())),
            _ => {}
        }
    }
    told
}

/// The chat as a user's phone sees it in its list.
pub async fn listed(store: &Store, name: &str) -> Result<Option<ChatSummary>> {
    Ok(store.list_chats(device(name), None, 512).await?.chats.pop())
}

pub fn user(name: &str) -> UserId {
    format!("{name}@eu").parse().expect("a user")
}

pub fn device(name: &str) -> DeviceId {
    user(name).device("phone").expect("a device")
}

pub fn chat() -> ChatId {
    "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("a chat")
}

pub fn member(name: &str) -> Member {
    Member { user: user(name), role: Role::Member }
}

pub fn command(name: &str, n: u64, action: Action) -> Command {
    let id = |n: u64| MessageId(Uuid::from_u128(u128::from(n) << 32 | name.len() as u128));
    let previous = (n > 1).then(|| id(n - 1));
    let stamp = Stamp { chat: chat(), n, oldest: 1, id: id(n), previous };
    Command { sender: Sender { device: device(name), enrolment: 1 }, stamp, action }
}

/// Alice creates the chat with bob.
pub fn create() -> Command {
    let participants = vec![member("bob")];
    command("alice", 1, Action::Create { kind: ChatKind::Group, title: Title::default(), participants })
}

pub fn send(name: &str, n: u64) -> Command {
    command(name, n, Action::Send { content: Content(format!("{name} {n}").into()), blobs: Vec::new() })
}

pub fn sent(outcome: &Outcome) -> Result<u64> {
    match outcome {
        Outcome::Sent { seq, .. } => Ok(seq.get()),
        Outcome::Refused(refusal) => bail!("{refusal:?}"),
    }
}
