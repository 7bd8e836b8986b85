//! One entry on its way to many devices: those of one other relay get it in one frame.

use crate::edge::Link;
use crate::metrics::Metrics;
use crate::peers::PeerLink;
use crate::peers::frame::{PUSHED, PeerFrame};
use bytes::Bytes;
use godwit_wire::{ChatId, DeviceId, Seq};
use std::sync::Arc;

/// Devices of other relays that get an entry, by relay.
#[derive(Debug, Default)]
pub(super) struct Pushes(Vec<(Arc<PeerLink>, Vec<DeviceId>)>);

impl Pushes {
    /// Puts an entry on its way to a device. False if there is no room.
    pub(super) fn push(&mut self, link: &Link, chat: &ChatId, seq: Seq, frame: Bytes) -> bool {
        let Some(peer) = link.peer().filter(|_| !link.device.is_region()) else {
            return link.push(chat, Some(seq), frame);
        };
        if !link.reserve(chat, seq, frame.len()) {
            return false;
        }
        match self.0.iter_mut().find(|(known, _)| Arc::ptr_eq(known, peer)) {
            Some((_, devices)) => devices.push(link.device.clone()),
            None => self.0.push((peer.clone(), vec![link.device.clone()])),
        }
        true
    }

    /// Sends what was gathered. What does not fit is not acknowledged, and read from the log a little later.
    pub(super) fn send(self, chat: &ChatId, event: impl Fn() -> Bytes, metrics: &Metrics) {
        for (peer, devices) in self.0 {
            for some in devices.chunks(PUSHED) {
                metrics.edge_pushes.inc();
                peer.note(Some(chat), &PeerFrame::Push { devices: some.to_vec(), chat: chat.clone(), event: event() });
            }
        }
    }
}
