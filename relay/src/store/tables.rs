//! The store's tables and their records. Every record is a format number and postcard, see `godwit_core::entry`.

use godwit_core::blob::{Blob, Usage};
use godwit_core::device::Revocation;
use godwit_core::inbox::InboxRow;
use godwit_core::number::{Link, Void};
use godwit_core::{Device, Entry, Participant};
use godwit_wire::blob::Manifest;
use godwit_wire::entry::{ChatKind, Title};
use godwit_wire::frame::Receipt;
use godwit_wire::{MessageId, Seq, UnixMillis, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// Which table. Their order is for ever: they are written by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum TableId {
    Log,
    Chats,
    Participants,
    UserChats,
    Numbers,
    Cursors,
    Watermarks,
    Dirty,
    Bases,
    Inbox,
    Devices,
    Tokens,
    Revocations,
    Blobs,
    BlobManifests,
    BlobParts,
    BlobRefs,
    BlobHolds,
    BlobUsage,
    Meta,
}

impl TableId {
    pub(super) const ALL: [Self; 20] = [
        Self::Log,
        Self::Chats,
        Self::Participants,
        Self::UserChats,
        Self::Numbers,
        Self::Cursors,
        Self::Watermarks,
        Self::Dirty,
        Self::Bases,
        Self::Inbox,
        Self::Devices,
        Self::Tokens,
        Self::Revocations,
        Self::Blobs,
        Self::BlobManifests,
        Self::BlobParts,
        Self::BlobRefs,
        Self::BlobHolds,
        Self::BlobUsage,
        Self::Meta,
    ];

    /// What it is called in a store, for ever.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Chats => "chats",
            Self::Participants => "participants",
            Self::UserChats => "user_chats",
            Self::Numbers => "numbers",
            Self::Cursors => "cursors",
            Self::Watermarks => "watermarks",
            Self::Dirty => "dirty",
            Self::Bases => "bases",
            Self::Inbox => "inbox",
            Self::Devices => "devices",
            Self::Tokens => "tokens",
            Self::Revocations => "revocations",
            Self::Blobs => "blobs",
            Self::BlobManifests => "blob_manifests",
            Self::BlobParts => "blob_parts",
            Self::BlobRefs => "blob_refs",
            Self::BlobHolds => "blob_holds",
            Self::BlobUsage => "blob_usage",
            Self::Meta => "meta",
        }
    }
}

/// A table of one kind of record.
#[derive(Debug)]
pub(super) struct Table<R> {
    pub(super) id: TableId,
    of: PhantomData<fn() -> R>,
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Table<R> {}

const fn table<R>(id: TableId) -> Table<R> {
    Table { id, of: PhantomData }
}

/// (chat, seq). The truth; all other tables about chats follow from it.
pub(super) const LOG: Table<Entry> = table(TableId::Log);
/// chat
pub(super) const CHATS: Table<ChatRow> = table(TableId::Chats);
/// (chat, user)
pub(super) const PARTICIPANTS: Table<Participant> = table(TableId::Participants);
/// (user, chat): the chats a user ever belonged to
pub(super) const USER_CHATS: Table<()> = table(TableId::UserChats);
/// (chat, device, enrolment, n): the last number, every void, and now and then an entry's number
pub(super) const NUMBERS: Table<NumberRow> = table(TableId::Numbers);
/// chat
pub(super) const CURSORS: Table<CursorRow> = table(TableId::Cursors);
/// chat; read by [`each`](super::marks::each), which knows how it was before
pub(super) const WATERMARKS: Table<Marks> = table(TableId::Watermarks);
/// chat: chats whose log may reach beyond what is settled
pub(super) const DIRTY: Table<()> = table(TableId::Dirty);
/// chat: of a copy, the entry that its base follows from, see `replica`
pub(super) const BASES: Table<Seq> = table(TableId::Bases);
/// (device, chat)
pub(super) const INBOX: Table<InboxRow> = table(TableId::Inbox);
/// device
pub(super) const DEVICES: Table<Device> = table(TableId::Devices);
/// (expiry, jti): tokens that were used, by when they can be forgotten
pub(super) const TOKENS: Table<()> = table(TableId::Tokens);
/// (time, device): enrolments that are shut out, of every region, until their certificates have expired
pub(super) const REVOCATIONS: Table<Revocation> = table(TableId::Revocations);
/// hash: attachments, as far as they are stored
pub(super) const BLOBS: Table<Blob> = table(TableId::Blobs);
/// hash: what the parts of a blob are
pub(super) const BLOB_MANIFESTS: Table<Manifest> = table(TableId::BlobManifests);
/// (hash, part) → tag: parts that are stored, of a blob that is being uploaded
pub(super) const BLOB_PARTS: Table<String> = table(TableId::BlobParts);
/// (hash, chat, seq): messages that refer to a blob
pub(super) const BLOB_REFS: Table<()> = table(TableId::BlobRefs);
/// (hash, user): until when a user may refer to a blob, whether a message does or not
pub(super) const BLOB_HOLDS: Table<UnixMillis> = table(TableId::BlobHolds);
/// user: what a user has in blobs, and what all have
pub(super) const BLOB_USAGE: Table<Usage> = table(TableId::BlobUsage);

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

impl Watermark {
    /// It is at least as far as `other`.
    pub(crate) fn rise(&mut self, other: Self) {
        self.delivered = self.delivered.max(other.delivered);
        self.read = self.read.max(other.read);
    }
}

/// How far each user got in one chat: one row, for they move together, and on a shared store each row is a write.
pub(super) type Marks = BTreeMap<UserId, Watermark>;

/// What a table may hold.
pub(super) trait Record: Serialize + for<'a> Deserialize<'a> {}
impl Record for Entry {}
impl Record for ChatRow {}
impl Record for Participant {}
impl Record for NumberRow {}
impl Record for CursorRow {}
impl Record for Marks {}
/// Of one user: rows of the first format.
impl Record for Watermark {}
impl Record for InboxRow {}
impl Record for Device {}
impl Record for Revocation {}
impl Record for Seq {}
impl Record for Blob {}
impl Record for Usage {}
impl Record for Manifest {}
impl Record for UnixMillis {}
/// The name of a part in the store of blobs.
impl Record for String {}
/// Tables that hold only keys.
impl Record for () {}

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
