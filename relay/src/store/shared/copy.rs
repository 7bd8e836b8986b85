//! Copying a store from its file into a shared one, while no relay uses either.
//!
//! Until every row was read back from the shared store and found to be what the file holds, the place of the store's
//! format says that it is half a copy, of what, and how far it got: no relay starts on it, and whoever copies again goes
//! on from there.

use super::commit::{Failure, Pen};
use super::engine::{Engine, If, Item, Place};
use super::journal::{self, JOURNAL, Position, Sheet};
use super::{layout, live};
use crate::blobs::files::blob_in;
use crate::host::Host;
use crate::store::embedded::Moment;
use crate::store::file::{self, FORMAT};
use crate::store::keys::{self, Parts, Span};
use crate::store::rows::{Records, Rows, Scan};
use crate::store::tables::{BLOBS, TableId};
use crate::store::{StoreError, meta};
use bytes::Bytes;
use godwit_wire::{RegionId, Seq};
use redb::{Database, ReadableTableMetadata};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::ops::{AddAssign, ControlFlow};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Rows and bytes that are written before it is noted how far the copy is.
const STRETCH_ROWS: usize = 10_000;
const STRETCH_BYTES: usize = 16 << 20;
/// So many parts of a stretch are written at the same time.
const PARTS: usize = 8;
/// Entries lie together in items up to this size: writes are paid by the KB, and reads of one entry by its whole item.
const SHEET_BYTES: usize = 16 << 10;
/// Before a [`Note`], in place of the store's format.
const COPYING: &[u8] = b"copying ";

/// How many rows there are, and what is in them, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub rows: u64,
    /// The sum of the first halves of the rows' SHA-256 hashes.
    sum: u128,
}

impl Digest {
    fn take(&mut self, table: TableId, key: &[u8], value: &[u8]) {
        let mut hash = Sha256::new();
        let table = [table as u8];
        for part in [&table[..], &(key.len() as u64).to_be_bytes(), key, value] {
            hash.update(part);
        }
        let half = hash.finalize().first_chunk().copied().unwrap_or_default();
        *self += Self { rows: 1, sum: u128::from_be_bytes(half) };
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, hash {:032x}", self.rows, self.sum)
    }
}

/// What a copy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Counts and hashes what is in the file.
    Reads,
    Writes,
    /// Reads everything back from the shared store.
    Verifies,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub step: Step,
    pub rows: u64,
    /// Of so many. While it reads back, there may turn out to be more.
    pub of: u64,
}

/// How far a copy got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// What the file holds.
    of: Digest,
    /// Rows that are written.
    rows: u64,
    /// Where it goes on: behind this key of the table, or with the first.
    table: TableId,
    after: Option<Vec<u8>>,
}

impl Note {
    fn encode(&self) -> Result<Bytes, StoreError> {
        let encoded = postcard::to_extend(self, COPYING.to_vec());
        encoded.map(Bytes::from).map_err(|_| StoreError::Inconsistent("a note cannot be written"))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes.strip_prefix(COPYING)?).ok()
    }
}

/// Whether a store's format says that it is half a copy.
pub(super) fn is_half(format: &str) -> bool {
    format.as_bytes().starts_with(COPYING)
}

/// What is copied.
#[derive(Clone, Debug)]
pub struct Source {
    /// A relay's data folder.
    pub folder: PathBuf,
    /// Where its attachments are, if they are files. It is not copied if one of them is.
    pub attachments: Option<PathBuf>,
}

/// Copies the store of `region` in a relay's data folder into a shared one that was just made ready. Gives what was
/// copied, once it was read back. One that was interrupted goes on from where it was.
///
/// To the file, it is as if a relay had started on it: one that was put in place from a backup gets another generation.
///
/// Cancel safety: dropped, it goes on.
///
/// # Errors
/// The file is not there, is in use, or is another region's; attachments are files; the shared store has something in it,
/// or half a copy of something else; and the engine's.
pub async fn copy(
    source: Source,
    engine: Arc<dyn Engine>,
    region: &RegionId,
    host: &Host,
    told: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<Digest, StoreError> {
    let Source { folder, attachments } = source;
    let database = file::open_for(&*host.disk, &folder.join(file::NAME), region)?;
    file::begin_run(&*host.disk, &database, &folder, host.crypto.random_number())?;
    let pen = Pen { engine, bounds: Arc::default(), me: 0 };
    let copier = Copier { database, attachments, pen, region: region.clone(), told: Box::new(told) };
    let (tell, result) = oneshot::channel();
    let thread = host.threads.start("store-copy", async move {
        // Whoever asked may be gone.
        let _ = tell.send(copier.run().await);
    });
    let thread = thread.map_err(|source| StoreError::File { path: folder, source })?;
    let result = result.await;
    thread.ended().await;
    result.unwrap_or(Err(StoreError::Closed))
}

struct Copier {
    database: Database,
    attachments: Option<PathBuf>,
    pen: Pen,
    region: RegionId,
    told: Box<dyn Fn(Progress) + Send + Sync>,
}

/// Where a store says what it is.
fn format() -> Result<Place, StoreError> {
    layout::place(TableId::Meta, meta::FORMAT.as_bytes())
}

/// The tables of rows, in the order in which they are copied.
fn tables() -> impl Iterator<Item = TableId> {
    TableId::ALL.into_iter().filter(|table| *table != TableId::Meta)
}

impl Copier {
    async fn run(&self) -> Result<Digest, StoreError> {
        self.look_for_attachments()?;
        let expected = self.read()?;
        let mut of = Digest::default();
        for (_, digest) in &expected {
            of += *digest;
        }
        let (mut note, mut noted) = self.begin(of).await?;
        for table in tables().skip_while(|table| *table != note.table).collect::<Vec<_>>() {
            if table != note.table {
                note = Note { table, after: None, ..note };
            }
            while let Some(stretch) = self.stretch(table, note.after.as_deref())? {
                self.write(stretch.items).await?;
                note.after = Some(stretch.last);
                note.rows += stretch.rows;
                noted = self.note(noted, &note).await?;
                (self.told)(Progress { step: Step::Writes, rows: note.rows, of: of.rows });
            }
        }
        self.verify(&expected, of)?;
        self.finish(noted).await?;
        Ok(of)
    }

    fn look_for_attachments(&self) -> Result<(), StoreError> {
        let Some(folder) = &self.attachments else { return Ok(()) };
        let mut count = 0_u64;
        Moment::now(&self.database)?.each(BLOBS, &Span::ALL, |key, _| {
            count += u64::from(blob_in(folder, Parts(key).blob()?).exists());
            Ok(())
        })?;
        if count > 0 { Err(StoreError::AttachmentsInFiles { count, folder: folder.clone() }) } else { Ok(()) }
    }

    /// What the file holds, by table.
    fn read(&self) -> Result<Vec<(TableId, Digest)>, StoreError> {
        let file = Moment::now(&self.database)?;
        let mut progress = Progress { step: Step::Reads, rows: 0, of: 0 };
        for table in tables() {
            progress.of += file.table(table)?.map_or(Ok(0), ReadableTableMetadata::len)?;
        }
        let mut found = Vec::new();
        for table in tables() {
            let mut digest = Digest::default();
            file.scan(table, &Span::ALL, Scan::ALL, &mut |key, value| {
                digest.take(table, key, value);
                progress.rows += 1;
                if progress.rows.is_multiple_of(1000) {
                    (self.told)(progress);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            found.push((table, digest));
        }
        Ok(found)
    }

    /// Marks an empty store as half a copy, or finds how far one got. Gives also what stands there now.
    async fn begin(&self, of: Digest) -> Result<(Note, Bytes), StoreError> {
        let format = self.pen.engine.get(&format()?)?.map(|item| item.value);
        if let Some(found) = &format
            && let Some(note) = Note::decode(found)
        {
            return if note.of == of { Ok((note, found.clone())) } else { Err(StoreError::OtherCopy) };
        }
        super::check(&live::Live::new(self.pen.engine.clone(), None), &self.region)?;
        for table in tables().map(TableId::name).chain([JOURNAL]) {
            if !self.pen.engine.scan(table, None)?.items.is_empty() {
                return Err(StoreError::NotEmpty);
            }
        }
        let note = Note { of, rows: 0, table: TableId::Log, after: None };
        let noted = self.note(format.unwrap_or_default(), &note).await?;
        Ok((note, noted))
    }

    /// Gives what stands there now.
    async fn note(&self, before: Bytes, note: &Note) -> Result<Bytes, StoreError> {
        let value = note.encode()?;
        self.replace(before, value.clone()).await?;
        Ok(value)
    }

    /// Whoever copies at the same time finds another note than their own.
    async fn replace(&self, before: Bytes, value: Bytes) -> Result<(), StoreError> {
        let item = Item { value, order: 0 };
        match self.pen.fenced(format()?, item, If::Value(before)).await {
            Ok(()) => Ok(()),
            Err(Failure::Outrun) => Err(StoreError::OtherCopy),
            Err(Failure::Fault(error)) => Err(error),
        }
    }

    /// The next rows of a table; none at its end.
    fn stretch(&self, table: TableId, after: Option<&[u8]>) -> Result<Option<Stretch>, StoreError> {
        let file = Moment::now(&self.database)?;
        let span = after.map_or(Span::ALL, |after| Span::ALL.after(after.to_vec()));
        let mut found = Stretch { items: Vec::new(), rows: 0, last: Vec::new() };
        let (mut bytes, mut sheet) = (0, Packing::default());
        file.scan(table, &span, Scan { most: STRETCH_ROWS, ..Scan::ALL }, &mut |key, value| {
            bytes += key.len() + value.len();
            found.rows += 1;
            found.last = key.to_vec();
            if table == TableId::Log {
                found.items.extend(sheet.take(key, value)?);
            } else {
                // Whoever opens the store takes up what a mark says, whose ever it is: one that is nobody's.
                let value = if table == TableId::Dirty { &0u64.to_be_bytes()[..] } else { value };
                found.items.push((layout::place(table, key)?, Item { value: Bytes::copy_from_slice(value), order: 0 }));
            }
            Ok(if bytes < STRETCH_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        found.items.extend(sheet.close()?);
        Ok(Some(found).filter(|found| found.rows > 0))
    }

    async fn write(&self, mut items: Vec<(Place, Item)>) -> Result<(), StoreError> {
        let each = items.len().div_ceil(PARTS).max(1);
        let mut writing = JoinSet::new();
        while !items.is_empty() {
            let rest = items.split_off(each.min(items.len()));
            let (engine, part) = (self.pen.engine.clone(), std::mem::replace(&mut items, rest));
            writing.spawn(async move { engine.put_all(part).await });
        }
        while let Some(written) = writing.join_next().await {
            written.map_err(|_| StoreError::Closed)??;
        }
        Ok(())
    }

    /// Reads everything back.
    fn verify(&self, expected: &[(TableId, Digest)], of: Digest) -> Result<(), StoreError> {
        let mut progress = Progress { step: Step::Verifies, rows: 0, of: of.rows };
        let rows = live::Live::new(self.pen.engine.clone(), None);
        for (table, expected) in expected {
            let mut found = Digest::default();
            rows.whole(*table, |key, value| {
                found.take(*table, &key, &value);
                progress.rows += 1;
                if progress.rows.is_multiple_of(1000) {
                    (self.told)(progress);
                }
            })?;
            if found != *expected {
                let (table, expected) = (table.name(), *expected);
                return Err(StoreError::Differs { table, found, expected });
            }
        }
        Ok(())
    }

    /// From here on relays may start.
    async fn finish(&self, noted: Bytes) -> Result<(), StoreError> {
        let mut items = Vec::new();
        let names = meta::beginning_with(&Moment::now(&self.database)?, "")?;
        for (name, value) in names {
            if ![meta::FORMAT, meta::RUNS].contains(&name.as_str()) {
                items.push((layout::place(TableId::Meta, name.as_bytes())?, Item { value: value.into(), order: 0 }));
            }
        }
        self.write(items).await?;
        self.replace(noted, FORMAT.to_string().into()).await
    }
}

/// Rows that are written before it is noted how far the copy is, as items.
struct Stretch {
    items: Vec<(Place, Item)>,
    rows: u64,
    last: Vec<u8>,
}

/// Entries that lie together in one item of a log.
#[derive(Default)]
struct Packing {
    /// Where the item stands, and at which seq.
    at: Option<(Place, Seq)>,
    entries: Vec<Bytes>,
    bytes: usize,
}

impl Packing {
    /// Takes the next entry; gives the item before it if it is full, or ends.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<Option<(Place, Item)>, StoreError> {
        let place = layout::place(TableId::Log, key)?;
        let seq = Seq::new(keys::number_of(key)?).map_err(|_| StoreError::BadKey)?;
        let goes_on = self.at.as_ref().is_some_and(|(first, at)| {
            first.partition == place.partition
                && at.get() + self.entries.len() as u64 == seq.get()
                && self.bytes + value.len() <= SHEET_BYTES
        });
        let before = if goes_on { None } else { self.close()? };
        self.at.get_or_insert((place, seq));
        self.entries.push(Bytes::copy_from_slice(value));
        self.bytes += value.len();
        Ok(before)
    }

    fn close(&mut self) -> Result<Option<(Place, Item)>, StoreError> {
        let Self { at, entries, .. } = std::mem::take(self);
        let Some((place, first)) = at else { return Ok(None) };
        let order = Position { next: first, ..Position::START }.order()?;
        Ok(Some((place, journal::item(&Sheet { entries, ..Sheet::default() }, order)?)))
    }
}
