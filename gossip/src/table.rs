//! Who is claimed by whom, compactly: 12 bytes a claim and one of the hash table's own. A relay is a small number here.
//!
//! Claims of a number may be loaded while it is hidden, and dropping a number costs nothing: its claims are skipped from
//! then on, and swept in one scan when they make up a fifth of the table. So a partition that takes hundreds of relays
//! away costs few scans, and a relay's new set replaces its old one in one step.

use crate::hash::{Change, UserHash};
use godwit_wire::RelayId;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Dead claims that are never worth a scan.
const SWEEP_MIN: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Claim {
    /// Two halves, so that the struct has no padding.
    hash: [u32; 2],
    number: u16,
    /// Users of this hash at this relay.
    users: u16,
}

impl Claim {
    #[allow(clippy::cast_possible_truncation, reason = "it is cut in halves")]
    fn new(number: Number, hash: UserHash) -> Self {
        Self { hash: [hash.get() as u32, (hash.get() >> 32) as u32], number: number.0, users: 1 }
    }

    fn hash(&self) -> u64 {
        u64::from(self.hash[0]) | u64::from(self.hash[1]) << 32
    }
}

/// A relay's number in the table, or that of a set being loaded. Good until it is dropped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Number(u16);

#[derive(Debug, Default)]
struct Slot {
    /// Whose claims these are, once they are shown.
    relay: Option<RelayId>,
    claims: usize,
    dead: bool,
}

/// The table holds as many claims as it may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug)]
pub(crate) struct Table {
    claims: HashTable<Claim>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    dead: usize,
    max: usize,
    key: u64,
}

impl Table {
    /// `seed` keeps others from choosing hashes that crowd one place of the table.
    pub fn new(max: usize, seed: u64) -> Self {
        Self { claims: HashTable::new(), slots: Vec::new(), free: Vec::new(), dead: 0, max, key: seed }
    }

    /// A hidden number without claims. `None` if all are taken.
    pub fn open(&mut self) -> Option<Number> {
        if self.free.is_empty() && self.slots.len() > usize::from(u16::MAX) {
            self.sweep();
        }
        if let Some(number) = self.free.pop() {
            return Some(Number(number));
        }
        let number = u16::try_from(self.slots.len()).ok()?;
        self.slots.push(Slot::default());
        Some(Number(number))
    }

    pub fn show(&mut self, number: &Number, relay: &RelayId) {
        self.slots[usize::from(number.0)].relay = Some(relay.clone());
    }

    pub fn drop_number(&mut self, number: Number) {
        let slot = &mut self.slots[usize::from(number.0)];
        slot.relay = None;
        if slot.claims == 0 {
            self.free.push(number.0);
            return;
        }
        slot.dead = true;
        self.dead += slot.claims;
        if self.dead > SWEEP_MIN + self.len() / 4 {
            self.sweep();
        }
    }

    pub fn apply(&mut self, number: &Number, change: Change) -> Result<(), Full> {
        if change.is_claim() { self.claim(number, change.hash()) } else { self.withdraw(number, change.hash()) }
    }

    pub fn claim(&mut self, number: &Number, hash: UserHash) -> Result<(), Full> {
        let claim = Claim::new(Number(number.0), hash);
        let (key, full) = (self.key, self.len() >= self.max);
        let same = |other: &Claim| other.hash == claim.hash && other.number == claim.number;
        match self.claims.entry(mix(key, claim.hash()), same, |other| mix(key, other.hash())) {
            // Past 65,535 users of one hash the count sticks: nothing honest comes near.
            Entry::Occupied(mut entry) => entry.get_mut().users = entry.get().users.saturating_add(1),
            Entry::Vacant(_) if full => return Err(Full),
            Entry::Vacant(entry) => {
                entry.insert(claim);
                self.slots[usize::from(number.0)].claims += 1;
            }
        }
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps, reason = "the pair of `claim`")]
    fn withdraw(&mut self, number: &Number, hash: UserHash) -> Result<(), Full> {
        let claim = Claim::new(Number(number.0), hash);
        let same = |other: &Claim| other.hash == claim.hash && other.number == claim.number;
        if let Ok(mut entry) = self.claims.find_entry(mix(self.key, claim.hash()), same) {
            if entry.get().users > 1 {
                entry.get_mut().users -= 1;
            } else {
                entry.remove();
                self.slots[usize::from(number.0)].claims -= 1;
            }
        }
        Ok(())
    }

    pub fn holders(&self, hash: UserHash) -> impl Iterator<Item = &RelayId> {
        let found = self.claims.iter_hash(mix(self.key, hash.get()));
        found
            .filter(move |claim| claim.hash() == hash.get())
            .filter_map(|c| self.slots[usize::from(c.number)].relay.as_ref())
    }

    /// Users of this hash at this relay.
    #[cfg(test)]
    pub fn users(&self, relay: &RelayId, hash: UserHash) -> u16 {
        let of = |claim: &&Claim| {
            claim.hash() == hash.get() && self.slots[usize::from(claim.number)].relay.as_ref() == Some(relay)
        };
        self.claims.iter_hash(mix(self.key, hash.get())).find(of).map_or(0, |claim| claim.users)
    }

    /// Claims that are not dead.
    /// Claims under one number.
    pub fn claims(&self, number: &Number) -> usize {
        self.slots[usize::from(number.0)].claims
    }

    pub fn len(&self) -> usize {
        self.claims.len() - self.dead
    }

    pub fn bytes(&self) -> usize {
        self.claims.allocation_size() + self.slots.capacity() * size_of::<Slot>() + self.free.capacity() * 2
    }

    fn sweep(&mut self) {
        let slots = &self.slots;
        self.claims.retain(|claim| !slots[usize::from(claim.number)].dead);
        if self.claims.len() * 4 < self.claims.capacity() {
            let key = self.key;
            self.claims.shrink_to(self.claims.len() * 2, |claim| mix(key, claim.hash()));
        }
        for (number, slot) in (0..=u16::MAX).zip(&mut self.slots) {
            if slot.dead {
                *slot = Slot::default();
                self.free.push(number);
            }
        }
        self.dead = 0;
    }
}

/// The finalizer of splitmix64 over the keyed hash: every bit of the table's index depends on every bit of the key.
fn mix(key: u64, hash: u64) -> u64 {
    let mut z = hash ^ key;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(n: usize) -> RelayId {
        format!("eu/eu-{n}").parse().unwrap()
    }

    fn holders(table: &Table, hash: u64) -> Vec<String> {
        let mut found: Vec<_> = table.holders(UserHash::raw(hash)).map(ToString::to_string).collect();
        found.sort();
        found
    }

    #[test]
    fn two_users_with_one_hash_are_two() {
        let mut table = Table::new(100, 7);
        let number = table.open().unwrap();
        table.show(&number, &relay(1));
        for _ in 0..2 {
            table.claim(&number, UserHash::raw(10)).unwrap();
        }
        table.withdraw(&number, UserHash::raw(10)).unwrap();
        assert_eq!((holders(&table, 10), table.len()), (vec!["eu/eu-1".to_owned()], 1));
        table.withdraw(&number, UserHash::raw(10)).unwrap();
        table.withdraw(&number, UserHash::raw(10)).unwrap();
        assert_eq!((holders(&table, 10).len(), table.len()), (0, 0));
    }

    #[test]
    fn a_hidden_set_is_not_seen_and_dropped_numbers_come_back() {
        let mut table = Table::new(1 << 20, 7);
        let (shown, hidden) = (table.open().unwrap(), table.open().unwrap());
        table.show(&shown, &relay(1));
        for hash in 0..5000 {
            table.claim(&shown, UserHash::raw(hash * 2)).unwrap();
            table.claim(&hidden, UserHash::raw(hash * 2)).unwrap();
        }
        assert_eq!(holders(&table, 8), ["eu/eu-1"]);
        table.show(&hidden, &relay(2));
        table.drop_number(shown);
        assert_eq!((holders(&table, 8), table.len()), (vec!["eu/eu-2".to_owned()], 5000));
        assert_eq!((table.dead, table.claims.len()), (0, 5000), "swept");
        assert_eq!(table.open(), Some(Number(0)));
    }

    #[test]
    fn numbers_run_out_without_harm() {
        let mut table = Table::new(1 << 20, 7);
        let mut numbers: Vec<Number> = std::iter::from_fn(|| table.open()).collect();
        assert_eq!(numbers.len(), 65_536);
        let last = numbers.pop().unwrap();
        table.claim(&last, UserHash::raw(2)).unwrap();
        table.drop_number(last);
        assert_eq!(table.open(), Some(Number(65_535)), "found by a sweep");
        assert_eq!(table.open(), None);
    }

    #[test]
    fn a_full_table_refuses_new_claims_only() {
        let mut table = Table::new(1, 7);
        let number = table.open().unwrap();
        assert_eq!(table.claim(&number, UserHash::raw(2)), Ok(()));
        assert_eq!(table.claim(&number, UserHash::raw(4)), Err(Full));
        assert_eq!(table.claim(&number, UserHash::raw(2)), Ok(()));
    }
}
