//! What a message costs on a shared store, counted.

use anyhow::{Result, ensure};
use godwit_client::{MessageState, Role, Title};
use godwit_tests::cluster::{Cluster, until};
use godwit_tests::lab::PATIENCE;
use godwit_tests::talk::send;
use godwit_wire::entry::Member;

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
    let after = cluster.counts().now();
    let (reads, writes) = (after.0 - before.0, after.1 - before.1);
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
    let after = cluster.counts().now();
    let (reads, writes) = (after.0 - before.0, after.1 - before.1);
    println!("group of {AWAY} who are away: {reads} reads, {writes} writes for {MESSAGES} messages");
    ensure!(writes < MESSAGES as u64 + CHECKPOINTS + 2 * AWAY as u64, "{writes} writes");
    // Of all of them what is on its way when it is counted, and checkpoints.
    ensure!(reads < 3 * AWAY as u64 + CHECKPOINTS, "{reads} reads");
    Ok(())
}
