//! The protocol as values: what a device and a relay say to each other, and how it looks as bytes.
//!
//! This crate knows no sockets and no runtime. Everything that comes from outside is parsed here, once: an id that
//! exists is well-formed, a frame that decoded is within its limits, and arbitrary bytes neither panic nor allocate
//! more than [`codec::MAX_FRAME`].
//!
//! - [`id`]: users, devices, regions, relays, chats, positions in a chat
//! - [`frame`]: requests, replies and events
//! - [`options`]: room in requests for what came later, such as tickets
//! - [`entry`]: one entry of a chat's log as a reader sees it
//! - [`blob`]: the bytes of attachments, their parts and their names
//! - [`code`]: refusals, with codes that are never renumbered
//! - [`bounded`]: deserializers that stop at a limit
//! - [`codec`]: length prefix, limits, postcard

pub mod blob;
pub mod bounded;
pub mod code;
pub mod codec;
pub mod entry;
pub mod frame;
pub mod id;
pub mod limits;
pub mod options;
#[cfg(test)]
mod tests;
mod time;

pub use code::{Code, Refusal};
pub use id::{ChatId, DeviceId, MessageId, RegionId, RelayId, Seq, UserId};
pub use options::Ticket;
pub use time::{Clock, UnixMillis};

/// The ALPN of device sessions. The number is the protocol's major version.
pub const ALPN_DEVICE: &[u8] = b"godwit/1";
/// The ALPN of enrolment, which can do nothing else.
pub const ALPN_ENROL: &[u8] = b"godwit-enrol/1";
/// The DNS name in every relay's certificate. A relay is known by its URI; this name only satisfies TLS.
pub const RELAY_SERVER_NAME: &str = "godwit-relay";

/// Feeds arbitrary bytes to every decoder, as a hostile peer would. For fuzzing; what decodes must encode again.
#[doc(hidden)]
pub fn check_arbitrary(bytes: &[u8]) {
    fn again<T: codec::Frame>(bytes: &[u8]) {
        if let Ok((number, codec::Decoded::Frame(frame))) = codec::decode_numbered::<T>(bytes) {
            codec::encode_numbered(number, &frame, &mut Vec::new()).expect("what fitted a frame fits it again");
        }
    }
    let mut reader = codec::FrameReader::default();
    reader.push(bytes);
    while let Ok(Some(frame)) = reader.next_frame() {
        again::<frame::Request>(&frame);
        again::<frame::Reply>(&frame);
    }
    again::<frame::Request>(bytes);
    again::<frame::Reply>(bytes);
    again::<frame::EnrolRequest>(bytes);
    if let Ok(codec::Decoded::Frame(event)) = codec::decode_event(bytes) {
        codec::encode_event(&event, &mut Vec::new()).expect("what fitted a frame fits it again");
    }
}
