//! What can go wrong with a store.

use super::shared::copy::Digest;
use super::shared::engine::EngineError;
use godwit_wire::{Code, Refusal};
use std::path::PathBuf;
use std::time::Duration;

/// A fault of the store. A client hears `Unavailable`.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Database(Box<redb::Error>),
    #[error("a record in the store: {0}")]
    Record(#[from] godwit_core::entry::RecordError),
    #[error("a key in the store cannot be read")]
    BadKey,
    #[error("the store contradicts itself: {0}")]
    Inconsistent(&'static str),
    #[error("the store is being opened anew")]
    Closed,
    #[error("the shared store: {0}")]
    Engine(#[from] EngineError),
    #[error("the shared store was not made ready: run `godwit store init`")]
    NotMade,
    #[error(
        "the shared store is in use, and has lost tables {}: restore them from a backup, or begin anew with another \
         dynamodb.prefix",
        .0.join(", ")
    )]
    TablesLost(Vec<String>),
    #[error("the shared store is of region {found}, not of {expected}: each region has a prefix of its own")]
    SharedOtherRegion { found: String, expected: String },
    #[error("the shared store has format {found}, which is newer than this version's {known}: use a newer godwit")]
    SharedNewer { found: String, known: u32 },
    #[error("the shared store is half a copy: run `godwit store copy` again, it goes on")]
    HalfCopied,
    #[error("the shared store is not empty; a copy begins with tables that `godwit store init` has just made")]
    NotEmpty,
    #[error(
        "the shared store holds half a copy of something else, or another `store copy` goes on: begin anew with another \
         dynamodb.prefix"
    )]
    OtherCopy,
    #[error("the copy of table {table} has {found}, its file {expected}: begin anew with another dynamodb.prefix")]
    Differs { table: &'static str, found: Digest, expected: Digest },
    #[error(
        "{count} attachments are files in {}, which relays that share a store do not have: --leave-attachments copies \
         everything but them",
        folder.display()
    )]
    AttachmentsInFiles { count: u64, folder: PathBuf },
    #[error("a shared store is backed up by its own means")]
    NoBackup,
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: there is no store", .0.display())]
    Missing(PathBuf),
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{}: not a store, or damaged: {what}", path.display())]
    Corrupt { path: PathBuf, what: String },
    #[error("{}: format {found}, which is newer than this version's {known}: use a newer godwit", path.display())]
    Newer { path: PathBuf, found: String, known: u32 },
    #[error("{}: the store of region {found}, not of {expected}", path.display())]
    OtherRegion { path: PathBuf, found: String, expected: String },
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}
from_redb!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError, redb::DatabaseError);

impl StoreError {
    /// How a client hears of it.
    pub fn refusal(&self) -> Refusal {
        Refusal::retry(Code::Unavailable, Duration::from_secs(2))
    }
}
