//! A part while it comes in: a file in a folder that is emptied at the start, so that a slow device holds disk and not
//! memory, and a crash leaves nothing. It is worth nothing before it is whole and checked.

use crate::host::Threads;
use bytes::Bytes;
use godwit_wire::blob::Digest32;
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::path::PathBuf;
use tempfile::NamedTempFile;

/// Bytes that are gathered before they are written.
const GATHERED_BYTES: usize = 128 << 10;

/// Bytes after which the kernel is asked to write them.
const WRITEBACK_BYTES: u64 = 1 << 20;

/// A part that is whole and what it should be.
#[derive(Clone, Copy, Debug)]
pub struct Spooled<'a> {
    pub(super) file: &'a NamedTempFile,
}

/// A part that is still coming.
#[derive(Debug)]
pub struct Spool {
    threads: Threads,
    file: NamedTempFile,
    expected: (u64, Digest32),
    hasher: Sha256,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    size_bytes: u64,
    /// On their way to the disk.
    sent_bytes: u64,
}

/// Has the kernel write what came after `from`, and keep it no longer in memory. A part that is written only when it is
/// synced holds up all that is synced meanwhile: messages.
fn write_back(file: &NamedTempFile, from: u64) {
    // It is advice; not every system takes it.
    let _ = rustix::fs::fadvise(file, from, None, rustix::fs::Advice::DontNeed);
}

/// Why a part was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the part has {0} bytes, {1} were expected")]
    Size(u64, u64),
    #[error("the part is not what its digest says")]
    Digest,
    #[error("the part could not be kept: {0}")]
    Io(#[from] io::Error),
}

impl Spool {
    /// Begins to take a part of so many bytes with this digest.
    pub async fn begin(
        threads: &Threads,
        folder: PathBuf,
        size_bytes: u64,
        digest: Digest32,
    ) -> Result<Self, SpoolError> {
        let make = move || tempfile::Builder::new().prefix("part-").tempfile_in(folder);
        let file = threads.blocking(make).await.map_err(io::Error::other)??;
        Ok(Self {
            threads: threads.clone(),
            file,
            expected: (size_bytes, digest),
            hasher: Sha256::new(),
            gathered: Vec::new(),
            gathered_bytes: 0,
            size_bytes: 0,
            sent_bytes: 0,
        })
    }

    /// What came so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Takes more of it.
    ///
    /// # Errors
    /// More came than belongs to the part, or the disk failed.
    pub async fn push(mut self, bytes: Bytes) -> Result<Self, SpoolError> {
        self.size_bytes += bytes.len() as u64;
        if self.size_bytes > self.expected.0 {
            return Err(SpoolError::Size(self.size_bytes, self.expected.0));
        }
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes >= GATHERED_BYTES { self.flush().await } else { Ok(self) }
    }

    /// Writes what came.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn flush(mut self) -> Result<Self, SpoolError> {
        let threads = self.threads.clone();
        let work = move || {
            for bytes in self.gathered.drain(..) {
                self.hasher.update(&bytes);
                self.file.write_all(&bytes)?;
            }
            self.gathered_bytes = 0;
            if self.size_bytes - self.sent_bytes >= WRITEBACK_BYTES {
                write_back(&self.file, self.sent_bytes);
                self.sent_bytes = self.size_bytes;
            }
            io::Result::Ok(self)
        };
        Ok(threads.blocking(work).await.map_err(io::Error::other)??)
    }

    /// The whole part, once all that came is flushed.
    ///
    /// # Errors
    /// It is shorter than it should be, or something else.
    pub fn check(&self) -> Result<Spooled<'_>, SpoolError> {
        let (size_bytes, digest) = self.expected;
        let written = self.size_bytes - self.gathered_bytes as u64;
        if written != size_bytes {
            return Err(SpoolError::Size(written, size_bytes));
        }
        if Digest32::from(self.hasher.clone().finalize()) != digest {
            return Err(SpoolError::Digest);
        }
        Ok(Spooled { file: &self.file })
    }
}
