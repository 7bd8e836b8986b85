//! What fan-out keeps: inbox rows, watermarks, and how far a chat is settled.

use super::StoreError;
use super::chats::{last_entry, participants};
use super::keys::{Key, Parts, Span};
use super::rows::{Records, RecordsMut, Rows, RowsMut, Scan, decode};
use super::shared::Topic;
use super::tables::{CURSORS, DEVICES, DIRTY, Floor, INBOX, Marks, PARTICIPANTS, WATERMARKS, Watermark};
use super::writer::{Batch, Fence, Write};
use godwit_core::Participant;
use godwit_core::inbox::InboxRow;
use godwit_wire::frame::SeqRange;
use godwit_wire::{ChatId, DeviceId, Seq, UnixMillis, UserId, limits};
use std::ops::ControlFlow;

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

/// Shows how far users got in the chats of a span, as it is saved.
pub(super) fn each_mark(
    rows: &dyn Rows,
    span: &Span,
    mut see: impl FnMut(&ChatId, UserId, Watermark) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    rows.scan(WATERMARKS.id, span, Scan::ALL, &mut |key, value| {
        let mut parts = Parts(key);
        let chat = parts.chat()?;
        if parts.0.is_empty() {
            decode::<Marks>(value)?.into_iter().try_for_each(|(user, mark)| see(&chat, user, mark))?;
        } else {
            // In the first format each user had a row.
            see(&chat, parts.user()?, decode(value)?)?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Removes the rows that the first format has of a chat. Gives what was in them.
fn take_former_marks(rows: &mut dyn RowsMut, chat: &ChatId) -> Result<Marks, StoreError> {
    let (mut marks, span) = (Marks::new(), Key::new().chat(chat).prefix());
    each_mark(rows, &span, |_, user, mark| {
        marks.insert(user, mark);
        Ok(())
    })?;
    if !marks.is_empty() {
        rows.clear(WATERMARKS, &span)?;
    }
    Ok(marks)
}

/// Saves how far users got; nobody goes back.
fn save_marks(rows: &mut dyn RowsMut, chat: &ChatId, news: &[(UserId, Watermark)]) -> Result<(), StoreError> {
    if news.is_empty() {
        return Ok(());
    }
    let key = Key::new().chat(chat).bytes();
    let mut marks = match rows.get(WATERMARKS, &key)? {
        Some(marks) => marks,
        None => take_former_marks(rows, chat)?,
    };
    for (user, new) in news {
        marks.entry(user.clone()).or_default().rise(*new);
    }
    if marks.len() > limits::PARTICIPANTS {
        let all = participants(rows, chat)?;
        marks.retain(|user, _| all.get(user).is_some_and(Participant::is_present));
    }
    rows.put(WATERMARKS, &key, &marks)
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
            save_marks(batch.rows, &progress.chat, &progress.watermarks)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Transaction;
    use godwit_core::entry::encode_record;

    fn all(rows: &dyn Rows) -> Vec<(String, Watermark)> {
        let mut all = Vec::new();
        let see = |_: &ChatId, user: UserId, mark: Watermark| {
            all.push((user.to_string(), mark));
            Ok(())
        };
        each_mark(rows, &Span::ALL, see).unwrap();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    #[test]
    fn rows_of_the_first_format_become_one_and_nobody_goes_back() {
        let database = redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let txn = database.begin_write().unwrap();
        let mut rows = Transaction::new(&txn);
        let chat: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let other: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8058".parse().unwrap();
        let seq = |n| Seq::new(n).ok();
        let mark = |delivered, read| Watermark { delivered: seq(delivered), read: seq(read) };
        let user = |name: &str| -> UserId { format!("{name}@eu").parse().unwrap() };
        for (chat, name, row) in [(&chat, "ann", mark(5, 0)), (&chat, "bob", mark(7, 7)), (&other, "ann", mark(1, 1))] {
            let key = Key::new().chat(chat).user(&user(name)).bytes();
            rows.insert(WATERMARKS.id, &key, &encode_record(&row)).unwrap();
        }
        let named = |name: &str, mark| (format!("{name}@eu"), mark);
        let before = [named("ann", mark(5, 0)), named("ann", mark(1, 1)), named("bob", mark(7, 7))];
        assert_eq!(all(&rows), before, "they are read");
        save_marks(&mut rows, &chat, &[(user("ann"), mark(6, 6)), (user("bob"), mark(6, 8))]).unwrap();
        save_marks(&mut rows, &chat, &[(user("cat"), mark(2, 0))]).unwrap();
        let count = rows.some(WATERMARKS, &Key::new().chat(&chat).prefix(), Scan::ALL).unwrap().len();
        assert_eq!(count, 1, "one row of the chat");
        let after =
            [named("ann", mark(6, 6)), named("ann", mark(1, 1)), named("bob", mark(7, 8)), named("cat", mark(2, 0))];
        assert_eq!(all(&rows), after);
    }

    #[test]
    fn a_row_has_no_more_users_than_a_chat() {
        let database = redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let txn = database.begin_write().unwrap();
        let mut rows = Transaction::new(&txn);
        let chat: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let mark = Watermark { delivered: Some(Seq::FIRST), read: None };
        let crowd: Vec<_> = (0..=limits::PARTICIPANTS).map(|i| (format!("u{i}@eu").parse().unwrap(), mark)).collect();
        save_marks(&mut rows, &chat, &crowd[..limits::PARTICIPANTS]).unwrap();
        assert_eq!(all(&rows).len(), limits::PARTICIPANTS);
        save_marks(&mut rows, &chat, &crowd[limits::PARTICIPANTS..]).unwrap();
        assert_eq!(all(&rows), [], "nobody takes part in this chat any more");
    }
}
