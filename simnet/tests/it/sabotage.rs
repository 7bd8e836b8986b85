//! The checker sees: each deliberate fault is noticed within a few seeds.

use godwit_simnet::plan::Plan;
use godwit_simnet::scenario::Scenario;
use godwit_simnet::{Options, Sabotage, general, play};
use std::path::Path;

/// Seeds in which a fault must show.
const SEEDS: u64 = 200;

fn noticed(sabotage: Sabotage, plan: impl Fn(u64) -> Plan) {
    let caught = (0..SEEDS).find_map(|seed| {
        let options = Options { sabotage: Some(sabotage), ..Options::seed(seed) };
        play::play(&plan(seed), &options).err().map(|broken| (seed, broken))
    });
    let (seed, broken) = caught.unwrap_or_else(|| panic!("{sabotage:?} is not noticed in {SEEDS} seeds"));
    println!("{sabotage:?}: seed {seed}: {broken}");
}

#[test]
fn sent_before_the_fsync() {
    noticed(Sabotage::EarlySent, general::plan);
}

#[test]
fn a_number_decided_twice() {
    noticed(Sabotage::NoDedup, general::plan);
}

#[test]
fn a_past_that_is_not_fenced_off() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/race-02-restored-device.toml");
    let scenario = Scenario::read(&path).expect("a scenario");
    noticed(Sabotage::TakenNumber, |seed| scenario.plan(seed));
}

#[test]
fn inbox_rows_dropped_at_a_reconnect() {
    noticed(Sabotage::DropRows, general::plan);
}

#[test]
fn an_owner_that_is_not_fenced() {
    noticed(Sabotage::Unfenced, general::sharing);
}

#[test]
fn a_claim_that_is_trusted() {
    noticed(Sabotage::TrustedClaim, general::plan);
}
