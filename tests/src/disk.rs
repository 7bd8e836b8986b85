//! A disk that fails: redb's storage in memory, with faults to switch on. What was written and not synced is kept, lost
//! or torn by a crash.

use redb::{Database, StorageBackend};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a crash may tear apart.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct State {
    /// What a reader sees.
    now: Vec<u8>,
    /// What survives for certain.
    synced: Vec<u8>,
    fail_sync: bool,
    full: bool,
}

/// A disk. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on syncing fails, or works again. What was written before a sync that failed may have landed.
    pub fn fail_sync(&self, fail: bool) {
        self.state().fail_sync = fail;
    }

    /// From now on writing and growing fail, or work again.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// Power is lost: each sector that was not synced is kept or lost, as `keep` says.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) {
        let mut state = self.state();
        let State { now, synced, .. } = &mut *state;
        synced.resize(now.len(), 0);
        for (old, new) in synced.chunks_mut(SECTOR).zip(now.chunks(SECTOR)) {
            if old != new && keep() {
                old.copy_from_slice(new);
            }
        }
        now.clone_from(synced);
    }

    /// Opens a database on it.
    pub fn open(&self) -> Result<Database, redb::DatabaseError> {
        Database::builder().create_with_backend(self.clone())
    }
}

fn full() -> io::Error {
    io::Error::from(ErrorKind::StorageFull)
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let start = usize::try_from(offset).expect("a test's disk is small");
        let state = self.state();
        let bytes = state.now.get(start..start + out.len()).ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.state();
        let len = usize::try_from(len).expect("a test's disk is small");
        if state.full && len > state.now.len() {
            return Err(full());
        }
        state.now.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut state = self.state();
        if state.fail_sync {
            return Err(io::Error::other("the disk does not sync"));
        }
        let State { now, synced, .. } = &mut *state;
        synced.clone_from(now);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut state = self.state();
        let start = usize::try_from(offset).expect("a test's disk is small");
        if state.full {
            return Err(full());
        }
        state.now[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}
