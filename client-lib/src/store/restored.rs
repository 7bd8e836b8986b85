//! What changes here after a chat's home was restored from a backup.

use super::entries::{at_of, seq_of};
use super::outbox::{Outgoing, number_again, set_refused};
use super::{Store, int};
use crate::error::Error;
use godwit_wire::entry::EntryId;
use godwit_wire::{ChatId, Code, DeviceId, MessageId, Refusal, Seq, UnixMillis};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use uuid::Uuid;

/// Which entries of a chat are here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Here {
    /// Of others, in order. They came by the log of one past, so that with one of them in common all before it is.
    pub(crate) others: Vec<(Seq, EntryId)>,
    /// Of this device, in order. It is told of each when that is sent, be it on top of another past than what is here.
    pub(crate) own: Vec<(Seq, EntryId)>,
    /// When the first of all that are here was written, also if it stands beyond those above.
    pub(crate) began: Option<UnixMillis>,
}

impl Store {
    /// Which entries of a chat are here up to `last`.
    pub(crate) fn entry_ids(&self, chat: &ChatId, last: Seq, device: &DeviceId) -> Result<Here, Error> {
        let sql = "SELECT seq, id, at, sender = ?3 FROM entries WHERE chat = ?1 AND seq <= ?2 ORDER BY seq";
        let mut query = self.db.prepare_cached(sql)?;
        let rows = query.query_map(params![chat.to_string(), int(last.get()), device.as_str()], |row| {
            let id = EntryId { id: MessageId(Uuid::from_bytes(row.get(1)?)), at: at_of(row.get(2)?) };
            Ok((seq_of(row.get(0)?).zip(Some(id)), row.get::<_, bool>(3)?))
        })?;
        let sql = "SELECT at FROM entries WHERE chat = ?1 ORDER BY seq LIMIT 1";
        let began = self.db.prepare_cached(sql)?.query_row([chat.to_string()], |row| row.get(0)).optional()?;
        let mut here = Here { began: began.map(at_of), ..Here::default() };
        for row in rows {
            let (entry, own) = row?;
            if own { here.own.extend(entry) } else { here.others.extend(entry) }
        }
        Ok(here)
    }

    /// The home's log was cut back to `head` by a restore: what was beyond it is not there any more, and what this
    /// device had sent there is sent again. If not `surely`, the relay's copy of the log may only be behind: then what was
    /// sent under an earlier enrolment is left, since the home would take it for another message.
    pub(crate) fn cut_back(&mut self, chat: &ChatId, head: Option<Seq>, surely: bool) -> Result<(), Error> {
        let (text, head) = (chat.to_string(), head.map_or(0, |head| int(head.get())));
        let txn = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // The app was told of these, and is not told again when they come under another seq.
        txn.execute(
            "INSERT OR IGNORE INTO seen (chat, id) SELECT chat, id FROM entries
             WHERE chat = ?1 AND seq > ?2 AND seq <= (SELECT position FROM chats WHERE chat = ?1)",
            params![text, head],
        )?;
        txn.execute("DELETE FROM entries WHERE chat = ?1 AND seq > ?2", params![text, head])?;
        txn.execute("DELETE FROM holes WHERE chat = ?1 AND last > ?2", params![text, head])?;
        // The relay may know less of what was read, too.
        txn.execute(
            "UPDATE chats SET position = min(position, ?2), delivered = min(delivered, ?2), read = min(read, ?2),
             own_read = min(own_read, ?2), told_read = 0 WHERE chat = ?1",
            params![text, head],
        )?;
        take_back(&txn, &text, head, surely)?;
        Ok(txn.commit()?)
    }
}

/// What this device sent beyond `head` waits again. Not so what was redacted meanwhile, and what would redact what is not
/// there any more: another message will have its place.
fn take_back(txn: &Connection, chat: &str, head: i64, surely: bool) -> Result<(), Error> {
    let lost = Refusal::because(Code::NoSuchMessage, "it was lost with the store of the chat's home");
    let mut query =
        txn.prepare("SELECT id, request FROM outbox WHERE chat = ?1 AND (state < 2 OR state = 2 AND seq > ?2)")?;
    let rows = query.query_map(params![chat, head], |row| {
        Ok((MessageId(Uuid::from_bytes(row.get(0)?)), row.get::<_, Vec<u8>>(1)?))
    })?;
    for row in rows.collect::<Result<Vec<_>, _>>()? {
        let (id, request) = row;
        let outgoing: Option<Outgoing> = postcard::from_bytes(&request).ok();
        if outgoing.is_none_or(|outgoing| matches!(outgoing, Outgoing::Redact(of) if int(of.get()) > head)) {
            set_refused(txn, id, &lost)?;
        }
    }
    txn.execute(
        "UPDATE outbox SET state = 0, seq = NULL, at = NULL
         WHERE chat = ?1 AND state = 2 AND seq > ?2 AND (n > 0 OR ?3)",
        params![chat, head, surely],
    )?;
    number_again(txn, chat, head == 0)
}
