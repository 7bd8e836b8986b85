//! A run is told by its seed alone, in whatever process.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

/// A seed's run, in a process of its own.
fn play(seed: u64) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simnet"));
    command.args(["play", &seed.to_string()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("simnet starts")
}

fn hash(run: Child) -> String {
    let output = run.wait_with_output().expect("simnet ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an outcome");
    assert!(said["broken"].is_null(), "{said}");
    said["hash"].to_string()
}

#[test]
fn the_same_seed_is_the_same_run_in_every_process() {
    // At the same time, so that each finds what the others have made on this machine.
    let at_once = |seed| [seed; 5].map(play).map(hash);
    let runs: Vec<[String; 5]> = (0..3).map(at_once).collect();
    for run in &runs {
        assert!(run.iter().all(|hash| *hash == run[0]), "{runs:?}");
    }
    let different: BTreeSet<&String> = runs.iter().flatten().collect();
    assert_eq!(different.len(), 3, "{runs:?}");
}

#[test]
fn a_trace_holds_every_event_and_is_the_same_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = |name: &str| {
        let path = folder.path().join(name);
        let status = Command::new(env!("CARGO_BIN_EXE_simnet")).args(["replay", "3", "--trace"]).arg(&path).output();
        assert!(status.expect("simnet starts").status.success());
        std::fs::read_to_string(path).expect("a trace")
    };
    let first = trace("first");
    assert!(first.lines().count() > 1000 && first.contains("all heals") && first.contains("all is settled"));
    assert!(first == trace("second"), "two traces differ");
}
