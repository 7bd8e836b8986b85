//! The way to one connected device, whether it is connected here or at another relay of the cluster.
//!
//! Capacity, of either: so many bytes as the registry says. Here they wait for the transport; at another relay they are
//! what the device has not acknowledged yet, since only that tells this end that there is room.

use crate::peers::PeerLink;
use crate::peers::frame::PeerFrame;
use crate::quic::{Connection, Lanes};
use crate::store::Base;
use bytes::Bytes;
use godwit_wire::frame::Event;
use godwit_wire::{ChatId, DeviceId, Refusal, Seq, codec};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// A connected device.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) device: DeviceId,
    pub(crate) enrolment: u32,
    /// Rises with each link that this relay makes.
    pub(crate) epoch: u64,
    /// The edge says that the device had been attached on this connection before: an older one than any that was not.
    pub(crate) again: bool,
    road: Road,
}

#[derive(Debug)]
enum Road {
    Here {
        lanes: Lanes,
        connection: Connection,
        /// Everything that came on this connection has run.
        ended: CancellationToken,
    },
    There {
        peer: Arc<PeerLink>,
        /// The edge's own epoch of the connection.
        epoch: u64,
        limit_bytes: usize,
        in_flight: Mutex<InFlight>,
    },
}

/// Entries on their way to a device at another relay.
#[derive(Debug, Default)]
struct InFlight {
    bytes: usize,
    chats: HashMap<ChatId, VecDeque<(Seq, usize)>>,
}

impl InFlight {
    fn add(&mut self, chat: &ChatId, last: Seq, len: usize) {
        self.bytes += len;
        self.chats.entry(chat.clone()).or_default().push_back((last, len));
    }
}

impl Link {
    pub(super) fn here(
        device: DeviceId,
        enrolment: u32,
        epoch: u64,
        connection: Connection,
        limit_bytes: usize,
    ) -> Self {
        let lanes = Lanes::new(connection.clone(), limit_bytes);
        let road = Road::Here { lanes, connection, ended: CancellationToken::new() };
        Self { device, enrolment, epoch, again: false, road }
    }

    pub(super) fn there(
        device: DeviceId,
        enrolment: u32,
        epoch: u64,
        (peer, remote_epoch, again): (Arc<PeerLink>, u64, bool),
        limit_bytes: usize,
    ) -> Self {
        let road = Road::There { peer, epoch: remote_epoch, limit_bytes, in_flight: Mutex::default() };
        Self { device, enrolment, epoch, again, road }
    }

    /// The edge's epoch of a connection at another relay.
    pub(crate) fn remote_epoch(&self) -> Option<u64> {
        match &self.road {
            Road::Here { .. } => None,
            Road::There { epoch, .. } => Some(*epoch),
        }
    }

    /// Sends an event. With `last`, it covers the chat up to there, and the device will acknowledge it. False if it does
    /// not fit.
    pub(crate) fn push(&self, chat: &ChatId, last: Option<Seq>, frame: Bytes) -> bool {
        match &self.road {
            Road::Here { lanes, .. } => lanes.push(chat, frame),
            Road::There { .. } => {
                if self.device.is_region() {
                    return last.is_some_and(|seq| self.replicate(chat, None, seq, frame));
                }
                let (len, devices) = (frame.len(), vec![self.device.clone()]);
                self.send(chat, last, len, || PeerFrame::Push { devices, chat: chat.clone(), event: frame })
            }
        }
    }

    /// Counts an entry as on its way to a device at another relay, where several get it at once. False if there is no
    /// room.
    pub(crate) fn reserve(&self, chat: &ChatId, last: Seq, len: usize) -> bool {
        let Road::There { limit_bytes, in_flight, .. } = &self.road else { return false };
        let mut in_flight = in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = in_flight.bytes + len <= *limit_bytes;
        if fits {
            in_flight.add(chat, last, len);
        }
        fits
    }

    /// Sends another region the next entry of a chat. False if it does not fit.
    pub(crate) fn replicate(&self, chat: &ChatId, base: Option<Base>, seq: Seq, record: Bytes) -> bool {
        let entries = vec![record];
        self.send(chat, Some(seq), entries[0].len(), || PeerFrame::Replicate { chat: chat.clone(), base, entries })
    }

    /// The relay at the other end, of a device that is not connected here.
    pub(crate) fn peer(&self) -> Option<&Arc<PeerLink>> {
        match &self.road {
            Road::Here { .. } => None,
            Road::There { peer, .. } => Some(peer),
        }
    }

    fn send(&self, chat: &ChatId, last: Option<Seq>, len: usize, frame: impl FnOnce() -> PeerFrame) -> bool {
        let Road::There { peer, limit_bytes, in_flight, .. } = &self.road else { return false };
        let mut in_flight = in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.bytes + len > *limit_bytes || !peer.note(Some(chat), &frame()) {
            return false;
        }
        if let Some(last) = last {
            in_flight.add(chat, last, len);
        }
        true
    }

    /// The device acknowledged a chat up to here.
    pub(crate) fn taken(&self, chat: &ChatId, up_to: Seq) {
        let Road::There { in_flight, .. } = &self.road else { return };
        let mut in_flight = in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let InFlight { bytes, chats } = &mut *in_flight;
        if let Some(entries) = chats.get_mut(chat) {
            while let Some((_, len)) = entries.pop_front_if(|(seq, _)| *seq <= up_to) {
                *bytes -= len;
            }
            if entries.is_empty() {
                chats.remove(chat);
            }
        }
    }

    /// Nothing of a chat is counted as on its way any more: it is read from the log again.
    pub(crate) fn rewind(&self, chat: &ChatId) {
        self.taken(chat, Seq::MAX);
    }

    /// Bytes that wait for the device.
    pub(crate) fn queued_bytes(&self) -> usize {
        match &self.road {
            Road::Here { lanes, .. } => lanes.queued_bytes(),
            Road::There { in_flight, .. } => in_flight.lock().unwrap_or_else(PoisonError::into_inner).bytes,
        }
    }

    /// Tells a device that is connected here something about its connection.
    pub(crate) fn tell(&self, event: &Event) {
        let mut frame = Vec::new();
        if let Road::Here { lanes, .. } = &self.road
            && codec::encode_event(event, &mut frame).is_ok()
        {
            // A device that hears nothing of it sees the connection end.
            lanes.push_control(frame.into());
        }
    }

    /// Ends the connection; the device is told why.
    pub(crate) fn close(&self, refusal: &Refusal) {
        match &self.road {
            Road::Here { connection, .. } => connection.close(refusal),
            // A region goes by its link alone.
            Road::There { .. } if self.device.is_region() => {}
            Road::There { peer, epoch, .. } => {
                let (device, enrolment) = (self.device.clone(), self.enrolment);
                // If it does not fit the device is found out when the edge attaches it again.
                peer.note(None, &PeerFrame::Close { device, epoch: Some(*epoch), enrolment, refusal: refusal.clone() });
            }
        }
    }

    /// The connection, or the link to its edge, ended.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.road {
            Road::Here { connection, .. } => connection.is_closed(),
            Road::There { peer, .. } => peer.connection.is_closed(),
        }
    }

    pub(super) fn end(&self) {
        if let Road::Here { ended, .. } = &self.road {
            ended.cancel();
        }
    }

    pub(super) async fn ended(&self) {
        if let Road::Here { ended, .. } = &self.road {
            ended.cancelled().await;
        }
    }
}
