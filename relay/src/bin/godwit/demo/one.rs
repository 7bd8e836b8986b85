//! The demo's first act: one relay, killed in the middle.

use super::people::{Device, Tally, same_history};
use super::{PATIENCE, Step, log, until};
use crate::child::{RelayChild, again};
use anyhow::{Context, Result, ensure};
use godwit_client::{Change, ChatId, Content, Member, MessageState, NewAttachment, Progress, Role, Title};
use std::path::Path;

const REGION: &str = "eu";
const OFFLINE_MESSAGES: u64 = 100;
const CRASH_MESSAGES: u64 = 300;
const FILM_BYTES: usize = 50_000_000;
/// So much of it is on its way when the relay is killed.
const CUT_BYTES: u64 = 20_000_000;

async fn start(folder: &Path, listen: &str) -> Result<RelayChild> {
    let mut command = again()?;
    command.args(["dev", "--listen", listen, "--admin", "127.0.0.1:0", "--region", REGION, "--data"]);
    command.arg(folder.join("relay")).stderr(log(folder)?);
    RelayChild::start(command).await
}

pub(super) async fn act(folder: &Path, tally: &mut Tally) -> Result<()> {
    let step = Step::begin();
    let mut relay = start(folder, "127.0.0.1:0").await?;
    step.done(format!("a relay with its own authority and an empty store, at {}", relay.quic));

    let step = Step::begin();
    let enrol = |name: &'static str, device: &'static str| {
        Device::enrol(folder, REGION, name, device, vec![relay.quic.clone()])
    };
    let phone = enrol("alice", "phone").await?;
    let laptop = enrol("alice", "laptop").await?;
    let bob = enrol("bob", "phone").await?;
    let carol = enrol("carol", "phone").await?;
    step.done("alice (phone, laptop), bob and carol enrolled with one-time tokens");

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
    until("a message to arrive", || bob.received(&group) > before).await?;
    relay.kill().await?;
    step.done("kill -9 of the relay in the middle of sending");

    let step = Step::begin();
    let relay = start(folder, &relay.quic).await?;
    step.done("the relay is back on its store");

    let step = Step::begin();
    tally.settle(&[&laptop, &bob, &carol]).await?;
    step.done(format!("all {CRASH_MESSAGES} are with everybody, each once and in order"));

    let mut relay = film(folder, tally, relay, &group, &phone, &[&laptop, &bob, &carol]).await?;

    let step = Step::begin();
    let change = Change::Title(Title::parse("long walks")?);
    let renamed = phone.client().update_chat(&group, change)?;
    let last = phone.client().wait_for(renamed, MessageState::Delivered, PATIENCE).await?;
    step.done("the group has a new title, and every participant has it");

    let step = Step::begin();
    let devices = [&phone, &laptop, &bob, &carol];
    let seq = last.seq.context("a delivered change has a seq")?;
    same_history(&devices, &group, usize::try_from(seq.get())?).await?;
    step.done(format!("history: the same {seq} entries on all four devices"));

    for device in devices {
        device.go_offline().await;
    }
    relay.kill().await
}

/// A file of 50 MB whose upload is cut in the middle.
async fn film(
    folder: &Path,
    tally: &mut Tally,
    mut relay: RelayChild,
    group: &ChatId,
    phone: &Device,
    others: &[&Device],
) -> Result<RelayChild> {
    let step = Step::begin();
    let (path, got) = (folder.join("film.mp4"), folder.join("film-received.mp4"));
    let mut rng = fastrand::Rng::with_seed(1);
    std::fs::write(&path, std::iter::repeat_with(|| rng.u8(..)).take(FILM_BYTES).collect::<Vec<u8>>())?;
    let film = NewAttachment { path: path.clone(), caption: "the walk".to_owned(), ..NewAttachment::default() };
    let sent = phone.client().attach(group, film)?;
    let done = || phone.client().uploads().map_or(0, |all| all.iter().map(|upload| upload.done_bytes).sum());
    until("a part of the film to be uploaded", || done() > CUT_BYTES).await?;
    relay.kill().await?;
    step.done(format!("kill -9 of the relay after {} of the 50 MB of a film", megabytes(done())));

    let step = Step::begin();
    let relay = start(folder, &relay.quic).await?;
    let seq =
        phone.client().wait_for(sent, MessageState::Sent, PATIENCE).await?.seq.context("a sent film has a seq")?;
    tally.expect(group, 1, others);
    tally.settle(others).await?;
    step.done("the relay is back, the upload went on, and everybody has the message");

    let step = Step::begin();
    let receiver = others.last().context("somebody to receive it")?.client();
    receiver.fetch_attachment(group, seq, &got, &Progress::default()).await?;
    ensure!(std::fs::read(&got)? == std::fs::read(&path)?, "the film is not what it was");
    step.done("the film is with carol, byte for byte");
    Ok(relay)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}
