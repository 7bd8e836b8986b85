//! Room in requests for what was not known when their bytes were fixed: a list of tagged values.
//!
//! A reader takes the tags it knows and passes over the others, so a newer client may say more to an older relay.

use crate::time::UnixMillis;
use crate::{bounded, limits};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

const TICKET: u8 = 1;
const SENT_HERE: u8 = 2;
const GENERATION: u8 = 3;
/// An expiry, 8 bytes little-endian, and a signature.
const TICKET_BYTES: u8 = 8 + 64;
/// Bytes of an Ed25519 signature (RFC 8032).
pub const SIGNATURE_BYTES: usize = 64;

/// Values by tag, at most [`limits::OPTIONS_BYTES`] in all: a tag, a length, and that many bytes, again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options(#[serde(deserialize_with = "bounded::bytes::<_, { limits::OPTIONS_BYTES }>")] Bytes);

/// A device's word that one relay may act for it at other relays: send, acknowledge, claim. What is signed is said in
/// `certs/src/ticket.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    pub expires: UnixMillis,
    #[serde(deserialize_with = "bounded::bytes::<_, SIGNATURE_BYTES>")]
    pub signature: Bytes,
}

impl Options {
    pub fn with_ticket(ticket: &Ticket) -> Self {
        let mut bytes = vec![TICKET, TICKET_BYTES];
        bytes.extend_from_slice(&ticket.expires.0.to_le_bytes());
        bytes.extend_from_slice(&ticket.signature);
        Self(bytes.into())
    }

    /// The same, of a hello to a relay that another one named in [`Reply::Elsewhere`](crate::frame::Reply::Elsewhere):
    /// a relay that is merely busy does not send the device on again.
    #[must_use]
    pub fn sent_here(self) -> Self {
        Self([&self.0, &[SENT_HERE, 0][..]].concat().into())
    }

    pub fn is_sent_here(&self) -> bool {
        self.value(SENT_HERE).is_some()
    }

    /// The same, with the generation of the home's store that the device saw last: it is told if that is another by
    /// now, also where the relay could not ask the home at once.
    #[must_use]
    pub fn with_generation(self, generation: u64) -> Self {
        Self([&self.0[..], &[GENERATION, 8], &generation.to_le_bytes()].concat().into())
    }

    pub fn generation(&self) -> Option<u64> {
        Some(u64::from_le_bytes(self.value(GENERATION)?.try_into().ok()?))
    }

    /// The ticket among the options, if there is a whole one.
    pub fn ticket(&self) -> Option<Ticket> {
        let value = self.value(TICKET)?;
        let (expires, signature) = value.split_first_chunk()?;
        let expires = UnixMillis(u64::from_le_bytes(*expires));
        (signature.len() == SIGNATURE_BYTES).then(|| Ticket { expires, signature: self.0.slice_ref(signature) })
    }

    fn value(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest: &[u8] = &self.0;
        while let [tag, len, after @ ..] = rest {
            let (value, next) = after.split_at_checked(usize::from(*len))?;
            if *tag == wanted {
                return Some(value);
            }
            rest = next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_found_among_unknown_options() {
        let ticket = Ticket { expires: UnixMillis(77), signature: Bytes::from(vec![5; SIGNATURE_BYTES]) };
        let options = Options::with_ticket(&ticket);
        assert_eq!(options.ticket(), Some(ticket.clone()));
        let newer = [&[9, 2, 1, 1][..], &options.0, &[200, 0]].concat();
        assert_eq!(Options(newer.into()).ticket(), Some(ticket));
        for cut in 0..options.0.len() {
            assert_eq!(Options(options.0.slice(..cut)).ticket(), None);
        }
        assert_eq!(Options::default().ticket(), None);
        assert!(!options.is_sent_here());
        let sent = options.sent_here();
        assert!(sent.is_sent_here() && sent.ticket().is_some());
        assert_eq!((sent.generation(), sent.with_generation(u64::MAX).generation()), (None, Some(u64::MAX)));
    }
}
