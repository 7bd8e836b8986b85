//! Devices at this relay: accepting them, their sessions, and who is connected.
//!
//! - [`accept`]: takes connections, [`admission`] which of them
//! - [`enrol`]: a certificate for a token
//! - [`session`]: one device's connection; [`lane`] its requests
//! - [`registry`]: who is connected here
//! - [`limits`]: what one user may ask for in a time

mod accept;
mod admission;
mod enrol;
mod lane;
mod limits;
mod registry;
mod session;

pub(crate) use accept::run;
pub(crate) use admission::AdmissionConfig;
pub(crate) use limits::UserLimits;
pub(crate) use limits::{Rate, UserRates};
pub(crate) use registry::{Link, Registry};

use crate::metrics::Metrics;
use crate::owner::Owner;
use admission::Admissions;
use arc_swap::ArcSwap;
use godwit_core::Sender;
use godwit_wire::{RelayId, UnixMillis, UserId};
use std::sync::Arc;
use std::time::Duration;

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) relay: RelayId,
    pub(crate) owner: Owner,
    pub(crate) registry: Arc<Registry>,
    /// Replaced by a reload.
    pub(crate) limits: ArcSwap<UserLimits>,
    pub(crate) metrics: Metrics,
    admissions: Admissions,
    handshake_timeout: Duration,
    /// Events that wait for one device, in bytes.
    lane_bytes: usize,
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
    pub(crate) owner: Owner,
    pub(crate) registry: Arc<Registry>,
    pub(crate) rates: UserRates,
    pub(crate) admission: AdmissionConfig,
    pub(crate) lane_bytes: usize,
    pub(crate) metrics: Metrics,
}

impl Edge {
    pub(crate) fn new(parts: EdgeParts) -> Self {
        Self {
            relay: parts.relay,
            owner: parts.owner,
            registry: parts.registry,
            limits: ArcSwap::from_pointee(UserLimits::new(&parts.rates)),
            metrics: parts.metrics,
            admissions: Admissions::new(&parts.admission),
            handshake_timeout: parts.admission.handshake_timeout,
            lane_bytes: parts.lane_bytes,
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
}
