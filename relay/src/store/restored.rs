//! What is compared after a store was restored from a backup: copies of other regions' chats with the logs they follow.

use super::keys::{Key, Parts};
use super::read::Snapshot;
use super::tables::{CHATS, META, PARTICIPANTS, decode, meta};
use super::writer::{Batch, Write};
use super::{Committed, StoreError};
use godwit_core::Participant;
use godwit_wire::entry::EntryId;
use godwit_wire::{ChatId, RegionId, Seq, UserId};
use redb::ReadableTable;

impl Snapshot {
    /// Chats of `own` in which users of `region` take or took part, after `after`, each with the last entry for them.
    pub(crate) fn shared_with(
        &self,
        own: &RegionId,
        region: &RegionId,
        after: Option<&ChatId>,
        limit: usize,
    ) -> Result<Vec<(ChatId, Seq)>, StoreError> {
        let (first, end) = Key::new().home(own).prefix();
        let start = after.map_or(first, |chat| Key::new().chat(chat).prefix().1);
        let mut shared: Vec<(ChatId, Seq)> = Vec::new();
        let mut head: Option<(ChatId, Option<Seq>)> = None;
        for row in self.table(PARTICIPANTS)?.range::<&[u8]>(start.as_slice()..end.as_slice())? {
            let (key, value) = row?;
            let mut parts = Parts(key.value());
            let (chat, user): (ChatId, UserId) = (parts.chat()?, parts.user()?);
            if !user.is_home(region) {
                continue;
            }
            if head.as_ref().is_none_or(|(known, _)| *known != chat) {
                if shared.len() >= limit {
                    break;
                }
                head = Some((chat.clone(), self.head(&chat)?));
            }
            let Some(last) = head.as_ref().and_then(|(_, head)| *head) else { continue };
            let seen = decode::<Participant>(value.value())?.visible_head(last);
            match shared.last_mut() {
                Some((known, before)) if *known == chat => *before = seen.max(*before),
                _ => shared.push((chat, seen)),
            }
        }
        Ok(shared)
    }

    /// The copies of chats of `home` after `after`, up to `last`, in the order of [`Snapshot::shared_with`].
    pub(crate) fn copies_of(
        &self,
        home: &RegionId,
        after: Option<&ChatId>,
        last: Option<&ChatId>,
    ) -> Result<Vec<ChatId>, StoreError> {
        let (first, end) = Key::new().home(home).prefix();
        let start = after.map_or(first, |chat| Key::new().chat(chat).prefix().1);
        let end = last.map_or(end, |chat| Key::new().chat(chat).prefix().1);
        let table = self.table(CHATS)?;
        let rows = table.range::<&[u8]>(start.as_slice()..end.as_slice())?;
        rows.map(|row| Parts(row?.0.value()).chat()).collect()
    }

    /// Which entry is there, if one is.
    pub(crate) fn entry_id(&self, chat: &ChatId, seq: Seq) -> Result<Option<EntryId>, StoreError> {
        Ok(self.entry(chat, seq)?.map(|entry| EntryId { id: entry.id, at: entry.at }))
    }

    /// How this store and the one of another region were when they met last.
    pub(crate) fn met(&self, region: &RegionId) -> Result<Option<Met>, StoreError> {
        Ok(meta::get(self.txn(), &met_key(region))?.and_then(|text| Met::parse(&text)))
    }

    /// The regions whose stores this one has met.
    pub(crate) fn all_met(&self) -> Result<Vec<(RegionId, Met)>, StoreError> {
        let mut all = Vec::new();
        for row in self.table(META)?.range::<&[u8]>(MET_REGION.as_bytes()..)? {
            let (key, value) = row?;
            let Some(region) = key.value().strip_prefix(MET_REGION.as_bytes()) else { break };
            let region = String::from_utf8_lossy(region).parse();
            let region = region.map_err(|_| StoreError::Inconsistent("a region that was met"))?;
            all.extend(Met::parse(&String::from_utf8_lossy(value.value())).map(|met| (region, met)));
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

    fn apply(&self, batch: &mut Batch<'_, '_>) -> Result<(), StoreError> {
        for chat in &self.chats {
            let key = Key::new().chat(chat).bytes();
            let (start, end) = Key::new().chat(chat).prefix();
            let tables = &mut batch.tables;
            let mut users = Vec::new();
            for row in tables.participants.range::<&[u8]>(start.as_slice()..end.as_slice())? {
                users.push(Parts(&row?.0.value()[start.len()..]).user()?);
            }
            for user in users.iter().filter(|user| user.is_home(batch.region)) {
                tables.user_chats.remove(Key::new().user(user).chat(chat).bytes().as_slice())?;
                let (first, last) = Key::new().user(user).prefix();
                let mut rows = Vec::new();
                for row in tables.inbox.range::<&[u8]>(first.as_slice()..last.as_slice())? {
                    let key = row?.0.value().to_vec();
                    let mut parts = Parts(&key);
                    if parts.device().is_ok() && parts.chat()? == *chat {
                        rows.push(key);
                    }
                }
                for row in rows {
                    tables.inbox.remove(row.as_slice())?;
                }
            }
            let range = || start.as_slice()..end.as_slice();
            tables.log.retain_in::<&[u8], _>(range(), |_, _| false)?;
            tables.participants.retain_in::<&[u8], _>(range(), |_, _| false)?;
            tables.watermarks.retain_in::<&[u8], _>(range(), |_, _| false)?;
            for table in [&mut tables.chats, &mut tables.cursors, &mut tables.dirty, &mut tables.bases] {
                table.remove(key.as_slice())?;
            }
            batch.chats.forget(chat);
        }
        batch.tables.meta.insert(meta::COMPARISON.as_bytes(), self.comparison.to_string().as_bytes())?;
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

    fn apply(&self, batch: &mut Batch<'_, '_>) -> Result<(), StoreError> {
        let Met { own, theirs } = self.met;
        batch.tables.meta.insert(met_key(&self.region).as_bytes(), format!("{own} {theirs}").as_bytes())?;
        Ok(())
    }
}
