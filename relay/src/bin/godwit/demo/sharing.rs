//! The demo of a region whose three relays share its store; one is killed, and another after it came back.

use super::people::{Device, Tally, same_history};
use super::three::{is_whole, write};
use super::{PATIENCE, Step, log, until};
use crate::child::{Place, RelayChild};
use crate::shared::StoreArgs;
use anyhow::{Context, Result};
use godwit_certs::folder::AuthorityDir;
use godwit_client::{Member, MessageState, Role, Title};
use godwit_wire::{Clock, RelayId};
use std::path::Path;

const FLOW: u64 = 200;
const RELAYS: [&str; 3] = ["eu/eu-1", "eu/eu-2", "eu/eu-3"];

async fn start(
    folder: &Path,
    store: &StoreArgs,
    prefix: &str,
    i: usize,
    listen: &str,
    join: &[&str],
) -> Result<RelayChild> {
    let id: RelayId = RELAYS[i].parse()?;
    let authority = AuthorityDir::new(folder.join("relay").join("certs"));
    let certs = authority.relay_dir(&id);
    let (certs, data) = (certs.path(), folder.join("relay"));
    let place = Place { id: &id, role: "store", listen, admin: "127.0.0.1:0", certs, data: &data, join };
    let mut command = place.command()?;
    command.envs(store.environment(prefix)).stderr(log(folder)?);
    RelayChild::start(command).await.with_context(|| id.to_string())
}

pub(super) async fn act(folder: &Path, store: &StoreArgs, prefix: &str, tally: &mut Tally) -> Result<()> {
    let step = Step::begin();
    let authority = AuthorityDir::new(folder.join("relay").join("certs"));
    for id in RELAYS {
        let (id, now): (RelayId, _) = (id.parse()?, Clock::system().now());
        authority.ensure(&id.region(), now)?;
        authority.relay(&id, now)?;
    }
    let any = "127.0.0.1:0";
    let mut one = start(folder, store, prefix, 0, any, &[]).await?;
    let mut two = start(folder, store, prefix, 1, any, &[&one.quic]).await?;
    let mut three = start(folder, store, prefix, 2, any, &[&one.quic, &two.quic]).await?;
    let knows = |relay: &RelayChild| crate::status::report(&relay.admin).is_ok_and(|report| is_whole(&report));
    until("the relays to meet", || [&one, &two, &three].into_iter().all(knows)).await?;
    step.done("three relays of eu share its store");

    let step = Step::begin();
    let (first, second, third) = (one.quic.clone(), two.quic.clone(), three.quic.clone());
    let known = |own: &str| {
        let mut all = vec![own.to_owned()];
        all.extend([&first, &second, &third].into_iter().filter(|other| *other != own).cloned());
        all
    };
    let alice = Device::enrol(folder, "eu", "alice", "phone", known(&first)).await?;
    let bob = Device::enrol(folder, "eu", "bob", "phone", known(&second)).await?;
    let carol = Device::enrol(folder, "eu", "carol", "phone", known(&third)).await?;
    let all = [&alice, &bob, &carol];
    let mut chats = Vec::new();
    for (a, b) in [(&alice, &bob), (&bob, &carol), (&carol, &alice)] {
        chats.push((a, b, a.client().direct(b.user.clone())?.0));
    }
    let members = [&alice, &carol].map(|device| Member { user: device.user.clone(), role: Role::Member });
    let (group, created) = bob.client().create_group(Title::parse("travels")?, members.to_vec())?;
    bob.client().wait_for(created, MessageState::Delivered, PATIENCE).await?;
    step.done("alice, bob and carol, each at a relay of their own, with a chat of each two and one of all");

    for (round, name) in ["eu-2", "eu-3"].into_iter().enumerate() {
        let step = Step::begin();
        let before = bob.received(&group) + carol.received(&group);
        for (a, b, chat) in &chats {
            write(tally, a, chat, "across the crash", FLOW, &[b])?;
        }
        write(tally, &alice, &group, "across the crash", FLOW, &[&bob, &carol])?;
        until("messages to arrive", || bob.received(&group) + carol.received(&group) >= before + 2).await?;
        let killed = if round == 0 { &mut two } else { &mut three };
        killed.kill().await?;
        step.done(format!("kill -9 of {name} while messages flow"));

        let step = Step::begin();
        tally.settle(&all).await?;
        step.done("the others own its chats, its device is with them, and everything is with everybody");

        if round == 0 {
            let step = Step::begin();
            two = start(folder, store, prefix, 1, &second, &[&one.quic, &three.quic]).await?;
            step.done("eu-2 is back");
        }
    }

    let step = Step::begin();
    let count = 1 + 2 * FLOW;
    for (a, b, chat) in &chats {
        same_history(&[a, b], chat, usize::try_from(count)?).await?;
    }
    same_history(&all, &group, usize::try_from(count)?).await?;
    step.done("history: the same entries on all devices, in all chats");

    for device in all {
        device.go_offline().await;
    }
    one.kill().await?;
    two.kill().await
}
