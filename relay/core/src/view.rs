//! What a rule may read, and what was decided before.

use crate::blob::Blob;
use crate::chat::Chat;
use crate::entry::Entry;
use crate::number::Mark;
use godwit_wire::blob::BlobRef;
use godwit_wire::{MessageId, Refusal, Seq, UnixMillis, UserId};
use serde::{Deserialize, Serialize};

/// What a rule may read. One view serves one command.
pub trait View {
    /// The world failed while reading; nothing was decided.
    type Fault;
    fn chat(&self) -> Option<&Chat>;
    fn mark(&self) -> &Mark;
    /// What a number up to the mark was decided to be. None if its trace is gone.
    fn decided(&self, n: u64) -> Result<Option<Decided>, Self::Fault>;
    /// Where the device's message with this id stands, if it was sent under another enrolment.
    fn sent_before(&self, id: MessageId) -> Result<Option<(Seq, UnixMillis)>, Self::Fault>;
    fn entry(&self, seq: Seq) -> Result<Option<Entry>, Self::Fault>;
    /// A blob that is to be referred to, as far as it is here, and whether the sender may refer to it by itself.
    fn blob(&self, named: &BlobRef) -> Result<(Option<Blob>, bool), Self::Fault>;
    /// Whether the user was ever enrolled, as far as this relay can know.
    fn user_exists(&self, user: &UserId) -> Result<bool, Self::Fault>;
}

/// A number's outcome, as it was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub id: MessageId,
    pub outcome: Outcome,
}

/// The answer to a command. It also travels between relays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Sent { seq: Seq, at: UnixMillis },
    Refused(Refusal),
}
