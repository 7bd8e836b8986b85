//! What rides on SWIM packets: items about one relay each, passed on by all. An item is never signed by its subject, so
//! it is believed only as far as a hint may be.
//!
//! The first byte is the kind. Unknown kinds, and bytes after the known fields, are ignored: newer relays may send both.

use crate::hash::Change;
use crate::roster::SharedRoster;
use crate::{Identity, Status};
use godwit_wire::RelayId;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Claims(ClaimsItem),
    Head(HeadItem),
    Status(StatusItem),
}

/// The changes number `first`, `first + 1` … of a relay's claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimsItem {
    pub relay: RelayId,
    pub epoch: u64,
    pub first: u64,
    pub changes: Vec<Change>,
}

/// There are changes up to `version`, too many to tell here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadItem {
    pub relay: RelayId,
    pub epoch: u64,
    pub version: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusItem {
    pub relay: RelayId,
    pub epoch: u64,
    pub version: u64,
    pub status: Status,
}

#[derive(Debug, thiserror::Error)]
#[error("malformed item")]
pub(crate) struct MalformedItem;

impl Item {
    const CLAIMS: u8 = 1;
    const HEAD: u8 = 2;
    const STATUS: u8 = 3;

    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Claims(item) => (Self::CLAIMS, postcard::to_allocvec(item)),
            Self::Head(item) => (Self::HEAD, postcard::to_allocvec(item)),
            Self::Status(item) => (Self::STATUS, postcard::to_allocvec(item)),
        };
        let mut bytes = vec![kind];
        bytes.extend(body.expect("items hold nothing that postcard refuses"));
        bytes
    }

    /// `None` for a kind of the future.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, MalformedItem> {
        fn body<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, MalformedItem> {
            postcard::take_from_bytes(bytes).map(|(item, _)| item).map_err(|_| MalformedItem)
        }
        let (&kind, rest) = bytes.split_first().ok_or(MalformedItem)?;
        let item = match kind {
            Self::CLAIMS => {
                let item: ClaimsItem = body(rest)?;
                let fits = item.first.checked_add(item.changes.len() as u64).is_some();
                if item.first == 0 || item.changes.is_empty() || !fits {
                    return Err(MalformedItem);
                }
                Self::Claims(item)
            }
            Self::HEAD => Self::Head(body(rest)?),
            Self::STATUS => Self::Status(body(rest)?),
            _ => return Ok(None),
        };
        Ok(Some(item))
    }

    pub fn key(&self) -> Key {
        match self {
            Self::Claims(ClaimsItem { relay, .. }) | Self::Head(HeadItem { relay, .. }) => Key::Claims(relay.clone()),
            Self::Status(StatusItem { relay, .. }) => Key::Status(relay.clone()),
        }
    }
}

impl ClaimsItem {
    pub fn last(&self) -> u64 {
        self.first + self.changes.len() as u64 - 1
    }
}

/// foca keeps one item for each key: a relay's newest item or head makes the older ones pointless, because an item
/// repeats all that is recent. So the backlog, which foca scans, has at most two entries a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Claims(RelayId),
    Status(RelayId),
}

impl foca::Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        self == other
    }
}

/// foca's door to the roster, which knows what is news.
pub(crate) struct Handler(pub SharedRoster);

impl foca::BroadcastHandler<Identity> for Handler {
    type Key = Key;
    type Error = MalformedItem;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Identity>) -> Result<Option<Key>, MalformedItem> {
        let Some(item) = Item::decode(data)? else { return Ok(None) };
        let key = item.key();
        // Without a sender it is an item of our own.
        let news = sender.is_none() || self.0.lock().hear(item);
        Ok(news.then_some(key))
    }

    fn should_add_broadcast_data(&self, member: &Identity) -> bool {
        self.0.lock().in_scope(member.relay())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::UserHash;
    use proptest::prelude::*;

    #[test]
    fn items_come_back_and_the_future_is_ignored() {
        let relay: RelayId = "eu/eu-1".parse().unwrap();
        let changes = vec![Change::claim(UserHash::raw(8)), Change::withdraw(UserHash::raw(6))];
        let items = [
            Item::Claims(ClaimsItem { relay: relay.clone(), epoch: 5, first: 3, changes }),
            Item::Head(HeadItem { relay: relay.clone(), epoch: 5, version: 9 }),
            Item::Status(StatusItem { relay, epoch: 5, version: 2, status: Status::default() }),
        ];
        for item in items {
            let mut bytes = item.encode();
            assert_eq!(Item::decode(&bytes).unwrap(), Some(item.clone()));
            bytes.extend([1, 2, 3]);
            assert_eq!(Item::decode(&bytes).unwrap(), Some(item));
        }
        assert!(Item::decode(&[200, 1, 2]).unwrap().is_none());
        assert!(Item::decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..5) {
            let _ = Item::decode(&bytes);
            let _ = Item::decode(&[&[kind], bytes.as_slice()].concat());
        }
    }
}
