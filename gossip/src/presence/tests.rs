//! What other relays claim ends as it is, whatever gets lost, doubled, reordered or broken off on the way.

use super::*;
use crate::hash::Change;
use crate::page::Part;
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
