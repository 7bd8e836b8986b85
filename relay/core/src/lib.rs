//! The rules of chats and devices: pure, without clock, socket, randomness or `async`.
//!
//! A [`Command`] reads a chat through a [`View`] and [`decide`]s what is appended to its log, if anything;
//! [`Chat::apply`] says which other records follow. An engine (`relay/src/store`) runs commands and keeps records; it
//! never decides. The log is the truth of a chat, everything else a projection of it.
//!
//! - [`command`]: a numbered request
//! - [`mod@decide`]: the one way in, and the numbering rule's place in it
//! - [`view`]: what a rule may read
//! - [`chat`]: a chat's state, and what follows from each entry
//! - [`membership`]: who may do what, and changes of membership
//! - [`message`]: sending and redacting
//! - [`blob`]: what is stored of attachments, and for whom
//! - [`number`]: what a device's number means, so that a retry is the same message
//! - [`participant`]: the intervals of seq in which a user belongs
//! - [`entry`]: the record of the log
//! - [`device`]: enrolment, renewal, revocation
//! - [`inbox`]: what one device has taken of one chat
//! - [`sabotage`]: deliberate faults, for tests; none without its feature

pub mod blob;
pub mod chat;
pub mod command;
pub mod decide;
pub mod device;
pub mod entry;
pub mod inbox;
pub mod membership;
pub mod message;
pub mod number;
pub mod participant;
pub mod sabotage;
#[cfg(test)]
mod tests;
pub mod view;

pub use chat::{Applied, Chat, Projection};
pub use command::{Action, Command, Sender};
pub use decide::{Decision, decide};
pub use device::Device;
pub use entry::Entry;
pub use number::{Link, Mark};
pub use participant::Participant;
pub use view::{Decided, Outcome, View};
