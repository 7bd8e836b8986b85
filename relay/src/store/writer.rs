//! Group commit: one thread takes every write that queued up while the last fsync ran, applies them in one
//! transaction, commits once, and only then answers them all.
//!
//! If the commit fails, all of them are answered `Unavailable`, the caches are dropped and the file is opened anew, as
//! after a crash: the commit may have landed. If a write panics, the batch is aborted and its writes run one by one;
//! the culprit is answered `Internal`.

use super::chats::ChatCache;
use super::embedded::Transaction;
use super::rows::RowsMut;
use super::shared::Topic;
use super::{CommitTime, Committed, OpenDatabase, Opener, StoreError};
use crate::host::Threads;
use crate::metrics::Metrics;
use godwit_core::sabotage::{self, Sabotage};
use godwit_wire::{Clock, Code, Refusal, RegionId, UnixMillis};
use redb::Database;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Writes in one commit, at most.
const BATCH_JOBS: usize = 2048;
/// When a client whose write failed should try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
const FREE_SPACE_AGE: Duration = Duration::from_millis(200);

/// An open transaction with the caches.
pub(super) struct Batch<'c> {
    pub(super) rows: &'c mut dyn RowsMut,
    pub(super) chats: &'c mut ChatCache,
    pub(super) region: &'c RegionId,
    pub(super) committed: Vec<Committed>,
    pub(super) now: UnixMillis,
    pub(super) metrics: &'c Metrics,
}

/// A kind of write. Applying it again after an aborted batch must be the same.
pub(super) trait Write: Send + 'static {
    type Output: Send;
    /// Refused while free space is below the reserve. What frees space, or lets a device acknowledge, must go on.
    const NEEDS_SPACE: bool = true;
    /// On a shared store: which writes it comes before or after.
    fn topic(&self) -> Topic;
    fn fence(&self) -> Fence {
        Fence::Journal
    }
    fn apply(&self, batch: &mut Batch<'_>) -> Result<Self::Output, StoreError>;
    /// Numbered requests in it, for the metric.
    fn commands(&self) -> usize {
        0
    }
    /// What it adds to a log, about.
    fn bytes(&self) -> usize {
        0
    }
}

/// What keeps a write to a shared store from going over what another relay wrote meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// It is an item of its topic's journal.
    Journal,
    /// The next place of the journal is taken before it, so that nobody wrote there since what it was decided upon.
    Before,
    /// None: each row that it changes means the same without the others, and whoever writes it twice, or over what
    /// somebody else wrote, writes what is so.
    Loose,
}

/// A write that waits for its commit.
pub(super) trait Job: Send {
    fn apply(&mut self, batch: &mut Batch<'_>) -> Result<(), StoreError>;
    fn finish(self: Box<Self>);
    fn fail(self: Box<Self>, refusal: Refusal);
    fn needs_space(&self) -> bool;
    fn fence(&self) -> Fence;
    fn commands(&self) -> usize;
    fn bytes(&self) -> usize;
}

struct Pending<W: Write> {
    write: W,
    output: Option<W::Output>,
    reply: oneshot::Sender<Result<W::Output, Refusal>>,
}

impl<W: Write> Job for Pending<W> {
    fn apply(&mut self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        self.output = Some(self.write.apply(batch)?);
        Ok(())
    }

    fn finish(self: Box<Self>) {
        if let Some(output) = self.output {
            // Whoever asked may have gone: the write stands all the same.
            let _ = self.reply.send(Ok(output));
        }
    }

    fn fail(self: Box<Self>, refusal: Refusal) {
        let _ = self.reply.send(Err(refusal));
    }

    fn needs_space(&self) -> bool {
        W::NEEDS_SPACE
    }

    fn fence(&self) -> Fence {
        self.write.fence()
    }

    fn commands(&self) -> usize {
        self.write.commands()
    }

    fn bytes(&self) -> usize {
        self.write.bytes()
    }
}

/// The answer to a write, after its commit.
pub(super) type Answer<T> = oneshot::Receiver<Result<T, Refusal>>;

pub(super) fn job<W: Write>(write: W) -> (Box<dyn Job>, Answer<W::Output>) {
    let (reply, answer) = oneshot::channel();
    (Box::new(Pending { write, output: None, reply }), answer)
}

pub(super) fn unavailable() -> Refusal {
    Refusal::retry(Code::Unavailable, RETRY_AFTER)
}

pub(super) struct Writer {
    pub(super) jobs: mpsc::Receiver<Box<dyn Job>>,
    pub(super) committed: mpsc::UnboundedSender<Committed>,
    pub(super) database: Arc<OpenDatabase>,
    pub(super) opener: Opener,
    pub(super) clock: Clock,
    pub(super) threads: Threads,
    pub(super) metrics: Metrics,
    pub(super) cached_chats: usize,
    pub(super) reserve_bytes: u64,
    pub(super) region: RegionId,
    pub(super) chats: ChatCache,
    pub(super) free_space: Option<(Instant, bool)>,
    pub(super) reopen_at: Option<Instant>,
}

impl Writer {
    /// Runs until every [`super::Store`] is dropped and the queue is empty.
    pub(super) async fn run(mut self) {
        // Says so at the start, not with the first message, if there is too little.
        self.has_space();
        let mut batch = Vec::new();
        while let Some(first) = self.next_job().await {
            batch.push(first);
            while batch.len() < BATCH_JOBS {
                match self.jobs.try_recv() {
                    Ok(job) => batch.push(job),
                    Err(_) => break,
                }
            }
            self.run_batch(&mut batch).await;
        }
        self.database.close();
    }

    /// Waits for a write; none once nobody can ask for one. A store that is closed is opened anew meanwhile, asked or
    /// not: readers wait for it too.
    async fn next_job(&mut self) -> Option<Box<dyn Job>> {
        loop {
            if self.database().is_some() {
                return self.jobs.recv().await;
            }
            let again = self.reopen_at.unwrap_or_else(Instant::now);
            if let Ok(job) = tokio::time::timeout_at(again, self.jobs.recv()).await {
                return job;
            }
        }
    }

    async fn run_batch(&mut self, batch: &mut Vec<Box<dyn Job>>) {
        if !self.has_space() {
            let (need, rest) = std::mem::take(batch).into_iter().partition(|job| job.needs_space());
            *batch = rest;
            fail_all(need, &unavailable().explained("the disk is full"));
        }
        if batch.is_empty() {
            return;
        }
        let Some(db) = self.database() else { return fail_all(std::mem::take(batch), &unavailable()) };
        let attempt = self.attempt(&db, batch);
        self.threads.settle().await;
        match attempt {
            Attempt::Committed(committed) => self.answer(committed, std::mem::take(batch)),
            Attempt::Failed(error) => {
                drop(db);
                self.broken(&error);
                fail_all(std::mem::take(batch), &unavailable());
            }
            Attempt::Panicked => self.one_by_one(&db, std::mem::take(batch)),
        }
        self.chats.end_batch(self.cached_chats);
    }

    fn one_by_one(&mut self, db: &Arc<Database>, jobs: Vec<Box<dyn Job>>) {
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            let mut alone = vec![job];
            match self.attempt(db, &mut alone) {
                Attempt::Committed(committed) => self.answer(committed, alone),
                Attempt::Panicked => fail_all(alone, &Code::Internal.into()),
                Attempt::Failed(error) => {
                    alone.extend(jobs.by_ref());
                    self.broken(&error);
                    fail_all(alone, &unavailable());
                }
            }
        }
    }

    fn attempt(&mut self, db: &Arc<Database>, jobs: &mut [Box<dyn Job>]) -> Attempt {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.apply_and_commit(db, jobs)));
        match result {
            Ok(Ok(committed)) => {
                count_commit(&self.metrics, &self.database.commit_time, started.elapsed(), jobs);
                Attempt::Committed(committed)
            }
            Ok(Err(error)) => {
                self.chats.clear();
                Attempt::Failed(error)
            }
            Err(_) => {
                // The panic hook has printed where; what it held may hold content and is not logged.
                tracing::error!("a write panicked; its batch is run again one by one");
                self.chats.clear();
                Attempt::Panicked
            }
        }
    }

    fn apply_and_commit(&mut self, db: &Database, jobs: &mut [Box<dyn Job>]) -> Result<Vec<Committed>, StoreError> {
        let mut txn = db.begin_write()?;
        if sabotage::is(Sabotage::EarlySent) {
            // It fails only after savepoints were made.
            let _ = txn.set_durability(redb::Durability::None);
        }
        let committed = {
            let mut rows = Transaction::new(&txn);
            let mut batch = Batch {
                rows: &mut rows,
                chats: &mut self.chats,
                region: &self.region,
                committed: Vec::new(),
                now: self.clock.now(),
                metrics: &self.metrics,
            };
            for job in jobs.iter_mut() {
                job.apply(&mut batch)?;
            }
            batch.committed
        };
        txn.commit()?;
        Ok(committed)
    }

    fn answer(&self, committed: Vec<Committed>, jobs: Vec<Box<dyn Job>>) {
        answer_all(&self.metrics, &self.committed, committed, jobs);
    }

    fn database(&mut self) -> Option<Arc<Database>> {
        if let Some(db) = self.database.database() {
            return Some(db);
        }
        let now = Instant::now();
        if self.reopen_at.is_some_and(|at| now < at) {
            return None;
        }
        match (self.opener)() {
            Ok(db) => {
                tracing::warn!("the store was opened anew");
                self.reopen_at = None;
                let db = self.database.open(db);
                self.metrics.fanout_backlog.inc();
                let _ = self.committed.send(Committed::Reopened);
                Some(db)
            }
            Err(error) => {
                tracing::error!(%error, "the store cannot be opened anew");
                self.reopen_at = Some(now + REOPEN_PAUSE);
                None
            }
        }
    }

    fn broken(&mut self, error: &StoreError) {
        tracing::error!(%error, "a commit failed; the store is opened anew");
        self.metrics.commit_failures.inc();
        self.database.close();
        self.reopen_at = None;
    }

    /// Whether there is more free space than the reserve. Looked up now and then.
    fn has_space(&mut self) -> bool {
        let now = Instant::now();
        if let Some((at, enough)) = self.free_space
            && now.duration_since(at) < FREE_SPACE_AGE
        {
            return enough;
        }
        let enough = self.database.free_bytes().is_none_or(|free| free >= self.reserve_bytes);
        let before = self.free_space.is_none_or(|(_, before)| before);
        if before != enough {
            if enough {
                tracing::info!("there is free disk space again");
            } else {
                tracing::error!(reserve_bytes = self.reserve_bytes, "free disk space is below the reserve");
            }
        }
        self.free_space = Some((now, enough));
        enough
    }
}

enum Attempt {
    Committed(Vec<Committed>),
    Failed(StoreError),
    Panicked,
}

/// Tells fan-out what was committed, and whoever asked that it was.
pub(super) fn answer_all(
    metrics: &Metrics,
    fanout: &mpsc::UnboundedSender<Committed>,
    committed: Vec<Committed>,
    jobs: Vec<Box<dyn Job>>,
) {
    for event in committed {
        metrics.fanout_backlog.inc();
        // The receiver is gone only while the relay stops; what is committed is found again at the next start.
        let _ = fanout.send(event);
    }
    for job in jobs {
        job.finish();
    }
}

pub(super) fn count_commit(metrics: &Metrics, commit_time: &CommitTime, took: Duration, jobs: &[Box<dyn Job>]) {
    metrics.commits.inc();
    metrics.commit_latency.observe(took.as_secs_f64());
    commit_time.took(took);
    let commands: usize = jobs.iter().map(|job| job.commands()).sum();
    if commands > 0 {
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52")]
        metrics.commit_batch.observe(commands as f64);
    }
}

pub(super) fn fail_all(jobs: Vec<Box<dyn Job>>, refusal: &Refusal) {
    for job in jobs {
        job.fail(refusal.clone());
    }
}
