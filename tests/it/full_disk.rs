//! A disk that really fills up under a relay: a small tmpfs, where the machine lets us mount one.

use anyhow::{Context, Result, ensure};
use godwit_client::{ChatId, Client, Content, MessageState};
use godwit_tests::lab::{Lab, PATIENCE};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A disk of 48 MiB. Unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(folder.path()).output();
        Ok(status.is_ok_and(|output| output.status.success()).then_some(Self(folder)))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Writes until nothing fits any more.
    fn fill(&self) -> Result<()> {
        use std::io::Write;
        let mut file = std::fs::File::create(self.filler())?;
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the relay may still be closing its files.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

async fn send(client: &Client, chat: &ChatId, text: &str, patience: Duration) -> Result<()> {
    let id = client.send(chat, Content::text(text))?;
    client.wait_for(id, MessageState::Sent, patience).await?;
    Ok(())
}

/// With `reserve` sends stop early; without one, the disk fills up in the middle of commits.
async fn fill_and_recover(reserve: &str) -> Result<()> {
    let Some(disk) = SmallDisk::mount()? else {
        println!("skipped: this machine does not let us mount a tmpfs");
        return Ok(());
    };
    let data = disk.path().join("data").to_string_lossy().into_owned();
    let lab = Lab::with(&[("data", &data), ("store.reserve", reserve)]).await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    send(&alice, &chat, "before", PATIENCE).await?;
    disk.fill()?;
    // Whatever room the store's file still has inside is used up, too.
    let mut kept = 1;
    while send(&alice, &chat, &"x".repeat(60_000), Duration::from_secs(3)).await.is_ok() {
        kept += 1;
        ensure!(kept < 2_000, "the disk does not fill up");
    }
    let readable = async {
        loop {
            match bob.history(&chat, None, 5_000).await {
                Ok(history) => break history,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let history = tokio::time::timeout(PATIENCE, readable).await.context("reads fail on a full disk")?;
    ensure!(history.len() > kept, "{} entries of {kept} messages", history.len());
    std::fs::remove_file(disk.filler())?;
    // What could not be sent goes out by itself, in its order.
    send(&alice, &chat, "after", PATIENCE).await.context("it does not recover")?;
    let history = bob.history(&chat, None, 5_000).await?;
    ensure!(history.len() == kept + 3, "{} entries, {kept} messages before", history.len());
    ensure!(history.iter().zip(1..).all(|(entry, n)| entry.seq.get() == n), "gapless");
    alice.close().await;
    bob.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_sends_wait_and_go_on() -> Result<()> {
    fill_and_recover("4 MiB").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_a_commit_is_survived() -> Result<()> {
    fill_and_recover("0 B").await
}
