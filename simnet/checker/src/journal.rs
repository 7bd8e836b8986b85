//! Where the checker takes the time from, and what it tells as it goes.

use std::time::{Duration, Instant};

/// A message that an app was told.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub from: String,
    pub to: String,
    pub put: Duration,
    pub told: Duration,
}

/// Where the checker takes the time from, and what it tells as it goes.
pub trait Journal: Send + Sync {
    /// Time since the start.
    fn now(&self) -> Duration;

    /// Something happened. It may contain what people wrote.
    fn note(&self, what: &str);

    fn delivered(&self, _delivery: Delivery) {}
}

/// A journal for real relays, with what happens in the log at `debug`.
#[derive(Clone, Copy, Debug)]
pub struct RealTime(Instant);

impl RealTime {
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for RealTime {
    fn default() -> Self {
        Self::new()
    }
}

impl Journal for RealTime {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn note(&self, what: &str) {
        tracing::debug!("{what}");
    }
}
