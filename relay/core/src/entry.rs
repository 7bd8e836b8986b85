//! The record of a chat's log, and its bytes.

use crate::number::Link;
use godwit_wire::entry::{EntryBody, Known, LogEntry};
use godwit_wire::{DeviceId, MessageId, Seq, UnixMillis};
use serde::{Deserialize, Serialize};

/// One entry of a chat's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub seq: Seq,
    /// Never goes back within a chat.
    pub at: UnixMillis,
    pub from: DeviceId,
    pub enrolment: u32,
    /// The device's number of this entry.
    pub n: u64,
    pub id: MessageId,
    /// The entry that the same device and enrolment sent before this one.
    pub previous: Option<Link>,
    /// Content bytes of the chat up to and with this entry, so that the size of any stretch is one subtraction.
    pub total_bytes: u64,
    pub body: EntryBody,
}

/// Why stored bytes are not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record of format {0}, which a newer version wrote")]
    Newer(u8),
    #[error("a record that cannot be read")]
    Corrupt,
}

/// The first byte of every stored record.
const FORMAT: u8 = 1;

/// The bytes of a stored record: a format number and postcard.
pub fn encode_record(record: &impl Serialize) -> Vec<u8> {
    let start = vec![FORMAT];
    postcard::to_extend(record, start).expect("a record holds nothing that postcard refuses")
}

pub fn decode_record<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, RecordError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((record, [])) => Ok(record),
            _ => Err(RecordError::Corrupt),
        },
        Some((&newer, _)) if newer > FORMAT => Err(RecordError::Newer(newer)),
        _ => Err(RecordError::Corrupt),
    }
}

impl Entry {
    /// The entry as a reader gets it.
    pub fn to_wire(&self) -> LogEntry {
        LogEntry {
            seq: self.seq,
            at: self.at,
            from: self.from.clone(),
            id: self.id,
            body: Known::Yes(self.body.clone()),
        }
    }

    pub fn content_bytes(body: &EntryBody) -> u64 {
        match body {
            EntryBody::Message { content, .. } => content.0.len() as u64,
            _ => 0,
        }
    }

    /// What is left of this entry once the entry at `by` redacted it. The size stays in the chat's total.
    pub fn erased(self, by: Seq) -> Self {
        Self { body: EntryBody::Erased { by }, ..self }
    }
}
