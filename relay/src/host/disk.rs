//! What a relay keeps in its data folder: two databases, and a few small files beside them.

use redb::{Database, DatabaseError};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// A disk. All that is made on it is readable by its owner only.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Makes a folder, and those above it, unless they are there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// The length of a file; none if it is not there.
    fn len(&self, path: &Path) -> Option<u64>;

    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Replaces a small file, or makes it: after a crash it is the old or the new one, and the new one once this has
    /// returned.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Opens the database at `path`, for nobody else meanwhile.
    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError>;

    /// Makes an empty database at `path`.
    ///
    /// # Errors
    /// If there is a file already.
    fn create(&self, path: &Path) -> Result<Database, DatabaseError>;

    /// Gives a file another name, durably.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file, if it is there.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Bytes that can still be written to where `path` lies; none if that is not known.
    fn free_bytes(&self, path: &Path) -> Option<u64>;
}

/// The system's files.
#[derive(Clone, Copy, Debug)]
pub struct SystemDisk;

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

impl Disk for SystemDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn len(&self, path: &Path) -> Option<u64> {
        std::fs::metadata(path).ok().map(|meta| meta.len())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let next = path.with_extension("new");
        self.remove(&next)?;
        let mut file = new_file(&next)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.rename(&next, path)
    }

    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
        Database::builder().set_cache_size(cache_bytes).open(path)
    }

    fn create(&self, path: &Path) -> Result<Database, DatabaseError> {
        new_file(path).map_err(redb::StorageError::Io)?;
        Database::builder().create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)?;
        sync_folder_of(to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn free_bytes(&self, path: &Path) -> Option<u64> {
        let stat = rustix::fs::statvfs(path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
