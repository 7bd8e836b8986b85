//! This relay's own claims: counted by user, numbered by change, told in items or as a mere head.

use crate::Config;
use crate::broadcast::{ClaimsItem, HeadItem, Item};
use crate::hash::{Change, UserHash};
use crate::page::{PAGE_CLAIMS, Pages};
use godwit_wire::{RelayId, UserId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Changes kept for relays that fell behind. Who is further behind gets a snapshot.
const LOG_CHANGES: usize = 65_536;
/// Items in foca's backlog for each flush between two of ours: a busy cluster hears from each relay less often.
const BACKLOG_PER_FLUSH: usize = 16;
/// Items in foca's backlog at which ours may be half as long: what waits must fit few packets, or it takes longer than a
/// window to reach everyone.
const BACKLOG_HALVES: usize = 8;

#[derive(Debug)]
pub(crate) struct OwnClaims {
    relay: RelayId,
    epoch: u64,
    /// Devices of each user, by the user and not by the hash: two users with one hash are two.
    users: BTreeMap<UserId, u32>,
    /// Users of each hash.
    hashes: BTreeMap<UserHash, u32>,
    /// The number of the last change.
    version: u64,
    /// The last changes, up to `version`.
    log: VecDeque<Change>,
    /// The version of the last item or head.
    told: u64,
    /// The version that was told one window ago, so that everybody should have heard of it.
    settled: u64,
    /// The versions told since, one a flush.
    window: VecDeque<u64>,
    window_ticks: usize,
    item_changes: usize,
    /// Flushes since the last item or head.
    quiet: usize,
    snapshot: Option<(u64, Arc<[UserHash]>)>,
}

impl OwnClaims {
    pub fn new(relay: RelayId, epoch: u64, config: &Config) -> Self {
        Self {
            relay,
            epoch,
            users: BTreeMap::new(),
            hashes: BTreeMap::new(),
            version: 0,
            log: VecDeque::new(),
            told: 0,
            settled: 0,
            window: VecDeque::new(),
            window_ticks: config.window_ticks(),
            item_changes: config.item_changes(),
            quiet: 0,
            snapshot: None,
        }
    }

    pub fn settled(&self) -> u64 {
        self.settled
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// The relay goes by a new identity; says whether its epoch is another. The claims and the numbers of their changes
    /// stay; others start at nothing with a new epoch, see a gap and pull.
    pub fn set_epoch(&mut self, epoch: u64) -> bool {
        std::mem::replace(&mut self.epoch, epoch) != epoch
    }

    /// A device of the user connected. Says whether that changed the claims.
    pub fn claim(&mut self, user: &UserId) -> bool {
        if let Some(devices) = self.users.get_mut(user) {
            *devices += 1;
            return false;
        }
        self.users.insert(user.clone(), 1);
        let hash = UserHash::of(user);
        *self.hashes.entry(hash).or_insert(0) += 1;
        self.push(Change::claim(hash));
        true
    }

    /// A device of the user went. Says whether that changed the claims; it does not if none was there.
    pub fn withdraw(&mut self, user: &UserId) -> bool {
        let Some(devices) = self.users.get_mut(user) else { return false };
        *devices -= 1;
        if *devices > 0 {
            return false;
        }
        self.users.remove(user);
        let hash = UserHash::of(user);
        if let Some(users) = self.hashes.get_mut(&hash) {
            *users -= 1;
            if *users == 0 {
                self.hashes.remove(&hash);
            }
        }
        self.push(Change::withdraw(hash));
        true
    }

    fn push(&mut self, change: Change) {
        self.version += 1;
        if self.log.len() == LOG_CHANGES {
            self.log.pop_front();
        }
        self.log.push_back(change);
    }

    /// Whether there is still something to flush, or to count as told.
    pub fn busy(&self) -> bool {
        self.settled < self.version
    }

    /// One flush. An item holds every change of the last window, so whoever hears of this relay once in a window has no
    /// gap, and each item makes the one before pointless. If they do not fit one item it is a storm, here or everywhere:
    /// only the head is told, and who lacks the changes pulls them.
    pub fn flush(&mut self, backlog: usize) -> Option<Item> {
        self.window.push_back(self.told);
        if self.window.len() > self.window_ticks {
            self.settled = self.window.pop_front().unwrap_or(self.settled);
        }
        self.quiet += 1;
        if self.told == self.version || self.quiet <= backlog / BACKLOG_PER_FLUSH {
            return None;
        }
        let (relay, epoch) = (self.relay.clone(), self.epoch);
        let first = self.settled + 1;
        let fit = self.item_changes / (1 + backlog / BACKLOG_HALVES);
        let item = match self.since(self.settled) {
            Some(changes) if changes.len() <= fit => {
                Item::Claims(ClaimsItem { relay, epoch, first, changes: changes.copied().collect() })
            }
            _ => Item::Head(HeadItem { relay, epoch, version: self.version }),
        };
        self.told = self.version;
        self.quiet = 0;
        Some(item)
    }

    /// The changes after `since`, if they are still in the log.
    fn since(&self, since: u64) -> Option<impl ExactSizeIterator<Item = &Change>> {
        let behind = usize::try_from(self.version.checked_sub(since)?).ok()?;
        Some(self.log.range(self.log.len().checked_sub(behind)?..))
    }

    pub fn pages(&mut self, epoch: u64, since: u64) -> Pages {
        // Numbers of another epoch mean nothing here.
        let since = if epoch == self.epoch && since <= self.version { since } else { 0 };
        // Many changes that left few claims are told by the claims.
        let short = self.users.len().max(PAGE_CLAIMS);
        if let Some(changes) = self.since(since).filter(|changes| changes.len() <= short) {
            let changes = changes.copied().collect();
            return Pages { epoch: self.epoch, snapshot: None, first: since + 1, changes, done: false };
        }
        // A snapshot serves as long as the log leads on from it: when a thousand relays pull at once they share it.
        let kept = self.snapshot.take().filter(|(version, _)| self.since(*version).is_some());
        let (version, claims) = kept.unwrap_or_else(|| (self.version, self.all()));
        self.snapshot = Some((version, claims.clone()));
        let changes = self.since(version).into_iter().flatten().copied().collect();
        let snapshot = Some((version, claims, 0));
        Pages { epoch: self.epoch, snapshot, first: version + 1, changes, done: false }
    }

    fn all(&self) -> Arc<[UserHash]> {
        self.hashes.iter().flat_map(|(&hash, &users)| std::iter::repeat_n(hash, users as usize)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Part;

    fn user(n: usize) -> UserId {
        format!("user{n}@eu").parse().unwrap()
    }

    fn own() -> OwnClaims {
        OwnClaims::new("eu/eu-1".parse().unwrap(), 1, &Config::wan())
    }

    fn ranges(own: &mut OwnClaims, epoch: u64, since: u64) -> (Option<u64>, usize, u64, usize) {
        let (mut snapshot, mut claims, mut first, mut changed) = (None, 0, 0, 0);
        let pages: Vec<_> = own.pages(epoch, since).collect();
        assert!(pages.iter().rev().skip(1).all(|page| !page.last) && pages.last().unwrap().last);
        for page in pages {
            assert!(page.encode().len() < 33_000);
            match page.part {
                Part::Snapshot { version, hashes } => (snapshot, claims) = (Some(version), claims + hashes.len()),
                Part::Changes { first: f, changes } => {
                    first = if first == 0 { f } else { first };
                    changed += changes.len();
                }
            }
        }
        (snapshot, claims, first, changed)
    }

    #[test]
    fn only_the_first_device_and_the_last_are_changes() {
        let mut own = own();
        assert!(own.claim(&user(1)) && !own.claim(&user(1)));
        assert!(!own.withdraw(&user(1)) && own.withdraw(&user(1)) && !own.withdraw(&user(1)));
        assert_eq!((own.version, own.len(), own.hashes.len()), (2, 0, 0));
    }

    #[test]
    fn items_repeat_the_window_then_fall_silent() {
        let mut own = own();
        own.claim(&user(1));
        let Some(Item::Claims(item)) = own.flush(0) else { panic!("no item") };
        assert_eq!((item.first, item.last()), (1, 1));
        own.claim(&user(2));
        let Some(Item::Claims(item)) = own.flush(0) else { panic!("no item") };
        assert_eq!((item.first, item.last()), (1, 2));
        assert!((0..30).all(|_| own.flush(0).is_none()) && !own.busy() && own.settled() == 2);
        own.withdraw(&user(2));
        let Some(Item::Claims(item)) = own.flush(0) else { panic!("no item") };
        assert_eq!((item.first, item.last()), (3, 3));
    }

    #[test]
    fn an_item_fits_beside_the_longest_header_and_more_is_a_head() {
        let relay: RelayId = format!("{}/{}", "r".repeat(16), "n".repeat(32)).parse().unwrap();
        let mut own = OwnClaims::new(relay, u64::MAX, &Config::wan());
        (0..own.item_changes).for_each(|n| assert!(own.claim(&user(n))));
        let item = own.flush(0).unwrap();
        assert!(matches!(item, Item::Claims(_)) && item.encode().len() < 1200 - 200, "{}", item.encode().len());
        own.claim(&user(9999));
        assert!(matches!(own.flush(0), Some(Item::Head(head)) if head.version == own.version));
    }

    #[test]
    fn a_busy_cluster_hears_from_us_less_often() {
        let mut own = own();
        let told = (0..100).filter(|&n| {
            own.claim(&user(n));
            own.flush(160).is_some()
        });
        assert_eq!(told.count(), 9);
    }

    #[test]
    fn a_pull_brings_changes_or_a_snapshot_in_pages() {
        let mut own = own();
        assert_eq!(ranges(&mut own, 1, 0), (None, 0, 1, 0));
        (0..70_000).for_each(|n| assert!(own.claim(&user(n))));
        assert_eq!(ranges(&mut own, 1, 69_990), (None, 0, 69_991, 10));
        assert_eq!(ranges(&mut own, 1, 0), (Some(70_000), 70_000, 70_001, 0), "older than the log");
        own.withdraw(&user(1));
        assert_eq!(ranges(&mut own, 1, 0), (Some(70_000), 70_000, 70_001, 1), "the snapshot is shared");
        assert_eq!(ranges(&mut own, 7, 70_000), (Some(70_000), 70_000, 70_001, 1), "another epoch's number");
        assert_eq!(ranges(&mut own, 1, 80_000).0, Some(70_000), "a number that never was");
        (2..69_990).for_each(|n| assert!(own.withdraw(&user(n))));
        assert_eq!(ranges(&mut own, 1, 100_000), (Some(139_989), 11, 139_990, 0), "shorter than the changes");
    }
}
