//! Runs writes topic by topic: those of one chat one after the other, all that queued up as one batch, and those of
//! different chats beside one another.
//!
//! A batch that another relay outran is decided anew upon what is there now. One that could not be written is answered
//! `Unavailable`, and its topic rests for a moment; what came of it is found when the topic is taken up again, which is
//! done whether anybody asks or not.

use super::commit::{Failure, Pen, TakenUp};
use super::journal::{Position, Topic};
use crate::host::Threads;
use crate::metrics::Metrics;
use crate::store::chats::{ChatCache, ChatState};
use crate::store::writer::{Batch, Fence, Job, Write, answer_all, count_commit, fail_all, job, unavailable};
use crate::store::{CommitTime, Committed, StoreError};
use godwit_wire::{ChatId, Clock, Code, Refusal, RegionId};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

/// Writes that wait, at most; whoever comes then waits for a place.
const PLACES: usize = 4096;
/// Writes in one batch, at most.
const BATCH_JOBS: usize = 512;
/// Bytes of commands in one batch, unless one alone has more.
const BATCH_BYTES: usize = 256 << 10;
/// How often a batch is decided anew that others outrun.
const ATTEMPTS: usize = 6;
/// How long a topic rests after a fault.
const REST: Duration = Duration::from_millis(500);

/// What is kept of a topic between batches. It can be dropped at any time: the store has all of it.
#[derive(Debug)]
struct Kept {
    position: Position,
    state: Option<ChatState>,
    /// When it was used last, in batches.
    used: u64,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Box<dyn Job>, OwnedSemaphorePermit)>,
    /// A worker has it, or it is among those that are ready.
    is_taken: bool,
    rests_until: Option<Instant>,
    /// It is taken up again until that succeeds.
    is_watched: bool,
}

#[derive(Default)]
struct State {
    queues: HashMap<Topic, Queue>,
    ready: VecDeque<Topic>,
    kept: HashMap<Topic, Kept>,
    batches: u64,
}

/// Writes that wait, by topic.
pub(crate) struct Topics {
    state: Mutex<State>,
    /// One permit for each topic that is ready; closed once nobody can ask for more.
    ready: Semaphore,
    places: Arc<Semaphore>,
}

impl Topics {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), ready: Semaphore::new(0), places: Arc::new(Semaphore::new(PLACES)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a write. Waits for a place.
    pub(in crate::store) async fn queue(&self, topic: Topic, job: Box<dyn Job>) -> Result<(), Refusal> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| Refusal::from(Code::ShuttingDown))?;
        let mut state = self.state();
        if self.ready.is_closed() {
            return Err(Code::ShuttingDown.into());
        }
        let queue = state.queues.entry(topic.clone()).or_default();
        if queue.rests_until.is_some_and(|until| Instant::now() < until) {
            drop(state);
            job.fail(unavailable());
            return Ok(());
        }
        queue.rests_until = None;
        queue.jobs.push_back((job, place));
        if !std::mem::replace(&mut queue.is_taken, true) {
            state.ready.push_back(topic);
            self.ready.add_permits(1);
        }
        Ok(())
    }

    /// Whether what its last owner left of a topic was finished by this relay, and nothing is uncertain.
    pub(crate) fn has(&self, topic: &Topic) -> bool {
        self.state().kept.contains_key(topic)
    }

    pub(crate) fn forget(&self) {
        self.state().kept.clear();
    }

    /// Nobody can ask for more: workers end once nothing is left.
    pub(crate) fn close(&self) {
        self.ready.close();
    }

    /// The next topic with its next batch: writes that are fenced alike.
    async fn next(&self) -> Option<Taken> {
        // Closed: what is ready is done all the same.
        if let Ok(permit) = self.ready.acquire().await {
            permit.forget();
        }
        let mut state = self.state();
        let topic = state.ready.pop_front()?;
        let queue = state.queues.get_mut(&topic)?;
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        let fence = queue.jobs.front().map_or(Fence::Journal, |(job, _)| job.fence());
        while let Some((job, _)) = queue.jobs.front() {
            bytes += job.bytes();
            let is_full = jobs.len() >= BATCH_JOBS || bytes > BATCH_BYTES && !jobs.is_empty();
            if is_full || job.fence() != fence {
                break;
            }
            jobs.extend(queue.jobs.pop_front().map(|(job, _)| job));
        }
        let kept = state.kept.remove(&topic);
        Some(Taken { topic, jobs, fence, kept })
    }

    /// A batch is done: what is kept of its topic, or that it rests.
    fn done(&self, topic: Topic, kept: Option<Kept>, most: usize) {
        let mut state = self.state();
        state.batches += 1;
        let batches = state.batches;
        if let Some(kept) = kept {
            state.kept.insert(topic.clone(), Kept { used: batches, ..kept });
        }
        let is_idle = state.queues.get_mut(&topic).is_none_or(|queue| {
            queue.is_taken = !queue.jobs.is_empty();
            !queue.is_taken && !queue.is_watched
        });
        if is_idle {
            state.queues.remove(&topic);
        } else if state.queues.get(&topic).is_some_and(|queue| queue.is_taken) {
            state.ready.push_back(topic);
            self.ready.add_permits(1);
        }
        if state.kept.len() > most + most / 4 {
            let mut used: Vec<u64> = state.kept.values().map(|kept| kept.used).collect();
            let surplus = used.len() - most;
            let (_, &mut oldest_kept, _) = used.select_nth_unstable(surplus);
            state.kept.retain(|_, kept| kept.used >= oldest_kept);
        }
    }

    /// Nothing is taken for a chat for a while. Gives what waits for it, and whether somebody is to watch it.
    fn rest(&self, topic: &Topic) -> (Vec<Box<dyn Job>>, bool) {
        let mut state = self.state();
        let Some(queue) = state.queues.get_mut(topic) else { return (Vec::new(), false) };
        let is_chat = matches!(topic, Topic::Chat(_));
        queue.rests_until = is_chat.then(|| Instant::now() + REST);
        let jobs = queue.jobs.drain(..).map(|(job, _)| job).collect();
        (jobs, is_chat && !std::mem::replace(&mut queue.is_watched, true))
    }

    /// A chat rests no longer.
    fn rouse(&self, topic: &Topic, is_watched: bool) {
        if let Some(queue) = self.state().queues.get_mut(topic) {
            queue.rests_until = None;
            queue.is_watched = is_watched;
        }
    }
}

struct Taken {
    topic: Topic,
    jobs: Vec<Box<dyn Job>>,
    fence: Fence,
    kept: Option<Kept>,
}

/// Takes a topic up and changes nothing.
#[derive(Debug)]
pub(crate) struct TakeUp(pub(crate) ChatId);

impl Write for TakeUp {
    type Output = ();
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        Topic::Chat(self.0.clone())
    }

    fn apply(&self, _: &mut Batch<'_>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// One of those that run batches.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) topics: Arc<Topics>,
    pub(crate) pen: Pen,
    pub(crate) committed: mpsc::UnboundedSender<Committed>,
    pub(crate) clock: Clock,
    pub(crate) threads: Threads,
    pub(crate) metrics: Metrics,
    pub(crate) region: RegionId,
    pub(crate) cached_chats: usize,
    pub(in crate::store) commit_time: Arc<CommitTime>,
}

enum Attempt {
    Written(Vec<Committed>),
    Failed(Failure),
    Panicked,
}

impl Worker {
    /// Runs until the topics are closed and nothing is left.
    pub(crate) async fn run(self) {
        while let Some(Taken { topic, jobs, fence, mut kept }) = self.topics.next().await {
            self.batch(&topic, jobs, fence, &mut kept).await;
            self.topics.done(topic, kept, self.cached_chats);
        }
    }

    async fn batch(&self, topic: &Topic, mut jobs: Vec<Box<dyn Job>>, fence: Fence, kept: &mut Option<Kept>) {
        for _ in 0..ATTEMPTS {
            let attempt = self.attempt(topic, &mut jobs, fence, kept).await;
            self.threads.settle().await;
            match attempt {
                Attempt::Written(committed) => return answer_all(&self.metrics, &self.committed, committed, jobs),
                Attempt::Panicked if jobs.len() == 1 => {
                    *kept = None;
                    return fail_all(jobs, &Code::Internal.into());
                }
                Attempt::Panicked => {
                    *kept = None;
                    for job in jobs {
                        Box::pin(self.batch(topic, vec![job], fence, kept)).await;
                    }
                    return;
                }
                Attempt::Failed(Failure::Outrun) => {
                    tracing::info!(?topic, "another relay wrote; what was to be written is decided anew");
                    self.metrics.commit_conflicts.inc();
                    *kept = None;
                }
                Attempt::Failed(Failure::Fault(error)) => {
                    tracing::warn!(%error, ?topic, "the store did not take a write");
                    self.metrics.commit_failures.inc();
                    *kept = None;
                    let (waiting, is_unwatched) = self.topics.rest(topic);
                    jobs.extend(waiting);
                    if is_unwatched {
                        self.watch(topic);
                    }
                    return fail_all(jobs, &unavailable());
                }
            }
        }
        fail_all(jobs, &unavailable());
    }

    /// What may have been written without an answer is taken up, and so told to fan-out.
    fn watch(&self, topic: &Topic) {
        let Topic::Chat(chat) = topic.clone() else { return };
        let weak = Arc::downgrade(&self.topics);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REST).await;
                let topic = Topic::Chat(chat.clone());
                let Some(topics) = weak.upgrade() else { return };
                topics.rouse(&topic, true);
                let (job, answer) = job(TakeUp(chat.clone()));
                if topics.queue(topic.clone(), job).await.is_err() {
                    return;
                }
                drop(topics);
                let is_up = !matches!(answer.await, Ok(Err(_)));
                if let Some(topics) = weak.upgrade().filter(|_| is_up) {
                    return topics.rouse(&topic, false);
                }
            }
        });
    }

    async fn attempt(
        &self,
        topic: &Topic,
        jobs: &mut [Box<dyn Job>],
        fence: Fence,
        kept: &mut Option<Kept>,
    ) -> Attempt {
        let started = Instant::now();
        let mut committed = Vec::new();
        if kept.is_none() {
            match self.pen.take_up(topic).await {
                Ok(TakenUp { position, dirty }) => {
                    *kept = Some(Kept { position, state: None, used: 0 });
                    if let Topic::Chat(chat) = topic {
                        committed.push(Committed::TakenUp { chat: chat.clone(), dirty });
                    }
                }
                Err(failure) => return Attempt::Failed(failure),
            }
        }
        let Some(of_topic) = kept else { return Attempt::Failed(Failure::Outrun) };
        let mut chats = ChatCache::new(self.region.clone());
        if let Some(state) = of_topic.state.take() {
            chats.enter(state);
        }
        let drafted = catch_unwind(AssertUnwindSafe(|| self.apply(jobs, &mut chats)));
        let (changes, events) = match drafted {
            Ok(Ok(drafted)) => drafted,
            Ok(Err(error)) => return Attempt::Failed(Failure::Fault(error)),
            Err(_) => {
                // The panic hook has printed where; what it held may hold content and is not logged.
                tracing::error!("a write panicked; its batch is run again one by one");
                return Attempt::Panicked;
            }
        };
        let changes_any = !changes.is_empty();
        let written = match fence {
            Fence::Journal => self.pen.commit(topic, &mut of_topic.position, changes).await,
            Fence::Before => self.pen.write_behind_fence(topic, &mut of_topic.position, changes).await,
            Fence::Loose => self.pen.write_loose(changes).await,
        };
        if let Err(failure) = written {
            return Attempt::Failed(failure);
        }
        if changes_any && fence == Fence::Journal {
            if let Err(failure) = self.pen.close_sheet(topic, &of_topic.position).await {
                tracing::debug!(?failure, ?topic, "a sheet stays open, and is written again later");
                *kept = None;
            }
            count_commit(&self.metrics, &self.commit_time, started.elapsed(), jobs);
        }
        if let (Some(kept), Topic::Chat(chat)) = (kept, topic) {
            kept.state = chats.take(chat);
        }
        committed.extend(events);
        Attempt::Written(committed)
    }

    fn apply(
        &self,
        jobs: &mut [Box<dyn Job>],
        chats: &mut ChatCache,
    ) -> Result<(Vec<super::draft::Changed>, Vec<Committed>), StoreError> {
        let mut draft = self.pen.draft();
        let mut batch = Batch {
            rows: &mut draft,
            chats,
            region: &self.region,
            committed: Vec::new(),
            now: self.clock.now(),
            metrics: &self.metrics,
        };
        for job in jobs.iter_mut() {
            job.apply(&mut batch)?;
        }
        let committed = batch.committed;
        Ok((draft.changes(), committed))
    }
}
