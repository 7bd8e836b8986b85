//! Clients that talk: numbered messages out, and in again in their order.

use crate::lab::PATIENCE;
use anyhow::{Context, Result, ensure};
use godwit_client::{ChatId, Client, Content, Event, EventStream, MessageState};

/// The next event that is kept, acknowledged; what is told of connections and receipts is passed over.
pub async fn event(client: &Client, events: &mut EventStream) -> Result<Event> {
    loop {
        let next = tokio::time::timeout(PATIENCE, events.next()).await.context("no event")?;
        let next = next.context("the stream ended")??;
        client.acknowledge(&next)?;
        match next.event {
            Event::ConnectionChanged(_) | Event::ReceiptUpdated { .. } => {}
            event => return Ok(event),
        }
    }
}

/// The texts of the next messages.
pub async fn texts(client: &Client, events: &mut EventStream, count: usize) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    while texts.len() < count {
        if let Event::MessageReceived { message, .. } = event(client, events).await? {
            texts.push(message.content.as_text().unwrap_or_default().to_owned());
        }
    }
    Ok(texts)
}

/// Sends numbers, and waits until the last of them is so far.
pub async fn send(client: &Client, chat: &ChatId, numbers: std::ops::Range<usize>, state: MessageState) -> Result<()> {
    let contents = numbers.map(|n| Content::text(n.to_string())).collect();
    let ids = client.send_many(chat, contents)?;
    client.wait_for(*ids.last().context("sent")?, state, PATIENCE).await?;
    Ok(())
}

/// The texts must be the numbers from `from` on.
pub fn numbered(texts: &[String], from: usize) -> Result<()> {
    let right = texts.iter().zip(from..).all(|(text, n)| *text == n.to_string());
    ensure!(right, "out of order: {texts:?}");
    Ok(())
}
