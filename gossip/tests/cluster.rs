//! Clusters of cores in simulated time: deaths, restarts, partitions, and claims that reach everyone.

mod sim;

use godwit_gossip::{Config, PresenceScope, Status};
use proptest::prelude::*;
use sim::{Seen, Sim, relay, user};
use std::collections::BTreeSet;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

fn cluster(nodes: usize, seed: u64) -> Sim {
    let mut sim = Sim::new(nodes, Config::wan(), seed);
    sim.meet_first();
    sim.run_until(2 * MINUTE, Sim::agreed).expect("all find each other");
    sim
}

fn names(nodes: &[usize]) -> BTreeSet<String> {
    nodes.iter().map(|&n| relay(n).to_string()).collect()
}

#[test]
fn a_death_is_known_and_takes_the_claims_along() {
    let mut sim = cluster(20, 1);
    sim.with(3, |g| g.claim(&user(1)));
    sim.with(4, |g| g.claim(&user(1)));
    sim.run_until(10 * SECOND, |s| s.alive().all(|n| n == 3 || s.holders(n, &user(1)).contains("r3/relay-3"))).unwrap();
    sim.kill(3);
    let took = sim.run_until(15 * SECOND, Sim::agreed).expect("known in time");
    assert!(took > SECOND, "{took:?}");
    assert!(sim.alive().all(|n| n == 4 || sim.holders(n, &user(1)) == names(&[4])));
}

#[test]
fn a_restarted_relay_replaces_its_old_self_at_once() {
    let mut sim = cluster(20, 2);
    sim.with(3, |g| g.claim(&user(1)));
    sim.run(5 * SECOND);
    sim.restart(3, 2000);
    sim.with(3, |g| g.claim(&user(2)));
    sim.run_until(10 * SECOND, Sim::agreed).expect("well before it could be declared down");
    sim.run_until(10 * SECOND, |s| (0..20).all(|n| n == 3 || s.holders(n, &user(2)) == names(&[3]))).unwrap();
    assert!((0..20).all(|n| sim.holders(n, &user(1)).is_empty()), "a newer epoch drops the claims of the old");
}

#[test]
fn a_relay_whose_clock_went_back_is_let_in_again() {
    let mut sim = cluster(10, 3);
    for n in [0, 3] {
        sim.restart(n, 5);
        sim.with(n, |g| g.claim(&user(n)));
        sim.run_until(MINUTE, Sim::agreed).expect("let in");
        sim.run_until(MINUTE, |s| (0..10).all(|m| m == n || s.holders(m, &user(n)) == names(&[n]))).unwrap();
        assert!(sim.nodes[n].gossip.me().epoch() > 1000);
    }
}

#[test]
fn a_suspect_that_answers_is_not_declared_down() {
    let mut sim = cluster(20, 4);
    // Shorter than the suspicion, longer than a probe.
    for _ in 0..5 {
        sim.nodes[7].side = 1;
        sim.run(3 * SECOND);
        sim.nodes[7].side = 0;
        sim.run(10 * SECOND);
    }
    assert!(sim.agreed() && sim.downs(7) == 0);
    let renewals: u64 = sim.nodes.iter().map(|node| node.gossip.stats().renewals).sum();
    assert_eq!(renewals, 0, "nobody was told that it is down");
}

#[test]
fn a_relay_declared_down_by_mistake_comes_back_with_its_claims() {
    let mut sim = cluster(20, 5);
    sim.with(7, |g| g.claim(&user(1)));
    sim.run(10 * SECOND);
    sim.nodes[7].side = 1;
    sim.run(30 * SECOND);
    assert!((0..20).all(|n| n == 7 || sim.holders(n, &user(1)).is_empty()));
    sim.with(7, |g| g.claim(&user(2)));
    sim.nodes[7].side = 0;
    sim.run_until(2 * MINUTE, Sim::agreed).expect("found again");
    sim.run_until(10 * SECOND, |s| {
        (0..20).all(|n| n == 7 || [1, 2].iter().all(|&u| s.holders(n, &user(u)) == names(&[7])))
    })
    .expect("claims are pulled again");
    assert_eq!(sim.nodes[7].gossip.me().epoch(), 1000, "the same run");
}

#[test]
fn a_partition_heals() {
    let mut sim = cluster(20, 6);
    for n in 0..20 {
        sim.nodes[n].side = u8::from(n % 2 == 0);
        sim.with(n, |g| g.claim(&user(n)));
    }
    sim.run(40 * SECOND);
    assert!(sim.nodes.iter().all(|node| node.gossip.members().len() == 9));
    sim.nodes.iter_mut().for_each(|node| node.side = 0);
    sim.run_until(5 * MINUTE, Sim::agreed).expect("healed");
    let whole = |s: &Sim| (0..20).all(|n| (0..20).all(|m| m == n || s.holders(n, &user(m)) == names(&[m])));
    sim.run_until(MINUTE, whole).expect("all claims are known again");
}

#[test]
fn two_relays_that_lost_each_other_meet_again() {
    let mut sim = cluster(2, 12);
    sim.nodes[1].side = 1;
    sim.run(2 * MINUTE);
    assert!(sim.nodes.iter().all(|node| node.gossip.members().is_empty()));
    sim.nodes[1].side = 0;
    sim.run_until(MINUTE, Sim::agreed).expect("found again without a new link");
}

#[test]
fn a_relay_that_leaves_is_gone_at_once_and_stays_away() {
    let mut sim = cluster(20, 7);
    sim.with(5, godwit_gossip::Gossip::leave);
    let gone = |s: &Sim| (0..20).all(|n| n == 5 || s.nodes[n].gossip.member(&relay(5)).is_none());
    sim.run_until(5 * SECOND, gone).expect("told, not found out");
    sim.run(MINUTE);
    assert!(gone(&sim));
}

#[test]
fn claims_and_load_stay_in_the_region_where_asked() {
    let config = Config { scope: PresenceScope::Region, ..Config::wan() };
    let mut sim = Sim::new(16, config, 8);
    sim.meet_first();
    sim.run_until(2 * MINUTE, Sim::agreed).unwrap();
    sim.with(3, |g| g.claim(&user(1)));
    let status = Status { connections: 500, draining: true, ..Status::default() };
    sim.with(3, |g| g.set_status(status));
    sim.run_until(10 * SECOND, |s| [7, 11, 15].iter().all(|&n| s.holders(n, &user(1)) == names(&[3]))).unwrap();
    sim.run_until(MINUTE, |s| {
        s.alive().all(|n| n == 3 || s.nodes[n].gossip.member(&relay(3)).unwrap().status == Some(status))
    })
    .expect("load is told to other regions directly");
    let local = |n: usize| n % 4 == 3;
    assert!(sim.alive().all(|n| local(n) || sim.holders(n, &user(1)).is_empty()));
    let seen = sim.seen.as_ref().unwrap();
    assert!(seen.iter().all(|(_, n, s)| !matches!(s, Seen::Pull(of, _) if *of == relay(3) && !local(*n))));
}

#[test]
fn a_relay_alone_in_its_region_does_not_gossip_to_nobody() {
    let config = Config { scope: PresenceScope::Region, ..Config::wan() };
    let mut sim = Sim::new(4, config, 13);
    sim.meet_first();
    sim.run_until(MINUTE, Sim::agreed).unwrap();
    sim.with(1, |g| g.claim(&user(1)));
    sim.run(MINUTE);
    let before = sim.nodes[1].packets_out;
    sim.run(MINUTE);
    assert!(sim.nodes[1].packets_out - before < 200, "probes and their answers");
}

#[test]
fn items_are_enough_for_a_trickle_and_a_newcomer_pulls_once() {
    let mut sim = cluster(10, 9);
    sim.run(10 * SECOND);
    let pulls = |s: &Sim, n: usize| {
        let of = |seen: &Seen| matches!(seen, Seen::Pull(of, _) if *of == relay(2));
        s.seen.as_ref().unwrap().iter().filter(|(_, by, seen)| *by == n && of(seen)).count()
    };
    let before: usize = (0..10).map(|n| pulls(&sim, n)).sum();
    for n in 0..50 {
        sim.with(2, |g| g.claim(&user(n)));
        sim.run(SECOND / 2);
    }
    sim.run(MINUTE);
    assert_eq!((0..10).map(|n| pulls(&sim, n)).sum::<usize>(), before);
    let before = pulls(&sim, 8);
    sim.restart(8, 2000);
    sim.run(MINUTE);
    assert_eq!((sim.nodes[8].gossip.stats().claims_known, pulls(&sim, 8) - before), (50, 1));
}

#[test]
fn a_storm_is_pulled_not_gossiped() {
    let mut sim = cluster(10, 10);
    for n in 0..10_000 {
        sim.with(2, |g| g.claim(&user(n)));
        if n % 20 == 0 {
            sim.run(SECOND / 100);
        }
    }
    for n in 0..5_000 {
        sim.with(2, |g| g.withdraw(&user(n)));
    }
    sim.run_until(10 * SECOND, |s| (0..10).all(|n| n == 2 || s.nodes[n].gossip.stats().claims_known == 5_000)).unwrap();
    assert!(sim.nodes.iter().all(|n| n.gossip.stats().pulls_asked < 20));
}

#[test]
fn a_core_may_live_on_any_thread() {
    fn send<T: Send>() {}
    send::<godwit_gossip::Gossip>();
    send::<godwit_gossip::Pages>();
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut sim = cluster(10, 11);
        sim.loss = 0.1;
        for n in 0..300 {
            sim.with(n % 10, |g| g.claim(&user(n / 2)));
            sim.run(SECOND / 10);
        }
        let bytes: Vec<u64> = sim.nodes.iter().map(|n| n.bytes_out).collect();
        (bytes, sim.seen)
    };
    assert_eq!(run(), run());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever is lost, doubled, reordered or fails, all know the truth in the end.
    #[test]
    fn claims_converge(
        seed in any::<u64>(),
        loss in 0.0..0.4,
        duplicates in 0.0..0.3,
        pull_loss in 0.0..0.5,
        steps in prop::collection::vec((0usize..5, 0usize..8, any::<bool>(), 0u64..800), 1..150),
    ) {
        let mut sim = cluster(5, seed);
        (sim.loss, sim.duplicates, sim.pull_loss) = (loss, duplicates, pull_loss);
        let mut truth = vec![vec![0u32; 8]; 5];
        for (n, u, claim, wait) in steps {
            let devices = &mut truth[n][u];
            if claim {
                *devices += 1;
                sim.with(n, |g| g.claim(&user(u)));
            } else {
                *devices = devices.saturating_sub(1);
                sim.with(n, |g| g.withdraw(&user(u)));
            }
            sim.run(Duration::from_millis(wait));
        }
        (sim.loss, sim.duplicates, sim.pull_loss) = (0.0, 0.0, 0.0);
        let right = |s: &Sim| (0..5).all(|n| (0..8).all(|u| {
            let held: Vec<usize> = (0..5).filter(|&m| m != n && truth[m][u] > 0).collect();
            s.holders(n, &user(u)) == names(&held)
        }));
        prop_assert!(sim.run_until(5 * MINUTE, |s| s.agreed() && right(s)).is_some());
        sim.run(MINUTE);
        prop_assert!(right(&sim));
    }
}
