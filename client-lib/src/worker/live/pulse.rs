//! Notices that a relay is gone, sooner than the transport would.
//!
//! Only time counts in which this task was awake to hear: a phone that slept, or a disk that stalled, says nothing about
//! the relay.

use std::time::Duration;
use tokio::time::Instant;

/// A relay that owes an answer and says nothing for so long is gone.
const OWED: Duration = Duration::from_secs(8);
/// One that leaves packets without any sign of life for so long, likewise.
const UNANSWERED: Duration = Duration::from_secs(4);
/// So many packets: a keep-alive, and a transport that asks again.
const PACKETS: u64 = 3;
/// What passes between two looks counts as no more than this.
const AWAKE: Duration = Duration::from_millis(500);

/// Packets of a connection, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Packets {
    pub(super) sent: u64,
    pub(super) received: u64,
}

#[derive(Debug)]
pub(super) struct Pulse {
    looked: Instant,
    owed: Duration,
    unanswered: Duration,
    last: Packets,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { looked: Instant::now(), owed: Duration::ZERO, unanswered: Duration::ZERO, last: Packets::default() }
    }

    /// The relay said something.
    pub(super) fn heard(&mut self) {
        self.owed = Duration::ZERO;
    }

    /// Whether the relay counts as gone now. `owes`: it has not answered everything.
    pub(super) fn is_gone(&mut self, owes: bool, packets: Packets) -> bool {
        let step = self.looked.elapsed().min(AWAKE);
        self.looked = Instant::now();
        self.pass(step, owes, packets)
    }

    fn pass(&mut self, step: Duration, owes: bool, packets: Packets) -> bool {
        self.owed = if owes { self.owed + step } else { Duration::ZERO };
        if packets.received != self.last.received {
            self.last = packets;
            self.unanswered = Duration::ZERO;
        } else if packets.sent >= self.last.sent + PACKETS {
            self.unanswered += step;
        }
        self.owed > OWED || self.unanswered > UNANSWERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(250);

    fn packets(sent: u64, received: u64) -> Packets {
        Packets { sent, received }
    }

    /// How many steps pass until the relay counts as gone, of at most 100.
    fn steps(pulse: &mut Pulse, owes: bool, at: impl Fn(u64) -> Packets) -> Option<u64> {
        (1..=100).find(|step| pulse.pass(STEP, owes, at(*step)))
    }

    #[test]
    fn a_quiet_relay_is_not_gone_and_one_that_answers_is_not_either() {
        let mut pulse = Pulse::new();
        assert_eq!(steps(&mut pulse, false, |_| packets(10, 10)), None, "nothing was asked");
        assert_eq!(steps(&mut pulse, false, |_| packets(12, 10)), None, "an acknowledgement needs no answer");
        assert_eq!(steps(&mut pulse, false, |step| packets(12 + step * 9, 10 + step)), None);
    }

    #[test]
    fn packets_without_an_answer_are_noticed() {
        let mut pulse = Pulse::new();
        assert!(!pulse.pass(STEP, false, packets(10, 10)));
        let gone = steps(&mut pulse, false, |step| packets(10 + step, 10)).unwrap();
        assert_eq!(gone, PACKETS + 16, "four seconds after the third of them");
    }

    #[test]
    fn an_answer_that_does_not_come_is_noticed_and_any_word_begins_anew() {
        let mut pulse = Pulse::new();
        let acked = |step| packets(step, step);
        assert_eq!(steps(&mut pulse, true, acked), Some(33));
        pulse.heard();
        assert_eq!(steps(&mut pulse, true, acked), Some(33));
    }
}
