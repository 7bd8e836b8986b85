//! What is compared after a store was restored from a backup: copies of other regions' chats with the logs they follow.

use super::chats::participants;
use super::keys::{Key, Parts};
use super::read::Snapshot;
use super::rows::{Records, RecordsMut, Scan, decode};
use super::shared::Topic;
use super::tables::{BASES, CHATS, CURSORS, DIRTY, INBOX, LOG, PARTICIPANTS, USER_CHATS, WATERMARKS};
use super::writer::{Batch, Fence, Write};
use super::{Committed, StoreError, meta};
use godwit_core::Participant;
use godwit_wire::entry::EntryId;
use godwit_wire::{ChatId, RegionId, Seq, UserId};
use std::ops::ControlFlow;

impl Snapshot {
    /// Chats of `own` in which users of `region` take or took part, after `after`, each with the last entry for them.
    pub(crate) fn shared_with(
        &self,
        own: &RegionId,
        region: &RegionId,
        after: Option<&ChatId>,
        limit: usize,
    ) -> Result<Vec<(ChatId, Seq)>, StoreError> {
        let all = Key::new().home(own).prefix();
        let span = match after {
            Some(chat) => all.behind(&Key::new().chat(chat).bytes()),
            None => all,
        };
        let mut shared: Vec<(ChatId, Seq)> = Vec::new();
        let mut head: Option<(ChatId, Option<Seq>)> = None;
        self.rows().scan(PARTICIPANTS.id, &span, Scan::ALL, &mut |key, value| {
            let mut parts = Parts(key);
            let (chat, user): (ChatId, UserId) = (parts.chat()?, parts.user()?);
            if !user.is_home(region) {
                return Ok(ControlFlow::Continue(()));
            }
            if head.as_ref().is_none_or(|(known, _)| *known != chat) {
                if shared.len() >= limit {
                    return Ok(ControlFlow::Break(()));
                }
                head = Some((chat.clone(), self.head(&chat)?));
            }
            if let Some(last) = head.as_ref().and_then(|(_, head)| *head) {
                let seen = decode::<Participant>(value)?.visible_head(last);
                match shared.last_mut() {
                    Some((known, before)) if *known == chat => *before = seen.max(*before),
                    _ => shared.push((chat, seen)),
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(shared)
    }

    /// The copies of chats of `home` after `after`, up to `last`, in the order of [`Snapshot::shared_with`].
    pub(crate) fn copies_of(
        &self,
        home: &RegionId,
        after: Option<&ChatId>,
        last: Option<&ChatId>,
    ) -> Result<Vec<ChatId>, StoreError> {
        let mut span = Key::new().home(home).prefix();
        if let Some(after) = after {
            span = span.behind(&Key::new().chat(after).bytes());
        }
        if let Some(last) = last {
            span = span.through(&Key::new().chat(last).bytes());
        }
        self.rows().all(CHATS, &span)?.iter().map(|(key, _)| Parts(key).chat()).collect()
    }

    /// Which entry is there, if one is.
    pub(crate) fn entry_id(&self, chat: &ChatId, seq: Seq) -> Result<Option<EntryId>, StoreError> {
        Ok(self.entry(chat, seq)?.map(|entry| EntryId { id: entry.id, at: entry.at }))
    }

    /// How this store and the one of another region were when they met last.
    pub(crate) fn met(&self, region: &RegionId) -> Result<Option<Met>, StoreError> {
        Ok(meta::get(self.rows(), &met_key(region))?.and_then(|text| Met::parse(&text)))
    }

    /// The regions whose stores this one has met.
    pub(crate) fn all_met(&self) -> Result<Vec<(RegionId, Met)>, StoreError> {
        let mut all = Vec::new();
        for (region, met) in meta::beginning_with(self.rows(), MET_REGION)? {
            let region = region.parse().map_err(|_| StoreError::Inconsistent("a region that was met"))?;
            all.extend(Met::parse(&met).map(|met| (region, met)));
        }
        Ok(all)
    }
}

/// The generations of two regions' stores when they agreed about their chats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Met {
    pub(crate) own: u64,
    pub(crate) theirs: u64,
}

impl Met {
    fn parse(text: &str) -> Option<Self> {
        let (own, theirs) = text.split_once(' ')?;
        Some(Self { own: own.parse().ok()?, theirs: theirs.parse().ok()? })
    }
}

/// What names of notes about other regions begin with.
const MET_REGION: &str = "met ";

fn met_key(region: &RegionId) -> String {
    format!("{MET_REGION}{region}")
}

/// Drops copies that are not what their home has, and has clients compare what they have.
#[derive(Debug)]
pub(super) struct DropCopies {
    pub(super) chats: Vec<ChatId>,
    pub(super) comparison: u64,
}

impl Write for DropCopies {
    type Output = ();
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        self.chats.first().map_or(Topic::Region, |chat| Topic::Chat(chat.clone()))
    }

    fn fence(&self) -> Fence {
        Fence::Loose
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        for chat in &self.chats {
            let key = Key::new().chat(chat).bytes();
            let span = Key::new().chat(chat).prefix();
            let rows = &mut *batch.rows;
            for user in participants(rows, chat)?.keys().filter(|user| user.is_home(batch.region)) {
                rows.delete(USER_CHATS, &Key::new().user(user).chat(chat).bytes())?;
                for (key, _) in rows.all(INBOX, &Key::new().user(user).prefix())? {
                    let mut parts = Parts(&key);
                    if parts.device().is_ok() && parts.chat()? == *chat {
                        rows.delete(INBOX, &key)?;
                    }
                }
            }
            rows.clear(LOG, &span)?;
            rows.clear(PARTICIPANTS, &span)?;
            rows.clear(WATERMARKS, &span)?;
            rows.delete(CHATS, &key)?;
            rows.delete(CURSORS, &key)?;
            rows.delete(DIRTY, &key)?;
            rows.delete(BASES, &key)?;
            batch.chats.forget(chat);
        }
        meta::put(batch.rows, meta::COMPARISON, &self.comparison.to_string())?;
        batch.committed.push(Committed::Dropped { chats: self.chats.clone() });
        Ok(())
    }
}

/// This store and the one of another region, as they are now, agree about their chats.
#[derive(Debug)]
pub(super) struct NoteMet {
    pub(super) region: RegionId,
    pub(super) met: Met,
}

impl Write for NoteMet {
    type Output = ();
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        Topic::Region
    }

    fn fence(&self) -> Fence {
        Fence::Loose
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        let Met { own, theirs } = self.met;
        meta::put(batch.rows, &met_key(&self.region), &format!("{own} {theirs}"))
    }
}
