//! At which relay a device should be: this one, or another that is near and has less to do.
//!
//! What others have to do is known from gossip, a second late; what this relay has sent there since is added to it, so
//! that a herd does not run from one relay to the next as one. Relays of this region are near: a device that came here
//! is better served by them than by those of another.

use super::{Edge, Link};
use godwit_gossip::{Member, Status};
use godwit_wire::frame::{Address, Event, Reply};
use godwit_wire::{Code, Refusal, RelayId, limits};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// More devices than the mean of the region by a twentieth and so many are too many.
const SPARE_DEVICES: u64 = 32;
/// Above the first, a relay is busy if another one is below the second.
const BUSY_CPU_PERMILLE: u16 = 900;
const CALM_CPU_PERMILLE: u16 = 600;
/// When a device comes back that reaches none of the relays it was sent to.
const COME_BACK: Duration = Duration::from_secs(2);

/// Devices sent to a relay since it said how many it has.
#[derive(Clone, Copy, Debug)]
struct Sent {
    said: u32,
    since: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Placement(Mutex<HashMap<RelayId, Sent>>);

/// Another relay that takes devices.
#[derive(Clone, Debug)]
struct Place {
    relay: RelayId,
    address: SocketAddr,
    near: bool,
    /// As it said.
    said: u32,
    /// With those that were sent there since.
    devices: u32,
    cpu_permille: u16,
}

impl Placement {
    fn places(&self, me: &RelayId, members: Vec<Member>) -> Vec<Place> {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taking = members.into_iter().filter(|member| member.status.is_none_or(|status| !status.draining));
        let place = |member: Member| {
            let Status { connections, cpu_permille, .. } = member.status.unwrap_or_default();
            let relay = member.identity.relay();
            // Once it has told anew, it counts them itself.
            if sent.get(relay).is_some_and(|sent| sent.said != connections) {
                sent.remove(relay);
            }
            let since = sent.get(relay).map_or(0, |sent| sent.since);
            Place {
                relay: relay.clone(),
                address: member.identity.addr(),
                near: relay.region() == me.region(),
                said: connections,
                devices: connections.saturating_add(since),
                cpu_permille,
            }
        };
        taking.map(place).collect()
    }

    fn sent_to(&self, place: &Place) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sent.entry(place.relay.clone()).or_insert(Sent { said: place.said, since: 0 });
        sent.since = sent.since.saturating_add(1);
    }
}

fn addresses(places: &[Place]) -> Vec<Address> {
    places.iter().take(limits::ADDRESSES).map(|place| Address(place.address.to_string())).collect()
}

/// For devices that choose later and each for itself: near ones first, then at random, the likelier the fewer devices a
/// relay has (Efraimidis and Spirakis, 2006), so that those of a relay which dies spread over all others.
fn shuffle(places: &mut [Place]) {
    let mut keyed: Vec<(bool, f64, Place)> = places
        .iter()
        .map(|place| (!place.near, -fastrand::f64().ln() * (f64::from(place.devices) + 1.0), place.clone()))
        .collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    for (place, (_, _, chosen)) in places.iter_mut().zip(keyed) {
        *place = chosen;
    }
}

/// For devices that go now.
fn fewest_first(places: &mut [Place]) {
    places.sort_by_key(|place| (!place.near, place.devices));
}

/// Whether a relay with so much to do should send new devices to those near it.
fn is_busy(devices: usize, cpu_permille: u16, places: &[Place]) -> bool {
    let near: Vec<&Place> = places.iter().filter(|place| place.near).collect();
    let own = devices as u64;
    let total = own + near.iter().map(|place| u64::from(place.devices)).sum::<u64>();
    let mean = total / (near.len() as u64 + 1);
    let crowded = own > mean + mean / 20 + SPARE_DEVICES;
    let hot = cpu_permille >= BUSY_CPU_PERMILLE && near.iter().any(|place| place.cpu_permille <= CALM_CPU_PERMILLE);
    !near.is_empty() && (crowded || hot)
}

impl Edge {
    fn places(&self) -> Vec<Place> {
        self.placement.places(&self.relay, self.router.cluster.members())
    }

    /// Other relays that a device may use, for later.
    pub(super) fn others(&self) -> Vec<Address> {
        let mut places = self.places();
        shuffle(&mut places);
        addresses(&places)
    }

    /// Whether there is any relay that a device could be sent to.
    pub(crate) fn has_others(&self) -> bool {
        !self.places().is_empty()
    }

    /// The relays for a device that goes now; the first of them is counted to get it.
    fn take_places(&self, mut places: Vec<Place>) -> Vec<Address> {
        fewest_first(&mut places);
        if let Some(first) = places.first() {
            self.placement.sent_to(first);
        }
        addresses(&places)
    }

    /// The answer to the hello of a device that should be elsewhere; none if it is to be taken. `full`: there is no room
    /// for it here.
    pub(super) fn elsewhere(&self, full: bool, sent_here: bool) -> Option<Reply> {
        let status = self.router.cluster.status();
        let mut places = self.places();
        let reason = match () {
            () if self.drain.has_begun() => Refusal::retry(Code::ShuttingDown, COME_BACK),
            () if full => Refusal::retry(Code::Busy, self.admissions.come_back()),
            () if !sent_here && is_busy(self.registry.len(), status.cpu_permille, &places) => {
                places.retain(|place| place.near);
                Refusal::retry(Code::Busy, COME_BACK)
            }
            () => return None,
        };
        self.metrics.redirects.inc();
        Some(Reply::Elsewhere { reason, relays: self.take_places(places) })
    }

    /// Asks a device to go on at another relay, to which it connects before it leaves this one.
    pub(crate) fn send_away(&self, link: &Link, reason: &Refusal) {
        let relays = self.take_places(self.places());
        link.tell(&Event::GoAway { reason: reason.clone(), relays });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, devices: u32) -> Place {
        let relay: RelayId = format!("{name}/{name}-1").parse().unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        Place { near: name != "us", relay, address, said: devices, devices, cpu_permille: 100 }
    }

    #[test]
    fn a_relay_is_busy_only_beside_one_that_is_less_so() {
        assert!(!is_busy(10_000, 1000, &[]), "alone");
        assert!(!is_busy(10_000, 1000, &[place("us", 0)]), "the other is far");
        assert!(is_busy(200, 0, &[place("eu", 0)]));
        assert!(!is_busy(30, 0, &[place("eu", 0)]), "a few make no herd");
        assert!(!is_busy(1_050, 0, &[place("eu", 950), place("ea", 990)]));
        assert!(is_busy(1_200, 0, &[place("eu", 950), place("ea", 990)]));
        assert!(is_busy(10, 950, &[place("eu", 900)]), "hot beside a calm one");
        assert!(!is_busy(10, 950, &[Place { cpu_permille: 700, ..place("eu", 0) }]));
    }

    #[test]
    fn devices_that_choose_for_themselves_spread_and_stay_near() {
        let all = [place("us", 0), place("ea", 1_000), place("eb", 1_000), place("ec", 3_000)];
        let mut firsts: HashMap<RelayId, u32> = HashMap::new();
        for _ in 0..10_000 {
            let mut places = all.clone();
            shuffle(&mut places);
            assert_eq!(places.last().unwrap().relay, all[0].relay, "the far one is last");
            *firsts.entry(places[0].relay.clone()).or_default() += 1;
        }
        let share = |place: &Place| f64::from(firsts[&place.relay]) / 10_000.0;
        // By the inverse of what they have: three sevenths, three sevenths, one seventh.
        for (place, expected) in [(&all[1], 3.0 / 7.0), (&all[2], 3.0 / 7.0), (&all[3], 1.0 / 7.0)] {
            assert!((share(place) - expected).abs() < 0.03, "{}: {}", place.relay, share(place));
        }
    }

    #[test]
    fn what_was_sent_to_a_relay_counts_until_it_says_how_many_it_has() {
        let placement = Placement::default();
        let me: RelayId = "eu/eu-1".parse().unwrap();
        let member = |name: &str, connections| Member {
            identity: crate::peers::identity(
                name.parse().unwrap(),
                "127.0.0.1:1".parse().unwrap(),
                1,
                godwit_gossip::Kind::Edge,
            ),
            status: Some(Status { connections, ..Status::default() }),
        };
        let members = |b| vec![member("eu/eu-2", 10), member("eu/eu-3", b)];
        let mut first = Vec::new();
        for _ in 0..4 {
            let mut places = placement.places(&me, members(12));
            fewest_first(&mut places);
            placement.sent_to(&places[0]);
            first.push(places[0].relay.to_string());
        }
        assert_eq!(first, ["eu/eu-2", "eu/eu-2", "eu/eu-2", "eu/eu-3"]);
        let devices = |members| placement.places(&me, members).iter().map(|place| place.devices).collect::<Vec<_>>();
        assert_eq!(devices(members(12)), [13, 13]);
        assert_eq!(devices(members(20)), [13, 20], "it has told");
        assert_eq!(devices(vec![member("eu/eu-2", 10)]), [13]);
        assert_eq!(devices(members(20)), [13, 20], "one that was away begins anew");
    }

    #[test]
    fn a_draining_relay_is_no_place() {
        let placement = Placement::default();
        let identity = crate::peers::identity(
            "eu/eu-2".parse().unwrap(),
            "127.0.0.1:1".parse().unwrap(),
            1,
            godwit_gossip::Kind::Edge,
        );
        let status = Some(Status { draining: true, ..Status::default() });
        assert!(placement.places(&"eu/eu-1".parse().unwrap(), vec![Member { identity, status }]).is_empty());
    }
}
