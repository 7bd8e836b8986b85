//! Files in messages: [`Client::attach`] sends one, [`Client::fetch_attachment`] gets one.

use super::Client;
use crate::attachment::source::Stamp;
use crate::attachment::target::Target;
use crate::attachment::transfer::{Download, PART_CHUNKS, Progress};
use crate::attachment::{Attachment, MEDIA_TYPE_BYTES, NAME_BYTES, PREVIEW_BYTES};
use crate::client::HistoryBody;
use crate::content::Content;
use crate::error::Error;
use crate::session::one_shot_within;
use crate::store::{Draft, Outgoing, UploadRow};
use crate::worker::Job;
use godwit_seal::{Cipher, FileKey};
use godwit_wire::blob::{BlobHash, BlobRef, CHUNK_BYTES};
use godwit_wire::frame::{Reply, Request};
use godwit_wire::{ChatId, Code, MessageId, Refusal, Seq};
use quinn::Connection;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a transfer waits for a connection, before it counts as a failure.
const OFFLINE: Duration = Duration::from_mins(2);
/// How long a transfer may make no progress: in a train, minutes are nothing.
const STALLED: Duration = Duration::from_mins(10);
/// How often the wait doubles at most, which it does with each failure.
const MOST_DOUBLINGS: u32 = 4;
/// The wait before what failed first is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a file may take from region to region before it is asked for again; what is copied stays.
const COPY: Duration = Duration::from_mins(1);
/// Bytes that [`Client::read_attachment`] gives at a time, at most.
pub const READ_BYTES: u64 = 16 << 20;
/// Bytes gathered before they are written.
const GATHERED_BYTES: usize = 1 << 20;

/// A file to send, and what is said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewAttachment {
    /// Read until it is uploaded: it must stay, and stay the same.
    pub path: PathBuf,
    /// What receivers see; the file's own name if it is empty. At most 255 bytes.
    pub name: String,
    /// `application/octet-stream` if it is empty. At most 127 bytes.
    pub media_type: String,
    /// A small picture, or what else an app shows before the file is there. At most 16 KiB.
    pub preview: Vec<u8>,
    pub caption: String,
}

/// A file on its way up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Of the message that it will be.
    pub id: MessageId,
    pub chat: ChatId,
    pub path: PathBuf,
    pub caption: String,
    /// Of the encrypted file: what is stored already, and all. Both 0 before it begins.
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Why it was held up last, if it was and goes on.
    pub trouble: Option<String>,
    /// Why it is not sent.
    pub refusal: Option<Refusal>,
}

fn limited(field: &str, len: u64, limit: u64) -> Result<(), Error> {
    if len <= limit {
        return Ok(());
    }
    let why = format!("{field} has {len} bytes, at most {limit} are allowed");
    Err(Error::Refused(Refusal::because(Code::TooLarge, why)))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

impl Client {
    /// Keeps a file for `chat`: it is encrypted here, uploaded as soon as there is a connection, and then sent as a message
    /// with the id that this returns. What is sent meanwhile does not wait for it. Durable when this returns; goes on where
    /// it stopped, also after a restart of the app.
    ///
    /// # Errors
    /// [`Error::Io`] if it is no file that can be read; [`Error::Refused`] if this device does not know itself in the chat,
    /// or something said of the file is over its limit. What the home refuses later, [`Client::message_state`] tells.
    pub fn attach(&self, chat: &ChatId, attachment: NewAttachment) -> Result<MessageId, Error> {
        self.check_participant(chat)?;
        let NewAttachment { path, mut name, mut media_type, preview, caption } = attachment;
        let path = std::path::absolute(&path).map_err(io_error(&path))?;
        let stamp = Stamp::at(&path).map_err(io_error(&path))?;
        if name.is_empty() {
            name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        }
        if media_type.is_empty() {
            "application/octet-stream".clone_into(&mut media_type);
        }
        limited("name", name.len() as u64, NAME_BYTES as u64)?;
        limited("media_type", media_type.len() as u64, MEDIA_TYPE_BYTES as u64)?;
        limited("preview", preview.len() as u64, PREVIEW_BYTES as u64)?;
        let key = FileKey(self.inner.host.crypto.random());
        let size_bytes = stamp.size_bytes;
        // What it will be, to see whether it fits a message.
        let blob = BlobRef { hash: BlobHash([0; 32]), size_bytes: Cipher::new(&key, size_bytes).sealed_bytes() };
        let attachment = Attachment { blob, key, size_bytes, name, media_type, preview, caption };
        Content::Attachment(attachment.clone()).check()?;
        let Attachment { key, name, media_type, preview, caption, .. } = attachment;
        let draft = Draft { stamp, key, name, media_type, preview, caption };
        let id = self.inner.store().put_upload(chat, &path, &draft)?;
        self.inner.wake.notify_one();
        Ok(id)
    }

    /// Files on their way up, and those that were refused, in the order in which they were attached.
    pub fn uploads(&self) -> Result<Vec<Upload>, Error> {
        let rows = self.inner.store().uploads()?;
        let transfers = self.inner.transfers();
        let upload = |row: UploadRow| {
            let transfer = transfers.get(&row.id);
            let (done_bytes, total_bytes) = transfer.map_or((0, 0), Progress::get);
            let trouble = transfer.and_then(Progress::trouble);
            let UploadRow { id, chat, path, draft, refusal, .. } = row;
            Upload { id, chat, path, caption: draft.caption, done_bytes, total_bytes, trouble, refusal }
        };
        Ok(rows.into_iter().map(upload).collect())
    }

    /// Takes a file back that is not sent yet, or was refused. False if it is a message by now.
    pub fn cancel_upload(&self, id: MessageId) -> Result<bool, Error> {
        self.inner.store().cancel_upload(id)
    }

    /// The file of a message.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that message has none; as [`Client::history`] if it is not here and cannot be had.
    pub async fn attachment(&self, chat: &ChatId, seq: Seq) -> Result<Attachment, Error> {
        let none = || Error::Invalid(format!("{chat} #{seq} is no message with an attachment"));
        let entries = self.history(chat, Some(seq.next()), 1).await?;
        let entry = entries.into_iter().find(|entry| entry.seq == seq).ok_or_else(none)?;
        match entry.what {
            HistoryBody::Message(Content::Attachment(attachment)) => Ok(attachment),
            HistoryBody::Redacted => Err(Error::Invalid(format!("{chat} #{seq} was erased"))),
            _ => Err(none()),
        }
    }

    async fn connection(&self) -> Result<Connection, Error> {
        if !self.owns_connection() {
            return Err(Error::InUse(self.inner.home.clone()));
        }
        self.wait_connected(OFFLINE).await?;
        let (done, connection) = oneshot::channel();
        self.jobs.send(Job::Connection { done }).await.map_err(|_| Error::Closed)?;
        connection.await.map_err(|_| Error::Unreachable("the connection ended".to_owned()))
    }

    /// Gets the file of a message to `path`, checked chunk by chunk. Under a name of its own beside it until it is whole; if
    /// this ends before, or the device does, the next call goes on there.
    ///
    /// # Errors
    /// [`Error::Io`] if there is a file at `path` already, it cannot be written, or is being got there by another call or
    /// process; [`Error::Refused`] if this user may not have it, and [`Error::Invalid`] if it is damaged: then nothing stays; [`Error::Unreachable`] after ten minutes without progress;
    /// [`Error::InUse`] in a process that does not keep the connection. Cancel safe.
    pub async fn fetch_attachment(
        &self,
        chat: &ChatId,
        seq: Seq,
        path: &Path,
        progress: &Progress,
    ) -> Result<Attachment, Error> {
        let download = Download::new(&self.inner.host, chat, seq, self.attachment(chat, seq).await?)?;
        let (to, hash) = (path.to_owned(), download.attachment.blob.hash);
        let opened = self.inner.host.blocking(move || Target::open(&to, hash)).await.map_err(io_error(path))?;
        let target = Arc::new(Mutex::new(opened));
        let (mut moved_at, mut best, mut failures) = (Instant::now(), 0, 0);
        // Chunks that are there and were checked.
        let mut good = None;
        let fetched = loop {
            let fetched = self.fetch_once(&download, &target, path, progress, &mut good).await;
            let Err(error) = fetched else { break Ok(()) };
            progress.held_up(&error);
            let Some(wait) = error.again_after(AGAIN) else { break Err(error) };
            let (done, _) = progress.get();
            if done > best {
                (moved_at, best, failures) = (Instant::now(), done, 0);
            } else if moved_at.elapsed() > STALLED {
                break Err(error);
            }
            tokio::time::sleep(wait * 2u32.pow(failures)).await;
            failures = (failures + 1).min(MOST_DOUBLINGS);
        };
        let target = Arc::into_inner(target).expect("all that wrote it have ended");
        let target = target.into_inner().unwrap_or_else(PoisonError::into_inner);
        let finish = move || match fetched {
            Ok(()) => Ok(target.finish().map_err(|error| Error::Io { path: target.path().to_owned(), source: error })),
            // It may go on, when there is a connection or room again.
            Err(error @ (Error::Unreachable(_) | Error::Io { .. } | Error::Closed)) => Ok(Err(error)),
            Err(error) => target.discard().map(|()| Err(error)),
        };
        self.inner.host.blocking(finish).await.map_err(io_error(path))??;
        Ok(download.attachment)
    }

    /// As far as one connection goes.
    async fn fetch_once(
        &self,
        download: &Download,
        target: &Arc<Mutex<Target>>,
        path: &Path,
        progress: &Progress,
        good: &mut Option<u64>,
    ) -> Result<(), Error> {
        let connection = self.connection().await?;
        let (key, plain_bytes) = (download.attachment.key.clone(), download.attachment.size_bytes);
        let chunks = download.cipher.chunks();
        let first = if let Some(good) = *good {
            good
        } else {
            // Of an earlier call: a crash may have left anything.
            let here = with(self, target, path, |target| target.len()).await?;
            let parts = if here < PART_CHUNKS * CHUNK_BYTES {
                0
            } else {
                let manifest = download.manifest(&connection).await?;
                with(self, target, path, move |target| target.check(&key, &manifest, plain_bytes)).await?
            };
            (parts * PART_CHUNKS).min(chunks)
        };
        let done = (first * CHUNK_BYTES).min(plain_bytes);
        with(self, target, path, move |target| target.cut(done)).await?;
        *good = Some(first);
        progress.set(done, plain_bytes);
        let (mut gathered, mut count) = (Vec::new(), 0);
        let take = async |plain: Vec<u8>| {
            gathered.extend_from_slice(&plain);
            count += 1;
            progress.add(plain.len() as u64);
            if gathered.len() >= GATHERED_BYTES {
                let bytes = std::mem::take(&mut gathered);
                with(self, target, path, move |target| target.append(&bytes)).await?;
                *good = Some(first + count);
            }
            Ok(())
        };
        let fetched = download.chunks(&connection, &self.inner.host, first, chunks, take).await;
        // Over a bad network the next connection may not bring more than this one did.
        with(self, target, path, move |target| target.append(&gathered)).await?;
        *good = Some(first + count);
        fetched
    }

    /// Sends the file of a message to another chat, without uploading it again: where that chat has another home, its home
    /// gets the file from the first one. The message is kept when this returns, as by [`Client::send`].
    ///
    /// # Errors
    /// As [`Client::attachment`] and [`Client::send`]; [`Error::Unreachable`] or a passing refusal if it could not be copied
    /// now. Cancel safe.
    pub async fn forward(&self, chat: &ChatId, seq: Seq, to: &ChatId, caption: &str) -> Result<MessageId, Error> {
        self.check_participant(to)?;
        let attachment = Attachment { caption: caption.to_owned(), ..self.attachment(chat, seq).await? };
        let blob = attachment.blob;
        let content = godwit_wire::entry::Content(Content::Attachment(attachment).checked()?);
        let request = Request::CopyBlob { chat: chat.clone(), seq, hash: blob.hash, to: to.clone() };
        let deadline = Instant::now() + STALLED;
        let reply = loop {
            let asked = async {
                let connection = self.connection().await?;
                // A chat that is being made is not there yet, and its home would take this device for a stranger.
                if self.chat(to)?.is_none() {
                    return Err(Error::Unreachable("the chat is not made yet".to_owned()));
                }
                match one_shot_within(&connection, &request, COPY).await? {
                    Reply::Refused(refusal) => Err(refusal.into()),
                    reply => Ok(reply),
                }
            };
            let error = match asked.await {
                Ok(reply) => break reply,
                Err(error) => error,
            };
            match error.again_after(AGAIN).filter(|_| Instant::now() < deadline) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        };
        match reply {
            Reply::Done => self.put_one(to, Outgoing::Attach { content, blobs: vec![blob] }),
            _ => Err(Error::Unreachable("the relay answered with something else".to_owned())),
        }
    }

    /// Bytes in the middle of a message's file, checked; fewer at its end. At most 16 MiB at a time.
    ///
    /// # Errors
    /// As [`Client::fetch_attachment`]; it is not tried again.
    pub async fn read_attachment(&self, chat: &ChatId, seq: Seq, range: Range<u64>) -> Result<Vec<u8>, Error> {
        limited("range", range.end.saturating_sub(range.start), READ_BYTES)?;
        let attachment = self.attachment(chat, seq).await?;
        let end = range.end.min(attachment.size_bytes);
        let start = range.start.min(end);
        let download = Download::new(&self.inner.host, chat, seq, attachment)?;
        if start == end {
            return Ok(Vec::new());
        }
        let (first, last) = (start / CHUNK_BYTES, end.div_ceil(CHUNK_BYTES));
        let mut bytes = Vec::new();
        let take = async |plain: Vec<u8>| {
            bytes.extend_from_slice(&plain);
            Ok(())
        };
        download.chunks(&self.connection().await?, &self.inner.host, first, last, take).await?;
        let skip = usize::try_from(start - first * CHUNK_BYTES).expect("a chunk is small");
        let len = usize::try_from(end - start).expect("a stretch is small");
        Ok(bytes.get(skip..skip + len).unwrap_or_default().to_vec())
    }
}

async fn with<T: Send + 'static>(
    client: &Client,
    target: &Arc<Mutex<Target>>,
    path: &Path,
    work: impl FnOnce(&mut Target) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let target = target.clone();
    let work = move || work(&mut target.lock().unwrap_or_else(PoisonError::into_inner));
    client.inner.host.blocking(work).await.map_err(io_error(path))
}
