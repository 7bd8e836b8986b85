//! Networks that part: relays and clients in network namespaces of their own.

use anyhow::{Context, Result, ensure};
use godwit_certs::folder::AuthorityDir;
use godwit_tests::lab::PATIENCE;
use godwit_tests::netns::Net;
use godwit_tests::process::{RelayProcess, commands};
use godwit_tests::processes::member;
use godwit_wire::{Clock, DeviceId, RelayId};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Each on a host of its own.
const RELAYS: [(&str, &str); 3] = [("eu/eu-1", "store"), ("us/us-1", "store"), ("eu/eu-2", "edge")];
const EU: u8 = 0;
const US: u8 = 1;
const EDGE: u8 = 2;

struct World {
    relays: Vec<RelayProcess>,
    folder: tempfile::TempDir,
    net: Net,
}

impl World {
    /// None, with the reason printed, where the machine makes no namespaces.
    async fn new() -> Result<Option<Self>> {
        let hosts = u8::try_from(RELAYS.len())?;
        let net = match Net::new(hosts) {
            Ok(net) => net,
            Err(error) => {
                eprintln!("skipped: {error:#}");
                return Ok(None);
            }
        };
        let mut world = Self { relays: Vec::new(), folder: tempfile::tempdir()?, net };
        let authority = world.authority();
        let now = Clock::system().now();
        for (host, (id, role)) in (0..).zip(RELAYS) {
            let id: RelayId = id.parse()?;
            authority.ensure(&id.region(), now)?;
            let certs = authority.relay(&id, now)?;
            let join: Vec<&str> = world.relays.iter().map(|relay| relay.quic.as_str()).collect();
            let mut command = world.net.command(host, commands().join("godwit"));
            let at = format!("{}:4433", world.net.address(host));
            let data = world.folder.path().join(id.name());
            member(&mut command, (&at, "127.0.0.1:9443"), certs.path(), &data, role, &join);
            let relay = RelayProcess::spawn(command.into()).await?;
            world.relays.push(relay);
        }
        Ok(Some(world))
    }

    fn authority(&self) -> AuthorityDir {
        AuthorityDir::new(self.folder.path().join("certs"))
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.path().join("homes").join(name)
    }

    /// Runs `godwit-chat` for `name` on a host, until it does what it should.
    async fn chat(&self, host: u8, name: &str, args: &[&str], input: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.chat_once(host, name, args, input).await?;
            if output.status.success() {
                return Ok(String::from_utf8(output.stdout)?);
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(Instant::now() < deadline, "{name} {args:?}: {error}");
        }
    }

    async fn chat_once(&self, host: u8, name: &str, args: &[&str], input: &str) -> Result<std::process::Output> {
        let mut command = self.net.command(host, commands().join("godwit-chat"));
        command.arg("--home").arg(self.home(name)).args(args);
        let mut command: tokio::process::Command = command.into();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("standard input")?;
        let input = input.to_owned();
        let feeding = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            stdin.write_all(input.as_bytes()).await
        });
        let output =
            tokio::time::timeout(2 * PATIENCE, child.wait_with_output()).await.context("it does not end")??;
        // A command that ended early did not read everything.
        let _ = feeding.await?;
        Ok(output)
    }

    async fn enrol(&self, host: u8, name: &str, region: &str) -> Result<()> {
        let device: DeviceId = format!("{name}@{region}/phone").parse()?;
        let authority = self.authority();
        std::fs::create_dir_all(self.home(name).parent().unwrap_or(Path::new(".")))?;
        let root = authority.root_certificate_path();
        let token = authority.token(&device, Duration::from_mins(10), Clock::system().now())?;
        let relay = &self.relays[usize::from(host)].quic;
        let root = root.to_str().context("UTF-8")?;
        self.chat(host, name, &["enrol", "--relay", relay, "--authority", root, "--token", &token], "").await?;
        Ok(())
    }

    /// Writes numbered lines to a chat, which get so far.
    async fn send(&self, (host, name): (u8, &str), chat: &str, lines: std::ops::Range<u32>, wait: &str) -> Result<()> {
        let input = lines.map(|n| format!("{name} {n}\n")).collect::<Vec<_>>().concat();
        // Once: each line is another message.
        let output = self.chat_once(host, name, &["send", "--wait", wait, chat, "-"], &input).await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name} sends until {wait}: {error}");
        Ok(())
    }

    /// What a device has of a chat, once it is all of it.
    async fn history(&self, (host, name): (u8, &str), chat: &str, lines: usize) -> Result<Vec<String>> {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let all = self.chat(host, name, &["--json", "history", chat, "--limit", "1000"], "").await?;
            let mut texts = Vec::new();
            for line in all.lines() {
                let entry: serde_json::Value = serde_json::from_str(line)?;
                texts.extend(entry["text"].as_str().map(str::to_owned));
            }
            if texts.len() >= lines {
                return Ok(texts);
            }
            ensure!(Instant::now() < deadline, "{name} has {} of {lines} messages", texts.len());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The lines of `name` in their order, each once.
fn ordered(texts: &[String], name: &str, count: u32) -> Result<()> {
    let own: Vec<&str> = texts.iter().filter_map(|text| text.strip_prefix(name)?.strip_prefix(' ')).collect();
    let expected: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    ensure!(own == expected, "of {name}: {own:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_cut_off_or_hears_without_being_heard_loses_nothing() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    world.enrol(EU, "alice", "eu").await?;
    world.enrol(US, "bob", "us").await?;
    world.enrol(EDGE, "carol", "eu").await?;
    let (alice, bob, carol) = ((EU, "alice"), (US, "bob"), (EDGE, "carol"));
    // At home in eu.
    let chat = world.chat(EU, "alice", &["new", "walks", "bob@us", "carol@eu"], "").await?.trim().to_owned();
    world.send(alice, &chat, 0..10, "sent").await?;
    world.history(bob, &chat, 10).await?;

    world.net.cut(US, true)?;
    world.send(alice, &chat, 10..30, "sent").await?;
    world.send(bob, &chat, 0..20, "queued").await?;
    world.send(carol, &chat, 0..20, "sent").await?;
    world.net.cut(US, false)?;
    world.send(alice, &chat, 30..40, "sent").await?;
    let healed = world.history(bob, &chat, 10 + 20 + 20 + 20 + 10).await?;
    for (name, count) in [("alice", 40), ("bob", 20), ("carol", 20)] {
        ordered(&healed, name, count)?;
    }

    // What us says is heard; what eu's store says to it is not.
    world.net.lose(EU, US, true)?;
    world.send(alice, &chat, 40..60, "sent").await?;
    world.send(bob, &chat, 20..40, "queued").await?;
    world.net.lose(EU, US, false)?;
    world.send(alice, &chat, 60..70, "sent").await?;
    let total = 70 + 40 + 20;
    let mut seen = Vec::new();
    for device in [alice, bob, carol] {
        let texts = world.history(device, &chat, total).await?;
        for (name, count) in [("alice", 70), ("bob", 40), ("carol", 20)] {
            ordered(&texts, name, count)?;
        }
        ensure!(texts.len() == total, "{} has {} messages", device.1, texts.len());
        seen.push(texts);
    }
    ensure!(seen.windows(2).all(|pair| pair[0] == pair[1]), "one order everywhere");
    Ok(())
}
