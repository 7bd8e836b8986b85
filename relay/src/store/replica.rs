//! Copies of chats whose home is another region, for the participants whose home is here.
//!
//! The home of a chat sends its log, entry by entry, to the home of every participant; from there it is served to their
//! devices as an own chat is: inboxes, history, lists. So a region reads and delivers on its own, also while the chat's
//! home is away. Only the chat's home decides.
//!
//! A copy is gapless from where the region's users take part. A region that joins, or joins again, gets a [`Base`]: the
//! chat as it is; the entries before that are kept, and change nothing. The base also says which entries its users saw
//! before: a copy without them asks for those first.

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
use godwit_wire::{ChatId, RegionId, Seq, UnixMillis, UserId};
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

impl Base {
    /// The last entry before `seq` that users of `region` may see.
    fn seen_before(&self, seq: Seq, region: &RegionId) -> Option<Seq> {
        let users = self.participants.iter().filter(|(user, _)| user.is_home(region));
        users.filter_map(|(_, row)| row.saw_before(seq)).max()
    }
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
            let region = batch.region;
            let leads = |base: &Base| head >= base.seen_before(entry.seq, region);
            if !follows && !base.is_some_and(leads) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::metrics::Metrics;
    use crate::store::{OpenStore, Store, StoreLimits, file};
    use godwit_wire::MessageId;
    use godwit_wire::entry::{Change, Content, EntryBody, Member, Role};
    use uuid::Uuid;

    fn entry(seq: u64, from: &str, body: EntryBody) -> Entry {
        Entry {
            seq: Seq::new(seq).unwrap(),
            at: UnixMillis(seq),
            from: from.parse().unwrap(),
            enrolment: 1,
            n: seq,
            id: MessageId(Uuid::from_u128(seq.into())),
            previous: None,
            total_bytes: 0,
            body,
        }
    }

    /// Bob of eu takes part in a chat of us, leaves with its third entry, and joins again with the fifth.
    #[tokio::test]
    async fn a_base_does_not_pass_over_what_was_seen_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::system();
        let opener = file::opener(host.disk.clone(), folder.path().join(file::NAME), "eu".parse().unwrap(), 1 << 20);
        let opened = Store::open(opener, None, &StoreLimits::default(), &host, Metrics::default()).unwrap();
        let OpenStore { store, committed: _committed, .. } = opened;
        let seq = |n| Seq::new(n).unwrap();
        let chat = ChatId::group("us".parse().unwrap(), Uuid::now_v7()).unwrap();
        let alice = "alice@us/phone";
        let bob = || Member { user: "bob@eu".parse().unwrap(), role: Role::Member };
        let participants = vec![bob()];
        let entries = [
            entry(1, alice, EntryBody::Created { kind: ChatKind::Group, title: Title::default(), participants }),
            entry(2, alice, EntryBody::Message { content: Content("text".into()), blobs: Vec::new() }),
            entry(3, "bob@eu/phone", EntryBody::Updated(Change::Leave)),
            entry(4, alice, EntryBody::Message { content: Content("text".into()), blobs: Vec::new() }),
            entry(5, alice, EntryBody::Updated(Change::Add(vec![bob()]))),
        ];
        let mut bobs = Participant::joined(Role::Member, seq(1));
        bobs.leave(seq(3));
        bobs.join_again(Role::Member, seq(5));
        let base = Base {
            as_of: seq(5),
            kind: ChatKind::Group,
            title: Title::default(),
            created_at: UnixMillis(1),
            participants: vec![
                ("alice@us".parse().unwrap(), Participant::joined(Role::Owner, seq(1))),
                (bob().user, bobs),
            ],
        };
        let take = async |base: Option<&Base>, from: usize, to: usize| {
            let entries = entries[from - 1..to].to_vec();
            store.replicate(chat.clone(), base.cloned(), entries).await.unwrap().await.unwrap()
        };
        assert_eq!(take(Some(&base), 5, 5).await, Replicated::Gap { have: None });
        assert_eq!(take(None, 1, 2).await, Replicated::UpTo(seq(2)));
        assert_eq!(take(Some(&base), 5, 5).await, Replicated::Gap { have: Some(seq(2)) }, "bob saw that he left");
        assert_eq!(take(None, 3, 3).await, Replicated::UpTo(seq(3)));
        assert_eq!(take(None, 5, 5).await, Replicated::Gap { have: Some(seq(3)) });
        assert_eq!(take(Some(&base), 5, 5).await, Replicated::UpTo(seq(5)), "what came meanwhile is not for bob");
    }
}
