//! What a pull brings: a relay's claims in pages of bounded size, over a stream.

use crate::hash::{Change, UserHash};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Claims or changes in one page: 32 KiB.
pub const PAGE_CLAIMS: usize = 4096;

/// One page. They must arrive in order and without gaps, as on a stream; the last one says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimsPage {
    pub epoch: u64,
    pub part: Part,
    pub last: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Some of all the claims there were at `version`. A user's hash appears once for each user that has it.
    Snapshot { version: u64, hashes: Vec<UserHash> },
    /// The changes number `first`, `first + 1` …. They follow a snapshot, if there was one.
    Changes { first: u64, changes: Vec<Change> },
}

impl ClaimsPage {
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("pages hold nothing that postcard refuses")
    }

    /// `None` for bytes that are not a page. Allocates no more than they hold.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

/// The pages of one pull, cut as they are taken. They show the claims at the time of the call, and hold on to them: drop
/// them when the peer is too slow.
#[derive(Debug)]
pub struct Pages {
    pub(crate) epoch: u64,
    /// All claims at a version, and how many were taken.
    pub(crate) snapshot: Option<(u64, Arc<[UserHash]>, usize)>,
    pub(crate) first: u64,
    pub(crate) changes: Vec<Change>,
    pub(crate) done: bool,
}

impl Iterator for Pages {
    type Item = ClaimsPage;

    fn next(&mut self) -> Option<ClaimsPage> {
        if self.done {
            return None;
        }
        if let Some((version, claims, taken)) = &mut self.snapshot {
            let end = (*taken + PAGE_CLAIMS).min(claims.len());
            let part = Part::Snapshot { version: *version, hashes: claims[*taken..end].to_vec() };
            *taken = end;
            if end == claims.len() {
                self.snapshot = None;
            }
            return Some(ClaimsPage { epoch: self.epoch, part, last: false });
        }
        let rest = self.changes.split_off(self.changes.len().min(PAGE_CLAIMS));
        let changes = std::mem::replace(&mut self.changes, rest);
        self.done = self.changes.is_empty();
        let first = self.first;
        self.first += changes.len() as u64;
        Some(ClaimsPage { epoch: self.epoch, part: Part::Changes { first, changes }, last: self.done })
    }
}
