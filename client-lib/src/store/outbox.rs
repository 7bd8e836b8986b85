//! What is unsent. A message has its number before [`put`](super::Store::put) returns, and keeps it until its outcome
//! is known; only the home's `NumberTaken`, or a new enrolment, gives it another.

use super::{Store, fresh_id, int, uint};
use crate::error::Error;
use godwit_wire::blob::BlobRef;
use godwit_wire::entry::{Change, ChatKind, Content, Member, Title};
use godwit_wire::frame::{CreateChat, Options, Redact, Request, SendMessage, Stamp, UpdateChat};
use godwit_wire::{ChatId, MessageId, Refusal, Seq, UnixMillis};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A numbered request without its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outgoing {
    Create {
        kind: ChatKind,
        title: Title,
        participants: Vec<Member>,
    },
    Update(Change),
    Send(Content),
    Redact(Seq),
    /// A message with files, which are stored already.
    Attach {
        content: Content,
        blobs: Vec<BlobRef>,
    },
}

/// How far an outgoing request got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Pending,
    Queued,
    Sent { seq: Seq, at: UnixMillis },
    Refused(Refusal),
}

#[derive(Clone, Debug)]
pub(crate) struct OutboxRow {
    pub(crate) chat: ChatId,
    pub(crate) n: u64,
    pub(crate) id: MessageId,
    /// The id under `n − 1`, if it is still kept.
    pub(crate) previous: Option<MessageId>,
    pub(crate) outgoing: Outgoing,
}

impl OutboxRow {
    pub(crate) fn request(&self, oldest: u64) -> Request {
        let stamp = Stamp { chat: self.chat.clone(), n: self.n, oldest, id: self.id, previous: self.previous };
        let options = Options::default();
        match self.outgoing.clone() {
            Outgoing::Create { kind, title, participants } => {
                Request::CreateChat(CreateChat { stamp, kind, title, participants, options })
            }
            Outgoing::Update(change) => Request::UpdateChat(UpdateChat { stamp, change, options }),
            Outgoing::Send(content) => Request::SendMessage(SendMessage { stamp, content, blobs: Vec::new(), options }),
            Outgoing::Attach { content, blobs } => Request::SendMessage(SendMessage { stamp, content, blobs, options }),
            Outgoing::Redact(of) => Request::Redact(Redact { stamp, of, options }),
        }
    }
}

/// States as numbers in the table. What is below `SENT` is still kept for sending.
const PENDING: i64 = 0;
const QUEUED: i64 = 1;
const SENT: i64 = 2;
const REFUSED: i64 = 3;

/// Gives everything unsent new numbers from 1 on, in its order: a new enrolment counts anew.
pub(super) fn renumber_all(txn: &Connection) -> Result<(), Error> {
    txn.execute("DELETE FROM numbers", [])?;
    txn.execute("UPDATE outbox SET n = 0 WHERE state >= ?1", [SENT])?;
    let mut query = txn.prepare("SELECT DISTINCT chat FROM outbox WHERE state < ?1")?;
    let chats: Vec<String> = query.query_map([SENT], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for chat in chats {
        renumber(txn, &chat, 0, 1)?;
    }
    Ok(())
}

fn renumber(txn: &Connection, chat: &str, from: u64, first: u64) -> Result<(), Error> {
    let mut query =
        txn.prepare("SELECT local FROM outbox WHERE chat = ?1 AND state < ?2 AND n >= ?3 ORDER BY n, local")?;
    let rows: Vec<i64> =
        query.query_map(params![chat, SENT, int(from)], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut next = first;
    for local in rows {
        txn.execute("UPDATE outbox SET n = ?2, state = ?3 WHERE local = ?1", params![local, int(next), PENDING])?;
        next += 1;
    }
    txn.execute(
        "INSERT INTO numbers (chat, next) VALUES (?1, ?2) ON CONFLICT (chat) DO UPDATE SET next = ?2",
        params![chat, int(next)],
    )?;
    Ok(())
}

/// What was sent under an earlier enrolment and waits again gets numbers of this one: behind the others, or before them in a
/// chat that is made anew, which they need.
pub(super) fn number_again(txn: &Connection, chat: &str, made_anew: bool) -> Result<(), Error> {
    let older = "SELECT EXISTS (SELECT 1 FROM outbox WHERE chat = ?1 AND state < ?2 AND n = 0)";
    if !txn.query_row(older, params![chat, SENT], |row| row.get(0))? {
        return Ok(());
    }
    if made_anew {
        return renumber(txn, chat, 0, 1);
    }
    let mut query = txn.prepare("SELECT local FROM outbox WHERE chat = ?1 AND state < ?2 AND n = 0 ORDER BY local")?;
    for local in query.query_map(params![chat, SENT], |row| row.get::<_, i64>(0))?.collect::<Result<Vec<_>, _>>()? {
        let next = take_numbers(txn, chat, 1)?;
        txn.execute("UPDATE outbox SET n = ?2 WHERE local = ?1", params![local, int(next)])?;
    }
    Ok(())
}

/// Takes the next numbers of a chat; gives the first.
fn take_numbers(txn: &Connection, chat: &str, count: usize) -> Result<u64, Error> {
    let after: i64 = txn
        .prepare_cached(
            "INSERT INTO numbers (chat, next) VALUES (?1, 1 + ?2)
             ON CONFLICT (chat) DO UPDATE SET next = next + ?2 RETURNING next",
        )?
        .query_row(params![chat, i64::try_from(count).unwrap_or(i64::MAX)], |row| row.get(0))?;
    Ok(uint(after) - count as u64)
}

/// Gives requests their numbers, and keeps them.
pub(super) fn put_numbered(txn: &Connection, chat: &str, outgoing: &[(MessageId, &Outgoing)]) -> Result<(), Error> {
    let first = take_numbers(txn, chat, outgoing.len())?;
    for (n, (id, one)) in (first..).zip(outgoing) {
        let request = postcard::to_stdvec(one).map_err(|error| Error::Invalid(error.to_string()))?;
        txn.prepare_cached("INSERT INTO outbox (chat, n, id, request, state) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![chat, int(n), id.0.as_bytes(), request, PENDING])?;
    }
    Ok(())
}

impl Store {
    /// Numbers and keeps outgoing requests of one chat, all or none. Durable when this returns.
    pub(crate) fn put(&mut self, chat: &ChatId, outgoing: &[Outgoing]) -> Result<Vec<MessageId>, Error> {
        let named: Vec<_> = outgoing.iter().map(|one| (MessageId(fresh_id(&self.crypto)), one)).collect();
        let txn = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        put_numbered(&txn, &chat.to_string(), &named)?;
        txn.commit()?;
        Ok(named.into_iter().map(|(id, _)| id).collect())
    }

    /// Chats with something unsent.
    pub(crate) fn unsent_chats(&self) -> Result<Vec<ChatId>, Error> {
        let mut query = self.db.prepare_cached("SELECT DISTINCT chat FROM outbox WHERE state < 2")?;
        let rows = query.query_map([], |row| row.get::<_, String>(0))?;
        let mut chats = Vec::new();
        for row in rows {
            chats.push(self.parse_chat(&row?)?);
        }
        Ok(chats)
    }

    pub(super) fn parse_chat(&self, text: &str) -> Result<ChatId, Error> {
        text.parse().map_err(|_| Error::Corrupt { path: self.path.clone(), what: format!("chat id {text:?}") })
    }

    /// What is unsent of a chat after number `after`, in order, at most `limit`.
    pub(crate) fn unsent(&self, chat: &ChatId, after: u64, limit: usize) -> Result<Vec<OutboxRow>, Error> {
        let mut query = self.db.prepare_cached(
            "SELECT n, id, request, (SELECT p.id FROM outbox p WHERE p.chat = o.chat AND p.n = o.n - 1 AND p.n > 0 LIMIT 1)
             FROM outbox o WHERE chat = ?1 AND state < 2 AND n > ?2 ORDER BY n LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = query.query_map(params![chat.to_string(), int(after), limit], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, [u8; 16]>(1)?,
                row.get::<_, Vec<u8>>(2)?,
                row.get::<_, Option<[u8; 16]>>(3)?,
            ))
        })?;
        let mut unsent = Vec::new();
        for row in rows {
            let (n, row_id, request, previous) = row?;
            let outgoing = postcard::from_bytes(&request)
                .map_err(|_| Error::Corrupt { path: self.path.clone(), what: "an outgoing request".to_owned() })?;
            let id = |bytes| MessageId(Uuid::from_bytes(bytes));
            let (previous, n) = (previous.map(id), uint(n));
            unsent.push(OutboxRow { chat: chat.clone(), n, id: id(row_id), previous, outgoing });
        }
        Ok(unsent)
    }

    /// How many requests of each chat are unsent.
    pub(crate) fn unsent_counts(&self) -> Result<Vec<(ChatId, u64)>, Error> {
        let mut query = self.db.prepare_cached("SELECT chat, count(*) FROM outbox WHERE state < 2 GROUP BY chat")?;
        let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        rows.map(|row| row.map_err(Error::from).and_then(|(chat, count)| Ok((self.parse_chat(&chat)?, uint(count)))))
            .collect()
    }

    /// The lowest number of a chat that is still unsent.
    pub(crate) fn oldest_unsent(&self, chat: &ChatId) -> Result<Option<u64>, Error> {
        let mut query = self.db.prepare_cached("SELECT min(n) FROM outbox WHERE chat = ?1 AND state < 2")?;
        let oldest: Option<i64> = query.query_row([chat.to_string()], |row| row.get(0))?;
        Ok(oldest.map(uint))
    }

    pub(crate) fn stored(&self, id: MessageId) -> Result<Option<(ChatId, Stored)>, Error> {
        let mut query = self.db.prepare_cached("SELECT chat, state, seq, at, refusal FROM outbox WHERE id = ?1")?;
        let row = query.query_row([id.0.as_bytes()], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, Option<i64>>(2)?,
                row.get::<_, Option<i64>>(3)?,
                row.get::<_, Option<Vec<u8>>>(4)?,
            ))
        });
        let Some((chat, state, seq, at, refusal)) = row.optional()? else { return Ok(None) };
        let corrupt = |what: &str| Error::Corrupt { path: self.path.clone(), what: what.to_owned() };
        let stored = match state {
            PENDING => Stored::Pending,
            QUEUED => Stored::Queued,
            SENT => {
                let seq =
                    seq.and_then(|seq| Seq::new(uint(seq)).ok()).ok_or_else(|| corrupt("a sent message's seq"))?;
                Stored::Sent { seq, at: UnixMillis(at.map_or(0, uint)) }
            }
            _ => {
                let refusal = refusal.and_then(|bytes| postcard::from_bytes(&bytes).ok());
                Stored::Refused(refusal.ok_or_else(|| corrupt("a refused message's reason"))?)
            }
        };
        Ok(Some((self.parse_chat(&chat)?, stored)))
    }

    pub(crate) fn set_queued(&self, id: MessageId) -> Result<(), Error> {
        self.db.execute(
            "UPDATE outbox SET state = ?2 WHERE id = ?1 AND state = ?3",
            params![id.0.as_bytes(), QUEUED, PENDING],
        )?;
        Ok(())
    }

    /// A lasting refusal: the number is decided, and nothing is sent under it any more.
    pub(crate) fn set_refused(&self, id: MessageId, refusal: &Refusal) -> Result<(), Error> {
        if let Some((_, Stored::Pending | Stored::Queued)) = self.stored(id)? {
            set_refused(&self.db, id, refusal)?;
        }
        Ok(())
    }

    /// The home knows other messages under our numbers: what is unsent from number `from` on is numbered from `next` on.
    /// What is below has an outcome of its own, which it will hear.
    pub(crate) fn renumber(&mut self, chat: &ChatId, from: u64, next: u64) -> Result<(), Error> {
        let txn = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        renumber(&txn, &chat.to_string(), from, next)?;
        Ok(txn.commit()?)
    }
}

/// A request will never be sent.
pub(super) fn set_refused(txn: &Connection, id: MessageId, refusal: &Refusal) -> Result<(), Error> {
    let bytes = postcard::to_stdvec(refusal).map_err(|error| Error::Invalid(error.to_string()))?;
    let sql = "UPDATE outbox SET state = ?2, seq = NULL, at = NULL, refusal = ?3 WHERE id = ?1";
    txn.execute(sql, params![id.0.as_bytes(), REFUSED, bytes])?;
    Ok(())
}

/// Notes that a request was sent, if it was not yet. Gives what it was.
pub(super) fn set_sent(txn: &Connection, id: MessageId, seq: Seq, at: UnixMillis) -> Result<Option<Outgoing>, Error> {
    let request: Option<Vec<u8>> = txn
        .prepare_cached("SELECT request FROM outbox WHERE id = ?1 AND state < ?2")?
        .query_row(params![id.0.as_bytes(), SENT], |row| row.get(0))
        .optional()?;
    let Some(request) = request else { return Ok(None) };
    txn.prepare_cached("UPDATE outbox SET state = ?2, seq = ?3, at = ?4 WHERE id = ?1")?.execute(params![
        id.0.as_bytes(),
        SENT,
        int(seq.get()),
        int(at.0)
    ])?;
    Ok(postcard::from_bytes(&request).ok())
}

/// A message of this device was redacted: its text goes here too, and it is not sent again.
pub(super) fn erase_sent(txn: &Connection, chat: &str, seq: Seq) -> Result<(), Error> {
    txn.prepare_cached("UPDATE outbox SET request = x'' WHERE chat = ?1 AND state = ?2 AND seq = ?3")?
        .execute(params![chat, SENT, int(seq.get())])?;
    Ok(())
}

/// Drops what was sent long ago: nobody waits for it any more. True if there was some.
pub(super) fn forget_sent(txn: &Connection, newer_than: i64) -> Result<bool, Error> {
    let sql = "DELETE FROM outbox WHERE state >= ?1 AND local < ?2";
    Ok(txn.prepare_cached(sql)?.execute(params![SENT, newer_than])? > 0)
}
