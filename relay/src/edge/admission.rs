//! Which connection attempts are taken: a bounded rate and number of handshakes, and a bounded number of connections.
//!
//! | situation | answer |
//! | --- | --- |
//! | under half of the rate | handshake |
//! | over half of it, address not proved yet | QUIC Retry (RFC 9000, section 8.1.2): costs no state |
//! | one address over its own rate | ignored |
//! | over the rate | handshake, then closed with `Busy` and the time to come back |
//! | at the most connections | handshake and hello, answered with other relays and the time to come back |
//! | at the most handshakes at once | refused (`CONNECTION_REFUSED`) |
//!
//! The times to come back are spread, so that a herd does not return as one.

use super::limits::{Keyed, Monotonic, Rate, keyed};
use godwit_wire::{Code, Refusal};
use governor::RateLimiter;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Debug)]
pub struct AdmissionConfig {
    /// Handshakes of all addresses.
    pub handshakes: Rate,
    /// Handshakes of one address.
    pub handshakes_per_address: Rate,
    /// Handshakes at the same time.
    pub concurrent_handshakes: usize,
    /// Connections at the same time.
    pub connections: usize,
    /// A handshake that takes longer is dropped.
    pub handshake_timeout: Duration,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            handshakes: Rate::new(2_000, 4_000),
            handshakes_per_address: Rate::new(500, 1_000),
            concurrent_handshakes: 512,
            connections: 100_000,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// What to do with a connection attempt.
#[derive(Debug)]
pub(super) enum Admission {
    Accept(OwnedSemaphorePermit),
    /// Accept, and close with this.
    TurnAway(OwnedSemaphorePermit, Refusal),
    /// Accept, and send it elsewhere: there is no room here.
    Full(OwnedSemaphorePermit),
    Retry,
    Ignore,
    Refuse,
}

type Direct = RateLimiter<NotKeyed, InMemoryState, Monotonic, NoOpMiddleware<Duration>>;

pub(super) struct Admissions {
    all: Direct,
    /// Half of the burst: above it, addresses must prove themselves first.
    calm: Direct,
    per_address: Keyed<IpAddr>,
    handshakes: Arc<Semaphore>,
    connections: usize,
    turned_away: AtomicU32,
}

impl Admissions {
    pub(super) fn new(config: &AdmissionConfig) -> Self {
        let direct = |rate: Rate| RateLimiter::direct_with_clock(rate.quota(), Monotonic::start());
        let half = |n: NonZeroU32| n.get().div_ceil(2);
        let calm = Rate::new(half(config.handshakes.per_second), half(config.handshakes.burst));
        Self {
            all: direct(config.handshakes),
            calm: direct(calm),
            per_address: keyed(config.handshakes_per_address),
            handshakes: Arc::new(Semaphore::new(config.concurrent_handshakes)),
            connections: config.connections,
            turned_away: AtomicU32::new(0),
        }
    }

    pub(super) fn decide(&self, address: IpAddr, validated: bool, connections: usize) -> Admission {
        if !validated && self.calm.check().is_err() {
            return Admission::Retry;
        }
        if self.per_address.check_key(&address).is_err() {
            return Admission::Ignore;
        }
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else { return Admission::Refuse };
        if connections >= self.connections {
            return Admission::Full(permit);
        }
        if self.all.check().is_err() {
            return Admission::TurnAway(permit, Refusal::retry(Code::Busy, self.come_back()));
        }
        Admission::Accept(permit)
    }

    /// One to five seconds, each a sixteenth of a second after the one before.
    pub(super) fn come_back(&self) -> Duration {
        let turn = self.turned_away.fetch_add(1, Ordering::Relaxed) % 64;
        Duration::from_secs(1) + turn * Duration::from_secs(1) / 16
    }

    /// Forgets addresses that did not come lately.
    pub(super) fn forget_idle(&self) {
        self.per_address.retain_recent();
        self.per_address.shrink_to_fit();
    }
}
