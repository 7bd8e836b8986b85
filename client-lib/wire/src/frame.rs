//! What a device and a relay say to each other.
//!
//! Variants are added at the end only: postcard writes a variant as its position, and [`tests`](self) hold the bytes
//! of every frame. A numbered request ([`CreateChat`], [`UpdateChat`], [`SendMessage`], [`Redact`]) carries a
//! [`Stamp`], which makes a retry the same request.

use crate::blob::{BlobHash, BlobRef, Manifest};
use crate::bounded;
use crate::code::Refusal;
use crate::entry::{Change, ChatKind, Content, LogEntry, Member, Role, Title};
use crate::id::{ChatId, MessageId, RelayId, Seq};
pub use crate::options::Options;
use crate::{UnixMillis, limits};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Names a numbered request: the same stamp is the same request, however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub chat: ChatId,
    /// The device's number in this chat: 1, 2, 3 … anew for each enrolment. Decided strictly in order.
    pub n: u64,
    /// The lowest number that the device still waits for; it has heard the outcome of all below.
    pub oldest: u64,
    /// Made by the device, kept over retries and renumbering.
    pub id: MessageId,
    /// The id under `n − 1`, if the device knows it: a device that was restored from a backup is found out before it
    /// sends out of order.
    pub previous: Option<MessageId>,
}

/// The first request on a connection. Nothing else is answered before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Name and version of the client, for logs and metrics. At most 64 bytes.
    #[serde(deserialize_with = "bounded::text::<_, 64>")]
    pub client: String,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateChat {
    pub stamp: Stamp,
    pub kind: ChatKind,
    pub title: Title,
    /// Everyone but the sender. A direct chat has exactly one.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::USERS_PER_CHANGE }>")]
    pub participants: Vec<Member>,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateChat {
    pub stamp: Stamp,
    pub change: Change,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendMessage {
    pub stamp: Stamp,
    pub content: Content,
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::BLOBS }>")]
    pub blobs: Vec<BlobRef>,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redact {
    pub stamp: Stamp,
    pub of: Seq,
    pub options: Options,
}

/// "Everything up to `up_to` in `chat` is in my own store."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub chat: ChatId,
    pub up_to: Seq,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListChats {
    /// Chats after this one in the order of their ids; from the start if none.
    pub after: Option<ChatId>,
    /// At most [`limits::PAGE_ENTRIES`].
    pub limit: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Range {
    /// The newest entries below this one; the newest of all if none.
    Before(Option<Seq>),
    /// The oldest entries from this one on.
    From(Seq),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub chat: ChatId,
    pub range: Range,
    /// At most [`limits::PAGE_ENTRIES`].
    pub limit: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Hello(Hello),
    CreateChat(CreateChat),
    UpdateChat(UpdateChat),
    SendMessage(SendMessage),
    Redact(Redact),
    Ack(#[serde(deserialize_with = "bounded::list::<_, _, { limits::ACKS }>")] Vec<Ack>),
    ListChats(ListChats),
    GetChat {
        chat: ChatId,
    },
    History(History),
    MarkRead {
        chat: ChatId,
        up_to: Seq,
    },
    /// A new certificate for the same device and enrolment, before the present one expires.
    Renew {
        #[serde(deserialize_with = "bounded::bytes::<_, { limits::CREDENTIAL_BYTES }>")]
        csr: Bytes,
    },
    /// A blob is to be stored where `chat` is at home, for a message to it. Answered with [`Reply::BlobState`]; asked again
    /// once all parts are there, to hear that it is stored.
    BeginBlob {
        chat: ChatId,
        blob: Manifest,
    },
    /// The first request of a lane of its own. The part's bytes from `from` on follow the frame, as they are, and the lane's
    /// end. `from` is 0, or what the latest [`BlobState::Missing`] says.
    PutPart {
        chat: ChatId,
        hash: BlobHash,
        part: u32,
        from: u64,
    },
    /// The first request of a lane of its own: so many bytes of a blob that the message at `seq` refers to. They follow the
    /// frame of [`Reply::BlobBytes`], as they are, and the lane's end.
    FetchBlob {
        chat: ChatId,
        seq: Seq,
        hash: BlobHash,
        from: u64,
        len: u64,
        /// [`Reply::BlobUrl`] will do, too.
        url: bool,
    },
    /// What the parts of a blob are that the message at `seq` refers to. Answered with [`Reply::BlobManifest`].
    GetManifest {
        chat: ChatId,
        seq: Seq,
        hash: BlobHash,
    },
    /// The blob of the message at `seq` is to be referred to in `to`, which may have another home. Answered with
    /// [`Reply::Done`] once it is stored there.
    CopyBlob {
        chat: ChatId,
        seq: Seq,
        hash: BlobHash,
        to: ChatId,
    },
    /// Where a part can be brought by HTTP PUT. Answered with [`Reply::BlobUrl`]; refused with [`crate::Code::NotHere`] where
    /// parts come on lanes only. What was brought is noticed when [`Request::BeginBlob`] asks again.
    PartUrl {
        chat: ChatId,
        hash: BlobHash,
        part: u32,
    },
}

impl Request {
    pub(crate) const VARIANTS: u32 = 17;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub relay: RelayId,
    pub now: UnixMillis,
    /// Changes when the home's store was restored from a backup; clients then compare what they have.
    /// [`Welcome::UNKNOWN_GENERATION`] says nothing.
    pub store_generation: u64,
    /// When the certificate of this connection expires.
    pub certificate_expires: UnixMillis,
    /// Addresses of other relays that can be used.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::ADDRESSES }>")]
    pub relays: Vec<Address>,
}

impl Welcome {
    /// The home is out of reach, and its store's generation not known.
    pub const UNKNOWN_GENERATION: u64 = 0;
}

/// `host:port`, at most 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address(#[serde(deserialize_with = "bounded::text::<_, 256>")] pub String);

/// A chat as one of its participants, past or present, sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatSummary {
    pub chat: ChatId,
    pub kind: ChatKind,
    pub title: Title,
    /// None after leaving.
    pub role: Option<Role>,
    /// The last entry this user may see.
    pub head: Seq,
    /// The first entry that will be delivered to this device by itself; what lies before is history.
    pub next: Seq,
    pub receipt: Receipt,
}

/// How far a chat got on its way to everybody but the user who is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Every other participant has a device that took everything up to here.
    pub delivered: Option<Seq>,
    /// Every other participant has read up to here.
    pub read: Option<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatList {
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::PAGE_ENTRIES }>")]
    pub chats: Vec<ChatSummary>,
    /// There are chats after the last one.
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatInfo {
    pub summary: ChatSummary,
    /// Present participants; empty for a user who has left.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::PARTICIPANTS }>")]
    pub participants: Vec<Member>,
}

/// Entries from `from` to `to`, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeqRange {
    pub from: Seq,
    pub to: Seq,
}

/// A page of history, ascending. Together `entries` and `hidden` cover every seq from the first to the last of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPage {
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::PAGE_ENTRIES }>")]
    pub entries: Vec<LogEntry>,
    /// What this reader may not see: before joining, between leaving and joining again.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::RANGES }>")]
    pub hidden: Vec<SeqRange>,
    /// The last entry this user may see.
    pub head: Seq,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Welcome(Welcome),
    /// Durable in the chat's log.
    Sent {
        seq: Seq,
        at: UnixMillis,
    },
    /// Durable at the edge, the home being out of reach. `Sent` follows without the client's help.
    Queued,
    Refused(Refusal),
    Done,
    ChatList(ChatList),
    ChatInfo(ChatInfo),
    HistoryPage(HistoryPage),
    /// A certificate chain, leaf first, DER.
    Certificate(#[serde(deserialize_with = "bounded::list::<_, _, 4>")] Vec<Credential>),
    /// The relay does not know this kind of request.
    Unsupported {
        variant: u32,
    },
    /// To a hello: the relay is full, busy or draining. Connect to one of `relays`, the best first, saying that this
    /// relay sent you ([`Options::sent_here`]); if none can be reached, come back.
    Elsewhere {
        reason: Refusal,
        #[serde(deserialize_with = "bounded::list::<_, _, { limits::ADDRESSES }>")]
        relays: Vec<Address>,
    },
    /// How far a blob is stored.
    BlobState(BlobState),
    /// The rest of the lane are so many bytes of a blob.
    BlobBytes {
        len: u64,
    },
    BlobManifest(Manifest),
    /// Where a blob can be had by HTTP GET, in ranges, or a part brought, until `expires`, without any further proof: a
    /// secret.
    BlobUrl(BlobUrl),
}

impl Reply {
    pub(crate) const VARIANTS: u32 = 15;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobState {
    /// Whole: messages of this user may refer to it.
    Stored,
    /// These parts are missing.
    Missing(#[serde(deserialize_with = "bounded::list::<_, _, { limits::BLOB_PARTS }>")] Vec<MissingPart>),
}

/// A part that is not stored yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPart {
    pub part: u32,
    /// Bytes of it that came already from this device, and that the relay has for the time being.
    pub has: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobUrl {
    #[serde(deserialize_with = "bounded::text::<_, { limits::URL_BYTES }>")]
    pub url: String,
    /// What the request must say.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::URL_HEADERS }>")]
    pub headers: Vec<Header>,
    pub expires: UnixMillis,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    #[serde(deserialize_with = "bounded::text::<_, { limits::HEADER_BYTES }>")]
    pub name: String,
    #[serde(deserialize_with = "bounded::text::<_, { limits::HEADER_BYTES }>")]
    pub value: String,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BlobUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobUrl").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// One certificate, DER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential(#[serde(deserialize_with = "bounded::bytes::<_, { limits::CREDENTIAL_BYTES }>")] pub Bytes);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A new entry. Delivered at least once; the device drops doubles by (chat, seq).
    Entry {
        chat: ChatId,
        entry: LogEntry,
    },
    /// These entries exist and this user may not see them.
    Hidden {
        chat: ChatId,
        range: SeqRange,
    },
    /// Over an inbox limit: these entries are not pushed. They are in the log, for `History` to page.
    Gap {
        chat: ChatId,
        range: SeqRange,
    },
    Receipt {
        chat: ChatId,
        receipt: Receipt,
    },
    /// The relay will close this connection; connect elsewhere first if `relays` names one.
    GoAway {
        reason: Refusal,
        #[serde(deserialize_with = "bounded::list::<_, _, { limits::ADDRESSES }>")]
        relays: Vec<Address>,
    },
    /// The user's home was out of this relay's reach for a while. Entries come by themselves; receipts may have been
    /// missed, and can be asked for with `GetChat`.
    Resumed,
}

impl Event {
    pub(crate) const VARIANTS: u32 = 6;
}

/// The only request of an enrolment connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolRequest {
    Enrol {
        /// JWT, see `certs/src/token.rs`.
        #[serde(deserialize_with = "bounded::text::<_, { limits::CREDENTIAL_BYTES }>")]
        token: String,
        /// PKCS #10, DER.
        #[serde(deserialize_with = "bounded::bytes::<_, { limits::CREDENTIAL_BYTES }>")]
        csr: Bytes,
    },
}

impl EnrolRequest {
    pub(crate) const VARIANTS: u32 = 1;
}
