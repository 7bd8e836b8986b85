//! The one fenced write: what a batch of commands of one chat, or of one user, changes, as one item.
//!
//! A chat's journal is its log. An item stands at the first seq that it gives and holds the entries of one batch, with the
//! rows that follow from them. A batch that gives none (a refusal that decides a number) stands where the next entry
//! would, and the next batch takes its place: so two relays that both hold themselves for the owner always write to the
//! same place, each only over what it has seen, and one of them loses. A user's journal, and that of the region's
//! attachments, is one such place.
//!
//! The rows follow the item, each only over an older one, in any order and as often as need be. Whoever takes up a
//! journal writes the rows of its last item again, before anything else: they may be those of an owner that was killed.

use super::engine::{Item, Place};
use super::layout;
use crate::store::StoreError;
use crate::store::keys::{self, Key};
use crate::store::tables::TableId;
use bytes::Bytes;
use godwit_wire::{ChatId, Seq, UserId};
use serde::{Deserialize, Serialize};

/// The table of the journals that are no chat's.
pub(super) const JOURNAL: &str = "journal";
/// An item may have 400 KB, with its keys.
pub(super) const ITEM_BYTES: usize = 360 << 10;
/// Batches that gave no entry and stood where the next one would, at most, between two entries.
const VERSIONS: u64 = 1 << 20;

/// Whose commands run one after the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Topic {
    Chat(ChatId),
    User(UserId),
    /// The region's attachments.
    Blobs,
    /// What the region keeps of itself and of others.
    Region,
}

/// A row that follows from an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) table: TableId,
    pub(super) key: Vec<u8>,
    /// None if it goes.
    pub(super) value: Option<Bytes>,
}

/// One batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sheet {
    /// Tells it from what another relay wrote to the same place.
    pub(super) nonce: u64,
    /// Records of the entries, from the seq of the item's place on, without a gap.
    pub(super) entries: Vec<Bytes>,
    pub(super) rows: Vec<Row>,
    /// The rows are too many for one item, and are in so many others, see [`spill`].
    pub(super) spilled: u16,
}

impl Sheet {
    pub(super) fn encode(&self) -> Result<Bytes, StoreError> {
        let encoded = postcard::to_stdvec(self).map_err(|_| StoreError::Inconsistent("a sheet cannot be written"))?;
        Ok(encoded.into())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        postcard::from_bytes(bytes).map_err(|_| StoreError::Inconsistent("a sheet cannot be read"))
    }

    fn bytes(row: &Row) -> usize {
        row.key.len() + row.value.as_ref().map_or(0, Bytes::len) + 16
    }

    /// Parts with rows that do not fit beside the entries; none of them if they fit.
    pub(super) fn spill(&mut self) -> Result<Vec<Bytes>, StoreError> {
        let entries: usize = self.entries.iter().map(|entry| entry.len() + 4).sum();
        let rows: usize = self.rows.iter().map(Self::bytes).sum();
        if entries + rows <= ITEM_BYTES {
            return Ok(Vec::new());
        }
        let mut parts = Vec::new();
        let mut part = Vec::new();
        let mut size = 0;
        for row in std::mem::take(&mut self.rows) {
            let bytes = Self::bytes(&row);
            if size + bytes > ITEM_BYTES && !part.is_empty() {
                parts.push(encode_rows(&std::mem::take(&mut part))?);
                size = 0;
            }
            size += bytes;
            part.push(row);
        }
        parts.push(encode_rows(&part)?);
        self.spilled = u16::try_from(parts.len()).map_err(|_| StoreError::Inconsistent("rows without end"))?;
        Ok(parts)
    }
}

fn encode_rows(rows: &[Row]) -> Result<Bytes, StoreError> {
    let encoded = postcard::to_stdvec(rows).map_err(|_| StoreError::Inconsistent("rows cannot be written"))?;
    Ok(encoded.into())
}

pub(super) fn decode_rows(bytes: &[u8]) -> Result<Vec<Row>, StoreError> {
    postcard::from_bytes(bytes).map_err(|_| StoreError::Inconsistent("rows cannot be read"))
}

/// Where a journal goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Of a chat: the seq that the next entry gets.
    pub(super) next: Seq,
    /// The order of the item that stands there, without an entry; 0 if none does.
    pub(super) open: u64,
}

impl Position {
    pub(super) const START: Self = Self { next: Seq::FIRST, open: 0 };

    /// Where it goes on after its last item, that of `at`.
    pub(super) fn after(at: Seq, sheet: &Sheet, order: u64) -> Result<Self, StoreError> {
        match u64::try_from(sheet.entries.len()) {
            Ok(0) => Ok(Self { next: at, open: order }),
            Ok(entries) => {
                let next = Seq::new(at.get() + entries).map_err(|_| StoreError::BadKey)?;
                Ok(Self { next, open: 0 })
            }
            Err(_) => Err(StoreError::BadKey),
        }
    }

    /// The order of the next item. It rises with each item of the journal, whichever place that has.
    pub(super) fn order(&self) -> Result<u64, StoreError> {
        let floor = self.next.get().checked_mul(VERSIONS).ok_or(StoreError::BadKey)?;
        Ok(self.open.max(floor) + 1)
    }
}

impl Topic {
    /// Where its next item goes.
    pub(super) fn place(&self, at: Seq) -> Result<Place, StoreError> {
        let partition = match self {
            Self::Chat(chat) => return layout::place(TableId::Log, &keys::log(chat, at)),
            Self::User(user) => Key::new().user(user).bytes(),
            Self::Blobs => b"\0blobs".to_vec(),
            Self::Region => b"\0region".to_vec(),
        };
        Ok(Place { table: JOURNAL, partition, sort: vec![0] })
    }

    /// Where the rows of a sheet are that did not fit into it.
    pub(super) fn spilled(&self, nonce: u64, part: u16) -> Result<Place, StoreError> {
        let mut partition = match self {
            Self::Chat(chat) => Key::new().chat(chat).bytes(),
            _ => self.place(Seq::FIRST)?.partition,
        };
        partition.push(1);
        let sort = [&nonce.to_be_bytes()[..], &part.to_be_bytes()].concat();
        Ok(Place { table: JOURNAL, partition, sort })
    }
}

/// The item of a sheet.
pub(super) fn item(sheet: &Sheet, order: u64) -> Result<Item, StoreError> {
    Ok(Item { value: sheet.encode()?, order })
}
