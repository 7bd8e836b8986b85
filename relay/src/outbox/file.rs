//! The outbox's file: what must survive a crash of this relay. One thread writes, and one fsync serves all that queued
//! up.

use crate::host::{Host, Threads};
use crate::peers::DeviceCredential;
use crate::store::StoreError;
use crate::store::file::open_or_create;
use godwit_core::Sender;
use godwit_core::entry::{decode_record, encode_record};
use godwit_wire::frame::Request;
use godwit_wire::{ChatId, Refusal, UnixMillis};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// The file's name in the relay's data folder.
const NAME: &str = "outbox.redb";
/// (device, enrolment, chat, n) → [`Kept`]
const REQUESTS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("requests");
/// (device, enrolment) → [`DeviceCredential`]
const PROOFS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("proofs");
/// Writes that wait, at most; whoever comes then waits for a place.
const QUEUED: usize = 1024;
const CACHE_BYTES: usize = 8 << 20;

/// A request that waits for its home.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) device: godwit_wire::DeviceId,
    pub(super) enrolment: u32,
    pub(super) request: Request,
    pub(super) since: UnixMillis,
}

/// What is written.
#[derive(Debug)]
pub(super) enum Change {
    Prove(Sender, DeviceCredential),
    Keep { chat: ChatId, n: u64, kept: Box<Kept> },
    Drop { sender: Sender, chat: ChatId, n: u64 },
}

struct Job {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), Refusal>>,
}

#[derive(Debug)]
pub(super) struct File {
    jobs: mpsc::Sender<Job>,
    /// The thread has closed the file.
    closed: Arc<Notify>,
    close: CancellationToken,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({})", self.changes.len())
    }
}

/// What a file held.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) requests: Vec<Kept>,
    pub(super) proofs: Vec<(String, DeviceCredential)>,
}

/// A sender's part of the keys.
pub(super) fn sender_key(sender: &Sender) -> String {
    format!("{} {}", sender.device, sender.enrolment)
}

fn request_key(sender: &Sender, chat: &ChatId, n: u64) -> String {
    format!("{} {chat} {n:020}", sender_key(sender))
}

impl File {
    /// Opens the file and starts its thread, which ends with the last handle.
    pub(super) fn open(host: &Host, folder: &Path) -> Result<(Self, Contents), StoreError> {
        let path = folder.join(NAME);
        let open = {
            let (disk, path) = (host.disk.clone(), path.clone());
            move || open_or_create(&*disk, &path, CACHE_BYTES, prepare)
        };
        let database = open()?;
        let contents = read(&database)?;
        let (jobs, queue) = mpsc::channel(QUEUED);
        let (closed, close) = (Arc::new(Notify::new()), CancellationToken::new());
        let (ended, ending) = (closed.clone(), close.clone());
        let threads = host.threads.clone();
        let thread = host.threads.start("outbox", async move {
            run(database, open, queue, &ending, &threads).await;
            ended.notify_one();
        });
        thread.map_err(|source| StoreError::File { path, source })?;
        Ok((Self { jobs, closed, close }, contents))
    }

    /// Writes what is queued and closes the file. What comes later is refused.
    pub(super) async fn close(&self) {
        self.close.cancel();
        // Wakes the thread; it is gone if this fails.
        let (done, _) = oneshot::channel();
        let _ = self.jobs.send(Job { changes: Vec::new(), done }).await;
        self.closed.notified().await;
    }

    /// Durable when this returns.
    pub(super) async fn write(&self, changes: Vec<Change>) -> Result<(), Refusal> {
        let gone = || Refusal::from(godwit_wire::Code::ShuttingDown);
        let (done, wait) = oneshot::channel();
        self.jobs.send(Job { changes, done }).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }
}

fn prepare(database: &Database) -> Result<(), StoreError> {
    let txn = database.begin_write()?;
    drop((txn.open_table(REQUESTS)?, txn.open_table(PROOFS)?));
    txn.commit()?;
    Ok(())
}

fn read(database: &Database) -> Result<Contents, StoreError> {
    let txn = database.begin_read()?;
    let mut contents = Contents::default();
    for row in txn.open_table(REQUESTS)?.iter()? {
        let (key, value) = row?;
        match decode_record(value.value()) {
            Ok(kept) => contents.requests.push(kept),
            Err(error) => tracing::error!(key = key.value(), %error, "a request in the outbox cannot be read"),
        }
    }
    for row in txn.open_table(PROOFS)?.iter()? {
        let (key, value) = row?;
        match decode_record(value.value()) {
            Ok(credential) => contents.proofs.push((key.value().to_owned(), credential)),
            Err(error) => tracing::error!(key = key.value(), %error, "a ticket in the outbox cannot be read"),
        }
    }
    Ok(contents)
}

async fn run(
    database: Database,
    open: impl Fn() -> Result<Database, StoreError>,
    mut queue: mpsc::Receiver<Job>,
    close: &CancellationToken,
    threads: &Threads,
) {
    let mut database = Some(database);
    while !close.is_cancelled()
        && let Some(first) = queue.recv().await
    {
        let mut jobs = vec![first];
        while let Ok(job) = queue.try_recv() {
            jobs.push(job);
        }
        let opened = match database.take() {
            Some(database) => Ok(database),
            None => open().inspect(|_| tracing::warn!("the outbox was opened anew")),
        };
        let written = opened.and_then(|opened| {
            commit(&opened, &jobs)?;
            Ok(opened)
        });
        let result = match written {
            Ok(written) => {
                database = Some(written);
                Ok(())
            }
            // What was asked may have landed all the same. The file is opened anew: redb writes nothing more on one that
            // failed.
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be written");
                Err(Refusal::retry(godwit_wire::Code::Unavailable, std::time::Duration::from_secs(2)))
            }
        };
        threads.settle().await;
        for job in jobs {
            // Whoever asked may have gone.
            let _ = job.done.send(result.clone());
        }
    }
}

fn commit(database: &Database, jobs: &[Job]) -> Result<(), StoreError> {
    let txn = database.begin_write()?;
    {
        let (mut requests, mut proofs) = (txn.open_table(REQUESTS)?, txn.open_table(PROOFS)?);
        for change in jobs.iter().flat_map(|job| &job.changes) {
            match change {
                Change::Prove(sender, credential) => {
                    proofs.insert(sender_key(sender).as_str(), encode_record(credential).as_slice())?;
                }
                Change::Keep { chat, n, kept } => {
                    let sender = Sender { device: kept.device.clone(), enrolment: kept.enrolment };
                    requests.insert(request_key(&sender, chat, *n).as_str(), encode_record(kept).as_slice())?;
                }
                Change::Drop { sender, chat, n } => {
                    requests.remove(request_key(sender, chat, *n).as_str())?;
                }
            }
        }
    }
    Ok(txn.commit()?)
}
