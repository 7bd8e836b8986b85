//! The intervals of seq in which a user belongs to a chat. A row is never deleted: what somebody could see once, they
//! may see again, and an entry's recipients are the participants at that entry, not today's.

use godwit_wire::Seq;
use godwit_wire::entry::Role;
use godwit_wire::frame::SeqRange;
use serde::{Deserialize, Deserializer, Serialize};

/// Joining and leaving more often than this is refused, so that a row stays small.
pub const MAX_INTERVALS: usize = 128;

/// From the entry that added the user to the entry that removed them, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    pub from: Seq,
    /// None while the user belongs.
    pub to: Option<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// The role, or the last one of a user who has left.
    pub role: Role,
    /// Ascending, disjoint, never empty.
    #[serde(deserialize_with = "intervals")]
    intervals: Vec<Interval>,
    /// The entry that this row follows from. A row is only ever replaced by a later one.
    pub as_of: Seq,
}

/// Rows also come from other relays.
fn intervals<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Interval>, D::Error> {
    let intervals = Vec::<Interval>::deserialize(deserializer)?;
    let ascends = intervals.windows(2).all(|pair| pair[0].to.is_some_and(|to| to < pair[1].from));
    let forward = intervals.iter().all(|interval| interval.to.is_none_or(|to| interval.from <= to));
    if intervals.is_empty() || intervals.len() > MAX_INTERVALS || !ascends || !forward {
        return Err(serde::de::Error::custom("intervals are to be 1 to 128, ascending and apart"));
    }
    Ok(intervals)
}

impl Participant {
    pub fn joined(role: Role, at: Seq) -> Self {
        Self { role, intervals: vec![Interval { from: at, to: None }], as_of: at }
    }

    fn last(&self) -> &Interval {
        self.intervals.last().expect("a row has at least the interval it was made with")
    }

    /// Belongs now.
    pub fn is_present(&self) -> bool {
        self.last().to.is_none()
    }

    /// The entry with which the user joined last.
    pub fn since(&self) -> Seq {
        self.last().from
    }

    /// The role of a user who belongs now.
    pub fn present_role(&self) -> Option<Role> {
        self.is_present().then_some(self.role)
    }

    pub fn can_join_again(&self) -> bool {
        self.intervals.len() < MAX_INTERVALS
    }

    pub fn join_again(&mut self, role: Role, at: Seq) {
        self.role = role;
        self.intervals.push(Interval { from: at, to: None });
        self.as_of = at;
    }

    pub fn leave(&mut self, at: Seq) {
        if let Some(last) = self.intervals.last_mut() {
            last.to = Some(at);
        }
        self.as_of = at;
    }

    /// May read the entry at `seq`, and is one of its recipients.
    pub fn sees(&self, seq: Seq) -> bool {
        self.intervals.iter().rev().any(|i| i.from <= seq && i.to.is_none_or(|to| seq <= to))
    }

    /// The last entry this user may see in a chat that has reached `head`.
    pub fn visible_head(&self, head: Seq) -> Seq {
        self.last().to.map_or(head, |to| to.min(head))
    }

    /// The last entry before `seq` that this user may see.
    pub fn saw_before(&self, seq: Seq) -> Option<Seq> {
        let last = self.intervals.iter().rev().find(|interval| interval.from < seq)?;
        seq.prev().map(|before| last.to.map_or(before, |to| to.min(before)))
    }

    /// Cuts `range` into what this user may see and what not, ascending, together covering it.
    pub fn cut(&self, range: SeqRange) -> Vec<(SeqRange, Visibility)> {
        let mut parts = Vec::new();
        let mut at = range.from;
        for interval in &self.intervals {
            if interval.from > range.to || at > range.to {
                break;
            }
            if interval.to.is_some_and(|to| to < at) {
                continue;
            }
            if let Some(before) = interval.from.prev().filter(|&before| before >= at) {
                parts.push((SeqRange { from: at, to: before }, Visibility::Hidden));
                at = interval.from;
            }
            let to = interval.to.map_or(range.to, |to| to.min(range.to));
            parts.push((SeqRange { from: at, to }, Visibility::Visible));
            at = to.next();
        }
        if at <= range.to {
            parts.push((SeqRange { from: at, to: range.to }, Visibility::Hidden));
        }
        parts
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    Visible,
    Hidden,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Seq {
        Seq::new(n).unwrap()
    }

    #[test]
    fn both_ends_of_an_interval_belong() {
        let mut p = Participant::joined(Role::Member, seq(3));
        p.leave(seq(5));
        p.join_again(Role::Admin, seq(8));
        let seen: Vec<_> = (1..=10).filter(|&n| p.sees(seq(n))).collect();
        assert_eq!(seen, [3, 4, 5, 8, 9, 10]);
        let before: Vec<_> = (1..=10).map(|n| p.saw_before(seq(n)).map_or(0, Seq::get)).collect();
        assert_eq!(before, [0, 0, 0, 3, 4, 5, 5, 5, 8, 9]);
        assert_eq!(p.visible_head(seq(10)), seq(10));
        p.leave(seq(9));
        assert_eq!(p.visible_head(seq(10)), seq(9));
    }

    #[test]
    fn a_row_that_no_chat_makes_is_not_read() {
        let row = |intervals: &[(u64, Option<u64>)]| {
            let interval = |&(from, to): &(u64, Option<u64>)| Interval { from: seq(from), to: to.map(seq) };
            let intervals = intervals.iter().map(interval).collect();
            let row = Participant { role: Role::Member, intervals, as_of: seq(1) };
            postcard::from_bytes::<Participant>(&postcard::to_stdvec(&row).unwrap())
        };
        assert!(row(&[(1, Some(1)), (2, None)]).is_ok());
        for bad in [&[][..], &[(3, Some(2))], &[(1, None), (2, None)], &[(1, Some(2)), (2, None)]] {
            assert!(row(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cutting_covers_the_range_and_agrees_with_sees() {
        let mut p = Participant::joined(Role::Member, seq(3));
        p.leave(seq(5));
        p.join_again(Role::Member, seq(6));
        p.leave(seq(6));
        p.join_again(Role::Member, seq(9));
        p.leave(seq(12));
        for from in 1..=15 {
            for to in from..=15 {
                let mut next = from;
                for (part, visible) in p.cut(SeqRange { from: seq(from), to: seq(to) }) {
                    assert_eq!(part.from.get(), next);
                    assert!(part.from <= part.to);
                    for n in part.from.get()..=part.to.get() {
                        assert_eq!(p.sees(seq(n)), visible == Visibility::Visible, "{n} in {from}..={to}");
                    }
                    next = part.to.get() + 1;
                }
                assert_eq!(next, to + 1);
            }
        }
    }
}
