//! The hash under which a user is claimed. Only it travels, never the user's id.

use godwit_wire::UserId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use siphasher::sip::SipHasher13;

/// Published, so that all relays agree: the hash makes claims short; it keeps nothing secret.
const KEYS: (u64, u64) = (u64::from_le_bytes(*b"godwit p"), u64::from_le_bytes(*b"resence1"));

/// SipHash-1-3 of a user's id without its lowest bit, which is the sign of a [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserHash(u64);

impl UserHash {
    pub fn of(user: &UserId) -> Self {
        Self(SipHasher13::new_with_keys(KEYS.0, KEYS.1).hash(user.as_str().as_bytes()) & !1)
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn raw(value: u64) -> Self {
        Self(value & !1)
    }
}

/// A claim made or withdrawn: the hash with the sign in its lowest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change(u64);

impl Change {
    pub fn claim(hash: UserHash) -> Self {
        Self(hash.0 | 1)
    }

    pub fn withdraw(hash: UserHash) -> Self {
        Self(hash.0)
    }

    pub fn hash(self) -> UserHash {
        UserHash(self.0 & !1)
    }

    pub fn is_claim(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Eight bytes: as varints, hashes would take ten.
macro_rules! eight_bytes {
    ($name:ident, $mask:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                self.0.to_le_bytes().serialize(s)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Ok(Self(u64::from_le_bytes(<[u8; 8]>::deserialize(d)?) & $mask))
            }
        }
    };
}
eight_bytes!(UserHash, !1);
eight_bytes!(Change, u64::MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_user_never_changes() {
        let hash = UserHash::of(&"alice@eu".parse().unwrap());
        assert_eq!(hash.get(), GOLDEN, "other relays know alice under this number");
        assert_eq!(postcard::to_allocvec(&Change::claim(hash)).unwrap(), (GOLDEN | 1).to_le_bytes());
    }

    const GOLDEN: u64 = 17_660_997_902_530_834_630;
}
