//! One simulation: a seed, a world, relays and devices in it.
//!
//! - [`relays`]: starting, stopping, crashing them
//! - [`devices`]: phones with the client library, and what happens to them

mod devices;
mod relays;

pub use devices::Device;

use crate::entropy;
use crate::plan::Link;
use crate::report::Recorder;
use crate::trace::Trace;
use crate::world::places::{self, PipeChanges};
use crate::world::{HostId, Packets, World};
use anyhow::{Context, Result, anyhow};
use devices::Phone;
use fastrand::Rng;
use godwit_certs::folder::AuthorityDir;
use godwit_certs::tls::Crypto;
use godwit_checker::{Checker, Delivery, Journal};
use godwit_core::sabotage::{self, Sabotage};
use godwit_relay::store::shared::memory::Memory;
use godwit_wire::{Clock, UnixMillis};
use relays::Node;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The wall clock at the start: 2026-01-01, 00:00 UTC.
const EPOCH: u64 = 1_767_225_600_000;

/// How a simulation runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Everything in it follows from this.
    pub seed: u64,
    /// Where every event is written.
    pub trace: Option<PathBuf>,
    /// A deliberate fault of the relays, to see whether it is noticed.
    pub sabotage: Option<Sabotage>,
    /// Collects what a report shows.
    pub recorder: Option<Recorder>,
}

impl Options {
    pub fn seed(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
}

/// How a simulation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Of all events: the same for the same seed and build.
    pub hash: u64,
    pub events: u64,
    pub packets: Packets,
    /// Time that passed in the simulation.
    pub lasted: Duration,
}

struct Inner {
    seed: u64,
    world: World,
    folder: tempfile::TempDir,
    authority: AuthorityDir,
    start: Instant,
    checker: Checker,
    recorder: Option<Recorder>,
    relays: RefCell<BTreeMap<String, Node>>,
    /// Of regions whose relays share one.
    stores: RefCell<BTreeMap<String, Memory>>,
    phones: RefCell<BTreeMap<String, Phone>>,
}

/// What the checker tells goes into the trace and the report.
struct InSim {
    world: World,
    recorder: Option<Recorder>,
}

impl Journal for InSim {
    fn now(&self) -> Duration {
        self.world.now()
    }

    fn note(&self, what: &str) {
        self.world.note(what);
    }

    fn delivered(&self, delivery: Delivery) {
        if let Some(recorder) = &self.recorder {
            recorder.delivered(delivery);
        }
    }
}

/// A simulation from within. Cloning shares it.
#[derive(Clone)]
pub struct Sim(Rc<Inner>);

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("seed", &self.0.seed).finish_non_exhaustive()
    }
}

/// A clock that can be set wrong.
#[derive(Clone, Debug)]
struct Skew(Arc<AtomicI64>);

impl Skew {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn clock(&self, start: Instant) -> Clock {
        let skew = self.0.clone();
        Clock::new(move || {
            let passed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            UnixMillis((EPOCH + passed).saturating_add_signed(skew.load(Ordering::Relaxed)))
        })
    }

    fn set(&self, millis: i64) {
        self.0.store(millis, Ordering::Relaxed);
    }
}

/// Whether a relay is of the region `whose`, or a device of the user.
fn is_of(id: &str, whose: &str) -> bool {
    id.split_once('/').is_some_and(|(before, _)| before == whose)
}

/// In memory where that is possible: devices keep real files.
fn folder() -> std::io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("simnet-");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir())
}

thread_local! {
    static BEGAN: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// Time since the start of the simulation that this thread runs, for logs; none elsewhere.
pub fn virtual_time() -> Option<Duration> {
    BEGAN.get().map(|began| began.elapsed())
}

impl Sim {
    /// Runs `main` in a simulation on a thread of its own, to its end.
    ///
    /// # Errors
    /// What `main` returns; that it panicked; a broken promise that the checker saw.
    pub fn run<T, F>(options: &Options, main: F) -> Result<(T, Ran)>
    where
        T: Send + 'static,
        F: AsyncFnOnce(Sim) -> Result<T> + Send + 'static,
    {
        let options = options.clone();
        // Here, where names are the system's randomness: with the seed's, a folder that another run of the same seed has
        // made would change what is random after it.
        let folder = folder()?;
        let thread = std::thread::Builder::new().name(format!("seed {}", options.seed)).stack_size(8 << 20);
        let thread = thread.spawn(move || {
            entropy::seed(options.seed);
            sabotage::set(options.sabotage);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let sim = Self::new(&options, folder)?;
                tokio::spawn(sim.0.world.clone().carry());
                let result = main(sim.clone()).await;
                let result = match sim.0.checker.verdict() {
                    Ok(()) => result,
                    Err(broken) => Err(broken),
                };
                let (hash, events) = sim.0.world.sum();
                let ran = Ran { hash, events, packets: sim.0.world.packets(), lasted: sim.0.world.now() };
                sim.0.world.flush()?;
                result.map(|value| (value, ran))
            })
        })?;
        thread.join().map_err(|_| anyhow!("the simulation panicked"))?
    }

    fn new(options: &Options, folder: tempfile::TempDir) -> Result<Self> {
        let trace = match &options.trace {
            Some(path) => Some(File::create(path).with_context(|| path.display().to_string())?),
            None => None,
        };
        BEGAN.set(Some(Instant::now()));
        let world = World::new(options.seed, Trace::new(trace));
        Ok(Self(Rc::new(Inner {
            seed: options.seed,
            checker: Checker::new(InSim { world: world.clone(), recorder: options.recorder.clone() }),
            recorder: options.recorder.clone(),
            world,
            authority: AuthorityDir::new(folder.path().join("authority")),
            folder,
            start: Instant::now(),
            relays: RefCell::default(),
            stores: RefCell::default(),
            phones: RefCell::default(),
        })))
    }

    /// For what is neither a device's nor a relay's.
    pub(crate) fn folder(&self) -> &Path {
        self.0.folder.path()
    }

    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    pub fn world(&self) -> &World {
        &self.0.world
    }

    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.0.recorder.as_ref()
    }

    pub fn checker(&self) -> &Checker {
        &self.0.checker
    }

    /// Randomness for one purpose, from the seed.
    pub fn rng(&self, purpose: &str) -> Rng {
        use std::hash::Hasher;
        let mut hash = siphasher::sip::SipHasher13::new_with_keys(self.0.seed, 0);
        hash.write(purpose.as_bytes());
        Rng::with_seed(hash.finish())
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.0.world.now()
    }

    pub async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// The right time.
    fn wall(&self) -> UnixMillis {
        Skew::new().clock(self.0.start).now()
    }

    fn crypto(&self, skew: &Skew) -> Crypto {
        Crypto { provider: entropy::provider(), clock: skew.clock(self.0.start) }
    }

    /// A relay or device, a user's devices, a region's relays.
    fn hosts(&self, name: &str) -> Vec<HostId> {
        let relays = self.0.relays.borrow();
        let phones = self.0.phones.borrow();
        let relays = relays.iter().filter(|(id, _)| *id == name || is_of(id, name));
        let phones = phones.iter().filter(|(id, _)| *id == name || is_of(id, name));
        relays.map(|(_, node)| node.host).chain(phones.map(|(_, phone)| phone.host)).collect()
    }

    /// Nothing passes from one to the other any more. Each is a relay, a device, or a region, which is its relays.
    pub fn cut(&self, from: &str, to: &str) {
        self.0.world.note(&format!("cut {from} -> {to}"));
        self.0.world.cut(&self.hosts(from), &self.hosts(to), true);
    }

    /// Changes what packets meet between two regions, one way or within one if they are the same; none has it be as usual.
    pub fn set_link(&self, from: &str, to: &str, changes: Option<PipeChanges>) {
        let what = changes.map_or_else(|| " is as usual".to_owned(), |changes| changes.to_string());
        self.0.world.note(&format!("link {from} -> {to}{what}"));
        self.0.world.set_link(from, to, changes.map(|changes| changes.over(places::between(from, to))));
    }

    /// Has a link be as a plan says, or as usual again.
    pub(crate) fn change_link(&self, link: &Link, changed: bool) {
        let changes = changed.then_some(link.with);
        self.set_link(&link.from, &link.to, changes);
        if link.both {
            self.set_link(&link.to, &link.from, changes);
        }
    }

    /// What was cut from one to the other passes again.
    pub fn mend(&self, from: &str, to: &str) {
        self.0.world.note(&format!("mend {from} -> {to}"));
        self.0.world.cut(&self.hosts(from), &self.hosts(to), false);
    }
}
