//! What a message says, inside bytes that the relay never looks into.
//!
//! Encoded as postcard after a format byte. A newer kind decodes to [`Content::Unknown`], which an app shows as "needs
//! a newer version".

use crate::attachment::Attachment;
use crate::error::Error;
use bytes::Bytes;
use godwit_wire::{Code, Refusal, Seq, limits};
use serde::{Deserialize, Serialize};

const FORMAT: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    Text {
        text: String,
    },
    /// An answer to the message at `to`.
    Reply {
        to: Seq,
        text: String,
    },
    /// An emoji on the message at `to`; an empty one takes it back.
    Reaction {
        to: Seq,
        emoji: String,
    },
    /// Replaces the text of the sender's own message at `of`.
    Edit {
        of: Seq,
        text: String,
    },
    /// Made by a newer version, or not by this library at all: the bytes as they came. Kept as such in the device's store;
    /// what comes after it here are kinds that were added later.
    Unknown(Vec<u8>),
    /// A file; [`crate::Client::attach`] makes such a message.
    Attachment(Attachment),
}

impl Content {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// The text in it, the emoji, or the caption of a file.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text { text } | Self::Reply { text, .. } | Self::Edit { text, .. } => Some(text),
            Self::Reaction { emoji, .. } => Some(emoji),
            Self::Attachment(attachment) => Some(&attachment.caption),
            Self::Unknown(_) => None,
        }
    }

    /// Whether it fits a message.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::TooLarge`] for more than [`limits::CONTENT_BYTES`] encoded.
    pub fn check(&self) -> Result<(), Error> {
        self.checked().map(drop)
    }

    pub(crate) fn checked(&self) -> Result<Bytes, Error> {
        let bytes = self.to_bytes();
        if bytes.len() > limits::CONTENT_BYTES {
            let why = format!("content has {} bytes, at most {} are allowed", bytes.len(), limits::CONTENT_BYTES);
            return Err(Error::Refused(Refusal::because(Code::TooLarge, why)));
        }
        Ok(bytes)
    }

    fn to_bytes(&self) -> Bytes {
        match self {
            Self::Unknown(bytes) => Bytes::copy_from_slice(bytes),
            known => postcard::to_extend(known, vec![FORMAT]).expect("a content holds nothing postcard refuses").into(),
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let decoded = match bytes.split_first() {
            Some((&FORMAT, rest)) => postcard::take_from_bytes(rest).ok().filter(|(_, rest)| rest.is_empty()),
            _ => None,
        };
        let known = decoded.map(|(content, _)| content).filter(|content| !matches!(content, Self::Unknown(_)));
        known.unwrap_or_else(|| Self::Unknown(bytes.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_and_others_are_kept() {
        let seq = Seq::FIRST;
        for content in [
            Content::text("hällo"),
            Content::Reply { to: seq, text: "yes".into() },
            Content::Reaction { to: seq, emoji: "👍".into() },
            Content::Edit { of: seq, text: "no".into() },
            Content::Unknown(b"something else".to_vec()),
            Content::Unknown(vec![1, 99]),
            Content::Unknown(vec![]),
            // No message is written like this, whatever it would be read as.
            Content::Unknown(vec![1, 4, 2, 7, 7]),
        ] {
            assert_eq!(Content::from_bytes(&content.to_bytes()), content);
            // As the device's store keeps it.
            let kept = postcard::to_stdvec(&content).unwrap();
            assert_eq!(postcard::from_bytes::<Content>(&kept).unwrap(), content);
        }
    }
}
