//! Files on the wire: parts up, chunks down, each on a stream of its own that gives way to messages.

use super::Attachment;
use super::source::Source;
use crate::error::Error;
use crate::host::Host;
use crate::session::{one_shot, read_reply, unreachable};
use bytes::{Buf, Bytes};
use godwit_seal::{Cipher, Damaged, FileKey, SEALED_CHUNK_BYTES};
use godwit_wire::blob::{BlobHash, CHUNK_BYTES, Digest32, Manifest, PART_BYTES, part_bytes};
use godwit_wire::codec::{self, FrameReader};
use godwit_wire::frame::{BlobState, MissingPart, Reply, Request};
use godwit_wire::{ChatId, Code, Refusal, Seq};
use quinn::{Connection, RecvStream, SendStream};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// Parts of one file that are on their way at the same time.
const PARTS: usize = 2;
/// How long a stream may bring nothing.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes written at a time.
const WRITE_BYTES: usize = 128 << 10;
const READ_BYTES: usize = 64 << 10;

/// How far a file is. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    done: Arc<AtomicU64>,
    total: Arc<AtomicU64>,
}

impl Progress {
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that are where they should be, and all; both 0 before it begins.
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

fn confused() -> Error {
    unreachable("the relay answered with something else")
}

fn refused(reply: Reply) -> Error {
    match reply {
        Reply::Refused(refusal) => refusal.into(),
        Reply::Unsupported { .. } => Refusal::because(Code::Invalid, "this relay is too old for attachments").into(),
        _ => confused(),
    }
}

async fn in_time<T>(what: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(IDLE, what).await.map_err(|_| unreachable("an attachment does not move"))?
}

/// Opens a stream with its request. It gives way to all that are not of files, and to those of files that are `before` it.
async fn open(connection: &Connection, request: &Request, before: i32) -> Result<(SendStream, RecvStream), Error> {
    let opening = async {
        let (mut send, receive) = connection.open_bi().await.map_err(unreachable)?;
        // It fails only if the stream has ended.
        let _ = send.set_priority(-1 - before);
        let mut frame = Vec::new();
        codec::encode_numbered(0, request, &mut frame).map_err(|error| Error::Invalid(error.to_string()))?;
        send.write_all(&frame).await.map_err(unreachable)?;
        Ok((send, receive))
    };
    in_time(opening).await
}

/// A file on its way up, as the device's store has it.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) chat: ChatId,
    pub(crate) path: PathBuf,
    pub(crate) key: FileKey,
    pub(crate) manifest: Manifest,
}

/// The file is not what it was when it was read first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changed;

impl Upload {
    /// Brings all parts that are missing to the home of the chat. It is stored when this returns.
    ///
    /// # Errors
    /// As the relay refuses it, or [`Error::Unreachable`]; what is stored stays. The inner error says that the file changed.
    pub(crate) async fn run(
        &self,
        connection: &Connection,
        host: &Host,
        progress: &Progress,
    ) -> Result<Result<(), Changed>, Error> {
        let total = self.manifest.size_bytes;
        let hash = self.manifest.blob().hash;
        loop {
            let begin = Request::BeginBlob { chat: self.chat.clone(), blob: self.manifest.clone() };
            let missing = match one_shot(connection, &begin).await? {
                Reply::BlobState(BlobState::Stored) => {
                    progress.set(total, total);
                    return Ok(Ok(()));
                }
                Reply::BlobState(BlobState::Missing(missing)) => missing,
                other => return Err(refused(other)),
            };
            let missing_bytes =
                |missing: &MissingPart| Some(part_bytes(total, missing.part)?.saturating_sub(missing.has));
            let missing_bytes: u64 = missing.iter().filter_map(missing_bytes).sum();
            progress.set(total.saturating_sub(missing_bytes), total);
            // A later part has what an earlier one leaves: over a slow network that is nothing, and each is there sooner.
            let (mut parts, mut running) = ((0..).zip(missing), JoinSet::new());
            let mut failed = None;
            loop {
                while failed.is_none()
                    && running.len() < PARTS
                    && let Some((before, part)) = parts.next()
                {
                    let (upload, connection, host) = (self.clone(), connection.clone(), host.clone());
                    let progress = progress.clone();
                    running.spawn(async move { upload.part(&connection, &host, hash, part, before, &progress).await });
                }
                match running.join_next().await {
                    None => break,
                    Some(Ok(Ok(Ok(())))) => {}
                    Some(Ok(Ok(Err(Changed)))) => return Ok(Err(Changed)),
                    // The others may still get there.
                    Some(Ok(Err(error))) => failed = Some(error),
                    Some(Err(error)) => failed = Some(unreachable(error)),
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    async fn part(
        &self,
        connection: &Connection,
        host: &Host,
        hash: BlobHash,
        MissingPart { part, has }: MissingPart,
        before: i32,
        progress: &Progress,
    ) -> Result<Result<(), Changed>, Error> {
        let (path, key) = (self.path.clone(), self.key.clone());
        let digest = usize::try_from(part).ok().and_then(|part| self.manifest.digests.get(part)).copied();
        let reading = move || {
            let sealed = Source::open(&path, &key)?.part(part.into())?;
            let is_it = digest == Some(Digest32::from(Sha256::digest(&sealed)));
            Ok(is_it.then_some(sealed))
        };
        let sealed = match host.blocking(reading).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Ok(Err(Changed)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Err(Changed)),
            Err(source) => return Err(Error::Io { path: self.path.clone(), source }),
        };
        let request = Request::PutPart { chat: self.chat.clone(), hash, part, from: has };
        let (mut send, mut receive) = open(connection, &request, before).await?;
        let mut sealed = Bytes::from(sealed);
        // A relay that says it has more than there is gets nothing, and refuses.
        sealed.advance(usize::try_from(has).unwrap_or(usize::MAX).min(sealed.len()));
        while !sealed.is_empty() {
            let piece = sealed.split_to(WRITE_BYTES.min(sealed.len()));
            let bytes = piece.len() as u64;
            // It waits for those before it as long as the connection lives. A relay that has the part already takes no more
            // of it, and says so.
            if send.write_chunk(piece).await.is_err() {
                break;
            }
            progress.add(bytes);
        }
        // It fails only if the stream has ended.
        let _ = send.finish();
        // What is written is not yet there: over a slow network that takes its time.
        let _ = send.stopped().await;
        match in_time(read_reply(&mut receive, &mut FrameReader::default())).await? {
            Reply::Done => Ok(Ok(())),
            other => Err(refused(other)),
        }
    }
}

/// A file of a message, to be had from its chat's home.
#[derive(Debug)]
pub(crate) struct Download {
    chat: ChatId,
    seq: Seq,
    pub(crate) attachment: Attachment,
    pub(crate) cipher: Cipher,
}

fn damaged(Damaged(chunk): Damaged) -> Error {
    Error::Invalid(format!("the attachment is damaged: {}", Damaged(chunk)))
}

impl Download {
    /// # Errors
    /// [`Error::Invalid`] if what the message says of the file contradicts itself.
    pub(crate) fn new(chat: &ChatId, seq: Seq, attachment: Attachment) -> Result<Self, Error> {
        let cipher = Cipher::new(&attachment.key, attachment.size_bytes);
        if cipher.sealed_bytes() != attachment.blob.size_bytes {
            return Err(Error::Invalid("the attachment's sizes do not fit each other".to_owned()));
        }
        Ok(Self { chat: chat.clone(), seq, attachment, cipher })
    }

    /// What the parts of the file are.
    pub(crate) async fn manifest(&self, connection: &Connection) -> Result<Manifest, Error> {
        let hash = self.attachment.blob.hash;
        let request = Request::GetManifest { chat: self.chat.clone(), seq: self.seq, hash };
        match one_shot(connection, &request).await? {
            Reply::BlobManifest(manifest) if manifest.blob() == self.attachment.blob => Ok(manifest),
            Reply::BlobManifest(_) => Err(confused()),
            other => Err(refused(other)),
        }
    }

    /// Chunks from `first` on, up to `end`, each checked before it is given, in their order.
    pub(crate) async fn chunks(
        &self,
        connection: &Connection,
        first: u64,
        end: u64,
        mut take: impl AsyncFnMut(Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let cipher = &self.cipher;
        if first >= end {
            return Ok(());
        }
        let (from, to) = (cipher.sealed_of(first).start, cipher.sealed_of(end - 1).end);
        let (chat, hash) = (self.chat.clone(), self.attachment.blob.hash);
        let request = Request::FetchBlob { chat, seq: self.seq, hash, from, len: to - from, url: false };
        let (mut send, mut receive) = open(connection, &request, 0).await?;
        // It fails only if the stream has ended.
        let _ = send.finish();
        let mut reader = FrameReader::default();
        match in_time(read_reply(&mut receive, &mut reader)).await? {
            Reply::BlobBytes { len } if len == to - from => {}
            Reply::BlobBytes { .. } => return Err(confused()),
            other => return Err(refused(other)),
        }
        let mut buffer = reader.into_rest().to_vec();
        for chunk in first..end {
            let sealed = cipher.sealed_of(chunk);
            let len = usize::try_from(sealed.end - sealed.start).expect("a chunk is small");
            while buffer.len() < len {
                let read = async { receive.read_chunk(READ_BYTES, true).await.map_err(unreachable) };
                let more = in_time(read).await?;
                buffer.extend_from_slice(&more.ok_or_else(|| unreachable("the attachment broke off"))?.bytes);
            }
            let rest = buffer.split_off(len);
            let mut plain = std::mem::replace(&mut buffer, rest);
            cipher.open(chunk, &mut plain).map_err(damaged)?;
            take(plain).await?;
        }
        Ok(())
    }
}

/// Chunks of a whole part.
pub(crate) const PART_CHUNKS: u64 = PART_BYTES / SEALED_CHUNK_BYTES;
/// Bytes of a file in a whole part.
pub(crate) const PART_PLAIN_BYTES: u64 = PART_CHUNKS * CHUNK_BYTES;
