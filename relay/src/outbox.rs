//! Requests that wait for the home of their chat: durable here before the device hears `queued`, handed on in order once
//! the home is back, without the device's help and over restarts of this relay.
//!
//! Order is kept per (chat, device), never over a region: what one chat waits for holds up no other. A request is kept
//! only behind the one before it, or if the device says that it waits for nothing lower; while one waits, those after it
//! wait behind it. The numbering rule makes a request that was handed on twice, or at another relay too, the same one.
//!
//! Capacity: [`OutboxLimits`]; over it a device hears `Unavailable`, and keeps the request itself.
//!
//! - [`file`]: what survives a crash

mod file;

use crate::edge::forward::forward;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::peers::DeviceCredential;
use crate::router::{Route, Router, away};
use crate::store::StoreError;
use file::{Change, File, Kept, sender_key};
use godwit_core::{Action, Command, Outcome, Sender};
use godwit_wire::frame::{Reply, Stamp};
use godwit_wire::{ChatId, Clock, Code, Refusal};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Requests of one chat and device that are handed on at a time.
const BATCH: usize = 256;
/// How long after a passing refusal a chat is tried again, if the refusal does not say.
const AGAIN: Duration = Duration::from_secs(1);
/// The same, if only the device itself can help: its ticket is not taken, or the home misses what it sent before.
const UNHELPED: Duration = Duration::from_mins(1);
/// How often queues that rest are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Chats and devices that are handed on at the same time.
const AT_ONCE: usize = 64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxLimits {
    /// Memory and file of all that waits.
    pub(crate) bytes: usize,
    /// Of that, one user's.
    pub(crate) user_bytes: usize,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self { bytes: 256 << 20, user_bytes: 16 << 20 }
    }
}

/// Hears the outcome of a request that was queued before.
pub(crate) type Tell = Box<dyn FnOnce(Reply) + Send>;

#[derive(Debug)]
pub(crate) struct Outbox {
    file: File,
    limits: OutboxLimits,
    clock: Clock,
    metrics: Metrics,
    state: Mutex<State>,
    /// Something came.
    news: Notify,
}

type Place = (ChatId, Sender);

#[derive(Default)]
struct State {
    queues: HashMap<Place, Queue>,
    proofs: HashMap<String, DeviceCredential>,
    bytes: usize,
    user_bytes: HashMap<godwit_wire::UserId, usize>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("queues", &self.queues.len()).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<u64, Waiting>,
    /// It is being handed on.
    busy: bool,
    /// Not to be tried before.
    rests: Option<Instant>,
}

struct Waiting {
    command: Command,
    since: godwit_wire::UnixMillis,
    tell: Option<Tell>,
}

impl State {
    fn add(&mut self, place: &Place, waiting: Waiting) {
        let cost = waiting.command.cost_bytes();
        self.bytes += cost;
        *self.user_bytes.entry(place.1.device.user()).or_default() += cost;
        let queue = self.queues.entry(place.clone()).or_default();
        if queue.waiting.first_key_value().is_none_or(|(first, _)| waiting.command.stamp.n < *first) {
            // This may be what the others wait for.
            queue.rests = None;
        }
        queue.waiting.insert(waiting.command.stamp.n, waiting);
    }

    fn remove(&mut self, place: &Place, n: u64) -> Option<Waiting> {
        let queue = self.queues.get_mut(place)?;
        let waiting = queue.waiting.remove(&n)?;
        if queue.waiting.is_empty() && !queue.busy {
            self.queues.remove(place);
        }
        let cost = waiting.command.cost_bytes();
        self.bytes -= cost;
        let user = place.1.device.user();
        if let Some(bytes) = self.user_bytes.get_mut(&user) {
            *bytes -= cost;
            if *bytes == 0 {
                self.user_bytes.remove(&user);
            }
        }
        Some(waiting)
    }

    /// The numbers behind `n` that follow on what waits under it.
    fn chained(&self, place: &Place, n: u64) -> Vec<u64> {
        let Some(queue) = self.queues.get(place) else { return Vec::new() };
        let rows: Vec<_> = queue.waiting.range(n..).map(|(n, waiting)| (*n, &waiting.command.stamp)).collect();
        let follows = |pair: &&[(u64, &Stamp)]| {
            let [(before, first), (n, next)] = pair else { return false };
            *n == before + 1 && next.previous == Some(first.id)
        };
        rows.windows(2).take_while(follows).map(|pair| pair[1].0).collect()
    }
}

impl Outbox {
    /// Opens the outbox in a relay's data folder.
    pub(crate) fn open(host: &Host, folder: &Path, limits: OutboxLimits, metrics: Metrics) -> Result<Self, StoreError> {
        let (file, contents) = File::open(host, folder)?;
        let mut state = State { proofs: contents.proofs.into_iter().collect(), ..State::default() };
        for Kept { device, enrolment, request, since } in contents.requests {
            let sender = Sender { device, enrolment };
            if let Ok(command) = Command::from_request(&sender, request) {
                let place = (command.stamp.chat.clone(), sender);
                state.add(&place, Waiting { command, since, tell: None });
            } else {
                tracing::error!("the outbox holds a request that is not numbered");
            }
        }
        let clock = host.crypto.clock.clone();
        Ok(Self { file, limits, clock, metrics, state: Mutex::new(state), news: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something of the device waits for this chat: what comes now must wait behind it.
    pub(crate) fn holds(&self, chat: &ChatId, sender: &Sender) -> bool {
        let state = self.state();
        // Most relays hold nothing at all.
        !state.queues.is_empty() && state.queues.contains_key(&(chat.clone(), sender.clone()))
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().queues.values().all(|queue| queue.waiting.is_empty())
    }

    /// Requests that wait, and when the oldest of them came.
    pub(crate) fn depth(&self) -> (usize, Option<godwit_wire::UnixMillis>) {
        let state = self.state();
        let waiting = || state.queues.values().flat_map(|queue| queue.waiting.values());
        (waiting().count(), waiting().map(|waiting| waiting.since).min())
    }

    /// Keeps requests of one device in one chat, in their order; durable when this returns. Each gets an answer: queued,
    /// or why not. `tell` makes what hears of a later outcome.
    pub(crate) async fn keep(
        &self,
        sender: &Sender,
        credential: &DeviceCredential,
        commands: Vec<Command>,
        tell: impl Fn(usize) -> Option<Tell>,
    ) -> Result<Vec<Reply>, Refusal> {
        let Some(chat) = commands.first().map(|command| command.stamp.chat.clone()) else { return Ok(Vec::new()) };
        let place = (chat, sender.clone());
        let now = self.clock.now();
        let (mut replies, mut changes, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        let proof = sender_key(sender);
        // The proof that was known before, if another is written.
        let mut replaced = None;
        {
            let mut state = self.state();
            if state.proofs.get(&proof).is_none_or(|known| known.ticket != credential.ticket) {
                replaced = Some(state.proofs.insert(proof.clone(), credential.clone()));
                changes.push(Change::Prove(sender.clone(), credential.clone()));
            }
            for (i, command) in commands.into_iter().enumerate() {
                match self.admit(&mut state, &place, &command) {
                    Ok(Admitted::New) => {
                        let (device, enrolment) = (sender.device.clone(), sender.enrolment);
                        let request = command.clone().into_request();
                        let row = Box::new(Kept { device, enrolment, request, since: now });
                        let n = command.stamp.n;
                        changes.push(Change::Keep { chat: place.0.clone(), n, kept: row });
                        kept.push(n);
                        state.add(&place, Waiting { command, since: now, tell: tell(i) });
                        replies.push(Reply::Queued);
                    }
                    Ok(Admitted::Again) => {
                        let queue = state.queues.get_mut(&place);
                        if let Some(waiting) = queue.and_then(|queue| queue.waiting.get_mut(&command.stamp.n)) {
                            waiting.tell = tell(i);
                        }
                        replies.push(Reply::Queued);
                    }
                    Err(refusal) => replies.push(Reply::Refused(refusal)),
                }
            }
        }
        if let Err(refusal) = self.file.write(changes).await {
            let mut state = self.state();
            for n in kept {
                state.remove(&place, n);
            }
            // It may not be in the file: what is kept next brings it again.
            match replaced {
                Some(Some(before)) => drop(state.proofs.insert(proof, before)),
                Some(None) => drop(state.proofs.remove(&proof)),
                None => {}
            }
            return Err(refusal);
        }
        tracing::debug!(chat = %place.0, kept = kept.len(), answered = replies.len(), "queued");
        self.metrics.queued.inc_by(kept.len() as u64);
        self.news.notify_one();
        Ok(replies)
    }

    fn admit(&self, state: &mut State, place: &Place, command: &Command) -> Result<Admitted, Refusal> {
        if matches!(command.action, Action::Create { .. }) {
            return Err(away(place.0.home()));
        }
        let stamp = &command.stamp;
        let user = command.sender.device.user();
        let queue = state.queues.get(place);
        let last = queue.and_then(|queue| queue.waiting.last_key_value().map(|(n, _)| *n));
        if let Some(waiting) = queue.and_then(|queue| queue.waiting.get(&stamp.n)) {
            return if waiting.command.stamp.id == stamp.id {
                Ok(Admitted::Again)
            } else {
                // Only the home can say what a number is that means two things.
                Err(away(place.0.home()))
            };
        }
        if last.map_or(stamp.oldest == stamp.n, |last| stamp.n == last + 1 || stamp.oldest == stamp.n) {
            let own = state.user_bytes.get(&user).copied().unwrap_or(0);
            let cost = command.cost_bytes();
            if state.bytes + cost > self.limits.bytes || own + cost > self.limits.user_bytes {
                return Err(away(place.0.home()).explained("the outbox of this relay is full"));
            }
            Ok(Admitted::New)
        } else {
            Err(Refusal::with_next(Code::OutOfOrder, last.map_or(stamp.oldest, |last| last + 1)))
        }
    }

    /// Closes the file; what waits is found at the next start.
    pub(crate) async fn close(&self) {
        self.file.close().await;
    }

    /// Hands on what waits, whenever its home can be reached. Ends never.
    pub(crate) async fn run(self: Arc<Self>, router: Router) {
        let mut changes = router.changes();
        let mut handing = JoinSet::new();
        loop {
            changes.mark_unchanged();
            for place in self.ready(&router, AT_ONCE.saturating_sub(handing.len())) {
                let (outbox, router) = (self.clone(), router.clone());
                handing.spawn(async move { outbox.hand_on(&router, place).await });
            }
            tokio::select! {
                biased;
                // The sender is the router's own.
                _ = changes.changed() => {}
                () = self.news.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                Some(ended) = handing.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a part of the outbox panicked");
                    }
                }
            }
        }
    }

    /// Queues of homes that can be reached, marked as being handed on.
    fn ready(&self, router: &Router, most: usize) -> Vec<Place> {
        let mut state = self.state();
        let now = Instant::now();
        let rests = |queue: &Queue| queue.busy || queue.rests.is_some_and(|until| now < until);
        let idle = state.queues.iter().filter(|(_, queue)| !rests(queue) && !queue.waiting.is_empty());
        let mut ready = Vec::new();
        for (place, _) in idle {
            if matches!(router.route_chat(&place.0), Route::There(_) | Route::Here(_)) {
                ready.push(place.clone());
            }
            if ready.len() >= most {
                break;
            }
        }
        for place in &ready {
            if let Some(queue) = state.queues.get_mut(place) {
                queue.busy = true;
            }
        }
        ready
    }

    async fn hand_on(&self, router: &Router, place: Place) {
        let mut rests = None;
        loop {
            let (commands, credential) = {
                let state = self.state();
                let queue = state.queues.get(&place);
                let waiting = queue.into_iter().flat_map(|queue| queue.waiting.values());
                let commands: Vec<Command> = waiting.take(BATCH).map(|waiting| waiting.command.clone()).collect();
                (commands, state.proofs.get(&sender_key(&place.1)).cloned())
            };
            if commands.is_empty() || !matches!(router.route_chat(&place.0), Route::There(_) | Route::Here(_)) {
                break;
            }
            let Some(credential) = credential else {
                // Its write failed: the device brings it again.
                rests = Some(Instant::now() + UNHELPED);
                break;
            };
            let numbers: Vec<u64> = commands.iter().map(|command| command.stamp.n).collect();
            let expired = credential.ticket.expires <= self.clock.now();
            if let Err(refusal) = self.hand(router, &credential, &place, commands).await {
                let refused = match refusal.code {
                    Code::Revoked | Code::Superseded => true,
                    // The device sends what it keeps itself, with a ticket of its new certificate.
                    Code::Unauthenticated => expired,
                    _ => false,
                };
                if refused && self.give_up(&place, numbers, &refusal).await.is_ok() {
                    continue;
                }
                tracing::debug!(chat = %place.0, %refusal, "the outbox goes on later");
                // The device sends the rest itself when it is back.
                let is_helpless = matches!(refusal.code, Code::Unauthenticated | Code::OutOfOrder);
                let wait = if is_helpless { UNHELPED } else { AGAIN };
                rests = Some(Instant::now() + refusal.retry_after().unwrap_or(wait));
                break;
            }
        }
        let mut state = self.state();
        if let Some(queue) = state.queues.get_mut(&place) {
            (queue.busy, queue.rests) = (false, rests);
            if queue.waiting.is_empty() {
                state.queues.remove(&place);
            }
        }
        drop(state);
        self.news.notify_one();
    }

    /// Drops requests that this relay can never hand on.
    async fn give_up(&self, place: &Place, numbers: Vec<u64>, why: &Refusal) -> Result<(), Refusal> {
        let (chat, sender) = place;
        tracing::info!(device = %sender.device, %chat, count = numbers.len(), %why, "the outbox gives up");
        let change = |n: &u64| Change::Drop { sender: sender.clone(), chat: chat.clone(), n: *n };
        self.file.write(numbers.iter().map(change).collect()).await?;
        let mut state = self.state();
        for n in numbers {
            // Whoever waits for it is not let in any more.
            drop(state.remove(place, n));
        }
        Ok(())
    }

    /// Hands on the first of a queue, and takes off what was decided. An error says when to go on.
    async fn hand(
        &self,
        router: &Router,
        credential: &DeviceCredential,
        place: &Place,
        commands: Vec<Command>,
    ) -> Result<(), Refusal> {
        let (chat, sender) = place;
        let numbers: Vec<u64> = commands.iter().map(|command| command.stamp.n).collect();
        let outcomes = match router.route_chat(chat) {
            Route::There(home) => {
                home.show(&sender.device, credential).await?;
                forward(&home, &sender.device, chat, commands)?.await?
            }
            // Whoever owned it is gone, and this relay owns it now.
            Route::Here(owner) => {
                owner.admit(sender).await?;
                let missing = router.missing(&commands).await;
                owner.store.submit_with(commands, missing).await?.await?
            }
            Route::Away | Route::Nowhere => return Err(away(chat.home())),
        };
        let (mut told, mut stopped) = (BTreeMap::new(), None);
        for (n, outcome) in numbers.into_iter().zip(outcomes) {
            let reply = match outcome {
                Outcome::Sent { seq, at } => Reply::Sent { seq, at },
                // Another message has the number: the device hears it from the home, and numbers anew. So it does with
                // those behind, whose turn never comes under the numbers that they have.
                Outcome::Refused(refusal) if refusal.code == Code::NumberTaken => {
                    let behind = self.state().chained(place, n);
                    told.extend(behind.into_iter().map(|n| (n, Reply::Refused(refusal.clone()))));
                    Reply::Refused(refusal)
                }
                Outcome::Refused(refusal) if refusal.code == Code::OutOfOrder && told.contains_key(&n) => continue,
                Outcome::Refused(refusal) if refusal.code.is_passing() => {
                    stopped = Some(refusal);
                    break;
                }
                Outcome::Refused(refusal) => Reply::Refused(refusal),
            };
            told.insert(n, reply);
        }
        tracing::debug!(%chat, count = told.len(), "handed on");
        let drop = |n: &u64| Change::Drop { sender: sender.clone(), chat: chat.clone(), n: *n };
        self.file.write(told.keys().map(drop).collect()).await?;
        for (n, reply) in told {
            let waiting = self.state().remove(place, n);
            if let Some(tell) = waiting.and_then(|waiting| waiting.tell) {
                tell(reply);
            }
        }
        stopped.map_or(Ok(()), Err)
    }
}

enum Admitted {
    New,
    /// It waits already.
    Again,
}
