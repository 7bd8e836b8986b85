//! Blobs in a folder of this relay, in a file for each part:
//!
//! ```text
//! blobs/spool/            parts while they come in; emptied at the start
//! blobs/uploads/<hash>/   parts of an upload: 00000, 00001 …
//! blobs/ab/<hash>/        the same, complete
//! ```
//!
//! A part is written under a passing name, synced, renamed, and its folder synced; a blob is completed by renaming its
//! folder. So after a crash a part or a blob is whole or not there, and nothing is copied.

use super::spool::Spooled;
use super::{Address, BlobFault, BlobReader, BlobStore, Found, FoundPart, Later, StoredPart};
use crate::host::Threads;
use bytes::{Bytes, BytesMut};
use godwit_wire::blob::{BlobHash, BlobRef, Digest32, PART_BYTES, part_bytes};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes read at a time.
const READ_BYTES: u64 = 256 << 10;
const SPOOL: &str = "spool";
const UPLOADS: &str = "uploads";

/// Blobs as files.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
    threads: Threads,
}

fn fault(error: &io::Error, path: &Path) -> BlobFault {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BlobFault::Full(format!("{}: {error}", path.display())),
        _ => BlobFault::Store(format!("{}: {error}", path.display())),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

/// The folder for parts that come in, in `folder`: made, and emptied of what an earlier run left.
///
/// # Errors
/// If it cannot be made or emptied.
pub fn make_spool(folder: &Path) -> io::Result<PathBuf> {
    let spool = folder.join(SPOOL);
    match fs::remove_dir_all(&spool) {
        Err(error) if !is_missing(&error) => return Err(error),
        _ => {}
    }
    make_folder(&spool)?;
    Ok(spool)
}

impl Files {
    /// In `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(folder: PathBuf, threads: &Threads) -> io::Result<Self> {
        make_folder(&folder.join(UPLOADS))?;
        Ok(Self { folder, threads: threads.clone() })
    }

    fn upload_of(&self, hash: BlobHash) -> PathBuf {
        self.folder.join(UPLOADS).join(hash.to_string())
    }

    fn blob_of(&self, hash: BlobHash) -> PathBuf {
        blob_in(&self.folder, hash)
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, BlobFault> + Send + 'static) -> Later<'_, T> {
        Box::pin(async move {
            let done = self.threads.blocking(work).await;
            done.map_err(|error| BlobFault::Store(error.to_string()))?
        })
    }
}

fn shelf_in(folder: &Path, hash: BlobHash) -> PathBuf {
    folder.join(&hash.to_string()[..2])
}

/// Where a whole attachment lies in a relay's folder of attachments, if it is there.
pub(crate) fn blob_in(folder: &Path, hash: BlobHash) -> PathBuf {
    shelf_in(folder, hash).join(hash.to_string())
}

fn no_addresses() -> BlobFault {
    BlobFault::Store("files have no addresses".to_owned())
}

fn name_of(part: u32) -> String {
    format!("{part:05}")
}

fn remove_folder(path: &Path) -> Result<(), BlobFault> {
    match fs::remove_dir_all(path) {
        Err(error) if !is_missing(&error) => Err(fault(&error, path)),
        _ => Ok(()),
    }
}

impl BlobStore for Files {
    fn begin(&self, hash: BlobHash) -> Later<'_, String> {
        let (folder, above) = (self.upload_of(hash), self.folder.join(UPLOADS));
        self.run(move || {
            make_folder(&folder).and_then(|()| sync_folder(&above)).map_err(|error| fault(&error, &folder))?;
            Ok(String::new())
        })
    }

    fn put_part<'a>(
        &'a self,
        hash: BlobHash,
        _: &'a str,
        part: u32,
        _: Digest32,
        bytes: Spooled<'a>,
    ) -> Later<'a, String> {
        let folder = self.upload_of(hash);
        let (spooled, file) = (bytes.file.path().to_owned(), bytes.file.as_file().try_clone());
        self.run(move || {
            let path = folder.join(name_of(part));
            let moved = || {
                file?.sync_all()?;
                // What was put before may have been removed: completing the blob tells.
                make_folder(&folder)?;
                match fs::rename(&spooled, &path) {
                    // By a call whose end nobody waited for.
                    Err(error) if is_missing(&error) && path.is_file() => {}
                    renamed => renamed?,
                }
                sync_folder(&folder)
            };
            moved().map_err(|error| fault(&error, &path))?;
            Ok(String::new())
        })
    }

    fn complete<'a>(&'a self, blob: BlobRef, _: &'a str, parts: Vec<StoredPart>) -> Later<'a, ()> {
        let (from, to, shelf) = (self.upload_of(blob.hash), self.blob_of(blob.hash), shelf_in(&self.folder, blob.hash));
        let uploads = self.folder.join(UPLOADS);
        self.run(move || {
            if to.is_dir() {
                return remove_folder(&from);
            }
            for stored in &parts {
                let path = from.join(name_of(stored.part));
                let len = fs::metadata(&path).map_err(|_| BlobFault::Missing(blob.hash))?.len();
                if Some(len) != part_bytes(blob.size_bytes, stored.part) {
                    return Err(BlobFault::Store(format!("{}: {len} bytes, which is not the part", path.display())));
                }
            }
            let moved = || {
                make_folder(&shelf)?;
                sync_folder(shelf.parent().unwrap_or(&shelf))?;
                fs::rename(&from, &to)?;
                sync_folder(&shelf)?;
                sync_folder(&uploads)
            };
            moved().map_err(|error| fault(&error, &to))
        })
    }

    fn abort<'a>(&'a self, hash: BlobHash, _: &'a str) -> Later<'a, ()> {
        let folder = self.upload_of(hash);
        self.run(move || remove_folder(&folder))
    }

    fn read(&self, blob: BlobRef, range: Range<u64>) -> Later<'_, Box<dyn BlobReader>> {
        let (files, hash) = (self.clone(), blob.hash);
        Box::pin(async move {
            let (folder, start) = (files.blob_of(hash), range.start);
            // Says at once if it is not there.
            files.run(move || open(&folder, hash, start / PART_BYTES).map(drop)).await?;
            Ok(Box::new(Reader { files, range, hash }) as Box<dyn BlobReader>)
        })
    }

    fn remove(&self, hash: BlobHash) -> Later<'_, ()> {
        let folder = self.blob_of(hash);
        self.run(move || remove_folder(&folder))
    }

    fn url(&self, _: BlobHash, _: Duration) -> Later<'_, Address> {
        Box::pin(std::future::ready(Err(no_addresses())))
    }

    fn part_url<'a>(&'a self, _: BlobHash, _: &'a str, _: u32, _: (u64, Digest32), _: Duration) -> Later<'a, Address> {
        Box::pin(std::future::ready(Err(no_addresses())))
    }

    fn parts<'a>(&'a self, _: BlobHash, _: &'a str) -> Later<'a, Vec<FoundPart>> {
        Box::pin(std::future::ready(Err(no_addresses())))
    }

    fn list(&self, before: SystemTime) -> Later<'_, Vec<Found>> {
        let folder = self.folder.clone();
        self.run(move || list(&folder, before).map_err(|error| fault(&error, &folder)))
    }
}

fn list(folder: &Path, before: SystemTime) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for shelf in fs::read_dir(folder)? {
        let shelf = shelf?;
        let is_upload = shelf.file_name() == UPLOADS;
        if shelf.file_name() == SPOOL || !shelf.file_type()?.is_dir() {
            continue;
        }
        for blob in fs::read_dir(shelf.path())? {
            let blob = blob?;
            let Some(hash) = blob.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let is_old = blob.metadata().and_then(|meta| meta.modified()).is_ok_and(|at| at < before);
            if is_old {
                found.push(if is_upload { Found::Upload { hash, upload: String::new() } } else { Found::Blob(hash) });
            }
        }
    }
    Ok(found)
}

struct Reader {
    files: Files,
    /// What is still to be read.
    range: Range<u64>,
    hash: BlobHash,
}

fn open(folder: &Path, hash: BlobHash, part: u64) -> Result<File, BlobFault> {
    let path = folder.join(name_of(u32::try_from(part).unwrap_or(u32::MAX)));
    File::open(&path).map_err(|error| if is_missing(&error) { BlobFault::Missing(hash) } else { fault(&error, &path) })
}

impl BlobReader for Reader {
    fn next(&mut self) -> Later<'_, Option<Bytes>> {
        Box::pin(async move {
            if self.range.is_empty() {
                return Ok(None);
            }
            let (part, start) = (self.range.start / PART_BYTES, self.range.start);
            let end = self.range.end.min((part + 1) * PART_BYTES).min(start + READ_BYTES);
            let (folder, hash) = (self.files.blob_of(self.hash), self.hash);
            let work = move || {
                let mut bytes = BytesMut::zeroed(usize::try_from(end - start).expect("a piece is small"));
                let file = open(&folder, hash, part)?;
                file.read_exact_at(&mut bytes, start - part * PART_BYTES).map_err(|error| fault(&error, &folder))?;
                Ok(bytes.freeze())
            };
            let bytes = self.files.run(work).await?;
            self.range.start = end;
            Ok(Some(bytes))
        })
    }
}
