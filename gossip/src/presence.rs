//! What other relays claim, and how far each is known: items and heads come from gossip, the rest is pulled.
//!
//! A relay's changes are applied in order and without gaps. Whoever hears of changes that do not follow on what it knows
//! pulls, one pull a relay at a time, with a rest after each.

use crate::Config;
use crate::broadcast::{ClaimsItem, HeadItem};
use crate::hash::{Change, UserHash};
use crate::page::{ClaimsPage, PAGE_CLAIMS, Part};
use crate::table::{Full, Number, Table};
use godwit_wire::{RelayId, UserId};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;

/// Why a page was refused. What was known before stays, except with [`PageError::Full`]; the pull counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("no pull from this relay is going on")]
    NotAsked,
    #[error("the page is of another epoch")]
    Epoch,
    #[error("the page does not follow on what is known")]
    Order,
    #[error("the page is larger than allowed")]
    TooLarge,
    #[error("the claims of this relay do not fit")]
    Full,
}

/// How a pull goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    Done,
}

/// What presence wants done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Pull {
        relay: RelayId,
        epoch: u64,
        since: u64,
    },
    /// Come back with the number after this time.
    Wait {
        relay: RelayId,
        token: u64,
        after: Duration,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pull {
    Idle,
    /// Under way; `wanted` is what was known to exist when it began.
    Asked {
        wanted: u64,
    },
    /// Not before the timer with this number.
    Resting {
        token: u64,
    },
}

#[derive(Debug)]
struct Peer {
    epoch: u64,
    /// Every change up to here is in the table. `None` until it is known whether there are any.
    version: Option<u64>,
    /// Changes up to here are said to exist.
    wanted: u64,
    number: Number,
    /// A snapshot on its way in: hidden until it is complete.
    loading: Option<(Number, u64)>,
    pull: Pull,
    failures: u32,
}

impl Peer {
    fn known(&self) -> u64 {
        self.version.unwrap_or(0)
    }

    fn lacks(&self) -> bool {
        self.version.is_none() || self.wanted > self.known()
    }
}

#[derive(Debug)]
pub(crate) struct Presence {
    table: Table,
    peers: BTreeMap<RelayId, Peer>,
    rng: SmallRng,
    tokens: u64,
    rest: Duration,
    retry: (Duration, Duration),
    pub wants: Vec<Want>,
}

impl Presence {
    pub fn new(config: &Config, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        Self {
            table: Table::new(config.claims_max, rng.random()),
            peers: BTreeMap::new(),
            rng,
            tokens: 0,
            rest: config.pull_rest,
            retry: config.pull_retry,
            wants: Vec::new(),
        }
    }

    pub fn holders(&self, user: &UserId) -> impl Iterator<Item = &RelayId> + use<'_> {
        self.table.holders(UserHash::of(user))
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// The process whose claims are kept.
    pub fn epoch(&self, relay: &RelayId) -> Option<u64> {
        Some(self.peers.get(relay)?.epoch)
    }

    /// How far a relay's claims are known.
    pub fn version(&self, relay: &RelayId) -> Option<u64> {
        self.peers.get(relay)?.version
    }

    /// A process that was not known before is up. Its claims are pulled in a moment, unless it says first that it has
    /// none. The moment spreads out the pulls of all the others.
    pub fn up(&mut self, relay: &RelayId, epoch: u64) {
        self.down(relay);
        // 65,536 numbers are more than twice the members allowed.
        let Some(number) = self.table.open() else { return };
        self.table.show(&number, relay);
        let peer = Peer { epoch, version: None, wanted: 0, number, loading: None, pull: Pull::Idle, failures: 0 };
        self.peers.insert(relay.clone(), peer);
        let after = self.rng.random_range(Duration::ZERO..=self.rest);
        self.wait(relay, after);
    }

    pub fn down(&mut self, relay: &RelayId) {
        let Some(peer) = self.peers.remove(relay) else { return };
        self.table.drop_number(peer.number);
        if let Some((number, _)) = peer.loading {
            self.table.drop_number(number);
        }
    }

    pub fn item(&mut self, item: &ClaimsItem) {
        let Some(peer) = self.peers.get_mut(&item.relay).filter(|peer| peer.epoch == item.epoch) else { return };
        peer.wanted = peer.wanted.max(item.last());
        match apply(&mut self.table, peer, item.first, &item.changes) {
            Ok(()) => {}
            Err(PageError::Full) => self.overflow(&item.relay),
            Err(_) => self.ask(&item.relay),
        }
    }

    pub fn head(&mut self, item: &HeadItem) {
        let Some(peer) = self.peers.get_mut(&item.relay).filter(|peer| peer.epoch == item.epoch) else { return };
        peer.wanted = peer.wanted.max(item.version);
        self.ask(&item.relay);
    }

    /// The relay itself says which version everybody should have heard of.
    pub fn settled(&mut self, relay: &RelayId, epoch: u64, version: u64) {
        let Some(peer) = self.peers.get_mut(relay).filter(|peer| peer.epoch == epoch) else { return };
        if version == 0 {
            // Nothing is settled: whatever it claims is recent and comes with its items from the first on.
            peer.version.get_or_insert(0);
        } else if version > peer.known() {
            peer.wanted = peer.wanted.max(version);
            self.ask(relay);
        }
    }

    /// Pulls, if something is missing and no pull is going on or resting.
    fn ask(&mut self, relay: &RelayId) {
        let Some(peer) = self.peers.get_mut(relay) else { return };
        if peer.pull == Pull::Idle && peer.lacks() {
            peer.pull = Pull::Asked { wanted: peer.wanted };
            self.wants.push(Want::Pull { relay: relay.clone(), epoch: peer.epoch, since: peer.known() });
        }
    }

    fn wait(&mut self, relay: &RelayId, after: Duration) {
        self.tokens += 1;
        if let Some(peer) = self.peers.get_mut(relay) {
            peer.pull = Pull::Resting { token: self.tokens };
            self.wants.push(Want::Wait { relay: relay.clone(), token: self.tokens, after });
        }
    }

    pub fn timer(&mut self, relay: &RelayId, token: u64) {
        let Some(peer) = self.peers.get_mut(relay) else { return };
        if peer.pull == (Pull::Resting { token }) {
            peer.pull = Pull::Idle;
            self.ask(relay);
        }
    }

    pub fn page(&mut self, relay: &RelayId, page: ClaimsPage) -> Result<Progress, PageError> {
        let Some(peer) = self.peers.get_mut(relay) else { return Err(PageError::NotAsked) };
        let Pull::Asked { wanted } = peer.pull else { return Err(PageError::NotAsked) };
        match take(&mut self.table, relay, peer, &page) {
            Err(PageError::Full) => {
                self.overflow(relay);
                return Err(PageError::Full);
            }
            Err(error) => {
                self.pull_failed(relay);
                return Err(error);
            }
            Ok(()) if !page.last => return Ok(Progress::More),
            Ok(()) => {}
        }
        // The relay knows best how far its claims go. Less than was wanted when we asked means that somebody told of
        // changes that never were; what was heard of since then may still be true.
        if peer.wanted == wanted {
            peer.wanted = peer.known();
        }
        peer.failures = 0;
        let after = self.rng.random_range(self.rest / 2..=self.rest * 3 / 2);
        self.wait(relay, after);
        Ok(Progress::Done)
    }

    pub fn pull_failed(&mut self, relay: &RelayId) {
        let Some(peer) = self.peers.get_mut(relay).filter(|peer| matches!(peer.pull, Pull::Asked { .. })) else {
            return;
        };
        if let Some((number, _)) = peer.loading.take() {
            self.table.drop_number(number);
        }
        let step = self.retry.0.saturating_mul(1 << peer.failures.min(16)).min(self.retry.1);
        peer.failures = peer.failures.saturating_add(1);
        let after = self.rng.random_range(step / 2..=step * 3 / 2);
        self.wait(relay, after);
    }

    /// A relay claims more than there is room for: it is as if it claimed nothing, until there is.
    fn overflow(&mut self, relay: &RelayId) {
        let Some(Peer { epoch, wanted, failures, .. }) = self.peers.get(relay) else { return };
        let (epoch, wanted, failures) = (*epoch, *wanted, *failures);
        self.up(relay, epoch);
        if let Some(peer) = self.peers.get_mut(relay) {
            (peer.wanted, peer.failures, peer.pull) = (wanted, failures, Pull::Asked { wanted });
            self.pull_failed(relay);
        }
    }

    pub fn wanted(&self, relay: &RelayId) -> u64 {
        self.peers.get(relay).map_or(0, |peer| peer.wanted)
    }
}

fn take(table: &mut Table, relay: &RelayId, peer: &mut Peer, page: &ClaimsPage) -> Result<(), PageError> {
    if page.epoch != peer.epoch {
        return Err(PageError::Epoch);
    }
    match &page.part {
        Part::Snapshot { hashes, .. } if hashes.len() > PAGE_CLAIMS || page.last => Err(PageError::TooLarge),
        Part::Changes { changes, .. } if changes.len() > PAGE_CLAIMS => Err(PageError::TooLarge),
        Part::Snapshot { version, hashes } => {
            if peer.loading.is_none() {
                peer.loading = Some((table.open().ok_or(PageError::Full)?, *version));
            }
            let (number, _) = peer.loading.as_ref().filter(|(_, v)| v == version).ok_or(PageError::Order)?;
            hashes.iter().try_for_each(|&hash| table.claim(number, hash)).map_err(|Full| PageError::Full)
        }
        Part::Changes { first, changes } => {
            if let Some((number, version)) = peer.loading.take_if(|(_, version)| version.checked_add(1) == Some(*first))
            {
                table.show(&number, relay);
                table.drop_number(std::mem::replace(&mut peer.number, number));
                peer.version = Some(version);
            }
            if peer.loading.is_some() {
                return Err(PageError::Order);
            }
            apply(table, peer, *first, changes)
        }
    }
}

/// Applies what is new of these changes; [`PageError::Order`] if they begin after the next one.
fn apply(table: &mut Table, peer: &mut Peer, first: u64, changes: &[Change]) -> Result<(), PageError> {
    first.checked_add(changes.len() as u64).filter(|_| first > 0).ok_or(PageError::Order)?;
    let next = peer.known().checked_add(1).ok_or(PageError::Order)?;
    let skip = next.checked_sub(first).ok_or(PageError::Order)?;
    // An empty page that starts at 1 says that there is nothing.
    let version = peer.version.insert(next - 1);
    for &change in changes.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)) {
        table.apply(&peer.number, change).map_err(|Full| PageError::Full)?;
        *version += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relay() -> RelayId {
        "eu/eu-1".parse().unwrap()
    }

    fn hash(n: usize) -> UserHash {
        UserHash::raw(n as u64 * 2)
    }

    /// A relay as the others see it: the list of its changes.
    struct Owner(Vec<Change>);

    impl Owner {
        fn item(&self, first: usize, last: usize) -> ClaimsItem {
            ClaimsItem { relay: relay(), epoch: 1, first: first as u64, changes: self.0[first - 1..last].to_vec() }
        }

        fn users(&self, upto: usize, of: UserHash) -> usize {
            let count = |claim| self.0[..upto].iter().filter(|c| c.hash() == of && c.is_claim() == claim).count();
            count(true) - count(false)
        }

        /// The answer to a pull when there were `upto` changes; with a snapshot of what was at `snapshot`.
        fn pages(&self, since: u64, upto: usize, snapshot: Option<usize>) -> Vec<ClaimsPage> {
            let since = usize::try_from(since).unwrap();
            let mut pages = Vec::new();
            if let Some(version) = snapshot {
                let all: Vec<_> = (0..4).flat_map(|n| vec![hash(n); self.users(version, hash(n))]).collect();
                let pieces: Vec<&[UserHash]> = if all.is_empty() { vec![&[]] } else { all.chunks(2).collect() };
                for hashes in pieces {
                    let part = Part::Snapshot { version: version as u64, hashes: hashes.to_vec() };
                    pages.push(ClaimsPage { epoch: 1, part, last: false });
                }
            }
            let start = snapshot.unwrap_or(since);
            let part = Part::Changes { first: start as u64 + 1, changes: self.0[start..upto.max(start)].to_vec() };
            pages.push(ClaimsPage { epoch: 1, part, last: true });
            pages
        }
    }

    fn presence() -> Presence {
        let mut presence = Presence::new(&Config::lan(), 1);
        presence.up(&relay(), 1);
        presence
    }

    /// Lets a rest or a back-off pass.
    fn rested(presence: &mut Presence) -> Vec<Want> {
        let (waits, wants): (Vec<_>, Vec<_>) =
            std::mem::take(&mut presence.wants).into_iter().partition(|want| matches!(want, Want::Wait { .. }));
        for wait in waits {
            let Want::Wait { relay, token, .. } = wait else { continue };
            presence.timer(&relay, token);
        }
        wants.into_iter().chain(std::mem::take(&mut presence.wants)).collect()
    }

    fn claims(n: usize) -> Owner {
        Owner((0..n).map(|n| Change::claim(hash(n))).collect())
    }

    #[test]
    fn a_gap_is_pulled_once() {
        let owner = claims(9);
        let mut presence = presence();
        presence.settled(&relay(), 1, 0);
        assert!(rested(&mut presence).is_empty(), "it said that it has none");
        presence.item(&owner.item(1, 3));
        presence.item(&owner.item(2, 5));
        assert!(rested(&mut presence).is_empty());
        presence.item(&owner.item(8, 8));
        presence.item(&owner.item(9, 9));
        presence.head(&HeadItem { relay: relay(), epoch: 1, version: 9 });
        assert_eq!(presence.wants, [Want::Pull { relay: relay(), epoch: 1, since: 5 }]);
        presence.wants.clear();
        for page in owner.pages(5, 9, None) {
            presence.page(&relay(), page).unwrap();
        }
        assert!(rested(&mut presence).is_empty());
        assert_eq!((presence.version(&relay()), presence.len()), (Some(9), 9));
    }

    #[test]
    fn what_came_while_a_snapshot_loaded_is_not_lost() {
        let owner = claims(9);
        let mut presence = presence();
        assert_eq!(rested(&mut presence).len(), 1, "a newcomer is pulled");
        let mut pages = owner.pages(0, 6, Some(5)).into_iter();
        presence.page(&relay(), pages.next().unwrap()).unwrap();
        presence.item(&owner.item(7, 8));
        assert_eq!(presence.len(), 2, "hidden, but there");
        assert_eq!(presence.table.holders(hash(0)).count(), 0);
        pages.for_each(|page| assert!(presence.page(&relay(), page).is_ok()));
        assert_eq!(rested(&mut presence), [Want::Pull { relay: relay(), epoch: 1, since: 6 }]);
    }

    #[test]
    fn a_head_that_never_was_costs_one_pull() {
        let owner = claims(3);
        let mut presence = presence();
        presence.settled(&relay(), 1, 0);
        rested(&mut presence);
        presence.head(&HeadItem { relay: relay(), epoch: 1, version: u64::MAX });
        assert_eq!(rested(&mut presence).len(), 1);
        owner.pages(0, 3, None).into_iter().for_each(|page| assert!(presence.page(&relay(), page).is_ok()));
        assert!(rested(&mut presence).is_empty());
        assert_eq!(presence.wanted(&relay()), 3);
    }

    #[test]
    fn bad_pages_end_the_pull_and_a_failed_pull_is_tried_again_later() {
        let owner = claims(3);
        let mut presence = presence();
        let good = owner.pages(0, 3, None).remove(0);
        assert_eq!(presence.page(&relay(), good.clone()), Err(PageError::NotAsked));
        let bad = [
            (ClaimsPage { epoch: 2, ..good.clone() }, PageError::Epoch),
            (ClaimsPage { part: Part::Changes { first: 2, changes: vec![] }, ..good.clone() }, PageError::Order),
            (
                ClaimsPage { part: Part::Changes { first: u64::MAX, changes: owner.0.clone() }, ..good.clone() },
                PageError::Order,
            ),
            (
                ClaimsPage { part: Part::Snapshot { version: 1, hashes: vec![hash(1); 4097] }, epoch: 1, last: false },
                PageError::TooLarge,
            ),
        ];
        let mut waits = Vec::new();
        for (page, error) in bad {
            rested(&mut presence);
            assert_eq!(presence.page(&relay(), page), Err(error));
            assert_eq!(presence.page(&relay(), good.clone()), Err(PageError::NotAsked));
            let Some(Want::Wait { after, .. }) = presence.wants.last() else { panic!("no back-off") };
            waits.push(*after);
        }
        assert!(waits[3] > waits[0] * 2, "{waits:?}");
        assert_eq!(presence.version(&relay()), None);
    }

    #[test]
    fn a_relay_that_claims_too_much_claims_nothing() {
        let owner = claims(9);
        let mut presence = Presence::new(&Config { claims_max: 5, ..Config::lan() }, 1);
        presence.up(&relay(), 1);
        presence.item(&owner.item(1, 9));
        assert_eq!((presence.len(), presence.version(&relay())), (0, None));
        presence.timer(&relay(), 1);
        assert_eq!(rested(&mut presence).len(), 1, "asked again, after the back-off only");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Item(usize, usize),
        Head(usize),
        Settled(usize),
        Answer { upto: usize, snapshot: Option<usize>, broken: bool },
        Fail,
        Rest,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let n = 0usize..64;
        prop_oneof![
            4 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::Item(a, b)),
            1 => n.clone().prop_map(Step::Head),
            1 => n.clone().prop_map(Step::Settled),
            3 => (n.clone(), prop::option::of(n), any::<bool>())
                .prop_map(|(upto, snapshot, broken)| Step::Answer { upto, snapshot, broken }),
            1 => Just(Step::Fail),
            2 => Just(Step::Rest),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Items in any order, some never, some twice; pulls that bring changes or a snapshot, late, in part or not at
        /// all; four hashes for many users. In the end each hash has as many users as at the owner.
        #[test]
        fn a_receiver_ends_with_what_the_owner_has(
            toggles in prop::collection::vec((0usize..4, 0u8..3), 1..64),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut owner = Owner(Vec::new());
            for (n, kind) in toggles {
                let claim = kind > 0 || owner.users(owner.0.len(), hash(n)) == 0;
                owner.0.push(if claim { Change::claim(hash(n)) } else { Change::withdraw(hash(n)) });
            }
            let len = owner.0.len();
            let mut presence = presence();
            let mut asked = None;
            // What has happened so far at the owner: nothing older than that can be the answer to a pull.
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Item(a, b) => {
                        let (a, b) = (a % len, b % len);
                        now = now.max(a.max(b) + 1);
                        presence.item(&owner.item(a.min(b) + 1, a.max(b) + 1));
                    }
                    Step::Head(n) => {
                        now = now.max(n % len + 1);
                        presence.head(&HeadItem { relay: relay(), epoch: 1, version: n as u64 % len as u64 + 1 });
                    }
                    // True only while nothing has happened.
                    Step::Settled(n) if now > 0 => presence.settled(&relay(), 1, (n % now) as u64 + 1),
                    Step::Settled(_) => presence.settled(&relay(), 1, 0),
                    Step::Answer { upto, snapshot, broken } => {
                        let Some(since) = asked.take() else { continue };
                        let upto = (upto % (len + 1)).max(now);
                        now = upto;
                        let mut pages = owner.pages(since, upto, snapshot.map(|s| s % (upto + 1)));
                        if broken {
                            pages.pop();
                        }
                        for page in pages {
                            prop_assert!(presence.page(&relay(), page).is_ok());
                        }
                        if broken {
                            presence.pull_failed(&relay());
                        }
                    }
                    Step::Fail if asked.take().is_some() => presence.pull_failed(&relay()),
                    Step::Fail => {}
                    Step::Rest => {
                        for want in rested(&mut presence) {
                            if let Want::Pull { since, .. } = want {
                                prop_assert!(asked.replace(since).is_none(), "two pulls at a time");
                            }
                        }
                    }
                    Step::Restart => {
                        presence.down(&relay());
                        prop_assert_eq!(presence.len(), 0);
                        presence.up(&relay(), 1);
                        asked = None;
                        presence.wants.retain(|want| matches!(want, Want::Wait { .. }));
                    }
                }
                for want in std::mem::take(&mut presence.wants) {
                    match want {
                        Want::Pull { since, .. } => prop_assert!(asked.replace(since).is_none(), "two pulls at a time"),
                        wait @ Want::Wait { .. } => presence.wants.push(wait),
                    }
                }
            }
            presence.head(&HeadItem { relay: relay(), epoch: 1, version: len as u64 });
            for _ in 0..4 {
                for want in rested(&mut presence) {
                    if let Want::Pull { since, .. } = want {
                        prop_assert!(asked.replace(since).is_none(), "two pulls at a time");
                    }
                }
                if let Some(since) = asked.take() {
                    owner.pages(since, len, None).into_iter().for_each(|page| assert!(presence.page(&relay(), page).is_ok()));
                }
            }
            prop_assert_eq!(presence.version(&relay()), Some(len as u64));
            for n in 0..4 {
                prop_assert_eq!(usize::from(presence.table.users(&relay(), hash(n))), owner.users(len, hash(n)));
            }
        }
    }
}
