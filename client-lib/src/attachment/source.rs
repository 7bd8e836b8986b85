//! A file that is sent, as the parts of its blob. It is read twice, once for the digests and once to send it, and never held
//! in memory; a file that changes between the two is noticed by its length, its time of change and its digests.

use godwit_seal::{Cipher, FileKey, SEALED_CHUNK_BYTES};
use godwit_wire::blob::{Digest32, Manifest, PART_BYTES, parts};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// By what a file is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) size_bytes: u64,
    /// When it was changed last, in nanoseconds since 1970; 0 if that is not known.
    modified: u64,
}

/// Opens what is a file. To open a pipe would wait for whoever writes it.
fn open(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(not_a_file());
    }
    File::open(path)
}

fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a file")
}

impl Stamp {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(not_a_file());
        }
        let since = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Ok(Self { size_bytes: meta.len(), modified: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) })
    }

    /// Of the file at `path`, which can be read.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let stamp = Self::of(&file)?;
        // Files of /proc have a length only once they are read.
        if stamp.size_bytes == 0 && file.read_at(&mut [0], 0)? > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its size is not known"));
        }
        Ok(stamp)
    }
}

/// A file, opened to be sent. Reading blocks.
#[derive(Debug)]
pub(crate) struct Source {
    file: File,
    pub(crate) stamp: Stamp,
    cipher: Cipher,
}

impl Source {
    pub(crate) fn open(path: &Path, key: &FileKey) -> io::Result<Self> {
        let file = open(path)?;
        let stamp = Stamp::of(&file)?;
        let cipher = Cipher::new(key, stamp.size_bytes);
        Ok(Self { file, stamp, cipher })
    }

    /// A file that was opened already, of which so many bytes count.
    pub(crate) fn of(file: File, key: &FileKey, plain_bytes: u64) -> Self {
        let stamp = Stamp { size_bytes: plain_bytes, modified: 0 };
        Self { file, stamp, cipher: Cipher::new(key, plain_bytes) }
    }

    pub(crate) fn sealed_bytes(&self) -> u64 {
        self.cipher.sealed_bytes()
    }

    pub(crate) fn parts(&self) -> u64 {
        parts(self.sealed_bytes())
    }

    /// Part `part` of the blob, sealed.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter by now.
    pub(crate) fn part(&self, part: u64) -> io::Result<Vec<u8>> {
        let per_part = PART_BYTES / SEALED_CHUNK_BYTES;
        let chunks = part * per_part..((part + 1) * per_part).min(self.cipher.chunks());
        let mut sealed = Vec::new();
        let mut chunk = Vec::new();
        for i in chunks {
            let plain = self.cipher.plain_of(i);
            chunk.resize(usize::try_from(plain.end - plain.start).expect("a chunk is small"), 0);
            self.file.read_exact_at(&mut chunk, plain.start)?;
            self.cipher.seal(i, &mut chunk);
            sealed.extend_from_slice(&chunk);
        }
        Ok(sealed)
    }

    /// Reads the file once, for what each part must be.
    pub(crate) fn manifest(&self) -> io::Result<Manifest> {
        let mut digests: Vec<Digest32> = Vec::new();
        for part in 0..self.parts() {
            digests.push(Sha256::digest(self.part(part)?).into());
        }
        Ok(Manifest { size_bytes: self.sealed_bytes(), digests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_wire::blob::part_bytes;

    fn key() -> FileKey {
        FileKey([7; 32])
    }

    #[test]
    fn parts_are_what_the_manifest_says_and_as_long_as_the_protocol_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for bytes in [0, 1, 65_536, 8_388_608, 8_388_609] {
            std::fs::write(&path, vec![3; bytes]).unwrap();
            let source = Source::open(&path, &key()).unwrap();
            let manifest = source.manifest().unwrap();
            assert!(manifest.is_whole(), "{bytes}");
            for (i, digest) in (0..).zip(&manifest.digests) {
                let part = source.part(i.into()).unwrap();
                assert_eq!(Some(part.len() as u64), part_bytes(manifest.size_bytes, i));
                assert_eq!(Digest32::from(Sha256::digest(&part)), *digest);
            }
        }
    }

    #[test]
    fn a_file_that_shrank_or_is_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![3; 100_000]).unwrap();
        let source = Source::open(&path, &key()).unwrap();
        let before = source.stamp;
        std::fs::write(&path, vec![3; 70_000]).unwrap();
        assert_eq!(source.part(0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_ne!(Stamp::of(&File::open(&path).unwrap()).unwrap(), before);
        assert_eq!(Source::open(folder.path(), &key()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(Source::open(&pipe, &key()).unwrap_err().kind(), io::ErrorKind::InvalidInput, "and does not wait");
        assert_eq!(Source::open(&folder.path().join("none"), &key()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
