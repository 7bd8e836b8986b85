//! Blobs: the bytes of attachments, encrypted by the device that made them. A relay stores them and never reads them.
//!
//! A blob travels and is checked in parts of [`PART_BYTES`], the last one shorter. Its hash is the SHA-256 of the SHA-256
//! digests of its parts, one after another: whoever has the digests can check each part by itself, in any order, and a
//! transfer that was cut goes on at the first part that is missing. S3 computes the same value as the composite checksum of
//! a multipart upload.

use crate::{bounded, limits};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Bytes of plaintext in one encrypted chunk.
pub const CHUNK_BYTES: u64 = 64 * 1024;
/// What encryption adds to each chunk.
pub const TAG_BYTES: u64 = 16;
/// Bytes of a part: 128 encrypted chunks, over the 5 MiB that S3 asks for.
pub const PART_BYTES: u64 = 128 * (CHUNK_BYTES + TAG_BYTES);
/// Bytes of a blob, above which no relay takes one.
pub const MAX_BYTES: u64 = PART_BYTES * limits::BLOB_PARTS as u64;

/// SHA-256 of a part.
pub type Digest32 = [u8; 32];

/// Names a blob by what it holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobHash(pub Digest32);

impl BlobHash {
    /// Of a blob whose parts have these digests.
    pub fn of_parts(digests: &[Digest32]) -> Self {
        let mut hasher = Sha256::new();
        for digest in digests {
            hasher.update(digest);
        }
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlobHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let is_hash = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_hash {
            return Err(NotAHash);
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| NotAHash)?;
        }
        Ok(Self(bytes))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a blob's hash has 64 lower-case hexadecimal digits")]
pub struct NotAHash;

/// Names a blob, and says how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub hash: BlobHash,
    /// Of the ciphertext.
    pub size_bytes: u64,
}

/// Parts of a blob of so many bytes.
pub fn parts(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(PART_BYTES)
}

/// Bytes of part `part`; none if a blob of this size has no such part.
pub fn part_bytes(size_bytes: u64, part: u32) -> Option<u64> {
    let start = u64::from(part) * PART_BYTES;
    (start < size_bytes).then(|| PART_BYTES.min(size_bytes - start))
}

/// Bytes of ciphertext for so many bytes of plaintext, padding not counted.
pub fn sealed_bytes(plain_bytes: u64) -> u64 {
    plain_bytes.saturating_add(plain_bytes.div_ceil(CHUNK_BYTES).max(1).saturating_mul(TAG_BYTES))
}

/// A blob before it is stored: how long it is, and what each part must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub size_bytes: u64,
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::BLOB_PARTS }>")]
    pub digests: Vec<Digest32>,
}

impl Manifest {
    pub fn blob(&self) -> BlobRef {
        BlobRef { hash: BlobHash::of_parts(&self.digests), size_bytes: self.size_bytes }
    }

    /// Whether there is a digest for each part, and something in it.
    pub fn is_whole(&self) -> bool {
        self.size_bytes > 0 && parts(self.size_bytes) == self.digests.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_blob_exactly() {
        for size in [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, MAX_BYTES] {
            let count = u32::try_from(parts(size)).unwrap();
            let covered: u64 = (0..count).map(|part| part_bytes(size, part).unwrap()).sum();
            assert_eq!((covered, part_bytes(size, count)), (size, None));
            assert!((0..count).all(|part| part_bytes(size, part).unwrap() > 0));
        }
        assert_eq!((parts(0), part_bytes(0, 0)), (0, None));
    }

    #[test]
    fn a_hash_depends_on_every_part_and_on_their_order() {
        let hash = BlobHash::of_parts(&[[1; 32], [2; 32]]);
        assert_ne!(hash, BlobHash::of_parts(&[[2; 32], [1; 32]]));
        assert_ne!(hash, BlobHash::of_parts(&[[1; 32]]));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for bad in ["", "ab", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<BlobHash>(), Err(NotAHash), "{bad}");
        }
    }
}
