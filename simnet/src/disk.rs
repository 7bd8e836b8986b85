//! A relay's disk: files in memory, and what a crash, a full or a failing disk does to them.
//!
//! What was written and not synced is kept, lost or torn by a crash, sector by sector; small files are replaced whole or
//! not at all, as the relay does it on a real disk with rename and fsync.

use fastrand::Rng;
use godwit_relay::host::Disk;
use redb::{Database, DatabaseError, StorageBackend, StorageError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a crash may tear apart.
const SECTOR: usize = 512;
/// What a sync takes on a good disk, at least; up to twice of it.
pub const SYNC: Duration = Duration::from_millis(1);

/// What becomes of unsynced sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unsynced {
    Kept,
    Lost,
    /// Each kept or lost at random.
    Torn,
}

#[derive(Clone, Debug, Default)]
struct File {
    bytes: Vec<u8>,
    /// The length that survives for certain.
    synced_len: usize,
    /// Sectors written since the last sync, as they were then.
    before: BTreeMap<usize, Vec<u8>>,
    open: bool,
}

impl File {
    /// Remembers what stands where something is to be written.
    fn note(&mut self, start: usize, len: usize) {
        let end = (start + len).min(self.synced_len);
        if start >= end {
            return;
        }
        for sector in start / SECTOR..=(end - 1) / SECTOR {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.synced_len).min(self.bytes.len());
            let old = &self.bytes[from..to];
            self.before.entry(sector).or_insert_with(|| old.to_vec());
        }
    }

    fn sync(&mut self) {
        self.before.clear();
        self.synced_len = self.bytes.len();
    }

    fn crash(&mut self, mut keep: impl FnMut() -> bool) {
        self.open = false;
        if self.bytes.len() != self.synced_len && !keep() {
            self.bytes.resize(self.synced_len, 0);
        }
        // Of a part that was never synced, what was not kept is empty.
        let len = self.bytes.len();
        let fresh = self.synced_len.div_ceil(SECTOR)..len.div_ceil(SECTOR);
        for sector in fresh {
            if !keep() {
                self.bytes[sector * SECTOR..((sector + 1) * SECTOR).min(len)].fill(0);
            }
        }
        for (sector, old) in std::mem::take(&mut self.before) {
            let from = sector * SECTOR;
            if !keep() && from + old.len() <= len {
                self.bytes[from..from + old.len()].copy_from_slice(&old);
            }
        }
        self.synced_len = len;
    }
}

#[derive(Debug)]
struct State {
    rng: Rng,
    files: BTreeMap<PathBuf, File>,
    /// Whoever opened a file in an earlier life cannot use it any more.
    life: u32,
    /// There is no power.
    off: bool,
    capacity: u64,
    fail_sync: bool,
    /// What a sync takes, at least.
    sync_takes: Duration,
    took: Duration,
    syncs: u64,
    /// Power fails at this sync, before it is done.
    crash_at: Option<u64>,
}

/// Called when power fails in the middle of a write. It must take the host off the network at once.
pub type PowerFailed = Arc<dyn Fn() + Send + Sync>;

/// A disk. Cloning shares it.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    power_failed: PowerFailed,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    pub const CAPACITY: u64 = 4 << 30;

    pub fn new(seed: u64, power_failed: PowerFailed) -> Self {
        let state = State {
            rng: Rng::with_seed(seed),
            files: BTreeMap::new(),
            life: 0,
            off: false,
            capacity: Self::CAPACITY,
            fail_sync: false,
            sync_takes: SYNC,
            took: Duration::ZERO,
            syncs: 0,
            crash_at: None,
        };
        Self { state: Arc::new(Mutex::new(state)), power_failed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power is gone: whoever worked on it cannot any more.
    pub fn crash(&self, unsynced: Unsynced) {
        let mut state = self.state();
        state.life += 1;
        state.off = true;
        state.crash_at = None;
        state.took = Duration::ZERO;
        let State { rng, files, .. } = &mut *state;
        for file in files.values_mut() {
            file.crash(|| match unsynced {
                Unsynced::Kept => true,
                Unsynced::Lost => false,
                Unsynced::Torn => rng.bool(),
            });
        }
    }

    /// Power is back.
    pub fn power_on(&self) {
        self.state().off = false;
    }

    /// Power fails in the middle of a write, `syncs` syncs from now.
    pub fn crash_at(&self, syncs: u64) {
        let mut state = self.state();
        state.crash_at = Some(state.syncs + syncs);
    }

    pub fn set_fail_sync(&self, fail: bool) {
        self.state().fail_sync = fail;
    }

    /// No more than what is there already, or all of it again.
    pub fn set_full(&self, full: bool) {
        let mut state = self.state();
        state.capacity = if full { used(&state.files) } else { Self::CAPACITY };
    }

    pub fn set_sync_takes(&self, takes: Duration) {
        self.state().sync_takes = takes;
    }

    /// What calls took since this was asked last.
    pub fn took(&self) -> Duration {
        std::mem::take(&mut self.state().took)
    }

    /// A copy of a file, as it is now.
    pub fn copy(&self, path: &Path) -> Option<Vec<u8>> {
        self.state().files.get(path).map(|file| file.bytes.clone())
    }

    /// Puts a file there; everything else stays.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let file = File { synced_len: bytes.len(), bytes, ..File::default() };
        self.state().files.insert(path.to_owned(), file);
    }

    /// All that was on it is gone.
    pub fn wipe(&self) {
        self.state().files.clear();
    }

    fn handle(&self, path: &Path) -> Handle {
        Handle { disk: self.clone(), path: path.to_owned(), life: self.state().life }
    }
}

fn used(files: &BTreeMap<PathBuf, File>) -> u64 {
    files.values().map(|file| file.bytes.len() as u64).sum()
}

fn powerless() -> io::Error {
    io::Error::other("the power is off")
}

fn missing() -> io::Error {
    ErrorKind::NotFound.into()
}

impl Disk for SimDisk {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn len(&self, path: &Path) -> Option<u64> {
        self.state().files.get(path).map(|file| file.bytes.len() as u64)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.copy(path).ok_or_else(missing)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if state.off || state.fail_sync {
            return Err(io::Error::other("the disk does not sync"));
        }
        if used(&state.files) + bytes.len() as u64 > state.capacity {
            return Err(ErrorKind::StorageFull.into());
        }
        let takes = state.sync_takes;
        state.took += takes;
        drop(state);
        self.put(path, bytes.to_vec());
        Ok(())
    }

    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
        let mut state = self.state();
        if state.off {
            return Err(StorageError::Io(powerless()).into());
        }
        let file = state.files.get_mut(path).ok_or_else(|| StorageError::Io(missing()))?;
        if std::mem::replace(&mut file.open, true) {
            return Err(DatabaseError::DatabaseAlreadyOpen);
        }
        drop(state);
        Database::builder().set_cache_size(cache_bytes).create_with_backend(self.handle(path))
    }

    fn create(&self, path: &Path) -> Result<Database, DatabaseError> {
        let mut state = self.state();
        if state.off {
            return Err(StorageError::Io(powerless()).into());
        }
        if state.files.contains_key(path) {
            return Err(StorageError::Io(ErrorKind::AlreadyExists.into()).into());
        }
        state.files.insert(path.to_owned(), File { open: true, ..File::default() });
        drop(state);
        Database::builder().create_with_backend(self.handle(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let file = state.files.remove(from).ok_or_else(missing)?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state().files.remove(path);
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> Option<u64> {
        let state = self.state();
        Some(state.capacity.saturating_sub(used(&state.files)))
    }
}

/// An open file, under redb.
#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    path: PathBuf,
    life: u32,
}

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&mut State, &Path) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.life != self.life {
            return Err(powerless());
        }
        act(&mut state, &self.path)
    }

    fn on_file<T>(&self, act: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        self.with(|state, path| act(state.files.get_mut(path).ok_or_else(missing)?))
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a simulated disk fits the memory")
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.on_file(|file| Ok(file.bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.on_file(|file| {
            let start = place(offset);
            let bytes = file.bytes.get(start..start + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|state, path| {
            let now = state.files.get(path).ok_or_else(missing)?.bytes.len() as u64;
            if len > now && used(&state.files) + (len - now) > state.capacity {
                return Err(ErrorKind::StorageFull.into());
            }
            let file = state.files.get_mut(path).ok_or_else(missing)?;
            file.note(place(len), file.bytes.len().saturating_sub(place(len)));
            file.bytes.resize(place(len), 0);
            file.synced_len = file.synced_len.min(file.bytes.len());
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let failed = self.with(|state, path| {
            state.syncs += 1;
            if state.crash_at.is_some_and(|at| state.syncs >= at) {
                state.life += 1;
                state.off = true;
                return Ok(true);
            }
            if state.fail_sync {
                return Err(io::Error::other("the disk does not sync"));
            }
            let takes = state.sync_takes;
            state.took += takes + takes.mul_f64(state.rng.f64());
            state.files.get_mut(path).ok_or_else(missing)?.sync();
            Ok(false)
        })?;
        if failed {
            (self.disk.power_failed)();
            return Err(powerless());
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.on_file(|file| {
            let start = place(offset);
            file.note(start, data.len());
            let target = file.bytes.get_mut(start..start + data.len()).ok_or(ErrorKind::UnexpectedEof)?;
            target.copy_from_slice(data);
            Ok(())
        })
    }

    fn close(&self) -> io::Result<()> {
        self.on_file(|file| {
            file.open = false;
            Ok(())
        })
    }
}
