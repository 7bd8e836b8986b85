//! What can go wrong, as the app hears it.

use godwit_wire::Refusal;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The relay, or this library before asking it, said no. Nothing was changed.
    #[error("{0}")]
    Refused(Refusal),
    /// No relay could be reached, or none answered in time. What was asked for stays pending.
    #[error("{0}")]
    Unreachable(String),
    #[error("not done within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// Another process works on this home.
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{}: damaged: {what}", path.display())]
    Corrupt { path: PathBuf, what: String },
    #[error("{}: written by a newer version (format {found}, this one knows {known})", path.display())]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{}: no device is enrolled here; enrol first", .0.display())]
    NotEnrolled(PathBuf),
    #[error("{}: a device is enrolled here already", .0.display())]
    AlreadyEnrolled(PathBuf),
    /// A value that was passed in.
    #[error("{0}")]
    Invalid(String),
    #[error("the device's store: {0}")]
    Store(#[from] rusqlite::Error),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("certificates: {0}")]
    Certificates(String),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// When what failed can be tried again, if it may pass by itself; `usual` is the wait if it names none.
    pub(crate) fn again_after(&self, usual: Duration) -> Option<Duration> {
        match self {
            Self::Refused(refusal) if refusal.code.is_passing() => Some(refusal.retry_after().unwrap_or(usual)),
            Self::Unreachable(_) => Some(usual),
            _ => None,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
