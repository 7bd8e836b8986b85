//! The store's file: opening it, checking it, copying it.

use super::check::{Chats, Report};
use super::embedded::{Moment, Transaction, definition};
use super::keys::Span;
use super::rows::Records;
use super::tables::{CHATS, LOG, TableId};
use super::{Opener, StoreError, meta};
use crate::host::{Disk, SystemDisk};
use crate::store::keys::{Key, Parts};
use godwit_wire::RegionId;
use redb::{Database, ReadableTable, ReadableTableMetadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format of the tables. Records carry their own. 1: watermarks are rows of (chat, user). They are read still.
pub const FORMAT: u32 = 2;

/// Whether this version reads a store that says so of its format.
pub(super) fn is_known(format: &str) -> bool {
    format.parse().is_ok_and(|format| (1..=FORMAT).contains(&format))
}
/// Rows copied in one transaction.
const COPY_ROWS: usize = 10_000;
/// For whoever reads a whole file.
const CHECK_CACHE_BYTES: usize = 64 << 20;
/// The file's name in a relay's data folder.
pub const NAME: &str = "store.redb";
/// Beside it: how often a relay has started on it.
const RUNS_NAME: &str = "store.runs";

/// How to open the store file at `path` for `region`; makes it if there is none.
pub fn opener(disk: Arc<dyn Disk>, path: PathBuf, region: RegionId, cache_bytes: usize) -> Opener {
    let ready = move |database: &Database, path: &Path| {
        prepare(database, path, &region)?;
        raise(database)
    };
    Arc::new(move || open_or_create(&*disk, &path, cache_bytes, |database| ready(database, &path)))
}

/// Opens the store of `region` at `path`, which must be there.
pub(super) fn open_for(disk: &dyn Disk, path: &Path, region: &RegionId) -> Result<Database, StoreError> {
    if disk.len(path).is_none() {
        return Err(StoreError::Missing(path.to_owned()));
    }
    let database = open(disk, path, CHECK_CACHE_BYTES)?;
    prepare(&database, path, region)?;
    Ok(database)
}

/// Opens a database that only one process may have open; makes it if there is none. `prepare` writes, or checks, what it
/// holds.
pub(crate) fn open_or_create(
    disk: &dyn Disk,
    path: &Path,
    cache_bytes: usize,
    prepare: impl Fn(&Database) -> Result<(), StoreError>,
) -> Result<Database, StoreError> {
    if disk.len(path).is_none() {
        create(disk, path, &prepare)?;
    }
    let database = open(disk, path, cache_bytes)?;
    prepare(&database)?;
    Ok(database)
}

/// Makes a store under another name and gives it its own once it is whole: an empty or half-made file under that name
/// is a store that was damaged, not one to begin anew.
fn create(
    disk: &dyn Disk,
    path: &Path,
    prepare: impl Fn(&Database) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let making = path.with_extension("new");
    let io = |source| StoreError::File { path: making.clone(), source };
    disk.remove(&making).map_err(io)?;
    let database = disk.create(&making)?;
    prepare(&database)?;
    drop(database);
    disk.rename(&making, path).map_err(io)
}

fn open(disk: &dyn Disk, path: &Path, cache_bytes: usize) -> Result<Database, StoreError> {
    let at = |what: &dyn ToString| StoreError::Corrupt { path: path.to_owned(), what: what.to_string() };
    if disk.len(path) == Some(0) {
        return Err(at(&"an empty file"));
    }
    match disk.open(path, cache_bytes) {
        Ok(database) => Ok(database),
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse(path.to_owned())),
        Err(redb::DatabaseError::UpgradeRequired(version)) => Err(at(&format!("redb file format {version}"))),
        Err(redb::DatabaseError::Storage(redb::StorageError::Corrupted(what))) => Err(at(&what)),
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(source))) => match source.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => Err(at(&source)),
            _ => Err(StoreError::File { path: path.to_owned(), source }),
        },
        Err(error) => Err(error.into()),
    }
}

/// Checks what the file says about itself; writes it, and all tables, in a new file.
pub fn prepare(database: &Database, path: &Path, region: &RegionId) -> Result<(), StoreError> {
    let now = Moment::now(database)?;
    if let Some(found) = meta::get(&now, meta::FORMAT)? {
        if !is_known(&found) {
            return Err(StoreError::Newer { path: path.to_owned(), found, known: FORMAT });
        }
        let found = meta::get(&now, meta::REGION)?.unwrap_or_default();
        if found != region.as_str() {
            let expected = region.to_string();
            return Err(StoreError::OtherRegion { path: path.to_owned(), found, expected });
        }
        return Ok(());
    }
    if !now.is_blank()? {
        let what = "a database of another program".to_owned();
        return Err(StoreError::Corrupt { path: path.to_owned(), what });
    }
    drop(now);
    change(database, |rows| {
        meta::put(rows, meta::FORMAT, &FORMAT.to_string())?;
        meta::put(rows, meta::GENERATION, "1")?;
        meta::put(rows, meta::REGION, region.as_str())
    })
}

/// Notes that this version writes to the store: one that knows former formats alone would not find all of it.
fn raise(database: &Database) -> Result<(), StoreError> {
    let format = FORMAT.to_string();
    if meta::get(&Moment::now(database)?, meta::FORMAT)?.as_ref() == Some(&format) {
        return Ok(());
    }
    change(database, |rows| meta::put(rows, meta::FORMAT, &format))
}

/// Makes changes and commits them.
fn change(
    database: &Database,
    of: impl FnOnce(&mut Transaction<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let txn = database.begin_write()?;
    of(&mut Transaction::new(&txn))?;
    Ok(txn.commit()?)
}

/// The store's generation: another with each copy that was made of it.
pub fn generation(database: &Database) -> Result<u64, StoreError> {
    let text = meta::get(&Moment::now(database)?, meta::GENERATION)?;
    text.and_then(|text| text.parse().ok()).ok_or(StoreError::Inconsistent("no generation"))
}

/// What clients compare anew for: it changes with the generation, and with copies of another region's chats.
pub(super) fn client_generation(database: &Database) -> Result<u64, StoreError> {
    let text = meta::get(&Moment::now(database)?, meta::COMPARISON)?;
    let comparison = text.and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(generation(database)? ^ comparison)
}

/// Counts a relay's start on its store. Where the store goes on from another past than the one that the relay in this
/// folder had last, it gets a new generation: it is a copy that was made by [`copy`], or an older file put back in its
/// place, which a count beside it tells. `generation` is one that no store had before.
pub(crate) fn begin_run(
    disk: &dyn Disk,
    database: &Database,
    folder: &Path,
    generation: u64,
) -> Result<(), StoreError> {
    let path = folder.join(RUNS_NAME);
    let beside: Option<u64> = match disk.read(&path) {
        Ok(bytes) => std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(StoreError::File { path, source }),
    };
    let read = Moment::now(database)?;
    let runs = meta::get(&read, meta::RUNS)?.and_then(|text| text.parse::<u64>().ok());
    let is_copy = meta::get(&read, meta::COPY)?.is_some();
    drop(read);
    // One more in the file than beside it is a crash between the two.
    let goes_on = match (runs, beside) {
        (Some(runs), Some(beside)) => runs == beside || runs == beside + 1,
        (Some(_), None) => false,
        (None, beside) => beside.is_none(),
    };
    let runs = runs.unwrap_or(0).max(beside.unwrap_or(0)) + 1;
    let restored = is_copy || !goes_on;
    match note_run(database, runs, restored.then_some(generation)) {
        Err(error) if restored => return Err(error),
        // On a full disk a relay starts all the same. At worst a later start is taken for a restore, which costs a
        // comparison.
        Err(error) => tracing::warn!(%error, "the start on the store cannot be noted"),
        Ok(()) => {
            if let Err(error) = disk.write(&path, runs.to_string().as_bytes()) {
                tracing::warn!(%error, path = %path.display(), "the start on the store cannot be noted");
            }
        }
    }
    Ok(())
}

fn note_run(database: &Database, runs: u64, restored: Option<u64>) -> Result<(), StoreError> {
    change(database, |rows| {
        meta::put(rows, meta::RUNS, &runs.to_string())?;
        if let Some(generation) = restored {
            tracing::warn!(generation, "the store was restored: clients and other regions compare what they have");
            meta::put(rows, meta::GENERATION, &generation.to_string())?;
            meta::remove(rows, meta::COPY)?;
        }
        Ok(())
    })
}

/// The region whose users and chats the store holds.
pub fn region(database: &Database) -> Result<RegionId, StoreError> {
    let text = meta::get(&Moment::now(database)?, meta::REGION)?;
    text.and_then(|text| text.parse().ok()).ok_or(StoreError::Inconsistent("no region"))
}

/// Copies the store as it is now to a new file at `to`, under a `generation` that no store had before. Each start on such
/// a copy has a generation of its own, so that clients compare what they have.
///
/// # Errors
/// If `to` exists, or cannot be written. A copy that failed leaves its file behind with no format in it, and no relay
/// starts on that.
pub fn copy(disk: &dyn Disk, database: &Database, to: &Path, generation: u64) -> Result<(), StoreError> {
    let from = Moment::now(database)?;
    let target = match disk.create(to) {
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(source))) => {
            return Err(StoreError::File { path: to.to_owned(), source });
        }
        made => made?,
    };
    for table in TableId::ALL.into_iter().filter(|table| *table != TableId::Meta) {
        let Some(source) = from.table(table)? else { continue };
        let mut rows = source.iter()?;
        loop {
            let txn = target.begin_write()?;
            let mut copied = 0;
            {
                let mut destination = txn.open_table(definition(table))?;
                for row in rows.by_ref().take(COPY_ROWS) {
                    let (key, value) = row?;
                    destination.insert(key.value(), value.value())?;
                    copied += 1;
                }
            }
            txn.commit()?;
            if copied < COPY_ROWS {
                break;
            }
        }
    }
    let region = meta::get(&from, meta::REGION)?.ok_or(StoreError::Inconsistent("no region"))?;
    change(&target, |rows| {
        meta::put(rows, meta::REGION, &region)?;
        meta::put(rows, meta::GENERATION, &generation.to_string())?;
        meta::put(rows, meta::COPY, "")?;
        meta::put(rows, meta::FORMAT, &FORMAT.to_string())
    })
}

/// Opens the store at `path`, which no relay may be using, and checks it: redb's own checksums, that every chat's log
/// is gapless and in order, and that its participants are what its log says.
pub fn check(path: &Path) -> Result<Report, StoreError> {
    if !path.exists() {
        return Err(StoreError::Missing(path.to_owned()));
    }
    let mut database = open(&SystemDisk, path, CHECK_CACHE_BYTES)?;
    let mut report = Report::default();
    if !database.check_integrity()? {
        report.fault("checksums did not match; redb repaired its tables");
    }
    let region = meta::get(&Moment::now(&database)?, meta::REGION)?.unwrap_or_default();
    let region = region
        .parse()
        .map_err(|_| StoreError::Corrupt { path: path.to_owned(), what: "no region is named in it".to_owned() })?;
    prepare(&database, path, &region)?;
    let now = Moment::now(&database)?;
    let count = |table| -> Result<u64, StoreError> { Ok(now.table(table)?.map_or(Ok(0), ReadableTableMetadata::len)?) };
    report.devices = count(TableId::Devices)?;
    report.inbox_rows = count(TableId::Inbox)?;
    let mut chats = Chats::default();
    now.each(LOG, &Span::ALL, |key, entry| {
        let mut parts = Parts(key);
        let (chat, seq) = (parts.chat()?, parts.seq()?);
        report.entries += 1;
        // A copy may begin anywhere.
        if *chat.home() == region { chats.take(&chat, seq, &entry, &now, &mut report) } else { Ok(()) }
    })?;
    chats.finish(&now, &mut report)?;
    let mut chat_rows = 0;
    now.each(CHATS, &Span::from(Key::new().home(&region).bytes()), |key, _| {
        chat_rows += u64::from(*Parts(key).chat()?.home() == region);
        Ok(())
    })?;
    if chat_rows != report.chats {
        report.fault(format!("{chat_rows} chats are listed, {} have a log", report.chats));
    }
    Ok(report)
}
