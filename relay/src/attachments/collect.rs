//! What nothing refers to goes, after a grace period: blobs whose messages were redacted or never sent, uploads that do not
//! go on, and bytes of which the records know nothing, as a restored store leaves them.
//!
//! A record is marked first, so that nobody can refer to the blob any more, then the bytes are removed, then the record: a
//! crash between two of these leaves a mark, from which the next round goes on.

use super::Attachments;
use crate::blobs::Found;
use crate::store::BlobChange;
use godwit_core::blob::BlobState;
use godwit_wire::Refusal;
use godwit_wire::blob::BlobHash;
use std::time::{Duration, SystemTime};

/// Records looked at in one read.
const PAGE: usize = 1024;
/// How often all is looked through, at most and at least.
const ROUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));

impl Attachments {
    /// Collects now and then. Ends never.
    pub(crate) async fn run(self) {
        let pause = (self.limits.grace / 4).clamp(ROUNDS.0, ROUNDS.1);
        loop {
            tokio::time::sleep(pause).await;
            if let Err(refusal) = self.collect().await {
                tracing::warn!(%refusal, "attachments that nothing refers to are collected later");
            }
        }
    }

    /// One round.
    pub(crate) async fn collect(&self) -> Result<(), Refusal> {
        let now = self.clock.now();
        let unused_since = now.minus(self.limits.grace);
        let mut after = None;
        loop {
            let read = move |store: &crate::store::Snapshot| store.unused_blobs(unused_since, now, after, PAGE);
            let (unused, next) = self.store.read(read).await.map_err(|error| error.refusal())?;
            for hash in unused {
                let marked = self.store.change_blob(hash, BlobChange::Going { unused_since }).await?;
                // It may be used by now.
                if let Some(BlobState::Going { upload }) = marked.map(|blob| blob.state) {
                    self.remove(hash, upload.as_deref()).await?;
                }
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        self.sweep().await
    }

    async fn remove(&self, hash: BlobHash, upload: Option<&str>) -> Result<(), Refusal> {
        if let Some(upload) = upload {
            self.blobs.abort(hash, upload).await.map_err(|error| self.fault(&error))?;
        }
        self.blobs.remove(hash).await.map_err(|error| self.fault(&error))?;
        self.store.change_blob(hash, BlobChange::Gone).await?;
        self.metrics.blobs_collected.inc();
        tracing::debug!(%hash, "attachment collected");
        Ok(())
    }

    /// Removes bytes without a record. A record is made before its bytes, so what is old and has none is nobody's.
    async fn sweep(&self) -> Result<(), Refusal> {
        // By the clock of the store of blobs, and its alone: the grace period is long.
        let before = SystemTime::now().checked_sub(self.limits.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        for found in self.blobs.list(before).await.map_err(|error| self.fault(&error))? {
            let (Found::Blob(hash) | Found::Upload { hash, .. }) = found;
            let upload = self.upload(hash).await?;
            let removed = match (&found, upload.map(|upload| upload.state)) {
                (Found::Blob(_), None) => self.blobs.remove(hash).await,
                (Found::Upload { upload, .. }, None | Some(BlobState::Stored)) => self.blobs.abort(hash, upload).await,
                (Found::Upload { upload, .. }, Some(BlobState::Uploading { upload: named }))
                    if named.as_ref() != Some(upload) =>
                {
                    self.blobs.abort(hash, upload).await
                }
                _ => continue,
            };
            removed.map_err(|error| self.fault(&error))?;
            self.metrics.blobs_collected.inc();
        }
        Ok(())
    }
}
