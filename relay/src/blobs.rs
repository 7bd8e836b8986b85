//! The bytes of attachments, wherever a region keeps them. What is stored, for whom and how long is decided elsewhere
//! (`godwit_core::blob`, `store/blobs.rs`); here are only bytes, encrypted by the devices, under their hash.
//!
//! An upload comes in parts, in any order, each checked before it is given to the store; once all are there the blob is
//! completed, and only then it can be read.
//!
//! - [`files`]: a folder of this relay
//! - `s3`: a bucket, with the feature of that name
//! - [`spool`]: a part while it comes in

pub mod files;
#[cfg(feature = "s3")]
pub mod s3;
pub mod spool;

use bytes::Bytes;
use godwit_wire::blob::{BlobHash, BlobRef, Digest32};
use godwit_wire::frame::Header;
use godwit_wire::{Code, Refusal};
use spool::Spooled;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

/// When a client whose part or read failed should try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A fault of the store of blobs.
#[derive(Debug, thiserror::Error)]
pub enum BlobFault {
    /// It is not there, or its upload is not known any more.
    #[error("the store has no blob {0}")]
    Missing(BlobHash),
    /// There is no room.
    #[error("no room for blobs: {0}")]
    Full(String),
    #[error("the store of blobs: {0}")]
    Store(String),
}

impl BlobFault {
    /// How a client hears of it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Missing(hash) => Refusal::because(Code::NoSuchBlob, format!("blob {hash}")),
            Self::Full(why) => Refusal::retry(Code::Unavailable, RETRY_AFTER).explained(why),
            Self::Store(_) => {
                Refusal::retry(Code::Unavailable, RETRY_AFTER).explained("the store of attachments failed")
            }
        }
    }
}

pub type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T, BlobFault>> + Send + 'a>>;

/// A part that is stored, by the name that the store gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    pub part: u32,
    pub digest: Digest32,
    pub tag: String,
}

/// A part as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPart {
    pub part: u32,
    pub bytes: u64,
    /// If the store computes it.
    pub digest: Option<Digest32>,
    pub tag: String,
}

/// Where bytes can be had from the store, or brought to it, without this relay: a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub url: String,
    /// What the request must say.
    pub headers: Vec<Header>,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address")
    }
}

/// Something in the store, as a look through all of it finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Blob(BlobHash),
    Upload { hash: BlobHash, upload: String },
}

/// Where blobs are kept. All calls can be repeated: one that was done already succeeds again.
pub trait BlobStore: Send + Sync + fmt::Debug + 'static {
    /// Begins an upload, and gives its name.
    fn begin(&self, hash: BlobHash) -> Later<'_, String>;

    /// Stores a part that was checked, durably, and gives its tag.
    fn put_part<'a>(
        &'a self,
        hash: BlobHash,
        upload: &'a str,
        part: u32,
        digest: Digest32,
        bytes: Spooled<'a>,
    ) -> Later<'a, String>;

    /// Makes a blob of all parts of an upload, durably.
    ///
    /// # Errors
    /// [`BlobFault::Missing`] if the upload is gone and the blob is not there.
    fn complete<'a>(&'a self, blob: BlobRef, upload: &'a str, parts: Vec<StoredPart>) -> Later<'a, ()>;

    /// Ends an upload, and removes its parts.
    fn abort<'a>(&'a self, hash: BlobHash, upload: &'a str) -> Later<'a, ()>;

    /// Bytes of a blob, which lie within it.
    fn read(&self, blob: BlobRef, range: Range<u64>) -> Later<'_, Box<dyn BlobReader>>;

    fn remove(&self, hash: BlobHash) -> Later<'_, ()>;

    /// Where a blob can be had for so long.
    ///
    /// # Errors
    /// [`BlobFault::Store`] if this store has no addresses; the same of all others of them.
    fn url(&self, hash: BlobHash, lasts: Duration) -> Later<'_, Address>;

    /// Where a part of so many bytes, and no others, can be brought for so long.
    fn part_url<'a>(
        &'a self,
        hash: BlobHash,
        upload: &'a str,
        part: u32,
        expected: (u64, Digest32),
        lasts: Duration,
    ) -> Later<'a, Address>;

    /// The parts of an upload, however they came.
    fn parts<'a>(&'a self, hash: BlobHash, upload: &'a str) -> Later<'a, Vec<FoundPart>>;

    /// All that is there and was last changed before `before`.
    fn list(&self, before: SystemTime) -> Later<'_, Vec<Found>>;
}

/// Reads a stretch of a blob piece by piece.
pub trait BlobReader: Send {
    /// The next piece; none at the end of the stretch. Not cancel safe: a piece may be lost.
    fn next(&mut self) -> Later<'_, Option<Bytes>>;
}
