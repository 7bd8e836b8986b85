//! What relays say to each other. Devices never see these frames.
//!
//! Frames travel on a few lanes each way, a chat always on the same one, so what concerns a chat keeps its order. A
//! frame with a number other than 0 is a request, and its reply carries the number. What is large or slow goes on a
//! stream of its own ([`PeerAsk`]). Variants are added at the end only; a relay answers a request that it does not know
//! with [`PeerFrame::Unsupported`], and passes over a note.

use crate::store::{Base, Floor, Watermark};
use bytes::Bytes;
use godwit_core::Outcome;
use godwit_core::device::Revocation;
use godwit_gossip::{Identity, Versions};
use godwit_wire::bounded;
use godwit_wire::codec::Frame;
use godwit_wire::entry::EntryId;
use godwit_wire::frame::{Ack, Credential, EnrolRequest, Request};
use godwit_wire::{ChatId, DeviceId, Refusal, Seq, Ticket, UserId, limits};
use serde::{Deserialize, Serialize};

/// The versions of this protocol that this build speaks: the newest, and the one before it.
#[cfg(not(test))]
pub(crate) const VERSIONS: Versions = Versions { min: 1, max: 1 };
/// In tests there is one before the first.
#[cfg(test)]
pub(crate) const VERSIONS: Versions = Versions { min: 0, max: 1 };

/// Numbered requests in one frame.
pub(crate) const COMMANDS: usize = 1024;
/// Bytes of their contents in one frame; one more request may follow.
pub(crate) const COMMANDS_BYTES: usize = 512 << 10;
/// Devices named in one push.
pub(crate) const PUSHED: usize = 4096;
/// Revocations in one frame.
pub(crate) const REVOCATIONS: usize = 1024;
/// Chats in one page.
pub(crate) const SHARED: usize = 512;
/// Bytes of one frame between relays.
pub(crate) const FRAME_BYTES: usize = 2 << 20;

/// The first request on a link, each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerHello {
    pub(crate) identity: Identity,
    /// Of the store that the relay holds; none for an edge. Changes when it was restored from a backup.
    pub(crate) generation: Option<u64>,
    /// Of the end that opens the connection: rises with each that it opens. Both ends keep the latest.
    pub(crate) attempt: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PeerFrame {
    /// To a request of a kind that the relay does not know.
    Unsupported,
    Done,
    Refused(Refusal),
    /// To [`PeerFrame::Commands`], one each in their order.
    Outcomes(#[serde(deserialize_with = "bounded::list::<_, _, COMMANDS>")] Vec<Outcome>),
    /// To [`PeerFrame::Attach`].
    Attached {
        generation: u64,
    },
    /// The relay holds this device's connection, and may act for it. Answered once; good until the ticket or the link
    /// ends.
    Authorize {
        #[serde(deserialize_with = "bounded::list::<_, _, 4>")]
        certificate: Vec<Credential>,
        ticket: Ticket,
    },
    /// The device is connected here under this epoch: send it what comes, and what it missed.
    Attach {
        device: DeviceId,
        epoch: u64,
        /// It was attached before on the same connection: an older one than any that was not.
        again: bool,
    },
    /// It is not any more.
    Detach {
        device: DeviceId,
        epoch: u64,
    },
    /// A device's numbered requests, in its order.
    Commands {
        device: DeviceId,
        #[serde(deserialize_with = "bounded::list::<_, _, COMMANDS>")]
        requests: Vec<Request>,
    },
    /// What the device took on the connection of this epoch.
    Acks {
        device: DeviceId,
        epoch: u64,
        #[serde(deserialize_with = "bounded::list::<_, _, { limits::ACKS }>")]
        acks: Vec<Ack>,
    },
    /// An event for devices that are connected to the relay which gets this.
    Push {
        #[serde(deserialize_with = "bounded::list::<_, _, PUSHED>")]
        devices: Vec<DeviceId>,
        chat: ChatId,
        /// A frame as devices get it, with its length.
        #[serde(deserialize_with = "bounded::bytes::<_, { limits::FRAME_BYTES + 4 }>")]
        event: Bytes,
    },
    /// The device's connection is to be ended: of the epoch named, or, without one, of every enrolment up to this.
    Close {
        device: DeviceId,
        epoch: Option<u64>,
        enrolment: u32,
        refusal: Refusal,
    },
    /// An event for all devices of these users that are connected to the relay which gets this, but for one.
    PushUsers {
        #[serde(deserialize_with = "bounded::list::<_, _, PUSHED>")]
        users: Vec<UserId>,
        except: Option<DeviceId>,
        chat: ChatId,
        /// A frame as devices get it, with its length.
        #[serde(deserialize_with = "bounded::bytes::<_, { limits::FRAME_BYTES + 4 }>")]
        event: Bytes,
    },
    /// The next entries of a chat, from its home to the home of some of its participants.
    Replicate {
        chat: ChatId,
        /// The chat as it is, for a region that takes part anew with the first of the entries.
        base: Option<Base>,
        /// Stored records.
        #[serde(deserialize_with = "bounded::list::<_, _, COMMANDS>")]
        entries: Vec<Bytes>,
    },
    /// Entries up to there are durable at the home of the participants.
    Replicated(#[serde(deserialize_with = "bounded::list::<_, _, { limits::ACKS }>")] Vec<Ack>),
    /// What came does not follow what is there. Answered once it is taken up, if that is asked for.
    Lacks {
        chat: ChatId,
        have: Option<Seq>,
    },
    /// How far users got in a chat, from their home to the chat's. Answered once it is taken up.
    Reached {
        chat: ChatId,
        #[serde(deserialize_with = "bounded::list::<_, _, { limits::PARTICIPANTS }>")]
        marks: Vec<(UserId, Watermark)>,
    },
    /// How far everybody got in a chat, from its home. Answered once it is taken up.
    Floors {
        chat: ChatId,
        delivered: Option<Floor>,
        read: Option<Floor>,
    },
    /// Enrolments that are shut out, as a home says, or the store of the region to its edges. Answered once they are.
    Revoked(#[serde(deserialize_with = "bounded::list::<_, _, REVOCATIONS>")] Vec<Revocation>),
    /// Between relays that share a store: a device was enrolled. Answered once its user's entries are for it as well.
    Enrolled {
        device: DeviceId,
        enrolment: u32,
    },
}

impl Frame for PeerFrame {
    const KINDS: u32 = 20;
    const LIMIT: usize = FRAME_BYTES;
}

impl PeerFrame {
    pub(crate) fn is_reply(&self) -> bool {
        matches!(self, Self::Unsupported | Self::Done | Self::Refused(_) | Self::Outcomes(_) | Self::Attached { .. })
    }
}

/// A request on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PeerAsk {
    Hello(PeerHello),
    /// A device's request that is not numbered. Answered with a device's reply.
    Device {
        device: DeviceId,
        request: Request,
    },
    /// Answered with a device's reply.
    Enrol(EnrolRequest),
    /// The claims of the relay that is asked. Answered with pages.
    Claims {
        epoch: u64,
        since: u64,
    },
    /// Which of these users, whose home the relay that is asked holds, do not exist. Answered with a page.
    Missing(#[serde(deserialize_with = "bounded::list::<_, _, { limits::USERS_PER_CHANGE }>")] Vec<UserId>),
    /// The chats at home with the relay that is asked in which users of the asking region take part, after this one.
    /// Answered with a page, which is empty at the end.
    Shared {
        after: Option<ChatId>,
    },
    /// Which entries these are, in such chats. Answered with a page.
    Ids(#[serde(deserialize_with = "bounded::list::<_, _, SHARED>")] Vec<(ChatId, Seq)>),
}

impl Frame for PeerAsk {
    const KINDS: u32 = 7;
}

/// The answer to a [`PeerAsk::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PeerWelcome {
    Hello(PeerHello),
    Refused(Refusal),
}

impl Frame for PeerWelcome {
    const KINDS: u32 = 2;
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PeerPage {
    Claims(godwit_gossip::ClaimsPage),
    Missing(#[serde(deserialize_with = "bounded::list::<_, _, { limits::USERS_PER_CHANGE }>")] Vec<UserId>),
    Refused(Refusal),
    /// Each with the last entry for the region that asks.
    Shared(#[serde(deserialize_with = "bounded::list::<_, _, SHARED>")] Vec<(ChatId, Seq)>),
    Ids(#[serde(deserialize_with = "bounded::list::<_, _, SHARED>")] Vec<Option<EntryId>>),
}

impl Frame for PeerPage {
    const KINDS: u32 = 5;
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_wire::codec::{self, Decoded};

    fn sample() -> Vec<PeerFrame> {
        let device: DeviceId = "alice@eu/phone".parse().unwrap();
        let chat = ChatId::direct(&"alice@eu".parse().unwrap(), &"bob@us".parse().unwrap());
        let refusal = Refusal::from(godwit_wire::Code::Revoked);
        let ticket = Ticket { expires: godwit_wire::UnixMillis(5), signature: Bytes::from_static(&[7; 64]) };
        vec![
            PeerFrame::Unsupported,
            PeerFrame::Done,
            PeerFrame::Refused(refusal.clone()),
            PeerFrame::Outcomes(vec![Outcome::Refused(refusal.clone())]),
            PeerFrame::Attached { generation: 3 },
            PeerFrame::Authorize { certificate: vec![Credential(Bytes::from_static(b"leaf"))], ticket },
            PeerFrame::Attach { device: device.clone(), epoch: 1, again: false },
            PeerFrame::Detach { device: device.clone(), epoch: 1 },
            PeerFrame::Commands { device: device.clone(), requests: vec![Request::GetChat { chat: chat.clone() }] },
            PeerFrame::Acks {
                device: device.clone(),
                epoch: 1,
                acks: vec![Ack { chat: chat.clone(), up_to: Seq::FIRST }],
            },
            PeerFrame::Push { devices: vec![device.clone()], chat: chat.clone(), event: Bytes::from_static(b"event") },
            PeerFrame::Close { device: device.clone(), epoch: None, enrolment: 1, refusal },
            PeerFrame::PushUsers {
                users: vec![device.user()],
                except: Some(device.clone()),
                chat: chat.clone(),
                event: Bytes::from_static(b"event"),
            },
            PeerFrame::Replicate { chat: chat.clone(), base: None, entries: vec![Bytes::from_static(b"record")] },
            PeerFrame::Replicated(vec![Ack { chat: chat.clone(), up_to: Seq::FIRST }]),
            PeerFrame::Lacks { chat: chat.clone(), have: None },
            PeerFrame::Reached { chat: chat.clone(), marks: vec![(device.user(), Watermark::default())] },
            PeerFrame::Floors { chat, delivered: None, read: None },
            PeerFrame::Revoked(vec![Revocation {
                device: device.clone(),
                enrolment: 2,
                why: godwit_wire::Code::Revoked,
                at: godwit_wire::UnixMillis(5),
            }]),
            PeerFrame::Enrolled { device, enrolment: 2 },
        ]
    }

    #[test]
    fn every_frame_comes_back_and_none_is_forgotten() {
        for (kind, frame) in sample().into_iter().enumerate() {
            let mut bytes = Vec::new();
            codec::encode_numbered(9, &frame, &mut bytes).unwrap();
            // Number, then the variant: a position that never changes.
            assert_eq!(usize::from(bytes[5]), kind);
            assert_eq!(codec::decode_numbered(&bytes[4..]), Ok((9, Decoded::Frame(frame))));
        }
        assert_eq!(sample().len(), PeerFrame::KINDS as usize);
    }

    #[test]
    fn damaged_frames_never_panic() {
        for frame in sample() {
            let mut bytes = Vec::new();
            codec::encode_numbered(9, &frame, &mut bytes).unwrap();
            for at in 4..bytes.len() {
                for with in [0, 1, 0x7f, 0xff] {
                    let mut damaged = bytes.clone();
                    damaged[at] = with;
                    // What it reads as does not matter.
                    let _ = codec::decode_numbered::<PeerFrame>(&damaged[4..]);
                    let _ = codec::decode_numbered::<PeerAsk>(&damaged[4..]);
                    let _ = codec::decode_numbered::<PeerFrame>(&damaged[4..at]);
                }
            }
        }
    }
}
