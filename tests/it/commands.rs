//! The commands as they are run from outside: what they print, and how they end.

use anyhow::{Context, Result, ensure};
use godwit_certs::folder::{read_certificate, read_chain};
use godwit_certs::tls::{self, Crypto};
use godwit_tests::dynamo::{self, Server};
use godwit_tests::lab::PATIENCE;
use godwit_tests::process::{self, RelayProcess, commands, fail, run_with_input, succeed};
use godwit_tests::wire;
use godwit_wire::ALPN_ENROL;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A relay with alice and bob enrolled, by commands alone.
struct Town {
    folder: tempfile::TempDir,
    relay: RelayProcess,
}

impl Town {
    async fn new(users: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let relay = RelayProcess::dev(&folder.path().join("relay"), "127.0.0.1:0").await?;
        let town = Self { folder, relay };
        for user in users {
            town.enrol(user)?;
        }
        Ok(town)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn token(&self, user: &str) -> Result<String> {
        let dir = self.path("relay/certs");
        let token = succeed("godwit", &["certs", "token", "--dir", &dir, "--device", &format!("{user}@eu/phone")])?;
        ensure!(token.lines().count() == 1, "standard output is the token alone");
        Ok(token.trim().to_owned())
    }

    fn enrol(&self, user: &str) -> Result<()> {
        let (home, token) = (self.path(user), self.token(user)?);
        let (relay, authority) = (&self.relay.quic, &self.relay.authority);
        succeed(
            "godwit-chat",
            &["enrol", "--home", &home, "--relay", relay, "--authority", authority, "--token", &token],
        )?;
        Ok(())
    }

    fn chat(&self, user: &str, args: &[&str]) -> Result<String> {
        let home = self.path(user);
        succeed("godwit-chat", &[&["--home", &home], args].concat())
    }

    fn json(&self, user: &str, args: &[&str]) -> Result<Vec<Value>> {
        let text = self.chat(user, &[&["--json"], args].concat())?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    fn refused(&self, user: &str, args: &[&str], code: i32) -> Result<String> {
        let home = self.path(user);
        fail("godwit-chat", &[&["--home", &home], args].concat(), code)
    }
}

fn messages(events: &[Value]) -> Vec<&Value> {
    events.iter().filter(|event| event["event"] == "messageReceived").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_talk() -> Result<()> {
    let town = Town::new(&["alice", "bob"]).await?;
    let ready = &town.relay.ready;
    ensure!(ready.starts_with("ready relay=eu-1 quic=127.0.0.1:"), "{ready}");
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    ensure!(chat.starts_with("eu:"), "{chat}");
    let again = town.json("bob", &["direct", "alice@eu"])?;
    ensure!(again[0]["chat"] == chat.as_str(), "both sides mean the same chat: {again:?}");
    let sent = town.json("alice", &["send", &chat, "hello bob"])?;
    ensure!(sent.len() == 1 && sent[0]["event"] == "sent" && sent[0]["n"] == 1, "{sent:?}");
    let seq = sent[0]["seq"].as_u64().context("seq")?;
    let heard = town.json("bob", &["listen", "--count", "1", "--for", "20"])?;
    let heard = messages(&heard);
    ensure!(heard.len() == 1, "{heard:?}");
    let message = heard[0];
    ensure!(message["text"] == "hello bob" && message["from"] == "alice@eu/phone", "{message}");
    ensure!(message["chat"] == chat.as_str() && message["seq"] == seq, "{message}");
    let at = message["at"].as_str().context("at")?;
    ensure!(at.len() == 24 && at.ends_with('Z') && at == sent[0]["at"].as_str().unwrap_or_default(), "{at}");
    // It was acknowledged: it does not come again.
    let nothing = town.json("bob", &["listen", "--for", "1"])?;
    ensure!(messages(&nothing).is_empty(), "{nothing:?}");
    let kept = town.json("alice", &["send", &chat, "kept", "--wait", "pending"])?;
    ensure!(kept[0]["event"] == "pending" && kept[0]["seq"].is_null(), "{kept:?}");
    town.chat("alice", &["send", &chat, "and more"])?;
    let heard = town.json("bob", &["listen", "--count", "2", "--for", "20"])?;
    let texts: Vec<_> = messages(&heard).iter().map(|m| m["text"].clone()).collect();
    ensure!(texts == ["kept", "and more"], "what a command left pending goes with the next: {texts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_sent_in_order_and_history_pages() -> Result<()> {
    let town = Town::new(&["alice", "bob", "carol"]).await?;
    let chat = town.chat("alice", &["new", "walks", "bob@eu", "carol@eu"])?.trim().to_owned();
    let lines: Vec<String> = (1..=1000).map(|n| format!("line {n}\n")).collect();
    let home = town.path("alice");
    let output = run_with_input("godwit-chat", &["--json", "--home", &home, "send", &chat, "-"], &lines.concat())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8(output.stdout)?;
    ensure!(out.lines().count() == 1000, "a line for each");
    for user in ["bob", "carol"] {
        let heard = town.json(user, &["listen", "--count", "1000", "--for", "30"])?;
        ensure!(heard.iter().any(|event| event["event"] == "chatCreated" && event["title"] == "walks"), "created");
        let texts: Vec<_> =
            messages(&heard).iter().map(|m| m["text"].as_str().unwrap_or_default().to_owned()).collect();
        ensure!(texts.iter().zip(1..).all(|(text, n)| *text == format!("line {n}")), "{user}: in order");
    }
    let page = town.json("carol", &["history", &chat, "--limit", "3"])?;
    ensure!(page.iter().map(|e| e["seq"].as_u64()).eq([999, 1000, 1001].map(Some)), "newest, ascending: {page:?}");
    let page = town.json("carol", &["history", &chat, "--before", "3", "--limit", "50"])?;
    ensure!(page.len() == 2 && page[0]["event"] == "chatCreated" && page[1]["text"] == "line 1", "{page:?}");
    let chats = town.json("bob", &["chats"])?;
    ensure!(chats.len() == 1 && chats[0]["title"] == "walks" && chats[0]["role"] == "member", "{chats:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_is_named_and_what_comes_before_it_is_sent() -> Result<()> {
    let town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    let home = town.path("alice");
    let long = format!("one\n\nthree 😀\n{}\nfive\n", "x".repeat(70_000));
    let output = run_with_input("godwit-chat", &["--json", "--home", &home, "send", &chat, "-"], &long)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3) && errors.contains("line 4") && errors.contains("65536"), "{errors}");
    ensure!(String::from_utf8(output.stdout)?.lines().count() == 3, "told of three");
    let history = town.json("bob", &["history", &chat])?;
    let texts: Vec<_> = messages(&history).iter().map(|m| m["text"].clone()).collect();
    ensure!(texts == ["one", "", "three 😀"], "{texts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redacted_is_gone_everywhere() -> Result<()> {
    let town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    town.chat("alice", &["send", &chat, "a slip"])?;
    town.json("bob", &["listen", "--count", "1", "--for", "20"])?;
    town.refused("bob", &["redact", &chat, "2"], 3)?;
    town.chat("alice", &["redact", &chat, "2"])?;
    let heard = town.json("bob", &["listen", "--for", "2"])?;
    ensure!(heard.iter().any(|event| event["event"] == "redacted" && event["of"] == 2), "{heard:?}");
    for user in ["alice", "bob"] {
        let history = town.chat(user, &["--json", "history", &chat])?;
        ensure!(!history.contains("a slip"), "{user}: {history}");
        let database = std::fs::read(Path::new(&town.path(user)).join("device.db"))?;
        ensure!(!database.windows(6).any(|bytes| bytes == b"a slip"), "{user}: its bytes are still in the file");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_command_on_a_home_hands_over_through_the_outbox() -> Result<()> {
    let town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    let mut listening = tokio::process::Command::new(commands().join("godwit-chat"))
        .args(["--home", &town.path("alice"), "--json", "listen"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    // It has the home once it has said that it is connected.
    let out = listening.stdout.take().context("standard output")?;
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
    while let Some(line) = lines.next_line().await? {
        if line.contains("\"connected\"") {
            break;
        }
    }
    let sent = town.json("alice", &["send", &chat, "from the second"])?;
    ensure!(sent[0]["event"] == "sent" && sent[0]["seq"] == 2, "{sent:?}");
    town.refused("alice", &["listen", "--for", "1"], 5)?;
    let history = town.chat("alice", &["history", &chat])?;
    ensure!(history.contains("from the second"), "{history}");
    listening.kill().await?;
    ensure!(town.json("alice", &["send", &chat, "alone again"])?[0]["seq"] == 3, "and on its own");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_faults_and_their_exit_codes() -> Result<()> {
    let mut town = Town::new(&["alice", "bob", "eve"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    town.refused("eve", &["send", &chat, "let me in"], 3)?;
    town.refused("eve", &["history", &chat], 3)?;
    town.refused("alice", &["direct", "nobody@eu"], 3)?;
    town.refused("alice", &["new", "x", "nobody@eu"], 3)?;
    town.refused("alice", &["direct", "not an id"], 2)?;
    town.refused("alice", &["send", "eu:nonsense", "x"], 2)?;
    town.refused("alice", &["frobnicate"], 2)?;
    town.refused("alice", &["direct", "alice@eu"], 2)?;
    town.refused("alice", &["new", "x", "bob@eu", "bob@eu"], 2)?;
    let crowd: Vec<String> = (0..1100).map(|i| format!("u{i}@eu")).collect();
    let mut args = vec!["new", "big"];
    args.extend(crowd.iter().map(String::as_str));
    let said = town.refused("alice", &args, 3)?;
    ensure!(said.contains("1101 participants, at most 1024"), "{said}");
    town.chat("alice", &["send", &chat, "and the home is well"])?;
    town.json("bob", &["listen", "--count", "1", "--for", "20"])?;
    town.refused("unknown", &["chats"], 2)?;
    // A used token; and a home keeps its device.
    let (home, token) = (town.path("carol"), town.token("carol")?);
    let enrol = |home: &str, token: &str, code| {
        let (relay, authority) = (&town.relay.quic, &town.relay.authority);
        let args = ["enrol", "--home", home, "--relay", relay, "--authority", authority, "--token", token];
        if code == 0 { succeed("godwit-chat", &args) } else { fail("godwit-chat", &args, code) }
    };
    enrol(&home, &token, 0)?;
    let said = enrol(&town.path("carol2"), &token, 3)?;
    ensure!(said.contains("used already"), "{said}");
    enrol(&home, &town.token("dora")?, 2)?;
    // The relay's store is in use, and its port; and nothing listens where nothing should.
    let data = town.path("relay");
    fail("godwit", &["store", "check", "--data", &data], 5)?;
    fail(
        "godwit",
        &["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--region", "eu", "--data", &data],
        5,
    )?;
    town.relay.kill().await?;
    let begun = Instant::now();
    let said = town.refused("alice", &["send", &chat, "later", "--timeout", "1s"], 4)?;
    ensure!(begun.elapsed() < Duration::from_secs(15) && !said.is_empty(), "{said}");
    let report = succeed("godwit", &["store", "check", "--data", &data])?;
    ensure!(report.contains("1 chats"), "{report}");
    // What is pending goes out when the relay is back.
    town.relay = RelayProcess::dev(Path::new(&data), &town.relay.quic).await?;
    let heard = town.json("bob", &["listen", "--for", "1"])?;
    ensure!(messages(&heard).is_empty(), "{heard:?}");
    town.chat("alice", &["send", &chat, "now"])?;
    let heard = town.json("bob", &["listen", "--count", "2", "--for", "20"])?;
    let texts: Vec<_> = messages(&heard).iter().map(|m| m["text"].clone()).collect();
    ensure!(texts == ["later", "now"], "{texts:?}");
    // Damaged, and of a newer version.
    town.relay.kill().await?;
    std::fs::write(Path::new(&data).join("store.redb"), "x".repeat(10_000))?;
    fail("godwit", &["store", "check", "--data", &data], 6)?;
    fail("godwit", &["store", "check", "--data", &town.path("nowhere")], 2)?;
    fail("godwit", &["revoke", "not a device"], 2)?;
    std::fs::write(Path::new(&town.path("eve")).join("device.db"), "x".repeat(10_000))?;
    town.refused("eve", &["chats"], 6)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_stops_in_order_and_reloads() -> Result<()> {
    let mut town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    town.chat("alice", &["send", &chat, "kept"])?;
    let id = town.relay.id().context("running")?.to_string();
    let signal = |name: &str| std::process::Command::new("kill").args([name, &id]).status();
    ensure!(signal("-HUP")?.success(), "SIGHUP");
    town.chat("alice", &["send", &chat, "after the reload"])?;
    let begun = Instant::now();
    ensure!(signal("-TERM")?.success(), "SIGTERM");
    let status = town.relay.wait().await?;
    ensure!(status.code() == Some(0) && begun.elapsed() < Duration::from_secs(15), "{status}");
    let report = succeed("godwit", &["store", "check", "--data", &town.path("relay")])?;
    ensure!(report.starts_with("1 chats, 3 entries, 2 devices"), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_relay_restores() -> Result<()> {
    let mut town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    town.chat("alice", &["send", &chat, "before the backup"])?;
    let copy = town.path("copy.redb");
    succeed("godwit", &["store", "backup", "--admin", &town.relay.admin, "--to", &copy])?;
    fail("godwit", &["store", "backup", "--admin", &town.relay.admin, "--to", &copy], 3)?;
    town.chat("alice", &["send", &chat, "after the backup"])?;
    town.json("bob", &["listen", "--count", "2", "--for", "20"])?;
    town.relay.kill().await?;
    let data = town.path("relay");
    std::fs::copy(&copy, Path::new(&data).join("store.redb"))?;
    town.relay = RelayProcess::dev(Path::new(&data), &town.relay.quic).await?;
    // The home forgot a message that alice's device still has: it is sent again, and what follows comes after it.
    town.chat("alice", &["send", &chat, "after the restore"])?;
    let history = town.json("bob", &["history", &chat])?;
    let texts: Vec<_> = messages(&history).iter().map(|m| m["text"].clone()).collect();
    ensure!(texts == ["before the backup", "after the backup", "after the restore"], "{texts:?}");
    Ok(())
}

/// `godwit`, for a server that takes any credentials: whether it succeeded, and all that it said.
fn with_credentials(args: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = std::process::Command::new(commands().join("godwit"));
    let output = command.args(args).env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any").output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_moves_into_tables_that_relays_share() -> Result<()> {
    let mut town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    town.chat("alice", &["send", &chat, "in the file"])?;
    let file = town.path("picture");
    std::fs::write(&file, "a picture")?;
    town.chat("alice", &["attach", &chat, &file])?;
    let (certs, data, config) = (town.path("relay/certs/eu/eu-1"), town.path("relay"), town.path("relay.toml"));
    let text = format!(
        "listen = \"{}\"\nadmin = \"127.0.0.1:0\"\ncerts = \"{certs}\"\ndata = \"{data}\"\n\n\
         [store]\nengine = \"dynamodb\"\n\n[attachments]\nstore = \"off\"\n\n\
         [dynamodb]\nregion = \"us-east-1\"\nendpoint = \"{}\"\nprefix = \"{}\"\n",
        town.relay.quic,
        Server::Dynoxide.endpoint().await?,
        dynamo::prefix(),
    );
    std::fs::write(&config, text)?;
    let store = |verb: &str, more: &[&str], code: i32| -> Result<String> {
        let (ended, said) = with_credentials(&[&["store", verb, "--config", &config], more].concat())?;
        ensure!(ended == Some(code), "store {verb}: {ended:?} instead of {code}: {said}");
        Ok(said)
    };
    ensure!(store("copy", &[], 5)?.contains("in use by another process"), "the relay runs");
    town.relay.kill().await?;
    // Nobody has made the tables.
    store("copy", &["--leave-attachments"], 2)?;
    store("init", &[], 0)?;
    let said = store("copy", &[], 2)?;
    ensure!(said.contains("1 attachments are files in") && said.contains("--leave-attachments"), "{said}");
    let said = store("copy", &["--leave-attachments"], 0)?;
    ensure!(said.contains("copied and read back: ") && said.contains("the store of region eu is ready"), "{said}");
    ensure!(store("check", &[], 0)?.starts_with("1 chats, 3 entries, 2 devices, 1 inbox rows"), "checked");
    ensure!(store("copy", &["--leave-attachments"], 2)?.contains("is not empty"), "it is there");
    let mut command = tokio::process::Command::new(commands().join("godwit"));
    command.args(["relay", "--config", &config]).env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any");
    town.relay = RelayProcess::spawn(command).await?;
    let said = fail("godwit", &["store", "backup", "--admin", &town.relay.admin, "--to", &town.path("copy")], 3)?;
    ensure!(said.contains("409") && said.contains("by its own means"), "{said}");
    town.chat("alice", &["send", &chat, "in the tables"])?;
    let heard = town.json("bob", &["listen", "--count", "3", "--for", "20"])?;
    let texts: Vec<_> = messages(&heard).iter().map(|m| m["text"].clone()).collect();
    ensure!(texts.first() == Some(&"in the file".into()) && texts.last() == Some(&"in the tables".into()), "{heard:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_store_that_cannot_be_used_says_what_to_change() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (certs, config, prefix) = (at("certs"), at("relay.toml"), dynamo::prefix());
    succeed("godwit", &["certs", "init", "--dir", &certs, "--region", "eu"])?;
    succeed("godwit", &["certs", "relay", "--dir", &certs, "--id", "eu/eu-1"])?;
    let text = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ncerts = \"{certs}/eu/eu-1\"\ndata = \"{}\"\n\n\
         [store]\nengine = \"dynamodb\"\n\n[attachments]\nstore = \"off\"\n\n[dynamodb]\nprefix = \"{prefix}\"\n",
        at("data")
    );
    std::fs::write(&config, text)?;
    let endpoint = Server::Dynoxide.endpoint().await?;
    let (nobody, here) = ("http://127.0.0.1:1", ("GODWIT_DYNAMODB__ENDPOINT", endpoint));
    let region = ("GODWIT_DYNAMODB__REGION", "us-east-1");
    let (id, secret) = (("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any"));
    let godwit = |verb: &[&str], environment: &[(&str, &str)], code: i32, what: &str| -> Result<()> {
        let mut command = std::process::Command::new(commands().join("godwit"));
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"] {
            command.env_remove(name);
        }
        command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command.env("AWS_EC2_METADATA_DISABLED", "true").envs(environment.iter().copied());
        let output = command.args(verb).args(["--config", &config]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code) && said.contains(what), "{verb:?}: {}: {said}", output.status);
        Ok(())
    };
    let (init, check, relay) = (&["store", "init"][..], &["store", "check"][..], &["relay"][..]);
    for verb in [init, check, relay] {
        godwit(verb, &[here, id, secret], 2, "dynamodb.region: not given")?;
        godwit(verb, &[here, region], 2, "no AWS credentials")?;
        godwit(verb, &[("GODWIT_DYNAMODB__ENDPOINT", nobody), region, id, secret], 4, nobody)?;
    }
    let all = [here, region, id, secret];
    for verb in [check, relay] {
        godwit(verb, &all, 2, "`godwit store init` makes them, unless dynamodb.prefix")?;
    }
    godwit(init, &all, 0, "")?;
    // A table of a store that is in use must not come back empty.
    let inbox = format!("{prefix}eu-inbox");
    dynamo::remove_table(endpoint, &inbox).await?;
    godwit(relay, &all, 2, &inbox)?;
    godwit(init, &all, 6, &inbox)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_runs_from_a_configuration() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (certs, config) = (at("certs"), at("relay.toml"));
    succeed("godwit", &["certs", "init", "--dir", &certs, "--region", "eu"])?;
    fail("godwit", &["certs", "init", "--dir", &certs, "--region", "eu"], 2)?;
    succeed("godwit", &["certs", "relay", "--dir", &certs, "--id", "eu/eu-7"])?;
    for name in ["root.key", "tokens.key", "eu/issuer.key", "eu/eu-7/relay.key", "eu/eu-7/issuer.key"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(Path::new(&certs).join(name))?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{name} has mode {mode:o}");
    }
    let text = |limit: &str| {
        format!(
            "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ncerts = \"{certs}/eu/eu-7\"\ndata = \"{}\"\n\n[limits]\nsends_per_second = {limit}\n",
            at("data")
        )
    };
    std::fs::write(&config, text("0"))?;
    let said = fail("godwit", &["relay", "--config", &config], 2)?;
    ensure!(said.contains("relay.toml:7: sends_per_second: must be a whole number from 1"), "{said}");
    std::fs::write(&config, text("77"))?;
    let shown = succeed("godwit", &["config", "--config", &config])?;
    ensure!(shown.contains("sends_per_second = 77  # ") && shown.contains("relay.toml:7"), "{shown}");
    let mut command = tokio::process::Command::new(commands().join("godwit"));
    command.args(["relay", "--config", &config]).env("GODWIT_LOG", "warn");
    let relay = RelayProcess::spawn(command).await?;
    ensure!(relay.ready.starts_with("ready relay=eu-7 "), "{}", relay.ready);
    let get = |path| process::get(&relay.admin, path);
    ensure!(get("/healthz")?.starts_with("HTTP/1.1 200"), "healthz");
    ensure!(get("/readyz")?.starts_with("HTTP/1.1 200"), "readyz");
    let metrics = get("/metrics")?;
    for name in [
        "godwit_certificate_expiry_seconds",
        "godwit_connections",
        "godwit_inbox_rows",
        "godwit_inbox_oldest_age_seconds",
    ] {
        ensure!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    // A certificate that nobody would trust is not taken, neither by a running relay nor by one that starts.
    let other = at("other");
    succeed("godwit", &["certs", "init", "--dir", &other, "--region", "eu"])?;
    succeed("godwit", &["certs", "relay", "--dir", &other, "--id", "eu/eu-7"])?;
    for (kind, files) in [("relay", ["relay.crt", "relay.key"]), ("issuer", ["issuer.crt", "issuer.key"])] {
        let file = |dir: &str, name: &str| format!("{dir}/eu/eu-7/{name}");
        for name in files {
            std::fs::rename(file(&certs, name), at(name))?;
            std::fs::copy(file(&other, name), file(&certs, name))?;
        }
        let said = fail("godwit", &["relay", "--config", &config, "--data", &at("second")], 2)?;
        ensure!(said.contains(&format!("{kind}.crt: the certificate is not of this authority")), "{said}");
        for name in files {
            std::fs::rename(at(name), file(&certs, name))?;
        }
    }
    // One that is made anew is.
    succeed("godwit", &["certs", "relay", "--dir", &certs, "--id", "eu/eu-7", "--renew"])?;
    let id = relay.id().context("running")?.to_string();
    ensure!(std::process::Command::new("kill").args(["-HUP", &id]).status()?.success(), "SIGHUP");
    let renewed = read_chain(Path::new(&format!("{certs}/eu/eu-7/relay.crt")))?;
    let root = read_certificate(Path::new(&format!("{certs}/root.crt")))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tls = tls::client(&Crypto::system(), &root, None, ALPN_ENROL)?;
        let served = wire::dial(relay.quic.parse()?, tls).await?.peer_identity().context("a certificate")?;
        if served.downcast_ref::<Vec<_>>() == Some(&renewed) {
            break;
        }
        ensure!(Instant::now() < deadline, "the new certificate is not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Output that goes nowhere, and readers who have enough.
#[tokio::test(flavor = "multi_thread")]
async fn closed_outputs_end_commands_without_a_panic() -> Result<()> {
    let town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    let lines: Vec<String> = (0..200).map(|n| format!("{n}\n")).collect();
    run_with_input("godwit-chat", &["--home", &town.path("alice"), "send", &chat, "-"], &lines.concat())?;
    let bin = commands().display();
    let (alice, bob, none) = (town.path("alice"), town.path("bob"), town.path("none"));
    for (script, expected) in [
        (format!("{bin}/godwit config >/dev/full"), 1),
        (format!("{bin}/godwit frobnicate 2>/dev/full"), 2),
        (format!("{bin}/godwit-chat --home {none} chats 2>/dev/full"), 2),
        (format!("{bin}/godwit-chat --home {alice} history {chat} >/dev/full"), 1),
        (
            format!("{bin}/godwit-chat --home {alice} history {chat} --limit 200 | head -n 1; exit ${{PIPESTATUS[0]}}"),
            0,
        ),
        (format!("{bin}/godwit-chat --home {bob} listen --for 20 | head -n 2; exit ${{PIPESTATUS[0]}}"), 0),
        // Whoever has seen enough of what is told does not stop the sending.
        (
            format!("seq 1 3000 | {bin}/godwit-chat --home {alice} send {chat} - | head -n 1; exit ${{PIPESTATUS[1]}}"),
            0,
        ),
    ] {
        let output = std::process::Command::new("bash").args(["-c", &script]).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(expected), "{script}: {} instead of {expected}: {errors}", output.status);
        ensure!(!errors.contains("panicked"), "{script}: {errors}");
    }
    let last = town.json("bob", &["history", &chat, "--limit", "1"])?;
    ensure!(messages(&last).iter().map(|m| &m["text"]).eq(["3000"]), "{last:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_lasts_as_long_as_the_outbox_gets_shorter() -> Result<()> {
    let town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    let lines: Vec<String> = (0..5000).map(|n| format!("{n}\n")).collect();
    let home = town.path("alice");
    // Sent with a burst of 5,000 and then 500 a second: the last takes longer than its time-out.
    run_with_input("godwit-chat", &["--home", &home, "send", &chat, "-", "--wait", "pending"], &lines.concat())?;
    run_with_input(
        "godwit-chat",
        &["--home", &home, "send", &chat, "-", "--wait", "pending"],
        &lines[..1000].concat(),
    )?;
    let unsent = town.json("alice", &["outbox"])?;
    ensure!(unsent.iter().all(|line| line["chat"] == chat.as_str()), "{unsent:?}");
    town.chat("alice", &["send", &chat, "last", "--timeout", "1s"])?;
    ensure!(town.json("alice", &["outbox", "--wait"])?.is_empty(), "nothing is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn history_below_what_does_not_exist_yet_is_the_newest() -> Result<()> {
    let town = Town::new(&["alice", "bob"]).await?;
    let chat = town.chat("alice", &["direct", "bob@eu"])?.trim().to_owned();
    run_with_input("godwit-chat", &["--home", &town.path("alice"), "send", &chat, "-"], "one\ntwo\nthree\n")?;
    for before in ["5", "6", "99999999999"] {
        for user in ["alice", "bob"] {
            let page = town.json(user, &["history", &chat, "--before", before, "--limit", "2"])?;
            let texts: Vec<_> = messages(&page).iter().map(|m| m["text"].clone()).collect();
            ensure!(texts == ["two", "three"], "{user}, before {before}: {texts:?}");
        }
    }
    let page = town.json("bob", &["history", &chat, "--before", "4"])?;
    ensure!(messages(&page).iter().map(|m| &m["text"]).eq(["one", "two"]), "{page:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_well() -> Result<()> {
    let output = succeed("godwit", &["demo"])?;
    let last = output.lines().last().unwrap_or_default();
    ensure!(last.starts_with("demo: ok: ") && last.ends_with(" messages, 0 lost, 0 doubled, 0 out of order"), "{last}");
    Ok(())
}
