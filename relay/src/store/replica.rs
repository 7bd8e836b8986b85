//! Copies of chats whose home is another region, for the participants whose home is here.
//!
//! The home of a chat sends its log, entry by entry, to the home of every participant; from there it is served to their
//! devices as an own chat is: inboxes, history, lists. So a region reads and delivers on its own, also while the chat's
//! home is away. Only the chat's home decides.
//!
//! A copy is gapless from where the region's users take part. A region that joins, or joins again, gets a [`Base`]: the
//! chat as it is; the entries before that are kept, and change nothing.

use super::chats::{ChatState, participants, project};
use super::keys::{self, Key};
use super::rows::RecordsMut;
use super::shared::Topic;
use super::tables::{BASES, CHATS, ChatRow, DIRTY, LOG, PARTICIPANTS, USER_CHATS};
use super::writer::{Batch, Write};
use super::{Committed, InFlight, StoreError};
use godwit_core::{Applied, Chat, Entry, Participant};
use godwit_wire::bounded;
use godwit_wire::entry::{ChatKind, Title};
use godwit_wire::{ChatId, Seq, UnixMillis, UserId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rows of one base: everybody who ever took part.
const ROWS: usize = 16 * 1024;

/// A chat as it is at one entry of its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub as_of: Seq,
    pub kind: ChatKind,
    pub title: Title,
    pub created_at: UnixMillis,
    #[serde(deserialize_with = "bounded::list::<_, _, ROWS>")]
    pub participants: Vec<(UserId, Participant)>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicated {
    /// Everything up to here is durable.
    UpTo(Seq),
    /// What came does not follow what is here, which ends with this entry.
    Gap { have: Option<Seq> },
}

/// The next entries of a chat, ascending, at least one.
#[derive(Debug)]
pub(super) struct Replicate {
    pub(super) chat: ChatId,
    pub(super) base: Option<Base>,
    pub(super) entries: Vec<Entry>,
    pub(super) in_flight: Arc<InFlight>,
}

impl Write for Replicate {
    type Output = Replicated;

    fn topic(&self) -> Topic {
        Topic::Chat(self.chat.clone())
    }

    fn bytes(&self) -> usize {
        let content: u64 = self.entries.iter().map(|entry| Entry::content_bytes(&entry.body)).sum();
        self.entries.len() * size_of::<Entry>() + usize::try_from(content).unwrap_or(usize::MAX)
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<Replicated, StoreError> {
        let mut head = batch.chats.get(batch.rows, &self.chat)?.map(|state| state.chat.head);
        for (i, entry) in self.entries.iter().enumerate() {
            if head.is_some_and(|head| entry.seq <= head) {
                continue;
            }
            let base = self.base.as_ref().filter(|_| i == 0);
            let follows = match head {
                Some(head) => entry.seq == head.next(),
                None => matches!(entry.body, godwit_wire::entry::EntryBody::Created { .. }),
            };
            if !follows && base.is_none() {
                return Ok(Replicated::Gap { have: head });
            }
            if let Some(base) = base {
                self.rebase(base, batch)?;
            }
            self.take(entry, batch)?;
            head = Some(entry.seq);
        }
        Ok(head.map_or(Replicated::Gap { have: None }, Replicated::UpTo))
    }
}

impl Replicate {
    /// Takes over the chat as its home says it is.
    fn rebase(&self, base: &Base, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        let Batch { rows, chats, region, .. } = batch;
        let key = Key::new().chat(&self.chat).bytes();
        let row = ChatRow { kind: base.kind, title: base.title.clone(), created_at: base.created_at };
        rows.put(CHATS, &key, &row)?;
        rows.put(BASES, &key, &base.as_of)?;
        let known = participants(*rows, &self.chat)?;
        for (user, row) in &base.participants {
            if known.get(user).is_none_or(|known| known.as_of < row.as_of) {
                rows.put(PARTICIPANTS, &Key::new().chat(&self.chat).user(user).bytes(), row)?;
            }
            if user.is_home(region) {
                rows.put(USER_CHATS, &Key::new().user(user).chat(&self.chat).bytes(), &())?;
            }
        }
        chats.forget(&self.chat);
        Ok(())
    }

    fn take(&self, entry: &Entry, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        let Batch { rows, chats, region, .. } = batch;
        rows.put(LOG, &keys::log(&self.chat, entry.seq), entry)?;
        // A chat of which the first entry was just written is read as the entry left it.
        let Applied { recipients, projections } = match chats.cached(&self.chat) {
            Some(state) if entry.seq.get() > state.base => state.chat.apply(entry),
            Some(state) => state.chat.pass(entry),
            None => {
                if let Some((chat, applied)) = Chat::created(self.chat.clone(), entry) {
                    chats.enter(ChatState::replica(chat, None));
                    applied
                } else {
                    let state = chats.get(*rows, &self.chat)?;
                    let state = state.ok_or(StoreError::Inconsistent("a base without a chat"))?;
                    Applied { recipients: state.chat.recipients_at(entry.seq), projections: Vec::new() }
                }
            }
        };
        let state = chats.cached(&self.chat).ok_or(StoreError::Inconsistent("a copy without a chat"))?;
        for projection in projections {
            project(&projection, &state.chat, *rows, region)?;
        }
        if !std::mem::replace(&mut state.dirty, true) {
            rows.put(DIRTY, &Key::new().chat(&self.chat).bytes(), &())?;
        }
        let recipients = recipients.iter().filter(|user| user.is_home(region)).cloned().collect();
        batch.committed.push(Committed::Entry {
            chat: self.chat.clone(),
            entry: Arc::new(entry.clone()),
            recipients,
            in_flight: self.in_flight.clone(),
        });
        Ok(())
    }
}
