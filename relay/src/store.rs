//! Where chats, inboxes and devices are stored: in embedded redb, or behind an API that many relays share.
//!
//! What a write means is decided in `godwit_core`; what is kept, and under which key, is listed in [`tables`], as
//! [`rows`]. With redb ([`embedded`]) every write goes through one thread ([`writer`]), which commits all that queued up
//! with one fsync, and reads use snapshots beside it. How it is done without a file of its own is in [`shared`]. What was
//! committed is told to fan-out in the order of the commits.
//!
//! - [`chats`]: commands on a chat's log, and the states of chats in memory
//! - [`replica`]: copies of other regions' chats, for the users of this one
//! - [`restored`]: what is compared after a store was restored from a backup
//! - [`delivery`]: inbox rows, settled cursors
//! - [`marks`]: how far everybody got
//! - [`devices`]: enrolment, revocation
//! - [`blobs`]: which attachments are stored, and who refers to them
//! - [`read`]: history, chat lists, what fan-out resumes from
//! - [`file`]: opening, checking and copying redb's file
//! - [`check`]: what must hold of a store's chats
//! - [`error`]: what can go wrong

mod blobs;
mod chats;
pub mod check;
mod delivery;
mod devices;
mod embedded;
mod error;
pub mod file;
mod keys;
mod marks;
mod meta;
mod read;
mod replica;
mod restored;
mod rows;
pub mod shared;
mod tables;
mod writer;

pub(crate) use blobs::{BlobChange, Upload};
pub use delivery::{ChatProgress, InboxChange, InboxWrite};
pub use devices::Issued;
pub use error::StoreError;
pub(crate) use read::{PageLimit, RegionRun, Snapshot, Unsettled};
pub use replica::{Base, Replicated};
pub(crate) use rows::Freshness;
pub use tables::{Floor, Watermark};

use crate::host::{Host, Thread};
use crate::metrics::Metrics;
use chats::{ChatCache, Commands};
use delivery::{InboxWrites, Round, SaveProgress};
use devices::{Enrol, NoteRevocations, Renewed, Revoke, Seen};
use godwit_core::device::Revocation;
use godwit_core::{Command, Entry, Outcome};
use godwit_wire::frame::{ChatList, HistoryPage, Range};
use godwit_wire::{ChatId, Code, DeviceId, Refusal, RegionId, Seq, UnixMillis, UserId};
use redb::Database;
use replica::Replicate;
pub(crate) use restored::Met;
use restored::{DropCopies, NoteMet};
use shared::engine::Engine;
use shared::{Pen, TakeUp, Topic, Topics, Watched, Worker};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use writer::{Job, Write, Writer, job};

/// Writes that wait for the writer, at most; whoever comes then waits for a place.
const QUEUED_JOBS: usize = 1024;
/// Bytes of commands of one chat that are written together on a shared store, unless one alone has more.
const PART_BYTES: usize = 128 << 10;
/// The unit in which memory in flight is counted.
const PERMIT_BYTES: usize = 1024;

/// What was committed, in order, as fan-out hears it.
#[derive(Clone, Debug)]
pub enum Committed {
    Entry {
        chat: ChatId,
        entry: Arc<Entry>,
        recipients: Arc<[UserId]>,
        in_flight: Arc<InFlight>,
    },
    /// The device's own inbox rows begin after the heads of its chats.
    Enrolled {
        device: DeviceId,
        enrolment: u32,
    },
    Revoked {
        revocation: Revocation,
    },
    /// These copies of other regions' chats are gone, and come anew.
    Dropped {
        chats: Vec<ChatId>,
    },
    /// A chat of a shared store, which another relay may have had before. If it is dirty, its log may reach beyond what is
    /// settled, and beyond what was told.
    TakenUp {
        chat: ChatId,
        dirty: bool,
    },
    /// The file was opened anew after a fault: what was committed last may be more than was told.
    Reopened,
}

/// Memory that commands hold from their arrival until fan-out has taken up their entries.
#[derive(Debug)]
pub struct InFlight {
    _permit: OwnedSemaphorePermit,
}

/// Opens the database, at the start and again after a fault.
pub type Opener = Arc<dyn Fn() -> Result<Database, StoreError> + Send + Sync>;

/// Limits of a store.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// Bytes of commands between arrival and fan-out. Lanes wait when it is reached.
    pub in_flight_bytes: usize,
    /// Chats whose state is kept in memory.
    pub cached_chats: usize,
    /// Free disk space below which sends are refused, so that acknowledging and deleting go on.
    pub reserve_bytes: u64,
    /// Of a shared store: chats that are written at a time.
    pub workers: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { in_flight_bytes: 64 << 20, cached_chats: 100_000, reserve_bytes: 64 << 20, workers: 32 }
    }
}

/// How long a commit took lately, in microseconds.
#[derive(Debug, Default)]
struct CommitTime(AtomicU32);

impl CommitTime {
    /// The last eight or so count.
    fn took(&self, time: Duration) {
        let now = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before - before / 8 + now / 8, Ordering::Relaxed);
    }
}

/// The database that is open now, shared by the writer and all readers.
pub(crate) struct OpenDatabase {
    commit_time: Arc<CommitTime>,
    database: RwLock<Option<Arc<Database>>>,
    free_bytes: Option<Box<dyn Fn() -> Option<u64> + Send + Sync>>,
}

impl OpenDatabase {
    fn database(&self) -> Option<Arc<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open(&self, database: Database) -> Arc<Database> {
        let database = Arc::new(database);
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database.clone());
        database
    }

    /// Readers that still hold the database let go of it when their read ends; until then it cannot be opened anew.
    fn close(&self) {
        self.database.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn free_bytes(&self) -> Option<u64> {
        self.free_bytes.as_ref().and_then(|free| free())
    }
}

/// What is under a store.
#[derive(Clone)]
enum Under {
    Embedded { jobs: mpsc::Sender<Box<dyn Job>>, database: Arc<OpenDatabase> },
    Shared(Arc<SharedStore>),
}

/// A relay's part in a shared store. Dropped once nobody can ask for a write.
struct SharedStore {
    topics: Arc<Topics>,
    pen: Pen,
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        self.topics.close();
    }
}

/// A handle on the store. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    under: Under,
    commit_time: Arc<CommitTime>,
    host: Host,
    in_flight: Arc<Semaphore>,
    in_flight_permits: u32,
    generation: u64,
    client_generation: Arc<AtomicU64>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// A store that was opened, with what it tells and how to wait for its end.
#[derive(Debug)]
pub struct OpenStore {
    pub store: Store,
    pub committed: mpsc::UnboundedReceiver<Committed>,
    /// They end once every handle is dropped, all that queued is committed and the file is closed.
    pub threads: Vec<Thread>,
}

impl Store {
    /// Opens a store of redb with `opener` and starts its writer. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Whatever `opener` returns; nothing was started then.
    pub fn open(
        opener: Opener,
        free_bytes: Option<Box<dyn Fn() -> Option<u64> + Send + Sync>>,
        limits: &StoreLimits,
        host: &Host,
        metrics: Metrics,
    ) -> Result<OpenStore, StoreError> {
        let database = opener()?;
        let generation = file::generation(&database)?;
        let client_generation = Arc::new(AtomicU64::new(file::client_generation(&database)?));
        let region = file::region(&database)?;
        let commit_time = Arc::<CommitTime>::default();
        let database = Arc::new(OpenDatabase {
            commit_time: commit_time.clone(),
            database: RwLock::new(Some(Arc::new(database))),
            free_bytes,
        });
        let (jobs, queue) = mpsc::channel(QUEUED_JOBS);
        // Not bounded by itself: every entry in it holds a part of `in_flight`.
        let (committed_tx, committed) = mpsc::unbounded_channel();
        let writer = Writer {
            jobs: queue,
            committed: committed_tx,
            database: database.clone(),
            opener,
            clock: host.crypto.clock.clone(),
            threads: host.threads.clone(),
            metrics,
            cached_chats: limits.cached_chats,
            reserve_bytes: limits.reserve_bytes,
            chats: ChatCache::new(region.clone()),
            region,
            free_space: None,
            reopen_at: None,
        };
        let thread = host
            .threads
            .start("store", writer.run())
            .map_err(|source| StoreError::File { path: PathBuf::from("store thread"), source })?;
        let under = Under::Embedded { jobs, database };
        let store = Self::over(under, commit_time, limits, host, generation, client_generation);
        Ok(OpenStore { store, committed, threads: vec![thread] })
    }

    /// Opens a store that others may share, and starts its workers. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The engine's; and if it was not made ready for this region, or by a newer version.
    pub async fn share(
        engine: Arc<dyn Engine>,
        region: &RegionId,
        limits: &StoreLimits,
        host: &Host,
        metrics: &Metrics,
    ) -> Result<OpenStore, StoreError> {
        let (generation, client_generation) = shared::opened(engine.clone(), region, &host.threads).await?;
        let engine = Arc::new(Watched::new(engine, metrics.clone()));
        let pen = Pen { engine, bounds: Arc::default(), me: host.crypto.random_number() };
        let topics = Arc::new(Topics::new());
        let commit_time = Arc::<CommitTime>::default();
        // Not bounded by itself: every entry in it holds a part of `in_flight`.
        let (committed_tx, committed) = mpsc::unbounded_channel();
        let worker = Worker {
            topics: topics.clone(),
            pen: pen.clone(),
            committed: committed_tx,
            clock: host.crypto.clock.clone(),
            threads: host.threads.clone(),
            metrics: metrics.clone(),
            region: region.clone(),
            cached_chats: limits.cached_chats,
            commit_time: commit_time.clone(),
        };
        let start = |i| host.threads.start(&format!("store-{i}"), worker.clone().run());
        let threads: Result<_, _> = (0..limits.workers.max(1)).map(start).collect();
        let threads = threads.map_err(|source| StoreError::File { path: PathBuf::from("store threads"), source })?;
        let under = Under::Shared(Arc::new(SharedStore { topics, pen }));
        let client_generation = Arc::new(AtomicU64::new(client_generation));
        let store = Self::over(under, commit_time, limits, host, generation, client_generation);
        Ok(OpenStore { store, committed, threads })
    }

    fn over(
        under: Under,
        commit_time: Arc<CommitTime>,
        limits: &StoreLimits,
        host: &Host,
        generation: u64,
        client_generation: Arc<AtomicU64>,
    ) -> Self {
        let in_flight_permits = u32::try_from(limits.in_flight_bytes / PERMIT_BYTES).unwrap_or(u32::MAX).max(1);
        let in_flight = Arc::new(Semaphore::new(in_flight_permits as usize));
        Self { under, commit_time, host: host.clone(), in_flight, in_flight_permits, generation, client_generation }
    }

    /// Forgets what is kept in memory of chats: others may have written them.
    pub(crate) fn forget(&self) {
        if let Under::Shared(shared) = &self.under {
            shared.topics.forget();
        }
    }

    /// Whether other relays may share it.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.under, Under::Shared(_))
    }

    /// Changes when the store was restored from a backup.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Changes when clients are to compare what they have: this store was restored, or that of another region.
    pub(crate) fn client_generation(&self) -> u64 {
        self.client_generation.load(Ordering::Relaxed)
    }

    /// How long a commit took lately, its fsync included, in microseconds.
    pub(crate) fn commit_micros(&self) -> u32 {
        self.commit_time.0.load(Ordering::Relaxed)
    }

    /// Nothing is between its arrival and fan-out.
    pub fn is_quiet(&self) -> bool {
        self.in_flight.available_permits() == self.in_flight_permits as usize
    }

    /// Queues a write, and gives the wait for it to be durable.
    async fn queue<W: Write>(
        &self,
        write: W,
    ) -> Result<impl Future<Output = Result<W::Output, Refusal>> + Send + use<W>, Refusal> {
        let topic = write.topic();
        let (job, answer) = job(write);
        let gone = || Refusal::from(Code::ShuttingDown);
        match &self.under {
            Under::Embedded { jobs, .. } => jobs.send(job).await.map_err(|_| gone())?,
            Under::Shared(shared) => shared.topics.queue(topic, job).await?,
        }
        Ok(async move { answer.await.map_err(|_| gone())? })
    }

    async fn write<W: Write>(&self, write: W) -> Result<W::Output, Refusal> {
        self.queue(write).await?.await
    }

    /// Writes all parts of what concerns several topics, in one commit where there is one.
    async fn write_parts<T, W: Write>(
        &self,
        all: Vec<T>,
        chat: impl Fn(&T) -> &ChatId,
        write: impl Fn(Vec<T>) -> W,
    ) -> Result<Vec<W::Output>, Refusal> {
        if !self.is_shared() {
            return Ok(vec![self.write(write(all)).await?]);
        }
        let mut parts: BTreeMap<ChatId, Vec<T>> = BTreeMap::new();
        for one in all {
            parts.entry(chat(&one).clone()).or_default().push(one);
        }
        let mut answers = Vec::new();
        for part in parts.into_values() {
            answers.push(self.queue(write(part)).await?);
        }
        let mut outputs = Vec::new();
        for answer in answers {
            outputs.push(answer.await);
        }
        outputs.into_iter().collect()
    }

    /// Waits until there is room for `commands`, then queues them and returns the wait for their outcomes, one each in
    /// their order, all durable. Commands of one call are decided in their order.
    ///
    /// Cancel safety: once this returned, the commands run whether the answer is awaited or not.
    pub async fn submit(
        &self,
        commands: Vec<Command>,
    ) -> Result<impl Future<Output = Result<Vec<Outcome>, Refusal>> + Send + use<>, Refusal> {
        self.submit_with(commands, Vec::new()).await
    }

    /// As [`Store::submit`]; `missing` are users of other homes who do not exist.
    pub async fn submit_with(
        &self,
        commands: Vec<Command>,
        missing: Vec<UserId>,
    ) -> Result<impl Future<Output = Result<Vec<Outcome>, Refusal>> + Send + use<>, Refusal> {
        let in_flight = self.hold(commands.iter().map(Command::cost_bytes).sum()).await?;
        let count = commands.len();
        let mut queued = Vec::new();
        for (places, batch) in self.parts(commands) {
            let part = Commands { batch, missing: missing.clone(), in_flight: in_flight.clone() };
            queued.push((places, self.queue(part).await?));
        }
        Ok(async move {
            let mut outcomes: Vec<Option<Outcome>> = vec![None; count];
            for (places, answer) in queued {
                for (place, outcome) in places.into_iter().zip(answer.await?) {
                    outcomes[place] = Some(outcome);
                }
            }
            outcomes.into_iter().collect::<Option<_>>().ok_or_else(|| Code::Internal.into())
        })
    }

    /// Commands as they are written together, with their places among all: all of them, or those of one chat up to a size.
    fn parts(&self, commands: Vec<Command>) -> Vec<(Vec<usize>, Vec<Command>)> {
        if !self.is_shared() {
            return vec![((0..commands.len()).collect(), commands)];
        }
        let mut parts: Vec<(Vec<usize>, Vec<Command>)> = Vec::new();
        let mut current: BTreeMap<ChatId, (usize, usize)> = BTreeMap::new();
        for (place, command) in commands.into_iter().enumerate() {
            let bytes = command.cost_bytes();
            match current.get_mut(&command.stamp.chat) {
                Some((part, size)) if *size + bytes <= PART_BYTES => {
                    *size += bytes;
                    parts[*part].0.push(place);
                    parts[*part].1.push(command);
                }
                _ => {
                    current.insert(command.stamp.chat.clone(), (parts.len(), bytes));
                    parts.push((vec![place], vec![command]));
                }
            }
        }
        parts
    }

    /// Waits until so many bytes more may be on their way to fan-out.
    async fn hold(&self, bytes: usize) -> Result<Arc<InFlight>, Refusal> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.in_flight_permits);
        let permit = self.in_flight.clone().acquire_many_owned(permits).await;
        Ok(Arc::new(InFlight { _permit: permit.map_err(|_| Refusal::from(Code::ShuttingDown))? }))
    }

    /// Queues the next entries of a chat whose home is another region, and gives the wait for them to be durable.
    pub(crate) async fn replicate(
        &self,
        chat: ChatId,
        base: Option<Base>,
        entries: Vec<Entry>,
    ) -> Result<impl Future<Output = Result<Replicated, Refusal>> + Send + use<>, Refusal> {
        let content: u64 = entries.iter().map(|entry| Entry::content_bytes(&entry.body)).sum();
        let bytes = entries.len() * size_of::<Entry>() + usize::try_from(content).unwrap_or(usize::MAX);
        let in_flight = self.hold(bytes).await?;
        self.queue(Replicate { chat, base, entries, in_flight }).await
    }

    /// Uses up a token and gives `device` a new enrolment, for which `issue` makes the certificate.
    pub async fn enrol(
        &self,
        device: DeviceId,
        jti: String,
        forget_at: UnixMillis,
        issue: impl Fn(u32) -> Result<Issued, Refusal> + Send + 'static,
    ) -> Result<Issued, Refusal> {
        self.write(Enrol { device, jti, forget_at, issue: Box::new(issue) }).await?
    }

    /// Notes a renewed certificate. False if the device has another enrolment by now, or was revoked.
    pub async fn renewed(&self, device: DeviceId, enrolment: u32, fingerprint: [u8; 32]) -> Result<bool, Refusal> {
        self.write(Renewed { device, enrolment, fingerprint }).await
    }

    /// Shuts a device out. False if there is no such device.
    pub async fn revoke(&self, device: DeviceId) -> Result<bool, Refusal> {
        self.write(Revoke { device }).await
    }

    /// Keeps what other regions told of devices of theirs.
    pub(crate) async fn note_revocations(&self, revocations: Vec<Revocation>) -> Result<(), Refusal> {
        self.write(NoteRevocations(revocations)).await
    }

    /// Drops copies that are not what their home has. Clients that connect from now on compare what they have.
    pub(crate) async fn drop_copies(&self, chats: Vec<ChatId>) -> Result<(), Refusal> {
        let comparison = self.host.crypto.random_number();
        self.write_parts(chats, |chat| chat, |chats| DropCopies { chats, comparison }).await?;
        self.client_generation.store(self.generation ^ comparison, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that this store and the one of another region agree.
    pub(crate) async fn note_met(&self, region: RegionId, met: Met) -> Result<(), Refusal> {
        self.write(NoteMet { region, met }).await
    }

    pub async fn seen(&self, device: DeviceId) -> Result<(), Refusal> {
        self.write(Seen { device }).await
    }

    /// Changes inbox rows. Gives those that begin lower than was known, or were to go and stay for what came since: from
    /// where on.
    pub async fn write_inbox(&self, writes: Vec<InboxWrite>) -> Result<Vec<(DeviceId, ChatId, Seq)>, Refusal> {
        let of = |round| move |writes| InboxWrites { writes, round };
        if !self.is_shared() {
            return self.write(InboxWrites { writes, round: Round::Only }).await;
        }
        let taken = |write: &&InboxWrite| matches!(write.change, InboxChange::TookAll(_));
        let taken: Vec<InboxWrite> = writes.iter().filter(taken).cloned().collect();
        let mut left = self.write_parts(writes, |write| &write.chat, of(Round::Leave)).await?;
        left.extend(self.write_parts(taken, |write| &write.chat, of(Round::Gone)).await?);
        Ok(left.concat())
    }

    pub async fn save_progress(&self, progress: Vec<ChatProgress>) -> Result<(), Refusal> {
        self.write_parts(progress, |progress| &progress.chat, SaveProgress).await.map(drop)
    }

    /// Runs `read` on a snapshot, on a thread where it may block.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let under = self.under.clone();
        let result = self.host.threads.blocking(move || match under {
            Under::Embedded { database, .. } => {
                let database = database.database().ok_or(StoreError::Closed)?;
                read(&Snapshot::new(embedded::Moment::now(&database)?))
            }
            Under::Shared(shared) => read(&Snapshot::new(shared.pen.live())),
        });
        match result.await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "a read of the store did not end");
                Err(StoreError::Closed)
            }
        }
    }

    /// As [`Store::read`], once everything is done that follows from what is in the log of `chat`.
    pub(crate) async fn read_chat<T: Send + 'static>(
        &self,
        chat: ChatId,
        read: impl FnOnce(&Snapshot, &ChatId) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if let Under::Shared(shared) = &self.under
            && !shared.topics.has(&Topic::Chat(chat.clone()))
        {
            self.write(TakeUp(chat.clone())).await.map_err(|_| StoreError::Closed)?;
        }
        self.read(move |store| read(store, &chat)).await
    }

    /// A page of a chat's history, as `user` may see it: at most `limit` entries.
    pub async fn history(
        &self,
        user: UserId,
        chat: ChatId,
        range: Range,
        limit: usize,
    ) -> Result<Result<HistoryPage, Refusal>, StoreError> {
        self.read_chat(chat, move |store, chat| store.history(&user, chat, range, limit)).await
    }

    /// A page of the chats of a device's user, after `after`: at most `limit`.
    pub async fn list_chats(
        &self,
        device: DeviceId,
        after: Option<ChatId>,
        limit: usize,
    ) -> Result<ChatList, StoreError> {
        self.read(move |store| store.list_chats(&device, after.as_ref(), limit)).await
    }

    /// Copies the store as it is now to a new file, under a new generation.
    pub async fn backup(&self, to: PathBuf) -> Result<(), StoreError> {
        let Under::Embedded { database, .. } = &self.under else { return Err(StoreError::NoBackup) };
        let (database, host) = (database.clone(), self.host.clone());
        let copy = self.host.threads.blocking(move || {
            let database = database.database().ok_or(StoreError::Closed)?;
            file::copy(&*host.disk, &database, &to, host.crypto.random_number())
        });
        copy.await.unwrap_or(Err(StoreError::Closed))
    }
}
