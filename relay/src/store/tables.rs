//! The store's tables and their records. Every record is a format number and postcard, see `godwit_core::entry`.

use super::StoreError;
use godwit_core::entry::{decode_record, encode_record};
use godwit_core::inbox::InboxRow;
use godwit_core::number::{Link, Void};
use godwit_core::{Device, Participant};
use godwit_wire::entry::{ChatKind, Title};
use godwit_wire::frame::Receipt;
use godwit_wire::{MessageId, Seq, UnixMillis, UserId};
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// (chat, seq) → `Entry`. The truth; all other tables about chats follow from it.
pub(super) const LOG: Definition = TableDefinition::new("log");
/// chat → [`ChatRow`]
pub(super) const CHATS: Definition = TableDefinition::new("chats");
/// (chat, user) → `Participant`
pub(super) const PARTICIPANTS: Definition = TableDefinition::new("participants");
/// (user, chat) → nothing: the chats a user ever belonged to
pub(super) const USER_CHATS: Definition = TableDefinition::new("user_chats");
/// (chat, device, enrolment, n) → [`NumberRow`]: the last number, every void, and now and then an entry's number
pub(super) const NUMBERS: Definition = TableDefinition::new("numbers");
/// chat → [`CursorRow`]
pub(super) const CURSORS: Definition = TableDefinition::new("cursors");
/// (chat, user) → [`Watermark`]
pub(super) const WATERMARKS: Definition = TableDefinition::new("watermarks");
/// chat → nothing: chats whose log may reach beyond what is settled
pub(super) const DIRTY: Definition = TableDefinition::new("dirty");
/// chat → `Seq`: of a copy, the entry that its base follows from, see `replica`
pub(super) const BASES: Definition = TableDefinition::new("bases");
/// (device, chat) → `InboxRow`
pub(super) const INBOX: Definition = TableDefinition::new("inbox");
/// device → `Device`
pub(super) const DEVICES: Definition = TableDefinition::new("devices");
/// (expiry, jti) → nothing: tokens that were used, by when they can be forgotten
pub(super) const TOKENS: Definition = TableDefinition::new("tokens");
/// (time, device) → `Revocation`: enrolments that are shut out, of every region, until their certificates have expired
pub(super) const REVOCATIONS: Definition = TableDefinition::new("revocations");
/// hash → `Blob`: attachments, as far as they are stored
pub(super) const BLOBS: Definition = TableDefinition::new("blobs");
/// hash → `Manifest`: what the parts of a blob are
pub(super) const BLOB_MANIFESTS: Definition = TableDefinition::new("blob_manifests");
/// (hash, part) → tag: parts that are stored, of a blob that is being uploaded
pub(super) const BLOB_PARTS: Definition = TableDefinition::new("blob_parts");
/// (hash, chat, seq) → nothing: messages that refer to a blob
pub(super) const BLOB_REFS: Definition = TableDefinition::new("blob_refs");
/// (hash, user) → time: until when a user may refer to a blob, whether a message does or not
pub(super) const BLOB_HOLDS: Definition = TableDefinition::new("blob_holds");
/// user → `Usage`: what a user has in blobs, and what all have
pub(super) const BLOB_USAGE: Definition = TableDefinition::new("blob_usage");
/// name → text: what the file is
pub(super) const META: Definition = TableDefinition::new("meta");

/// All tables, for copying a store. `META` is written by whoever makes the copy.
pub(super) const RECORDS: [Definition; 19] = [
    LOG,
    CHATS,
    PARTICIPANTS,
    USER_CHATS,
    NUMBERS,
    CURSORS,
    WATERMARKS,
    DIRTY,
    BASES,
    INBOX,
    DEVICES,
    TOKENS,
    REVOCATIONS,
    BLOBS,
    BLOB_MANIFESTS,
    BLOB_PARTS,
    BLOB_REFS,
    BLOB_HOLDS,
    BLOB_USAGE,
];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChatRow {
    pub(super) kind: ChatKind,
    pub(super) title: Title,
    pub(super) created_at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum NumberRow {
    Entry { id: MessageId, seq: Seq },
    Void { void: Void, last: Option<Link> },
}

/// Saved now and then; what lies behind is folded from the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CursorRow {
    /// The device numbers of every entry up to here are in [`NUMBERS`].
    pub(super) marked: Option<Seq>,
    /// Every device of every recipient has taken, or has an inbox row for, every entry up to here.
    pub(super) settled: Option<Seq>,
    pub(super) delivered: Option<Floor>,
    pub(super) read: Option<Floor>,
}

/// How far everybody got: the slowest participant, and the slowest but for that one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    pub slowest: UserId,
    pub at: Option<Seq>,
    pub others: Option<Seq>,
}

impl Floor {
    /// Over a chat's participants with what each has reached. None for fewer than two.
    pub fn of<'a>(all: impl Iterator<Item = (&'a UserId, Option<Seq>)>) -> Option<Self> {
        let mut lowest: Option<(&UserId, Option<Seq>)> = None;
        let mut second = None;
        for (user, at) in all {
            match lowest {
                Some((_, low)) if at >= low => {
                    second = Some(second.map_or(at, |s: Option<Seq>| s.min(at)));
                }
                _ => {
                    second = lowest.map(|(_, low)| low).or(second);
                    lowest = Some((user, at));
                }
            }
        }
        let (slowest, at) = lowest?;
        Some(Self { slowest: slowest.clone(), at, others: second? })
    }

    /// What everybody but `user` has reached.
    pub fn without(&self, user: &UserId) -> Option<Seq> {
        if self.slowest == *user { self.others } else { self.at }
    }
}

impl CursorRow {
    pub(super) fn receipt(&self, user: &UserId) -> Receipt {
        let of = |floor: &Option<Floor>| floor.as_ref().and_then(|f| f.without(user));
        Receipt { delivered: of(&self.delivered), read: of(&self.read) }
    }
}

/// How far one user got in one chat, over all their devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    pub delivered: Option<Seq>,
    pub read: Option<Seq>,
}

/// Which table and which record.
pub(super) trait Record: Serialize + for<'a> Deserialize<'a> {}
impl Record for godwit_core::Entry {}
impl Record for ChatRow {}
impl Record for Participant {}
impl Record for NumberRow {}
impl Record for CursorRow {}
impl Record for Watermark {}
impl Record for InboxRow {}
impl Record for Device {}
impl Record for godwit_core::device::Revocation {}
impl Record for Seq {}
impl Record for godwit_core::blob::Blob {}
impl Record for godwit_core::blob::Usage {}
impl Record for godwit_wire::blob::Manifest {}
impl Record for UnixMillis {}
/// The name of a part in the store of blobs.
impl Record for String {}
/// Tables that hold only keys.
impl Record for () {}

/// Reads shared by a snapshot and an open transaction.
pub(super) trait Read {
    fn record<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError>;
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> Read for T {
    fn record<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.get(key)?.map(|guard| decode(guard.value())).transpose()
    }
}

pub(super) fn decode<R: Record>(bytes: &[u8]) -> Result<R, StoreError> {
    Ok(decode_record(bytes)?)
}

pub(super) type WriteTable<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// The tables of one write transaction.
pub(super) struct Tables<'t> {
    txn: &'t WriteTransaction,
    pub(super) log: WriteTable<'t>,
    pub(super) chats: WriteTable<'t>,
    pub(super) participants: WriteTable<'t>,
    pub(super) user_chats: WriteTable<'t>,
    pub(super) numbers: WriteTable<'t>,
    pub(super) cursors: WriteTable<'t>,
    pub(super) watermarks: WriteTable<'t>,
    pub(super) dirty: WriteTable<'t>,
    pub(super) bases: WriteTable<'t>,
    pub(super) inbox: WriteTable<'t>,
    pub(super) devices: WriteTable<'t>,
    pub(super) tokens: WriteTable<'t>,
    pub(super) revocations: WriteTable<'t>,
    pub(super) meta: WriteTable<'t>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            txn,
            log: txn.open_table(LOG)?,
            chats: txn.open_table(CHATS)?,
            participants: txn.open_table(PARTICIPANTS)?,
            user_chats: txn.open_table(USER_CHATS)?,
            numbers: txn.open_table(NUMBERS)?,
            cursors: txn.open_table(CURSORS)?,
            watermarks: txn.open_table(WATERMARKS)?,
            dirty: txn.open_table(DIRTY)?,
            bases: txn.open_table(BASES)?,
            inbox: txn.open_table(INBOX)?,
            devices: txn.open_table(DEVICES)?,
            tokens: txn.open_table(TOKENS)?,
            revocations: txn.open_table(REVOCATIONS)?,
            meta: txn.open_table(META)?,
        })
    }

    /// The tables about blobs, which few writes need. Nobody may have them already.
    pub(super) fn blobs(&self) -> Result<BlobTables<'t>, StoreError> {
        let txn = self.txn;
        Ok(BlobTables {
            blobs: txn.open_table(BLOBS)?,
            manifests: txn.open_table(BLOB_MANIFESTS)?,
            parts: txn.open_table(BLOB_PARTS)?,
            refs: txn.open_table(BLOB_REFS)?,
            holds: txn.open_table(BLOB_HOLDS)?,
            usage: txn.open_table(BLOB_USAGE)?,
        })
    }
}

/// The tables about blobs of one write transaction.
pub(super) struct BlobTables<'t> {
    pub(super) blobs: WriteTable<'t>,
    pub(super) manifests: WriteTable<'t>,
    pub(super) parts: WriteTable<'t>,
    pub(super) refs: WriteTable<'t>,
    pub(super) holds: WriteTable<'t>,
    pub(super) usage: WriteTable<'t>,
}

/// Makes all tables that are not there.
pub(super) fn make(txn: &WriteTransaction) -> Result<(), StoreError> {
    for table in RECORDS.into_iter().chain([META]) {
        drop(txn.open_table(table)?);
    }
    Ok(())
}

pub(super) fn put<R: Record>(table: &mut WriteTable<'_>, key: &[u8], record: &R) -> Result<(), StoreError> {
    table.insert(key, encode_record(record).as_slice())?;
    Ok(())
}

/// What a store file says about itself.
pub(super) mod meta {
    use super::{META, ReadTransaction, StoreError, WriteTransaction};

    pub(in crate::store) const FORMAT: &str = "format";
    pub(in crate::store) const GENERATION: &str = "generation";
    /// Another each time that clients are to compare what they have though this store was not restored.
    pub(in crate::store) const COMPARISON: &str = "comparison";
    pub(in crate::store) const REGION: &str = "region";
    /// Of a copy that no relay has started on yet.
    pub(in crate::store) const COPY: &str = "copy";
    /// How often a relay has started on the file.
    pub(in crate::store) const RUNS: &str = "runs";

    pub(in crate::store) fn get(txn: &ReadTransaction, name: &str) -> Result<Option<String>, StoreError> {
        match txn.open_table(META) {
            Ok(table) => {
                let value = table.get(name.as_bytes())?;
                Ok(value.map(|value| String::from_utf8_lossy(value.value()).into_owned()))
            }
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(in crate::store) fn put(txn: &WriteTransaction, name: &str, value: &str) -> Result<(), StoreError> {
        txn.open_table(META)?.insert(name.as_bytes(), value.as_bytes())?;
        Ok(())
    }

    pub(in crate::store) fn remove(txn: &WriteTransaction, name: &str) -> Result<(), StoreError> {
        txn.open_table(META)?.remove(name.as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_leaves_one_out() {
        let users: Vec<UserId> = ["a@eu", "b@eu", "c@eu"].iter().map(|u| u.parse().unwrap()).collect();
        let seq = |n: u64| Seq::new(n).ok();
        for (reached, without) in
            [([3, 5, 7], [5, 3, 3]), ([7, 5, 3], [3, 3, 5]), ([4, 4, 9], [4, 4, 4]), ([0, 2, 1], [1, 0, 0])]
        {
            let floor = Floor::of(users.iter().zip(reached.map(seq))).unwrap();
            for (user, expected) in users.iter().zip(without) {
                assert_eq!(floor.without(user), seq(expected), "{reached:?} without {user}");
            }
        }
        assert_eq!(Floor::of(users[..1].iter().zip([seq(1)])), None);
    }
}
