//! A file that is received: under a passing name beside its place, until it is whole.

use super::source::Source;
use super::transfer::PART_PLAIN_BYTES;
use crate::locked::Locked;
use godwit_seal::FileKey;
use godwit_wire::blob::{BlobHash, Digest32, Manifest};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of the file's name in its passing name: names have 255 in most file systems.
const NAME_BYTES: usize = 200;

#[derive(Debug)]
pub(crate) struct Target {
    path: PathBuf,
    passing: PathBuf,
    file: Locked,
}

impl Target {
    /// For a file at `path`; takes up what is there of it already. Blocks.
    ///
    /// # Errors
    /// If it cannot be written there, or there is a file at `path`.
    pub(crate) fn open(path: &Path, hash: BlobHash) -> io::Result<Self> {
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "there is no such folder"));
        }
        match path.symlink_metadata() {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file already")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A name that is too long, for one: known before anything is received.
            Err(error) => return Err(error),
        }
        let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file's name"))?;
        let (short, name) = (&hash.to_string()[..16], name.to_string_lossy());
        let name = &name[..name.floor_char_boundary(NAME_BYTES)];
        let passing = path.with_file_name(format!(".{name}.{short}.part"));
        // A link would lead to somebody else's file.
        if passing.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
            let why = format!("{} is in the way, and no file", passing.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        let file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&passing)?;
        // Two that write to it would make neither's file.
        let taken = || io::Error::new(io::ErrorKind::ResourceBusy, "it is being received there already");
        let file = Locked::take(file)?.ok_or_else(taken)?;
        // Another may have finished it between the opening and the lock.
        if passing.metadata().is_ok_and(|meta| meta.ino() == file.metadata().map_or(0, |own| own.ino())) {
            return Ok(Self { path: path.to_owned(), passing, file });
        }
        Err(taken())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of it that are there.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// How many of its parts are there and what they should be: a crash may have left anything. The rest is cut off.
    pub(crate) fn check(&mut self, key: &FileKey, manifest: &Manifest, plain_bytes: u64) -> io::Result<u64> {
        let here = self.len()?;
        let source = Source::of(self.file.try_clone()?, key, plain_bytes);
        let mut good = 0;
        for digest in &manifest.digests {
            let end = ((good + 1) * PART_PLAIN_BYTES).min(plain_bytes);
            if end > here || Digest32::from(Sha256::digest(source.part(good)?)) != *digest {
                break;
            }
            good += 1;
        }
        self.cut((good * PART_PLAIN_BYTES).min(plain_bytes))?;
        Ok(good)
    }

    pub(crate) fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&*self.file).write_all(bytes)
    }

    /// It is whole: gives it its name, durably.
    ///
    /// # Errors
    /// If a file has come to that place meanwhile, or it cannot have that name: nothing stays.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        match std::fs::hard_link(&self.passing, &self.path) {
            Ok(()) => self.discard()?,
            // Not every file system has links. A rename alone would take the place of whatever has come there.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && self.path.symlink_metadata().is_err() => {
                std::fs::rename(&self.passing, &self.path).inspect_err(|_| drop(self.discard()))?;
            }
            Err(error) => {
                self.discard()?;
                return Err(error);
            }
        }
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }

    /// What was received goes.
    pub(crate) fn discard(&self) -> io::Result<()> {
        std::fs::remove_file(&self.passing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: BlobHash = BlobHash([7; 32]);

    #[test]
    fn what_is_in_the_way_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (to, victim) = (folder.path().join("got"), folder.path().join("victim"));
        std::fs::write(&victim, "theirs").unwrap();
        let passing = Target::open(&to, HASH).unwrap().passing;
        std::fs::remove_file(&passing).unwrap();
        std::os::unix::fs::symlink(&victim, &passing).unwrap();
        assert_eq!(Target::open(&to, HASH).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_file(&passing).unwrap();
        // Somebody else's file comes while this one is received.
        let mut target = Target::open(&to, HASH).unwrap();
        target.append(b"ours").unwrap();
        std::fs::write(&to, "theirs").unwrap();
        assert_eq!(target.finish().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "theirs");
        assert!(!passing.exists(), "what cannot come to its place does not stay");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "theirs");
    }

    #[test]
    fn one_receives_a_file_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("got");
        let first = Target::open(&to, HASH).unwrap();
        assert_eq!(Target::open(&to, HASH).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        Target::open(&to, HASH).unwrap().discard().unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_is_known_before_anything_is_there() {
        let folder = tempfile::tempdir().unwrap();
        for place in ["none/", "none/got", &"n".repeat(256)] {
            Target::open(&folder.path().join(place), HASH).unwrap_err();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_may_be_as_long_as_the_file_system_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("ä".repeat(127));
        let mut target = Target::open(&to, HASH).unwrap();
        target.append(b"ours").unwrap();
        target.finish().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
