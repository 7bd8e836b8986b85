//! Taking in what the relay sent: one transaction for entries, the position they bring the chat to, and the events they
//! make.

use super::entries::{
    EntryColumns, Orders, decode_entry, entry_columns, load_order, put_entry, put_hole, role_number, seq_of,
};
use super::outbox::{Outgoing, erase_sent, forget_sent, set_sent};
use super::uploads::forget_finished;
use super::{Store, int, put_event};
use crate::content::Content;
use crate::error::Error;
use crate::event::{Event, Message, Origin};
use crate::order::Order;
use godwit_wire::entry::{Change, ChatKind, EntryBody, Known, LogEntry, Member, Role, Title};
use godwit_wire::frame::{ChatInfo, ChatSummary, HistoryPage, Receipt, SeqRange};
use godwit_wire::{ChatId, DeviceId, MessageId, Seq, UnixMillis, UserId};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{HashMap, HashSet};

/// Sent requests that are kept so that whoever waits for them hears of it.
const KEEP_SENT: i64 = 10_000;

/// Something from the relay, to be taken in one transaction with what came with it.
#[derive(Clone, Debug)]
pub(crate) enum Incoming {
    Entry {
        chat: ChatId,
        entry: LogEntry,
    },
    Hidden {
        chat: ChatId,
        range: SeqRange,
    },
    Gap {
        chat: ChatId,
        range: SeqRange,
    },
    Receipt {
        chat: ChatId,
        receipt: Receipt,
    },
    /// A request of this device was sent.
    Sent {
        chat: ChatId,
        id: MessageId,
        seq: Seq,
        at: UnixMillis,
    },
    /// A page that was asked for to close a gap.
    Page {
        chat: ChatId,
        page: HistoryPage,
    },
    Summary(ChatSummary),
    Info(ChatInfo),
}

/// What taking something in came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    /// Chats whose position went on, or of which something came that is here already: the relay does not know that it
    /// is. With the position, which is to be acknowledged.
    pub(crate) advanced: HashMap<ChatId, Seq>,
    /// Chats of which more must be asked: they were unknown, or the user came into the middle of them.
    pub(crate) unknown: HashSet<ChatId>,
    /// Entries that came are not those that are here under the same seq: what is here is of a past that is no more, from
    /// this one on at the latest. What came of their chats after it was not taken.
    pub(crate) strange: HashMap<ChatId, Seq>,
}

struct Taking<'a> {
    txn: &'a Connection,
    orders: &'a mut Orders,
    own: &'a DeviceId,
    user: UserId,
    /// Some entries that come were here before, under another seq.
    any_seen: bool,
    taken: Taken,
}

impl Store {
    /// Takes in what came, in one transaction. If that fails `orders` is emptied, to be read anew.
    pub(crate) fn take(&mut self, own: &DeviceId, orders: &mut Orders, items: Vec<Incoming>) -> Result<Taken, Error> {
        let txn = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let any_seen = txn.prepare_cached("SELECT EXISTS (SELECT 1 FROM seen)")?.query_row([], |row| row.get(0))?;
        let mut taking = Taking { txn: &txn, orders, own, user: own.user(), any_seen, taken: Taken::default() };
        let result = items.into_iter().try_for_each(|item| taking.item(item));
        let taken = taking.taken;
        let result = result.and_then(|()| {
            let last: Option<i64> = txn.query_row("SELECT max(local) FROM outbox", [], |row| row.get(0))?;
            if forget_sent(&txn, last.unwrap_or(0) - KEEP_SENT)? {
                forget_finished(&txn)?;
            }
            Ok(())
        });
        match result.and_then(|()| Ok(txn.commit()?)) {
            Ok(()) => Ok(taken),
            Err(error) => {
                orders.chats.clear();
                Err(error)
            }
        }
    }
}

impl Taking<'_> {
    fn item(&mut self, item: Incoming) -> Result<(), Error> {
        match item {
            Incoming::Entry { chat, entry } => self.entry(&chat, &entry, true),
            Incoming::Hidden { chat, range } => self.hole(&chat, range, true),
            Incoming::Gap { chat, range } => self.hole(&chat, range, false),
            Incoming::Receipt { chat, receipt } => self.receipt(&chat, receipt),
            Incoming::Sent { chat, id, seq, at } => self.sent(&chat, id, seq, at),
            Incoming::Page { chat, page } => {
                for entry in &page.entries {
                    self.entry(&chat, entry, false)?;
                }
                page.hidden.into_iter().try_for_each(|range| self.hole(&chat, range, true))
            }
            Incoming::Summary(summary) => self.summary(&summary),
            Incoming::Info(info) => {
                self.summary(&info.summary)?;
                self.set_participants(&info.summary.chat, &info.participants)
            }
        }
    }

    fn order(&mut self, chat: &ChatId) -> Result<Option<&mut Order>, Error> {
        if !self.orders.chats.contains_key(chat) {
            match load_order(self.txn, chat)? {
                Some(order) => self.orders.chats.insert(chat.clone(), order),
                None => return Ok(None),
            };
        }
        Ok(self.orders.chats.get_mut(chat))
    }

    /// The user comes into the chat with this entry.
    fn brings_in(&self, entry: &LogEntry) -> bool {
        let names_user = |members: &[Member]| members.iter().any(|member| member.user == self.user);
        match entry.body.as_known() {
            Some(EntryBody::Created { participants, .. }) => names_user(participants),
            Some(EntryBody::Updated(Change::Add(members))) => names_user(members),
            _ => false,
        }
    }

    /// `pushed`: the relay takes it for one that this device does not have.
    fn entry(&mut self, chat: &ChatId, entry: &LogEntry, pushed: bool) -> Result<(), Error> {
        if self.order(chat)?.is_none() {
            if !self.brings_in(entry) {
                self.unknown(chat, entry.seq, pushed);
                return Ok(());
            }
            let (kind, title) = match entry.body.as_known() {
                Some(EntryBody::Created { kind, title, .. }) => (*kind, title.clone()),
                _ => (ChatKind::Group, Title::default()),
            };
            self.insert_chat(chat, kind, &title, None, entry.seq.prev())?;
        }
        let (before, is_strange) = (self.position(chat)?, self.is_strange(chat));
        let Some(order) = self.order(chat)?.filter(|order| !is_strange || order.holds(entry.seq)) else {
            return Ok(());
        };
        if !order.take(entry.seq) {
            return self.again(chat, entry, pushed);
        }
        put_entry(self.txn, &chat.to_string(), entry)?;
        self.advance(chat, before)
    }

    /// Something came of a chat that is not known here: it is asked for, with where its delivery to this device begins, and
    /// what came is fetched then.
    fn unknown(&mut self, chat: &ChatId, seq: Seq, pushed: bool) {
        self.taken.unknown.insert(chat.clone());
        if pushed {
            let first = self.orders.pushed.entry(chat.clone()).or_insert(seq);
            *first = seq.min(*first);
        }
    }

    /// Nothing is taken on top of what is not the relay's, until the two were compared.
    fn is_strange(&self, chat: &ChatId) -> bool {
        self.taken.strange.contains_key(chat)
    }

    /// An entry came that counts as held: it should be the same.
    fn again(&mut self, chat: &ChatId, entry: &LogEntry, pushed: bool) -> Result<(), Error> {
        let (text, seq) = (chat.to_string(), int(entry.seq.get()));
        let sql = "SELECT id = ?3 AND at = ?4 FROM entries WHERE chat = ?1 AND seq = ?2";
        let mut query = self.txn.prepare_cached(sql)?;
        let same = query.query_row(params![text, seq, entry.id.0.as_bytes(), int(entry.at.0)], |row| row.get(0));
        match same.optional()? {
            Some(false) => {
                let first = self.taken.strange.entry(chat.clone()).or_insert(entry.seq);
                *first = entry.seq.min(*first);
                return Ok(());
            }
            // A new device began the chat behind it, by a list that was made while it was on its way. What comes after
            // such as follow it is not that: a relay that lost its store's last moments offers again what is older.
            None if pushed && !self.is_hole(&text, seq)? => {
                let is_next = !self.holds_beyond(&text, seq)?;
                put_entry(self.txn, &text, entry)?;
                if is_next {
                    self.happened(chat, entry)?;
                }
            }
            _ => {}
        }
        self.have(chat, entry.seq)
    }

    /// Something that others sent is here that stands behind.
    fn holds_beyond(&self, chat: &str, seq: i64) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM entries WHERE chat = ?1 AND seq > ?2 AND sender <> ?3)";
        Ok(self.txn.prepare_cached(sql)?.query_row(params![chat, seq, self.own.as_str()], |row| row.get(0))?)
    }

    fn is_hole(&self, chat: &str, seq: i64) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM holes WHERE chat = ?1 AND first <= ?2 AND last >= ?2)";
        Ok(self.txn.prepare_cached(sql)?.query_row(params![chat, seq], |row| row.get(0))?)
    }

    /// Something came again that is here.
    fn have(&mut self, chat: &ChatId, seq: Seq) -> Result<(), Error> {
        if let Some(position) = self.position(chat)?.filter(|position| seq <= *position) {
            self.taken.advanced.insert(chat.clone(), position);
        }
        Ok(())
    }

    fn hole(&mut self, chat: &ChatId, range: SeqRange, pushed: bool) -> Result<(), Error> {
        let (before, is_strange) = (self.position(chat)?, self.is_strange(chat));
        let Some(order) = self.order(chat)? else {
            self.unknown(chat, range.from, true);
            return Ok(());
        };
        if is_strange {
            return Ok(());
        }
        order.take_range(range);
        self.have(chat, range.to)?;
        put_hole(self.txn, &chat.to_string(), range, pushed)?;
        if !pushed && before.is_none_or(|before| before < range.to) {
            put_event(self.txn, &Event::HistoryGap { chat: chat.clone(), range })?;
        }
        self.advance(chat, before)
    }

    fn position(&mut self, chat: &ChatId) -> Result<Option<Seq>, Error> {
        Ok(self.order(chat)?.and_then(|order| order.position()))
    }

    fn sent(&mut self, chat: &ChatId, id: MessageId, seq: Seq, at: UnixMillis) -> Result<(), Error> {
        let Some(outgoing) = set_sent(self.txn, id, seq, at)? else { return Ok(()) };
        let body = match outgoing {
            Outgoing::Create { kind, title, participants } => {
                let role = if kind == ChatKind::Direct { Role::Member } else { Role::Owner };
                let mut all = vec![Member { user: self.user.clone(), role }];
                all.extend(participants);
                EntryBody::Created { kind, title, participants: all }
            }
            Outgoing::Update(change) => EntryBody::Updated(change),
            Outgoing::Send(content) => EntryBody::Message { content, blobs: Vec::new() },
            Outgoing::Attach { content, blobs } => EntryBody::Message { content, blobs },
            Outgoing::Redact(of) => EntryBody::Redaction { of },
        };
        let entry = LogEntry { seq, at, from: self.own.clone(), id, body: Known::Yes(body) };
        self.entry(chat, &entry, false)
    }

    /// Entries that are contiguous now change the chat's state and become events, in order.
    fn advance(&mut self, chat: &ChatId, before: Option<Seq>) -> Result<(), Error> {
        let Some(position) = self.position(chat)? else { return Ok(()) };
        if Some(position) <= before {
            return Ok(());
        }
        let text = chat.to_string();
        let rows: Vec<EntryColumns> = self
            .txn
            .prepare_cached(
                "SELECT seq, at, sender, id, body FROM entries WHERE chat = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
            )?
            .query_map(params![text, int(before.map_or(0, Seq::get)), int(position.get())], entry_columns)?
            .collect::<Result<_, _>>()?;
        for columns in rows {
            let seq = columns.0;
            let entry = decode_entry(columns)
                .ok_or_else(|| Error::Invalid(format!("entry {seq} of {chat} in the device's store")))?;
            self.happened(chat, &entry)?;
        }
        self.txn
            .prepare_cached("UPDATE chats SET position = ?2 WHERE chat = ?1")?
            .execute(params![text, int(position.get())])?;
        self.taken.advanced.insert(chat.clone(), position);
        Ok(())
    }

    /// What an entry means for the chat, and for the app.
    fn happened(&mut self, chat: &ChatId, entry: &LogEntry) -> Result<(), Error> {
        let own = entry.from == *self.own;
        if own {
            // Sent before a crash, or under an earlier enrolment: whoever waits for it hears now.
            set_sent(self.txn, entry.id, entry.seq, entry.at)?;
        }
        let origin = || Origin { seq: entry.seq, from: entry.from.clone(), at: entry.at };
        let event = match entry.body.as_known() {
            Some(EntryBody::Message { content, .. }) => Event::MessageReceived {
                chat: chat.clone(),
                message: Message {
                    seq: entry.seq,
                    from: entry.from.clone(),
                    at: entry.at,
                    id: entry.id,
                    content: Content::from_bytes(&content.0),
                },
            },
            Some(EntryBody::Created { kind, title, participants }) => {
                self.set_participants(chat, participants)?;
                Event::ChatCreated {
                    chat: chat.clone(),
                    origin: origin(),
                    kind: *kind,
                    title: title.clone(),
                    participants: participants.clone(),
                }
            }
            Some(EntryBody::Updated(change)) => {
                let came_in = self.brings_in(entry);
                self.change(chat, change, &entry.from)?;
                if came_in {
                    self.taken.unknown.insert(chat.clone());
                }
                Event::ChatUpdated { chat: chat.clone(), origin: origin(), change: change.clone() }
            }
            Some(EntryBody::Redaction { of }) => {
                self.erase(chat, *of, entry.seq)?;
                Event::Redacted { chat: chat.clone(), origin: origin(), of: *of }
            }
            // The redaction itself comes later in the log; what a newer version wrote has no event here.
            Some(EntryBody::Erased { .. }) | None => return Ok(()),
        };
        if own || self.was_seen(chat, entry.id)? { Ok(()) } else { put_event(self.txn, &event) }
    }

    /// Whether the app was told of an entry before. Once: it is told of it never again under this seq.
    fn was_seen(&self, chat: &ChatId, id: MessageId) -> Result<bool, Error> {
        if !self.any_seen {
            return Ok(false);
        }
        let sql = "DELETE FROM seen WHERE chat = ?1 AND id = ?2";
        Ok(self.txn.prepare_cached(sql)?.execute(params![chat.to_string(), id.0.as_bytes()])? > 0)
    }

    fn erase(&mut self, chat: &ChatId, of: Seq, by: Seq) -> Result<(), Error> {
        let body: Known<EntryBody> = Known::Yes(EntryBody::Erased { by });
        let body = postcard::to_stdvec(&body).map_err(|error| Error::Invalid(error.to_string()))?;
        self.txn.execute(
            "UPDATE entries SET body = ?3 WHERE chat = ?1 AND seq = ?2",
            params![chat.to_string(), int(of.get()), body],
        )?;
        erase_sent(self.txn, &chat.to_string(), of)?;
        // An event that the app has not taken yet must not show it either.
        let mut query = self.txn.prepare("SELECT id, event FROM events")?;
        let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut gone = Vec::new();
        for row in rows {
            let (id, bytes) = row?;
            if let Ok(Event::MessageReceived { chat: other, message }) = postcard::from_bytes(&bytes)
                && other == *chat
                && message.seq == of
            {
                gone.push(id);
            }
        }
        for id in gone {
            self.txn.execute("DELETE FROM events WHERE id = ?1", [id])?;
        }
        Ok(())
    }

    fn change(&mut self, chat: &ChatId, change: &Change, by: &DeviceId) -> Result<(), Error> {
        let text = chat.to_string();
        match change {
            Change::Title(title) => {
                self.txn.execute("UPDATE chats SET title = ?2 WHERE chat = ?1", params![text, title.as_str()])?;
            }
            Change::Add(members) => members.iter().try_for_each(|member| self.put_participant(&text, member))?,
            Change::Role(member) => self.put_participant(&text, member)?,
            Change::Remove(user) => self.remove_participant(&text, user)?,
            Change::Leave => self.remove_participant(&text, &by.user())?,
        }
        Ok(())
    }

    fn put_participant(&self, chat: &str, member: &Member) -> Result<(), Error> {
        self.txn
            .prepare_cached(
                "INSERT INTO participants (chat, user, role) VALUES (?1, ?2, ?3)
                 ON CONFLICT (chat, user) DO UPDATE SET role = ?3",
            )?
            .execute(params![chat, member.user.as_str(), role_number(member.role)])?;
        if member.user == self.user {
            self.set_role(chat, Some(member.role))?;
        }
        Ok(())
    }

    fn remove_participant(&self, chat: &str, user: &UserId) -> Result<(), Error> {
        if *user == self.user {
            // Who takes part from now on is not for this user to know.
            self.txn.execute("DELETE FROM participants WHERE chat = ?1", [chat])?;
            return self.set_role(chat, None);
        }
        self.txn.execute("DELETE FROM participants WHERE chat = ?1 AND user = ?2", params![chat, user.as_str()])?;
        Ok(())
    }

    fn set_role(&self, chat: &str, role: Option<Role>) -> Result<(), Error> {
        self.txn.execute("UPDATE chats SET role = ?2 WHERE chat = ?1", params![chat, role.map(role_number)])?;
        Ok(())
    }

    fn set_participants(&self, chat: &ChatId, members: &[Member]) -> Result<(), Error> {
        let text = chat.to_string();
        self.txn.execute("DELETE FROM participants WHERE chat = ?1", [&text])?;
        members.iter().try_for_each(|member| self.put_participant(&text, member))
    }

    fn insert_chat(
        &mut self,
        chat: &ChatId,
        kind: ChatKind,
        title: &Title,
        role: Option<Role>,
        position: Option<Seq>,
    ) -> Result<(), Error> {
        let at = int(position.map_or(0, Seq::get));
        self.txn.execute(
            "INSERT INTO chats (chat, kind, title, role, position) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![chat.to_string(), i64::from(kind == ChatKind::Direct), title.as_str(), role.map(role_number), at],
        )?;
        self.orders.chats.insert(chat.clone(), Order::new(position));
        self.orders.pushed.remove(chat);
        Ok(())
    }

    fn summary(&mut self, summary: &ChatSummary) -> Result<(), Error> {
        let chat = &summary.chat;
        if self.order(chat)?.is_none() {
            // A new device begins where the relay says, or before that with what it was pushed already. For one that had
            // all chats already, this one has begun since: it gets the whole of it, also if its user's device took a part
            // of it in a life that this home does not know (it was enrolled anew after it was away for long, or came back
            // from a backup).
            let listed: bool = self.txn.query_row("SELECT listed FROM device", [], |row| row.get(0))?;
            let first = self.orders.pushed.get(chat).map_or(summary.next, |pushed| summary.next.min(*pushed));
            let position = first.prev().filter(|_| !listed);
            self.insert_chat(chat, summary.kind, &summary.title, summary.role, position)?;
        }
        self.go_back(summary)?;
        if let Some(order) = self.order(chat)? {
            order.reaches(summary.head);
            if order.missing().is_none() {
                // Nothing is on its way: what the relay says now is what holds.
                self.txn.execute(
                    "UPDATE chats SET title = ?2, kind = ?3 WHERE chat = ?1",
                    params![chat.to_string(), summary.title.as_str(), i64::from(summary.kind == ChatKind::Direct)],
                )?;
                self.set_role(&chat.to_string(), summary.role)?;
            }
        }
        self.receipt(chat, summary.receipt)
    }

    /// The relay has something for this device that stands before where it began the chat: it was on its way then, and
    /// got lost with the connection.
    fn go_back(&mut self, summary: &ChatSummary) -> Result<(), Error> {
        let chat = &summary.chat;
        if self.position(chat)?.is_none_or(|position| position < summary.next) || summary.next > summary.head {
            return Ok(());
        }
        let (text, next) = (chat.to_string(), int(summary.next.get()));
        let sql = "SELECT EXISTS (SELECT 1 FROM entries WHERE chat = ?1 AND seq = ?2)";
        let is_here: bool = self.txn.prepare_cached(sql)?.query_row(params![text, next], |row| row.get(0))?;
        if is_here || self.is_hole(&text, next)? || self.holds_beyond(&text, next)? {
            return Ok(());
        }
        let before = summary.next.prev();
        let sql = "UPDATE chats SET position = ?2 WHERE chat = ?1";
        self.txn.execute(sql, params![text, int(before.map_or(0, Seq::get))])?;
        self.orders.chats.insert(chat.clone(), Order::new(before));
        Ok(())
    }

    /// What is told goes forward only: a relay may know less of one of the two than another did.
    fn receipt(&mut self, chat: &ChatId, receipt: Receipt) -> Result<(), Error> {
        let (delivered, read) =
            (receipt.delivered.map_or(0, |s| int(s.get())), receipt.read.map_or(0, |s| int(s.get())));
        let changed = self
            .txn
            .prepare_cached(
                "UPDATE chats SET delivered = max(delivered, ?2), read = max(read, ?3)
                 WHERE chat = ?1 AND (delivered < ?2 OR read < ?3) RETURNING delivered, read",
            )?
            .query_row(params![chat.to_string(), delivered, read], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((delivered, read)) = changed else { return Ok(()) };
        let receipt = Receipt { delivered: seq_of(delivered), read: seq_of(read) };
        put_event(self.txn, &Event::ReceiptUpdated { chat: chat.clone(), receipt })
    }
}
