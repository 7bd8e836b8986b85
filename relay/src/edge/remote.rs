//! A device whose user's home is another relay: tells the home where the device is, and what it took.
//!
//! The home may be out of reach. The device is let in all the same, by its certificate, and attached once the home is
//! back; what it acknowledged meanwhile is told then.

use super::{Edge, Session};
use crate::peers::frame::PeerFrame;
use crate::peers::{LinkError, PeerLink};
use crate::router::{Route, another_past};
use godwit_wire::frame::{Ack, Event};
use godwit_wire::{ChatId, Refusal, Seq, limits};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long after a passing refusal the home is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// Chats whose acknowledgements are kept for a home that is away. What is over it comes to the device once more.
const KEPT_CHATS: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Remote(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Where the device is attached now.
    home: Option<Arc<PeerLink>>,
    /// What the home does not know yet.
    untold: HashMap<ChatId, Seq>,
}

impl Remote {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the home what the device took, now or once it is back.
    pub(super) fn acknowledged(&self, session: &Session, acks: Vec<Ack>) {
        let mut state = self.state();
        if let Some(home) = &state.home
            && tell(home, session, acks.clone())
        {
            return;
        }
        for Ack { chat, up_to } in acks {
            if state.untold.len() < KEPT_CHATS || state.untold.contains_key(&chat) {
                let known = state.untold.entry(chat).or_insert(up_to);
                *known = up_to.max(*known);
            }
        }
    }

    /// Keeps the device attached. `first` hears how the first attempt ended: the generation of the home's store, or
    /// none if the home is out of reach.
    ///
    /// # Errors
    /// Why the home does not let the device in.
    pub(super) async fn keep(
        &self,
        edge: &Edge,
        session: &Session,
        first: oneshot::Sender<Option<u64>>,
    ) -> Result<(), Refusal> {
        let mut first = Some(first);
        let mut changes = edge.router.changes();
        let mut again = false;
        loop {
            changes.mark_unchanged();
            let Route::There(home) = edge.router.route(&session.sender.device.home()) else {
                if let Some(first) = first.take() {
                    // The session may have ended.
                    let _ = first.send(None);
                }
                // The sender is the router's own, which outlives sessions.
                let _ = changes.changed().await;
                continue;
            };
            match attach(&home, session, again).await {
                Ok(generation) => {
                    let told = session.generation.get().copied().or(session.seen_generation);
                    if first.is_none() && told.is_some_and(|told| told != generation) {
                        return Err(another_past());
                    }
                    self.attached(&home, session);
                    again = true;
                    match first.take() {
                        // The session may have ended.
                        Some(first) => drop(first.send(Some(generation))),
                        None => session.link.tell(&Event::Resumed),
                    }
                    home.connection.closed().await;
                    self.state().home = None;
                }
                Err(refusal) if refusal.code.is_passing() => {
                    if let Some(first) = first.take() {
                        let _ = first.send(None);
                    }
                    tokio::time::sleep(refusal.retry_after().unwrap_or(AGAIN)).await;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn attached(&self, home: &Arc<PeerLink>, session: &Session) {
        let mut state = self.state();
        state.home = Some(home.clone());
        let untold: Vec<Ack> = state.untold.drain().map(|(chat, up_to)| Ack { chat, up_to }).collect();
        for acks in untold.chunks(limits::ACKS) {
            // What does not fit comes to the device once more.
            tell(home, session, acks.to_vec());
        }
    }

    /// The connection ended.
    pub(super) fn end(&self, session: &Session) {
        if let Some(home) = self.state().home.take() {
            let device = session.sender.device.clone();
            home.unshow(&device);
            home.note(None, &PeerFrame::Detach { device, epoch: session.link.epoch });
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
