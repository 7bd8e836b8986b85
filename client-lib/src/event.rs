//! What an app hears.

use crate::content::Content;
use godwit_wire::entry::{Change, ChatKind, Member, Title};
use godwit_wire::frame::{Receipt, SeqRange};
use godwit_wire::{ChatId, DeviceId, MessageId, Refusal, Seq, UnixMillis};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Something that happened. Those of one chat come in the order of their seq, each once; what this device did itself
/// is not told again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    MessageReceived {
        chat: ChatId,
        message: Message,
    },
    /// The user is in a chat that this device did not have: newly created, or the user was added to it.
    ChatCreated {
        chat: ChatId,
        origin: Origin,
        kind: ChatKind,
        title: Title,
        participants: Vec<Member>,
    },
    ChatUpdated {
        chat: ChatId,
        origin: Origin,
        change: Change,
    },
    /// The content at `of` is gone, here too.
    Redacted {
        chat: ChatId,
        origin: Origin,
        of: Seq,
    },
    ReceiptUpdated {
        chat: ChatId,
        receipt: Receipt,
    },
    /// The device was away for so long that the relay does not push these; [`crate::Client::history`] has them.
    HistoryGap {
        chat: ChatId,
        range: SeqRange,
    },
    /// Told as it happens and not kept: it has no id.
    ConnectionChanged(ConnectionState),
}

/// Which entry an event comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub seq: Seq,
    pub from: DeviceId,
    pub at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub seq: Seq,
    pub from: DeviceId,
    pub at: UnixMillis,
    pub id: MessageId,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionState {
    Connecting,
    /// To this relay.
    Connected(String),
    /// Tries again by itself.
    Offline(String),
    /// The device is not let in, and trying again does not help.
    Refused(Refusal),
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Connected(relay) => write!(f, "connected to {relay}"),
            Self::Offline(why) => write!(f, "offline: {why}"),
            Self::Refused(refusal) => write!(f, "not let in: {refusal}"),
        }
    }
}

/// How far a message of one's own got. Each state includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageState {
    /// In this device's outbox.
    Pending,
    /// Durable at an edge; becomes sent by itself.
    Queued,
    /// Durable in the chat's log at its home.
    Sent,
    /// A device of every other participant has taken it.
    Delivered,
    /// Every other participant has read it.
    Read,
}

/// An event with its place in the device's own order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// None for an event that is not kept.
    pub id: Option<i64>,
    pub event: Event,
}
