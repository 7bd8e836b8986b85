//! Files on the wire: parts up, chunks down, each on a stream of its own that gives way to messages.

use super::Attachment;
use super::http::{self, Pieces};
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
use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Parts of one file that are on their way at the same time.
const PARTS: usize = 2;
/// How long a stream may bring nothing.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes written at a time.
const WRITE_BYTES: usize = 128 << 10;
const READ_BYTES: usize = 64 << 10;
/// Chunks that are asked for at a time at an address, which holds for minutes.
const HTTP_CHUNKS: u64 = 8 * PART_CHUNKS;

/// How far a file is. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    done: Arc<AtomicU64>,
    total: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Progress {
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Why it was held up last, if it was.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn held_up(&self, why: &Error) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_string());
    }

    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
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
        // What came by HTTP and is missing all the same is brought otherwise.
        let mut by_http = http::is_possible(host);
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
            let can_http = Arc::new(AtomicBool::new(std::mem::take(&mut by_http)));
            // A later part has what an earlier one leaves: over a slow network that is nothing, and each is there sooner.
            let mut parts: VecDeque<_> = (0..).zip(missing).collect();
            let (mut running, mut most, mut failed) = (JoinSet::new(), PARTS, None);
            loop {
                while failed.is_none()
                    && running.len() < most
                    && let Some((before, missing)) = parts.pop_front()
                {
                    let (upload, connection, host) = (self.clone(), connection.clone(), host.clone());
                    let part = Part { hash, missing, before, progress: progress.clone(), can_http: can_http.clone() };
                    running.spawn(async move {
                        let brought = upload.part(&connection, &host, part).await;
                        ((before, missing), brought)
                    });
                }
                match running.join_next().await {
                    None => break,
                    Some(Ok((_, Ok(Ok(()))))) => {}
                    Some(Ok((_, Ok(Err(Changed))))) => return Ok(Err(Changed)),
                    // As many as go are on their way.
                    Some(Ok((part, Err(Error::Refused(refusal)))))
                        if refusal.code == Code::RateLimited && !running.is_empty() =>
                    {
                        most = running.len();
                        parts.push_front(part);
                    }
                    // The others may still get there.
                    Some(Ok((_, Err(error)))) => failed = Some(error),
                    Some(Err(error)) => failed = Some(unreachable(error)),
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    async fn part(&self, connection: &Connection, host: &Host, part: Part) -> Result<Result<(), Changed>, Error> {
        let (path, key, number) = (self.path.clone(), self.key.clone(), part.missing.part);
        let digest = usize::try_from(number).ok().and_then(|part| self.manifest.digests.get(part)).copied();
        let reading = move || {
            let sealed = Source::open(&path, &key)?.part(number.into())?;
            let is_it = digest == Some(Digest32::from(Sha256::digest(&sealed)));
            Ok(is_it.then_some(sealed))
        };
        let sealed = match host.blocking(reading).await {
            Ok(Some(sealed)) => Bytes::from(sealed),
            Ok(None) => return Ok(Err(Changed)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Err(Changed)),
            Err(source) => return Err(Error::Io { path: self.path.clone(), source }),
        };
        // What is smaller is there sooner on a lane, as is what came of it already.
        let is_large = sealed.len() as u64 == PART_BYTES && part.missing.has == 0;
        if is_large && part.can_http.load(Ordering::Relaxed) {
            if self.part_by_http(connection, host, &part, &sealed).await? {
                return Ok(Ok(()));
            }
            part.can_http.store(false, Ordering::Relaxed);
        }
        self.part_by_lane(connection, &part, sealed).await.map(Ok)
    }

    /// False if it cannot be brought so.
    async fn part_by_http(
        &self,
        connection: &Connection,
        host: &Host,
        part: &Part,
        sealed: &Bytes,
    ) -> Result<bool, Error> {
        let asked = Request::PartUrl { chat: self.chat.clone(), hash: part.hash, part: part.missing.part };
        let url = match one_shot(connection, &asked).await? {
            Reply::BlobUrl(url) => url,
            Reply::Refused(refusal) if refusal.code.is_passing() => return Err(refusal.into()),
            _ => return Ok(false),
        };
        let written = Arc::new(AtomicU64::new(0));
        let count = {
            let (progress, written) = (part.progress.clone(), written.clone());
            move |bytes| {
                progress.add(bytes);
                written.fetch_add(bytes, Ordering::Relaxed);
            }
        };
        let put = http::put(host, url, sealed.clone(), count).await;
        if let Err(error) = &put {
            tracing::debug!(%error, "a part goes over the relay");
            part.progress.take_back(written.load(Ordering::Relaxed));
        }
        Ok(put.is_ok())
    }

    async fn part_by_lane(&self, connection: &Connection, part: &Part, mut sealed: Bytes) -> Result<(), Error> {
        let MissingPart { part: number, has } = part.missing;
        let request = Request::PutPart { chat: self.chat.clone(), hash: part.hash, part: number, from: has };
        let (mut send, mut receive) = open(connection, &request, part.before).await?;
        // A relay that says it has more than there is gets nothing, and refuses.
        sealed.advance(usize::try_from(has).unwrap_or(usize::MAX).min(sealed.len()));
        let writing = async {
            while !sealed.is_empty() {
                let piece = sealed.split_to(WRITE_BYTES.min(sealed.len()));
                let bytes = piece.len() as u64;
                // It waits for those before it as long as the connection lives.
                if send.write_chunk(piece).await.is_err() {
                    break;
                }
                part.progress.add(bytes);
            }
            // It fails only if the stream has ended.
            let _ = send.finish();
            // What is written is not yet there: over a slow network that takes its time.
            let _ = send.stopped().await;
        };
        let mut reader = FrameReader::default();
        let replied = read_reply(&mut receive, &mut reader);
        tokio::pin!(replied);
        // A relay that refuses, or has the part already, says so and takes no more of it. That it stops the stream may not be
        // noticed here.
        let reply = tokio::select! {
            biased;
            reply = &mut replied => reply?,
            () = writing => in_time(replied).await?,
        };
        match reply {
            Reply::Done => Ok(()),
            other => Err(refused(other)),
        }
    }
}

/// A part that is to be brought.
#[derive(Debug)]
struct Part {
    hash: BlobHash,
    missing: MissingPart,
    /// Parts that go before it.
    before: i32,
    progress: Progress,
    /// Shared by all parts: one that fails stands for all.
    can_http: Arc<AtomicBool>,
}

/// A file of a message, to be had from its chat's home.
#[derive(Debug)]
pub(crate) struct Download {
    chat: ChatId,
    seq: Seq,
    pub(crate) attachment: Attachment,
    pub(crate) cipher: Cipher,
    /// Not tried yet, or it worked.
    can_http: AtomicBool,
}

/// Where the bytes of a stretch come from.
enum Stretch {
    Lane { rest: Bytes, receive: RecvStream },
    Http(Pieces),
}

impl Stretch {
    /// More of it; none at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Lane { rest, .. } if !rest.is_empty() => Ok(Some(std::mem::take(rest))),
            Self::Lane { receive, .. } => {
                let read = receive.read_chunk(READ_BYTES, true).await.map_err(unreachable)?;
                Ok(read.map(|chunk| chunk.bytes))
            }
            Self::Http(pieces) => pieces.recv().await.transpose().map_err(unreachable),
        }
    }
}

fn damaged(Damaged(chunk): Damaged) -> Error {
    Error::Invalid(format!("the attachment is damaged: {}", Damaged(chunk)))
}

impl Download {
    /// # Errors
    /// [`Error::Invalid`] if what the message says of the file contradicts itself.
    pub(crate) fn new(host: &Host, chat: &ChatId, seq: Seq, attachment: Attachment) -> Result<Self, Error> {
        let cipher = Cipher::new(&attachment.key, attachment.size_bytes);
        if cipher.sealed_bytes() != attachment.blob.size_bytes {
            return Err(Error::Invalid("the attachment's sizes do not fit each other".to_owned()));
        }
        let can_http = AtomicBool::new(http::is_possible(host));
        Ok(Self { chat: chat.clone(), seq, attachment, cipher, can_http })
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
        host: &Host,
        first: u64,
        end: u64,
        mut take: impl AsyncFnMut(Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = first;
        while at < end {
            // What is smaller is here sooner from the relay.
            let by_http = end - at >= PART_CHUNKS && self.can_http.load(Ordering::Relaxed);
            let until = if by_http { end.min(at + HTTP_CHUNKS) } else { end };
            let mut stretch = self.open(connection, host, at..until, by_http).await?;
            let is_http = matches!(stretch, Stretch::Http(_));
            let begun = at;
            let read = self.read(&mut stretch, &mut at, until, &mut take).await;
            match read {
                Err(error) if is_http && at == begun => {
                    tracing::debug!(%error, "a file comes over the relay");
                    self.can_http.store(false, Ordering::Relaxed);
                }
                read => read?,
            }
        }
        Ok(())
    }

    async fn open(
        &self,
        connection: &Connection,
        host: &Host,
        chunks: Range<u64>,
        url: bool,
    ) -> Result<Stretch, Error> {
        let (from, to) = (self.cipher.sealed_of(chunks.start).start, self.cipher.sealed_of(chunks.end - 1).end);
        let (chat, hash) = (self.chat.clone(), self.attachment.blob.hash);
        let request = Request::FetchBlob { chat, seq: self.seq, hash, from, len: to - from, url };
        let (mut send, mut receive) = open(connection, &request, 0).await?;
        // It fails only if the stream has ended.
        let _ = send.finish();
        let mut reader = FrameReader::default();
        match in_time(read_reply(&mut receive, &mut reader)).await? {
            Reply::BlobBytes { len } if len == to - from => {
                if url {
                    self.can_http.store(false, Ordering::Relaxed);
                }
                Ok(Stretch::Lane { rest: reader.into_rest(), receive })
            }
            Reply::BlobUrl(from_there) if url => Ok(Stretch::Http(http::get(host, from_there, from..to))),
            Reply::BlobBytes { .. } | Reply::BlobUrl(_) => Err(confused()),
            other => Err(refused(other)),
        }
    }

    async fn read(
        &self,
        stretch: &mut Stretch,
        at: &mut u64,
        until: u64,
        take: &mut impl AsyncFnMut(Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut buffer = Vec::new();
        while *at < until {
            let sealed = self.cipher.sealed_of(*at);
            let len = usize::try_from(sealed.end - sealed.start).expect("a chunk is small");
            while buffer.len() < len {
                let more = in_time(stretch.next()).await?;
                buffer.extend_from_slice(&more.ok_or_else(|| unreachable("the attachment broke off"))?);
            }
            let rest = buffer.split_off(len);
            let mut plain = std::mem::replace(&mut buffer, rest);
            self.cipher.open(*at, &mut plain).map_err(damaged)?;
            take(plain).await?;
            *at += 1;
        }
        Ok(())
    }
}

/// Chunks of a whole part.
pub(crate) const PART_CHUNKS: u64 = PART_BYTES / SEALED_CHUNK_BYTES;
/// Bytes of a file in a whole part.
pub(crate) const PART_PLAIN_BYTES: u64 = PART_CHUNKS * CHUNK_BYTES;
