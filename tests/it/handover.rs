//! Devices that go from relay to relay: a relay that drains, one that has too much to do, one that is full.

use anyhow::{Result, ensure};
use godwit_client::{ChatId, Client, ClientOptions, ConnectionState, Event, MessageState};
use godwit_tests::cluster::{Cluster, until};
use godwit_tests::lab::PATIENCE;
use godwit_tests::process;
use godwit_tests::processes::{Processes, enrol};
use godwit_tests::talk::{numbered, send, texts};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const THREE: [(&str, &str); 3] = [("eu/eu-1", "store"), ("eu/eu-2", "edge"), ("us/us-1", "store")];

fn at(client: &Client) -> String {
    match client.connection_state() {
        ConnectionState::Connected(address) => address,
        other => other.to_string(),
    }
}

/// Two who talk, until they are told to stop.
struct Pair {
    writer: Arc<Client>,
    reader: Arc<Client>,
    chat: ChatId,
}

impl Pair {
    async fn new(cluster: &Cluster, n: usize, relays: &[&str]) -> Result<Self> {
        let writer = Arc::new(cluster.client(&format!("writer{n}@eu/phone"), relays).await?);
        let reader = Arc::new(cluster.client(&format!("reader{n}@eu/phone"), relays).await?);
        let (chat, _) = writer.direct(format!("reader{n}@eu").parse()?)?;
        send(&writer, &chat, 0..1, MessageState::Delivered).await?;
        Ok(Self { writer, reader, chat })
    }

    /// Writes one number after the other. Gives how many were written, all of them delivered.
    async fn write(writer: Arc<Client>, chat: ChatId, stop: Arc<AtomicBool>) -> Result<usize> {
        let mut count = 1;
        while !stop.load(Ordering::Relaxed) {
            send(&writer, &chat, count..count + 1, MessageState::Sent).await?;
            count += 1;
        }
        send(&writer, &chat, count..count + 1, MessageState::Delivered).await?;
        Ok(count + 1)
    }
}

/// What a client was told of its connection, from now on.
fn states(client: &Client) -> Result<impl FnOnce() -> Vec<ConnectionState> + use<>> {
    let mut events = client.events()?;
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Some(Ok(next)) = events.next().await {
            if let Event::ConnectionChanged(state) = next.event {
                noted.lock().expect("not poisoned").push(state);
            }
        }
    });
    Ok(move || seen.lock().expect("not poisoned").clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_relay_hands_over_devices_that_never_miss_it() -> Result<()> {
    let mut cluster = Cluster::start(&THREE).await?;
    let mut pairs = Vec::new();
    for n in 0..4 {
        pairs.push(Pair::new(&cluster, n, &["eu/eu-2"]).await?);
    }
    let old = cluster.address("eu/eu-2").to_string();
    let clients = || pairs.iter().flat_map(|pair| [&pair.writer, &pair.reader]);
    ensure!(clients().all(|client| at(client) == old), "all begin at the edge");
    let told: Vec<_> = clients().map(|client| states(client)).collect::<Result<_>>()?;
    let stop = Arc::new(AtomicBool::new(false));
    let writing: Vec<_> = pairs
        .iter()
        .map(|pair| tokio::spawn(Pair::write(pair.writer.clone(), pair.chat.clone(), stop.clone())))
        .collect();
    cluster.relay("eu/eu-2").drain(PATIENCE).await;
    until("all to be elsewhere", || clients().all(|client| at(client) != old && at(client).contains(':'))).await?;
    ensure!(cluster.metric("eu/eu-2", "godwit_handovers_total") > 7.5, "eight were handed over");
    cluster.down("eu/eu-2").await;
    stop.store(true, Ordering::Relaxed);
    for (pair, writing) in pairs.iter().zip(writing) {
        let count = writing.await??;
        numbered(&texts(&pair.reader, &mut pair.reader.events()?, count).await?, 0)?;
    }
    for told in told {
        let told = told();
        ensure!(
            !told.is_empty() && told.iter().all(|state| matches!(state, ConnectionState::Connected(_))),
            "{told:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_relay_hands_over_its_devices_and_their_messages_wait_for_it() -> Result<()> {
    let mut cluster = Cluster::start(&THREE).await?;
    let pair = Pair::new(&cluster, 0, &["eu/eu-1"]).await?;
    cluster.relay("eu/eu-1").drain(PATIENCE).await;
    let edge = cluster.address("eu/eu-2").to_string();
    until("the writer to be at the edge of the region", || at(&pair.writer) == edge).await?;
    cluster.down("eu/eu-1").await;
    send(&pair.writer, &pair.chat, 1..50, MessageState::Queued).await?;
    // The edge has something that waits: it may not go yet.
    cluster.relay("eu/eu-2").drain(Duration::from_millis(500)).await;
    let far = cluster.address("us/us-1").to_string();
    until("its devices to have gone", || at(&pair.writer) == far).await?;
    cluster.up("eu/eu-1").await?;
    cluster.relay("eu/eu-2").drained().await;
    send(&pair.writer, &pair.chat, 50..60, MessageState::Delivered).await?;
    numbered(&texts(&pair.reader, &mut pair.reader.events()?, 60).await?, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_relay_takes_no_new_devices_and_says_who_does() -> Result<()> {
    let cluster = Cluster::start(&THREE).await?;
    cluster.relay("eu/eu-2").drain(PATIENCE).await;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    ensure!(at(&alice) == cluster.address("eu/eu-1").to_string(), "sent to the other relay of the region");
    ensure!(cluster.metric("eu/eu-2", "godwit_redirects_total") > 0.5, "it was sent there");
    let admin = cluster.relay("eu/eu-2").admin.to_string();
    ensure!(process::get(&admin, "/readyz")?.contains("503"), "load balancers are told");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_relay_sends_devices_on() -> Result<()> {
    let mut cluster = Cluster::start(&[("eu/eu-1", "store")]).await?;
    cluster.add("eu/eu-2", "edge", &[("admission.connections", "3")]).await?;
    cluster.meet().await?;
    let mut clients = Vec::new();
    for n in 0..6 {
        clients.push(cluster.client(&format!("user{n}@eu/phone"), &["eu/eu-2"]).await?);
    }
    let full = cluster.address("eu/eu-2").to_string();
    ensure!(clients.iter().filter(|client| at(client) == full).count() == 3, "no more than it takes");
    ensure!(clients.iter().all(|client| at(client).contains(':')), "the others are at the other relay");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_relay_is_restarted_under_load_and_nobody_notices() -> Result<()> {
    let mut cluster = Cluster::start(&THREE).await?;
    let mut pairs = Vec::new();
    for n in 0..3 {
        pairs.push(Pair::new(&cluster, n, &["eu/eu-1", "eu/eu-2", "us/us-1"]).await?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writing: Vec<_> = pairs
        .iter()
        .map(|pair| tokio::spawn(Pair::write(pair.writer.clone(), pair.chat.clone(), stop.clone())))
        .collect();
    for id in ["eu/eu-2", "us/us-1", "eu/eu-1"] {
        cluster.relay(id).drain(PATIENCE).await;
        cluster.down(id).await;
        cluster.up(id).await?;
        cluster.meet().await?;
    }
    stop.store(true, Ordering::Relaxed);
    for (pair, writing) in pairs.iter().zip(writing) {
        let count = writing.await??;
        numbered(&texts(&pair.reader, &mut pair.reader.events()?, count).await?, 0)?;
        ensure!(pair.writer.unsent()?.is_empty(), "nothing is left");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_is_a_command_and_a_lone_relay_refuses_it() -> Result<()> {
    let cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge")]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    let admin = cluster.relay("eu/eu-2").admin.to_string();
    let drained =
        tokio::task::spawn_blocking(move || process::succeed("godwit", &["drain", "--admin", &admin])).await??;
    ensure!(drained.starts_with("drained"), "{drained}");
    let other = cluster.address("eu/eu-1").to_string();
    until("alice to be at the other relay", || at(&alice) == other).await?;
    let status = cluster.relay("eu/eu-1");
    let draining = || status.cluster().members.iter().any(|member| member.state == "draining");
    until("the others to know", draining).await?;
    let alone = Cluster::start(&[("eu/eu-1", "store")]).await?;
    let admin = alone.relay("eu/eu-1").admin.to_string();
    let refused =
        tokio::task::spawn_blocking(move || process::fail("godwit", &["drain", "--admin", &admin], 3)).await??;
    ensure!(refused.contains("no other relay"), "{refused}");
    // It serves on.
    let pair = Pair::new(&alone, 0, &["eu/eu-1"]).await?;
    send(&pair.writer, &pair.chat, 1..10, MessageState::Delivered).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_device_of_a_killed_relay_finds_another_by_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut processes = Processes::start(folder.path(), &THREE, &[]).await?;
    // It was told of the edge alone, and says nothing.
    let home = enrol(folder.path(), vec![processes.relays[1].quic.clone()], "alice@eu/phone").await?;
    let alice = Client::open(ClientOptions::new(home))?;
    alice.wait_synced(PATIENCE).await?;
    let others = [&processes.relays[0].quic, &processes.relays[2].quic].map(Clone::clone);
    ensure!(at(&alice) == processes.relays[1].quic, "at the edge");
    processes.relays[1].kill().await?;
    let killed = processes.relays[1].quic.clone();
    // The transport would give up after 30 seconds; what it sends without an answer says so sooner.
    let begun = Instant::now();
    until("alice to be elsewhere", || others.contains(&at(&alice))).await?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "within seconds, not after {:?}", begun.elapsed());
    let admin = processes.relays[0].admin.clone();
    let shown = tokio::task::spawn_blocking(move || {
        loop {
            let status = process::succeed("godwit", &["status", "--admin", &admin])?;
            let line = status.lines().find(|line| line.contains(&killed));
            // Until it is declared down it is shown as it was.
            if line.is_none_or(|line| !line.contains(" up ")) {
                return anyhow::Ok(line.map(str::to_owned));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let line = tokio::time::timeout(PATIENCE, shown).await???;
    ensure!(line.as_ref().is_some_and(|line| line.contains(" down ")), "an operator sees who is missing: {line:?}");
    Ok(())
}
