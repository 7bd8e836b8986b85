//! Files over networks that break, and relays that crash under them.

use anyhow::{Context, Result, ensure};
use godwit_client::{ChatId, Client, Content, Event, MessageState, NewAttachment, Progress, Seq};
use godwit_simnet::{Access, Options, Sim, Unsynced};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(30);
const BYTES: usize = 20_000_000;

/// A file with the same byte nowhere for long.
fn film(path: &Path) -> Result<Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(1);
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(BYTES).collect();
    std::fs::write(path, &bytes)?;
    Ok(bytes)
}

async fn relay(sim: &Sim, id: &str) -> Result<()> {
    sim.relay(id, &[("attachments.store", "files")]).await
}

async fn received(client: &Client) -> Result<(ChatId, Seq)> {
    let mut events = client.events()?;
    loop {
        let next = tokio::time::timeout(PATIENCE, events.next()).await?.context("the client is closed")??;
        client.acknowledge(&next)?;
        if let Event::MessageReceived { chat, message } = next.event
            && matches!(message.content, Content::Attachment(_))
        {
            return Ok((chat, message.seq));
        }
    }
}

/// Waits until so many bytes have moved.
async fn moved(sim: &Sim, bytes: u64, done: impl Fn() -> u64) -> Result<()> {
    let begun = sim.now();
    while done() < bytes {
        ensure!(sim.now().saturating_sub(begun) < PATIENCE, "{} bytes in {PATIENCE:?}", done());
        sim.sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn uploaded(client: &Client) -> u64 {
    client.uploads().map_or(0, |all| all.iter().map(|upload| upload.done_bytes).sum())
}

#[test]
fn a_film_arrives_from_a_phone_over_crashes_of_the_relay_and_the_app() -> Result<()> {
    for (seed, unsynced) in [(1, Unsynced::Lost), (2, Unsynced::Torn), (3, Unsynced::Kept)] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("film.mp4");
        let film = film(&path)?;
        Sim::run(&Options::seed(seed), async move |sim| {
            relay(&sim, "eu/eu-1").await?;
            let alice = sim.device("alice@eu/phone", Access::FOUR_G).await?;
            let bob = sim.device("bob@eu/phone", Access::FOUR_G).await?;
            let (chat, _) = alice.direct("bob@eu".parse()?)?;
            let id = alice.attach(&chat, NewAttachment { path: path.clone(), ..NewAttachment::default() })?;
            moved(&sim, 9_000_000, || uploaded(&alice)).await?;
            sim.crash("eu/eu-1", unsynced)?;
            sim.sleep(Duration::from_secs(20)).await;
            sim.start("eu/eu-1").await?;
            moved(&sim, 12_000_000, || uploaded(&alice)).await?;
            drop(alice);
            sim.kill("alice@eu/phone").await?;
            let alice = sim.open("alice@eu/phone")?;
            sim.roam("alice@eu/phone", Access::WIFI, false).await?;
            alice.wait_for(id, MessageState::Sent, PATIENCE).await?;

            let (chat, seq) = received(&bob).await?;
            let (to, progress) = (folder.path().join("got"), Progress::default());
            let fetching = bob.fetch_attachment(&chat, seq, &to, &progress);
            let crashing = async {
                moved(&sim, 9_000_000, || progress.get().0).await?;
                sim.crash("eu/eu-1", unsynced)?;
                sim.sleep(Duration::from_secs(20)).await;
                sim.start("eu/eu-1").await
            };
            let (fetched, crashed) = tokio::join!(fetching, crashing);
            crashed?;
            fetched?;
            ensure!(std::fs::read(&to)? == film, "the film is not what it was");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_file_crosses_regions_while_the_link_between_them_flaps_and_texts_pass_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("film.mp4");
    let film = film(&path)?;
    Sim::run(&Options::seed(4), async move |sim| {
        for id in ["eu/eu-1", "us/us-1"] {
            relay(&sim, id).await?;
        }
        let alice = sim.device("alice@eu/phone", Access::WIFI).await?;
        let bob = sim.device("bob@us/phone", Access::WIFI).await?;
        let (chat, created) = bob.direct("alice@eu".parse()?)?;
        bob.wait_for(created.context("created")?, MessageState::Delivered, PATIENCE).await?;
        ensure!(chat.home().as_str() == "eu", "the one that sorts first is at home there: {chat}");
        // From the region that is not the chat's home.
        let id = bob.attach(&chat, NewAttachment { path: path.clone(), ..NewAttachment::default() })?;
        moved(&sim, 2_000_000, || uploaded(&bob)).await?;
        let text = bob.send(&chat, Content::text("it is coming"))?;
        let text = bob.wait_for(text, MessageState::Sent, PATIENCE).await?.seq.context("sent")?;
        for _ in 0..3 {
            sim.cut("us/us-1", "eu/eu-1");
            sim.sleep(Duration::from_secs(8)).await;
            sim.mend("us/us-1", "eu/eu-1");
            sim.sleep(Duration::from_secs(4)).await;
        }
        let sent = bob.wait_for(id, MessageState::Sent, PATIENCE).await?.seq.context("sent")?;
        ensure!(text < sent, "the text was sent later, and the file is longer");
        let (chat, seq) = received(&alice).await?;
        let to = folder.path().join("got");
        let alice: Arc<Client> = alice;
        alice.fetch_attachment(&chat, seq, &to, &Progress::default()).await?;
        ensure!(std::fs::read(&to)? == film, "the film is not what it was");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_film_arrives_over_a_train_whose_connections_do_not_live_long_enough_for_a_part() -> Result<()> {
    for seed in [5, 6] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("film.mp4");
        let film = film(&path)?;
        Sim::run(&Options::seed(seed), async move |sim| {
            relay(&sim, "eu/eu-1").await?;
            let alice = sim.device("alice@eu/phone", Access::TRAIN).await?;
            let bob = sim.device("bob@eu/phone", Access::TRAIN).await?;
            let (chat, _) = alice.direct("bob@eu".parse()?)?;
            let id = alice.attach(&chat, NewAttachment { path: path.clone(), ..NewAttachment::default() })?;
            alice.wait_for(id, MessageState::Sent, PATIENCE).await?;
            let (chat, seq) = received(&bob).await?;
            let to = folder.path().join("got");
            bob.fetch_attachment(&chat, seq, &to, &Progress::default()).await?;
            ensure!(std::fs::read(&to)? == film, "the film is not what it was");
            Ok(())
        })?;
    }
    Ok(())
}
