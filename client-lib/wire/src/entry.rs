//! One entry of a chat's log as a reader sees it, and the bounded values inside it.

use crate::blob::BlobRef;
use crate::bounded;
use crate::id::{DeviceId, MessageId, Seq, UserId};
use crate::{UnixMillis, limits};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// Opaque bytes of a message. The relay never looks inside; it may hold ciphertext.
///
/// Any length that fits a frame decodes, so that a message over [`limits::CONTENT_BYTES`] can be refused by its number.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Content(pub Bytes);

impl fmt::Debug for Content {
    /// The length only: content must never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.0.len())
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        bounded::bytes::<D, { limits::FRAME_BYTES }>(d).map(Self)
    }
}

/// What a participant may do, see the table in `relay/core/src/membership.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    Member,
    Admin,
    Owner,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChatKind {
    Group,
    Direct,
}

/// A chat's title: at most [`limits::TITLE_BYTES`] of UTF-8 without control characters. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Title(String);

impl Title {
    pub fn parse(text: impl Into<String>) -> Result<Self, TitleError> {
        let text = text.into();
        if text.len() > limits::TITLE_BYTES {
            Err(TitleError::TooLong(text.len()))
        } else if text.chars().any(char::is_control) {
            Err(TitleError::Control)
        } else {
            Ok(Self(text))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TitleError {
    #[error("title has {0} bytes, at most {max} are allowed", max = limits::TITLE_BYTES)]
    TooLong(usize),
    #[error("title may not hold control characters")]
    Control,
}

impl<'de> Deserialize<'de> for Title {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(bounded::text::<D, { limits::TITLE_BYTES }>(d)?).map_err(de::Error::custom)
    }
}

/// A participant with a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub user: UserId,
    pub role: Role,
}

/// A change of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Title(Title),
    Add(#[serde(deserialize_with = "bounded::list::<_, _, { limits::USERS_PER_CHANGE }>")] Vec<Member>),
    Remove(UserId),
    Role(Member),
    Leave,
}

/// What an entry says. New kinds are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryBody {
    Message {
        content: Content,
        #[serde(deserialize_with = "bounded::list::<_, _, { limits::BLOBS }>")]
        blobs: Vec<BlobRef>,
    },
    Created {
        kind: ChatKind,
        title: Title,
        #[serde(deserialize_with = "bounded::list::<_, _, { limits::PARTICIPANTS }>")]
        participants: Vec<Member>,
    },
    Updated(Change),
    /// Erases the content of the entry at `of`.
    Redaction {
        of: Seq,
    },
    /// What is left of a message that the entry at `by` redacted.
    Erased {
        by: Seq,
    },
}

/// An entry of a chat's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    pub seq: Seq,
    /// When the chat's home took it. Never goes back within a chat.
    pub at: UnixMillis,
    pub from: DeviceId,
    pub id: MessageId,
    pub body: Known<EntryBody>,
}

/// Which entry it is. The home of a chat that was restored from a backup may give a lost message, which its device sends
/// again under its id, the very place that it had: what is before it may be something else then, and only the time says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EntryId {
    pub id: MessageId,
    pub at: UnixMillis,
}

impl LogEntry {
    pub fn entry_id(&self) -> EntryId {
        EntryId { id: self.id, at: self.at }
    }
}

/// A value that a newer peer may extend. It travels as its own byte string, so that a reader that does not know the
/// variant still reads everything around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known<T> {
    Yes(T),
    /// Encoded by a newer version.
    No(Bytes),
}

impl<T> Known<T> {
    pub fn as_known(&self) -> Option<&T> {
        match self {
            Self::Yes(value) => Some(value),
            Self::No(_) => None,
        }
    }
}

impl<T: Serialize> Serialize for Known<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Yes(value) => s.serialize_bytes(&postcard::to_stdvec(value).map_err(serde::ser::Error::custom)?),
            Self::No(bytes) => s.serialize_bytes(bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Known<EntryBody> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Known<EntryBody>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an entry's body")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                match crate::codec::variant(bytes) {
                    Some(v) if v < ENTRY_KINDS => {
                        crate::codec::decode_all(bytes).map(Known::Yes).map_err(|_| E::custom("entry body"))
                    }
                    _ => Ok(Known::No(Bytes::copy_from_slice(bytes))),
                }
            }
        }
        d.deserialize_bytes(Visitor)
    }
}

/// How many kinds of entry this build knows.
pub(crate) const ENTRY_KINDS: u32 = 5;
