//! What the region knows of attachments: which blobs are stored or come in, which messages refer to them, who may refer to
//! them without one, and who uses how much. Their bytes are in `crate::blobs`.
//!
//! A blob's bytes come and go outside of transactions: a row is made before the first byte, and stays until the last is
//! gone, so that what a crash leaves half-done is found by its row.

use super::StoreError;
use super::keys::{Key, Parts};
use super::tables::{BLOB_HOLDS, BLOB_MANIFESTS, BLOB_PARTS, BLOB_REFS, BLOBS, BlobTables, Read, Tables, decode, put};
use super::writer::{Batch, Write};
use super::{Snapshot, Store};
use godwit_core::blob::{self, Blob, BlobLimits, BlobState, Usage};
use godwit_core::{Entry, Participant};
use godwit_wire::blob::{BlobHash, BlobRef, Manifest};
use godwit_wire::entry::EntryBody;
use godwit_wire::{ChatId, Code, Refusal, Seq, UnixMillis, UserId};
use redb::ReadableTable;
use std::time::Duration;

/// Under this key the usage of all users together is kept: no user's key is as short.
const ALL: &[u8] = &[0];
/// When a client should ask again for a blob that is being removed.
const GOING: Duration = Duration::from_secs(2);

/// Whether a message refers to a blob, or somebody may make one do so.
fn is_used<T: ReadableTable<&'static [u8], &'static [u8]>>(
    refs: &T,
    holds: &T,
    hash: BlobHash,
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let (start, end) = Key::new().blob(hash).prefix();
    if refs.range::<&[u8]>(start.as_slice()..end.as_slice())?.next().transpose()?.is_some() {
        return Ok(true);
    }
    for row in holds.range::<&[u8]>(start.as_slice()..end.as_slice())? {
        if now < decode::<UnixMillis>(row?.1.value())? {
            return Ok(true);
        }
    }
    Ok(false)
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

fn usage(tables: &BlobTables<'_>, key: &[u8]) -> Result<Usage, StoreError> {
    Ok(tables.usage.record(key)?.unwrap_or_default())
}

/// Changes what a user and what all have.
fn count(tables: &mut BlobTables<'_>, user: &UserId, change: impl Fn(&mut Usage)) -> Result<(), StoreError> {
    for key in [Key::new().user(user).bytes().as_slice(), ALL] {
        let mut usage = usage(tables, key)?;
        change(&mut usage);
        put(&mut tables.usage, key, &usage)?;
    }
    Ok(())
}

/// A user may refer to a blob until then.
fn hold(tables: &mut BlobTables<'_>, hash: BlobHash, user: &UserId, until: UnixMillis) -> Result<(), StoreError> {
    put(&mut tables.holds, &Key::new().blob(hash).user(user).bytes(), &until)
}

/// Whether a message of `user` may refer to a blob.
pub(super) fn may_refer(
    tables: &Tables<'_>,
    named: &BlobRef,
    user: &UserId,
    now: UnixMillis,
) -> Result<(Option<Blob>, bool), StoreError> {
    let tables = tables.blobs()?;
    let has: Option<Blob> = tables.blobs.record(&Key::new().blob(named.hash).bytes())?;
    let until: Option<UnixMillis> = tables.holds.record(&Key::new().blob(named.hash).user(user).bytes())?;
    Ok((has, until.is_some_and(|until| now < until)))
}

/// By which rows an entry refers to blobs.
fn references(chat: &ChatId, entry: &Entry) -> Vec<Vec<u8>> {
    let EntryBody::Message { blobs, .. } = &entry.body else { return Vec::new() };
    blobs.iter().map(|blob| Key::new().blob(blob.hash).chat(chat).seq(entry.seq).bytes()).collect()
}

/// Notes which blobs an entry refers to.
pub(super) fn refer(tables: &Tables<'_>, chat: &ChatId, entry: &Entry) -> Result<(), StoreError> {
    let references = references(chat, entry);
    if references.is_empty() {
        return Ok(());
    }
    let mut refs = tables.blobs()?.refs;
    references.iter().try_for_each(|key| put(&mut refs, key, &()))
}

/// An entry that is erased refers to nothing any more.
pub(super) fn release(tables: &Tables<'_>, chat: &ChatId, entry: &Entry) -> Result<(), StoreError> {
    let references = references(chat, entry);
    if references.is_empty() {
        return Ok(());
    }
    let mut refs = tables.blobs()?.refs;
    for key in references {
        refs.remove(key.as_slice())?;
    }
    Ok(())
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

    fn apply(&self, batch: &mut Batch<'_, '_>) -> Result<Self::Output, StoreError> {
        let key = Key::new().chat(&self.chat).user(&self.user).bytes();
        let row: Option<Participant> = batch.tables.participants.record(&key)?;
        if !row.is_some_and(|row| row.is_present()) {
            return Ok(Err(Code::NotParticipant.into()));
        }
        let named = self.manifest.blob();
        let key = Key::new().blob(named.hash).bytes();
        let mut tables = batch.tables.blobs()?;
        let has: Option<Blob> = tables.blobs.record(&key)?;
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
                let own = usage(&tables, &Key::new().user(&self.user).bytes())?;
                if let Err(refusal) = blob::begin(&self.manifest, own, usage(&tables, ALL)?, &self.limits, batch.now) {
                    return Ok(Err(refusal));
                }
                let state = BlobState::Uploading { upload: None };
                let row = Blob { size_bytes: named.size_bytes, by: self.user.clone(), since: batch.now, state };
                put(&mut tables.blobs, &key, &row)?;
                put(&mut tables.manifests, &key, &self.manifest)?;
                count(&mut tables, &self.user, |usage| usage.take(named.size_bytes))?;
            }
        }
        hold(&mut tables, named.hash, &self.user, batch.now.plus(self.limits.grace))?;
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

    fn apply(&self, batch: &mut Batch<'_, '_>) -> Result<Option<Blob>, StoreError> {
        let key = Key::new().blob(self.hash).bytes();
        let mut tables = batch.tables.blobs()?;
        let Some(mut blob) = Read::record::<Blob>(&tables.blobs, &key)? else { return Ok(None) };
        match (&self.change, &mut blob.state) {
            (BlobChange::Named { upload }, BlobState::Uploading { upload: name }) => {
                // The first one that was made is the one.
                name.get_or_insert_with(|| upload.clone());
            }
            (BlobChange::Part { part, bytes, tag, user }, BlobState::Uploading { .. }) => {
                let part_key = Key::new().blob(self.hash).part(*part).bytes();
                if tables.parts.record::<String>(&part_key)?.is_none() {
                    count(&mut tables, user, |usage| usage.uploaded(*bytes, batch.now))?;
                }
                put(&mut tables.parts, &part_key, tag)?;
                blob.since = batch.now;
            }
            (BlobChange::Lost { upload: lost }, BlobState::Uploading { upload }) if upload.as_ref() == Some(lost) => {
                *upload = None;
                remove_parts(&mut tables, self.hash)?;
            }
            (BlobChange::Stored, BlobState::Uploading { .. }) => {
                blob.state = BlobState::Stored;
                blob.since = batch.now;
                remove_parts(&mut tables, self.hash)?;
            }
            (BlobChange::Going { unused_since }, state) => {
                let upload = match state {
                    BlobState::Uploading { upload } => upload.clone(),
                    BlobState::Stored => None,
                    BlobState::Going { .. } => return Ok(Some(blob)),
                };
                if blob.since > *unused_since || is_used(&tables.refs, &tables.holds, self.hash, batch.now)? {
                    return Ok(None);
                }
                blob.state = BlobState::Going { upload };
            }
            (BlobChange::Gone, BlobState::Going { .. }) => {
                tables.blobs.remove(key.as_slice())?;
                tables.manifests.remove(key.as_slice())?;
                remove_parts(&mut tables, self.hash)?;
                let (start, end) = Key::new().blob(self.hash).prefix();
                tables.holds.retain_in::<&[u8], _>(start.as_slice()..end.as_slice(), |_, _| false)?;
                count(&mut tables, &blob.by, |usage| usage.release(blob.size_bytes))?;
                return Ok(Some(blob));
            }
            _ => return Ok(None),
        }
        put(&mut tables.blobs, &key, &blob)?;
        Ok(Some(blob))
    }
}

fn remove_parts(tables: &mut BlobTables<'_>, hash: BlobHash) -> Result<(), StoreError> {
    let (start, end) = Key::new().blob(hash).prefix();
    tables.parts.retain_in::<&[u8], _>(start.as_slice()..end.as_slice(), |_, _| false)?;
    Ok(())
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
        let (start, end) = Key::new().blob(hash).prefix();
        let Some(blob) = Read::record::<Blob>(&self.table(BLOBS)?, &start)? else { return Ok(None) };
        let manifest = self.table(BLOB_MANIFESTS)?.record(&start)?;
        let manifest = manifest.ok_or(StoreError::Inconsistent("a blob without a manifest"))?;
        let mut stored = Vec::new();
        for row in self.table(BLOB_PARTS)?.range::<&[u8]>(start.as_slice()..end.as_slice())? {
            let (key, value) = row?;
            stored.push((Parts(&key.value()[start.len()..]).part()?, decode(value.value())?));
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
        let (refs, holds) = (self.table(BLOB_REFS)?, self.table(BLOB_HOLDS)?);
        let start = after.map_or_else(Vec::new, |hash| Key::new().blob(hash).prefix().1);
        let (mut unused, mut last) = (Vec::new(), None);
        for (i, row) in self.table(BLOBS)?.range::<&[u8]>(start.as_slice()..)?.enumerate() {
            if i == limit {
                return Ok((unused, last));
            }
            let (key, value) = row?;
            let hash = Parts(key.value()).blob()?;
            last = Some(hash);
            let blob: Blob = decode(value.value())?;
            let is_going = matches!(blob.state, BlobState::Going { .. });
            if is_going || blob.since <= since && !is_used(&refs, &holds, hash, now)? {
                unused.push(hash);
            }
        }
        Ok((unused, None))
    }
}
