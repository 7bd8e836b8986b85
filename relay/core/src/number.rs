//! The numbering rule: a device numbers its requests in a chat 1, 2, 3 …, anew for each enrolment, and what a number
//! means never changes once it was decided.
//!
//! The home decides `n` right after `n − 1`. It decides a later one only when the device says that it waits for
//! nothing below (`oldest == n`): then all below were decided once, and only a home that lost its memory, or a refusal
//! that could leave no trace, can stand below. A number that was decided is answered with what was decided.
//!
//! A device that is enrolled anew counts from 1, and begins with what it does not know to be sent. Its ids stay, and the home
//! answers those that it has with where they stand.
//!
//! A stamp also names the id under `n − 1`. A phone that was restored from a backup numbers new messages as its lost
//! future self did; the chain shows it at the first of them, so none overtakes another.

use crate::sabotage::{self, Sabotage};
use godwit_wire::frame::Stamp;
use godwit_wire::{Code, MessageId, Refusal, Seq};
use serde::{Deserialize, Serialize};

/// Numbers lie in `1..=MAX`.
pub const MAX: u64 = i64::MAX as u64;

/// An entry of a device: its number and where it stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub n: u64,
    pub seq: Seq,
}

/// How far the numbers of one device and enrolment are decided in one chat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The last number decided; 0 before the first.
    pub n: u64,
    /// The id under it; none before the first.
    pub id: Option<MessageId>,
    /// The last entry; lower than `n` if voids follow it.
    pub last: Option<Link>,
}

impl Mark {
    pub fn next(&self) -> u64 {
        self.n + 1
    }
}

/// A number that was decided to be nothing: the durable record of a lasting refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Void {
    pub id: MessageId,
    pub refusal: Refusal,
}

/// Where a stamp stands against the mark.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// To be decided now.
    New,
    /// Decided before.
    Old,
    Refused(Refusal),
}

pub(crate) fn standing(mark: &Mark, stamp: &Stamp) -> Standing {
    if !(1..=MAX).contains(&stamp.n) || stamp.oldest > stamp.n || stamp.oldest == 0 {
        let why = format!("n must lie between 1 and {MAX} and oldest between 1 and n");
        return Standing::Refused(Refusal::because(Code::Invalid, why));
    }
    if stamp.n < mark.next() && !sabotage::is(Sabotage::NoDedup) {
        Standing::Old
    } else if stamp.n == mark.next()
        && stamp.previous.is_some()
        && stamp.previous != mark.id
        && !sabotage::is(Sabotage::TakenNumber)
    {
        // Another message stands under n − 1: the device has a history of its own, and renumbers.
        Standing::Refused(Refusal::with_next(Code::NumberTaken, mark.next()))
    } else if stamp.n == mark.next() || stamp.oldest == stamp.n {
        Standing::New
    } else {
        Standing::Refused(Refusal::with_next(Code::OutOfOrder, mark.next()))
    }
}
