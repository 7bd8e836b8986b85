//! Devices at this relay: accepting them, their sessions, and who is connected.
//!
//! - [`accept`]: takes connections, [`admission`] which of them
//! - [`enrol`]: a certificate for a token
//! - [`session`]: one device's connection; [`lane`] its requests
//! - [`blobs`]: lanes on which attachments travel
//! - [`forward`]: requests on their way to the home of their chat
//! - [`remote`]: what a device's home hears of it, when that is another relay
//! - [`registry`]: who is connected here; [`link`] the way to one device
//! - [`drain`]: leaving, with devices handed over
//! - [`placement`]: whether a device should be here, or at another relay
//! - [`limits`]: what one user may ask for in a time

mod accept;
mod admission;
mod blobs;
pub(crate) mod drain;
mod enrol;
pub(crate) mod forward;
mod lane;
mod limits;
mod link;
mod placement;
mod registry;
mod remote;
mod session;

pub(crate) use accept::run;
pub(crate) use admission::AdmissionConfig;
pub(crate) use limits::UserLimits;
pub(crate) use limits::{Rate, UserRates};
pub(crate) use link::Link;
pub(crate) use registry::Registry;

use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::peers::{DeviceCredential, PeerLink};
use crate::revocations::{self, Revocations};
use crate::router::Router;
use admission::Admissions;
use arc_swap::ArcSwap;
use drain::Drain;
use godwit_certs::chain::ChainVerifier;
use godwit_core::Sender;
use godwit_core::device::Revocation;
use godwit_gossip::Kind;
use godwit_wire::{Clock, Code, Refusal, RelayId, UnixMillis, UserId};
use placement::Placement;
use remote::Remote;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) relay: RelayId,
    pub(crate) router: Router,
    pub(crate) registry: Arc<Registry>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) revocations: Arc<Revocations>,
    /// Proves devices at other relays.
    pub(crate) chains: ChainVerifier,
    pub(crate) clock: Clock,
    /// Replaced by a reload.
    pub(crate) limits: ArcSwap<UserLimits>,
    pub(crate) metrics: Metrics,
    pub(crate) drain: Drain,
    /// Lanes of blobs that one device may have.
    blob_lanes: usize,
    placement: Placement,
    admissions: Admissions,
    handshake_timeout: Duration,
}

impl std::fmt::Debug for Admissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admissions")
    }
}

/// What an edge is made of.
#[derive(Debug)]
pub(crate) struct EdgeParts {
    pub(crate) relay: RelayId,
    pub(crate) router: Router,
    pub(crate) registry: Arc<Registry>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) revocations: Arc<Revocations>,
    pub(crate) chains: ChainVerifier,
    pub(crate) clock: Clock,
    pub(crate) rates: UserRates,
    pub(crate) admission: AdmissionConfig,
    pub(crate) blob_lanes: usize,
    pub(crate) metrics: Metrics,
}

impl Edge {
    pub(crate) fn new(parts: EdgeParts) -> Self {
        Self {
            relay: parts.relay,
            router: parts.router,
            registry: parts.registry,
            outbox: parts.outbox,
            revocations: parts.revocations,
            chains: parts.chains,
            clock: parts.clock,
            limits: ArcSwap::from_pointee(UserLimits::new(&parts.rates)),
            metrics: parts.metrics,
            drain: Drain::default(),
            blob_lanes: parts.blob_lanes,
            placement: Placement::default(),
            admissions: Admissions::new(&parts.admission),
            handshake_timeout: parts.admission.handshake_timeout,
        }
    }

    /// Shuts enrolments of a device out, and tells those who believe it from here.
    pub(crate) fn shut_out(&self, revocation: &Revocation) {
        if !self.revocations.add(revocation) {
            return;
        }
        let Revocation { device, enrolment, why, .. } = revocation;
        self.registry.shut_out(device, *enrolment, &(*why).into());
        let Some(owner) = &self.router.owner else { return };
        for peer in self.router.cluster.peers.all() {
            let own = peer.relay().region() == owner.region && peer.peer.kind() != Kind::Store;
            if own || device.home() == owner.region {
                self.router.cluster.spawn(revocations::tell(peer, vec![revocation.clone()]));
            }
        }
    }
}

/// A device that was let in.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) sender: Sender,
    pub(crate) user: UserId,
    pub(crate) link: Arc<Link>,
    pub(crate) certificate_expires: UnixMillis,
    /// None of a client that is too old to give a ticket.
    credential: Option<DeviceCredential>,
    /// For a user whose home is another relay.
    remote: Remote,
    /// For lanes of blobs.
    blob_lanes: Arc<Semaphore>,
    /// Of the home's store, where it could be asked.
    generation: OnceLock<u64>,
    /// The same, as the device saw it last.
    seen_generation: Option<u64>,
}

impl Session {
    /// Shows another relay that this one may act for the device.
    pub(crate) async fn show(&self, peer: &Arc<PeerLink>) -> Result<(), Refusal> {
        match &self.credential {
            Some(credential) => peer.show(&self.sender.device, credential).await,
            None => Err(Refusal::because(Code::Unauthenticated, "the device gave this relay no ticket")),
        }
    }
}
