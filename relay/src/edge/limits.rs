//! What one user may ask for in a time, over all their devices (GCRA, through `governor`).

use godwit_wire::{Code, Refusal, UserId};
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::time::Instant;

/// So many a second, and a burst on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

impl Rate {
    /// Zero is taken as one.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self { per_second: at_least_one(per_second), burst: at_least_one(burst) }
    }

    pub(super) fn quota(self) -> Quota {
        Quota::per_second(self.per_second).allow_burst(self.burst)
    }
}

#[derive(Clone, Debug)]
pub struct UserRates {
    /// Numbered requests: messages, changes of chats, redactions.
    pub sends: Rate,
    /// Bytes of their content.
    pub bytes: Rate,
    /// Everything else; an acknowledgement of one chat counts as one.
    pub requests: Rate,
}

impl Default for UserRates {
    fn default() -> Self {
        Self { sends: Rate::new(500, 5_000), bytes: Rate::new(4 << 20, 32 << 20), requests: Rate::new(2_000, 20_000) }
    }
}

/// Tokio's clock, which a simulation can set.
#[derive(Clone, Debug)]
pub(super) struct Monotonic(Instant);

impl Monotonic {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Monotonic {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

pub(super) type Keyed<K> = RateLimiter<K, DashMapStateStore<K>, Monotonic, NoOpMiddleware<Duration>>;

pub(super) fn keyed<K: Hash + Eq + Clone>(rate: Rate) -> Keyed<K> {
    RateLimiter::new(rate.quota(), DashMapStateStore::default(), Monotonic::start())
}

pub(crate) struct UserLimits {
    clock: Monotonic,
    sends: Keyed<UserId>,
    bytes: Keyed<UserId>,
    requests: Keyed<UserId>,
}

impl UserLimits {
    pub(crate) fn new(rates: &UserRates) -> Self {
        let clock = Monotonic::start();
        let limiter = |rate: Rate| RateLimiter::new(rate.quota(), DashMapStateStore::default(), clock.clone());
        Self { sends: limiter(rates.sends), bytes: limiter(rates.bytes), requests: limiter(rates.requests), clock }
    }

    fn check(&self, limiter: &Keyed<UserId>, user: &UserId, count: usize) -> Result<(), Refusal> {
        let Some(count) = u32::try_from(count).ok().and_then(NonZeroU32::new) else { return Ok(()) };
        match limiter.check_key_n(user, count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(Refusal::retry(Code::RateLimited, not_until.wait_time_from(self.clock.now()))),
            Err(_) => Err(Refusal::because(Code::RateLimited, "more at once than the burst this relay allows")),
        }
    }

    pub(crate) fn send(&self, user: &UserId, bytes: usize) -> Result<(), Refusal> {
        self.check(&self.sends, user, 1)?;
        self.check(&self.bytes, user, bytes)
    }

    pub(crate) fn requests(&self, user: &UserId, count: usize) -> Result<(), Refusal> {
        self.check(&self.requests, user, count)
    }

    /// Forgets users who asked for nothing lately.
    pub(crate) fn forget_idle(&self) {
        for limiter in [&self.sends, &self.bytes, &self.requests] {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

impl std::fmt::Debug for UserLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserLimits")
    }
}
