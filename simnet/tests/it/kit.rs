//! What an app developer writes: two devices of one's own app, a bad network, and what must hold.

use anyhow::{Context, Result, ensure};
use godwit_client::{Content, Event, MessageState};
use godwit_simnet::{Access, Options, Sim, Unsynced};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn messages_arrive_in_order_over_a_bad_network_and_a_crash() -> Result<()> {
    Sim::run(&Options::seed(7), async |sim| {
        sim.relay("eu/eu-1", &[]).await?;
        let alice = sim.device("alice@eu/phone", Access::WIFI).await?;
        let bob = sim.device("bob@eu/phone", Access::EDGE).await?;
        let (chat, _) = alice.direct("bob@eu".parse()?)?;
        let mut events = bob.events()?;
        let texts = (0..20).map(|n| Content::text(n.to_string())).collect();
        let last = *alice.send_many(&chat, texts)?.last().context("sent")?;
        sim.crash("eu/eu-1", Unsynced::Torn)?;
        sim.sleep(Duration::from_secs(3)).await;
        sim.start("eu/eu-1").await?;
        let mut expected = 0;
        while expected < 20 {
            let next = tokio::time::timeout(PATIENCE, events.next()).await?.context("the client is closed")??;
            if let Event::MessageReceived { message, .. } = &next.event {
                ensure!(message.content.as_text() == Some(&expected.to_string()), "{message:?} is not {expected}");
                expected += 1;
            }
            bob.acknowledge(&next)?;
        }
        alice.wait_for(last, MessageState::Delivered, PATIENCE).await?;
        Ok(())
    })?;
    Ok(())
}

#[test]
fn what_main_returns_and_a_panic_are_errors() {
    let failed = Sim::run(&Options::seed(0), async |_| -> Result<()> { anyhow::bail!("as it says") });
    assert_eq!(failed.expect_err("it fails").to_string(), "as it says");
    let panicked = Sim::run(&Options::seed(0), async |_| -> Result<()> { panic!("on purpose") });
    assert!(panicked.expect_err("it panics").to_string().contains("panicked"));
}

#[test]
fn a_day_without_anything_to_do_passes_at_once() {
    let day = Duration::from_hours(24);
    let ((), ran) = Sim::run(&Options::seed(0), async move |sim| {
        sim.sleep(day).await;
        Ok(())
    })
    .expect("it runs");
    assert_eq!((ran.lasted, ran.packets.sent), (day, 0));
}
