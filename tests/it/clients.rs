//! The client library at a relay: offline first, in order, once; devices that are new, restored or enrolled anew.

use anyhow::{Context, Result, ensure};
use godwit_client::client::HistoryBody;
use godwit_client::{
    Change, ChatId, Client, Code, ConnectionState, Content, EnrolOptions, Error, Event, Host, Member, MessageState,
    Role, Seq, Title,
};
use godwit_tests::lab::{Lab, PATIENCE};
use godwit_tests::talk::{event, texts};
use std::path::Path;
use std::time::Duration;

fn member(name: &str) -> Member {
    Member { user: format!("{name}@eu").parse().expect("a user id"), role: Role::Member }
}

async fn say(client: &Client, chat: &ChatId, text: &str) -> Result<Seq> {
    let id = client.send(chat, Content::text(text))?;
    client.wait_for(id, MessageState::Sent, PATIENCE).await?.seq.context("sent without a seq")
}

async fn group(owner: &Client, members: &[&str]) -> Result<ChatId> {
    let members = members.iter().map(|name| member(name)).collect();
    let (chat, id) = owner.create_group(Title::parse("walks")?, members)?;
    owner.wait_for(id, MessageState::Delivered, PATIENCE).await?;
    Ok(chat)
}

async fn update(client: &Client, chat: &ChatId, change: Change) -> Result<()> {
    let id = client.update_chat(chat, change)?;
    client.wait_for(id, MessageState::Sent, PATIENCE).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_newer_kind_arrives_as_such_and_holds_nothing_up() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let newer = Content::Unknown(vec![1, 99, 5]);
    let sent = alice.send(&chat, newer.clone())?;
    say(&alice, &chat, "after it").await?;
    let mut events = bob.events()?;
    let mut got = Vec::new();
    while got.len() < 2 {
        if let Event::MessageReceived { message, .. } = event(&bob, &mut events).await? {
            got.push(message.content);
        }
    }
    ensure!(got == [newer, Content::text("after it")], "{got:?}");
    alice.wait_for(sent, MessageState::Delivered, PATIENCE).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_offline_is_sent_once_there_is_a_relay() -> Result<()> {
    let mut lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    say(&alice, &chat, "before").await?;
    lab.down().await;
    let mut last = None;
    for n in 0..50 {
        last = Some(alice.send(&chat, Content::text(format!("offline {n}")))?);
    }
    let last = last.context("sent")?;
    let pending = alice.message_state(last)?.context("known")?;
    ensure!(pending.state == MessageState::Pending, "{pending:?}");
    // The process ends and comes back before there is a relay.
    alice.close().await;
    drop(alice);
    let alice = lab.open("alice@eu/phone")?;
    lab.up().await?;
    let begun = std::time::Instant::now();
    alice.wait_for(last, MessageState::Delivered, PATIENCE).await?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "connected again within ten seconds");
    let mut events = bob.events()?;
    let got = texts(&bob, &mut events, 51).await?;
    ensure!(got[0] == "before" && got[1..].iter().zip(0..).all(|(text, n)| *text == format!("offline {n}")), "{got:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_network_does_not_cost_the_connection() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    say(&alice, &chat, "here").await?;
    let handshakes = lab.metric("godwit_handshakes_total");
    for n in 0..3 {
        alice.network_changed().await;
        bob.network_changed().await;
        say(&alice, &chat, &format!("elsewhere {n}")).await?;
    }
    let mut events = bob.events()?;
    ensure!(texts(&bob, &mut events, 4).await?.len() == 4, "all arrive");
    ensure!(lab.metric("godwit_handshakes_total").total_cmp(&handshakes).is_eq(), "no new connection was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_see_the_chat_from_joining_to_leaving() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let carol = lab.client("carol@eu/phone").await?;
    let mut heard = carol.events()?;
    let chat = group(&alice, &["bob"]).await?;
    say(&alice, &chat, "before carol").await?;
    update(&alice, &chat, Change::Add(vec![member("carol")])).await?;
    say(&alice, &chat, "with carol").await?;
    ensure!(matches!(event(&carol, &mut heard).await?, Event::ChatUpdated { change: Change::Add(_), .. }), "added");
    ensure!(texts(&carol, &mut heard, 1).await? == ["with carol"], "from joining on");
    let history = carol.history(&chat, None, 100).await?;
    ensure!(history.iter().map(|entry| entry.seq.get()).eq([3, 4]), "nothing from before: {history:?}");
    update(&alice, &chat, Change::Remove("carol@eu".parse()?)).await?;
    ensure!(
        matches!(event(&carol, &mut heard).await?, Event::ChatUpdated { change: Change::Remove(_), .. }),
        "removed"
    );
    let refused = carol.send(&chat, Content::text("still here?"));
    ensure!(matches!(refused, Err(Error::Refused(r)) if r.code == Code::NotParticipant), "may not send");
    say(&alice, &chat, "without carol").await?;
    update(&alice, &chat, Change::Add(vec![member("carol")])).await?;
    say(&alice, &chat, "with carol again").await?;
    ensure!(
        matches!(event(&carol, &mut heard).await?, Event::ChatUpdated { change: Change::Add(_), .. }),
        "added again"
    );
    ensure!(texts(&carol, &mut heard, 1).await? == ["with carol again"], "the gap is closed without what is hidden");
    let history = carol.history(&chat, None, 100).await?;
    ensure!(history.iter().map(|entry| entry.seq.get()).eq([3, 4, 5, 7, 8]), "{history:?}");
    ensure!(say(&carol, &chat, "I am back").await?.get() == 9, "numbers go on");
    let title = Change::Title(Title::parse("long walks")?);
    update(&alice, &chat, title).await?;
    let mut bobs = bob.events()?;
    let last = loop {
        if let Event::ChatUpdated { change: Change::Title(title), .. } = event(&bob, &mut bobs).await? {
            break title;
        }
    };
    ensure!(last.as_str() == "long walks", "{last:?}");
    let known = bob.chat(&chat)?.context("bob's chat")?;
    ensure!(known.title.as_str() == "long walks" && bob.participants(&chat)?.len() == 3, "{known:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_lists_its_chats_and_hears_only_what_is_new() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let chat = group(&alice, &["bob"]).await?;
    for n in 0..30 {
        say(&bob, &chat, &format!("old {n}")).await?;
    }
    let laptop = lab.client("alice@eu/laptop").await?;
    let chats = laptop.chats()?;
    ensure!(chats.len() == 1 && chats[0].title.as_str() == "walks" && chats[0].role == Some(Role::Owner), "{chats:?}");
    say(&bob, &chat, "new").await?;
    let mut heard = laptop.events()?;
    ensure!(texts(&laptop, &mut heard, 1).await? == ["new"], "the past makes no events");
    let page = laptop.history(&chat, Some(Seq::new(12)?), 10).await?;
    ensure!(page.iter().map(|entry| entry.seq.get()).eq(2..=11), "the past is in the history: {page:?}");
    ensure!(matches!(&page[0].what, HistoryBody::Message(content) if content.as_text() == Some("old 0")), "{page:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_and_read_are_told_when_they_are_true() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let carol = lab.client("carol@eu/phone").await?;
    let chat = group(&alice, &["bob", "carol"]).await?;
    carol.close().await;
    drop(carol);
    let id = alice.send(&chat, Content::text("hello"))?;
    let seq = alice.wait_for(id, MessageState::Sent, PATIENCE).await?.seq.context("seq")?;
    let mut heard = bob.events()?;
    texts(&bob, &mut heard, 1).await?;
    let early = alice.wait_for(id, MessageState::Delivered, Duration::from_millis(500)).await;
    ensure!(matches!(early, Err(Error::TimedOut(_))), "carol has not taken it: {early:?}");
    let carol = lab.open("carol@eu/phone")?;
    alice.wait_for(id, MessageState::Delivered, PATIENCE).await?;
    bob.mark_read(&chat, seq)?;
    let early = alice.wait_for(id, MessageState::Read, Duration::from_millis(500)).await;
    ensure!(matches!(early, Err(Error::TimedOut(_))), "carol has not read it: {early:?}");
    carol.mark_read(&chat, seq)?;
    alice.wait_for(id, MessageState::Read, PATIENCE).await?;
    // A sender who was away meanwhile learns it all the same.
    let late = alice.send(&chat, Content::text("and bye"))?;
    alice.wait_for(late, MessageState::Sent, PATIENCE).await?;
    alice.close().await;
    drop(alice);
    let alice = lab.open("alice@eu/phone")?;
    alice.wait_for(late, MessageState::Delivered, PATIENCE).await?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

/// The texts of a chat's messages, as its home has them.
async fn all_texts(client: &Client, chat: &ChatId) -> Result<Vec<String>> {
    client.refresh(chat).await?;
    let history = client.history(chat, None, 10_000).await?;
    let texts = history.iter().filter_map(|entry| match &entry.what {
        HistoryBody::Message(content) => content.as_text().map(str::to_owned),
        _ => None,
    });
    Ok(texts.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_restored_from_a_backup_sends_on_in_order_and_doubles_nothing() -> Result<()> {
    let mut lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    say(&alice, &chat, "one").await?;
    // The backup is made with something still unsent.
    lab.down().await;
    alice.send(&chat, Content::text("two"))?;
    alice.close().await;
    drop(alice);
    let (home, backup) = (lab.home("alice@eu/phone"), lab.path().join("backup"));
    copy(&home, &backup)?;
    lab.up().await?;
    let alice = lab.open("alice@eu/phone")?;
    say(&alice, &chat, "three").await?;
    say(&alice, &chat, "four").await?;
    alice.close().await;
    drop(alice);
    std::fs::remove_dir_all(&home)?;
    copy(&backup, &home)?;
    let alice = lab.open("alice@eu/phone")?;
    // Before it has heard anything of what it did since.
    let five = alice.send(&chat, Content::text("five"))?;
    let six = alice.send(&chat, Content::text("six"))?;
    for id in [five, six] {
        alice.wait_for(id, MessageState::Sent, PATIENCE).await?;
    }
    let expected = ["one", "two", "three", "four", "five", "six"];
    let got = all_texts(&bob, &chat).await?;
    ensure!(got == expected, "{got:?}");
    let got = all_texts(&alice, &chat).await?;
    ensure!(got == expected, "the restored phone has them too: {got:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_enrolled_anew_keeps_its_outbox_and_doubles_nothing() -> Result<()> {
    let mut lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    say(&alice, &chat, "one").await?;
    alice.close().await;
    drop(alice);
    // Something unsent, and something that was sent without the device hearing of it: as after a crash.
    let home = lab.home("alice@eu/phone");
    let backup = lab.path().join("backup");
    lab.down().await;
    let alice = lab.open("alice@eu/phone")?;
    alice.send(&chat, Content::text("two"))?;
    alice.close().await;
    drop(alice);
    copy(&home, &backup)?;
    lab.up().await?;
    let alice = lab.open("alice@eu/phone")?;
    say(&alice, &chat, "three").await?;
    alice.close().await;
    drop(alice);
    std::fs::remove_dir_all(&home)?;
    copy(&backup, &home)?;
    let alice = lab.client("alice@eu/phone").await?;
    say(&alice, &chat, "four").await?;
    let got = all_texts(&bob, &chat).await?;
    ensure!(got == ["one", "two", "three", "four"], "{got:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_obeys_its_rate_and_everything_arrives_in_order() -> Result<()> {
    let lab = Lab::with(&[("limits.sends_per_second", "100"), ("limits.sends_burst", "10")]).await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let contents = (0..150).map(|n| Content::text(format!("{n}"))).collect();
    let ids = alice.send_many(&chat, contents)?;
    alice.wait_for(*ids.last().context("sent")?, MessageState::Sent, PATIENCE).await?;
    let refused = lab.metric("godwit_rate_limited_total");
    // It finds the rate, instead of asking again for all at every turn.
    ensure!(refused > 0.0 && refused < 600.0, "{refused} refusals for 151 requests");
    let mut heard = bob.events()?;
    let got = texts(&bob, &mut heard, 150).await?;
    ensure!(got.iter().zip(0..).all(|(text, n)| *text == n.to_string()), "{got:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_relays_one_that_answers_is_enough() -> Result<()> {
    let lab = Lab::start().await?;
    let device = "alice@eu/phone".parse()?;
    let home = lab.home("alice@eu/phone");
    // A name with several addresses, of which one answers, and a port where nobody does.
    let relays = vec!["127.0.0.1:9".to_owned(), format!("localhost:{}", lab.address().port())];
    let authority_pem = std::fs::read_to_string(lab.authority.root_certificate_path())?;
    let options = EnrolOptions { home, relays, authority_pem, token: lab.token(&device)?, host: Host::system() };
    godwit_client::enrol(options).await?;
    let alice = lab.open("alice@eu/phone")?;
    alice.wait_connected(Duration::from_secs(10)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_says_so_and_stops() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    lab.client("bob@eu/phone").await?.close().await;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    say(&alice, &chat, "one").await?;
    let admin = lab.relay().admin.to_string();
    tokio::task::spawn_blocking(move || {
        godwit_tests::process::succeed("godwit", &["revoke", "--admin", &admin, "alice@eu/phone"])
    })
    .await??;
    let stopped = async {
        while !matches!(alice.connection_state(), ConnectionState::Refused(_)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), stopped).await.context("not told within five seconds")?;
    let id = alice.send(&chat, Content::text("two"))?;
    let refused = alice.wait_for(id, MessageState::Sent, PATIENCE).await;
    ensure!(matches!(&refused, Err(Error::Refused(r)) if r.code == Code::Revoked), "{refused:?}");
    Ok(())
}
