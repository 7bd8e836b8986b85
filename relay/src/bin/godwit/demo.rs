//! `godwit demo`: relays and their clients at work, over real sockets and with real crashes.
//!
//! - [`one`]: one relay
//! - [`three`]: three relays in two regions
//! - [`sharing`]: three relays in one region, that share its store
//! - [`people`]: devices, and what each must receive

mod one;
mod people;
mod sharing;
mod three;

use crate::fault::{FAULT, Fault, print, say};
use crate::shared::StoreArgs;
use anyhow::{Context, Result, anyhow};
use godwit_wire::RegionId;
use people::Tally;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) async fn run(store: &StoreArgs) -> Result<(), Fault> {
    let folder = tempfile::Builder::new().prefix("godwit-demo-").tempdir().context("a temporary folder")?;
    let mut tally = Tally::default();
    let acts = async {
        if store.is_shared() {
            shared(&folder.path().join("sharing"), store, &mut tally).await?;
            return tally.fault().map_or(Ok(()), |fault| Err(anyhow!(fault)));
        }
        one::act(&folder.path().join("one"), &mut tally).await?;
        tally.next_act();
        three::act(&folder.path().join("three"), &mut tally).await?;
        tally.fault().map_or(Ok(()), |fault| Err(anyhow!(fault)))
    };
    match acts.await {
        Ok(()) => print(&format!("demo: ok: {}", tally.line())),
        Err(error) => {
            for act in ["one", "three", "sharing"] {
                let log = std::fs::read_to_string(folder.path().join(act).join("relay.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                for line in last.iter().rev() {
                    say(&format!("relay: {line}"));
                }
            }
            Err(Fault::new(FAULT, error.context("demo: failed")))
        }
    }
}

/// On tables that are made for it, and removed afterwards.
async fn shared(folder: &Path, store: &StoreArgs, tally: &mut Tally) -> Result<()> {
    let prefix = format!("godwit-demo-{:08x}-", fastrand::u32(..));
    let region: RegionId = "eu".parse()?;
    let failed = |fault: Fault| anyhow!("{fault}");
    store.prepare(&prefix, std::slice::from_ref(&region)).await.map_err(failed)?;
    let played = sharing::act(folder, store, &prefix, tally).await;
    let removed = store.remove(&prefix, &region).await.map_err(failed);
    played.and(removed)
}

struct Step(Instant);

impl Step {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn done(self, what: impl AsRef<str>) {
        let line = format!("{:>8.1} ms  {}", self.0.elapsed().as_secs_f64() * 1000.0, what.as_ref());
        // The steps are for whoever watches; the last line is what counts.
        drop(print(&line));
    }
}

/// Waits for a condition.
async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.with_context(|| format!("waited in vain for {what}"))
}

/// Where the relays of an act complain.
fn log(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder)?;
    Ok(File::options().create(true).append(true).open(folder.join("relay.log"))?)
}

/// Where a device of the demo lives.
fn home(folder: &Path, name: &str) -> PathBuf {
    folder.join(name.replace(['@', '/'], "-"))
}
