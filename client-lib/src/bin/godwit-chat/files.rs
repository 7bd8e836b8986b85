//! Files in messages: `attach` and `fetch`, with a bar on a terminal.

use crate::print::out;
use crate::verbs::ready;
use godwit_client::{ChatId, Client, Error, MessageId, MessageState, NewAttachment, Progress, Seq};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// How often the bar moves.
const LOOK: Duration = Duration::from_millis(100);

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    ProgressBar::new(0).with_style(ProgressStyle::with_template(template).expect("the template is well-formed"))
}

/// Sends a file. One of the same place, chat and caption that is on its way already goes on.
pub(crate) async fn attach(
    client: &Client,
    chat: &ChatId,
    file: PathBuf,
    caption: String,
    timeout: Duration,
    json: bool,
) -> Result<(), Error> {
    ready(client, chat).await?;
    let io = |source| Error::Io { path: file.clone(), source };
    std::fs::metadata(&file).map_err(io)?;
    let path = std::path::absolute(&file).map_err(io)?;
    let mut known = client.uploads()?.into_iter().filter(|upload| upload.chat == *chat && upload.refusal.is_none());
    let id = match known.find(|upload| upload.path == path && upload.caption == caption) {
        Some(upload) => upload.id,
        None => client.attach(chat, NewAttachment { path, caption, ..NewAttachment::default() })?,
    };
    let seq = uploaded(client, id, timeout).await?;
    out(&if json {
        json!({"id": id.to_string(), "chat": chat.to_string(), "seq": seq.get(), "state": "sent"}).to_string()
    } else {
        format!("sent #{seq}")
    })
}

/// Waits until a file is sent, as long as something moves.
async fn uploaded(client: &Client, id: MessageId, timeout: Duration) -> Result<Seq, Error> {
    let (bar, mut moved, mut last, mut trouble) = (bar(), Instant::now(), 0, None);
    loop {
        match client.wait_for(id, MessageState::Sent, LOOK).await {
            Ok(sent) => {
                bar.finish_and_clear();
                return sent.seq.ok_or_else(|| Error::Invalid("a sent message has no seq".to_owned()));
            }
            Err(Error::TimedOut(_)) => {}
            Err(error) => return Err(error),
        }
        let uploads = client.uploads()?;
        // One that waits for others moves as they do. What another command of this home does is not seen here; it gives up
        // itself, and then it is this one's turn.
        let done = uploads.iter().map(|upload| upload.done_bytes).sum();
        if done != last || !client.owns_connection() {
            (moved, last) = (Instant::now(), done);
        }
        if let Some(upload) = uploads.into_iter().find(|upload| upload.id == id) {
            bar.set_length(upload.total_bytes);
            bar.set_position(upload.done_bytes);
            trouble = upload.trouble;
        }
        if moved.elapsed() > timeout {
            return Err(stalled(trouble, "the file is kept, and goes on with any command of this home"));
        }
    }
}

fn stalled(trouble: Option<String>, kept: &str) -> Error {
    Error::Unreachable(format!("nothing moves: {}; {kept}", trouble.as_deref().unwrap_or("no relay is reached")))
}

/// Gets the file of a message. What an earlier call got of it stays.
pub(crate) async fn fetch(
    client: &Client,
    chat: &ChatId,
    seq: Seq,
    to: Option<PathBuf>,
    timeout: Duration,
    json: bool,
) -> Result<(), Error> {
    client.wait_connected(timeout).await?;
    let attachment = client.attachment(chat, seq).await?;
    let path = match to {
        Some(folder) if folder.is_dir() => folder.join(attachment.file_name()),
        Some(path) => path,
        None => PathBuf::from(attachment.file_name()),
    };
    let (bar, progress) = (bar(), Progress::default());
    let fetching = client.fetch_attachment(chat, seq, &path, &progress);
    tokio::pin!(fetching);
    let (mut moved, mut last) = (Instant::now(), 0);
    loop {
        tokio::select! {
            biased;
            done = &mut fetching => {
                done?;
                break;
            }
            () = tokio::time::sleep(LOOK) => {
                let (done, total) = progress.get();
                bar.set_length(total);
                bar.set_position(done);
                if done != last {
                    (moved, last) = (Instant::now(), done);
                } else if moved.elapsed() > timeout {
                    return Err(stalled(progress.trouble(), "run again, it goes on with what is there"));
                }
            }
        }
    }
    bar.finish_and_clear();
    let shown = path.display().to_string();
    out(&if json { json!({"path": shown, "bytes": attachment.size_bytes}).to_string() } else { shown })
}
