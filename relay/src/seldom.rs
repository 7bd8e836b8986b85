//! What may happen often and is told seldom.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Between two tellings.
const APART: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    since: u64,
}

impl Seldom {
    /// It happened now. Gives how often it did since it was told last, if it is to be told now.
    pub(crate) fn happened(&self) -> Option<u64> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.since += 1;
        if state.told.is_some_and(|told| now.duration_since(told) < APART) {
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_counted_and_little_is_told() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!([now; 3].map(|now| seldom.at(now)), [Some(1), None, None], "the first is told at once");
        assert_eq!([now + APART; 2].map(|now| seldom.at(now)), [Some(3), None]);
    }
}
