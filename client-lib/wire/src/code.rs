//! Refusals: expected answers that say no and change nothing but, where stated, the device's number.

use crate::limits;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// A stable refusal code. Numbers are never reused or renumbered; one that this build does not know is kept
        /// as [`Code::Other`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name,)*
            Other(u16),
        }

        impl Code {
            /// All codes this build knows.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* Self::Other(n) => n }
            }

            pub fn from_number(number: u16) -> Self {
                match number { $($number => Self::$name,)* n => Self::Other(n) }
            }

            /// One sentence for a person, without a full stop.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* Self::Other(_) => "the relay refused for a reason that this version does not know" }
            }
        }
    };
}

codes! {
    // Passing: nothing is decided, try again.
    /// The relay cannot do it now (disk, restart, home out of reach). `retry_after` says when to try again.
    Unavailable = 1, "the relay cannot do this now";
    /// Over this user's rate. `retry_after` says when to try again.
    RateLimited = 2, "too many requests";
    /// The device's previous number is not decided yet; `next` is the number the home waits for.
    OutOfOrder = 3, "an earlier message of this device is not decided yet";
    /// The number already means another message; `next` is the first free one.
    NumberTaken = 4, "this number is already another message";
    /// A defect in the relay; the request was not executed.
    Internal = 5, "the relay failed on this request";
    /// The relay does not decide for this user or chat. `retry_after` may say when to try again.
    NotOwner = 6, "this relay does not decide for that user or chat";
    // Lasting: a numbered request's number is decided and void.
    /// Not a participant of the chat, or no such chat: the two are not told apart.
    NotParticipant = 16, "you are not a participant of this chat";
    /// The role does not allow it.
    NotAllowed = 17, "your role does not allow this";
    /// Content, title, list or page over its limit.
    TooLarge = 18, "over a limit";
    /// A user who is to be added does not exist.
    NoSuchUser = 19, "no such user";
    /// No entry at that seq that can be redacted.
    NoSuchMessage = 20, "no such message";
    /// The chat exists already.
    AlreadyExists = 21, "the chat exists already";
    /// The change makes no sense in the chat as it is (already a participant, a direct chat's members, the last owner …).
    Conflict = 22, "the change does not fit the chat as it is";
    /// A field holds a value that is not allowed.
    Invalid = 23, "a field holds a value that is not allowed";
    /// A message or request names a blob that is not stored here, or not for this user.
    NoSuchBlob = 24, "no such attachment";
    /// Over a quota of attachments; the explanation names it.
    OverQuota = 25, "over a quota of attachments";
    /// The file to be sent is gone, or another than it was. Said by the device itself.
    Unreadable = 26, "the file cannot be read as it was";
    /// The region is not set up for that.
    NotHere = 27, "this region does not do that";
    // The door: enrolment and sessions.
    /// No usable device certificate.
    Unauthenticated = 32, "no valid device certificate";
    /// The certificate is past its life; enrol again.
    CertificateExpired = 33, "the certificate has expired: enrol again with a new token";
    /// The device was revoked.
    Revoked = 34, "this device was revoked";
    /// The device was enrolled anew since this certificate.
    Superseded = 35, "this device was enrolled anew elsewhere";
    /// The certificate names something that is not a device.
    NotADevice = 36, "the certificate does not name a device";
    /// The token's signature, form or audience is wrong.
    TokenInvalid = 37, "the token is not valid";
    /// The token is past its life.
    TokenExpired = 38, "the token has expired";
    /// The token was used before.
    TokenUsed = 39, "the token was used already";
    /// The token or request names a device that does not belong here.
    WrongDevice = 40, "the request names another device than its credential";
    /// Handshakes or connections over their bound. `retry_after` says when to come back.
    Busy = 41, "the relay is at its limit of connections";
    /// The same device connected again; this connection is the older one.
    Replaced = 42, "the device connected again elsewhere";
    /// The relay is shutting down.
    ShuttingDown = 43, "the relay is shutting down";
    /// Bytes that are no frame of this protocol.
    Malformed = 44, "a frame could not be read";
}

impl Code {
    /// Whether the same request may succeed later without anyone changing anything.
    pub fn is_passing(self) -> bool {
        matches!(
            self,
            Self::Unavailable
                | Self::RateLimited
                | Self::OutOfOrder
                | Self::NumberTaken
                | Self::Internal
                | Self::NotOwner
                | Self::Busy
                | Self::ShuttingDown
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.number().serialize(s)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        u16::deserialize(d).map(Self::from_number)
    }
}

/// A refusal as it travels: the code, and what the receiver can do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}{}", if explanation.is_empty() { String::new() } else { format!(": {explanation}") })]
pub struct Refusal {
    pub code: Code,
    /// Names the field and the limit where there is one. For people; never parsed.
    #[serde(deserialize_with = "crate::bounded::text::<_, { limits::EXPLANATION_BYTES }>")]
    pub explanation: String,
    retry_after_millis: Option<u32>,
    /// With `OutOfOrder` and `NumberTaken`: the number the home expects next.
    pub next: Option<u64>,
}

impl Refusal {
    pub fn new(code: Code) -> Self {
        Self { code, explanation: String::new(), retry_after_millis: None, next: None }
    }

    /// With an explanation, cut at the limit.
    pub fn because(code: Code, explanation: impl Into<String>) -> Self {
        let mut explanation = explanation.into();
        if explanation.len() > limits::EXPLANATION_BYTES {
            let end = explanation.floor_char_boundary(limits::EXPLANATION_BYTES);
            explanation.truncate(end);
        }
        Self { explanation, ..Self::new(code) }
    }

    /// The same, with an explanation.
    pub fn explained(self, explanation: &str) -> Self {
        Self { explanation: Self::because(self.code, explanation).explanation, ..self }
    }

    pub fn retry(code: Code, after: Duration) -> Self {
        let millis = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        Self { retry_after_millis: Some(millis), ..Self::new(code) }
    }

    pub fn with_next(code: Code, next: u64) -> Self {
        Self { next: Some(next), ..Self::new(code) }
    }

    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after_millis.map(|ms| Duration::from_millis(ms.into()))
    }
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self::new(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_and_come_back() {
        let mut seen = std::collections::BTreeSet::new();
        for &code in Code::ALL {
            assert!(seen.insert(code.number()), "{code:?} shares a number");
            assert_eq!(Code::from_number(code.number()), code);
        }
        assert_eq!(Code::from_number(9999), Code::Other(9999));
        assert_eq!(Code::Other(9999).number(), 9999);
    }

    #[test]
    fn a_long_explanation_is_cut_at_a_character() {
        let refusal = Refusal::because(Code::Invalid, "ä".repeat(200));
        assert_eq!(refusal.explanation.len(), 256);
    }
}
