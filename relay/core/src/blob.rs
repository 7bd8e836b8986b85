//! What a region stores of attachments, and for whom: quotas, and the life of a blob.
//!
//! A blob is uploaded, stored, referred to by messages, and goes once no message refers to it. Whoever uploads or forwards
//! one may refer to it for a while, before any message does.

use godwit_wire::blob::{BlobRef, Manifest, sealed_bytes};
use godwit_wire::{Code, Refusal, UnixMillis, UserId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const DAY: u64 = 24 * 60 * 60 * 1000;

/// Limits of a region's blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobLimits {
    /// Of one file, before encryption.
    pub file_bytes: u64,
    /// Stored or being uploaded, of all users.
    pub total_bytes: u64,
    /// Stored or being uploaded, of one user.
    pub user_bytes: u64,
    /// Uploaded by one user in a day (UTC).
    pub user_daily_bytes: u64,
    /// How long one that no message refers to is kept, and an upload that does not go on.
    pub grace: Duration,
}

impl Default for BlobLimits {
    fn default() -> Self {
        Self {
            file_bytes: 2 << 30,
            total_bytes: u64::MAX,
            user_bytes: 64 << 30,
            user_daily_bytes: 16 << 30,
            grace: Duration::from_hours(24),
        }
    }
}

/// A blob as its region knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    pub size_bytes: u64,
    /// Whose quota it counts in.
    pub by: UserId,
    /// When its upload began, or its last part came, or it was stored.
    pub since: UnixMillis,
    pub state: BlobState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobState {
    /// Under this name in the store of blobs, once it has one.
    Uploading {
        upload: Option<String>,
    },
    Stored,
    /// It is being removed, and comes back only as a new one. An upload's name, if it was one.
    Going {
        upload: Option<String>,
    },
}

/// What somebody has in a region's blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Stored or being uploaded.
    pub stored_bytes: u64,
    /// Days since 1970, and what was uploaded in that one.
    day: u64,
    day_bytes: u64,
}

impl Usage {
    fn in_day(&mut self, now: UnixMillis) -> &mut u64 {
        let day = now.0 / DAY;
        if self.day != day {
            (self.day, self.day_bytes) = (day, 0);
        }
        &mut self.day_bytes
    }

    /// What was uploaded on the day of `now`.
    pub fn uploaded_bytes(mut self, now: UnixMillis) -> u64 {
        *self.in_day(now)
    }

    /// Counts a part that was stored.
    pub fn uploaded(&mut self, bytes: u64, now: UnixMillis) {
        let day = self.in_day(now);
        *day = day.saturating_add(bytes);
    }

    pub fn take(&mut self, bytes: u64) {
        self.stored_bytes = self.stored_bytes.saturating_add(bytes);
    }

    pub fn release(&mut self, bytes: u64) {
        self.stored_bytes = self.stored_bytes.saturating_sub(bytes);
    }
}

/// Whether an upload may begin, by what its user and all users have by now.
///
/// # Errors
/// Which limit it is over, or why the manifest is none.
pub fn begin(manifest: &Manifest, own: Usage, all: Usage, limits: &BlobLimits, now: UnixMillis) -> Result<(), Refusal> {
    let size = manifest.size_bytes;
    if !manifest.is_whole() {
        return Err(Refusal::because(
            Code::Invalid,
            "blob: there must be a digest for each part, and one part at least",
        ));
    }
    let most = sealed_bytes(limits.file_bytes);
    if size > most {
        let limit = limits.file_bytes;
        let why = format!("attachments.file_size: at most {limit} bytes are allowed ({most} encrypted), not {size}");
        return Err(Refusal::because(Code::TooLarge, why));
    }
    let over = |what: &str, has: u64, limit: u64| {
        let why = format!("{what}: {has} bytes of {limit} are used, and {size} do not fit");
        Refusal::because(Code::OverQuota, why)
    };
    if own.stored_bytes.saturating_add(size) > limits.user_bytes {
        return Err(over("your attachments", own.stored_bytes, limits.user_bytes));
    }
    let today = own.uploaded_bytes(now);
    if today.saturating_add(size) > limits.user_daily_bytes {
        return Err(over("your uploads of today (UTC)", today, limits.user_daily_bytes));
    }
    if all.stored_bytes.saturating_add(size) > limits.total_bytes {
        let why = over("the region's attachments", all.stored_bytes, limits.total_bytes).explanation;
        // Not this user's fault: it may have room again.
        return Err(Refusal::retry(Code::Unavailable, Duration::from_mins(1)).explained(&why));
    }
    Ok(())
}

/// Whether a message may refer to a blob, as far as the region has it.
pub(crate) fn may_refer(named: &BlobRef, has: Option<&Blob>, is_held: bool) -> Result<(), Refusal> {
    let is_it = |blob: &&Blob| blob.state == BlobState::Stored && blob.size_bytes == named.size_bytes;
    // Whether it is here at all is not told to those who did not bring it.
    match has.filter(is_it) {
        Some(_) if is_held => Ok(()),
        _ => Err(Refusal::because(Code::NoSuchBlob, format!("blobs: {} was not uploaded by you", named.hash))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_wire::blob::{PART_BYTES, parts};

    fn manifest(size_bytes: u64) -> Manifest {
        let count = usize::try_from(parts(size_bytes)).unwrap();
        Manifest { size_bytes, digests: vec![[1; 32]; count] }
    }

    #[test]
    fn each_limit_is_named_and_reached_exactly() {
        let limits = BlobLimits {
            file_bytes: 1 << 20,
            total_bytes: 10_000_000,
            user_bytes: 5_000_000,
            user_daily_bytes: 3_000_000,
            grace: Duration::from_secs(1),
        };
        let now = UnixMillis(5 * DAY);
        let begins = |size, own, all| begin(&manifest(size), own, all, &limits, now);
        let none = Usage::default();
        assert_eq!(begins(sealed_bytes(1 << 20), none, none), Ok(()));
        assert_eq!(begins(sealed_bytes(1 << 20) + 1, none, none).unwrap_err().code, Code::TooLarge);

        let stored = |stored_bytes| Usage { stored_bytes, ..none };
        assert_eq!(begins(1_000_000, stored(4_000_000), none), Ok(()));
        assert_eq!(begins(1_000_001, stored(4_000_000), none).unwrap_err().code, Code::OverQuota);
        assert_eq!(begins(1_000_001, none, stored(9_000_000)).unwrap_err().code, Code::Unavailable);

        let mut today = none;
        today.uploaded(2_000_000, now);
        assert_eq!(begins(1_000_000, today, none), Ok(()));
        assert_eq!(begins(1_000_001, today, none).unwrap_err().code, Code::OverQuota);
        let tomorrow = begin(&manifest(1_000_001), today, none, &limits, UnixMillis(6 * DAY));
        assert_eq!(tomorrow, Ok(()));
    }

    #[test]
    fn a_manifest_has_a_digest_for_each_part() {
        let limits = BlobLimits::default();
        for (size_bytes, count) in [(0, 0), (0, 1), (1, 0), (1, 2), (PART_BYTES + 1, 1), (u64::MAX, 1)] {
            let manifest = Manifest { size_bytes, digests: vec![[1; 32]; count] };
            let refused = begin(&manifest, Usage::default(), Usage::default(), &limits, UnixMillis(0));
            assert_eq!(refused.unwrap_err().code, Code::Invalid, "{size_bytes} {count}");
        }
    }
}
