//! Chats and their logs, as far as this device has them.

use super::{Store, int, uint};
use crate::error::Error;
use crate::order::Order;
use godwit_wire::entry::{ChatKind, EntryBody, Known, LogEntry, Member, Role, Title};
use godwit_wire::frame::{HistoryPage, Receipt, SeqRange};
use godwit_wire::{ChatId, MessageId, Seq, UnixMillis};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use std::collections::HashMap;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChatRow {
    pub(crate) chat: ChatId,
    pub(crate) kind: ChatKind,
    pub(crate) title: Title,
    pub(crate) role: Option<Role>,
    pub(crate) position: Option<Seq>,
    pub(crate) receipt: Receipt,
}

/// History that another process asks for.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    pub(crate) id: i64,
    pub(crate) chat: ChatId,
    pub(crate) before: Option<Seq>,
    pub(crate) count: usize,
}

/// Where each chat stands, kept beside the store.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) chats: HashMap<ChatId, Order>,
    /// Of chats that are not known here yet, the first of what was pushed. A list that is made while it is on its way
    /// does not count it among what is still to come.
    pub(crate) pushed: HashMap<ChatId, Seq>,
}

pub(super) fn role_number(role: Role) -> i64 {
    match role {
        Role::Member => 0,
        Role::Admin => 1,
        Role::Owner => 2,
    }
}

fn role_of(number: i64) -> Role {
    match number {
        2 => Role::Owner,
        1 => Role::Admin,
        _ => Role::Member,
    }
}

pub(super) fn seq_of(value: i64) -> Option<Seq> {
    Seq::new(uint(value)).ok()
}

pub(super) fn at_of(value: i64) -> UnixMillis {
    UnixMillis(uint(value))
}

impl Store {
    pub(crate) fn chats(&self) -> Result<Vec<ChatRow>, Error> {
        let mut query = self
            .db
            .prepare_cached("SELECT chat, kind, title, role, position, delivered, read FROM chats ORDER BY chat")?;
        let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, chat_columns(row)?)))?;
        let mut chats = Vec::new();
        for row in rows {
            let (chat, columns) = row?;
            chats.push(columns.row(self.parse_chat(&chat)?));
        }
        Ok(chats)
    }

    pub(crate) fn chat(&self, chat: &ChatId) -> Result<Option<ChatRow>, Error> {
        let mut query = self
            .db
            .prepare_cached("SELECT chat, kind, title, role, position, delivered, read FROM chats WHERE chat = ?1")?;
        let row = query.query_row([chat.to_string()], chat_columns).optional()?;
        Ok(row.map(|columns| columns.row(chat.clone())))
    }

    pub(crate) fn participants(&self, chat: &ChatId) -> Result<Vec<Member>, Error> {
        let mut query = self.db.prepare_cached("SELECT user, role FROM participants WHERE chat = ?1 ORDER BY user")?;
        let rows = query.query_map([chat.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        let mut members = Vec::new();
        for row in rows {
            let (user, role): (String, i64) = row?;
            let user = user
                .parse()
                .map_err(|_| Error::Corrupt { path: self.path.clone(), what: format!("user id {user:?}") })?;
            members.push(Member { user, role: role_of(role) });
        }
        Ok(members)
    }

    /// Whether it is known who takes part in a chat.
    pub(crate) fn knows_participants(&self, chat: &ChatId) -> Result<bool, Error> {
        let mut query = self.db.prepare_cached("SELECT EXISTS (SELECT 1 FROM participants WHERE chat = ?1)")?;
        Ok(query.query_row([chat.to_string()], |row| row.get(0))?)
    }

    /// The last entry of a chat that is here, or that this device has passed.
    pub(crate) fn newest(&self, chat: &ChatId) -> Result<Option<Seq>, Error> {
        let newest = self.db.query_row(
            "SELECT max(coalesce((SELECT position FROM chats WHERE chat = ?1), 0),
                        coalesce((SELECT max(seq) FROM entries WHERE chat = ?1), 0))",
            [chat.to_string()],
            |row| row.get(0),
        )?;
        Ok(seq_of(newest))
    }

    /// The newest entries below `before` that are here without a gap, ascending, at most `limit`; and, if the relay has
    /// more, below which seq to ask it.
    pub(crate) fn history(
        &self,
        chat: &ChatId,
        before: Option<Seq>,
        limit: usize,
    ) -> Result<(Vec<LogEntry>, Option<Seq>), Error> {
        let text = chat.to_string();
        let newest = self.newest(chat)?.map_or(0, Seq::get);
        let mut next = before.map_or(newest, |before| newest.min(before.get() - 1));
        let mut entries = Vec::new();
        let mut one =
            self.db.prepare_cached("SELECT seq, at, sender, id, body FROM entries WHERE chat = ?1 AND seq = ?2")?;
        let mut hole = self
            .db
            .prepare_cached("SELECT first FROM holes WHERE chat = ?1 AND first <= ?2 AND last >= ?2 AND pushed = 1")?;
        while next > 0 && entries.len() < limit {
            if let Some(columns) = one.query_row(params![text, int(next)], entry_columns).optional()? {
                entries.push(self.entry(columns)?);
                next -= 1;
            } else if let Some(first) = hole.query_row(params![text, int(next)], |row| row.get(0)).optional()? {
                next = uint(first) - 1;
            } else {
                break;
            }
        }
        entries.reverse();
        let ask = if entries.len() < limit && next > 0 { Seq::new(next + 1).ok() } else { None };
        Ok((entries, ask))
    }

    fn entry(&self, columns: EntryColumns) -> Result<LogEntry, Error> {
        let seq = columns.0;
        decode_entry(columns).ok_or_else(|| Error::Corrupt { path: self.path.clone(), what: format!("entry {seq}") })
    }

    /// Keeps a page of older history, which makes no events: as far as this device has passed the chat, which it gives.
    /// What is beyond becomes an event first.
    pub(crate) fn keep_page(&mut self, chat: &ChatId, page: &HistoryPage) -> Result<Option<Seq>, Error> {
        let (text, txn) = (chat.to_string(), self.db.transaction_with_behavior(TransactionBehavior::Immediate)?);
        let Some(position) = load_position(&txn, &text)?.and_then(seq_of) else { return Ok(None) };
        for entry in page.entries.iter().filter(|entry| entry.seq <= position) {
            put_entry(&txn, &text, entry)?;
        }
        for range in page.hidden.iter().filter(|range| range.from <= position) {
            put_hole(&txn, &text, SeqRange { from: range.from, to: range.to.min(position) }, true)?;
        }
        txn.commit()?;
        Ok(Some(position))
    }

    pub(crate) fn order(&self, chat: &ChatId) -> Result<Option<Order>, Error> {
        load_order(&self.db, chat)
    }

    /// Notes what the user has read on this device.
    pub(crate) fn set_read(&self, chat: &ChatId, up_to: Seq) -> Result<(), Error> {
        self.db.execute(
            "UPDATE chats SET own_read = max(own_read, ?2) WHERE chat = ?1",
            params![chat.to_string(), int(up_to.get())],
        )?;
        Ok(())
    }

    /// What was read here and not told to the relay yet.
    pub(crate) fn untold_reads(&self) -> Result<Vec<(ChatId, Seq)>, Error> {
        let mut query = self.db.prepare_cached("SELECT chat, own_read FROM chats WHERE own_read > told_read")?;
        let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        let mut reads = Vec::new();
        for row in rows {
            let (chat, seq) = row?;
            reads.extend(seq_of(seq).map(|seq| Ok::<_, Error>((self.parse_chat(&chat)?, seq))).transpose()?);
        }
        Ok(reads)
    }

    pub(crate) fn told_read(&self, chat: &ChatId, up_to: Seq) -> Result<(), Error> {
        self.db.execute(
            "UPDATE chats SET told_read = max(told_read, ?2) WHERE chat = ?1",
            params![chat.to_string(), int(up_to.get())],
        )?;
        Ok(())
    }

    /// Chats in which a message of this device is not known to be delivered yet, newest first.
    pub(crate) fn undelivered_chats(&self, limit: usize) -> Result<Vec<ChatId>, Error> {
        let mut query = self.db.prepare_cached(
            "SELECT o.chat FROM outbox o JOIN chats c ON c.chat = o.chat
             WHERE o.state = 2 GROUP BY o.chat HAVING max(o.seq) > max(c.delivered) ORDER BY max(o.local) DESC LIMIT ?1",
        )?;
        let rows = query.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get::<_, String>(0))?;
        let mut chats = Vec::new();
        for row in rows {
            chats.push(self.parse_chat(&row?)?);
        }
        Ok(chats)
    }

    /// Asks whoever keeps the connection for history.
    pub(crate) fn ask(&self, chat: &ChatId, before: Option<Seq>, count: usize) -> Result<i64, Error> {
        self.db.execute(
            "INSERT INTO fetches (chat, before, count) VALUES (?1, ?2, ?3)",
            params![chat.to_string(), before.map(|seq| int(seq.get())), i64::try_from(count).unwrap_or(i64::MAX)],
        )?;
        Ok(self.db.last_insert_rowid())
    }

    /// What is asked for and not done.
    pub(crate) fn asked(&self) -> Result<Vec<Fetch>, Error> {
        let mut query =
            self.db.prepare_cached("SELECT id, chat, before, count FROM fetches WHERE outcome IS NULL ORDER BY id")?;
        let rows = query.query_map([], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<i64>>(2)?, row.get::<_, i64>(3)?))
        })?;
        let mut asked = Vec::new();
        for row in rows {
            let (id, chat, before, count) = row?;
            let count = usize::try_from(count).unwrap_or(0);
            asked.push(Fetch { id, chat: self.parse_chat(&chat)?, before: before.and_then(seq_of), count });
        }
        Ok(asked)
    }

    pub(crate) fn answer(&self, id: i64, outcome: &[u8]) -> Result<(), Error> {
        self.db.execute("UPDATE fetches SET outcome = ?2 WHERE id = ?1", params![id, outcome])?;
        Ok(())
    }

    /// The outcome of what was asked; taking it removes it.
    pub(crate) fn take_answer(&self, id: i64) -> Result<Option<Vec<u8>>, Error> {
        let outcome: Option<Option<Vec<u8>>> =
            self.db.query_row("SELECT outcome FROM fetches WHERE id = ?1", [id], |row| row.get(0)).optional()?;
        let outcome = outcome.flatten();
        if outcome.is_some() {
            self.withdraw(id)?;
        }
        Ok(outcome)
    }

    pub(crate) fn withdraw(&self, id: i64) -> Result<(), Error> {
        self.db.execute("DELETE FROM fetches WHERE id = ?1", [id])?;
        Ok(())
    }
}

struct ChatColumns {
    kind: ChatKind,
    title: Title,
    role: Option<Role>,
    position: Option<Seq>,
    receipt: Receipt,
}

impl ChatColumns {
    fn row(self, chat: ChatId) -> ChatRow {
        let Self { kind, title, role, position, receipt } = self;
        ChatRow { chat, kind, title, role, position, receipt }
    }
}

fn chat_columns(row: &Row<'_>) -> rusqlite::Result<ChatColumns> {
    Ok(ChatColumns {
        kind: if row.get::<_, i64>(1)? == 1 { ChatKind::Direct } else { ChatKind::Group },
        title: Title::parse(row.get::<_, String>(2)?).unwrap_or_default(),
        role: row.get::<_, Option<i64>>(3)?.map(role_of),
        position: seq_of(row.get(4)?),
        receipt: Receipt { delivered: seq_of(row.get(5)?), read: seq_of(row.get(6)?) },
    })
}

pub(super) type EntryColumns = (i64, i64, String, [u8; 16], Vec<u8>);

pub(super) fn entry_columns(row: &Row<'_>) -> rusqlite::Result<EntryColumns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

/// The entry in a row; none if the row is damaged.
pub(super) fn decode_entry((seq, at, sender, id, body): EntryColumns) -> Option<LogEntry> {
    Some(LogEntry {
        seq: seq_of(seq)?,
        at: at_of(at),
        from: sender.parse().ok()?,
        id: MessageId(Uuid::from_bytes(id)),
        body: postcard::from_bytes(&body).ok()?,
    })
}

/// Up to where this device has passed a chat; none if the chat is not known.
fn load_position(db: &Connection, chat: &str) -> Result<Option<i64>, Error> {
    let mut query = db.prepare_cached("SELECT position FROM chats WHERE chat = ?1")?;
    Ok(query.query_row([chat], |row| row.get(0)).optional()?)
}

pub(super) fn load_order(db: &Connection, chat: &ChatId) -> Result<Option<Order>, Error> {
    let text = chat.to_string();
    let Some(position) = load_position(db, &text)? else { return Ok(None) };
    let mut order = Order::new(seq_of(position));
    let mut query = db.prepare_cached(
        "SELECT seq, seq FROM entries WHERE chat = ?1 AND seq > ?2
         UNION ALL SELECT first, last FROM holes WHERE chat = ?1 AND last > ?2",
    )?;
    let rows = query.query_map(params![text, position], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    for row in rows {
        let (from, to) = row?;
        if let (Some(from), Some(to)) = (seq_of(from), seq_of(to)) {
            order.take_range(SeqRange { from, to });
        }
    }
    Ok(Some(order))
}

pub(super) fn put_entry(txn: &Connection, chat: &str, entry: &LogEntry) -> Result<(), Error> {
    let body = postcard::to_stdvec(&entry.body).map_err(|error| Error::Invalid(error.to_string()))?;
    // What was erased stays erased, and what the relay says is erased becomes so.
    let erased = matches!(entry.body, Known::Yes(EntryBody::Erased { .. }));
    let conflict = if erased { "UPDATE SET body = excluded.body" } else { "NOTHING" };
    let insert = format!(
        "INSERT INTO entries (chat, seq, at, sender, id, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (chat, seq) DO {conflict}"
    );
    txn.prepare_cached(&insert)?.execute(params![
        chat,
        int(entry.seq.get()),
        int(entry.at.0),
        entry.from.as_str(),
        entry.id.0.as_bytes(),
        body
    ])?;
    Ok(())
}

pub(super) fn put_hole(txn: &Connection, chat: &str, range: SeqRange, pushed: bool) -> Result<(), Error> {
    txn.prepare_cached(
        "INSERT INTO holes (chat, first, last, pushed) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (chat, first) DO UPDATE SET last = max(last, excluded.last), pushed = excluded.pushed",
    )?
    .execute(params![chat, int(range.from.get()), int(range.to.get()), i64::from(pushed)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::host::Host;
    use crate::store::{DeviceRow, Incoming};
    use godwit_wire::entry::Content;
    use godwit_wire::frame::{ChatSummary, Receipt};
    use godwit_wire::{DeviceId, limits};

    #[test]
    fn what_is_pushed_before_its_chat_is_known_is_told_once_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let own: DeviceId = "bob@eu/phone".parse().unwrap();
        let chat: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let seq = |n| Seq::new(n).unwrap();
        let entry = |n: u64| LogEntry {
            seq: seq(n),
            at: UnixMillis(n),
            from: "alice@eu/phone".parse().unwrap(),
            id: MessageId(Uuid::from_u128(u128::from(n))),
            body: Known::Yes(EntryBody::Message { content: Content(vec![1].into()), blobs: Vec::new() }),
        };
        // Sent while the new device connects: it is on its way, so that nothing is left to be delivered.
        let summary = ChatSummary {
            chat: chat.clone(),
            kind: ChatKind::Group,
            title: Title::default(),
            role: Some(Role::Member),
            head: seq(7),
            next: seq(8),
            receipt: Receipt::default(),
        };
        let pushed = |n| Incoming::Entry { chat: chat.clone(), entry: entry(n) };
        let page = HistoryPage { entries: vec![entry(6), entry(7)], hidden: Vec::new(), head: seq(7) };
        let page = || Incoming::Page { chat: chat.clone(), page: page.clone() };
        let summary = || Incoming::Summary(summary.clone());
        for items in [
            vec![vec![pushed(6), pushed(7)], vec![summary()], vec![page()]],
            vec![vec![pushed(6), pushed(7), summary()], vec![page()]],
            vec![vec![pushed(6), summary(), pushed(7)], vec![page()]],
            vec![vec![summary(), pushed(6), pushed(7)]],
        ] {
            std::fs::create_dir_all(folder.path()).unwrap();
            let mut store = Store::open(folder.path(), &Host::system(), true).unwrap();
            let device = DeviceRow { id: own.clone(), key: Vec::new(), chain: Vec::new(), authority: Vec::new() };
            store.enrol(&device, &[]).unwrap();
            let mut orders = Orders::default();
            for items in items {
                store.take(&own, &mut orders, items).unwrap();
            }
            let told = store.events(0).unwrap();
            let told: Vec<u64> = told
                .iter()
                .filter_map(|next| match &next.event {
                    Event::MessageReceived { message, .. } => Some(message.seq.get()),
                    _ => None,
                })
                .collect();
            assert_eq!(told, [6, 7]);
            drop(store);
            std::fs::remove_dir_all(folder.path()).unwrap();
        }
    }

    #[test]
    fn what_was_read_back_before_it_was_told_is_told_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (own, author): (DeviceId, DeviceId) = ("bob@eu/phone".parse().unwrap(), "alice@eu/phone".parse().unwrap());
        let chat: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let member = |device: &DeviceId| Member { user: device.user(), role: Role::Member };
        let entry = |n: u64, body: EntryBody| LogEntry {
            seq: Seq::new(n).unwrap(),
            at: UnixMillis(n),
            from: author.clone(),
            id: MessageId(Uuid::from_u128(u128::from(n))),
            body: Known::Yes(body),
        };
        let participants = vec![member(&author), member(&own)];
        let created = EntryBody::Created { kind: ChatKind::Group, title: Title::default(), participants };
        let said = EntryBody::Message { content: Content(vec![1].into()), blobs: Vec::new() };
        let (first, second) = (entry(1, created), entry(2, said));
        let mut store = Store::open(folder.path(), &Host::system(), true).unwrap();
        let take = |store: &mut Store, entry: &LogEntry| {
            let items = vec![Incoming::Entry { chat: chat.clone(), entry: entry.clone() }];
            store.take(&own, &mut Orders::default(), items).unwrap();
        };
        take(&mut store, &first);
        let page = HistoryPage { entries: vec![first, second.clone()], hidden: Vec::new(), head: Seq::new(2).unwrap() };
        store.keep_page(&chat, &page).unwrap();
        // The app was killed between the two.
        let mut store = Store::open(folder.path(), &Host::system(), false).unwrap();
        take(&mut store, &second);
        let told = store.events(0).unwrap();
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(store.history(&chat, None, limits::PAGE_ENTRIES).unwrap().0.len(), 2);
    }
}
