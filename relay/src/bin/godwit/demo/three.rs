//! The demo's second act: three relays in two regions; one is killed, one drained.

use super::people::{Device, Tally, same_history};
use super::{PATIENCE, Step, log, until};
use crate::child::{Place, RelayChild};
use anyhow::{Context, Result, bail, ensure};
use godwit_certs::folder::AuthorityDir;
use godwit_client::{ChatId, ConnectionState, Content, Member, MessageState, Role, Title};
use godwit_relay::cluster::report::Report;
use godwit_wire::{Clock, RelayId};
use std::path::Path;
use std::time::Duration;

const FLOW: u64 = 200;
const AWAY: u64 = 100;
const RELAYS: [(&str, &str); 3] = [("eu/eu-1", "store"), ("us/us-1", "store"), ("us/us-2", "edge")];

async fn start(folder: &Path, i: usize, listen: &str, join: &[&str]) -> Result<RelayChild> {
    let (id, role) = RELAYS[i];
    let id: RelayId = id.parse()?;
    let authority = AuthorityDir::new(folder.join("relay").join("certs"));
    let certs = authority.relay_dir(&id);
    let (certs, data) = (certs.path(), folder.join("relay"));
    let place = Place { id: &id, role, listen, admin: "127.0.0.1:0", certs, data: &data, join };
    let mut command = place.command()?;
    command.stderr(log(folder)?);
    RelayChild::start(command).await.with_context(|| id.to_string())
}

async fn cluster(folder: &Path) -> Result<[RelayChild; 3]> {
    let authority = AuthorityDir::new(folder.join("relay").join("certs"));
    let now = Clock::system().now();
    for (id, _) in RELAYS {
        let id: RelayId = id.parse()?;
        authority.ensure(&id.region(), now)?;
        authority.relay(&id, now)?;
    }
    let any = "127.0.0.1:0";
    let eu = start(folder, 0, any, &[]).await?;
    let us = start(folder, 1, any, &[&eu.quic]).await?;
    let edge = start(folder, 2, any, &[&eu.quic, &us.quic]).await?;
    let relays = [eu, us, edge];
    let whole = |relay: &RelayChild| crate::status::report(&relay.admin).is_ok_and(|report| is_whole(&report));
    until("the relays to meet", || relays.iter().all(whole)).await?;
    Ok(relays)
}

/// The relay knows all of them, and has links to the others.
pub(super) fn is_whole(report: &Report) -> bool {
    let linked = report.members.iter().filter(|member| member.link.is_some()).count();
    linked == RELAYS.len() - 1 && report.members.len() == RELAYS.len()
}

fn at(device: &Device) -> Option<String> {
    match device.client().connection_state() {
        ConnectionState::Connected(address) => Some(address),
        _ => None,
    }
}

/// `device` writes to a chat, and these must receive it.
pub(super) fn write(
    tally: &mut Tally,
    device: &Device,
    chat: &ChatId,
    what: &str,
    count: u64,
    to: &[&Device],
) -> Result<()> {
    for n in 1..=count {
        device.client().send(chat, Content::text(format!("{what}, {n}")))?;
    }
    tally.expect(chat, count, to);
    Ok(())
}

pub(super) async fn act(folder: &Path, tally: &mut Tally) -> Result<()> {
    let step = Step::begin();
    let [mut eu, us, mut edge] = cluster(folder).await?;
    step.done("three relays: a store in eu, a store and an edge in us");

    let step = Step::begin();
    let alice = Device::enrol(folder, "eu", "alice", "phone", vec![edge.quic.clone()]).await?;
    let bob = Device::enrol(folder, "us", "bob", "phone", vec![us.quic.clone()]).await?;
    let carol = Device::enrol(folder, "eu", "carol", "phone", vec![eu.quic.clone(), us.quic.clone()]).await?;
    step.done("alice of eu is connected at the edge in us, bob at home in us, carol at home in eu");

    let step = Step::begin();
    let (direct, _) = alice.client().direct(bob.user.clone())?;
    let members = [&alice, &carol].map(|device| Member { user: device.user.clone(), role: Role::Member });
    let (group, created) = bob.client().create_group(Title::parse("travels")?, members.to_vec())?;
    bob.client().wait_for(created, MessageState::Delivered, PATIENCE).await?;
    write(tally, &alice, &direct, "hello bob", 1, &[&bob])?;
    write(tally, &bob, &group, "hello both", 1, &[&alice, &carol])?;
    tally.settle(&[&alice, &bob, &carol]).await?;
    step.done("a chat of alice and bob, at home in eu, and a group of all three, at home in us");

    let step = Step::begin();
    write(tally, &alice, &direct, "across the crash", FLOW, &[&bob])?;
    write(tally, &bob, &group, "across the crash", FLOW, &[&alice, &carol])?;
    until("a message to arrive", || bob.received(&direct) >= 2).await?;
    eu.kill().await?;
    step.done("kill -9 of the relay in eu while messages flow");

    let step = Step::begin();
    write(tally, &alice, &direct, "eu is away", AWAY, &[&bob])?;
    let last = alice.client().send(&direct, Content::text("queued"))?;
    tally.expect(&direct, 1, &[&bob]);
    alice.client().wait_for(last, MessageState::Queued, PATIENCE).await?;
    step.done("what alice writes to the chat at home in eu waits at her edge: queued");

    let step = Step::begin();
    write(tally, &bob, &group, "eu is away", AWAY, &[&alice, &carol])?;
    tally.settle(&[&alice]).await?;
    step.done("the group at home in us goes on: alice has all of it, though her home is away");

    let step = Step::begin();
    let mut eu = start(folder, 0, &eu.quic, &[&us.quic, &edge.quic]).await?;
    tally.settle(&[&alice, &bob, &carol]).await?;
    alice.client().wait_for(last, MessageState::Delivered, PATIENCE).await?;
    step.done("eu is back: what was queued is sent, and everything is with everybody");

    let step = Step::begin();
    ensure!(at(&alice).as_ref() == Some(&edge.quic), "alice has stayed at her edge");
    let mut states = alice.client().events()?;
    write(tally, &bob, &group, "while the edge drains", FLOW, &[&alice, &carol])?;
    let admin = edge.admin.clone();
    let draining = tokio::task::spawn_blocking(move || drain(&admin));
    tally.settle(&[&alice, &carol]).await?;
    draining.await??;
    let left = tokio::time::timeout(PATIENCE, edge.child.wait()).await.context("the edge does not stop")??;
    ensure!(left.success(), "the edge ended with {left}");
    until("alice to be elsewhere", || at(&alice).as_ref() != Some(&edge.quic)).await?;
    // What is told of connections is not kept for the app, so all of it is from the drain.
    while let Ok(next) = tokio::time::timeout(Duration::from_millis(10), states.next()).await {
        if let Some(Ok(next)) = next
            && let godwit_client::Event::ConnectionChanged(state) = next.event
            && !matches!(state, ConnectionState::Connected(_))
        {
            bail!("alice was {state} while the edge drained");
        }
    }
    step.done("the edge was drained and has stopped; alice went on elsewhere, connected all the time");

    let step = Step::begin();
    for (chat, count, devices) in
        [(&direct, 2 + FLOW + AWAY + 1, vec![&alice, &bob]), (&group, 2 + 2 * FLOW + AWAY, vec![&alice, &bob, &carol])]
    {
        same_history(&devices, chat, usize::try_from(count)?).await?;
    }
    step.done("history: the same entries on all devices, in both chats");

    for device in [&alice, &bob, &carol] {
        device.go_offline().await;
    }
    eu.kill().await
}

fn drain(admin: &str) -> Result<()> {
    let within = PATIENCE.as_millis().to_string();
    match crate::store::ask(admin, "drain", &[("within_millis", &within)]) {
        Ok(_) => Ok(()),
        Err(fault) => bail!("the edge does not drain: {fault}"),
    }
}
