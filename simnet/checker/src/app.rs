//! An app that takes what comes, and tells the checker.

use crate::Checker;
use anyhow::Result;
use godwit_client::{Client, Error, EventStream};
use std::time::Duration;

/// How often an app looks what became of what it sent.
pub const LOOK: Duration = Duration::from_millis(500);

/// Takes and acknowledges what comes, each event `pause` after it was told, and looks what became of what was sent, until the
/// client is closed.
///
/// # Errors
/// A fault of the client's store.
pub async fn run(
    checker: &Checker,
    client: &Client,
    mut events: EventStream,
    mut pause: impl FnMut() -> Duration,
) -> Result<()> {
    let device = client.device();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            biased;
            _ = look.tick() => {
                if client.is_synced() {
                    checker.listed(device);
                }
                for id in checker.open_puts(device) {
                    match client.message_state(id) {
                        Ok(Some(message)) => checker.sent(device, id, message.state, message.seq),
                        Ok(None) => {}
                        Err(Error::Refused(refusal)) => checker.refused(device, id, &refusal.to_string()),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            next = events.next() => {
                let Some(next) = next else { return Ok(()) };
                let next = next?;
                let Some(id) = next.id else { continue };
                checker.told(device, &next);
                let pause = pause();
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                client.acknowledge(&next)?;
                checker.acknowledged(device, id);
            }
        }
    }
}
