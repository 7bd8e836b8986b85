//! The members that are up, and the newest that was heard of each. Shared with foca's callbacks, which ask it whether an
//! item is news; the lock is never contended, because foca calls back only within our own calls.

use crate::broadcast::{ClaimsItem, HeadItem, Item, StatusItem};
use crate::{Identity, PresenceScope, Status};
use godwit_wire::RelayId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A relay that is up, as far as this one knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub identity: Identity,
    /// Unknown until the first packet or item of the relay arrives.
    pub status: Option<Status>,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    status_version: u64,
    /// The highest version of its claims that an item told of.
    head: u64,
}

#[derive(Debug)]
pub(crate) struct Roster {
    me: RelayId,
    scope: PresenceScope,
    members: BTreeMap<RelayId, Entry>,
    heard: Vec<Item>,
}

#[derive(Clone, Debug)]
pub(crate) struct SharedRoster(Arc<Mutex<Roster>>);

impl SharedRoster {
    pub fn new(me: RelayId, scope: PresenceScope) -> Self {
        Self(Arc::new(Mutex::new(Roster { me, scope, members: BTreeMap::new(), heard: Vec::new() })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Roster> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roster {
    /// The relay is up under this identity. Gives the process that it replaced, if that was up.
    pub fn up(&mut self, identity: &Identity) -> Option<Identity> {
        if let Some(entry) = self.entry(identity.relay(), identity.epoch()) {
            entry.member.identity = identity.clone();
            return None;
        }
        let member = Member { identity: identity.clone(), status: None };
        let entry = Entry { member, status_version: 0, head: 0 };
        self.members.insert(identity.relay().clone(), entry).map(|old| old.member.identity)
    }

    pub fn down(&mut self, relay: &RelayId) {
        self.members.remove(relay);
    }

    pub fn contains(&self, relay: &RelayId) -> bool {
        self.members.contains_key(relay)
    }

    pub fn members(&self) -> Vec<Member> {
        self.members.values().map(|entry| entry.member.clone()).collect()
    }

    pub fn member(&self, relay: &RelayId) -> Option<Member> {
        self.members.get(relay).map(|entry| entry.member.clone())
    }

    /// Whether claims go to and come from this relay.
    pub fn in_scope(&self, relay: &RelayId) -> bool {
        self.scope == PresenceScope::Cluster || relay.region() == self.me.region()
    }

    /// Whether anyone is up who may hear of our claims.
    pub fn audience(&self) -> bool {
        self.members.keys().any(|relay| self.in_scope(relay))
    }

    /// Whether an item is news, to be acted on and passed on. Items about relays that are not up are not: nothing would
    /// bound them, and a relay that comes up is asked anyway.
    pub fn hear(&mut self, item: Item) -> bool {
        let news = match &item {
            Item::Claims(claims @ ClaimsItem { relay, epoch, .. }) => self.hear_head(relay, *epoch, claims.last()),
            Item::Head(HeadItem { relay, epoch, version }) => self.hear_head(relay, *epoch, *version),
            Item::Status(StatusItem { relay, epoch, version, status }) => {
                self.hear_status(relay, *epoch, *version, *status)
            }
        };
        if news {
            self.heard.push(item);
        }
        news
    }

    fn entry(&mut self, relay: &RelayId, epoch: u64) -> Option<&mut Entry> {
        self.members.get_mut(relay).filter(|entry| entry.member.identity.epoch() == epoch)
    }

    fn hear_head(&mut self, relay: &RelayId, epoch: u64, version: u64) -> bool {
        if !self.in_scope(relay) {
            return false;
        }
        let Some(entry) = self.entry(relay, epoch).filter(|entry| entry.head < version) else { return false };
        entry.head = version;
        true
    }

    fn hear_status(&mut self, relay: &RelayId, epoch: u64, version: u64, status: Status) -> bool {
        let Some(entry) = self.entry(relay, epoch).filter(|entry| entry.status_version < version) else { return false };
        entry.status_version = version;
        entry.member.status = Some(status);
        true
    }

    /// The relay itself says how it is doing, 0 for not at all yet: believed over what others told of it.
    pub fn hear_status_itself(&mut self, relay: &RelayId, epoch: u64, version: u64, status: Status) -> bool {
        let Some(entry) = self.entry(relay, epoch).filter(|entry| version != 0 && entry.status_version != version)
        else {
            return false;
        };
        entry.status_version = version;
        entry.member.status = Some(status);
        true
    }

    /// The relay itself said how far its claims go, so a higher version that somebody told was an error. A lower one stays:
    /// what was learnt by a pull is still news to be passed on when an item tells it.
    pub fn correct_head(&mut self, relay: &RelayId, version: u64) {
        if let Some(entry) = self.members.get_mut(relay) {
            entry.head = entry.head.min(version);
        }
    }

    pub fn take_heard(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Versions};

    #[test]
    fn what_a_pull_taught_is_still_passed_on() {
        let versions = Versions { min: 1, max: 1 };
        let relay: RelayId = "eu/eu-2".parse().unwrap();
        let identity = Identity::new(relay.clone(), ([10, 0, 0, 2], 443).into(), 1, versions, Kind::Edge);
        let roster = SharedRoster::new("eu/eu-1".parse().unwrap(), PresenceScope::Cluster);
        let mut roster = roster.lock();
        let head = |version| Item::Head(HeadItem { relay: relay.clone(), epoch: 1, version });
        assert!(!roster.hear(head(1)), "not up");
        assert!(roster.up(&identity).is_none());
        assert!(roster.hear(head(5)) && !roster.hear(head(5)));
        roster.correct_head(&relay, 9);
        assert!(roster.hear(head(7)), "others may not have pulled");
        assert!(roster.hear(head(u64::MAX)));
        roster.correct_head(&relay, 9);
        assert!(roster.hear(head(10)), "a head that never was is forgotten");
    }
}
