//! What one device has taken of one chat.
//!
//! An inbox keeps no row a message: acknowledgements cover a contiguous prefix, so one row (device, chat) that says
//! "from seq s on" is the whole backlog. It is written once, at the first entry that the device did not take; a
//! thousand more cost nothing.

use godwit_wire::frame::SeqRange;
use godwit_wire::{Seq, UnixMillis};
use serde::{Deserialize, Serialize};

/// A backlog of a device in a chat: nothing from `from` on was taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRow {
    pub from: Seq,
    /// When the backlog began, or was last shortened.
    pub since: UnixMillis,
}

/// Where delivery of one chat to one device stands. A device without a track has taken everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Track {
    /// The device is connected and entries are pushed as they come; these are on their way.
    Live { open: Open, row: Row },
    /// An inbox row exists; its entries are read from the log in order, while the device is connected.
    Behind {
        from: Seq,
        /// The last one pushed on this connection.
        pushed: Option<Seq>,
        /// The last one that came while the device was behind.
        latest: Option<Seq>,
    },
}

/// Entries that were pushed and not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub first: Seq,
    pub last: Seq,
    /// When `first` became the oldest, on the caller's monotonic clock.
    pub since_millis: u64,
}

/// Whether an inbox row stands for a track's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    None,
    Written,
}

/// What an acknowledgement changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing new.
    Same,
    /// Some was taken; the row, if there is one, may start here.
    Moved(Seq),
    /// Everything was taken: the track ends, and its row with it.
    Done(Row),
}

impl Track {
    pub fn live(seq: Seq, now_millis: u64) -> Self {
        Self::Live { open: Open { first: seq, last: seq, since_millis: now_millis }, row: Row::None }
    }

    pub fn behind(from: Seq) -> Self {
        Self::Behind { from, pushed: None, latest: None }
    }

    /// The first entry that was not taken.
    pub fn first(&self) -> Seq {
        match self {
            Self::Live { open, .. } => open.first,
            Self::Behind { from, .. } => *from,
        }
    }

    /// The last entry that came, as far as the track knows.
    pub fn latest(&self) -> Option<Seq> {
        match self {
            Self::Live { open, .. } => Some(open.last),
            Self::Behind { latest, .. } => *latest,
        }
    }

    /// The device has taken everything up to `up_to`, which the caller has clamped to the chat's head.
    pub fn acknowledge(&mut self, up_to: Seq, now_millis: u64) -> Progress {
        match self {
            Self::Live { open, row } if up_to >= open.last => Progress::Done(*row),
            Self::Live { open, .. } if up_to >= open.first => {
                open.first = up_to.next();
                open.since_millis = now_millis;
                Progress::Moved(open.first)
            }
            Self::Behind { from, .. } if up_to >= *from => {
                *from = up_to.next();
                Progress::Moved(*from)
            }
            Self::Live { .. } | Self::Behind { .. } => Progress::Same,
        }
    }

    /// Entries on their way to the device.
    pub fn in_flight(&self) -> u64 {
        let (first, last) = match self {
            Self::Live { open, .. } => (open.first, Some(open.last)),
            Self::Behind { from, pushed, .. } => (*from, *pushed),
        };
        last.map_or(0, |last| (last.get() + 1).saturating_sub(first.get()))
    }

    /// Where reading from the log goes on, for a device that is behind.
    pub fn next_to_read(&self) -> Option<Seq> {
        match self {
            Self::Live { .. } => None,
            Self::Behind { from, pushed, .. } => Some(pushed.map_or(*from, |pushed| pushed.next().max(*from))),
        }
    }

    /// The log was read and pushed up to `covered`; `head` is the last entry the user may see, if any. Gives the track
    /// as it is then: none if the device has taken all of it already.
    pub fn read_up_to(self, covered: Option<Seq>, head: Option<Seq>, now_millis: u64) -> Option<Self> {
        let Self::Behind { from, pushed, latest } = self else { return Some(self) };
        let pushed = pushed.max(covered);
        let done = pushed.max(from.prev());
        let caught_up = done >= head && latest <= done;
        match pushed {
            _ if !caught_up => Some(Self::Behind { from, pushed, latest }),
            Some(last) if last >= from => {
                Some(Self::Live { open: Open { first: from, last, since_millis: now_millis }, row: Row::Written })
            }
            _ => None,
        }
    }

    /// The connection ended. Gives the track without one, and the range an inbox row must be begun for, if none is
    /// written.
    pub fn detach(self) -> (Self, Option<SeqRange>) {
        match self {
            Self::Live { open, row } => {
                let track = Self::Behind { from: open.first, pushed: None, latest: Some(open.last) };
                let begin = (row == Row::None).then_some(SeqRange { from: open.first, to: open.last });
                (track, begin)
            }
            Self::Behind { from, latest, .. } => (Self::Behind { from, pushed: None, latest }, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Seq {
        Seq::new(n).unwrap()
    }

    #[test]
    fn a_live_device_that_acknowledges_ends_its_track() {
        let mut track = Track::live(seq(5), 0);
        if let Track::Live { open, .. } = &mut track {
            open.last = seq(7);
        }
        assert_eq!(track.in_flight(), 3);
        assert_eq!(track.acknowledge(seq(4), 1), Progress::Same);
        assert_eq!(track.acknowledge(seq(6), 1), Progress::Moved(seq(7)));
        assert_eq!(track.in_flight(), 1);
        assert_eq!(track.acknowledge(seq(9), 1), Progress::Done(Row::None));
    }

    #[test]
    fn a_device_goes_live_only_when_nothing_came_meanwhile() {
        let behind = Track::Behind { from: seq(5), pushed: None, latest: Some(seq(9)) };
        assert_eq!(behind.next_to_read(), Some(seq(5)));
        let track = behind.read_up_to(Some(seq(8)), Some(seq(8)), 0).unwrap();
        assert_eq!(track, Track::Behind { from: seq(5), pushed: Some(seq(8)), latest: Some(seq(9)) });
        assert_eq!((track.next_to_read(), track.in_flight()), (Some(seq(9)), 4));
        let track = track.read_up_to(Some(seq(9)), Some(seq(9)), 0).unwrap();
        assert!(
            matches!(track, Track::Live { open: Open { first, last, .. }, row: Row::Written } if first == seq(5) && last == seq(9))
        );
    }

    #[test]
    fn what_was_taken_already_leaves_no_track() {
        assert_eq!(Track::behind(seq(6)).read_up_to(None, Some(seq(5)), 0), None);
        // Acknowledged while the last page was being read.
        let taken = Track::Behind { from: seq(10), pushed: Some(seq(9)), latest: Some(seq(9)) };
        assert_eq!(taken.read_up_to(None, Some(seq(9)), 0), None);
        // Something newer came, of which nothing was read yet.
        let newer = Track::Behind { from: seq(6), pushed: None, latest: Some(seq(6)) };
        assert_eq!(newer.read_up_to(None, Some(seq(5)), 0), Some(newer));
    }

    #[test]
    fn a_lost_connection_begins_a_row_at_the_oldest_open_entry() {
        let (track, begin) = Track::live(seq(5), 0).detach();
        assert_eq!(begin, Some(SeqRange { from: seq(5), to: seq(5) }));
        assert_eq!(track.next_to_read(), Some(seq(5)));
        assert_eq!(track.detach().1, None);
    }
}
