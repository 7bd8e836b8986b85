//! Files on their way up. A few at a time; what a connection's end cuts off goes on over the next one, at the parts that are
//! missing.

use super::{Brought, Live};
use crate::attachment::Attachment;
use crate::attachment::source::{Source, Stamp};
use crate::attachment::transfer::{Changed, Progress, Upload};
use crate::client::Inner;
use crate::content::Content;
use crate::error::Error;
use crate::store::{Outgoing, UploadRow};
use crate::worker::Worker;
use godwit_seal::FileKey;
use godwit_wire::blob::{BlobRef, Manifest};
use godwit_wire::{Code, MessageId, Refusal};
use quinn::Connection;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Files that are uploaded at the same time.
const UPLOADS: usize = 2;
/// The wait after a failure that names none.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether a chat is made.
const UNMADE: Duration = Duration::from_millis(50);
/// How often a file may change while it is uploaded, before that is given up.
const CHANGES: usize = 5;

#[derive(Debug)]
pub(super) struct Uploading {
    /// There may be one to start.
    pub(super) look: bool,
    running: HashSet<MessageId>,
    /// Not to be tried before.
    rests: HashMap<MessageId, Instant>,
}

impl Uploading {
    pub(super) fn new() -> Self {
        Self { look: true, running: HashSet::new(), rests: HashMap::new() }
    }

    /// Ends the rests that are over.
    pub(super) fn wake(&mut self) {
        let (now, before) = (Instant::now(), self.rests.len());
        self.rests.retain(|_, until| now < *until);
        self.look |= self.rests.len() < before;
    }

    /// Nothing moves.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.rests.is_empty()
    }
}

fn lasting(why: impl Into<String>) -> Error {
    Refusal::because(Code::Unreadable, why).into()
}

impl Live {
    /// Starts what can start.
    pub(super) fn start_uploads(&mut self, worker: &Worker) -> Result<(), Error> {
        if !worker.compared || !std::mem::take(&mut self.uploading.look) {
            return Ok(());
        }
        let Uploading { running, rests, .. } = &mut self.uploading;
        let rows = worker.inner.store().uploads()?;
        for row in rows {
            // The end of one that runs looks again.
            if running.len() >= UPLOADS {
                break;
            }
            let id = row.id;
            if row.refusal.is_some() || running.contains(&id) || rests.contains_key(&id) {
                continue;
            }
            // A chat that is being made is not there yet, and its home would take this device for a stranger.
            if worker.inner.store().chat(&row.chat)?.is_none() {
                rests.insert(id, Instant::now() + UNMADE);
                continue;
            }
            running.insert(id);
            let (inner, connection) = (worker.inner.clone(), self.session.connection().clone());
            self.errands.spawn(async move {
                let result = bring_up(&inner, &connection, row).await;
                Brought::Uploaded { id, result: result.map(Box::new) }
            });
        }
        Ok(())
    }

    /// An upload ended, one way or the other.
    pub(super) fn uploaded(
        &mut self,
        worker: &Worker,
        id: MessageId,
        result: Result<Box<(UploadRow, Manifest)>, Error>,
    ) -> Result<(), Error> {
        self.uploading.running.remove(&id);
        match result {
            Ok(done) => {
                let (row, manifest) = *done;
                let outgoing = message(row.clone(), manifest.blob())?;
                worker.inner.store().finish_upload(id, &row.chat, &outgoing)?;
                worker.inner.forget_progress(id);
            }
            Err(Error::Refused(refusal)) if !refusal.code.is_passing() => {
                tracing::info!(%refusal, "an attachment was refused");
                worker.inner.store().refuse_upload(id, &refusal)?;
                worker.inner.forget_progress(id);
            }
            Err(error) => {
                tracing::debug!(%error, "an upload goes on later");
                worker.inner.progress(id).held_up(&error);
                let wait = error.again_after(RETRY).unwrap_or(RETRY);
                self.uploading.rests.insert(id, Instant::now() + wait);
            }
        }
        worker.inner.changed();
        // Its message is to be sent, and the next one may begin.
        (self.room, self.uploading.look) = (true, true);
        Ok(())
    }
}

fn message(row: UploadRow, blob: BlobRef) -> Result<Outgoing, Error> {
    let draft = row.draft;
    let content = Content::Attachment(Attachment {
        blob,
        key: draft.key,
        size_bytes: draft.stamp.size_bytes,
        name: draft.name,
        media_type: draft.media_type,
        preview: draft.preview,
        caption: draft.caption,
    });
    let content = godwit_wire::entry::Content(content.checked()?);
    Ok(Outgoing::Attach { content, blobs: vec![blob] })
}

/// Uploads a file; reads it first, if that was not done yet or it is another by now.
async fn bring_up(
    inner: &Arc<Inner>,
    connection: &Connection,
    mut row: UploadRow,
) -> Result<(UploadRow, Manifest), Error> {
    for _ in 0..CHANGES {
        let manifest = read(inner, &mut row).await?;
        let (chat, path, key) = (row.chat.clone(), row.path.clone(), row.draft.key.clone());
        let upload = Upload { chat, path, key, manifest };
        match upload.run(connection, &inner.host, &inner.progress(row.id)).await? {
            Ok(()) => return Ok((row, upload.manifest)),
            // Read again, under another key: what was sent must not meet what is sent now.
            Err(Changed) => anew(inner, &mut row, None)?,
        }
    }
    Err(lasting("the file changes all the time"))
}

fn anew(inner: &Inner, row: &mut UploadRow, stamp: Option<Stamp>) -> Result<(), Error> {
    row.draft.key = FileKey(inner.host.crypto.random());
    row.draft.stamp = stamp.unwrap_or(row.draft.stamp);
    row.manifest = None;
    inner.store().begin_upload_anew(row.id, &row.draft)
}

async fn read(inner: &Arc<Inner>, row: &mut UploadRow) -> Result<Manifest, Error> {
    let path = row.path.clone();
    let shown = row.path.display().to_string();
    let gone = |error: std::io::Error| lasting(format!("{shown}: {error}"));
    let stamp = inner.host.blocking(move || Stamp::at(&path)).await.map_err(gone)?;
    if stamp != row.draft.stamp {
        anew(inner, row, Some(stamp))?;
    }
    if let Some(manifest) = row.manifest.clone() {
        return Ok(manifest);
    }
    let (path, key, progress) = (row.path.clone(), row.draft.key.clone(), inner.progress(row.id));
    let reading = move || -> std::io::Result<(Stamp, Manifest)> {
        let source = Source::open(&path, &key)?;
        progress.set(0, source.sealed_bytes());
        Ok((source.stamp, source.manifest()?))
    };
    let (stamp, manifest) = inner.host.blocking(reading).await.map_err(gone)?;
    if stamp != row.draft.stamp {
        return Err(Error::Unreachable("the file changed while it was read".to_owned()));
    }
    inner.store().set_manifest(row.id, &manifest)?;
    row.manifest = Some(manifest.clone());
    Ok(manifest)
}

impl Inner {
    pub(crate) fn progress(&self, id: MessageId) -> Progress {
        self.transfers().entry(id).or_default().clone()
    }

    fn forget_progress(&self, id: MessageId) {
        self.transfers().remove(&id);
    }
}
