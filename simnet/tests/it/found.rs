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
