//! Files on their way. A message with a file gets its number only when the file is stored where its chat is at home: what
//! is sent meanwhile does not wait for it. What is known of the file is kept as long as the message is in the outbox: a home
//! that was restored from a backup may have lost the file, and needs it again.

use super::outbox::{Outgoing, put_numbered};
use super::{Store, fresh_id};
use crate::attachment::source::Stamp;
use crate::error::Error;
use godwit_seal::FileKey;
use godwit_wire::blob::Manifest;
use godwit_wire::{ChatId, MessageId, Refusal};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What is known of a file before it is uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Draft {
    pub(crate) stamp: Stamp,
    pub(crate) key: FileKey,
    pub(crate) name: String,
    pub(crate) media_type: String,
    pub(crate) preview: Vec<u8>,
    pub(crate) caption: String,
}

#[derive(Clone, Debug)]
pub(crate) struct UploadRow {
    pub(crate) id: MessageId,
    pub(crate) chat: ChatId,
    pub(crate) path: PathBuf,
    pub(crate) draft: Draft,
    pub(crate) manifest: Option<Manifest>,
    pub(crate) refusal: Option<Refusal>,
}

/// How often the file of one message is uploaded once more.
const AGAIN: i64 = 3;

type Columns = ([u8; 16], String, Vec<u8>, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);
const COLUMNS: &str = "id, chat, path, draft, manifest, refusal";

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    postcard::to_stdvec(value).map_err(|error| Error::Invalid(error.to_string()))
}

impl Store {
    fn upload_row(&self, (id, chat, path, draft, manifest, refusal): Columns) -> Result<UploadRow, Error> {
        let corrupt = || Error::Corrupt { path: self.path.clone(), what: "an upload".to_owned() };
        let decode = |bytes: Option<Vec<u8>>| bytes.map(|bytes| postcard::from_bytes(&bytes)).transpose();
        Ok(UploadRow {
            id: MessageId(Uuid::from_bytes(id)),
            chat: self.parse_chat(&chat)?,
            path: PathBuf::from(OsString::from_vec(path)),
            draft: postcard::from_bytes(&draft).map_err(|_| corrupt())?,
            manifest: decode(manifest).map_err(|_| corrupt())?,
            refusal: refusal.map(|bytes| postcard::from_bytes(&bytes)).transpose().map_err(|_| corrupt())?,
        })
    }

    /// Keeps a file that is to be sent. Durable when this returns.
    pub(crate) fn put_upload(&mut self, chat: &ChatId, path: &Path, draft: &Draft) -> Result<MessageId, Error> {
        let id = MessageId(fresh_id(&self.crypto));
        let sql = "INSERT INTO uploads (id, chat, path, draft) VALUES (?1, ?2, ?3, ?4)";
        let path = path.as_os_str().as_bytes();
        self.db.execute(sql, params![id.0.as_bytes(), chat.to_string(), path, encode(draft)?])?;
        Ok(id)
    }

    /// Files that are on their way or were refused, in the order in which they were put in.
    pub(crate) fn uploads(&self) -> Result<Vec<UploadRow>, Error> {
        let sql = format!("SELECT {COLUMNS} FROM uploads WHERE finished = 0 ORDER BY local");
        let mut query = self.db.prepare_cached(&sql)?;
        let rows = query.query_map([], columns)?.collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(|row| self.upload_row(row)).collect()
    }

    pub(crate) fn upload(&self, id: MessageId) -> Result<Option<UploadRow>, Error> {
        let mut query = self.db.prepare_cached(&format!("SELECT {COLUMNS} FROM uploads WHERE id = ?1"))?;
        let row = query.query_row([id.0.as_bytes()], columns).optional()?;
        row.map(|row| self.upload_row(row)).transpose()
    }

    /// The file is another than it was: what was uploaded of it is worth nothing.
    pub(crate) fn begin_upload_anew(&self, id: MessageId, draft: &Draft) -> Result<(), Error> {
        let sql = "UPDATE uploads SET draft = ?2, manifest = NULL WHERE id = ?1";
        self.db.execute(sql, params![id.0.as_bytes(), encode(draft)?])?;
        Ok(())
    }

    pub(crate) fn set_manifest(&self, id: MessageId, manifest: &Manifest) -> Result<(), Error> {
        let sql = "UPDATE uploads SET manifest = ?2 WHERE id = ?1";
        self.db.execute(sql, params![id.0.as_bytes(), encode(manifest)?])?;
        Ok(())
    }

    pub(crate) fn refuse_upload(&self, id: MessageId, refusal: &Refusal) -> Result<(), Error> {
        let sql = "UPDATE uploads SET refusal = ?2 WHERE id = ?1";
        self.db.execute(sql, params![id.0.as_bytes(), encode(refusal)?])?;
        Ok(())
    }

    /// A file is not to be sent after all. False if it is on its way as a message already, or not known.
    pub(crate) fn cancel_upload(&self, id: MessageId) -> Result<bool, Error> {
        Ok(self.db.execute("DELETE FROM uploads WHERE id = ?1 AND finished = 0", [id.0.as_bytes()])? > 0)
    }

    /// A file is uploaded: its message is numbered, and waits to be sent. Nothing happens if it was taken back.
    pub(crate) fn finish_upload(&mut self, id: MessageId, chat: &ChatId, outgoing: &Outgoing) -> Result<(), Error> {
        let txn = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let sql = "UPDATE uploads SET finished = 1 WHERE id = ?1 AND finished = 0";
        if txn.execute(sql, [id.0.as_bytes()])? > 0 {
            put_numbered(&txn, &chat.to_string(), &[(id, outgoing)])?;
        }
        Ok(txn.commit()?)
    }

    /// The home does not have the file of a message: it is uploaded again, and the message gets another number then. False
    /// if nothing is known of the file any more, or that was tried often.
    pub(crate) fn upload_again(&mut self, id: MessageId) -> Result<bool, Error> {
        let txn = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let sql = "UPDATE uploads SET finished = 0, again = again + 1 WHERE id = ?1 AND finished = 1 AND again < ?2";
        let known = txn.execute(sql, params![id.0.as_bytes(), AGAIN])? > 0;
        if known {
            txn.execute("DELETE FROM outbox WHERE id = ?1 AND state < 2", [id.0.as_bytes()])?;
        }
        txn.commit()?;
        Ok(known)
    }
}

/// Forgets files whose messages are not in the outbox any more.
pub(super) fn forget_finished(txn: &Connection) -> Result<(), Error> {
    let sql = "DELETE FROM uploads WHERE finished = 1 AND id NOT IN (SELECT id FROM outbox)";
    txn.prepare_cached(sql)?.execute([])?;
    Ok(())
}
