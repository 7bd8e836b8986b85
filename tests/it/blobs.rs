//! What every store of blobs must do: one suite, for each of them.

use anyhow::{Context, Result, bail, ensure};
use godwit_relay::blobs::files::{Files, make_spool};
use godwit_relay::blobs::s3::S3;
use godwit_relay::blobs::spool::{Spool, SpoolError};
use godwit_relay::blobs::{Address, BlobFault, BlobStore, Found, FoundPart, StoredPart};
use godwit_relay::host::Threads;
use godwit_tests::cluster::until;
use godwit_tests::seaweed;
use godwit_wire::blob::{BlobHash, BlobRef, Digest32, PART_BYTES};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_hours(24);

fn digest(bytes: &[u8]) -> Digest32 {
    Sha256::digest(bytes).into()
}

async fn spooled(spool: &Path, bytes: &[u8]) -> Result<Spool> {
    let mut taking = Spool::begin(&Threads::System, spool.to_owned(), bytes.len() as u64, digest(bytes)).await?;
    for piece in bytes.chunks(300_000) {
        taking = taking.push(piece.to_vec().into()).await?;
    }
    Ok(taking.flush().await?)
}

/// Bytes that are nowhere else in a blob.
fn stretch(seed: u8, bytes: u64) -> Vec<u8> {
    let mut block = digest(&[seed]);
    let mut all = Vec::new();
    while (all.len() as u64) < bytes {
        all.extend_from_slice(&block);
        block = digest(&block);
    }
    all.truncate(usize::try_from(bytes).expect("a part"));
    all
}

async fn read(store: &dyn BlobStore, blob: BlobRef, range: Range<u64>) -> Result<Vec<u8>> {
    let mut reader = store.read(blob, range).await?;
    let mut all = Vec::new();
    while let Some(bytes) = reader.next().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

fn is_missing<T>(result: Result<T, BlobFault>) -> bool {
    matches!(result, Err(BlobFault::Missing(_)))
}

async fn contract(store: &dyn BlobStore, spool: &Path) -> Result<()> {
    let parts = [stretch(1, PART_BYTES), stretch(2, PART_BYTES), stretch(3, 1234)];
    let digests: Vec<Digest32> = parts.iter().map(|part| digest(part)).collect();
    let whole = parts.concat();
    let blob = BlobRef { hash: BlobHash::of_parts(&digests), size_bytes: whole.len() as u64 };
    let hash = blob.hash;

    ensure!(is_missing(store.read(blob, 0..10).await), "nothing is there yet");
    store.remove(hash).await?;
    let upload = store.begin(hash).await?;
    let mut stored = Vec::new();
    // In any order, and one of them twice.
    for part in [2u32, 0, 1, 0] {
        let (bytes, digest) = (&parts[part as usize], digests[part as usize]);
        let spooled = spooled(spool, bytes).await?;
        store.put_part(hash, &upload, part, digest, spooled.check()?).await?;
        let tag =
            store.put_part(hash, &upload, part, digest, spooled.check()?).await.context("nobody waited for it")?;
        stored.retain(|stored: &StoredPart| stored.part != part);
        stored.push(StoredPart { part, digest, tag });
    }
    stored.sort_by_key(|stored| stored.part);
    ensure!(is_missing(store.read(blob, 0..10).await), "parts are no blob");
    let tomorrow = SystemTime::now() + DAY;
    let found = store.list(tomorrow).await?;
    ensure!(found == [Found::Upload { hash, upload: upload.clone() }], "{found:?}");
    store.complete(blob, &upload, stored.clone()).await?;
    store.complete(blob, &upload, stored).await.context("the answer may have got lost")?;

    ensure!(read(store, blob, 0..blob.size_bytes).await? == whole);
    let (first, second) = (PART_BYTES, 2 * PART_BYTES);
    for range in [0..0, 0..1, 77..9000, first - 5..first + 5, first..second, second - 1..blob.size_bytes] {
        let at = |at: u64| usize::try_from(at).expect("small");
        ensure!(read(store, blob, range.clone()).await? == whole[at(range.start)..at(range.end)], "{range:?}");
    }
    ensure!(store.list(tomorrow).await? == [Found::Blob(hash)]);
    ensure!(store.list(SystemTime::now() - DAY).await?.is_empty(), "none of it is old");

    // An upload that is taken back.
    let other = BlobRef { hash: BlobHash::of_parts(&digests[..1]), size_bytes: PART_BYTES };
    let upload = store.begin(other.hash).await?;
    let taken = spooled(spool, &parts[0]).await?;
    let tag = store.put_part(other.hash, &upload, 0, digests[0], taken.check()?).await?;
    store.abort(other.hash, &upload).await?;
    store.abort(other.hash, &upload).await?;
    let parts = vec![StoredPart { part: 0, digest: digests[0], tag }];
    ensure!(is_missing(store.complete(other, &upload, parts).await));
    ensure!(is_missing(store.read(other, 0..1).await));

    store.remove(hash).await?;
    store.remove(hash).await?;
    ensure!(is_missing(store.read(blob, 0..10).await));
    ensure!(store.list(tomorrow).await?.is_empty());
    Ok(())
}

fn spool() -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let spool = make_spool(folder.path())?;
    Ok((folder, spool))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_the_contract() -> Result<()> {
    let (folder, spool) = spool()?;
    let store = Files::open(folder.path().to_owned(), &Threads::System)?;
    contract(&store, &spool).await?;
    ensure!(std::fs::read_dir(&spool)?.next().is_none(), "no part is left where parts come in");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_contract() -> Result<()> {
    let (_folder, spool) = spool()?;
    let bucket = seaweed::bucket("contract").await?;
    let endpoint = seaweed::endpoint().await?;
    let store = S3::with_client(seaweed::client(endpoint, seaweed::SECRET_KEY), bucket);
    contract(&store, &spool).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_checks_what_it_keeps_and_who_asks() -> Result<()> {
    let (_folder, spool) = spool()?;
    let bucket = seaweed::bucket("checks").await?;
    let endpoint = seaweed::endpoint().await?;
    let store = S3::with_client(seaweed::client(endpoint, seaweed::SECRET_KEY), bucket.clone());
    let bytes = stretch(1, 5000);
    let blob = BlobRef { hash: BlobHash::of_parts(&[digest(&bytes)]), size_bytes: 5000 };
    let upload = store.begin(blob.hash).await?;
    let taken = spooled(&spool, &bytes).await?;
    let tag = store.put_part(blob.hash, &upload, 0, digest(&bytes), taken.check()?).await?;
    // Of another length than was announced.
    let part = |tag: &str| vec![StoredPart { part: 0, digest: digest(&bytes), tag: tag.to_owned() }];
    let longer = BlobRef { size_bytes: 5001, ..blob };
    ensure!(matches!(store.complete(longer, &upload, part(&tag)).await, Err(BlobFault::Store(_))));
    store.complete(blob, &upload, part(&tag)).await?;

    let stranger = S3::with_client(seaweed::client(endpoint, "another"), bucket);
    ensure!(matches!(stranger.read(blob, 0..10).await.map(drop), Err(BlobFault::Store(_))));
    // A server that is down is a fault, and no blob that is missing.
    let down =
        S3::with_client(seaweed::client("http://127.0.0.1:9", seaweed::SECRET_KEY), seaweed::bucket("down").await?);
    ensure!(matches!(down.read(blob, 0..10).await.map(drop), Err(BlobFault::Store(_))));
    ensure!(matches!(down.begin(blob.hash).await, Err(BlobFault::Store(_))));
    Ok(())
}

/// Asks at an address for a stretch; the status and what came.
fn get(address: &Address, range: &str) -> Result<(u16, Vec<u8>)> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let mut get = ureq::Agent::from(config).get(&address.url).header("range", range);
    for header in &address.headers {
        get = get.header(&header.name, &header.value);
    }
    let mut answer = get.call()?;
    Ok((answer.status().as_u16(), answer.body_mut().read_to_vec()?))
}

fn put(address: &Address, bytes: &[u8]) -> Result<u16> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let mut put = ureq::Agent::from(config).put(&address.url);
    for header in address.headers.iter().filter(|header| header.name != "content-length") {
        put = put.header(&header.name, &header.value);
    }
    Ok(put.send(bytes)?.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_gives_addresses_for_one_thing_and_a_while() -> Result<()> {
    const LASTS: Duration = Duration::from_mins(5);
    let (_folder, spool) = spool()?;
    let store = S3::with_client(
        seaweed::client(seaweed::endpoint().await?, seaweed::SECRET_KEY),
        seaweed::bucket("addresses").await?,
    );
    let parts = [stretch(1, PART_BYTES), stretch(2, 5000)];
    let digests: Vec<Digest32> = parts.iter().map(|part| digest(part)).collect();
    let blob = BlobRef { hash: BlobHash::of_parts(&digests), size_bytes: PART_BYTES + 5000 };
    let hash = blob.hash;
    let upload = store.begin(hash).await?;
    ensure!(store.parts(hash, &upload).await?.is_empty());
    let first = store.part_url(hash, &upload, 0, (PART_BYTES, digests[0]), LASTS).await?;
    ensure!(!format!("{first:?}{}", first.url).contains(seaweed::SECRET_KEY) && format!("{first:?}") == "Address");
    let mut wrong = parts[0].clone();
    wrong[77] ^= 1;
    ensure!(put(&first, &wrong)? == 400, "it is for one part");
    ensure!(put(&first, &parts[0][1..])? == 403, "of its length");
    ensure!(put(&first, &parts[0])? == 200);
    let taken = spooled(&spool, &parts[1]).await?;
    let tag = store.put_part(hash, &upload, 1, digests[1], taken.check()?).await?;
    let found = store.parts(hash, &upload).await?;
    let [one, two] = found.as_slice() else { bail!("{found:?}") };
    ensure!((one.part, one.bytes, two.part, two.bytes, &two.tag) == (0, PART_BYTES, 1, 5000, &tag), "{found:?}");
    ensure!(found.iter().all(|found| found.digest.is_none_or(|is| is == digests[found.part as usize])));
    let part = |found: &FoundPart| StoredPart {
        part: found.part,
        digest: digests[found.part as usize],
        tag: found.tag.clone(),
    };
    store.complete(blob, &upload, found.iter().map(part).collect()).await?;
    ensure!(is_missing(store.parts(hash, &upload).await));

    let address = store.url(hash, LASTS).await?;
    let last = format!("bytes={}-{}", PART_BYTES - 10, PART_BYTES + 9);
    let expected = [&parts[0][parts[0].len() - 10..], &parts[1][..10]].concat();
    ensure!(get(&address, &last)? == (206, expected));
    ensure!(put(&address, b"other")? == 403, "it is to be read from");
    let other = address.url.replace(&hash.to_string(), &BlobHash([0; 32]).to_string());
    ensure!(get(&Address { url: other, headers: vec![] }, "bytes=0-9")?.0 == 403, "it is of one blob");
    let short = store.url(hash, Duration::from_secs(1)).await?;
    let expired = || get(&short, "bytes=0-9").is_ok_and(|(status, _)| status == 403);
    until("the address to expire", expired).await?;
    Ok(())
}

#[tokio::test]
async fn a_part_that_is_not_what_it_should_be_is_not_taken() -> Result<()> {
    let (_folder, spool) = spool()?;
    let bytes = stretch(1, 600_000);
    let begin = || Spool::begin(&Threads::System, spool.clone(), 600_000, digest(&bytes));
    let short = begin().await?.push(bytes[1..].to_vec().into()).await?.flush().await?;
    ensure!(matches!(short.check(), Err(SpoolError::Size(599_999, 600_000))), "{short:?}");
    drop(short);
    let long = begin().await?.push(bytes.clone().into()).await?.push(vec![0].into()).await;
    ensure!(matches!(long, Err(SpoolError::Size(600_001, 600_000))));
    let mut wrong = bytes.clone();
    wrong[300_000] ^= 1;
    let wrong = begin().await?.push(wrong.into()).await?.flush().await?;
    ensure!(matches!(wrong.check(), Err(SpoolError::Digest)), "{wrong:?}");
    drop(wrong);
    ensure!(std::fs::read_dir(&spool)?.next().is_none(), "nothing of them is left");
    Ok(())
}
