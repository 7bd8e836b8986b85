//! Large files go straight to a bucket and come straight from it, where a region has it so.

use crate::attachments::{fetched, file, new, received, sent};
use anyhow::{Result, ensure};
use godwit_client::{Client, ClientOptions};
use godwit_relay::blobs::s3::Bucket;
use godwit_tests::lab::PATIENCE;
use godwit_tests::processes::{Processes, enrol};
use godwit_tests::seaweed;
use godwit_wire::blob::PART_BYTES;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

async fn region(folder: &Path, bucket: &Bucket, endpoint: &str) -> Result<Processes> {
    let mut settings = seaweed::environment(bucket, endpoint);
    settings.push(("GODWIT_S3__URLS", "true".to_owned()));
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Processes::start(folder, &[("eu/eu-1", "store")], &settings).await
}

async fn open(folder: &Path, relays: &Processes, device: &str) -> Result<Client> {
    let home = enrol(folder, vec![relays.relays[0].quic.clone()], device).await?;
    let client = Client::open(ClientOptions::new(home))?;
    client.wait_synced(PATIENCE).await?;
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_parts_of_a_file_pass_by_the_relay() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let relays = region(folder.path(), &seaweed::bucket("straight").await?, seaweed::endpoint().await?).await?;
    let alice = open(folder.path(), &relays, "alice@eu/phone").await?;
    let bob = open(folder.path(), &relays, "bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let path = file(folder.path(), "walk.mp4", 40_000_000)?;
    let seq = sent(&alice, &chat, new(&path, "")).await?;
    let (chat, ..) = received(&bob).await?;
    ensure!(fetched(&bob, &chat, seq, &folder.path().join("got")).await? == std::fs::read(&path)?);
    let metric = |name: &str| relays.metric(0, &format!("godwit_{name}_total"));
    #[expect(clippy::cast_precision_loss, reason = "a few bytes")]
    let part = PART_BYTES as f64;
    ensure!(metric("blob_bytes_in")? < part, "all but the last part: {}", metric("blob_bytes_in")?);
    ensure!(metric("blob_bytes_out")? < part, "{}", metric("blob_bytes_out")?);
    ensure!((metric("blob_parts")?, metric("blob_urls")?) == (5.0, 5.0), "four up, and all of it down");
    ensure!(
        bob.read_attachment(&chat, seq, 9_000_000..9_000_010).await? == std::fs::read(&path)?[9_000_000..9_000_010]
    );
    Ok(())
}

/// Lets those through to the bucket that say they are relays, and counts the others.
async fn guarded(endpoint: &str) -> Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let guarded = format!("http://{}", listener.local_addr()?);
    let server = endpoint.trim_start_matches("http://").to_owned();
    let refused = Arc::new(AtomicUsize::new(0));
    let count = refused.clone();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (server, refused) = (server.clone(), count.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    if from.read_buf(&mut head).await? == 0 {
                        return Ok(());
                    }
                }
                if !String::from_utf8_lossy(&head).contains("aws-sdk-rust") {
                    refused.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                let mut to = TcpStream::connect(server).await?;
                to.write_all(&head).await?;
                copy_bidirectional(&mut from, &mut to).await.map(drop)
            });
        }
    });
    Ok((guarded, refused))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_devices_cannot_reach_is_reached_over_the_relay() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (endpoint, refused) = guarded(seaweed::endpoint().await?).await?;
    let relays = region(folder.path(), &seaweed::bucket("guarded").await?, &endpoint).await?;
    let alice = open(folder.path(), &relays, "alice@eu/phone").await?;
    let bob = open(folder.path(), &relays, "bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let path = file(folder.path(), "walk.mp4", 40_000_000)?;
    let seq = sent(&alice, &chat, new(&path, "")).await?;
    let tried = refused.load(Ordering::Relaxed);
    ensure!((1..=2).contains(&tried), "not once a part: {tried}");
    let (chat, ..) = received(&bob).await?;
    ensure!(fetched(&bob, &chat, seq, &folder.path().join("got")).await? == std::fs::read(&path)?);
    ensure!(refused.load(Ordering::Relaxed) == tried + 1);
    ensure!(relays.metric(0, "godwit_blob_bytes_out_total")? > 40_000_000.0);
    Ok(())
}
