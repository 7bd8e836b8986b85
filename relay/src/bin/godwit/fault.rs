//! What went wrong, as an exit code and one sentence.

use godwit_certs::folder::FolderError;
use godwit_relay::StartError;
use godwit_relay::config::ConfigError;
use godwit_relay::store::StoreError;
use godwit_relay::store::shared::engine::EngineError;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug)]
pub(crate) struct Fault {
    code: u8,
    error: anyhow::Error,
}

pub(crate) const FAULT: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const REFUSED: u8 = 3;
pub(crate) const UNREACHABLE: u8 = 4;
const IN_USE: u8 = 5;
const CORRUPT: u8 = 6;

impl Fault {
    pub(crate) fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into() }
    }

    pub(crate) fn report(&self) -> ExitCode {
        say(&format!("godwit: {self}"));
        ExitCode::from(self.code)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.error.to_string();
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            // Many errors name their cause themselves.
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)
    }
}

/// Prints a line on standard output, at once. Whoever stopped reading is no fault of ours.
pub(crate) fn print(line: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fault::new(FAULT, anyhow::anyhow!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Says something on standard error, if anybody listens.
pub(crate) fn say(line: &str) {
    // There is nowhere left to complain.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Self::new(FAULT, error)
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Self::new(USAGE, error)
    }
}

impl From<FolderError> for Fault {
    fn from(error: FolderError) -> Self {
        Self::new(USAGE, error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::InUse(_) => IN_USE,
            StoreError::Corrupt { .. }
            | StoreError::Differs { .. }
            | StoreError::Newer { .. }
            | StoreError::SharedNewer { .. }
            | StoreError::TablesLost(_)
            | StoreError::Record(_)
            | StoreError::BadKey => CORRUPT,
            StoreError::Database(ref error) if matches!(**error, redb::Error::Corrupted(_)) => CORRUPT,
            StoreError::OtherRegion { .. }
            | StoreError::SharedOtherRegion { .. }
            | StoreError::NotMade
            | StoreError::HalfCopied
            | StoreError::NotEmpty
            | StoreError::OtherCopy
            | StoreError::AttachmentsInFiles { .. }
            | StoreError::Engine(EngineError::Setup(_))
            | StoreError::Missing(_) => USAGE,
            StoreError::Engine(EngineError::NoAnswer(_) | EngineError::Throttled) => UNREACHABLE,
            _ => FAULT,
        };
        Self::new(code, error)
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => error.into(),
            StartError::Bind { .. } if is_in_use(&error) => Self::new(IN_USE, error),
            StartError::Certificates(_)
            | StartError::Tls(_)
            | StartError::OtherRelay { .. }
            | StartError::Attachments(_)
            | StartError::Engine(_) => Self::new(USAGE, error),
            other => Self::new(FAULT, other),
        }
    }
}

fn is_in_use(error: &StartError) -> bool {
    matches!(error, StartError::Bind { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse)
}
