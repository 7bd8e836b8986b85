//! Relays of one region that share its store: each owns some of the chats, and whoever is left owns them all.

use anyhow::{Context, Result, ensure};
use godwit_client::{Client, MessageState, Role, Title};
use godwit_relay::store::shared::memory::Memory;
use godwit_tests::cluster::{Cluster, until};
use godwit_tests::lab::PATIENCE;
use godwit_tests::talk::{numbered, send, texts};
use godwit_wire::ChatId;
use godwit_wire::entry::Member;
use godwit_wire::frame::Event;
use std::collections::BTreeMap;

const THREE: [&str; 3] = ["eu/eu-1", "eu/eu-2", "eu/eu-3"];

/// A user at each of these relays, each of whom knows all of them, that one first.
async fn users(cluster: &Cluster, relays: &[&str]) -> Result<Vec<Client>> {
    let mut users = Vec::new();
    for (i, relay) in relays.iter().enumerate() {
        let mut at = vec![*relay];
        at.extend(relays.iter().filter(|other| *other != relay));
        users.push(cluster.client(&format!("user{i}@eu/phone"), &at).await?);
    }
    Ok(users)
}

/// A direct chat of each with each, by the places of both.
fn chats(users: &[Client]) -> Result<Vec<(usize, usize, ChatId)>> {
    let mut chats = Vec::new();
    for (i, user) in users.iter().enumerate() {
        for other in i + 1..users.len() {
            chats.push((i, other, user.direct(format!("user{other}@eu").parse()?)?.0));
        }
    }
    Ok(chats)
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_at_any_relay_talk_in_chats_of_any_owner() -> Result<()> {
    let cluster = Cluster::sharing(&THREE).await?;
    let users = users(&cluster, &["eu/eu-1", "eu/eu-2", "eu/eu-3", "eu/eu-1", "eu/eu-2", "eu/eu-3"]).await?;
    for (one, other, chat) in chats(&users)? {
        send(&users[one], &chat, 0..20, MessageState::Delivered).await?;
        numbered(&texts(&users[other], &mut users[other].events()?, 20).await?, 0)?;
    }
    // Each relay committed some of it.
    for relay in THREE {
        ensure!(cluster.metric(relay, "godwit_commits_total") > 0.5, "{relay} owned nothing");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_owned_goes_to_the_others_when_it_is_gone_and_comes_back() -> Result<()> {
    let mut cluster = Cluster::sharing(&THREE).await?;
    let users = users(&cluster, &["eu/eu-2", "eu/eu-3", "eu/eu-2", "eu/eu-3"]).await?;
    let chats = chats(&users)?;
    let mut heard = users.iter().map(Client::events).collect::<Result<Vec<_>, _>>()?;
    for (one, _, chat) in &chats {
        send(&users[*one], chat, 0..10, MessageState::Delivered).await?;
    }
    cluster.down("eu/eu-1").await;
    for (one, _, chat) in &chats {
        send(&users[*one], chat, 10..20, MessageState::Delivered).await?;
    }
    cluster.up("eu/eu-1").await?;
    cluster.meet().await?;
    for (one, _, chat) in &chats {
        send(&users[*one], chat, 20..30, MessageState::Delivered).await?;
    }
    for (place, heard) in heard.iter_mut().enumerate() {
        let for_it = chats.iter().filter(|(_, other, _)| *other == place).count();
        let texts = texts(&users[place], heard, 30 * for_it).await?;
        ensure!(texts.len() == 30 * for_it, "{} texts", texts.len());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_hears_everything_once_while_relays_come_and_go() -> Result<()> {
    let mut cluster = Cluster::sharing(&THREE[..1]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let mut members = Vec::new();
    for name in ["bob", "carol", "dave"] {
        members.push(cluster.client(&format!("{name}@eu/phone"), &["eu/eu-1"]).await?);
    }
    let member = |name: &str| Ok(Member { user: format!("{name}@eu").parse()?, role: Role::Member });
    let participants = ["bob", "carol", "dave"].map(member).into_iter().collect::<Result<_>>()?;
    let (chat, created) = alice.create_group(Title::parse("walks")?, participants)?;
    alice.wait_for(created, MessageState::Delivered, PATIENCE).await?;
    let mut heard = members.iter().map(Client::events).collect::<Result<Vec<_>, _>>()?;
    send(&alice, &chat, 0..30, MessageState::Delivered).await?;
    for relay in &THREE[1..] {
        cluster.add(relay, "store", &[]).await?;
    }
    send(&alice, &chat, 30..60, MessageState::Sent).await?;
    cluster.meet().await?;
    send(&alice, &chat, 60..90, MessageState::Delivered).await?;
    for relay in &THREE[1..] {
        cluster.down(relay).await;
        let from = if *relay == THREE[1] { 90 } else { 120 };
        send(&alice, &chat, from..from + 30, MessageState::Delivered).await?;
    }
    for (member, heard) in members.iter().zip(&mut heard) {
        numbered(&texts(member, heard, 150).await?, 0)?;
    }
    Ok(())
}

/// A device that was away has what others sent at other relays, and a new device of a user what comes from then on.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_away_or_is_new_is_served_by_every_owner() -> Result<()> {
    let mut cluster = Cluster::sharing(&THREE).await?;
    cluster.add("eu/eu-4", "edge", &[]).await?;
    cluster.meet().await?;
    let users = users(&cluster, &["eu/eu-1", "eu/eu-2", "eu/eu-3"]).await?;
    let bob = cluster.client("bob@eu/phone", &["eu/eu-4"]).await?;
    let mut chats = Vec::new();
    for user in &users {
        let (chat, _) = user.direct("bob@eu".parse()?)?;
        send(user, &chat, 0..10, MessageState::Delivered).await?;
        chats.push(chat);
    }
    drop(bob);
    until("bob to be gone", || cluster.metric("eu/eu-4", "godwit_connections") < 0.5).await?;
    for (user, chat) in users.iter().zip(&chats) {
        send(user, chat, 10..40, MessageState::Sent).await?;
    }
    let tablet = cluster.client("bob@eu/tablet", &["eu/eu-2"]).await?;
    let mut on_tablet = tablet.events()?;
    let bob = Client::open(godwit_client::ClientOptions::new(cluster.home("bob@eu/phone")))?;
    let found = texts(&bob, &mut bob.events()?, 120).await.context("on the phone")?;
    ensure!(found.len() == 120, "{} texts", found.len());
    for (user, chat) in users.iter().zip(&chats) {
        send(user, chat, 40..50, MessageState::Delivered).await?;
    }
    let new = texts(&tablet, &mut on_tablet, 30).await.context("on the tablet")?;
    ensure!(new.iter().all(|text| text.parse::<u32>().is_ok_and(|n| n >= 40)), "{new:?}");
    Ok(())
}

/// A device has what is committed from the moment it was enrolled, though it connects later and at another relay.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_between_enrolment_and_the_first_connection_waits_at_every_owner() -> Result<()> {
    let cluster = Cluster::sharing(&THREE).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let _phone = cluster.client("bob@eu/phone", &["eu/eu-2"]).await?;
    let groups = async || {
        let mut chats = Vec::new();
        for n in 0..12 {
            let bob = Member { user: "bob@eu".parse()?, role: Role::Member };
            let (chat, _) = alice.create_group(Title::parse(format!("chat {n}").as_str())?, vec![bob])?;
            send(&alice, &chat, 0..1, MessageState::Sent).await?;
            chats.push(chat);
        }
        anyhow::Ok(chats)
    };
    // Whoever owns these knows bob's devices.
    let mut chats = groups().await?;
    let credential = cluster.enrol("bob@eu/tablet", "eu/eu-3").await?;
    for chat in &chats {
        send(&alice, chat, 1..2, MessageState::Sent).await?;
    }
    chats.append(&mut groups().await?);
    let mut tablet = cluster.connect(credential, "eu/eu-2").await?;
    let mut missed: BTreeMap<ChatId, Vec<u64>> = BTreeMap::new();
    while missed.values().map(Vec::len).sum::<usize>() < 12 + 24 {
        if let Event::Entry { chat, entry } = tablet.event().await.with_context(|| format!("{missed:?}"))? {
            missed.entry(chat).or_default().push(entry.seq.get());
        }
    }
    for (chat, n) in chats.iter().zip(0..) {
        let expected = if n < 12 { &[3][..] } else { &[1, 2] };
        ensure!(missed.get(chat).is_some_and(|missed| missed == expected), "chat {n}: {missed:?}");
    }
    Ok(())
}

/// Two regions of several relays each: chats of both, while a relay of each goes down and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn regions_of_many_relays_talk_whichever_of_them_are_up() -> Result<()> {
    let relays = ["eu/eu-1", "eu/eu-2", "us/us-1", "us/us-2"];
    let mut cluster = Cluster::sharing(&relays).await?;
    let at = |first: &str, second: &str| [first.to_owned(), second.to_owned()];
    let homes = [("eu", at("eu/eu-1", "eu/eu-2")), ("us", at("us/us-2", "us/us-1"))];
    let mut users = Vec::new();
    for (region, relays) in &homes {
        for name in ["ann", "ben", "cat"] {
            let relays: Vec<&str> = relays.iter().map(String::as_str).collect();
            users.push((format!("{name}@{region}"), cluster.client(&format!("{name}@{region}/phone"), &relays).await?));
        }
    }
    // Everybody of one region with everybody of the other: the chat's home is that of who sorts first.
    let mut chats = Vec::new();
    for (i, (_, user)) in users[..3].iter().enumerate() {
        for (j, (other, _)) in users[3..].iter().enumerate() {
            chats.push((i, 3 + j, user.direct(other.parse()?)?.0));
        }
    }
    let mut heard = users.iter().map(|(_, user)| user.events()).collect::<Result<Vec<_>, _>>()?;
    let mut sent = 0;
    for (down, up) in
        [(None, None), (Some("eu/eu-1"), None), (Some("us/us-2"), Some("eu/eu-1")), (None, Some("us/us-2"))]
    {
        if let Some(relay) = up {
            cluster.up(relay).await?;
            cluster.meet().await?;
        }
        if let Some(relay) = down {
            cluster.down(relay).await;
        }
        for (one, other, chat) in &chats {
            send(&users[*one].1, chat, sent..sent + 5, MessageState::Delivered).await?;
            send(&users[*other].1, chat, sent..sent + 5, MessageState::Delivered).await?;
        }
        sent += 5;
    }
    for ((name, user), heard) in users.iter().zip(&mut heard) {
        let texts = texts(user, heard, 3 * sent).await.with_context(|| name.clone())?;
        ensure!(texts.len() == 3 * sent, "{name}: {} texts", texts.len());
    }
    Ok(())
}

/// Of a region, whoever has another store than the rest is no owner for anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_another_store_is_refused() -> Result<()> {
    let mut cluster = Cluster::sharing(&THREE[..2]).await?;
    let alice = cluster.client("alice@eu/phone", &THREE[..2]).await?;
    let bob = cluster.client("bob@eu/phone", &THREE[..2]).await?;
    cluster.stores().put_back("eu".parse()?, Memory::default());
    cluster.add(THREE[2], "store", &[]).await?;
    let mut heard = bob.events()?;
    for n in 0..12 {
        let member = Member { user: "bob@eu".parse()?, role: Role::Member };
        let (chat, _) = alice.create_group(Title::parse(format!("chat {n}").as_str())?, vec![member])?;
        send(&alice, &chat, n..n + 1, MessageState::Delivered).await?;
    }
    numbered(&texts(&bob, &mut heard, 12).await?, 0)?;
    for (relay, known) in [(THREE[0], 2), (THREE[1], 2), (THREE[2], 1)] {
        let members = cluster.relay(relay).cluster().members;
        ensure!(members.iter().filter(|member| member.is_up()).count() == known, "{relay}: {members:?}");
    }
    Ok(())
}
