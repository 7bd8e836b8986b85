//! A device whose user's home is another relay, or one of several that share a store: tells each of them where the device
//! is, and the owner of each chat what it took.
//!
//! The home may be out of reach. The device is let in all the same, by its certificate, and attached once the home is
//! back; what it acknowledged meanwhile is told then.

use super::{Edge, Session};
use crate::peers::frame::PeerFrame;
use crate::peers::{LinkError, PeerLink};
use crate::router::{Route, another_past};
use godwit_wire::frame::{Ack, Event};
use godwit_wire::{ChatId, Code, Refusal, RelayId, Seq, limits};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

/// How long after a passing refusal a home is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// Chats whose acknowledgements are kept for an owner that is away. What is over it comes to the device once more.
const KEPT_CHATS: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Remote(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Where the device is attached now.
    homes: BTreeMap<RelayId, Arc<PeerLink>>,
    /// What the owners do not know yet.
    untold: HashMap<ChatId, Seq>,
}

/// Hears how the first attempt to attach ended, wherever that was.
type First = Arc<Mutex<Option<oneshot::Sender<Option<u64>>>>>;

/// Whether it was the first.
fn told_first(first: &First, generation: Option<u64>) -> bool {
    let sender = first.lock().unwrap_or_else(PoisonError::into_inner).take();
    let is_first = sender.is_some();
    // The session may have ended.
    let _ = sender.map(|sender| sender.send(generation));
    is_first
}

impl Remote {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the owners what the device took, now or once they are back.
    pub(super) fn acknowledged(&self, edge: &Edge, session: &Session, acks: Vec<Ack>) {
        let home = session.sender.device.home();
        let mut state = self.state();
        let mut by_owner: BTreeMap<RelayId, Vec<Ack>> = BTreeMap::new();
        let mut untold = Vec::new();
        for ack in acks {
            match edge.router.route_copy(&home, &ack.chat) {
                Route::There(owner) if state.homes.contains_key(owner.relay()) => {
                    by_owner.entry(owner.relay().clone()).or_default().push(ack);
                }
                _ => untold.push(ack),
            }
        }
        for (owner, acks) in by_owner {
            let told = |home: &Arc<PeerLink>| acks.chunks(limits::ACKS).all(|acks| tell(home, session, acks.to_vec()));
            if !state.homes.get(&owner).is_some_and(told) {
                untold.extend(acks);
            }
        }
        for Ack { chat, up_to } in untold {
            if state.untold.len() < KEPT_CHATS || state.untold.contains_key(&chat) {
                let known = state.untold.entry(chat).or_insert(up_to);
                *known = up_to.max(*known);
            }
        }
    }

    /// Keeps the device attached at every other relay that holds its home's store, or shares it. `first` hears how the
    /// first attempt ended: the generation of the home's store, or none if the home is out of reach.
    ///
    /// # Errors
    /// Why the home does not let the device in.
    pub(super) async fn keep(
        &self,
        edge: &Arc<Edge>,
        session: &Arc<Session>,
        first: Option<oneshot::Sender<Option<u64>>>,
    ) -> Result<(), Refusal> {
        let first: First = Arc::new(Mutex::new(first));
        let home = session.sender.device.home();
        let mut changes = edge.router.changes();
        let mut kept: BTreeMap<RelayId, AbortHandle> = BTreeMap::new();
        let mut keeping = JoinSet::new();
        let mut before = None;
        loop {
            changes.mark_unchanged();
            let owners = edge.router.others(&home);
            let is_late = before.is_some();
            if before.replace(owners.clone()).is_some_and(|before| before != owners) {
                // Others own its chats now, and do not know what it was told.
                session.link.tell(&Event::Resumed);
            }
            kept.retain(|relay, task| {
                let is_owner = owners.contains(relay);
                if !is_owner {
                    task.abort();
                    self.state().homes.remove(relay);
                }
                is_owner
            });
            if owners.is_empty() {
                told_first(&first, None);
            }
            for relay in owners {
                kept.entry(relay.clone()).or_insert_with(|| {
                    let (edge, session, first) = (edge.clone(), session.clone(), first.clone());
                    keeping.spawn(async move { keep_at(&edge, &session, &relay, &first, is_late).await })
                });
            }
            // What was for an owner that went is for another now.
            self.tell_untold(edge, session);
            tokio::select! {
                biased;
                Some(ended) = keeping.join_next() => match ended {
                    Ok(Err(refusal)) => return Err(refusal),
                    Err(error) if error.is_panic() => return Err(Code::Internal.into()),
                    _ => {}
                },
                // The sender is the router's own, which outlives sessions.
                _ = changes.changed() => {}
            }
        }
    }

    fn tell_untold(&self, edge: &Edge, session: &Session) {
        let untold: Vec<Ack> = self.state().untold.drain().map(|(chat, up_to)| Ack { chat, up_to }).collect();
        if !untold.is_empty() {
            self.acknowledged(edge, session, untold);
        }
    }

    /// The connection ended.
    pub(super) fn end(&self, session: &Session) {
        for home in std::mem::take(&mut self.state().homes).into_values() {
            let device = session.sender.device.clone();
            home.unshow(&device);
            home.note(None, &PeerFrame::Detach { device, epoch: session.link.epoch });
        }
    }
}

/// Keeps the device attached at one relay, as long as that is up. It `missed` something if it is attached there later than
/// it connected.
async fn keep_at(
    edge: &Edge,
    session: &Session,
    relay: &RelayId,
    first: &First,
    mut missed: bool,
) -> Result<(), Refusal> {
    let remote = &session.remote;
    let mut changes = edge.router.changes();
    let mut again = false;
    loop {
        changes.mark_unchanged();
        let Some(home) = edge.router.cluster.peers.get(relay) else {
            told_first(first, None);
            missed = true;
            // The sender is the router's own, which outlives sessions.
            let _ = changes.changed().await;
            continue;
        };
        match attach(&home, session, again).await {
            Ok(generation) => {
                let told = session.generation.get().copied().or(session.seen_generation);
                let is_first = first.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                if !is_first && told.is_some_and(|told| told != generation) {
                    return Err(another_past());
                }
                remote.state().homes.insert(relay.clone(), home.clone());
                remote.tell_untold(edge, session);
                if !told_first(first, Some(generation)) && missed {
                    session.link.tell(&Event::Resumed);
                }
                (again, missed) = (true, true);
                home.connection.closed().await;
                remote.state().homes.remove(relay);
            }
            Err(refusal) if refusal.code.is_passing() => {
                told_first(first, None);
                missed = true;
                tokio::time::sleep(refusal.retry_after().unwrap_or(AGAIN)).await;
            }
            Err(refusal) => return Err(refusal),
        }
    }
}

fn tell(home: &PeerLink, session: &Session, acks: Vec<Ack>) -> bool {
    home.note(None, &PeerFrame::Acks { device: session.sender.device.clone(), epoch: session.link.epoch, acks })
}

async fn attach(home: &Arc<PeerLink>, session: &Session, again: bool) -> Result<u64, Refusal> {
    session.show(home).await?;
    let frame = PeerFrame::Attach { device: session.sender.device.clone(), epoch: session.link.epoch, again };
    match home.call(None, &frame).await? {
        PeerFrame::Attached { generation } => Ok(generation),
        _ => Err(LinkError::Confused.refusal()),
    }
}
