//! Sending what is in the outbox: pipelined, in order per chat, and again from the lowest after a passing refusal.

use super::{Asked, Live, RETRY};
use crate::error::Error;
use crate::store::Incoming;
use crate::worker::Worker;
use godwit_wire::frame::{Reply, Request};
use godwit_wire::{ChatId, Code, MessageId, Refusal};
use std::time::Duration;
use tokio::time::Instant;

/// Requests of one chat on their way.
const WINDOW: usize = 256;

/// Sending of one chat on this connection.
#[derive(Debug)]
pub(super) struct Sending {
    /// The last number that was written.
    written: u64,
    pub(super) in_flight: usize,
    /// Requests that may be on their way: halved when the relay limits the rate, one more for every window that went
    /// through, as TCP does (RFC 5681).
    window: usize,
    through: usize,
    /// After a passing refusal: once nothing is in flight, begin again at this time.
    again_at: Option<Instant>,
    /// The lowest number that was taken, and the first free one: begin again with other numbers from there on.
    renumber: Option<(u64, u64)>,
}

impl Default for Sending {
    fn default() -> Self {
        Self { written: 0, in_flight: 0, window: WINDOW, through: 0, again_at: None, renumber: None }
    }
}

impl Sending {
    fn went_through(&mut self) {
        self.through += 1;
        if self.through >= self.window {
            self.through = 0;
            self.window = WINDOW.min(self.window + 1);
        }
    }

    /// From the lowest that waits on, at this time at the earliest, once nothing is on its way.
    pub(super) fn begin_again(&mut self, at: Instant) {
        self.again_at = Some(self.again_at.map_or(at, |before| before.max(at)));
    }

    /// Nothing is to be sent again.
    pub(super) fn is_calm(&self) -> bool {
        self.again_at.is_none()
    }

    /// Once for all requests that were on their way together.
    fn limited(&mut self) {
        if self.again_at.is_none() {
            self.through = 0;
            self.window = (self.window / 2).max(1);
        }
    }
}

impl Live {
    /// A request of the chat is not on its way any more.
    pub(super) fn answered(&mut self, chat: &ChatId) {
        let sending = self.sending.entry(chat.clone()).or_default();
        sending.in_flight = sending.in_flight.saturating_sub(1);
        self.room |= sending.in_flight <= sending.window / 2;
    }

    pub(super) fn outcome(
        &mut self,
        worker: &mut Worker,
        chat: ChatId,
        n: u64,
        id: MessageId,
        reply: Reply,
    ) -> Result<Option<Incoming>, Error> {
        let sending = self.sending.entry(chat.clone()).or_default();
        let refusal = match reply {
            Reply::Sent { seq, at } => {
                sending.went_through();
                return Ok(Some(Incoming::Sent { chat, id, seq, at }));
            }
            Reply::Queued => {
                worker.inner.store().set_queued(id)?;
                worker.inner.changed();
                return Ok(None);
            }
            Reply::Refused(refusal) => refusal,
            Reply::Unsupported { .. } => Refusal::because(Code::Invalid, "this relay is too old for the request"),
            _ => return Err(Error::Unreachable("a send was answered with something else".to_owned())),
        };
        if refusal.code.is_passing() {
            if refusal.code == Code::RateLimited {
                sending.limited();
            }
            let wait = match refusal.code {
                Code::OutOfOrder | Code::NumberTaken => Duration::ZERO,
                _ => refusal.retry_after().unwrap_or(RETRY),
            };
            sending.begin_again(Instant::now() + wait);
            if refusal.code == Code::NumberTaken {
                let next = refusal.next.unwrap_or(n + 1);
                let (from, before) = sending.renumber.unwrap_or((n, next));
                sending.renumber = Some((from.min(n), before.max(next)));
            }
            return Ok(None);
        }
        if refusal.code == Code::NoSuchBlob && worker.inner.store().upload_again(id)? {
            tracing::info!(%chat, "the home has lost an attachment, which is uploaded again");
            self.uploading.look = true;
            return Ok(None);
        }
        worker.inner.store().set_refused(id, &refusal)?;
        worker.inner.changed();
        if refusal.code == Code::AlreadyExists {
            self.ask_info(chat, None);
        }
        Ok(None)
    }

    pub(super) async fn send_all(&mut self, worker: &mut Worker) -> Result<(), Error> {
        if !worker.compared {
            return Ok(());
        }
        let again = self.sending.values().any(|sending| sending.again_at.is_some());
        if !std::mem::take(&mut self.room) && !again {
            return Ok(());
        }
        let chats = worker.inner.store().unsent_chats()?;
        for chat in chats {
            if !self.held.contains(&chat) {
                self.send_chat(worker, &chat).await?;
            }
        }
        Ok(())
    }

    async fn send_chat(&mut self, worker: &mut Worker, chat: &ChatId) -> Result<(), Error> {
        let sending = self.sending.entry(chat.clone()).or_default();
        if let Some(at) = sending.again_at {
            if sending.in_flight > 0 || Instant::now() < at {
                return Ok(());
            }
            if let Some((from, next)) = sending.renumber {
                worker.inner.store().renumber(chat, from, next)?;
            }
            *sending = Sending { window: sending.window, ..Sending::default() };
        }
        let room = sending.window.saturating_sub(sending.in_flight);
        if room == 0 {
            return Ok(());
        }
        let (rows, oldest) = {
            let store = worker.inner.store();
            (store.unsent(chat, sending.written, room)?, store.oldest_unsent(chat)?)
        };
        let (Some(last), Some(oldest)) = (rows.last(), oldest) else { return Ok(()) };
        sending.written = last.n;
        sending.in_flight += rows.len();
        let requests: Vec<Request> = rows.iter().map(|row| row.request(oldest)).collect();
        let first = self.session.send(chat, &requests).await?;
        for (i, row) in (0u32..).zip(rows) {
            self.asked.insert(first.wrapping_add(i), Asked::Numbered { chat: row.chat, n: row.n, id: row.id });
        }
        Ok(())
    }
}
