//! Processes killed with kill -9 at random points, under load. Rounds: 10, or `CRASH_ROUNDS`.

use anyhow::{Context, Result, bail, ensure};
use godwit_checker::app;
use godwit_checker::{Checker, RealTime, What};
use godwit_client::{ChatId, Client, ClientOptions, Content, Member, Role, Title};
use godwit_tests::lab::PATIENCE;
use godwit_tests::process::{RelayProcess, commands, run_with_input, succeed};
use godwit_tests::processes::{Processes, enrol};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

/// Messages that each device sends in a round.
const MESSAGES: u64 = 40;

fn rounds() -> u64 {
    std::env::var("CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// A device whose app tells the checker.
struct Device {
    client: Arc<Client>,
    checker: Checker,
}

impl Device {
    async fn new(checker: &Checker, folder: &Path, relays: Vec<String>, device: &str) -> Result<Self> {
        let home = enrol(folder, relays, device).await?;
        let client = Arc::new(Client::open(ClientOptions::new(home))?);
        checker.enrolled(client.device());
        let (taker, of_app, events) = (client.clone(), checker.clone(), client.events()?);
        tokio::spawn(async move {
            if let Err(error) = app::run(&of_app, &taker, events, || Duration::ZERO).await {
                of_app.broken(format!("{}: its app ends: {error}", taker.device()));
            }
        });
        client.wait_synced(PATIENCE).await?;
        Ok(Self { client, checker: checker.clone() })
    }

    fn group(&self, others: &[&str]) -> Result<ChatId> {
        let member = |user: &&str| Ok(Member { user: user.parse()?, role: Role::Member });
        let others: Vec<Member> = others.iter().map(member).collect::<Result<_>>()?;
        let (chat, created) = self.client.create_group(Title::default(), others.clone())?;
        let own = Member { user: self.client.device().user(), role: Role::Owner };
        let all = std::iter::once(own).chain(others).collect();
        self.checker.put(self.client.device(), &chat, created, What::Created(all));
        Ok(chat)
    }

    fn send(&self, chat: &ChatId, text: String) -> Result<()> {
        let id = self.client.send(chat, Content::text(&text))?;
        self.checker.put(self.client.device(), chat, id, What::Message(text));
        Ok(())
    }
}

/// Waits until everything has reached every device, and checks that all promises were kept.
async fn settled(checker: &Checker) -> Result<()> {
    let arrived = async {
        while !checker.unsettled().is_empty() && checker.verdict().is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(2 * PATIENCE, arrived).await.is_err() {
        let waits = checker.unsettled();
        bail!("{} wait, such as {:?}", waits.len(), waits.first());
    }
    checker.settle();
    checker.verdict()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_under_load_loses_doubles_and_reorders_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("relay");
    let mut relay = RelayProcess::dev(&data, "127.0.0.1:0").await?;
    let checker = Checker::new(RealTime::new());
    let mut devices = Vec::new();
    for name in ["alice@eu/phone", "alice@eu/laptop", "bob@eu/phone", "carol@eu/phone"] {
        devices.push(Device::new(&checker, folder.path(), vec![relay.quic.clone()], name).await?);
    }
    let chat = devices[0].group(&["bob@eu", "carol@eu"])?;
    settled(&checker).await?;
    for round in 0..rounds() {
        for n in 0..MESSAGES {
            for (i, device) in devices.iter().enumerate() {
                device.send(&chat, format!("{i} {round} {n}"))?;
            }
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..250))).await;
        relay.kill().await?;
        relay = RelayProcess::dev(&data, &relay.quic).await?;
    }
    settled(&checker).await?;
    for device in &devices {
        device.client.close().await;
    }
    relay.kill().await?;
    let report = succeed("godwit", &["store", "check", "--data", data.to_str().context("UTF-8")?])?;
    ensure!(report.contains("1 chats") && !report.contains("fault"), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_while_sending_sends_each_line_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let relay = RelayProcess::dev(&folder.path().join("relay"), "127.0.0.1:0").await?;
    let alice = enrol(folder.path(), vec![relay.quic.clone()], "alice@eu/phone").await?;
    let bob = enrol(folder.path(), vec![relay.quic.clone()], "bob@eu/phone").await?;
    let (alice, bob) = (alice.to_str().context("UTF-8")?.to_owned(), bob.to_str().context("UTF-8")?.to_owned());
    let chat = succeed("godwit-chat", &["--home", &alice, "direct", "bob@eu"])?.trim().to_owned();
    let mut line = 0;
    for _ in 0..rounds().min(10) {
        let mut child = tokio::process::Command::new(commands().join("godwit-chat"))
            .args(["--home", &alice, "send", &chat, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut stdin = child.stdin.take().context("standard input")?;
        let first = line;
        let feeding = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let mut fed = first;
            // It is killed while this runs.
            while fed < first + 2000 && stdin.write_all(format!("line {fed}\n").as_bytes()).await.is_ok() {
                fed += 1;
            }
        });
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..200))).await;
        child.kill().await?;
        feeding.await?;
        line += 2000;
    }
    let output = run_with_input("godwit-chat", &["--home", &alice, "send", &chat, "the last"], "")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let history = succeed("godwit-chat", &["--json", "--home", &bob, "history", &chat, "--limit", "100000"])?;
    let mut last: Option<u64> = None;
    let mut texts = 0;
    for entry in history.lines() {
        let entry: serde_json::Value = serde_json::from_str(entry)?;
        let Some(text) = entry["text"].as_str() else { continue };
        texts += 1;
        if let Some(n) = text.strip_prefix("line ") {
            let n: u64 = n.parse()?;
            ensure!(
                last.is_none_or(|last| n == last + 1 || (n.is_multiple_of(2000) && n > last)),
                "line {n} after {last:?}"
            );
            last = Some(n);
        }
    }
    ensure!(texts > 1, "something was sent before each kill");
    ensure!(history.trim_end().lines().last().is_some_and(|line| line.contains("the last")), "the last comes last");
    Ok(())
}

const RELAYS: [(&str, &str); 3] = [("eu/eu-1", "store"), ("us/us-1", "store"), ("eu/eu-2", "edge")];

/// Any relay of a cluster in two regions is killed under load. Rounds: 5, or `CLUSTER_CRASH_ROUNDS`.
#[tokio::test(flavor = "multi_thread")]
async fn relays_of_a_cluster_killed_under_load_lose_double_and_reorder_nothing() -> Result<()> {
    let rounds = std::env::var("CLUSTER_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5u32);
    let folder = tempfile::tempdir()?;
    let mut processes = Processes::start(folder.path(), &RELAYS, &[]).await?;
    let address = |processes: &Processes, i: usize| processes.relays[i].quic.clone();
    let checker = Checker::new(RealTime::new());
    let mut devices = Vec::new();
    // At home and abroad, at stores and at the edge; each knows two relays.
    for (name, near, far) in
        [("alice@eu/phone", 0, 2), ("alice@eu/laptop", 1, 2), ("bob@us/phone", 1, 0), ("dora@us/phone", 2, 0)]
    {
        let relays = vec![address(&processes, near), address(&processes, far)];
        let device = Device::new(&checker, folder.path(), relays, name).await;
        devices.push(device.with_context(|| name.to_owned())?);
    }
    let chat = devices[0].group(&["bob@us", "dora@us"])?;
    settled(&checker).await?;
    for round in 0..rounds {
        for n in 0..MESSAGES {
            for (i, device) in devices.iter().enumerate() {
                device.send(&chat, format!("{i} {round} {n}"))?;
            }
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..400))).await;
        processes.kill_and_start(fastrand::usize(..RELAYS.len())).await?;
    }
    settled(&checker).await?;
    for device in &devices {
        device.client.close().await;
    }
    Ok(())
}
