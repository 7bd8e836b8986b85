//! What a message costs on a shared store, counted.

use anyhow::{Context, Result, ensure};
use godwit_client::{ChatId, Client, Content, MessageState, Role, Title};
use godwit_tests::cluster::{Cluster, until};
use godwit_tests::counted::Calls;
use godwit_tests::lab::PATIENCE;
use godwit_tests::talk::send;
use godwit_tests::wire::Wire;
use godwit_wire::entry::Member;
use godwit_wire::frame::{Ack, Event, Request};
use std::ops::Range;
use std::time::Duration;
use tokio::task::JoinSet;

/// Messages of one measurement.
const MESSAGES: usize = 100;
/// What a chat's checkpoints, made every two seconds at most, may add to it on a slow machine.
const CHECKPOINTS: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_live_message_is_one_write() -> Result<()> {
    let cluster = Cluster::sharing(&["eu/eu-1"]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let _bob = cluster.client("bob@eu/phone", &["eu/eu-1"]).await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    send(&alice, &chat, 0..10, MessageState::Delivered).await?;
    let before = cluster.counts().now();
    // One at a time: none shares its write with another.
    for n in 10..10 + MESSAGES {
        send(&alice, &chat, n..n + 1, MessageState::Sent).await?;
    }
    let Calls { reads, writes, .. } = cluster.counts().now().since(before);
    println!("1:1, live: {reads} reads, {writes} writes for {MESSAGES} messages");
    ensure!((MESSAGES as u64..MESSAGES as u64 + CHECKPOINTS).contains(&writes), "{writes} writes");
    ensure!(reads < CHECKPOINTS, "{reads} reads");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_are_away_cost_one_write_each_and_no_more() -> Result<()> {
    const AWAY: usize = 49;
    let cluster = Cluster::sharing(&["eu/eu-1"]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let mut members = Vec::new();
    for n in 0..AWAY {
        let member = cluster.client(&format!("user{n}@eu/phone"), &["eu/eu-1"]).await?;
        drop(member);
        members.push(Member { user: format!("user{n}@eu").parse()?, role: Role::Member });
    }
    until("all but alice to be gone", || cluster.metric("eu/eu-1", "godwit_connections") < 1.5).await?;
    let (chat, created) = alice.create_group(Title::parse("walks")?, members)?;
    alice.wait_for(created, MessageState::Sent, PATIENCE).await?;
    let rows = || cluster.metric("eu/eu-1", "godwit_inbox_rows_written_total");
    #[expect(clippy::cast_precision_loss, reason = "few")]
    until("a row for each", || rows() > AWAY as f64 - 0.5).await?;
    let before = cluster.counts().now();
    for n in 0..MESSAGES {
        send(&alice, &chat, n..n + 1, MessageState::Sent).await?;
    }
    let Calls { reads, writes, .. } = cluster.counts().now().since(before);
    println!("group of {AWAY} who are away: {reads} reads, {writes} writes for {MESSAGES} messages");
    ensure!(writes < MESSAGES as u64 + CHECKPOINTS + 2 * AWAY as u64, "{writes} writes");
    // Of all of them what is on its way when it is counted, and checkpoints.
    ensure!(reads < 3 * AWAY as u64 + CHECKPOINTS, "{reads} reads");
    Ok(())
}

/// Who else takes part in a chat.
#[derive(Clone, Copy)]
struct Case {
    others: usize,
    devices: usize,
    online: bool,
}

/// Once nothing was asked of the store for longer than a chat waits with its checkpoint.
async fn quiet(cluster: &Cluster) -> Calls {
    let mut known = cluster.counts().now();
    loop {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let now = cluster.counts().now();
        // Relays look for rows now and then.
        if (now.reads, now.writes) == (known.reads, known.writes) {
            return now;
        }
        known = now;
    }
}

/// As [`send`], with the patience for thousands of devices on a slow machine.
async fn say(client: &Client, chat: &ChatId, numbers: Range<usize>, state: MessageState) -> Result<()> {
    let contents = numbers.map(|n| Content::text(n.to_string())).collect();
    let ids = client.send_many(chat, contents)?;
    client.wait_for(*ids.last().context("sent")?, state, Duration::from_mins(5)).await?;
    Ok(())
}

/// A device that acknowledges whatever it gets, until the connection ends.
async fn acknowledge(mut device: Wire) {
    while let Ok(event) = device.event().await {
        if let Event::Entry { chat, entry } = event {
            let _ = device.ask(&Request::Ack(vec![Ack { chat, up_to: entry.seq }])).await;
        }
    }
}

impl Case {
    /// What each of many messages costs, what the chat costs when it wakes and falls silent again, and a device that comes
    /// back.
    async fn measure(self) -> Result<(Calls, Calls, Option<Calls>)> {
        let relay = "eu/eu-1";
        let cluster = Cluster::sharing(&[relay]).await?;
        let alice = cluster.client("alice@eu/phone", &[relay]).await?;
        let (mut members, mut devices) = (Vec::new(), Vec::new());
        for n in 0..self.others {
            members.push(Member { user: format!("user{n}@eu").parse()?, role: Role::Member });
            for device in 0..self.devices {
                devices.push(cluster.enrol(&format!("user{n}@eu/device{device}"), relay).await?);
            }
        }
        let one = devices[0].clone();
        let mut connected = JoinSet::new();
        for credential in devices.into_iter().filter(|_| self.online) {
            connected.spawn(acknowledge(cluster.connect(credential, relay).await?));
        }
        let chat = match self.others {
            1 => alice.direct("user0@eu".parse()?)?.0,
            _ => alice.create_group(Title::parse("walks")?, members)?.0,
        };
        let state = if self.online { MessageState::Delivered } else { MessageState::Sent };
        say(&alice, &chat, 0..10, state).await?;
        let before = quiet(&cluster).await;
        // It wakes.
        say(&alice, &chat, 10..11, state).await?;
        let awake = cluster.counts().now();
        let messages = if self.others > 100 { 30 } else { MESSAGES };
        for n in 11..11 + messages {
            // No faster than devices take them.
            say(&alice, &chat, n..n + 1, state).await?;
        }
        let many = cluster.counts().now().since(awake);
        let each = |calls: u64| (calls + messages as u64 / 2) / messages as u64;
        let message = Calls { reads: each(many.reads), lately: 0, writes: each(many.writes) };
        let all = quiet(&cluster).await.since(before);
        let without = |all: u64, each: u64| all.saturating_sub(each * (messages as u64 + 1));
        let silence =
            Calls { reads: without(all.reads, message.reads), lately: 0, writes: without(all.writes, message.writes) };
        if self.online {
            return Ok((message, silence, None));
        }
        let before = cluster.counts().now();
        connected.spawn(acknowledge(cluster.connect(one, relay).await?));
        Ok((message, silence, Some(quiet(&cluster).await.since(before))))
    }
}

/// The table of the README.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: it prints a table, and the tests above hold what matters"]
async fn what_messages_cost() -> Result<()> {
    println!("| chat | devices of each | message | waking and falling silent | a device that comes back |");
    println!("| --- | --- | --- | --- | --- |");
    for others in [1, 49, 999] {
        for (devices, online) in [(1, true), (3, true), (1, false), (3, false)] {
            let (message, silence, back) = Case { others, devices, online }.measure().await?;
            let chat = if others == 1 { "1:1".to_owned() } else { format!("group of {}", others + 1) };
            let state = if online { "online" } else { "away" };
            let calls = |calls: Calls| format!("{} r, {} w", calls.reads, calls.writes);
            let back = back.map_or_else(|| "–".to_owned(), |back| format!("{}, {} l", calls(back), back.lately));
            println!("| {chat} | {devices}, {state} | {} | {} | {back} |", calls(message), calls(silence));
            ensure!((message.reads, message.writes) == (0, 1), "{chat}, {devices} {state}: {message:?} a message");
        }
    }
    Ok(())
}
