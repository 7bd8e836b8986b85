//! What happened, event by event: a running hash by which two runs are compared, and a file for whoever looks for a cause.

use siphasher::sip::SipHasher13;
use std::fmt::Display;
use std::fs::File;
use std::hash::Hasher;
use std::io::{BufWriter, Write};
use std::time::Duration;

/// The record of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: SipHasher13,
    events: u64,
    file: Option<BufWriter<File>>,
    /// Why the file has no more.
    failed: Option<std::io::Error>,
}

impl Trace {
    pub(crate) fn new(file: Option<File>) -> Self {
        let hash = SipHasher13::new_with_keys(0, 0);
        Self { hash, events: 0, file: file.map(BufWriter::new), failed: None }
    }

    fn count(&mut self, at: Duration, kind: u8) {
        self.events += 1;
        self.hash.write_u64(u64::try_from(at.as_micros()).unwrap_or(u64::MAX));
        self.hash.write_u8(kind);
    }

    fn line(&mut self, at: Duration, what: impl Display) {
        if let Some(file) = &mut self.file
            && let Err(error) = writeln!(file, "{:>12.6} {what}", at.as_secs_f64())
        {
            self.failed = Some(error);
            self.file = None;
        }
    }

    /// A packet: what became of it, by numbers that mean the same in every run. `what` is put into words only for a file.
    pub(crate) fn packet(&mut self, at: Duration, numbers: [u64; 4], what: impl Fn() -> String) {
        self.count(at, 0);
        for number in numbers {
            self.hash.write_u64(number);
        }
        if self.file.is_some() {
            self.line(at, what());
        }
    }

    /// Anything else.
    pub(crate) fn note(&mut self, at: Duration, what: &str) {
        self.count(at, 1);
        self.hash.write(what.as_bytes());
        self.line(at, what);
    }

    /// The hash and the number of events so far.
    pub(crate) fn sum(&self) -> (u64, u64) {
        (self.hash.finish(), self.events)
    }

    /// Writes out what is buffered.
    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}
