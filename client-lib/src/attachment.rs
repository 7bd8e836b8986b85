//! Attachments: files that belong to a message. The message carries what is needed to find, check and read one; the bytes
//! travel beside it, encrypted ([`godwit_seal`]), and no relay or store can read them.
//!
//! - [`source`]: a file that is sent, as the parts of its blob; [`target`] one that is received
//! - [`transfer`]: both, on the wire
//! - [`http`]: the same without the relay, where a region has it so

pub(crate) mod http;
pub(crate) mod source;
pub(crate) mod target;
pub(crate) mod transfer;

pub use transfer::Progress;

use godwit_seal::FileKey;
use godwit_wire::blob::BlobRef;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of a file's name in a message.
pub const NAME_BYTES: usize = 255;
/// Bytes of a media type, such as `video/mp4`.
pub const MEDIA_TYPE_BYTES: usize = 127;
/// Bytes of the preview in a message: a small picture, or what else an app shows before the file is there.
pub const PREVIEW_BYTES: usize = 16 * 1024;

/// A file as a message describes it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The encrypted file, as relays know it.
    pub blob: BlobRef,
    pub(crate) key: FileKey,
    /// Of the file itself.
    pub size_bytes: u64,
    /// What the sender calls the file. Never a path of the receiver: see [`Attachment::file_name`].
    pub name: String,
    pub media_type: String,
    pub preview: Vec<u8>,
    pub caption: String,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What people wrote, and what they sent, reaches no log.
        f.debug_struct("Attachment")
            .field("blob", &self.blob)
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

/// Characters that change the direction of what follows: they make `exe.jpg` of `gpj.exe`.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Attachment {
    /// The name without what could lead out of a folder, hide the file or confuse a terminal; `attachment` if nothing is
    /// left.
    pub fn file_name(&self) -> String {
        let last = self.name.rsplit(['/', '\\']).next().unwrap_or_default();
        let plain: String = last.chars().filter(|c| !c.is_control() && !is_direction(*c)).collect();
        let plain = plain.trim().trim_start_matches('.');
        let end = plain.floor_char_boundary(NAME_BYTES);
        if plain.is_empty() { "attachment".to_owned() } else { plain[..end].to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_wire::blob::BlobHash;

    fn named(name: &str) -> Attachment {
        Attachment {
            blob: BlobRef { hash: BlobHash([0; 32]), size_bytes: 1 },
            key: FileKey([7; 32]),
            size_bytes: 1,
            name: name.to_owned(),
            media_type: String::new(),
            preview: Vec::new(),
            caption: "a caption".to_owned(),
        }
    }

    #[test]
    fn a_name_leads_nowhere() {
        for (name, expected) in [
            ("walk.mp4", "walk.mp4"),
            ("../../.ssh/authorized_keys", "authorized_keys"),
            ("C:\\Windows\\a.txt", "a.txt"),
            ("..", "attachment"),
            ("", "attachment"),
            ("a/", "attachment"),
            (".profile", "profile"),
            ("\u{1b}[2Jhello", "[2Jhello"),
            ("walk\u{202e}gpj.exe", "walkgpj.exe"),
        ] {
            assert_eq!(named(name).file_name(), expected, "{name:?}");
        }
        assert_eq!(named(&"ä".repeat(400)).file_name().len(), 254);
    }

    #[test]
    fn its_debug_form_tells_no_secret() {
        let text = format!("{:?}", named("secret plan.pdf"));
        assert!(!text.contains("secret") && !text.contains("caption\"") && !text.contains('7'), "{text}");
    }
}
