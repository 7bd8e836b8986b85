//! What fan-out keeps: inbox rows, watermarks, and how far a chat is settled.

use super::StoreError;
use super::keys::Key;
use super::rows::{Records, RecordsMut};
use super::shared::Topic;
use super::tables::{CURSORS, DEVICES, DIRTY, Floor, INBOX, WATERMARKS, Watermark};
use super::writer::{Batch, Write};
use godwit_core::inbox::InboxRow;
use godwit_wire::{ChatId, DeviceId, Seq, UserId};

/// A change of one inbox row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboxChange {
    /// The device has not taken `from`. A row that starts lower stays as it is.
    Begin(Seq),
    /// The device has taken everything below.
    MoveTo(Seq),
    /// The device has taken everything up to here, and that is all there is. A row that begins later, of entries that came
    /// since, stays.
    Taken(Seq),
    Remove,
}

#[derive(Clone, Debug)]
pub struct InboxWrite {
    pub device: DeviceId,
    /// The enrolment it is for: that of another has an inbox of its own. 0 of a region.
    pub enrolment: u32,
    pub chat: ChatId,
    pub change: InboxChange,
}

/// Changes of inbox rows. They go on while the disk is full: a row is small, and removing one needs a commit too.
#[derive(Debug)]
pub(super) struct InboxWrites(pub(super) Vec<InboxWrite>);

impl Write for InboxWrites {
    type Output = ();
    const IS_LOOSE: bool = true;
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        self.0.first().map_or(Topic::Region, |write| Topic::Chat(write.chat.clone()))
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        for write in &self.0 {
            let key = Key::new().device(&write.device).chat(&write.chat).bytes();
            if !write.device.is_region() {
                let device = batch.rows.get(DEVICES, &Key::new().device(&write.device).bytes())?;
                // One that was revoked keeps no inbox, and one that was enrolled anew has begun another.
                if device.is_none_or(|device| device.revoked || device.enrolment != write.enrolment) {
                    continue;
                }
            }
            let row = batch.rows.get(INBOX, &key)?;
            let row = match (&write.change, row) {
                (InboxChange::Begin(from), Some(row)) if row.from <= *from => continue,
                (InboxChange::Begin(from), row) => {
                    if row.is_none() {
                        batch.metrics.inbox_rows_written.inc();
                    }
                    InboxRow { from: *from, since: row.map_or(batch.now, |row| row.since) }
                }
                (InboxChange::MoveTo(from), Some(row)) if row.from < *from => {
                    InboxRow { from: *from, since: batch.now }
                }
                (InboxChange::Taken(up_to), Some(row)) if row.from <= up_to.next() => {
                    batch.rows.delete(INBOX, &key)?;
                    continue;
                }
                (InboxChange::MoveTo(_) | InboxChange::Taken(_), _) => continue,
                (InboxChange::Remove, _) => {
                    batch.rows.delete(INBOX, &key)?;
                    continue;
                }
            };
            batch.rows.put(INBOX, &key, &row)?;
        }
        Ok(())
    }
}

/// How far delivery of one chat got.
#[derive(Clone, Debug)]
pub struct ChatProgress {
    pub chat: ChatId,
    pub settled: Option<Seq>,
    pub watermarks: Vec<(UserId, Watermark)>,
    pub delivered: Option<Floor>,
    pub read: Option<Floor>,
}

/// Saved now and then; never goes back.
#[derive(Debug)]
pub(super) struct SaveProgress(pub(super) Vec<ChatProgress>);

impl Write for SaveProgress {
    type Output = ();
    const IS_LOOSE: bool = true;
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        self.0.first().map_or(Topic::Region, |progress| Topic::Chat(progress.chat.clone()))
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        for progress in &self.0 {
            let key = Key::new().chat(&progress.chat).bytes();
            for (user, new) in &progress.watermarks {
                let key = Key::new().chat(&progress.chat).user(user).bytes();
                let old = batch.rows.get(WATERMARKS, &key)?.unwrap_or_default();
                let row = Watermark { delivered: old.delivered.max(new.delivered), read: old.read.max(new.read) };
                batch.rows.put(WATERMARKS, &key, &row)?;
            }
            let mut cursor = batch.rows.get(CURSORS, &key)?.unwrap_or_default();
            cursor.settled = cursor.settled.max(progress.settled);
            if progress.delivered.is_some() {
                cursor.delivered.clone_from(&progress.delivered);
            }
            if progress.read.is_some() {
                cursor.read.clone_from(&progress.read);
            }
            batch.rows.put(CURSORS, &key, &cursor)?;
            if let Some(state) = batch.chats.get(batch.rows, &progress.chat)?
                && cursor.settled == Some(state.chat.head)
                && std::mem::take(&mut state.dirty)
            {
                batch.rows.delete(DIRTY, &key)?;
            }
        }
        Ok(())
    }
}
