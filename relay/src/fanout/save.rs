//! Writes inbox rows and progress one after the other, in the order they were asked for. What is asked for while a
//! write runs goes into the next one.

use crate::store::{ChatProgress, InboxWrite, Store};
use godwit_wire::{ChatId, DeviceId, Refusal, Seq};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Row changes asked for and not written yet, above which fan-out takes up no more entries.
const ROOM: u64 = 65_536;

/// The pause before a shared store is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Everything asked for up to this ticket is durable.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub(super) ticket: u64,
    /// Rows that other relays began lower, or that were to go and stay for what another relay committed since.
    pub(super) left: Vec<(DeviceId, ChatId, Seq)>,
}

#[derive(Debug)]
enum Job {
    Rows(u64, Vec<InboxWrite>),
    Progress(Vec<ChatProgress>),
}

#[derive(Debug)]
pub(super) struct Save {
    jobs: mpsc::UnboundedSender<Job>,
    tickets: u64,
    waiting: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Save {
    pub(super) fn start(store: Store, saved: impl Fn(Saved) + Send + 'static) -> Self {
        // Bounded by `has_room`, and by one progress a chat and tick.
        let (jobs, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(run(store, queue, waiting.clone(), saved));
        Self { jobs, tickets: 0, waiting, task }
    }

    /// The ticket of the rows that are handed over next.
    pub(super) fn next_ticket(&self) -> u64 {
        self.tickets + 1
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < ROOM
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    pub(super) fn rows(&mut self, rows: Vec<InboxWrite>) {
        self.tickets += 1;
        self.waiting.fetch_add(rows.len() as u64, Ordering::Relaxed);
        // The task ends only with this sender.
        let _ = self.jobs.send(Job::Rows(self.tickets, rows));
    }

    pub(super) fn progress(&self, progress: Vec<ChatProgress>) {
        // The task ends only with this sender.
        let _ = self.jobs.send(Job::Progress(progress));
    }

    /// Waits until everything asked for is written, or was refused.
    pub(super) async fn finish(self) {
        drop(self.jobs);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "saving what fan-out did ended early");
        }
    }
}

async fn run(
    store: Store,
    mut queue: mpsc::UnboundedReceiver<Job>,
    waiting: Arc<AtomicU64>,
    saved: impl Fn(Saved) + Send + 'static,
) {
    let mut jobs = Vec::new();
    while queue.recv_many(&mut jobs, 1024).await > 0 {
        let (mut rows, mut progress, mut ticket) = (Vec::new(), Vec::new(), None);
        for job in jobs.drain(..) {
            match job {
                Job::Rows(number, more) => {
                    ticket = Some(number);
                    rows.extend(more);
                }
                Job::Progress(more) => progress.extend(more),
            }
        }
        let count = rows.len() as u64;
        if !rows.is_empty() {
            let written = until_written(&store, &queue, rows, Store::write_inbox).await;
            match (written, ticket) {
                (Ok(left), Some(ticket)) => saved(Saved { ticket, left }),
                (Ok(_), None) => {}
                // What was not written stays unsettled, and is taken up again when the store is open anew.
                (Err(refusal), _) => tracing::warn!(%refusal, count, "inbox rows were not written"),
            }
        }
        if !progress.is_empty()
            && let Err(refusal) = until_written(&store, &queue, progress, Store::save_progress).await
        {
            tracing::warn!(%refusal, "progress was not saved");
        }
        waiting.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Writes until it is written. A store of redb says when it was opened anew, and everything is taken up again then; a
/// shared one may have written some and not the rest, so all of it is tried again: twice is once.
async fn until_written<'a, T: Clone, O, F: Future<Output = Result<O, Refusal>>>(
    store: &'a Store,
    queue: &mpsc::UnboundedReceiver<Job>,
    what: T,
    write: impl Fn(&'a Store, T) -> F,
) -> Result<O, Refusal> {
    loop {
        match write(store, what.clone()).await {
            Err(refusal) if store.is_shared() && !queue.is_closed() => {
                tracing::debug!(%refusal, "what fan-out did is saved again");
                tokio::time::sleep(AGAIN).await;
            }
            written => return written,
        }
    }
}
