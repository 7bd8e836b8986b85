//! `godwit demo`: a relay and its clients at work, over real sockets and with a real crash.

mod people;

use crate::fault::{FAULT, Fault, print, say};
use anyhow::{Context, Result, bail, ensure};
use godwit_client::{Change, Content, Member, MessageState, Role, Title};
use people::{Device, Tally};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const REGION: &str = "eu";
/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(1);
const OFFLINE_MESSAGES: u64 = 100;
const CRASH_MESSAGES: u64 = 300;

pub(crate) async fn run() -> Result<(), Fault> {
    let folder = tempfile::Builder::new().prefix("godwit-demo-").tempdir().context("a temporary folder")?;
    match acts(folder.path()).await {
        Ok(tally) => print(&format!("demo: ok: {}", tally.line())),
        Err(error) => {
            let log = std::fs::read_to_string(folder.path().join("relay.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            for line in last.iter().rev() {
                say(&format!("relay: {line}"));
            }
            Err(Fault::new(FAULT, error.context("demo: failed")))
        }
    }
}

/// A relay in a process of its own, as `godwit dev` runs it.
struct RelayProcess {
    child: Child,
    quic: String,
}

impl RelayProcess {
    async fn start(folder: &Path, listen: &str) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("relay.log"))?;
        let mut child = Command::new(std::env::current_exe().context("this program's path")?)
            .args(["dev", "--listen", listen, "--admin", "127.0.0.1:0", "--region", REGION, "--data"])
            .arg(folder.join("relay"))
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start a relay")?;
        let out = child.stdout.take().context("the relay's output")?;
        let mut lines = BufReader::new(out).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("the relay is not ready")??;
        let line = line.context("the relay ended before it was ready")?;
        // The rest of what it prints is read too, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let quic =
            line.split(' ').find_map(|word| word.strip_prefix("quic=")).context("no address in the ready line")?;
        Ok(Self { child, quic: quic.to_owned() })
    }

    /// kill -9.
    async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill the relay")
    }
}

struct Step(Instant);

impl Step {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn done(self, what: impl AsRef<str>) {
        let line = format!("{:>8.1} ms  {}", self.0.elapsed().as_secs_f64() * 1000.0, what.as_ref());
        // The steps are for whoever watches; the last line is what counts.
        drop(print(&line));
    }
}

async fn acts(folder: &Path) -> Result<Tally> {
    let step = Step::begin();
    let mut relay = RelayProcess::start(folder, "127.0.0.1:0").await?;
    step.done(format!("a relay with its own authority and an empty store, at {}", relay.quic));

    let step = Step::begin();
    let enrol =
        |name: &'static str, device: &'static str| Device::enrol(folder, REGION, name, device, relay.quic.clone());
    let phone = enrol("alice", "phone").await?;
    let laptop = enrol("alice", "laptop").await?;
    let bob = enrol("bob", "phone").await?;
    let carol = enrol("carol", "phone").await?;
    step.done("alice (phone, laptop), bob and carol enrolled with one-time tokens");

    let mut tally = Tally::default();

    let step = Step::begin();
    let (chat, created) = phone.client().direct(bob.user.clone())?;
    if let Some(created) = created {
        phone.client().wait_for(created, MessageState::Sent, PATIENCE).await?;
    }
    step.done("a direct chat of alice and bob");

    let step = Step::begin();
    phone.client().send(&chat, Content::text("hello bob"))?;
    tally.expect(&chat, 1, &[&laptop, &bob]);
    tally.settle(&[&laptop, &bob]).await?;
    step.done("alice's message is on bob's phone and on her own laptop");

    let step = Step::begin();
    bob.client().send(&chat, Content::text("hello alice"))?;
    tally.expect(&chat, 1, &[&phone, &laptop]);
    tally.settle(&[&phone, &laptop]).await?;
    step.done("bob's answer is on both of alice's devices");

    let step = Step::begin();
    let members = [&bob, &carol].map(|device| Member { user: device.user.clone(), role: Role::Member });
    let (group, created) = phone.client().create_group(Title::parse("walks")?, members.to_vec())?;
    phone.client().wait_for(created, MessageState::Sent, PATIENCE).await?;
    phone.client().send(&group, Content::text("who comes along?"))?;
    tally.expect(&group, 1, &[&laptop, &bob, &carol]);
    tally.settle(&[&laptop, &bob, &carol]).await?;
    step.done("a group of three, and its first message everywhere");

    let step = Step::begin();
    carol.go_offline().await;
    for n in 1..=OFFLINE_MESSAGES {
        bob.client().send(&group, Content::text(format!("while carol is away, {n}")))?;
    }
    tally.expect(&group, OFFLINE_MESSAGES, &[&phone, &laptop, &carol]);
    tally.settle(&[&phone, &laptop]).await?;
    step.done(format!("carol offline; {OFFLINE_MESSAGES} messages reach everybody else"));

    let step = Step::begin();
    carol.go_online()?;
    tally.settle(&[&carol]).await?;
    step.done(format!("carol is back and has all {OFFLINE_MESSAGES}, in order"));

    let step = Step::begin();
    let before = bob.received(&group);
    for n in 1..=CRASH_MESSAGES {
        phone.client().send(&group, Content::text(format!("across the crash, {n}")))?;
    }
    tally.expect(&group, CRASH_MESSAGES, &[&laptop, &bob, &carol]);
    // In the middle: some have arrived, most have not.
    let in_the_middle = async {
        while bob.received(&group) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, in_the_middle).await.context("no message arrives")?;
    relay.kill().await?;
    step.done("kill -9 of the relay in the middle of sending");

    let step = Step::begin();
    let mut relay = RelayProcess::start(folder, &relay.quic).await?;
    step.done("the relay is back on its store");

    let step = Step::begin();
    tally.settle(&[&laptop, &bob, &carol]).await?;
    step.done(format!("all {CRASH_MESSAGES} are with everybody, each once and in order"));

    let step = Step::begin();
    let change = Change::Title(Title::parse("long walks")?);
    let renamed = phone.client().update_chat(&group, change)?;
    let last = phone.client().wait_for(renamed, MessageState::Delivered, PATIENCE).await?;
    step.done("the group has a new title, and every participant has it");

    let step = Step::begin();
    let seq = last.seq.context("a delivered change has a seq")?;
    let limit = usize::try_from(seq.get())?;
    let mut shown = Vec::new();
    for device in [&phone, &laptop, &bob, &carol] {
        let history = device.client().history(&group, None, limit).await?;
        ensure!(history.len() == limit, "{} sees {} of {limit} entries", device.name, history.len());
        ensure!(history.iter().zip(1..).all(|(entry, n)| entry.seq.get() == n), "{} sees gaps", device.name);
        shown.push(history.iter().map(|entry| (entry.seq, entry.from.clone())).collect::<Vec<_>>());
    }
    ensure!(shown.windows(2).all(|pair| pair[0] == pair[1]), "histories differ");
    step.done(format!("history: the same {limit} entries on all four devices"));

    for device in [&phone, &laptop, &bob, &carol] {
        device.go_offline().await;
    }
    relay.kill().await?;
    if let Some(fault) = tally.fault() {
        bail!(fault);
    }
    Ok(tally)
}

/// Where a device of the demo lives.
fn home(folder: &Path, name: &str) -> PathBuf {
    folder.join(name.replace(['@', '/'], "-"))
}
