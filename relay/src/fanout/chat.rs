//! One chat in delivery: how far it was fanned out, who is still to take it, how far everybody got.

use crate::store::{ChatProgress, Floor, Watermark};
use godwit_wire::frame::Receipt;
use godwit_wire::{ChatId, DeviceId, RegionId, Seq, UserId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// How far the slowest took, and read, a chat.
pub(super) type Floors = (Option<Floor>, Option<Floor>);

/// A chat is here from its first entry, or acknowledgement, until nothing of it is open.
#[derive(Debug, Default)]
pub(super) struct ChatFan {
    /// The last entry that was fanned out; none if there was none since the chat is here.
    pub(super) fanned: Option<Seq>,
    /// The first entry that was fanned out since the chat is here.
    first: Option<Seq>,
    /// The head of the log as it was when the watermarks were loaded.
    head: Option<Seq>,
    /// Devices that were pushed entries which no inbox row stands for.
    pub(super) waiting: HashSet<DeviceId>,
    /// Inbox rows being written: the ticket of the write, and the first entry the row stands for. Ascending tickets.
    pub(super) begun: Vec<(u64, Seq)>,
    /// How far each participant got; only what was heard here until it is loaded.
    watermarks: BTreeMap<UserId, Watermark>,
    pub(super) loaded: Loaded,
    changed: HashSet<UserId>,
    /// Users who wait to hear how far their entries got, with the last of these.
    authors: HashMap<UserId, Seq>,
    told: HashMap<UserId, Receipt>,
    /// The last entry from before the chat was here. Who wrote those is not known.
    before: Option<Seq>,
    /// How far everybody got when receipts were told last.
    told_floors: Floors,
    /// Of a copy: how far everybody got, as the chat's home says.
    copied: Option<Floors>,
    /// Of a copy: users who got further than the chat's home knows.
    untold: HashSet<UserId>,
    /// How far everybody got, as each other region was told last.
    regions_told: HashMap<RegionId, Floors>,
    /// Some region may not know how far everybody got.
    regions_due: bool,
    /// Regions that are being told.
    telling: HashSet<RegionId>,
    receipts_due: bool,
    saved: Option<Seq>,
    /// When something happened last, on fan-out's clock.
    pub(super) active_millis: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Loaded {
    #[default]
    No,
    Asked,
    Yes,
}

impl ChatFan {
    /// The last entry that is known to exist.
    pub(super) fn known_head(&self) -> Option<Seq> {
        self.fanned.max(self.head)
    }

    pub(super) fn author(&mut self, user: UserId, seq: Seq) {
        self.first.get_or_insert(seq);
        self.authors.insert(user, seq);
    }

    /// `copied` is what is known of a chat whose home is another region.
    pub(super) fn load(
        &mut self,
        own: &RegionId,
        head: Option<Seq>,
        all: BTreeMap<UserId, Watermark>,
        copied: Option<Floors>,
    ) {
        let first = self.head.is_none();
        self.head = self.head.max(head);
        let heard = std::mem::replace(&mut self.watermarks, all);
        let news = self.copied.take();
        self.copied = copied;
        if first && self.copied.is_some() {
            // A former run may have died before it told the chat's home.
            self.untold.extend(self.watermarks.keys().filter(|user| user.is_home(own)).cloned());
        }
        if first {
            self.before = self.first.map_or(head, |first| first.prev().min(head));
            self.told_floors = self.floors();
        } else if head > self.fanned {
            // Committed by another relay that shares the store.
            self.before = self.before.max(head);
        }
        if news.is_some() {
            self.copied = news;
        }
        for (user, mark) in heard {
            if let Some(known) = self.watermarks.get_mut(&user) {
                known.rise(mark);
            }
        }
        self.loaded = Loaded::Yes;
        (self.receipts_due, self.regions_due) = (true, true);
    }

    /// A user took, or read, everything up to `up_to`.
    pub(super) fn reached(&mut self, user: &UserId, up_to: Seq, read: bool, copy: bool) {
        let mark = self.watermarks.entry(user.clone()).or_default();
        let before = *mark;
        mark.delivered = mark.delivered.max(Some(up_to));
        if read {
            mark.read = mark.read.max(Some(up_to));
        }
        if *mark != before {
            self.changed.insert(user.clone());
            (self.receipts_due, self.regions_due) = (true, true);
            if copy {
                self.untold.insert(user.clone());
            }
        }
    }

    fn floors(&self) -> Floors {
        if let Some(copied) = &self.copied {
            return copied.clone();
        }
        (
            Floor::of(self.watermarks.iter().map(|(user, mark)| (user, mark.delivered))),
            Floor::of(self.watermarks.iter().map(|(user, mark)| (user, mark.read))),
        )
    }

    /// Receipts that changed since they were told last. Authors whose last entry everybody has read are done.
    pub(super) fn receipts(&mut self) -> Vec<(UserId, Receipt)> {
        if self.loaded != Loaded::Yes || !std::mem::take(&mut self.receipts_due) {
            return Vec::new();
        }
        let floors = self.floors();
        let receipt = |(delivered, read): &Floors, user: &UserId| {
            let without = |floor: &Option<Floor>| floor.as_ref().and_then(|floor| floor.without(user));
            Receipt { delivered: without(delivered), read: without(read) }
        };
        let mut news = Vec::new();
        for user in self.authors.keys() {
            let receipt = receipt(&floors, user);
            if receipt != Receipt::default() && self.told.get(user) != Some(&receipt) {
                news.push((user.clone(), receipt));
            }
        }
        // Everybody else may have written what came before the chat was here.
        let before = self.before;
        let of_before = |receipt: Receipt| (receipt.delivered.min(before), receipt.read.min(before));
        for user in self.watermarks.keys().filter(|user| !self.authors.contains_key(*user)) {
            let now = receipt(&floors, user);
            if of_before(now) != of_before(receipt(&self.told_floors, user)) {
                news.push((user.clone(), now));
            }
        }
        self.told_floors = floors;
        for (user, receipt) in &news {
            let Some(last) = self.authors.get(user) else { continue };
            if receipt.read >= Some(*last) {
                self.authors.remove(user);
                self.told.remove(user);
            } else {
                self.told.insert(user.clone(), *receipt);
            }
        }
        news
    }

    /// The chat's home says how far everybody got.
    pub(super) fn set_floors(&mut self, floors: Floors) {
        self.copied = Some(floors);
        self.receipts_due = true;
    }

    /// Of a copy: how far users got, where the chat's home does not know it.
    pub(super) fn untold(&self) -> Vec<(UserId, Watermark)> {
        self.untold.iter().filter_map(|user| Some((user.clone(), *self.watermarks.get(user)?))).collect()
    }

    /// Regions other than `own` that do not know how far everybody got, with that.
    pub(super) fn floors_to_tell(&mut self, own: &RegionId) -> Option<(BTreeSet<RegionId>, Floors)> {
        if self.loaded != Loaded::Yes || !self.regions_due {
            return None;
        }
        let floors = self.floors();
        let homes = self.watermarks.keys().filter(|user| !user.is_home(own)).map(UserId::home);
        let mut regions: BTreeSet<RegionId> =
            homes.filter(|region| self.regions_told.get(region) != Some(&floors)).collect();
        // Asked again until each was told, or there is nothing to tell.
        self.regions_due = !regions.is_empty() && floors != Floors::default();
        regions.retain(|region| !self.telling.contains(region));
        (self.regions_due && !regions.is_empty()).then_some((regions, floors))
    }

    pub(super) fn is_telling(&self, region: &RegionId) -> bool {
        self.telling.contains(region)
    }

    /// A region is being told.
    pub(super) fn telling(&mut self, region: &RegionId) {
        self.telling.insert(region.clone());
    }

    /// A region was told how far everybody got, or was not.
    pub(super) fn told_floors(&mut self, region: &RegionId, floors: Option<Floors>) {
        self.telling.remove(region);
        if let Some(floors) = floors {
            self.regions_told.insert(region.clone(), floors);
        }
    }

    /// The chat's home was told how far users got, or was not.
    pub(super) fn told_marks(&mut self, home: &RegionId, told: &[(UserId, Watermark)]) {
        self.telling.remove(home);
        for (user, mark) in told {
            if self.watermarks.get(user) == Some(mark) {
                self.untold.remove(user);
            }
        }
    }

    /// Another region is still to be told something.
    pub(super) fn is_owed(&self) -> bool {
        !self.untold.is_empty() || !self.telling.is_empty()
    }

    /// Nothing is pushed without a row, and no row is being written.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.begun.is_empty()
    }

    /// What to save now, if there is anything. `first_open` is the oldest entry that a waiting device has not taken.
    pub(super) fn progress(&mut self, chat: &ChatId, first_open: Option<Seq>) -> Option<ChatProgress> {
        let writing = self.begun.iter().map(|(_, first)| *first).min();
        let unsettled = match (first_open, writing) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let settled = match (self.fanned, unsettled) {
            (Some(fanned), Some(open)) => open.prev().min(Some(fanned)),
            (fanned, None) => fanned,
            (None, Some(_)) => None,
        };
        if settled <= self.saved && self.changed.is_empty() {
            return None;
        }
        self.saved = self.saved.max(settled);
        let changed = self.changed.drain();
        let marks = changed.filter_map(|user| self.watermarks.get(&user).map(|mark| (user, *mark))).collect();
        let (delivered, read) = if self.loaded == Loaded::Yes { self.floors() } else { (None, None) };
        Some(ChatProgress { chat: chat.clone(), settled, watermarks: marks, delivered, read })
    }

    /// How many entries lie behind what was saved last.
    pub(super) fn lag(&self) -> u64 {
        self.fanned.map_or(0, Seq::get) - self.saved.map_or(0, Seq::get).min(self.fanned.map_or(0, Seq::get))
    }
}
