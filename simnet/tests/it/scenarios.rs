//! The scenario files: each is clean, and a bad one says what is wrong with it.

use godwit_simnet::scenario::Scenario;
use godwit_simnet::{Options, play};
use std::path::{Path, PathBuf};
use std::process::Command;

fn scenarios() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let files = std::fs::read_dir(folder).expect("the scenarios").map(|entry| entry.expect("a file").path());
    // Those that show how fast time passes are in a folder of their own.
    let mut paths: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    paths.sort();
    paths
}

#[test]
fn every_scenario_is_clean() {
    let paths = scenarios();
    assert!(paths.len() >= 10, "{paths:?}");
    for path in paths {
        let scenario = Scenario::read(&path).expect("a scenario");
        if let Err(broken) = play::play(&scenario.plan(0), &Options::seed(0)) {
            panic!("{}: {broken}", path.display());
        }
    }
}

const GOOD: &str = r#"
about = "two who talk"
relays = ["eu/eu-1"]
heals = "1m"
[devices]
"alice@eu/phone" = "wifi"
"bob@eu/phone" = "4g"
[[step]]
at = "1s"
device = "alice@eu/phone"
does = { direct = { chat = "c", with = "bob@eu" } }
"#;

/// Who acts in its step, and how.
const STEP: &str = r#"device = "alice@eu/phone"
does = { direct = { chat = "c", with = "bob@eu" } }"#;

#[test]
fn what_is_wrong_is_said_with_its_place_and_ends_in_exit_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("scenario.toml");
    let run = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_simnet")).arg("run").arg(&path).output().expect("simnet starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(GOOD).0, Some(0));
    for (from, to, said) in [
        ("heals =", "heels =", "heels"),
        ("\"1m\"", "\"soon\"", "soon"),
        ("\"4g\"", "\"5g\"", "no access network \"5g\""),
        ("bob@eu\" }", "carol@eu\" }", "step 1: there is no user \"carol@eu\""),
        ("device = \"alice", "device = \"carol", "step 1: there is no device"),
        ("does = { direct", "does = { dance", "dance"),
        ("at = \"1s\"", "at = \"2h\"", "step 1: at"),
        ("[devices]", "[networks.\"4g\"]\nlike = \"wifi\"\n[devices]", "networks: \"4g\": there is one of this name"),
        ("[devices]", "[networks.ship]\nlike = \"raft\"\n[devices]", "no access network \"raft\""),
        (
            "[devices]",
            "[networks.ship]\nlike = \"edge\"\nup = { loss = 2.0 }\n[devices]",
            "up: loss must be from 0 to 1",
        ),
        ("[devices]", "[networks.ship]\nlike = \"edge\"\nup = { los = 0.2 }\n[devices]", "los"),
        ("does = {", "link = { from = \"eu\", to = \"eu\", with = {} }\ndoes = {", "step 1: must have"),
        (STEP, "link = { from = \"eu\", to = \"eu\", with = {} }", "step 1: lasts is missing"),
        (STEP, "lasts = \"1s\"\ncut = { from = [], to = [\"eu\"] }", "step 1: cut: from and to must not be empty"),
        (STEP, "relay = \"eu/eu-1\"\nfails = \"restore\"", "eu/eu-1 was not backed up before"),
        (STEP, "relay = \"eu/eu-1\"\nfails = { slow-disk = { sync_millis = 9000000 } }", "sync_millis must be at most"),
        (
            "direct = { chat = \"c\", with = \"bob@eu\" }",
            "send = { chat = \"c\", count = 1 }",
            "no chat \"c\" was begun before",
        ),
        ("direct = { chat = \"c\", with = \"bob@eu\" }", "send = { chat = \"c\", count = 0 }", "step 1: count must be"),
        (
            "direct = { chat = \"c\", with = \"bob@eu\" }",
            "attach = { chat = \"c\", bytes = 200000000 }",
            "step 1: bytes must be at most",
        ),
        ("direct = { chat = \"c\", with = \"bob@eu\" }", "fetch = { chat = \"c\" }", "no chat \"c\" was begun before"),
        ("\"eu/eu-1\"]", "\"eu/eu-1\", \"eu/eu-1\"]", "relays: \"eu/eu-1\" is there twice"),
        ("heals = \"1m\"", "heals = \"5000y\"", "heals must be at most"),
        ("[devices]", "[settings]\nlisten = \"1.2.3.4:5\"\n[devices]", "settings: listen is the simulation's own"),
        ("[devices]", "[settings]\nfoo = \"1\"\n[devices]", "no such key"),
        (
            "[devices]",
            "[random]\nfaults = 1000000000\n[devices]",
            "random: chats, actions, faults and files are at most",
        ),
        (
            "relays = [\"eu/eu-1\"]",
            "gossip = { relays = 3, regions = [\"eu\"], network = \"lan\" }",
            "gossip has relays of its own",
        ),
        (STEP, "link = { from = \"eu\", to = \"us\", with = {} }", "step 1: there is no region \"us\""),
        (STEP, "link = { from = \"eu\", to = \"eu\", with = { mtu = 900 } }", "step 1: mtu must be from 1200"),
        (STEP, "link = { from = \"eu\", to = \"eu\", with = { latency = \"2h\" } }", "step 1: latency must be at most"),
        ("\"bob@eu/phone\"", "\"bob@us/phone\"", "no relay of its region"),
        ("does = {", "suffers = \"close\"\ndoes = {", "step 1: must have"),
        ("relays = [\"eu/eu-1\"]", "relays = []", "must not be empty"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let (code, stderr) = run(&text);
        assert!(code == Some(2) && stderr.contains(said), "{to}: {code:?}, {stderr}");
    }
}

/// A run in which nothing happens proves nothing.
#[test]
fn a_scenario_that_tries_nothing_is_not_clean() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("scenario.toml");
    let text = GOOD.replace("heals", "events = 1000\nheals");
    std::fs::write(&path, text).expect("written");
    let scenario = Scenario::read(&path).expect("a scenario");
    let broken = play::play(&scenario.plan(0), &Options::seed(0)).expect_err("too little happens");
    assert!(broken.to_string().contains("at least 1000 events"), "{broken}");
}
