//! What the relay that holds a region's store does for attachments: it takes uploads part by part, lets participants read
//! what messages refer to, and collects what nothing refers to.
//!
//! What is stored and who may have it is in the store's records (`store/blobs.rs`); the bytes are in a [`BlobStore`]. A
//! record is made before the first byte and outlives the last, so whatever a crash interrupts is found again.
//!
//! - [`lane`]: the lanes on which bytes travel
//! - [`partial`]: what came of parts that broke off
//! - [`collect`]: what nothing refers to goes

mod collect;
pub(crate) mod lane;
mod partial;

use crate::blobs::spool::{Spool, SpoolError};
use crate::blobs::{Address, BlobFault, BlobReader, BlobStore, FoundPart, StoredPart};
use crate::host::Threads;
use crate::metrics::Metrics;
use crate::store::{BlobChange, Store, Upload};
use godwit_core::blob::{BlobLimits, BlobState};
use godwit_wire::blob::{BlobHash, Digest32, Manifest, part_bytes};
use godwit_wire::frame::{self, BlobUrl, MissingPart, Reply, Request};
use godwit_wire::{ChatId, Clock, Code, DeviceId, Refusal, RegionId, Seq, UserId};
use lane::Incoming;
pub(crate) use partial::Partials;
use partial::{Coming, PartOf};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Attachments {
    pub(crate) region: RegionId,
    pub(crate) store: Store,
    pub(crate) blobs: Arc<dyn BlobStore>,
    /// Where parts are kept while they come in.
    pub(crate) spool: PathBuf,
    pub(crate) partials: Partials,
    /// Whether devices get addresses in the store.
    pub(crate) urls: bool,
    pub(crate) limits: BlobLimits,
    pub(crate) threads: Threads,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

/// When a client whose upload got lost should begin anew.
const AGAIN: Duration = Duration::from_secs(1);
/// How long an address holds.
const URL_LASTS: Duration = Duration::from_mins(5);

/// How a device hears that its chat's home keeps no attachments.
pub(crate) fn off() -> Refusal {
    Refusal::because(Code::NotHere, "attachments.store is off")
}

fn no_upload(hash: BlobHash) -> Refusal {
    Refusal::because(Code::NoSuchBlob, format!("no upload of {hash} has begun"))
}

fn not_taken(part: u32, error: &SpoolError) -> Refusal {
    if let SpoolError::Io(_) = error {
        tracing::warn!(%error, "a part could not be kept");
        return BlobFault::Store(error.to_string()).refusal();
    }
    Refusal::because(Code::Invalid, format!("part {part}: {error}"))
}

/// A stretch of a blob.
enum Opened {
    /// So many bytes, cut at the blob's end.
    Bytes(u64, Box<dyn BlobReader>),
    /// To be had where this says.
    Elsewhere(Reply),
}

/// What a part must be, and the name of its upload.
struct Expected {
    bytes: u64,
    digest: Digest32,
    upload: String,
}

impl Attachments {
    fn fault(&self, error: &BlobFault) -> Refusal {
        self.metrics.blob_faults.inc();
        if !matches!(error, BlobFault::Missing(_)) {
            tracing::warn!(%error, "the store of blobs failed");
        }
        error.refusal()
    }

    async fn upload(&self, hash: BlobHash) -> Result<Option<Upload>, Refusal> {
        self.store.read(move |store| store.upload(hash)).await.map_err(|error| error.refusal())
    }

    /// Begins an upload, or says how far it is; completes it if all parts are there.
    pub(crate) async fn begin(&self, device: &DeviceId, chat: ChatId, manifest: Manifest) -> Result<Reply, Refusal> {
        let hash = manifest.blob().hash;
        self.store.begin_blob(chat, device.user(), manifest, self.limits).await?;
        let came = self.partials.of(device, hash).await;
        let mut upload = self.upload(hash).await?.ok_or_else(|| no_upload(hash))?;
        let name = match &upload.state {
            BlobState::Stored => return Ok(Reply::BlobState(frame::BlobState::Stored)),
            BlobState::Going { .. } => return Err(no_upload(hash)),
            BlobState::Uploading { upload: Some(name) } => {
                let name = name.clone();
                if self.urls && self.find_parts(&upload, &name, device).await? {
                    upload = self.upload(hash).await?.ok_or_else(|| no_upload(hash))?;
                }
                name
            }
            BlobState::Uploading { upload: None } => self.name(hash).await?,
        };
        let missing = upload.missing();
        if !missing.is_empty() {
            if missing.len() < upload.manifest.digests.len() || !came.is_empty() {
                self.metrics.blob_resumes.inc();
            }
            let missing = missing.into_iter();
            let missing = missing.map(|part| MissingPart { part, has: came.get(&part).copied().unwrap_or(0) });
            return Ok(Reply::BlobState(frame::BlobState::Missing(missing.collect())));
        }
        let part = |(part, tag): &(u32, String)| {
            let digest = *upload.manifest.digests.get(usize::try_from(*part).ok()?)?;
            Some(StoredPart { part: *part, digest, tag: tag.clone() })
        };
        let parts = upload.stored.iter().filter_map(part).collect();
        if let Err(error) = self.blobs.complete(upload.blob, &name, parts).await {
            return Err(self.lost(hash, &name, &error).await);
        }
        self.store.change_blob(hash, BlobChange::Stored).await?;
        tracing::debug!(%hash, size_bytes = upload.blob.size_bytes, "blob stored");
        Ok(Reply::BlobState(frame::BlobState::Stored))
    }

    /// Notes parts that came without this relay. Whether there were any.
    async fn find_parts(&self, upload: &Upload, name: &str, device: &DeviceId) -> Result<bool, Refusal> {
        let (hash, missing) = (upload.blob.hash, upload.missing());
        if missing.is_empty() {
            return Ok(false);
        }
        let mut found = match self.blobs.parts(hash, name).await {
            Ok(found) => found,
            Err(error) => return Err(self.lost(hash, name, &error).await),
        };
        found.retain(|found| {
            let digest = usize::try_from(found.part).ok().and_then(|part| upload.manifest.digests.get(part));
            // One that is none of the blob is put again. Where the store has no digests it is found when all are joined.
            missing.contains(&found.part)
                && part_bytes(upload.blob.size_bytes, found.part) == Some(found.bytes)
                && found.digest.as_ref().is_none_or(|is| Some(is) == digest)
        });
        let any = !found.is_empty();
        for FoundPart { part, bytes, tag, .. } in found {
            self.metrics.blob_parts.inc();
            self.store.change_blob(hash, BlobChange::Part { part, bytes, tag, user: device.user() }).await?;
        }
        Ok(any)
    }

    /// Where a part can be brought without this relay.
    pub(crate) async fn part_url(&self, hash: BlobHash, part: u32) -> Result<Reply, Refusal> {
        if !self.urls {
            return Err(Refusal::because(Code::NotHere, "parts come on lanes only"));
        }
        let there = || Refusal::retry(Code::Unavailable, AGAIN).explained("the part is there already");
        let Expected { bytes, digest, upload } = self.expects(hash, part).await?.ok_or_else(there)?;
        let address = self.blobs.part_url(hash, &upload, part, (bytes, digest), URL_LASTS).await;
        address.map(|address| self.lasting(address)).map_err(|error| self.fault(&error))
    }

    fn lasting(&self, Address { url, headers }: Address) -> Reply {
        self.metrics.blob_urls.inc();
        Reply::BlobUrl(BlobUrl { url, headers, expires: self.clock.now().plus(URL_LASTS) })
    }

    /// Gives an upload its name in the store of blobs. If two do so at once, the first one counts.
    async fn name(&self, hash: BlobHash) -> Result<String, Refusal> {
        let name = self.blobs.begin(hash).await.map_err(|error| self.fault(&error))?;
        let blob = self.store.change_blob(hash, BlobChange::Named { upload: name.clone() }).await?;
        match blob.map(|blob| blob.state) {
            Some(BlobState::Uploading { upload: Some(first) }) => {
                if first != name {
                    self.blobs.abort(hash, &name).await.map_err(|error| self.fault(&error))?;
                }
                Ok(first)
            }
            _ => Err(no_upload(hash)),
        }
    }

    /// What the parts of a message's blob are.
    pub(crate) async fn manifest(
        &self,
        user: UserId,
        chat: ChatId,
        seq: Seq,
        hash: BlobHash,
    ) -> Result<Reply, Refusal> {
        let read =
            move |store: &crate::store::Snapshot| Ok((store.blob_of(&chat, &user, seq, hash)?, store.upload(hash)?));
        let (allowed, upload) = self.store.read(read).await.map_err(|error| error.refusal())?;
        let named = allowed?;
        let upload = upload.filter(|upload| upload.state == BlobState::Stored && upload.blob == named);
        upload.map(|upload| Reply::BlobManifest(upload.manifest)).ok_or_else(|| Code::NoSuchBlob.into())
    }

    /// What a part must be that is to come; none if it is stored already.
    async fn expects(&self, hash: BlobHash, part: u32) -> Result<Option<Expected>, Refusal> {
        let upload = self.upload(hash).await?.ok_or_else(|| no_upload(hash))?;
        let name = match &upload.state {
            BlobState::Uploading { upload: Some(name) } => name.clone(),
            BlobState::Stored => return Ok(None),
            BlobState::Uploading { upload: None } | BlobState::Going { .. } => return Err(no_upload(hash)),
        };
        if upload.stored.iter().any(|(stored, _)| *stored == part) {
            return Ok(None);
        }
        let digests = &upload.manifest.digests;
        let digest = usize::try_from(part).ok().and_then(|part| digests.get(part));
        let expected = part_bytes(upload.blob.size_bytes, part).zip(digest);
        let (bytes, digest) = expected.map(|(bytes, digest)| (bytes, *digest)).ok_or_else(|| {
            let last = digests.len().saturating_sub(1);
            Refusal::because(Code::Invalid, format!("part: {part} of a blob whose last part is {last}"))
        })?;
        Ok(Some(Expected { bytes, digest, upload: name }))
    }

    /// The store of blobs does not know an upload any more: it begins anew.
    async fn lost(&self, hash: BlobHash, name: &str, error: &BlobFault) -> Refusal {
        if let BlobFault::Missing(_) = error {
            let lost = BlobChange::Lost { upload: name.to_owned() };
            if let Err(refusal) = self.store.change_blob(hash, lost).await {
                return refusal;
            }
            return Refusal::retry(Code::Unavailable, AGAIN).explained("the upload got lost, and begins anew");
        }
        self.fault(error)
    }

    /// Takes a part from byte `from` on. It is stored when this returns; if it breaks off, what came stays for the device.
    pub(crate) async fn take_part(
        &self,
        device: &DeviceId,
        (hash, part, from): (BlobHash, u32, u64),
        incoming: &mut Incoming,
    ) -> Result<(), Refusal> {
        let Some(Expected { bytes, digest, upload }) = self.expects(hash, part).await? else { return Ok(()) };
        let mut coming = self.partials.come(PartOf { device: device.clone(), hash, part }, from);
        if coming.spool.is_none() && from > 0 {
            return Err(Refusal::retry(Code::Unavailable, AGAIN).explained("what came of the part is gone"));
        }
        if coming.spool.is_none() {
            let begun = Spool::begin(&self.threads, self.spool.clone(), bytes, digest).await;
            coming.spool = Some(begun.map_err(|error| not_taken(part, &error))?);
        }
        self.receive(&mut coming, incoming).await?;
        let Some(spool) = &coming.spool else { return Err(Code::Internal.into()) };
        let spooled = match spool.check() {
            Ok(spooled) => spooled,
            Err(error) => {
                // Of one that is too short the rest may come.
                if !matches!(error, SpoolError::Size(..)) {
                    coming.spool = None;
                }
                return Err(not_taken(part, &error));
            }
        };
        let started = tokio::time::Instant::now();
        let tag = match self.blobs.put_part(hash, &upload, part, digest, spooled).await {
            Ok(tag) => tag,
            Err(error) => return Err(self.lost(hash, &upload, &error).await),
        };
        coming.spool = None;
        self.metrics.blob_store_latency.observe(started.elapsed().as_secs_f64());
        self.metrics.blob_parts.inc();
        self.store.change_blob(hash, BlobChange::Part { part, bytes, tag, user: device.user() }).await?;
        Ok(())
    }

    /// All that comes of a part.
    async fn receive(&self, coming: &mut Coming, incoming: &mut Incoming) -> Result<(), Refusal> {
        let part = coming.part();
        let interrupted = coming.interrupted.clone();
        let ended = loop {
            let next = tokio::select! {
                biased;
                next = incoming.next() => next,
                () = interrupted.cancelled() => {
                    break Err(Refusal::retry(Code::Unavailable, AGAIN).explained("the part comes on another lane"));
                }
            };
            match next {
                Ok(Some(bytes)) => {
                    self.metrics.blob_bytes_in.inc_by(bytes.len() as u64);
                    coming
                        .write(async |spool| spool.push(bytes).await)
                        .await
                        .map_err(|error| not_taken(part, &error))?;
                }
                Ok(None) => break Ok(()),
                Err(refusal) => break Err(refusal),
            }
        };
        coming.write(Spool::flush).await.map_err(|error| not_taken(part, &error))?;
        ended
    }

    /// A stretch of a message's blob, as [`Request::FetchBlob`] names it.
    pub(crate) async fn fetch(&self, user: UserId, wanted: Request) -> Result<Incoming, Refusal> {
        match self.open(user, wanted).await? {
            Opened::Bytes(_, reader) => Ok(Incoming::Store(reader)),
            Opened::Elsewhere(_) => Err(Code::Internal.into()),
        }
    }

    async fn open(&self, user: UserId, wanted: Request) -> Result<Opened, Refusal> {
        let Request::FetchBlob { chat, seq, hash, from, len, url } = wanted else { return Err(Code::Internal.into()) };
        let allowed = self.store.read(move |store| store.blob_of(&chat, &user, seq, hash)).await;
        let blob = allowed.map_err(|error| error.refusal())??;
        if from > blob.size_bytes {
            let why = format!("from: {from} is beyond the end of a blob of {} bytes", blob.size_bytes);
            return Err(Refusal::because(Code::Invalid, why));
        }
        if url && self.urls {
            let address = self.blobs.url(hash, URL_LASTS).await.map_err(|error| self.fault(&error))?;
            return Ok(Opened::Elsewhere(self.lasting(address)));
        }
        let end = from.saturating_add(len).min(blob.size_bytes);
        let reader = self.blobs.read(blob, from..end).await.map_err(|error| self.fault(&error))?;
        Ok(Opened::Bytes(end - from, reader))
    }
}
