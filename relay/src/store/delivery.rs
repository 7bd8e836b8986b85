//! What fan-out keeps: inbox rows, and how far a chat is settled and everybody got.

use super::StoreError;
use super::chats::{last_entry, participants};
use super::keys::Key;
use super::marks;
use super::rows::{Records, RecordsMut, Rows};
use super::shared::Topic;
use super::tables::{CURSORS, DEVICES, DIRTY, Floor, INBOX, PARTICIPANTS, Watermark};
use super::writer::{Batch, Fence, Write};
use godwit_core::inbox::InboxRow;
use godwit_wire::frame::SeqRange;
use godwit_wire::{ChatId, DeviceId, Seq, UnixMillis, UserId};

/// A change of one inbox row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboxChange {
    /// The device has not taken `from`. A row that starts lower stays as it is.
    Begin(Seq),
    /// The device has taken these, with which the row begins as far as is known. One that begins lower was begun by
    /// another relay, and stays.
    Took(SeqRange),
    /// As [`InboxChange::Took`], and that is all there is. A row that begins later, of entries that came since, stays.
    TookAll(SeqRange),
}

impl InboxChange {
    /// Where the row begins, as far as whoever changes it knows.
    fn from(&self) -> Seq {
        match self {
            Self::Begin(from) => *from,
            Self::Took(range) | Self::TookAll(range) => range.from,
        }
    }
}

#[derive(Clone, Debug)]
pub struct InboxWrite {
    pub device: DeviceId,
    /// The enrolment it is for: that of another has an inbox of its own. 0 of a region.
    pub enrolment: u32,
    pub chat: ChatId,
    pub change: InboxChange,
}

/// How a row goes that its device has taken.
///
/// On a shared store another relay may just have committed an entry, seen the row, and left it at that. So a row goes in
/// two rounds: it is marked as leaving, and only if the log has nothing more *then*, nobody has the chat but who removes it,
/// and nobody began the row anew since, it is removed. Whoever begins a row that is leaving writes it anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// There is no other relay.
    Only,
    Leave,
    Gone,
}

/// In place of the time since when a device is behind: the row is leaving.
const LEAVING: UnixMillis = UnixMillis(0);

/// Changes of inbox rows. They go on while the disk is full: a row is small, and removing one needs a commit too.
#[derive(Debug)]
pub(super) struct InboxWrites {
    pub(super) writes: Vec<InboxWrite>,
    pub(super) round: Round,
}

impl Write for InboxWrites {
    /// Rows that begin lower than was known, or were to go and stay for what came since: from where on.
    type Output = Vec<(DeviceId, ChatId, Seq)>;
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        self.writes.first().map_or(Topic::Region, |write| Topic::Chat(write.chat.clone()))
    }

    fn fence(&self) -> Fence {
        // Whoever counts on a row reads it once, and then knows that it stays until another relay takes the chat up.
        if self.round == Round::Gone { Fence::Before } else { Fence::Loose }
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<Self::Output, StoreError> {
        let mut left = Vec::new();
        for write in &self.writes {
            if self.round == Round::Gone && !matches!(write.change, InboxChange::TookAll(_)) {
                continue;
            }
            let key = Key::new().device(&write.device).chat(&write.chat).bytes();
            let mut is_anew = false;
            if !write.device.is_region() {
                let device = batch.rows.get(DEVICES, &Key::new().device(&write.device).bytes())?;
                // One that was revoked keeps no inbox.
                let Some(device) = device.filter(|device| !device.revoked && device.enrolment >= write.enrolment)
                else {
                    continue;
                };
                is_anew = device.enrolment > write.enrolment;
            }
            let row = batch.rows.get(INBOX, &key)?;
            // One that was enrolled anew has begun another inbox. A relay that shares the store and has not heard of it may
            // have an entry that is newer than that.
            if is_anew
                && (self.round != Round::Leave || row.is_some() || !matches!(write.change, InboxChange::Begin(_)))
            {
                continue;
            }
            let lower = row.filter(|row| self.round != Round::Gone && row.from < write.change.from());
            left.extend(lower.map(|row| (write.device.clone(), write.chat.clone(), row.from)));
            let row = match (&write.change, row) {
                (InboxChange::Begin(from), Some(row)) if row.from <= *from && row.since != LEAVING => continue,
                (InboxChange::Begin(from), Some(row)) => {
                    let since = if row.since == LEAVING { batch.now } else { row.since };
                    InboxRow { from: row.from.min(*from), since }
                }
                (InboxChange::Begin(from), None) => {
                    batch.metrics.inbox_rows_written.inc();
                    InboxRow { from: *from, since: batch.now }
                }
                (InboxChange::Took(_) | InboxChange::TookAll(_), _) if lower.is_some() => continue,
                (InboxChange::Took(range), Some(row)) if row.from <= range.to => {
                    InboxRow { from: range.to.next(), since: batch.now }
                }
                (InboxChange::TookAll(range), Some(row))
                    if row.from <= range.to.next() && self.round != Round::Gone =>
                {
                    if self.round == Round::Leave {
                        InboxRow { from: range.to.next(), since: LEAVING }
                    } else {
                        batch.rows.delete(INBOX, &key)?;
                        continue;
                    }
                }
                (InboxChange::TookAll(range), Some(row)) if self.round == Round::Gone && row.since == LEAVING => {
                    let head = head_for(batch.rows, &write.device, &write.chat)?;
                    if head <= Some(range.to) && row.from == range.to.next() {
                        batch.rows.delete(INBOX, &key)?;
                    } else {
                        left.push((write.device.clone(), write.chat.clone(), row.from));
                    }
                    continue;
                }
                (InboxChange::Took(_) | InboxChange::TookAll(_), _) => continue,
            };
            batch.rows.put(INBOX, &key, &row)?;
        }
        Ok(left)
    }
}

/// The last entry of a chat that is for a device's user, or for anybody of a region.
fn head_for(rows: &dyn Rows, device: &DeviceId, chat: &ChatId) -> Result<Option<Seq>, StoreError> {
    let Some(last) = last_entry(rows, chat)? else { return Ok(None) };
    let user = device.user();
    if device.is_region() {
        let region = user.home();
        let all = participants(rows, chat)?;
        return Ok(all
            .iter()
            .filter(|(user, _)| user.is_home(&region))
            .map(|(_, row)| row.visible_head(last.seq))
            .max());
    }
    let row = rows.get(PARTICIPANTS, &Key::new().chat(chat).user(&user).bytes())?;
    Ok(row.map(|row| row.visible_head(last.seq)))
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
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        self.0.first().map_or(Topic::Region, |progress| Topic::Chat(progress.chat.clone()))
    }

    fn fence(&self) -> Fence {
        Fence::Loose
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        for progress in &self.0 {
            let key = Key::new().chat(&progress.chat).bytes();
            marks::save(batch.rows, &progress.chat, &progress.watermarks)?;
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
