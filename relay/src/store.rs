//! Where chats, inboxes and devices are stored: embedded redb with group commit.
//!
//! Every write goes through one thread ([`writer`]), which commits all that queued up with one fsync; reads use
//! snapshots beside it. What a write means is decided in `godwit_core`; what is kept, and under which key, is listed in
//! [`tables`], as [`rows`] that an engine keeps: [`embedded`]. What was committed is told to fan-out in the order of the commits.
//!
//! - [`chats`]: commands on a chat's log, and the states of chats in memory
//! - [`replica`]: copies of other regions' chats, for the users of this one
//! - [`restored`]: what is compared after a store was restored from a backup
//! - [`delivery`]: inbox rows, watermarks, settled cursors
//! - [`devices`]: enrolment, revocation
//! - [`blobs`]: which attachments are stored, and who refers to them
//! - [`read`]: history, chat lists, what fan-out resumes from
//! - [`file`]: opening, checking and copying the file

mod blobs;
mod chats;
mod delivery;
mod devices;
mod embedded;
pub mod file;
mod keys;
mod meta;
mod read;
mod replica;
mod restored;
mod rows;
mod tables;
mod writer;

pub(crate) use blobs::{BlobChange, Upload};
pub use delivery::{ChatProgress, InboxChange, InboxWrite};
pub use devices::Issued;
pub(crate) use read::{PageLimit, RegionRun, Snapshot, Unsettled};
pub use replica::{Base, Replicated};
pub use tables::{Floor, Watermark};

use crate::host::{Host, Thread};
use crate::metrics::Metrics;
use chats::{ChatCache, Commands};
use delivery::{InboxWrites, SaveProgress};
use devices::{Enrol, NoteRevocations, Renewed, Revoke, Seen};
use godwit_core::device::Revocation;
use godwit_core::{Command, Entry, Outcome};
use godwit_wire::frame::{HistoryPage, Range};
use godwit_wire::{ChatId, Code, DeviceId, Refusal, RegionId, UnixMillis, UserId};
use redb::Database;
use replica::Replicate;
pub(crate) use restored::Met;
use restored::{DropCopies, NoteMet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use writer::{Job, Write, Writer, job};

/// Writes that wait for the writer, at most; whoever comes then waits for a place.
const QUEUED_JOBS: usize = 1024;
/// The unit in which memory in flight is counted.
const PERMIT_BYTES: usize = 1024;

/// A fault of the store. A client hears `Unavailable`.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Database(Box<redb::Error>),
    #[error("a record in the store: {0}")]
    Record(#[from] godwit_core::entry::RecordError),
    #[error("a key in the store cannot be read")]
    BadKey,
    #[error("the store contradicts itself: {0}")]
    Inconsistent(&'static str),
    #[error("the store is being opened anew")]
    Closed,
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: there is no store", .0.display())]
    Missing(PathBuf),
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{}: not a store, or damaged: {what}", path.display())]
    Corrupt { path: PathBuf, what: String },
    #[error("{}: format {found}, which is newer than this version's {known}: use a newer godwit", path.display())]
    Newer { path: PathBuf, found: String, known: u32 },
    #[error("{}: the store of region {found}, not of {expected}", path.display())]
    OtherRegion { path: PathBuf, found: String, expected: String },
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}
from_redb!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError, redb::DatabaseError);

impl StoreError {
    /// How a client hears of it.
    pub fn refusal(&self) -> Refusal {
        Refusal::retry(Code::Unavailable, Duration::from_secs(2))
    }
}

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
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { in_flight_bytes: 64 << 20, cached_chats: 100_000, reserve_bytes: 64 << 20 }
    }
}

/// The database that is open now, shared by the writer and all readers.
pub(crate) struct Shared {
    /// How long a commit took lately, in microseconds.
    commit_micros: AtomicU32,
    database: RwLock<Option<Arc<Database>>>,
    free_bytes: Option<Box<dyn Fn() -> Option<u64> + Send + Sync>>,
}

impl Shared {
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

    /// Notes how long a commit took: the last eight or so count.
    fn committed_in(&self, time: Duration) {
        let now = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let before = self.commit_micros.load(Ordering::Relaxed);
        self.commit_micros.store(before - before / 8 + now / 8, Ordering::Relaxed);
    }

    fn free_bytes(&self) -> Option<u64> {
        self.free_bytes.as_ref().and_then(|free| free())
    }
}

/// A handle on the store. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Box<dyn Job>>,
    shared: Arc<Shared>,
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
    /// Ends once every handle is dropped, all that queued is committed and the file is closed.
    pub thread: Thread,
}

impl Store {
    /// Opens a store with `opener` and starts its writer. Must be called within a tokio runtime.
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
        let shared = Arc::new(Shared {
            commit_micros: AtomicU32::new(0),
            database: RwLock::new(Some(Arc::new(database))),
            free_bytes,
        });
        let (jobs, queue) = mpsc::channel(QUEUED_JOBS);
        // Not bounded by itself: every entry in it holds a part of `in_flight`.
        let (committed_tx, committed) = mpsc::unbounded_channel();
        let writer = Writer {
            jobs: queue,
            committed: committed_tx,
            shared: shared.clone(),
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
        let in_flight_permits = u32::try_from(limits.in_flight_bytes / PERMIT_BYTES).unwrap_or(u32::MAX).max(1);
        let in_flight = Arc::new(Semaphore::new(in_flight_permits as usize));
        let store =
            Self { jobs, shared, host: host.clone(), in_flight, in_flight_permits, generation, client_generation };
        Ok(OpenStore { store, committed, thread })
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
        self.shared.commit_micros.load(Ordering::Relaxed)
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
        let (job, answer) = job(write);
        let gone = || Refusal::from(Code::ShuttingDown);
        self.jobs.send(job).await.map_err(|_| gone())?;
        Ok(async move { answer.await.map_err(|_| gone())? })
    }

    async fn write<W: Write>(&self, write: W) -> Result<W::Output, Refusal> {
        self.queue(write).await?.await
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
        self.queue(Commands { batch: commands, missing, in_flight }).await
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
        self.write(DropCopies { chats, comparison }).await?;
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

    pub async fn write_inbox(&self, writes: Vec<InboxWrite>) -> Result<(), Refusal> {
        self.write(InboxWrites(writes)).await
    }

    pub async fn save_progress(&self, progress: Vec<ChatProgress>) -> Result<(), Refusal> {
        self.write(SaveProgress(progress)).await
    }

    /// Runs `read` on a snapshot, on a thread where it may block.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let result = self.host.threads.blocking(move || {
            let database = shared.database().ok_or(StoreError::Closed)?;
            read(&Snapshot::new(embedded::Moment::now(&database)?))
        });
        match result.await {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "a read of the store did not end");
                Err(StoreError::Closed)
            }
        }
    }

    /// A page of a chat's history, as `user` may see it: at most `limit` entries.
    pub async fn history(
        &self,
        user: UserId,
        chat: ChatId,
        range: Range,
        limit: usize,
    ) -> Result<Result<HistoryPage, Refusal>, StoreError> {
        self.read(move |store| store.history(&user, &chat, range, limit)).await
    }

    /// Copies the store as it is now to a new file, under a new generation.
    pub async fn backup(&self, to: PathBuf) -> Result<(), StoreError> {
        let (shared, host) = (self.shared.clone(), self.host.clone());
        let copy = self.host.threads.blocking(move || {
            let database = shared.database().ok_or(StoreError::Closed)?;
            file::copy(&*host.disk, &database, &to, host.crypto.random_number())
        });
        copy.await.unwrap_or(Err(StoreError::Closed))
    }
}
