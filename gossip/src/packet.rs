//! One packet: what a relay says of itself, then SWIM's bytes. Checked as a whole before anything is believed, because
//! foca acts on the first half of a packet before it reads the second.
//!
//! `[format: u8] [preface length: u8] [preface] [foca's packet]`. Bytes after a preface's known fields are ignored.

use crate::broadcast::Item;
use crate::{Identity, Status};
use bytes::{BufMut, Bytes, BytesMut};
use foca::{Header, Member, Message};
use godwit_wire::RelayId;
use serde::{Deserialize, Serialize};

const FORMAT: u8 = 1;
/// The longest packet head: format, length, and a preface of all its fields at their longest.
pub(crate) const HEAD_BYTES: usize = 2 + 10 + 10 + 5 + 3 + 5 + 1;

/// Why a packet was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("the packet has {0} bytes, more than are allowed")]
    TooLarge(usize),
    #[error("the packet has a format of the future: {0}")]
    Format(u8),
    #[error("the packet cannot be read")]
    Malformed,
    #[error("the packet speaks for {0}, which did not send it")]
    Impostor(RelayId),
    #[error("the packet names more members than are allowed")]
    TooManyMembers,
    #[error("the packet makes no sense here: {0}")]
    Unexpected(String),
}

/// What a relay says of itself in every packet. It heals what gossip may miss, at the price of a few bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Preface {
    /// The version of its claims that everybody should have heard of by now.
    pub settled: u64,
    /// 0 while it has no status.
    pub status_version: u64,
    pub status: Status,
}

/// A packet that can be read in full and was sent by whom it says.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub preface: Preface,
    pub src: Identity,
    pub dst: Identity,
    pub members: Vec<RelayId>,
    /// foca's part.
    pub swim: &'a [u8],
}

pub(crate) fn encode(preface: &Preface, swim: &[u8]) -> Bytes {
    let body = postcard::to_allocvec(preface).expect("a preface holds only numbers");
    let mut packet = BytesMut::with_capacity(2 + body.len() + swim.len());
    packet.put_u8(FORMAT);
    packet.put_u8(u8::try_from(body.len()).expect("a preface has at most HEAD_BYTES"));
    packet.put_slice(&body);
    packet.put_slice(swim);
    packet.freeze()
}

pub(crate) fn check<'a>(packet: &'a [u8], from: &RelayId, me: &RelayId) -> Result<Checked<'a>, PacketError> {
    let [format, len, rest @ ..] = packet else { return Err(PacketError::Malformed) };
    if *format != FORMAT {
        return Err(PacketError::Format(*format));
    }
    let (preface, swim) = rest.split_at_checked(usize::from(*len)).ok_or(PacketError::Malformed)?;
    let (preface, _) = take(preface)?;
    let (header, mut rest): (Header<Identity>, _) = take(swim)?;
    if header.src.relay() != from || from == me {
        return Err(PacketError::Impostor(header.src.relay().clone()));
    }
    let third = match &header.message {
        Message::PingReq { target: third, .. }
        | Message::IndirectPing { origin: third, .. }
        | Message::IndirectAck { target: third, .. }
        | Message::ForwardedAck { origin: third, .. } => Some(third),
        _ => None,
    };
    if third.is_some_and(|third| third.relay() == me) {
        return Err(PacketError::Unexpected("it asks this relay to speak to itself".to_owned()));
    }
    let mut members = vec![header.src.relay().clone()];
    let bare = matches!(header.message, Message::Announce | Message::TurnUndead);
    if bare && !rest.is_empty() {
        return Err(PacketError::Malformed);
    }
    if !rest.is_empty() && header.message != Message::Broadcast {
        let count;
        (count, rest) = take_u16(rest)?;
        for _ in 0..count {
            let member: Member<Identity>;
            (member, rest) = take(rest)?;
            members.push(member.id().relay().clone());
        }
    }
    while !rest.is_empty() {
        let (len, after) = take_u16(rest)?;
        let item;
        (item, rest) = after.split_at_checked(len).ok_or(PacketError::Malformed)?;
        Item::decode(item).map_err(|_| PacketError::Malformed)?;
    }
    Ok(Checked { preface, src: header.src, dst: header.dst, members, swim })
}

fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), PacketError> {
    postcard::take_from_bytes(bytes).map_err(|_| PacketError::Malformed)
}

fn take_u16(bytes: &[u8]) -> Result<(usize, &[u8]), PacketError> {
    let (&len, rest) = bytes.split_first_chunk::<2>().ok_or(PacketError::Malformed)?;
    Ok((usize::from(u16::from_be_bytes(len)), rest))
}
