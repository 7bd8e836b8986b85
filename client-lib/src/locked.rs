//! A file that one holder at a time has, of all processes.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;

/// A file with its lock (`flock(2)`), which is given up when this is dropped.
///
/// It is given up by name, not only closed: a lock belongs to the open file, which a child process has too between its
/// fork and its exec. Closing our side alone would leave the lock taken that long, in an app that starts a process
/// just then.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Locked {
    /// Takes the lock of `file`; none if somebody has it.
    pub(crate) fn take(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "a file's lock is given up only when it is closed everywhere");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_free_once_dropped_although_a_child_has_the_file_open() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let take = || Locked::take(File::options().append(true).open(&path).unwrap()).unwrap();
        let held = take().unwrap();
        // What a fork does: another descriptor of the same open file.
        let inherited = held.try_clone().unwrap();
        assert!(take().is_none(), "it is held");
        drop(held);
        assert!(take().is_some(), "it was given up");
        drop(inherited);
    }
}
