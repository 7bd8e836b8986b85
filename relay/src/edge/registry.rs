//! Which devices are connected here.
//!
//! A device has one connection: a newer one replaces the older. Each connection has an epoch, so that the late end of
//! an old one removes nothing of a new one.

use crate::quic::Connection;
use crate::quic::Lanes;
use bytes::Bytes;
use godwit_wire::frame::{Address, Event};
use godwit_wire::{Code, DeviceId, Refusal, codec};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// A connected device.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) device: DeviceId,
    pub(crate) enrolment: u32,
    pub(crate) epoch: u64,
    pub(crate) lanes: Lanes,
    connection: Connection,
    /// Everything that came on this connection has run.
    ended: CancellationToken,
}

impl Link {
    /// Ends the connection; the device is told why.
    pub(crate) fn close(&self, refusal: &Refusal) {
        self.connection.close(refusal);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    links: Mutex<HashMap<DeviceId, Arc<Link>>>,
    epochs: AtomicU64,
}

impl Registry {
    fn links(&self) -> MutexGuard<'_, HashMap<DeviceId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection; one that the device had before is closed, and everything that came on it has run when this
    /// returns. So a request never overtakes one of an older connection, and what a device compares after it connected
    /// is all there is.
    pub(crate) async fn attach(
        &self,
        device: DeviceId,
        enrolment: u32,
        connection: Connection,
        queued_bytes: usize,
    ) -> Arc<Link> {
        let epoch = self.epochs.fetch_add(1, Ordering::Relaxed) + 1;
        let lanes = Lanes::new(connection.clone(), queued_bytes);
        let ended = CancellationToken::new();
        let link = Arc::new(Link { device: device.clone(), enrolment, epoch, lanes, connection, ended });
        let before = self.links().insert(device, link.clone());
        if let Some(before) = before {
            before.close(&Code::Replaced.into());
            before.ended.cancelled().await;
        }
        link
    }

    /// Ends a connection of which everything has run. It is removed, if it is still the device's.
    pub(crate) fn detach(&self, link: &Link) {
        link.ended.cancel();
        let mut links = self.links();
        if links.get(&link.device).is_some_and(|current| current.epoch == link.epoch) {
            links.remove(&link.device);
        }
    }

    /// Ends the device's connection, if it is of an enrolment up to `enrolment`.
    pub(crate) fn shut_out(&self, device: &DeviceId, enrolment: u32, refusal: &Refusal) {
        let link = self.links().get(device).cloned();
        if let Some(link) = link.filter(|link| link.enrolment <= enrolment) {
            link.close(refusal);
        }
    }

    /// All connections.
    pub(crate) fn links_now(&self) -> Vec<Arc<Link>> {
        self.links().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.links().len()
    }

    /// Tells every device that the relay will close, and where else to go.
    pub(crate) fn go_away(&self, reason: &Refusal, relays: &[String]) {
        let relays = relays.iter().cloned().map(Address).collect();
        let mut frame = Vec::new();
        if codec::encode_event(&Event::GoAway { reason: reason.clone(), relays }, &mut frame).is_err() {
            return;
        }
        let frame = Bytes::from(frame);
        for link in self.links().values() {
            link.lanes.push_control(frame.clone());
        }
    }
}
