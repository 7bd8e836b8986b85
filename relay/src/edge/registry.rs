//! Which devices are connected here.
//!
//! A device has one connection: a newer one replaces the older. Each connection has an epoch, so that the late end of
//! an old one removes nothing of a new one.

use super::link::Link;
use crate::peers::PeerLink;
use crate::quic::Connection;
use bytes::Bytes;
use godwit_core::Sender;
use godwit_wire::{ChatId, Code, DeviceId, Refusal, UserId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of entries on their way to one region.
const REGION_BYTES: usize = 8 << 20;

#[derive(Debug)]
pub(crate) struct Registry {
    links: Mutex<BTreeMap<DeviceId, Arc<Link>>>,
    epochs: AtomicU64,
    /// Bytes that may wait for one device.
    queued_bytes: usize,
}

impl Registry {
    pub(crate) fn new(queued_bytes: usize) -> Self {
        Self { links: Mutex::default(), epochs: AtomicU64::default(), queued_bytes }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Enters a connection; one that the device had before is closed, and everything that came on it has run when this
    /// returns. So a request never overtakes one of an older connection, and what a device compares after it connected
    /// is all there is.
    pub(crate) async fn attach(&self, device: DeviceId, enrolment: u32, connection: Connection) -> Arc<Link> {
        let link = Link::here(device.clone(), enrolment, self.next_epoch(), connection, self.queued_bytes);
        let link = Arc::new(link);
        let before = self.links().insert(device, link.clone());
        if let Some(before) = before {
            before.close(&Code::Replaced.into());
            before.ended().await;
        }
        link
    }

    /// A connection at another relay, of a device that is served from here.
    pub(crate) fn remote(&self, sender: Sender, peer: Arc<PeerLink>, epoch: u64, again: bool) -> Arc<Link> {
        let Sender { device, enrolment } = sender;
        let road = (peer, epoch, again);
        Arc::new(Link::there(device, enrolment, self.next_epoch(), road, self.queued_bytes))
    }

    /// Ends a connection of which everything has run. It is removed, if it is still the device's.
    pub(crate) fn detach(&self, link: &Link) {
        link.end();
        let mut links = self.links();
        if links.get(&link.device).is_some_and(|current| current.epoch == link.epoch) {
            links.remove(&link.device);
        }
    }

    /// Ends the device's connection, if it is of an enrolment up to `enrolment`.
    pub(crate) fn shut_out(&self, device: &DeviceId, enrolment: u32, refusal: &Refusal) {
        self.close(device, None, enrolment, refusal);
    }

    /// Ends the device's connection, if it is of this epoch; without one, if it is of an enrolment up to `enrolment`.
    pub(crate) fn close(&self, device: &DeviceId, epoch: Option<u64>, enrolment: u32, refusal: &Refusal) {
        let link = self.links().get(device).cloned();
        let meant = |link: &Arc<Link>| epoch.map_or(link.enrolment <= enrolment, |epoch| link.epoch == epoch);
        if let Some(link) = link.filter(meant) {
            link.close(refusal);
        }
    }

    /// Sends an event to a device that is connected here; whoever asked hears of it by the device's acknowledgement.
    pub(crate) fn push(&self, device: &DeviceId, chat: &ChatId, event: Bytes) {
        let link = self.links().get(device).cloned();
        if let Some(link) = link {
            link.push(chat, None, event);
        }
    }

    /// Sends an event to a user's devices that are connected here, but for one. False if there are none.
    pub(crate) fn push_user(&self, user: &UserId, except: Option<&DeviceId>, chat: &ChatId, event: &Bytes) -> bool {
        // No device's name sorts before this.
        let Ok(first) = user.device("0") else { return false };
        let links = self.links();
        let own = links.range(first..).take_while(|(device, _)| device.user_str() == user.as_str());
        let mut any = false;
        for (_, link) in own.filter(|(device, _)| Some(*device) != except) {
            any |= link.push(chat, None, event.clone());
        }
        any
    }

    /// The way to another region, which takes entries for its users.
    pub(crate) fn region(&self, peer: Arc<PeerLink>) -> Arc<Link> {
        let device = DeviceId::of_region(&peer.relay().region());
        Arc::new(Link::there(device, 0, self.next_epoch(), (peer, 0, false), REGION_BYTES))
    }

    /// All connections.
    pub(crate) fn links_now(&self) -> Vec<Arc<Link>> {
        self.links().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.links().len()
    }
}
