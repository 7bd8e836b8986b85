//! Under which place of a shared store a row is: the partition is the part of its key that is always known, a chat, a
//! user or a blob, so that what is read together lies together.

use super::engine::Place;
use crate::rank::fnv_1a;
use crate::store::StoreError;
use crate::store::keys::Span;
use crate::store::tables::TableId;

/// Partitions of a table that has one short list for the whole region.
const SHARDS: u8 = 16;
/// Before each place in a partition: the engine's keys may not be empty.
const SORT: u8 = 0;

/// By what a table is partitioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Partition {
    Chat,
    User,
    Hash,
    /// The first byte of a hash: in the order of the hashes.
    HashPrefix,
    /// A number that the key gives: in no order.
    Shard,
    /// The table is one partition.
    Whole,
}

const fn partition(table: TableId) -> Partition {
    match table {
        TableId::Log
        | TableId::Chats
        | TableId::Participants
        | TableId::Numbers
        | TableId::Cursors
        | TableId::Watermarks
        | TableId::Bases => Partition::Chat,
        TableId::UserChats | TableId::Inbox | TableId::Devices | TableId::BlobUsage => Partition::User,
        TableId::BlobManifests | TableId::BlobParts | TableId::BlobRefs | TableId::BlobHolds => Partition::Hash,
        TableId::Blobs => Partition::HashPrefix,
        TableId::Dirty => Partition::Shard,
        TableId::Tokens | TableId::Revocations | TableId::Meta => Partition::Whole,
    }
}

/// How many bytes of a key are its partition; none if it has fewer.
fn length(partition: Partition, key: &[u8]) -> Option<usize> {
    let text = || Some(1 + usize::from(*key.first()?));
    let length = match partition {
        Partition::Chat => text()? + 16,
        Partition::User => text()?,
        Partition::Hash => 32,
        Partition::HashPrefix => 1,
        Partition::Shard | Partition::Whole => 0,
    };
    (length <= key.len()).then_some(length)
}

fn shard(key: &[u8]) -> Vec<u8> {
    vec![u8::try_from(fnv_1a(key) % u64::from(SHARDS)).unwrap_or_default()]
}

fn sort(rest: &[u8]) -> Vec<u8> {
    let mut sort = Vec::with_capacity(1 + rest.len());
    sort.push(SORT);
    sort.extend_from_slice(rest);
    sort
}

/// Where a row is.
pub(super) fn place(table: TableId, key: &[u8]) -> Result<Place, StoreError> {
    let by = partition(table);
    let length = length(by, key).ok_or(StoreError::BadKey)?;
    let partition = match by {
        Partition::Shard => shard(key),
        Partition::Whole => vec![SORT],
        _ => key[..length].to_vec(),
    };
    Ok(Place { table: table.name(), partition, sort: sort(&key[length..]) })
}

/// The key of the row at a place.
pub(super) fn key(table: TableId, at: &[u8], sort: &[u8]) -> Vec<u8> {
    let mut key = match partition(table) {
        Partition::Shard | Partition::Whole => Vec::new(),
        _ => at.to_vec(),
    };
    key.extend_from_slice(sort.get(1..).unwrap_or_default());
    key
}

/// Where the rows of a span are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// In these partitions, in their order.
    InOrder(Vec<Vec<u8>>),
    /// In these partitions, in no order.
    Mixed(Vec<Vec<u8>>),
    /// Anywhere in the table.
    Anywhere,
}

pub(super) fn extent(table: TableId, span: &Span) -> Extent {
    let by = partition(table);
    match by {
        Partition::Whole => Extent::InOrder(vec![vec![SORT]]),
        Partition::Shard => Extent::Mixed((0..SHARDS).map(|shard| vec![shard]).collect()),
        Partition::HashPrefix => {
            let first = span.start.first().copied().unwrap_or(0);
            let last = span.end.first().copied().unwrap_or(u8::MAX);
            Extent::InOrder((first..=last).map(|byte| vec![byte]).collect())
        }
        Partition::Chat | Partition::User | Partition::Hash => match length(by, &span.start) {
            Some(length) => {
                let of = &span.start[..length];
                let end = Span::starting_with(of).end;
                let within = !span.end.is_empty() && span.end <= end || span.end == end;
                if within { Extent::InOrder(vec![of.to_vec()]) } else { Extent::Anywhere }
            }
            None => Extent::Anywhere,
        },
    }
}

/// What of a span lies in a partition: from a place on, up to another, exclusive.
pub(super) fn sorts(table: TableId, at: &[u8], span: &Span) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let head: &[u8] = match partition(table) {
        Partition::Shard | Partition::Whole => &[],
        _ => at,
    };
    let of = |bound: &[u8]| bound.strip_prefix(head).map(sort);
    (of(&span.start), if span.end.is_empty() { None } else { of(&span.end) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::{self, Key};
    use godwit_wire::{ChatId, Seq, UserId};

    fn chat() -> ChatId {
        "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
    }

    #[test]
    fn a_row_comes_back_from_its_place() {
        let user: UserId = "alice@eu".parse().unwrap();
        let keys = [
            (TableId::Log, keys::log(&chat(), Seq::FIRST)),
            (TableId::Chats, Key::new().chat(&chat()).bytes()),
            (TableId::Participants, Key::new().chat(&chat()).user(&user).bytes()),
            (TableId::UserChats, Key::new().user(&user).chat(&chat()).bytes()),
            (TableId::Inbox, Key::new().user(&user).text("phone").chat(&chat()).bytes()),
            (TableId::BlobUsage, vec![0]),
            (TableId::Dirty, Key::new().chat(&chat()).bytes()),
            (TableId::Tokens, Key::new().number(7).text("id").bytes()),
            (TableId::Blobs, vec![9; 32]),
            (TableId::BlobParts, vec![9; 36]),
            (TableId::Meta, b"format".to_vec()),
        ];
        for (table, bytes) in keys {
            let place = place(table, &bytes).unwrap();
            assert!(!place.partition.is_empty() && !place.sort.is_empty(), "{table:?}");
            assert_eq!(key(table, &place.partition, &place.sort), bytes, "{table:?}");
        }
    }

    #[test]
    fn what_shares_a_partition_is_read_from_it_alone() {
        let of_chat = Key::new().chat(&chat()).prefix();
        let partition = of_chat.start.clone();
        assert_eq!(extent(TableId::Log, &of_chat), Extent::InOrder(vec![partition.clone()]));
        assert_eq!(extent(TableId::Log, &keys::log_from(&chat(), Seq::FIRST)), Extent::InOrder(vec![partition]));
        assert_eq!(extent(TableId::Log, &Span::ALL), Extent::Anywhere);
        let home = Key::new().home(chat().home()).prefix();
        assert_eq!(extent(TableId::Participants, &home), Extent::Anywhere);
        assert_eq!(extent(TableId::Tokens, &Span::up_to(vec![1])), Extent::InOrder(vec![vec![0]]));
        let Extent::InOrder(all) = extent(TableId::Blobs, &Span::from(vec![250; 32])) else { panic!("in order") };
        assert_eq!(all, (250..=255).map(|byte| vec![byte]).collect::<Vec<_>>());
    }
}
