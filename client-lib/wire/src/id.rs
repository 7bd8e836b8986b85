//! Ids that cannot hold a bad value: parsed once at the door, then trusted.
//!
//! | id | form | parts |
//! | --- | --- | --- |
//! | [`RegionId`] | `eu` | 1 to 16 of `a-z 0-9 -`, a letter first |
//! | [`UserId`] | `alice@eu` | name 1 to 32 of `a-z 0-9 . _ -`, a letter or digit first |
//! | [`DeviceId`] | `alice@eu/phone` | the same rule for the device's name; 64 bytes in all |
//! | [`RelayId`] | `eu/eu-1` | region and name, the same rules |
//! | [`ChatId`] | `eu:01890a5d-…` | region and UUID, version 7 or (direct chats) 8 |
//! | [`Seq`] | `1` … 2⁶³ − 1 | position in a chat's log |

use crate::limits;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use smol_str::SmolStr;
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Why a text is not an id. Names the part and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{part} is empty")]
    Empty { part: &'static str },
    #[error("{part} has {len} bytes, at most {max} are allowed")]
    TooLong { part: &'static str, len: usize, max: usize },
    #[error("{part} may hold only {allowed}")]
    BadCharacter { part: &'static str, allowed: &'static str },
    #[error("{id} must look like {form}")]
    Form { id: &'static str, form: &'static str },
    #[error("chat id: the UUID must be of version 7, or 8 for a direct chat")]
    UuidVersion,
    #[error("seq must lie between 1 and 9223372036854775807")]
    Seq,
}

const NAME: &str = "a-z 0-9 . _ - with a letter or digit first";
const REGION: &str = "a-z 0-9 - with a letter first";

fn check(part: &'static str, text: &str, max: usize, allowed: &'static str) -> Result<(), IdError> {
    if text.len() > max {
        return Err(IdError::TooLong { part, len: text.len(), max });
    }
    let Some(&first) = text.as_bytes().first() else { return Err(IdError::Empty { part }) };
    let region = allowed == REGION;
    let first_ok = first.is_ascii_lowercase() || (!region && first.is_ascii_digit());
    let rest_ok =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (!region && matches!(b, b'.' | b'_'));
    if first_ok && text.bytes().all(rest_ok) { Ok(()) } else { Err(IdError::BadCharacter { part, allowed }) }
}

fn check_name(part: &'static str, text: &str) -> Result<(), IdError> {
    check(part, text, limits::NAME_BYTES, NAME)
}

fn check_region(text: &str) -> Result<(), IdError> {
    check("region", text, limits::REGION_BYTES, REGION)
}

fn check_whole(part: &'static str, text: &str) -> Result<(), IdError> {
    if text.len() > limits::ID_BYTES {
        return Err(IdError::TooLong { part, len: text.len(), max: limits::ID_BYTES });
    }
    Ok(())
}

/// What every text id shares: `Display`, `Debug`, `FromStr` through `parse`, serde as a string.
macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(stringify!($name))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).map_err(E::custom)
                    }
                }
                d.deserialize_str(Visitor)
            }
        }
    };
}

/// A set of relays around one store: `eu`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(SmolStr);
text_id!(RegionId);

impl RegionId {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        check_region(text)?;
        Ok(Self(text.into()))
    }
}

/// A person, with the region that is their home: `alice@eu`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(SmolStr);
text_id!(UserId);

impl UserId {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        check_whole("user id", text)?;
        let (name, region) =
            text.split_once('@').ok_or(IdError::Form { id: "user id", form: "alice@eu (name@region)" })?;
        if region.contains('/') {
            return Err(IdError::Form { id: "user id", form: "alice@eu (name@region), without a device" });
        }
        check_name("user name", name)?;
        check_region(region)?;
        Ok(Self(text.into()))
    }

    pub fn home(&self) -> RegionId {
        let (_, region) = self.0.split_once('@').expect("checked when parsed");
        RegionId(region.into())
    }

    /// Whether `region` is this user's home, without building a [`RegionId`].
    pub fn is_home(&self, region: &RegionId) -> bool {
        self.0.split_once('@').is_some_and(|(_, home)| home == region.as_str())
    }

    /// The name under which a region itself takes part in delivery. Nobody is enrolled under it.
    pub const RESERVED: &str = "godwit";

    /// A region as a recipient, beside its users.
    pub fn of_region(region: &RegionId) -> Self {
        Self(format!("{}@{region}", Self::RESERVED).into())
    }

    /// Not a user but a region, see [`UserId::of_region`].
    pub fn is_region(&self) -> bool {
        self.0.split_once('@').is_some_and(|(name, _)| name == Self::RESERVED)
    }

    /// One installation of this user: `phone` gives `alice@eu/phone`.
    pub fn device(&self, name: &str) -> Result<DeviceId, IdError> {
        DeviceId::parse(&format!("{self}/{name}"))
    }
}

/// One installation of one user: `alice@eu/phone`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(SmolStr);
text_id!(DeviceId);

impl DeviceId {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        check_whole("device id", text)?;
        let (user, name) = text
            .split_once('/')
            .ok_or(IdError::Form { id: "device id", form: "alice@eu/phone (name@region/device)" })?;
        UserId::parse(user)?;
        check_name("device name", name)?;
        Ok(Self(text.into()))
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once('/').expect("checked when parsed")
    }

    pub fn user(&self) -> UserId {
        UserId(self.split().0.into())
    }

    pub fn user_str(&self) -> &str {
        self.split().0
    }

    pub fn name(&self) -> &str {
        self.split().1
    }

    pub fn home(&self) -> RegionId {
        self.user().home()
    }

    /// What stands for a region as a recipient, see [`UserId::of_region`].
    pub fn of_region(region: &RegionId) -> Self {
        Self(format!("{}/region", UserId::of_region(region)).into())
    }

    /// Not a device but a region.
    pub fn is_region(&self) -> bool {
        self.user_str().split_once('@').is_some_and(|(name, _)| name == UserId::RESERVED)
    }
}

/// One server process: `eu/eu-1`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(SmolStr);
text_id!(RelayId);

impl RelayId {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        check_whole("relay id", text)?;
        let (region, name) =
            text.split_once('/').ok_or(IdError::Form { id: "relay id", form: "eu/eu-1 (region/name)" })?;
        check_region(region)?;
        check_name("relay name", name)?;
        Ok(Self(text.into()))
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once('/').expect("checked when parsed")
    }

    pub fn region(&self) -> RegionId {
        RegionId(self.split().0.into())
    }

    pub fn name(&self) -> &str {
        self.split().1
    }
}

/// A conversation, with the region that is its home: `eu:<uuid>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChatId {
    home: RegionId,
    uuid: Uuid,
}

impl ChatId {
    /// A group chat. `uuid` must be of version 7.
    pub fn group(home: RegionId, uuid: Uuid) -> Result<Self, IdError> {
        if uuid.get_version_num() == 7 { Ok(Self { home, uuid }) } else { Err(IdError::UuidVersion) }
    }

    /// The one direct chat of two users, the same for both: it lives at the home of the one that sorts first, and its
    /// UUID (version 8, RFC 9562) holds the first bits of SHA-256 over both ids.
    pub fn direct(a: &UserId, b: &UserId) -> Self {
        let (first, second) = if a <= b { (a, b) } else { (b, a) };
        let mut hash = Sha256::new();
        hash.update(b"godwit direct chat 1\0");
        hash.update(first.as_str());
        hash.update(b"\0");
        hash.update(second.as_str());
        let digest = hash.finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self { home: first.home(), uuid: Uuid::new_v8(bytes) }
    }

    pub fn parse(text: &str) -> Result<Self, IdError> {
        let form = IdError::Form { id: "chat id", form: "eu:<uuid> (region:UUID)" };
        let (home, uuid) = text.split_once(':').ok_or_else(|| form.clone())?;
        let home = RegionId::parse(home)?;
        // Only the canonical form, so that one chat has one text.
        let uuid = Uuid::try_parse(uuid).ok().filter(|u| u.to_string() == uuid).ok_or(form)?;
        Self::from_parts(home, uuid)
    }

    /// A chat of either kind. `uuid` must be of version 7 or 8.
    pub fn from_parts(home: RegionId, uuid: Uuid) -> Result<Self, IdError> {
        match uuid.get_version_num() {
            7 | 8 => Ok(Self { home, uuid }),
            _ => Err(IdError::UuidVersion),
        }
    }

    pub fn home(&self) -> &RegionId {
        &self.home
    }

    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// A direct chat's id is derived from its users and cannot be chosen.
    pub fn is_direct(&self) -> bool {
        self.uuid.get_version_num() == 8
    }
}

impl fmt::Display for ChatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.home, self.uuid)
    }
}

impl fmt::Debug for ChatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChatId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl Serialize for ChatId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (&self.home, self.uuid.as_bytes()).serialize(s)
    }
}

impl<'de> Deserialize<'de> for ChatId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (home, uuid) = <(RegionId, [u8; 16])>::deserialize(d)?;
        Self::from_parts(home, Uuid::from_bytes(uuid)).map_err(de::Error::custom)
    }
}

/// The client-made id of a message, the same over all retries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub Uuid);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.as_bytes().serialize(s)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self(Uuid::from_bytes(<[u8; 16]>::deserialize(d)?)))
    }
}

/// A position in a chat's log: 1, 2, 3 … without gaps. At most 2⁶³ − 1, so that every store can hold it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Seq(u64);

impl Seq {
    pub const FIRST: Self = Self(1);
    pub const MAX: Self = Self(i64::MAX as u64);

    pub fn new(value: u64) -> Result<Self, IdError> {
        if (1..=Self::MAX.0).contains(&value) { Ok(Self(value)) } else { Err(IdError::Seq) }
    }

    pub fn get(self) -> u64 {
        self.0
    }

    /// The position after this one. Saturates at [`Seq::MAX`], which no chat reaches.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1).min(Self::MAX.0))
    }

    /// The position before this one; none before the first.
    pub fn prev(self) -> Option<Self> {
        Self::new(self.0 - 1).ok()
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl FromStr for Seq {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map_err(|_| IdError::Seq).and_then(Self::new)
    }
}

impl<'de> Deserialize<'de> for Seq {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(d)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ids_come_back_as_they_were() {
        for text in ["alice@eu", "a@e", "0.x_y-z@eu-west-1"] {
            assert_eq!(UserId::parse(text).unwrap().as_str(), text);
        }
        let device: DeviceId = "alice@eu/phone".parse().unwrap();
        assert_eq!((device.user().as_str(), device.name(), device.home().as_str()), ("alice@eu", "phone", "eu"));
        let relay: RelayId = "eu/eu-1".parse().unwrap();
        assert_eq!((relay.region().as_str(), relay.name()), ("eu", "eu-1"));
        let chat: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(chat.to_string(), "eu:01890a5d-ac96-774b-bcce-b302099a8057");
        assert!(!chat.is_direct());
    }

    #[test]
    fn bad_ids_name_the_part_and_the_limit() {
        let err = |t: &str| DeviceId::parse(t).unwrap_err().to_string();
        assert_eq!(err("alice@eu"), "device id must look like alice@eu/phone (name@region/device)");
        assert_eq!(err("@eu/phone"), "user name is empty");
        assert_eq!(err("alice@eu/"), "device name is empty");
        assert_eq!(err("Alice@eu/phone"), "user name may hold only a-z 0-9 . _ - with a letter or digit first");
        assert_eq!(err("alice@1u/phone"), "region may hold only a-z 0-9 - with a letter first");
        assert_eq!(err("a@eu/p/q"), "device name may hold only a-z 0-9 . _ - with a letter or digit first");
        let long = format!("{}@eu/p", "x".repeat(33));
        assert_eq!(err(&long), "user name has 33 bytes, at most 32 are allowed");
        let whole = format!("{}@{}/{}", "x".repeat(32), "y".repeat(16), "z".repeat(32));
        assert_eq!(err(&whole), "device id has 82 bytes, at most 64 are allowed");
        for bad in [
            "eu",
            "eu:",
            "eu:01890a5d-ac96-474b-bcce-b302099a8057",
            "eu:01890A5D-AC96-774B-BCCE-B302099A8057",
            "eu:01890a5dac96774bbcceb302099a8057",
        ] {
            assert!(ChatId::parse(bad).is_err(), "{bad}");
        }
        assert!(Seq::new(0).is_err() && Seq::new(1 << 63).is_err() && "-1".parse::<Seq>().is_err());
    }

    #[test]
    fn a_direct_chat_is_the_same_from_both_sides() {
        let (a, b): (UserId, UserId) = ("alice@eu".parse().unwrap(), "bob@us".parse().unwrap());
        assert_eq!(ChatId::direct(&a, &b), ChatId::direct(&b, &a));
        assert_eq!(ChatId::direct(&a, &b).to_string(), "eu:fccf0917-0709-8ebc-a428-8816c02c1d82");
        assert!(ChatId::direct(&a, &b).is_direct());
        assert_ne!(ChatId::direct(&a, &b), ChatId::direct(&a, &"bobb@us".parse().unwrap()));
    }
}
