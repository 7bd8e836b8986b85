//! Keeps the connection: dials, sends what is unsent, takes what comes, acknowledges it, closes gaps.
//!
//! One task, on the home whose lock it holds. All it decides on is in the store, so it can die at any line.

mod join;
mod live;

use crate::client::Inner;
use crate::dial::Sockets;
use crate::error::Error;
use crate::event::ConnectionState;
use crate::locked::Locked;
use crate::order::Order;
use crate::store::Orders;
use godwit_wire::frame::Welcome;
use godwit_wire::{ChatId, Code, Seq};
use join::{Joined, Joiner, addresses};
use live::{End, Live};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Waits between attempts: doubled each time, between nothing and the whole of it at random.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// After another connection of the same device took over, and when nobody trustworthy answers.
const REPLACED_WAIT: Duration = Duration::from_secs(30);

/// What the app asks of the connection.
#[derive(Debug)]
pub(crate) enum Job {
    /// Older history, into the store.
    Fetch {
        chat: ChatId,
        before: Option<Seq>,
        count: usize,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// A chat's summary and participants, into the store.
    Info {
        chat: ChatId,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// The connection itself, for what comes on streams of its own.
    Connection {
        done: oneshot::Sender<quinn::Connection>,
    },
    NetworkChanged,
}

pub(crate) struct Worker {
    inner: Arc<Inner>,
    jobs: mpsc::Receiver<Job>,
    stop: CancellationToken,
    joiner: Joiner,
    _lock: Locked,
    orders: Orders,
    /// Taken and not known to be acknowledged.
    unacknowledged: HashMap<ChatId, Seq>,
    /// The chats were compared with the relay's since the start.
    compared: bool,
    /// Chats in which an entry came that is not the one here, with its place: to be compared, on whatever connection.
    strange: HashMap<ChatId, Seq>,
}

impl Worker {
    pub(crate) fn new(inner: Arc<Inner>, jobs: mpsc::Receiver<Job>, stop: CancellationToken, lock: Locked) -> Self {
        let joiner = Joiner { inner: inner.clone(), sockets: Sockets::new(inner.host.clone()) };
        Self {
            inner,
            jobs,
            stop,
            joiner,
            _lock: lock,
            orders: Orders::default(),
            unacknowledged: HashMap::new(),
            compared: false,
            strange: HashMap::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        let mut joined = None;
        loop {
            let stop = self.stop.clone();
            let end = tokio::select! {
                biased;
                () = stop.cancelled() => End::Stopped,
                end = self.once(joined.take()) => end,
            };
            let error = match end {
                End::Stopped => return,
                End::Moved(next) => {
                    joined = Some(*next);
                    continue;
                }
                End::Lost { error, lived } => {
                    failures = if lived { 0 } else { failures + 1 };
                    error
                }
            };
            let wait = match Self::after(&error, failures) {
                Some(wait) => {
                    self.inner.set_state(ConnectionState::Offline(error.to_string()));
                    wait
                }
                None => return self.refused(error).await,
            };
            if !self.wait(wait).await {
                return;
            }
        }
    }

    /// How long to wait before the next attempt; none if there is no use in one.
    fn after(error: &Error, failures: u32) -> Option<Duration> {
        let jitter = |wait: Duration| wait.mul_f64(fastrand::f64());
        let back_off = || jitter(LONGEST_WAIT.min(FIRST_WAIT * 2u32.saturating_pow(failures.min(10))));
        let Error::Refused(refusal) = error else {
            return match error {
                Error::Corrupt { .. } => None,
                // Clocks are set right and certificates renewed, but not in a moment.
                Error::Certificates(_) => Some(REPLACED_WAIT + jitter(REPLACED_WAIT)),
                _ => Some(back_off()),
            };
        };
        match (refusal.code, refusal.retry_after()) {
            // Its own fault, which a later version may not have; not to be repeated in a hurry.
            (Code::Replaced | Code::Malformed, _) => Some(REPLACED_WAIT + jitter(REPLACED_WAIT)),
            // The relay's time is the least; the spread on top keeps a herd apart.
            (_, Some(wait)) => Some(wait + jitter(wait / 2)),
            (code, None) if code.is_passing() => Some(back_off()),
            _ => None,
        }
    }

    /// Waits, unless the network changed. False if the client is closed.
    async fn wait(&mut self, wait: Duration) -> bool {
        let sleep = tokio::time::sleep(wait);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = &mut sleep => return true,
                job = self.jobs.recv() => match job {
                    Some(Job::NetworkChanged) => {
                        if let Err(error) = self.network_changed() {
                            tracing::warn!(%error, "no new socket");
                        }
                        return true;
                    }
                    Some(job) => job.fail(&|| Error::Unreachable("not connected".to_owned())),
                    None => return false,
                },
            }
        }
    }

    /// The device is not let in: says so to whoever asks, until the client is closed.
    async fn refused(mut self, error: Error) {
        let refusal = match error {
            Error::Refused(refusal) => refusal,
            other => godwit_wire::Refusal::because(Code::Unauthenticated, other.to_string()),
        };
        tracing::warn!(%refusal, "the device is not let in");
        self.inner.set_state(ConnectionState::Refused(refusal.clone()));
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                job = self.jobs.recv() => match job {
                    Some(job) => job.fail(&|| Error::Refused(refusal.clone())),
                    None => return,
                },
            }
        }
    }

    /// What is here of a chat's log; none if the chat is not known.
    fn order(&mut self, chat: &ChatId) -> Result<Option<&mut Order>, Error> {
        if !self.orders.chats.contains_key(chat) {
            let order = self.inner.store().order(chat)?;
            self.orders.chats.extend(order.map(|order| (chat.clone(), order)));
        }
        Ok(self.orders.chats.get_mut(chat))
    }

    /// Up to where everything of a chat is here.
    fn position(&self, chat: &ChatId) -> Result<Option<Seq>, Error> {
        Ok(self.inner.store().chat(chat)?.and_then(|row| row.position))
    }

    /// Whether the home of this device's user decides in a chat, too: it has the log itself, and not a copy.
    fn is_home_of(&self, chat: &ChatId) -> bool {
        *chat.home() == self.inner.device.home()
    }

    /// New sockets, and nothing known of the way to any relay.
    fn network_changed(&self) -> Result<(), Error> {
        self.inner.store().forget_round_trips()?;
        let rebound = self.joiner.sockets.rebind();
        rebound.map_err(|error| Error::Unreachable(format!("no new socket: {error}")))
    }

    /// One connection to its end: a new one, or one that was joined already.
    async fn once(&mut self, joined: Option<Joined>) -> End {
        let joined = match joined {
            Some(joined) => Ok(joined),
            None => self.join().await,
        };
        match joined.and_then(|joined| self.enter(joined)) {
            Ok(live) => live.run(self).await,
            Err(error) => End::Lost { error, lived: false },
        }
    }

    async fn join(&self) -> Result<Joined, Error> {
        self.inner.set_state(ConnectionState::Connecting);
        let relays = self.inner.store().relays()?;
        self.joiner.join(relays, None).await
    }

    fn enter(&mut self, joined: Joined) -> Result<Live, Error> {
        let Joined { session, welcome, incoming, address } = joined;
        let round_trip = session.connection().rtt();
        self.inner.store().joined_relay(&address, round_trip, &addresses(&welcome.relays))?;
        let told = Some(welcome.store_generation).filter(|told| *told != Welcome::UNKNOWN_GENERATION);
        let seen = self.inner.store().generation()?;
        let another = match (seen, told) {
            (Some(seen), Some(told)) => seen != told,
            (None, Some(told)) => {
                self.inner.store().set_generation(told)?;
                false
            }
            (_, None) => false,
        };
        if another {
            tracing::warn!("the home's store was restored from a backup; comparing everything");
            self.compared = false;
        }
        self.inner.set_state(ConnectionState::Connected(address));
        Ok(Live::new(session, welcome, incoming, another))
    }
}

impl Job {
    fn fail(self, error: &dyn Fn() -> Error) {
        // Whoever asked may have gone.
        match self {
            Self::Fetch { done, .. } | Self::Info { done, .. } => drop(done.send(Err(error()))),
            // Who waits for it hears that it is gone.
            Self::Connection { .. } | Self::NetworkChanged => {}
        }
    }
}
