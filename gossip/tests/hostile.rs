//! Whatever bytes come from the network: no panic, and what is refused changes nothing.

mod sim;

use godwit_gossip::{ClaimsPage, Config, Gossip, PacketError};
use proptest::prelude::*;
use sim::{Sim, relay, user};
use std::time::Duration;

/// A cluster with something going on, and the packets of it.
fn busy() -> Sim {
    let mut sim = Sim::new(6, Config::wan(), 1);
    sim.tapped = Some(Vec::new());
    sim.loss = 0.3;
    sim.meet_first();
    for n in 0..100 {
        sim.with(n % 5, |g| g.claim(&user(n)));
        sim.with(n % 5, |g| g.set_status(godwit_gossip::Status { draining: n % 7 == 0, ..Default::default() }));
        sim.run(Duration::from_millis(200));
    }
    sim.kill(5);
    sim.run(Duration::from_secs(20));
    sim
}

/// Everything that can be seen of a core, but for the counters of packets.
fn state(gossip: &Gossip) -> String {
    let stats = gossip.stats();
    let known: Vec<String> = (0..100).flat_map(|n| gossip.holders(&user(n))).map(ToString::to_string).collect();
    format!("{:?} {:?} {known:?} {} {}", gossip.me(), gossip.members(), stats.claims_known, stats.backlog)
}

/// Hands a packet to a core; if it is refused, nothing may have changed.
fn hand(sim: &mut Sim, from: usize, to: usize, bytes: &[u8]) -> Result<(), PacketError> {
    let gossip = &mut sim.nodes[to].gossip;
    let before = state(gossip);
    let result = gossip.packet(&relay(from), bytes);
    let effects = gossip.effects().count();
    if result.is_err() {
        assert_eq!((state(gossip), effects), (before, 0), "{result:?}");
    }
    result
}

#[test]
fn nobody_speaks_for_another() {
    let mut sim = busy();
    let (from, to, bytes) = sim.tapped.as_ref().unwrap()[50].clone();
    assert!(hand(&mut sim, from, to, &bytes).is_ok());
    let other = (0..5).find(|n| *n != from && *n != to).unwrap();
    assert_eq!(hand(&mut sim, other, to, &bytes), Err(PacketError::Impostor(relay(from))));
    assert_eq!(hand(&mut sim, from, from, &bytes), Err(PacketError::Impostor(relay(from))), "our own words");
}

#[test]
fn packets_of_the_future_and_large_ones_are_named() {
    let mut sim = busy();
    assert_eq!(hand(&mut sim, 1, 0, &[2, 0]), Err(PacketError::Format(2)));
    assert_eq!(hand(&mut sim, 1, 0, &[1; 1201]), Err(PacketError::TooLarge(1201)));
    assert_eq!(hand(&mut sim, 1, 0, &[]), Err(PacketError::Malformed));
}

#[test]
fn members_are_bounded() {
    let mut sim = Sim::new(12, Config { members_max: 8, ..Config::wan() }, 2);
    let peers: Vec<_> = (1..12).map(|n| sim.nodes[n].gossip.me().clone()).collect();
    for (n, me) in (1..12).zip(peers) {
        let first = sim.nodes[0].gossip.me().clone();
        sim.nodes[n].gossip.meet(first);
        let effects: Vec<_> = sim.nodes[n].gossip.effects().collect();
        let godwit_gossip::Effect::Send { packet, .. } = &effects[0] else { panic!("{effects:?}") };
        let result = hand(&mut sim, n, 0, packet);
        assert_eq!(result, if n <= 8 { Ok(()) } else { Err(PacketError::TooManyMembers) }, "{me:?}");
    }
    assert_eq!(sim.nodes[0].gossip.members().len(), 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    #[test]
    fn bytes_of_any_kind_do_no_harm(
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 20),
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), any::<prop::sample::Index>(), 0u8..4), 150),
    ) {
        let mut sim = busy();
        for bytes in noise {
            let _ = hand(&mut sim, 1, 0, &bytes);
            let _ = hand(&mut sim, 1, 0, &[&[1, 0], bytes.as_slice()].concat());
            if let Some(page) = ClaimsPage::decode(&bytes) {
                let _ = sim.with(0, |g| g.apply_page(&relay(1), page));
            }
        }
        for (which, changes, cut, kind) in edits {
            let (from, to, bytes) = which.get(sim.tapped.as_ref().unwrap()).clone();
            let mut bytes = bytes.to_vec();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            match kind {
                0 => bytes.truncate(cut.index(bytes.len())),
                1 => bytes.push(7),
                _ => {}
            }
            let _ = hand(&mut sim, from, to, &bytes);
        }
        // Timers still come due, and nobody is harmed by what was believed.
        sim.run(Duration::from_secs(10));
    }
}
