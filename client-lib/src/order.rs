//! Per-chat order and gaps: which entries may reach the app, and which are missing before them. Pure.

use godwit_wire::Seq;
use godwit_wire::frame::SeqRange;
use std::collections::BTreeMap;

/// What one device holds of one chat's log: everything up to a position, and ranges beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Everything up to here is held; 0 for nothing.
    position: u64,
    /// Held beyond the position: first → last, disjoint, not touching.
    ahead: BTreeMap<u64, u64>,
    /// The highest entry that is known to exist.
    head: u64,
}

impl Order {
    /// Everything up to `position` is held, or is not for this device.
    pub fn new(position: Option<Seq>) -> Self {
        let position = position.map_or(0, Seq::get);
        Self { position, ahead: BTreeMap::new(), head: position }
    }

    /// Everything up to here is held.
    pub fn position(&self) -> Option<Seq> {
        Seq::new(self.position).ok()
    }

    /// Whether `seq` is held already.
    pub fn holds(&self, seq: Seq) -> bool {
        let seq = seq.get();
        seq <= self.position || self.ahead.range(..=seq).next_back().is_some_and(|(_, last)| *last >= seq)
    }

    /// The chat reaches at least to `head`.
    pub fn reaches(&mut self, head: Seq) {
        self.head = self.head.max(head.get());
    }

    /// Takes one entry. False if it is a double.
    pub fn take(&mut self, seq: Seq) -> bool {
        let new = !self.holds(seq);
        self.take_range(SeqRange { from: seq, to: seq });
        new
    }

    /// Takes a range that is held, or that this device may not see. What is held of it already does not matter.
    pub fn take_range(&mut self, range: SeqRange) {
        let (mut from, mut to) = (range.from.get(), range.to.get());
        self.head = self.head.max(to);
        // Everything that overlaps or touches becomes one range.
        while let Some((&first, &last)) = self.ahead.range(..=to.saturating_add(1)).next_back() {
            if last + 1 < from {
                break;
            }
            self.ahead.remove(&first);
            from = from.min(first);
            to = to.max(last);
        }
        if from <= self.position + 1 {
            self.position = self.position.max(to);
        } else {
            self.ahead.insert(from, to);
        }
    }

    /// The first stretch that is missing before something that is held, or before the head.
    pub fn missing(&self) -> Option<SeqRange> {
        let to = self.ahead.first_key_value().map_or(self.head, |(first, _)| first - 1);
        if to <= self.position {
            return None;
        }
        Some(SeqRange { from: Seq::new(self.position + 1).ok()?, to: Seq::new(to).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Seq {
        Seq::new(n).unwrap()
    }

    fn range(from: u64, to: u64) -> SeqRange {
        SeqRange { from: seq(from), to: seq(to) }
    }

    #[test]
    fn a_gap_is_named_and_closes() {
        let mut order = Order::new(None);
        assert!(order.take(seq(1)) && order.take(seq(4)) && order.take(seq(3)));
        assert!(!order.take(seq(4)) && !order.take(seq(1)));
        assert_eq!((order.position(), order.missing()), (Some(seq(1)), Some(range(2, 2))));
        assert!(order.take(seq(2)));
        assert_eq!((order.position(), order.missing()), (Some(seq(4)), None));
    }

    #[test]
    fn a_known_head_is_missing_too() {
        let mut order = Order::new(Some(seq(5)));
        order.reaches(seq(9));
        assert_eq!(order.missing(), Some(range(6, 9)));
        order.take_range(range(7, 8));
        assert_eq!(order.missing(), Some(range(6, 6)));
        order.take_range(range(1, 6));
        assert_eq!(order.missing(), Some(range(9, 9)));
    }

    proptest::proptest! {
        /// Against a plain set: any ranges in any order, with doubles.
        #[test]
        fn agrees_with_a_set(start in 0u64..5, takes in proptest::collection::vec((1u64..40, 0u64..6), 0..60)) {
            let mut order = Order::new(Seq::new(start).ok());
            let mut held: std::collections::BTreeSet<u64> = (1..=start).collect();
            for (from, len) in takes {
                order.take_range(range(from, from + len));
                held.extend(from..=from + len);
                let position = (1..60).find(|n| !held.contains(n)).unwrap() - 1;
                proptest::prop_assert_eq!(order.position().map_or(0, Seq::get), position);
                for n in 1..50 {
                    proptest::prop_assert_eq!(order.holds(seq(n)), held.contains(&n));
                }
                let next = held.range(position + 1..).next().copied();
                proptest::prop_assert_eq!(order.missing(), next.map(|next| range(position + 1, next - 1)));
            }
        }
    }
}
