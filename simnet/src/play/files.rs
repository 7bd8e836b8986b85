//! Files that people send and have.

use super::Player;
use anyhow::{Context, Result};
use fastrand::Rng;
use godwit_checker::What as Said;
use godwit_client::{ChatId, Client, NewAttachment, Progress, Seq};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long somebody waits for a file while things go wrong.
const PATIENCE: Duration = Duration::from_mins(1);

/// What was sent, by captions.
#[derive(Default)]
pub(super) struct Files {
    sent: BTreeMap<String, usize>,
    /// Downloads, so that each has a place of its own.
    had: u64,
}

/// What is in a file of this caption.
fn content(caption: &str, bytes: usize) -> Vec<u8> {
    let seed = caption.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut rng = Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.u8(..)).take(bytes).collect()
}

impl Player {
    pub(super) fn attach(&self, client: &Client, name: &str, bytes: usize) -> Result<()> {
        let (device, chat) = (client.device(), self.chat(name)?);
        let number = self.files.borrow().sent.len();
        let caption = format!("{device} {name} file {number}");
        let path = self.sim.folder().join(format!("sent-{number}"));
        std::fs::write(&path, content(&caption, bytes))?;
        self.files.borrow_mut().sent.insert(caption.clone(), bytes);
        let new = NewAttachment { path, caption: caption.clone(), ..NewAttachment::default() };
        let id = client.attach(&chat, new)?;
        self.sim.checker().put(device, &chat, id, Said::File(caption));
        Ok(())
    }

    /// Has the latest file of a chat. That it cannot be had now proves nothing.
    pub(super) async fn fetch_latest(&self, client: &Client, chat: &ChatId) -> Result<()> {
        let latest = self.sim.checker().files().into_iter();
        let own = latest.filter(|(device, of, ..)| device == client.device() && of == chat);
        let Some((.., seq, caption)) = own.max_by_key(|(.., seq, _)| *seq) else { return Ok(()) };
        let fetching = self.fetch(client, chat, seq, &caption);
        tokio::time::timeout(PATIENCE, fetching).await.context("it takes too long")?
    }

    /// Has a file, which must be what was sent.
    async fn fetch(&self, client: &Client, chat: &ChatId, seq: Seq, caption: &str) -> Result<()> {
        let device = client.device();
        let (bytes, to) = {
            let mut files = self.files.borrow_mut();
            files.had += 1;
            let to = self.sim.folder().join(format!("had-{}", files.had));
            (*files.sent.get(caption).with_context(|| format!("nobody sent {caption}"))?, to)
        };
        client.fetch_attachment(chat, seq, &to, &Progress::default()).await?;
        let had = std::fs::read(&to)?;
        std::fs::remove_file(&to)?;
        self.sim.world().note(&format!("{device} has {caption}"));
        if had != content(caption, bytes) {
            self.sim.checker().broken(format!("files: {device} has {caption}, and it is not what was sent"));
        }
        Ok(())
    }

    /// Everybody has all files of their chats.
    pub(super) async fn have_files(&self) -> Result<()> {
        for (device, chat, seq, caption) in self.sim.checker().files() {
            let client = self.sim.client(device.as_str()).with_context(|| format!("{device} is closed"))?;
            if let Err(error) = self.fetch(&client, &chat, seq, &caption).await {
                self.sim.checker().broken(format!("files: {device} cannot have {chat} #{seq}, {caption}: {error}"));
            }
        }
        Ok(())
    }
}
