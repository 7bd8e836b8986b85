//! What the region knows of attachments: which blobs are stored or come in, which messages refer to them, who may refer to
//! them without one, and who uses how much. Their bytes are in `crate::blobs`.
//!
//! A blob's bytes come and go outside of transactions: a row is made before the first byte, and stays until the last is
//! gone, so that what a crash leaves half-done is found by its row.

use super::StoreError;
use super::keys::{Key, Parts, Span};
use super::rows::{Records, RecordsMut, Rows, RowsMut};
use super::shared::Topic;
use super::tables::{BLOB_HOLDS, BLOB_MANIFESTS, BLOB_PARTS, BLOB_REFS, BLOB_USAGE, BLOBS, PARTICIPANTS};
use super::writer::{Batch, Write};
use super::{Snapshot, Store};
use godwit_core::blob::{self, Blob, BlobLimits, BlobState, Usage};
use godwit_core::{Entry, Participant};
use godwit_wire::blob::{BlobHash, BlobRef, Manifest};
use godwit_wire::entry::EntryBody;
use godwit_wire::{ChatId, Code, Refusal, Seq, UnixMillis, UserId};
use std::time::Duration;

/// Under this key the usage of all users together is kept: no user's key is as short.
const ALL: &[u8] = &[0];
/// When a client should ask again for a blob that is being removed.
const GOING: Duration = Duration::from_secs(2);

/// Whether a message refers to a blob, or somebody may make one do so.
fn is_used(rows: &dyn Rows, hash: BlobHash, now: UnixMillis) -> Result<bool, StoreError> {
    let span = Key::new().blob(hash).prefix();
    Ok(!rows.is_empty(BLOB_REFS, &span)? || rows.all(BLOB_HOLDS, &span)?.iter().any(|(_, until)| now < *until))
}

/// A blob as an upload goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upload {
    pub(crate) blob: BlobRef,
    pub(crate) state: BlobState,
    pub(crate) manifest: Manifest,
    /// Which parts are stored, with their tags.
    pub(crate) stored: Vec<(u32, String)>,
}

impl Upload {
    pub(crate) fn missing(&self) -> Vec<u32> {
        let count = u32::try_from(self.manifest.digests.len()).unwrap_or(u32::MAX);
        (0..count).filter(|part| self.stored.iter().all(|(stored, _)| stored != part)).collect()
    }
}

fn usage(rows: &dyn Rows, key: &[u8]) -> Result<Usage, StoreError> {
    Ok(rows.get(BLOB_USAGE, key)?.unwrap_or_default())
}

/// Changes what a user and what all have.
fn count(rows: &mut dyn RowsMut, user: &UserId, change: impl Fn(&mut Usage)) -> Result<(), StoreError> {
    for key in [Key::new().user(user).bytes().as_slice(), ALL] {
        let mut usage = usage(rows, key)?;
        change(&mut usage);
        rows.put(BLOB_USAGE, key, &usage)?;
    }
    Ok(())
}

/// A user may refer to a blob until then.
fn hold(rows: &mut dyn RowsMut, hash: BlobHash, user: &UserId, until: UnixMillis) -> Result<(), StoreError> {
    rows.put(BLOB_HOLDS, &Key::new().blob(hash).user(user).bytes(), &until)
}

/// Whether a message of `user` may refer to a blob.
pub(super) fn may_refer(
    rows: &dyn Rows,
    named: &BlobRef,
    user: &UserId,
    now: UnixMillis,
) -> Result<(Option<Blob>, bool), StoreError> {
    let has = rows.get(BLOBS, &Key::new().blob(named.hash).bytes())?;
    let until = rows.get(BLOB_HOLDS, &Key::new().blob(named.hash).user(user).bytes())?;
    Ok((has, until.is_some_and(|until| now < until)))
}

/// By which rows an entry refers to blobs.
fn references(chat: &ChatId, entry: &Entry) -> Vec<Vec<u8>> {
    let EntryBody::Message { blobs, .. } = &entry.body else { return Vec::new() };
    blobs.iter().map(|blob| Key::new().blob(blob.hash).chat(chat).seq(entry.seq).bytes()).collect()
}

/// Notes which blobs an entry refers to.
pub(super) fn refer(rows: &mut dyn RowsMut, chat: &ChatId, entry: &Entry) -> Result<(), StoreError> {
    references(chat, entry).iter().try_for_each(|key| rows.put(BLOB_REFS, key, &()))
}

/// An entry that is erased refers to nothing any more.
pub(super) fn release(rows: &mut dyn RowsMut, chat: &ChatId, entry: &Entry) -> Result<(), StoreError> {
    references(chat, entry).iter().try_for_each(|key| rows.delete(BLOB_REFS, key))
}

/// Begins an upload, or goes on with it: its user may refer to the blob once it is stored.
#[derive(Debug)]
pub(super) struct BeginBlob {
    pub(super) chat: ChatId,
    pub(super) user: UserId,
    pub(super) manifest: Manifest,
    pub(super) limits: BlobLimits,
}

impl Write for BeginBlob {
    type Output = Result<(), Refusal>;

    fn topic(&self) -> Topic {
        Topic::Blobs
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<Self::Output, StoreError> {
        let key = Key::new().chat(&self.chat).user(&self.user).bytes();
        let row = batch.rows.get(PARTICIPANTS, &key)?;
        if !row.as_ref().is_some_and(Participant::is_present) {
            return Ok(Err(Code::NotParticipant.into()));
        }
        let named = self.manifest.blob();
        let key = Key::new().blob(named.hash).bytes();
        let rows = &mut *batch.rows;
        let has = rows.get(BLOBS, &key)?;
        match &has {
            Some(Blob { state: BlobState::Going { .. }, .. }) => {
                return Ok(Err(Refusal::retry(Code::Unavailable, GOING).explained("the blob is being removed")));
            }
            Some(blob) if blob.size_bytes != named.size_bytes => {
                let why = format!("blob: {} has {} bytes", named.hash, blob.size_bytes);
                return Ok(Err(Refusal::because(Code::Invalid, why)));
            }
            Some(_) => {}
            None => {
                let own = usage(rows, &Key::new().user(&self.user).bytes())?;
                if let Err(refusal) = blob::begin(&self.manifest, own, usage(rows, ALL)?, &self.limits, batch.now) {
                    return Ok(Err(refusal));
                }
                let state = BlobState::Uploading { upload: None };
                let row = Blob { size_bytes: named.size_bytes, by: self.user.clone(), since: batch.now, state };
                rows.put(BLOBS, &key, &row)?;
                rows.put(BLOB_MANIFESTS, &key, &self.manifest)?;
                count(rows, &self.user, |usage| usage.take(named.size_bytes))?;
            }
        }
        hold(rows, named.hash, &self.user, batch.now.plus(self.limits.grace))?;
        Ok(Ok(()))
    }
}

/// What happened to the bytes of a blob.
#[derive(Clone, Debug)]
pub(crate) enum BlobChange {
    /// Its upload has a name.
    Named { upload: String },
    /// `user` brought a part, which is stored.
    Part { part: u32, bytes: u64, tag: String, user: UserId },
    /// The store of blobs does not know the upload of this name any more: nothing of it is stored.
    Lost { upload: String },
    /// All of it is stored.
    Stored,
    /// It, or its upload, is to be removed, unless somebody may refer to it or a message does. Afterwards nobody can.
    Going { unused_since: UnixMillis },
    /// Its bytes are removed.
    Gone,
}

/// A change of one blob. Gives the blob as it is then; none if there is none, or it is not what the change is of.
#[derive(Debug)]
pub(super) struct ChangeBlob {
    pub(super) hash: BlobHash,
    pub(super) change: BlobChange,
}

impl Write for ChangeBlob {
    type Output = Option<Blob>;
    // Removing must go on while the disk is full, and is what makes room.
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        Topic::Blobs
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<Option<Blob>, StoreError> {
        let key = Key::new().blob(self.hash).bytes();
        let of_blob = Key::new().blob(self.hash).prefix();
        let rows = &mut *batch.rows;
        let Some(mut blob) = rows.get(BLOBS, &key)? else { return Ok(None) };
        match (&self.change, &mut blob.state) {
            (BlobChange::Named { upload }, BlobState::Uploading { upload: name }) => {
                // The first one that was made is the one.
                name.get_or_insert_with(|| upload.clone());
            }
            (BlobChange::Part { part, bytes, tag, user }, BlobState::Uploading { .. }) => {
                let part_key = Key::new().blob(self.hash).part(*part).bytes();
                if rows.get(BLOB_PARTS, &part_key)?.is_none() {
                    count(rows, user, |usage| usage.uploaded(*bytes, batch.now))?;
                }
                rows.put(BLOB_PARTS, &part_key, tag)?;
                blob.since = batch.now;
            }
            (BlobChange::Lost { upload: lost }, BlobState::Uploading { upload }) if upload.as_ref() == Some(lost) => {
                *upload = None;
                rows.clear(BLOB_PARTS, &of_blob)?;
            }
            (BlobChange::Stored, BlobState::Uploading { .. }) => {
                blob.state = BlobState::Stored;
                blob.since = batch.now;
                rows.clear(BLOB_PARTS, &of_blob)?;
            }
            (BlobChange::Going { unused_since }, state) => {
                let upload = match state {
                    BlobState::Uploading { upload } => upload.clone(),
                    BlobState::Stored => None,
                    BlobState::Going { .. } => return Ok(Some(blob)),
                };
                if blob.since > *unused_since || is_used(rows, self.hash, batch.now)? {
                    return Ok(None);
                }
                blob.state = BlobState::Going { upload };
            }
            (BlobChange::Gone, BlobState::Going { .. }) => {
                rows.delete(BLOBS, &key)?;
                rows.delete(BLOB_MANIFESTS, &key)?;
                rows.clear(BLOB_PARTS, &of_blob)?;
                rows.clear(BLOB_HOLDS, &of_blob)?;
                count(rows, &blob.by, |usage| usage.release(blob.size_bytes))?;
                return Ok(Some(blob));
            }
            _ => return Ok(None),
        }
        rows.put(BLOBS, &key, &blob)?;
        Ok(Some(blob))
    }
}

impl Store {
    /// Begins an upload, or goes on with it.
    pub(crate) async fn begin_blob(
        &self,
        chat: ChatId,
        user: UserId,
        manifest: Manifest,
        limits: BlobLimits,
    ) -> Result<(), Refusal> {
        self.write(BeginBlob { chat, user, manifest, limits }).await?
    }

    pub(crate) async fn change_blob(&self, hash: BlobHash, change: BlobChange) -> Result<Option<Blob>, Refusal> {
        self.write(ChangeBlob { hash, change }).await
    }
}

impl Snapshot {
    /// How far an upload is; none if there is no such blob.
    pub(crate) fn upload(&self, hash: BlobHash) -> Result<Option<Upload>, StoreError> {
        let span = Key::new().blob(hash).prefix();
        let Some(blob) = self.rows().get(BLOBS, &span.start)? else { return Ok(None) };
        let manifest = self.rows().get(BLOB_MANIFESTS, &span.start)?;
        let manifest = manifest.ok_or(StoreError::Inconsistent("a blob without a manifest"))?;
        let mut stored = Vec::new();
        for (key, tag) in self.rows().all(BLOB_PARTS, &span)? {
            stored.push((Parts(&key[span.start.len()..]).part()?, tag));
        }
        let named = BlobRef { hash, size_bytes: blob.size_bytes };
        Ok(Some(Upload { blob: named, state: blob.state, manifest, stored }))
    }

    /// A blob that a message refers to, for a participant of its chat.
    ///
    /// # Errors
    /// The inner one says why this user may not have it.
    pub(crate) fn blob_of(
        &self,
        chat: &ChatId,
        user: &UserId,
        seq: Seq,
        hash: BlobHash,
    ) -> Result<Result<BlobRef, Refusal>, StoreError> {
        let row = self.participant(chat, user)?;
        let Some(row) = row.filter(Participant::is_present) else { return Ok(Err(Code::NotParticipant.into())) };
        let none = || Refusal::because(Code::NoSuchBlob, format!("message #{seq} refers to no blob {hash}"));
        if !row.sees(seq) {
            return Ok(Err(none()));
        }
        let body = self.entry(chat, seq)?.map(|entry| entry.body);
        let Some(EntryBody::Message { blobs, .. }) = body else { return Ok(Err(none())) };
        Ok(blobs.into_iter().find(|blob| blob.hash == hash).ok_or_else(none))
    }

    /// Blobs that nobody has used since then, and those that are being removed: after `after` in the order of their
    /// hashes, at most `limit` looked at, with where to go on.
    pub(crate) fn unused_blobs(
        &self,
        since: UnixMillis,
        now: UnixMillis,
        after: Option<BlobHash>,
        limit: usize,
    ) -> Result<(Vec<BlobHash>, Option<BlobHash>), StoreError> {
        let span = after.map_or(Span::ALL, |hash| Span::ALL.behind(&Key::new().blob(hash).bytes()));
        let (mut unused, mut last) = (Vec::new(), None);
        let blobs = self.rows().first(BLOBS, &span, limit)?;
        let is_end = blobs.len() < limit;
        for (key, blob) in blobs {
            let hash = Parts(&key).blob()?;
            last = Some(hash);
            let is_going = matches!(blob.state, BlobState::Going { .. });
            if is_going || blob.since <= since && !is_used(self.rows(), hash, now)? {
                unused.push(hash);
            }
        }
        Ok((unused, last.filter(|_| !is_end)))
    }
}
