//! What is known of one relay's claims, and the pull that brings the rest.

use crate::hash::Change;
use crate::page::{ClaimsPage, PAGE_CLAIMS, Part};
use crate::table::{Full, Number, Table};
use godwit_wire::RelayId;

/// Why a page was refused. What was known before stays, except with [`PageError::Full`]; the pull counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("no pull from this relay is going on")]
    NotAsked,
    #[error("the page is of another epoch")]
    Epoch,
    #[error("the page does not follow on what is known")]
    Order,
    #[error("the page is larger than allowed")]
    TooLarge,
    #[error("the claims of this relay do not fit")]
    Full,
}

/// How a pull goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pull {
    Idle,
    /// Under way; `wanted` is what was known to exist when it began.
    Asked {
        wanted: u64,
    },
    /// Not before the timer with this number.
    Resting {
        token: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub epoch: u64,
    /// Every change up to here is in the table. `None` until it is known whether there are any.
    pub version: Option<u64>,
    /// Changes up to here are said to exist.
    pub wanted: u64,
    pub number: Number,
    /// A snapshot on its way in: hidden until it is complete.
    pub loading: Option<(Number, u64)>,
    pub pull: Pull,
    pub failures: u32,
}

impl Peer {
    pub fn new(epoch: u64, number: Number) -> Self {
        Self { epoch, version: None, wanted: 0, number, loading: None, pull: Pull::Idle, failures: 0 }
    }

    pub fn known(&self) -> u64 {
        self.version.unwrap_or(0)
    }

    pub fn lacks(&self) -> bool {
        self.version.is_none() || self.wanted > self.known()
    }

    /// Applies what is new of these changes; [`PageError::Order`] if they begin after the next one.
    pub fn apply(&mut self, table: &mut Table, first: u64, changes: &[Change]) -> Result<(), PageError> {
        first.checked_add(changes.len() as u64).filter(|_| first > 0).ok_or(PageError::Order)?;
        let next = self.known().checked_add(1).ok_or(PageError::Order)?;
        let skip = next.checked_sub(first).ok_or(PageError::Order)?;
        // An empty page that starts at 1 says that there is nothing.
        let version = self.version.insert(next - 1);
        for &change in changes.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)) {
            table.apply(&self.number, change).map_err(|Full| PageError::Full)?;
            *version += 1;
        }
        Ok(())
    }

    /// Takes one page of a pull. A snapshot is loaded aside and replaces what was there when the first changes after it
    /// come. Until then items may still go to the old set: what they told is wanted, so it is pulled if it got lost.
    pub fn page(&mut self, table: &mut Table, relay: &RelayId, page: &ClaimsPage) -> Result<(), PageError> {
        if page.epoch != self.epoch {
            return Err(PageError::Epoch);
        }
        match &page.part {
            Part::Snapshot { hashes, .. } if hashes.len() > PAGE_CLAIMS || page.last => Err(PageError::TooLarge),
            Part::Changes { changes, .. } if changes.len() > PAGE_CLAIMS => Err(PageError::TooLarge),
            Part::Snapshot { version, hashes } => {
                if self.loading.is_none() {
                    self.loading = Some((table.open().ok_or(PageError::Full)?, *version));
                }
                let (number, _) = self.loading.as_ref().filter(|(_, v)| v == version).ok_or(PageError::Order)?;
                hashes.iter().try_for_each(|&hash| table.claim(number, hash)).map_err(|Full| PageError::Full)
            }
            Part::Changes { first, changes } => {
                let follows = |(_, version): &mut (Number, u64)| version.checked_add(1) == Some(*first);
                if let Some((number, version)) = self.loading.take_if(follows) {
                    table.show(&number, relay);
                    table.drop_number(std::mem::replace(&mut self.number, number));
                    self.version = Some(version);
                }
                if self.loading.is_some() {
                    return Err(PageError::Order);
                }
                self.apply(table, *first, changes)
            }
        }
    }
}
