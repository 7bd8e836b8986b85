//! The rules of chats and devices: pure, without clock, socket, randomness or `async`.
//!
//! A [`Command`] reads a chat through a [`View`] and [`decide`]s what is appended to its log, if anything;
//! [`Chat::apply`] says which other records follow. An engine (`relay/src/store`) runs commands and keeps records; it
//! never decides. The log is the truth of a chat, everything else a projection of it.
//!
//! - [`command`]: the one way in, and the numbering rule's place in it
//! - [`chat`]: a chat's state, who may do what, membership changes
//! - [`message`]: sending and redacting
//! - [`number`]: what a device's number means, so that a retry is the same message
//! - [`participant`]: the intervals of seq in which a user belongs
//! - [`entry`]: the record of the log
//! - [`device`]: enrolment, renewal, revocation
//! - [`inbox`]: what one device has taken of one chat

pub mod chat;
pub mod command;
pub mod device;
pub mod entry;
pub mod inbox;
pub mod message;
pub mod number;
pub mod participant;
#[cfg(test)]
mod tests;

pub use chat::{Applied, Chat, Projection};
pub use command::{Action, Command, Decided, Decision, Outcome, Sender, View, decide};
pub use device::Device;
pub use entry::Entry;
pub use number::{Link, Mark};
pub use participant::Participant;
