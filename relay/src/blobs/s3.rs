//! Blobs in a bucket of S3, or of a server that speaks its API: an object for each blob, uploaded in parts
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html>).
//!
//! Each part is sent with its SHA-256, and the object is made of parts with those digests, so that the store checks what it
//! keeps. Credentials come from the standard chain of AWS: the environment, a profile, the machine's role.

use super::spool::Spooled;
use super::{Address, BlobFault, BlobReader, BlobStore, Found, FoundPart, Later, StoredPart};
use crate::aws;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Part};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use godwit_wire::blob::{BlobHash, BlobRef, Digest32};
use godwit_wire::frame::Header;
use std::error::Error;
use std::ops::Range;
use std::time::{Duration, SystemTime};

/// How long a connection to the store may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a call may take, with all that is tried again in it: a part is 8 MiB.
const CALL: Duration = Duration::from_mins(2);
/// Bytes read of a part at a time.
const READ_BYTES: usize = 128 << 10;

/// Where the bucket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub name: String,
    /// Before each object's name.
    pub prefix: String,
    /// `us-east-1` and so on; as AWS's own configuration says if it is not given.
    pub region: Option<String>,
    /// Of a server other than AWS's, such as `http://127.0.0.1:8333`.
    pub endpoint: Option<String>,
    /// The bucket in the path instead of the host's name, as most other servers need it.
    pub path_style: bool,
}

/// Blobs as objects.
#[derive(Clone, Debug)]
pub struct S3 {
    client: Client,
    bucket: Bucket,
}

/// The codes by which a store says that something is not there.
const MISSING: [&str; 4] = ["NoSuchKey", "NoSuchUpload", "NotFound", "404"];
/// And those by which it says that a part is not what was to be brought.
const NOT_THE_PART: [&str; 2] = ["InvalidPart", "BadDigest"];

fn is_missing<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    error.code().is_some_and(|code| MISSING.contains(&code))
}

/// What the store says, or why it said nothing.
fn text<E: Error + ProvideErrorMetadata + 'static, R: std::fmt::Debug + 'static>(error: &SdkError<E, R>) -> String {
    aws::text(error.code(), error.message(), error)
}

/// What went wrong, without what was sent.
fn fault<E: Error + ProvideErrorMetadata + 'static, R: std::fmt::Debug + 'static>(
    hash: BlobHash,
) -> impl Fn(SdkError<E, R>) -> BlobFault {
    move |error| {
        if is_missing(&error) { BlobFault::Missing(hash) } else { BlobFault::Store(text(&error)) }
    }
}

fn number(part: u32) -> Result<i32, BlobFault> {
    // S3 counts from 1.
    i32::try_from(part)
        .ok()
        .and_then(|part| part.checked_add(1))
        .ok_or_else(|| BlobFault::Store("a part's number".to_owned()))
}

fn found_part(part: &Part) -> Option<FoundPart> {
    let digest = part.checksum_sha256().and_then(|digest| BASE64_STANDARD.decode(digest).ok());
    Some(FoundPart {
        part: u32::try_from(part.part_number()?.checked_sub(1)?).ok()?,
        bytes: u64::try_from(part.size()?).ok()?,
        digest: digest.and_then(|digest| digest.try_into().ok()),
        tag: part.e_tag()?.to_owned(),
    })
}

fn expiry(lasts: Duration) -> Result<PresigningConfig, BlobFault> {
    PresigningConfig::expires_in(lasts).map_err(|error| BlobFault::Store(error.to_string()))
}

fn address(request: &PresignedRequest) -> Address {
    let header = |(name, value): (&str, &str)| Header { name: name.to_owned(), value: value.to_owned() };
    Address { url: request.uri().to_owned(), headers: request.headers().map(header).collect() }
}

fn is_before(at: Option<&DateTime>, before: SystemTime) -> bool {
    at.and_then(|at| SystemTime::try_from(*at).ok()).is_some_and(|at| at < before)
}

impl S3 {
    /// Reads AWS's own configuration; asks nothing of the store.
    pub async fn new(bucket: Bucket) -> Self {
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).operation_timeout(CALL).build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
        if let Some(region) = bucket.region.clone() {
            loader = loader.region(Region::new(region));
        }
        if let Some(endpoint) = bucket.endpoint.clone() {
            loader = loader.endpoint_url(endpoint);
        }
        let shared = loader.load().await;
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(bucket.path_style)
            // Ours are SHA-256; others would only be work, and not every server knows them.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        Self::with_client(Client::from_conf(config), bucket)
    }

    /// By a client that is set up already.
    pub fn with_client(client: Client, bucket: Bucket) -> Self {
        Self { client, bucket }
    }

    /// Makes the bucket, unless it is there.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn make_bucket(&self) -> Result<(), BlobFault> {
        match self.client.create_bucket().bucket(&self.bucket.name).send().await {
            Err(error) if !error.code().is_some_and(|code| code.starts_with("BucketAlready")) => {
                Err(BlobFault::Store(text(&error)))
            }
            _ => Ok(()),
        }
    }

    fn key(&self, hash: BlobHash) -> String {
        format!("{}{hash}", self.bucket.prefix)
    }

    fn hash_of(&self, key: Option<&str>) -> Option<BlobHash> {
        key?.strip_prefix(self.bucket.prefix.as_str())?.parse().ok()
    }

    /// The length of a blob that is there.
    async fn size_of(&self, hash: BlobHash) -> Result<Option<u64>, BlobFault> {
        let head = self.client.head_object().bucket(&self.bucket.name).key(self.key(hash)).send().await;
        match head {
            Ok(head) => Ok(head.content_length().and_then(|len| u64::try_from(len).ok())),
            Err(error)
                if is_missing(&error) || error.raw_response().is_some_and(|raw| raw.status().as_u16() == 404) =>
            {
                Ok(None)
            }
            Err(error) => Err(fault(hash)(error)),
        }
    }
}

impl BlobStore for S3 {
    fn begin(&self, hash: BlobHash) -> Later<'_, String> {
        Box::pin(async move {
            let begin = self.client.create_multipart_upload().bucket(&self.bucket.name).key(self.key(hash));
            let begun = begin.checksum_algorithm(ChecksumAlgorithm::Sha256).send().await.map_err(fault(hash))?;
            begun.upload_id.ok_or_else(|| BlobFault::Store("an upload without a name".to_owned()))
        })
    }

    fn put_part<'a>(
        &'a self,
        hash: BlobHash,
        upload: &'a str,
        part: u32,
        digest: Digest32,
        bytes: Spooled<'a>,
    ) -> Later<'a, String> {
        Box::pin(async move {
            let body = ByteStream::read_from().path(bytes.file.path()).buffer_size(READ_BYTES).build().await;
            let body = body.map_err(|error| BlobFault::Store(error.to_string()))?;
            let put = self.client.upload_part().bucket(&self.bucket.name).key(self.key(hash)).upload_id(upload);
            let put = put.part_number(number(part)?).checksum_sha256(BASE64_STANDARD.encode(digest));
            let stored = put.body(body).send().await.map_err(fault(hash))?;
            stored.e_tag.ok_or_else(|| BlobFault::Store("a part without a tag".to_owned()))
        })
    }

    fn complete<'a>(&'a self, blob: BlobRef, upload: &'a str, parts: Vec<StoredPart>) -> Later<'a, ()> {
        Box::pin(async move {
            let part = |stored: StoredPart| {
                let part = CompletedPart::builder().part_number(number(stored.part)?).e_tag(stored.tag);
                Ok(part.checksum_sha256(BASE64_STANDARD.encode(stored.digest)).build())
            };
            let parts = parts.into_iter().map(part).collect::<Result<Vec<_>, BlobFault>>()?;
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
            let complete = self.client.complete_multipart_upload().bucket(&self.bucket.name).key(self.key(blob.hash));
            match complete.upload_id(upload).multipart_upload(parts).send().await {
                Ok(_) => {}
                // It may have been completed before, and the answer got lost.
                Err(error) if is_missing(&error) => {}
                Err(error) if error.code().is_some_and(|code| NOT_THE_PART.contains(&code)) => {
                    return Err(BlobFault::Missing(blob.hash));
                }
                Err(error) => return Err(fault(blob.hash)(error)),
            }
            match self.size_of(blob.hash).await? {
                Some(size) if size == blob.size_bytes => Ok(()),
                Some(size) => Err(BlobFault::Store(format!("{} has {size} bytes, not {}", blob.hash, blob.size_bytes))),
                None => Err(BlobFault::Missing(blob.hash)),
            }
        })
    }

    fn abort<'a>(&'a self, hash: BlobHash, upload: &'a str) -> Later<'a, ()> {
        Box::pin(async move {
            let abort = self.client.abort_multipart_upload().bucket(&self.bucket.name).key(self.key(hash));
            match abort.upload_id(upload).send().await {
                Err(error) if !is_missing(&error) => Err(fault(hash)(error)),
                _ => Ok(()),
            }
        })
    }

    fn read(&self, blob: BlobRef, range: Range<u64>) -> Later<'_, Box<dyn BlobReader>> {
        Box::pin(async move {
            if range.is_empty() {
                return Ok(
                    Box::new(Reader { hash: blob.hash, left: 0, body: ByteStream::default() }) as Box<dyn BlobReader>
                );
            }
            let get = self.client.get_object().bucket(&self.bucket.name).key(self.key(blob.hash));
            let get = get.range(format!("bytes={}-{}", range.start, range.end - 1));
            let got = get.send().await.map_err(fault(blob.hash))?;
            let left = range.end - range.start;
            if got.content_length().and_then(|len| u64::try_from(len).ok()) != Some(left) {
                return Err(BlobFault::Store(format!("{}: another stretch than was asked for", blob.hash)));
            }
            Ok(Box::new(Reader { hash: blob.hash, left, body: got.body }) as Box<dyn BlobReader>)
        })
    }

    fn remove(&self, hash: BlobHash) -> Later<'_, ()> {
        Box::pin(async move {
            let removed = self.client.delete_object().bucket(&self.bucket.name).key(self.key(hash)).send().await;
            match removed {
                Err(error) if !is_missing(&error) => Err(fault(hash)(error)),
                _ => Ok(()),
            }
        })
    }

    fn url(&self, hash: BlobHash, lasts: Duration) -> Later<'_, Address> {
        Box::pin(async move {
            let get = self.client.get_object().bucket(&self.bucket.name).key(self.key(hash));
            get.presigned(expiry(lasts)?).await.map(|request| address(&request)).map_err(fault(hash))
        })
    }

    fn part_url<'a>(
        &'a self,
        hash: BlobHash,
        upload: &'a str,
        part: u32,
        (bytes, digest): (u64, Digest32),
        lasts: Duration,
    ) -> Later<'a, Address> {
        Box::pin(async move {
            let put = self.client.upload_part().bucket(&self.bucket.name).key(self.key(hash)).upload_id(upload);
            let put = put.part_number(number(part)?).checksum_sha256(BASE64_STANDARD.encode(digest));
            let put = put.content_length(i64::try_from(bytes).unwrap_or(i64::MAX));
            put.presigned(expiry(lasts)?).await.map(|request| address(&request)).map_err(fault(hash))
        })
    }

    fn parts<'a>(&'a self, hash: BlobHash, upload: &'a str) -> Later<'a, Vec<FoundPart>> {
        Box::pin(async move {
            let parts = self.client.list_parts().bucket(&self.bucket.name).key(self.key(hash)).upload_id(upload);
            let (mut pages, mut found) = (parts.into_paginator().send(), Vec::new());
            while let Some(page) = pages.next().await {
                found.extend(page.map_err(fault(hash))?.parts().iter().filter_map(found_part));
            }
            Ok(found)
        })
    }

    fn list(&self, before: SystemTime) -> Later<'_, Vec<Found>> {
        const NONE: BlobHash = BlobHash([0; 32]);
        Box::pin(async move {
            let mut found = Vec::new();
            let objects = self.client.list_objects_v2().bucket(&self.bucket.name).prefix(&self.bucket.prefix);
            let mut pages = objects.into_paginator().send();
            while let Some(page) = pages.next().await {
                let page = page.map_err(fault(NONE))?;
                let old = page.contents().iter().filter(|object| is_before(object.last_modified(), before));
                found.extend(old.filter_map(|object| self.hash_of(object.key()).map(Found::Blob)));
            }
            let (mut key, mut id) = (None, None);
            loop {
                let uploads = self.client.list_multipart_uploads().bucket(&self.bucket.name);
                let uploads = uploads.prefix(&self.bucket.prefix).set_key_marker(key).set_upload_id_marker(id);
                let page = uploads.send().await.map_err(fault(NONE))?;
                for upload in page.uploads().iter().filter(|upload| is_before(upload.initiated(), before)) {
                    if let (Some(hash), Some(name)) = (self.hash_of(upload.key()), upload.upload_id()) {
                        found.push(Found::Upload { hash, upload: name.to_owned() });
                    }
                }
                if page.is_truncated() != Some(true) || page.next_key_marker().is_none() {
                    return Ok(found);
                }
                (key, id) = (page.next_key_marker, page.next_upload_id_marker);
            }
        })
    }
}

struct Reader {
    hash: BlobHash,
    /// Bytes that are still to come.
    left: u64,
    body: ByteStream,
}

impl BlobReader for Reader {
    fn next(&mut self) -> Later<'_, Option<Bytes>> {
        Box::pin(async move {
            match self.body.next().await {
                Some(Ok(bytes)) => {
                    self.left = self.left.saturating_sub(bytes.len() as u64);
                    Ok(Some(bytes))
                }
                Some(Err(error)) => Err(BlobFault::Store(format!("{}: {error}", self.hash))),
                None if self.left > 0 => Err(BlobFault::Store(format!("{} broke off", self.hash))),
                None => Ok(None),
            }
        })
    }
}
