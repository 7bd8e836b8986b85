//! What the simulation found, each made plain: the least that goes wrong without its mending.

use anyhow::{Context, Result};
use godwit_client::{ChatId, Client, Content, Event, Member, MessageState, Role, Title};
use godwit_simnet::{Access, Options, Sim, Unsynced};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(2);

async fn group(owner: &Client, users: &[&str]) -> Result<ChatId> {
    let member = |user: &&str| Ok(Member { user: user.parse()?, role: Role::Member });
    let members = users.iter().map(member).collect::<Result<_>>()?;
    let (chat, created) = owner.create_group(Title::parse("walks")?, members)?;
    owner.wait_for(created, MessageState::Delivered, PATIENCE).await?;
    Ok(chat)
}

/// Waits until an app is told of a message.
async fn hears(client: &Client, expected: &str) -> Result<()> {
    let mut events = client.events()?;
    let hears = async {
        loop {
            let next = events.next().await.context("the client is closed")??;
            if let Event::MessageReceived { message, .. } = &next.event
                && message.content.as_text() == Some(expected)
            {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, hears).await?
}

/// The proof of who a device is got lost in a write of the outbox that failed: what was queued after it could not be handed
/// on after a restart, which was tried without a pause.
#[test]
fn what_was_queued_after_a_failed_write_is_handed_on_without_its_device() -> Result<()> {
    Sim::run(&Options::seed(0), async |sim| {
        for relay in ["eu/eu-1", "us/us-1"] {
            sim.relay(relay, &[("cluster.network", "wan")]).await?;
        }
        let alice = sim.device("alice@eu/phone", Access::WIFI).await?;
        let bob = sim.device("bob@us/phone", Access::WIFI).await?;
        let carol = sim.device("carol@eu/phone", Access::WIFI).await?;
        let chat = group(&bob, &["alice@eu", "carol@eu"]).await?;
        sim.crash("us/us-1", Unsynced::Kept)?;
        sim.fail_sync("eu/eu-1", true)?;
        // The first write fails half-way, and may be there all the same; the file cannot even be opened for the next.
        carol.send(&chat, Content::text("anybody?"))?;
        sim.sleep(Duration::from_secs(20)).await;
        let said = alice.send(&chat, Content::text("are you there?"))?;
        sim.sleep(Duration::from_secs(30)).await;
        sim.fail_sync("eu/eu-1", false)?;
        alice.wait_for(said, MessageState::Queued, PATIENCE).await?;
        sim.kill("alice@eu/phone").await?;
        sim.crash("eu/eu-1", Unsynced::Torn)?;
        sim.start("eu/eu-1").await?;
        sim.start("us/us-1").await?;
        hears(&bob, "are you there?").await
    })?;
    Ok(())
}

/// A phone came back from a backup and sent under the numbers of what its lost self had left at an edge: the home refused
/// the first of that, and the rest waited for it there for ever.
#[test]
fn what_a_lost_phone_left_at_an_edge_does_not_wait_behind_a_taken_number() -> Result<()> {
    const PHONE: &str = "alice@eu/phone";
    Sim::run(&Options::seed(0), async |sim| {
        for relay in ["eu/eu-1", "eu/eu-2"] {
            sim.relay(relay, &[]).await?;
        }
        let bob = sim.device("bob@eu/phone", Access::WIFI).await?;
        let alice = sim.device(PHONE, Access::WIFI).await?;
        let chat = group(&alice, &["bob@eu"]).await?;
        sim.close(PHONE).await?;
        sim.back_up_device(PHONE)?;

        let alice = sim.open(PHONE)?;
        let said = alice.send(&chat, Content::text("one"))?;
        alice.wait_for(said, MessageState::Sent, PATIENCE).await?;
        for other in ["eu/eu-2", PHONE] {
            sim.cut(other, "eu/eu-1");
            sim.cut("eu/eu-1", other);
        }
        let ids: Vec<_> =
            (0..5).map(|i| alice.send(&chat, Content::text(format!("lost {i}")))).collect::<Result<_, _>>()?;
        for id in ids {
            alice.wait_for(id, MessageState::Queued, PATIENCE).await?;
        }
        drop(alice);
        sim.kill(PHONE).await?;

        sim.restore_device(PHONE)?;
        for (from, to) in [(PHONE, "eu/eu-2"), ("eu/eu-2", PHONE)] {
            sim.cut(from, to);
        }
        for (from, to) in [(PHONE, "eu/eu-1"), ("eu/eu-1", PHONE)] {
            sim.mend(from, to);
        }
        let alice = sim.open(PHONE)?;
        for text in ["back", "again"] {
            let said = alice.send(&chat, Content::text(text))?;
            alice.wait_for(said, MessageState::Sent, PATIENCE).await?;
        }
        for (from, to) in [("eu/eu-2", "eu/eu-1"), ("eu/eu-1", "eu/eu-2")] {
            sim.mend(from, to);
        }
        hears(&bob, "again").await?;
        for _ in 0..120 {
            if !sim.waiting("eu/eu-2").await?.iter().any(|what| what.contains("outbox")) {
                return Ok(());
            }
            sim.sleep(Duration::from_secs(1)).await;
        }
        anyhow::bail!("{:?}", sim.waiting("eu/eu-2").await?)
    })?;
    Ok(())
}
