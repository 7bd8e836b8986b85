//! Files in messages: they arrive as they were, whatever cuts them, and only where they may.

use anyhow::{Context, Result, bail, ensure};
use godwit_client::{
    Attachment, Change, ChatId, Client, ClientOptions, Code, Content, Error, Event, Member, MessageState,
    NewAttachment, Progress, Role, Seq, Title,
};
use godwit_tests::cluster::{Cluster, until};
use godwit_tests::lab::{Lab, PATIENCE};
use godwit_tests::process::{self, commands};
use godwit_tests::processes::{Processes, enrol};
use godwit_tests::seaweed;
use godwit_tests::talk::event;
use godwit_tests::wire::{self, Wire};
use godwit_wire::MessageId;
use godwit_wire::blob::{BlobHash, BlobRef, Manifest, PART_BYTES, part_bytes, parts};
use godwit_wire::codec::{self, FrameReader};
use godwit_wire::frame::{BlobState, MissingPart, Reply, Request, Stamp};
use quinn::{RecvStream, SendStream};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use uuid::Uuid;

/// A file whose every stretch is its own.
pub(crate) fn file(folder: &Path, name: &str, bytes: usize) -> Result<PathBuf> {
    let path = folder.join(name);
    let mut content = Vec::with_capacity(bytes);
    let mut block = Sha256::digest(name);
    while content.len() < bytes {
        content.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    content.truncate(bytes);
    std::fs::write(&path, content)?;
    Ok(path)
}

pub(crate) fn new(path: &Path, caption: &str) -> NewAttachment {
    let (path, caption) = (path.to_owned(), caption.to_owned());
    NewAttachment { path, caption, media_type: "video/mp4".to_owned(), ..NewAttachment::default() }
}

pub(crate) async fn sent(client: &Client, chat: &ChatId, attachment: NewAttachment) -> Result<Seq> {
    let id = client.attach(chat, attachment)?;
    client.wait_for(id, MessageState::Sent, PATIENCE).await?.seq.context("sent without a seq")
}

/// The next file that comes.
pub(crate) async fn received(client: &Client) -> Result<(ChatId, Seq, Attachment)> {
    let mut events = client.events()?;
    loop {
        if let Event::MessageReceived { chat, message } = event(client, &mut events).await?
            && let Content::Attachment(attachment) = message.content
        {
            return Ok((chat, message.seq, attachment));
        }
    }
}

pub(crate) async fn fetched(client: &Client, chat: &ChatId, seq: Seq, to: &Path) -> Result<Vec<u8>> {
    client.fetch_attachment(chat, seq, to, &Progress::default()).await?;
    Ok(std::fs::read(to)?)
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Result<Code> {
    match result {
        Err(Error::Refused(refusal)) => Ok(refusal.code),
        other => bail!("not refused: {other:?}"),
    }
}

fn stored_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(stored_files(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_arrives_as_it_was_and_is_ciphertext_on_its_way() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    for bytes in [0, 1, 65_536, 65_537, 20_000_000] {
        let path = file(lab.path(), &format!("walk-{bytes}.mp4"), bytes)?;
        let original = std::fs::read(&path)?;
        sent(&alice, &chat, new(&path, "look")).await?;
        let (chat, seq, attachment) = received(&bob).await?;
        ensure!(attachment.size_bytes == bytes as u64 && attachment.caption == "look", "{attachment:?}");
        ensure!(attachment.file_name() == format!("walk-{bytes}.mp4") && attachment.media_type == "video/mp4");
        let to = lab.path().join(format!("got-{bytes}"));
        ensure!(fetched(&bob, &chat, seq, &to).await? == original, "{bytes} bytes came back as others");
        let again = bob.fetch_attachment(&chat, seq, &to, &Progress::default()).await;
        ensure!(matches!(again, Err(Error::Io { .. })), "nothing is overwritten: {again:?}");
        let end = bytes as u64;
        for range in [0..10, end / 2..end / 2 + 70_000, end.saturating_sub(3)..end + 3, end + 5..end + 9] {
            let expected = |at: u64| usize::try_from(at.min(end)).unwrap_or(usize::MAX);
            let got = bob.read_attachment(&chat, seq, range.clone()).await?;
            ensure!(got == original[expected(range.start)..expected(range.end)], "{range:?} of {bytes}");
        }
    }
    let blobs = lab.path().join("data/blobs");
    let stretch = &std::fs::read(lab.path().join("walk-65536.mp4"))?[1000..1032];
    let stored = stored_files(&blobs)?;
    ensure!(stored.len() >= 5, "{stored:?}");
    for path in stored {
        let bytes = std::fs::read(&path)?;
        ensure!(!bytes.windows(stretch.len()).any(|window| window == stretch), "{} is readable", path.display());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_do_not_wait_for_a_file_before_them() -> Result<()> {
    let mut lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, created) = alice.direct("bob@eu".parse()?)?;
    alice.wait_for(created.context("created")?, MessageState::Sent, PATIENCE).await?;
    lab.down().await;
    let path = file(lab.path(), "long.mp4", 30_000_000)?;
    let long = alice.attach(&chat, new(&path, ""))?;
    let text = alice.send(&chat, Content::text("it is coming"))?;
    lab.up().await?;
    let text = alice.wait_for(text, MessageState::Sent, PATIENCE).await?;
    let long = alice.wait_for(long, MessageState::Delivered, PATIENCE).await?;
    ensure!(text.seq < long.seq, "{text:?} {long:?}");
    received(&bob).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_at_the_missing_parts_after_both_sides_stopped() -> Result<()> {
    let mut lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let path = file(lab.path(), "walk.mp4", 100_000_000)?;
    let id = alice.attach(&chat, new(&path, ""))?;
    let (mut stored, mut resumed) = (0.0, 0.0);
    let mut count = |lab: &Lab| {
        stored += lab.metric("godwit_blob_parts_total");
        resumed += lab.metric("godwit_blob_resumes_total");
    };
    until("a part to be stored", || lab.metric("godwit_blob_parts_total") > 0.5).await?;
    // What is stored after the look at the counters is in none of them.
    count(&lab);
    lab.down().await;
    alice.close().await;
    drop(alice);
    lab.up().await?;
    let alice = lab.open("alice@eu/phone")?;
    alice.wait_for(id, MessageState::Sent, PATIENCE).await?;
    count(&lab);
    #[expect(clippy::cast_precision_loss, reason = "a few parts")]
    let all = parts(100_000_000) as f64;
    ensure!(stored < all + 0.5, "{stored} parts were stored, {all} are the file");
    ensure!(resumed > 0.5, "it went on where it stopped");
    let (chat, seq, _) = received(&bob).await?;
    let to = lab.path().join("got");
    ensure!(fetched(&bob, &chat, seq, &to).await? == std::fs::read(&path)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_with_what_is_there_and_right() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let path = file(lab.path(), "walk.mp4", 30_000_000)?;
    let original = std::fs::read(&path)?;
    sent(&alice, &chat, new(&path, "")).await?;
    let (chat, seq, attachment) = received(&bob).await?;
    let to = lab.path().join("got");
    let hash = &attachment.blob.hash.to_string()[..16];
    let passing = lab.path().join(format!(".got.{hash}.part"));
    // What a crash may leave: two parts, of which the second is not what was written, and a bit of the third.
    let mut left = original[..18_000_000].to_vec();
    left[9_000_000] ^= 1;
    std::fs::write(&passing, &left)?;
    let before = lab.metric("godwit_blob_bytes_out_total");
    ensure!(fetched(&bob, &chat, seq, &to).await? == original);
    let moved = lab.metric("godwit_blob_bytes_out_total") - before;
    ensure!((20_000_000.0..23_500_000.0).contains(&moved), "all but the first part: {moved}");
    ensure!(!passing.exists());
    Ok(())
}

/// Puts bytes as a part, as a device of its own making does.
async fn put(wire: &Wire, chat: &ChatId, hash: BlobHash, part: u32, bytes: &[u8]) -> Result<Reply> {
    put_from(wire, chat, hash, (part, 0), bytes).await
}

/// The same with the rest of a part.
async fn put_from(wire: &Wire, chat: &ChatId, hash: BlobHash, (part, from): (u32, u64), bytes: &[u8]) -> Result<Reply> {
    let (mut send, mut receive) = begin_part(wire, Request::PutPart { chat: chat.clone(), hash, part, from }).await?;
    // Refused, it takes no more.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let answer = receive.read_to_end(1 << 20).await?;
    let mut reader = FrameReader::default();
    reader.push(&answer);
    let frame = reader.next_frame()?.context("no reply")?;
    match codec::decode_numbered(&frame)? {
        (7, codec::Decoded::Frame(reply)) => Ok(reply),
        other => bail!("{other:?}"),
    }
}

/// These parts are missing, but for so many bytes of each.
fn missing(parts: &[(u32, u64)]) -> Reply {
    let part = |&(part, has): &(u32, u64)| MissingPart { part, has };
    Reply::BlobState(BlobState::Missing(parts.iter().map(part).collect()))
}

fn refusal(reply: Reply) -> Result<Code> {
    match reply {
        Reply::Refused(refusal) => Ok(refusal.code),
        other => bail!("not refused: {other:?}"),
    }
}

fn manifest(size_bytes: u64, byte: u8) -> Result<(Manifest, Vec<Vec<u8>>)> {
    let bytes = |part| Ok(vec![byte; usize::try_from(part_bytes(size_bytes, part).context("a part")?)?]);
    let count = u32::try_from(parts(size_bytes))?;
    let all = (0..count).map(bytes).collect::<Result<Vec<_>>>()?;
    let digests = all.iter().map(|part| Sha256::digest(part).into()).collect();
    Ok((Manifest { size_bytes, digests }, all))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_what_was_announced_or_refused() -> Result<()> {
    let lab = Lab::start().await?;
    lab.enrol("bob@eu/phone").await?;
    let (wire, chat) = talks_to_bob(&lab, "alice").await?;
    let mut lane = wire.lane().await?;

    let (blob, bytes) = manifest(PART_BYTES + 5, 1)?;
    let named = blob.blob();
    let hash = named.hash;
    let begin = Request::BeginBlob { chat: chat.clone(), blob: blob.clone() };
    ensure!(refusal(put(&wire, &chat, hash, 0, &bytes[0]).await?)? == Code::NoSuchBlob, "it has not begun");
    ensure!(wire.ask(&begin).await? == missing(&[(0, 0), (1, 0)]));
    let mut wrong = bytes[0].clone();
    wrong[77] ^= 1;
    let longer = [bytes[1].as_slice(), &[1]].concat();
    for (part, bytes) in
        [(0, wrong.as_slice()), (0, &bytes[0][1..]), (1, &longer), (1, &[]), (2, &[1]), (u32::MAX, &[1])]
    {
        let reply = put(&wire, &chat, hash, part, bytes).await?;
        ensure!(refusal(reply)? == Code::Invalid, "part {part} of {} bytes", bytes.len());
    }
    let with = |n| wire::message_with(wire::stamp(&chat, n), "look", vec![named]);
    ensure!(put(&wire, &chat, hash, 1, &bytes[1]).await? == Reply::Done);
    ensure!(wire.ask(&begin).await? == missing(&[(0, PART_BYTES - 1)]));
    lane.write(&[with(2)]).await?;
    ensure!(refusal(lane.reply().await?.1)? == Code::NoSuchBlob, "half a file is none");
    ensure!(put(&wire, &chat, hash, 0, &bytes[0]).await? == Reply::Done);
    ensure!(put(&wire, &chat, hash, 0, &wrong).await? == Reply::Done, "it is there already, whatever comes");
    ensure!(wire.ask(&begin).await? == Reply::BlobState(BlobState::Stored));
    ensure!(wire.ask(&begin).await? == Reply::BlobState(BlobState::Stored));
    lane.write(&[with(3)]).await?;
    let Reply::Sent { seq, .. } = lane.reply().await?.1 else { bail!("not sent") };
    let get = Request::GetManifest { chat: chat.clone(), seq, hash };
    ensure!(wire.ask(&get).await? == Reply::BlobManifest(blob.clone()));

    // Digests that are not those of the hash name another blob; a size that is not that of the digests is none.
    let short = Manifest { size_bytes: 5, ..blob.clone() };
    for bad in [short, Manifest { size_bytes: 0, digests: vec![] }, Manifest { size_bytes: u64::MAX, ..blob }] {
        let reply = wire.ask(&Request::BeginBlob { chat: chat.clone(), blob: bad }).await?;
        ensure!(matches!(refusal(reply)?, Code::Invalid | Code::TooLarge));
    }
    Ok(())
}

/// A raw session of a user of eu, who has a direct chat with bob.
async fn talks_to_bob(lab: &Lab, user: &str) -> Result<(Wire, ChatId)> {
    let wire = lab.session(&format!("{user}@eu/phone")).await?;
    let chat = ChatId::direct(&format!("{user}@eu").parse()?, &"bob@eu".parse()?);
    let mut lane = wire.lane().await?;
    lane.write(&[wire::create_direct(wire::stamp(&chat, 1), "bob@eu")]).await?;
    ensure!(matches!(lane.reply().await?.1, Reply::Sent { .. }));
    Ok((wire, chat))
}

async fn begin_part(wire: &Wire, put: Request) -> Result<(SendStream, RecvStream)> {
    let mut frame = Vec::new();
    codec::encode_numbered(7, &put, &mut frame)?;
    let (mut send, receive) = wire.connection.open_bi().await?;
    send.write_all(&frame).await?;
    Ok((send, receive))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_breaks_off_goes_on_where_it_stopped_for_its_device_alone() -> Result<()> {
    let lab = Lab::start().await?;
    lab.enrol("bob@eu/phone").await?;
    let (wire, chat) = talks_to_bob(&lab, "alice").await?;
    let (other, own) = talks_to_bob(&lab, "carol").await?;
    let (blob, bytes) = manifest(1_000_000, 1)?;
    let (hash, bytes) = (blob.blob().hash, &bytes[0]);
    let begin = Request::BeginBlob { chat: chat.clone(), blob: blob.clone() };
    let has = |has| missing(&[(0, has)]);
    ensure!(wire.ask(&begin).await? == has(0));
    let mut came = 0;
    for (cut, is_reset) in [(1, true), (65_536, false), (500_000, true), (999_999, false), (1_000_000, true)] {
        let put = Request::PutPart { chat: chat.clone(), hash, part: 0, from: came as u64 };
        let before = lab.metric("godwit_blob_bytes_in_total");
        let (mut send, _receive) = begin_part(&wire, put).await?;
        send.write_all(&bytes[came..cut]).await?;
        #[expect(clippy::cast_precision_loss, reason = "a few bytes")]
        let all = before + (cut - came) as f64 - 0.5;
        until("it to come in", || lab.metric("godwit_blob_bytes_in_total") > all).await?;
        if is_reset {
            send.reset(0u32.into())?;
        }
        // A lane that is still open ends when the device asks.
        ensure!(wire.ask(&begin).await? == has(cut as u64), "cut after {cut}");
        came = cut;
    }
    let foreign = Request::BeginBlob { chat: own.clone(), blob };
    ensure!(other.ask(&foreign).await? == has(0), "what a device sent is its own");
    ensure!(put_from(&wire, &chat, hash, (0, 1_000_000), &[]).await? == Reply::Done, "all of it came before");
    ensure!(wire.ask(&begin).await? == Reply::BlobState(BlobState::Stored));

    // What is said of what came is looked at, and what came wrong does not stay.
    let (blob, bytes) = manifest(1_000_000, 2)?;
    let (hash, bytes) = (blob.blob().hash, &bytes[0]);
    let begin = Request::BeginBlob { chat: chat.clone(), blob };
    ensure!(wire.ask(&begin).await? == has(0));
    ensure!(refusal(put(&wire, &chat, hash, 0, &[9; 1000]).await?)? == Code::Invalid, "too short");
    ensure!(wire.ask(&begin).await? == has(1000));
    for from in [1, 999, 1001, u64::MAX] {
        let reply = put_from(&wire, &chat, hash, (0, from), bytes).await?;
        ensure!(refusal(reply)? == Code::Unavailable, "from {from}");
        ensure!(refusal(put(&wire, &chat, hash, 0, &[9; 1000]).await?)? == Code::Invalid);
    }
    let reply = put_from(&wire, &chat, hash, (0, 1000), &bytes[1000..]).await?;
    ensure!(refusal(reply)? == Code::Invalid, "its beginning is another's");
    ensure!(wire.ask(&begin).await? == has(0));
    ensure!(put(&wire, &chat, hash, 0, bytes).await? == Reply::Done);
    let spool = lab.path().join("data/blobs/spool");
    ensure!(std::fs::read_dir(&spool)?.next().is_none(), "nothing is left of what broke off");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_on_after_a_cut_at_each_boundary_of_its_parts() -> Result<()> {
    let lab = Lab::start().await?;
    lab.enrol("bob@eu/phone").await?;
    let (mut wire, chat) = talks_to_bob(&lab, "alice").await?;
    let (blob, bytes) = manifest(3 * PART_BYTES + 1, 1)?;
    let named = blob.blob();
    let begin = Request::BeginBlob { chat: chat.clone(), blob };
    for (stored, part) in (0u32..).zip(&bytes) {
        let expected: Vec<_> = (stored..4).map(|part| (part, 0)).collect();
        ensure!(wire.ask(&begin).await? == missing(&expected), "after {stored} parts");
        ensure!(put(&wire, &chat, named.hash, stored, part).await? == Reply::Done);
        wire.connection.close(0u32.into(), b"");
        wire = lab.session("alice@eu/phone").await?;
    }
    ensure!(wire.ask(&begin).await? == Reply::BlobState(BlobState::Stored));
    let mut lane = wire.lane().await?;
    // The first of its latest enrolment, and no other message of before.
    let stamp = Stamp { id: MessageId(Uuid::from_u128(77)), ..wire::stamp(&chat, 1) };
    lane.write(&[wire::message_with(stamp, "look", vec![named])]).await?;
    let Reply::Sent { seq, .. } = lane.reply().await?.1 else { bail!("not sent") };
    let whole = bytes.concat();
    let mut had = Vec::new();
    // And down, from each boundary, and a byte before and behind it.
    for from in (0..=3).flat_map(|part| [part * PART_BYTES, part * PART_BYTES + 1, (part + 1) * PART_BYTES - 1]) {
        let fetch =
            Request::FetchBlob { chat: chat.clone(), seq, hash: named.hash, from, len: PART_BYTES + 2, url: false };
        let (mut send, mut receive) = begin_part(&wire, fetch).await?;
        send.finish()?;
        if from > named.size_bytes {
            continue;
        }
        let answer = receive.read_to_end(usize::try_from(2 * PART_BYTES)?).await?;
        let mut reader = FrameReader::default();
        reader.push(&answer);
        reader.next_frame()?.context("no reply")?;
        let start = usize::try_from(from)?;
        let end = whole.len().min(start + usize::try_from(PART_BYTES)? + 2);
        ensure!(reader.into_rest() == whole[start..end], "from {from}");
        had.push(from);
    }
    ensure!(had.len() == 11, "{had:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_off_is_kept_up_to_a_limit() -> Result<()> {
    let lab = Lab::start().await?;
    lab.enrol("bob@eu/phone").await?;
    let (wire, chat) = talks_to_bob(&lab, "alice").await?;
    let mut begun = Vec::new();
    for byte in 0..6 {
        let (blob, bytes) = manifest(1000, byte)?;
        let hash = blob.blob().hash;
        let begin = Request::BeginBlob { chat: chat.clone(), blob };
        ensure!(matches!(wire.ask(&begin).await?, Reply::BlobState(BlobState::Missing(_))));
        ensure!(refusal(put(&wire, &chat, hash, 0, &bytes[0][..500]).await?)? == Code::Invalid);
        begun.push(begin);
    }
    for (n, begin) in begun.iter().enumerate() {
        let has = if n < 2 { 0 } else { 500 };
        ensure!(wire.ask(begin).await? == missing(&[(0, has)]), "the latest four of a device: {n}");
    }
    let spool = lab.path().join("data/blobs/spool");
    ensure!(std::fs::read_dir(&spool)?.count() == 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_has_few_files_on_their_way_and_a_region_only_what_it_has_room_for() -> Result<()> {
    let lab = Lab::with(&[("attachments.per_device", "2"), ("attachments.space", "1500KiB")]).await?;
    lab.enrol("bob@eu/phone").await?;
    let (wire, chat) = talks_to_bob(&lab, "alice").await?;
    let (blob, bytes) = manifest(1_000_000, 1)?;
    let hash = blob.blob().hash;
    wire.ask(&Request::BeginBlob { chat: chat.clone(), blob }).await?;
    let spool = lab.path().join("data/blobs/spool");
    let mut open = Vec::new();
    for n in 1..=2 {
        let put = Request::PutPart { chat: chat.clone(), hash, part: 0, from: 0 };
        let mut lane = begin_part(&wire, put).await?;
        lane.0.write_all(&bytes[0][..10]).await?;
        open.push(lane);
        until("the part to come in", || std::fs::read_dir(&spool).map_or(0, Iterator::count) == n).await?;
    }
    ensure!(refusal(put(&wire, &chat, hash, 0, &bytes[0]).await?)? == Code::RateLimited);
    drop(open);
    // What came last of the part stays.
    until("the lanes to end", || std::fs::read_dir(&spool).map_or(0, Iterator::count) == 1).await?;
    ensure!(put(&wire, &chat, hash, 0, &bytes[0]).await? == Reply::Done);
    let (more, _) = manifest(600_000, 2)?;
    match wire.ask(&Request::BeginBlob { chat, blob: more }).await? {
        Reply::Refused(refusal) => {
            ensure!(refusal.code == Code::Unavailable && refusal.explanation.contains("the region's attachments"));
            ensure!(refusal.retry_after().is_some(), "there may be room later");
        }
        other => bail!("{other:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_changed_where_it_is_stored_is_refused_by_the_receiver() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    sent(&alice, &chat, new(&file(lab.path(), "walk.mp4", 300_000)?, "")).await?;
    let (chat, seq, _) = received(&bob).await?;
    let stored = stored_files(&lab.path().join("data/blobs"))?;
    let [stored] = stored.as_slice() else { bail!("{stored:?}") };
    let mut bytes = std::fs::read(stored)?;
    bytes[200_000] ^= 1;
    std::fs::write(stored, bytes)?;
    let to = lab.path().join("got");
    let damaged = bob.fetch_attachment(&chat, seq, &to, &Progress::default()).await;
    ensure!(matches!(&damaged, Err(Error::Invalid(why)) if why.contains("chunk 3")), "{damaged:?}");
    ensure!(!to.exists());
    ensure!(bob.read_attachment(&chat, seq, 0..100_000).await?.len() == 100_000, "what is right can be had");
    let damaged = bob.read_attachment(&chat, seq, 190_000..210_000).await;
    ensure!(matches!(damaged, Err(Error::Invalid(_))), "{damaged:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_those_who_left_get_nothing() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let member = Member { user: "bob@eu".parse()?, role: Role::Member };
    let (chat, _) = alice.create_group(Title::parse("walks")?, vec![member])?;
    let path = file(lab.path(), "walk.mp4", 100_000)?;
    let seq = sent(&alice, &chat, new(&path, "")).await?;
    let (_, _, attachment) = received(&bob).await?;
    let first = lab.path().join("first");
    fetched(&bob, &chat, seq, &first).await?;

    let hash = attachment.blob.hash;
    let eve = lab.session("eve@eu/phone").await?;
    let get = Request::GetManifest { chat: chat.clone(), seq, hash };
    ensure!(refusal(eve.ask(&get).await?)? == Code::NotParticipant);
    let fetch = |seq| Request::FetchBlob { chat: chat.clone(), seq, hash, from: 0, len: 10, url: false };
    ensure!(refusal(eve.ask(&fetch(seq)).await?)? == Code::NotParticipant);
    let (own, bytes) = manifest(10, 3)?;
    let begin = Request::BeginBlob { chat: chat.clone(), blob: own.clone() };
    ensure!(refusal(eve.ask(&begin).await?)? == Code::NotParticipant);
    ensure!(refusal(put(&eve, &chat, own.blob().hash, 0, &bytes[0]).await?)? == Code::NoSuchBlob);
    // Who knows a blob's name alone cannot make it their own.
    let mine = ChatId::direct(&"eve@eu".parse()?, &"bob@eu".parse()?);
    let mut lane = eve.lane().await?;
    let blobs = vec![BlobRef { hash, size_bytes: 106_512 }];
    let steal = wire::message_with(wire::stamp(&mine, 2), "mine", blobs);
    lane.write(&[wire::create_direct(wire::stamp(&mine, 1), "bob@eu"), steal]).await?;
    ensure!(matches!(lane.reply().await?.1, Reply::Sent { .. }));
    ensure!(refusal(lane.reply().await?.1)? == Code::NoSuchBlob);

    let removed = alice.update_chat(&chat, Change::Remove("bob@eu".parse()?))?;
    alice.wait_for(removed, MessageState::Sent, PATIENCE).await?;
    let second = lab.path().join("second");
    let refused = bob.fetch_attachment(&chat, seq, &second, &Progress::default()).await;
    ensure!(code(refused)? == Code::NotParticipant);
    ensure!(!second.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_limit_nothing_is_sent_and_the_limit_is_named() -> Result<()> {
    let settings = [
        ("attachments.file_size", "1MiB"),
        ("attachments.per_user", "3200KiB"),
        ("attachments.per_user_daily", "2500KiB"),
    ];
    let lab = Lab::with(&settings).await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let refused = async |bytes: usize, name: &str| -> Result<(Code, String)> {
        let id = alice.attach(&chat, new(&file(lab.path(), name, bytes)?, ""))?;
        match alice.wait_for(id, MessageState::Sent, PATIENCE).await {
            Err(Error::Refused(refusal)) => {
                ensure!(alice.uploads()?.iter().any(|upload| upload.id == id && upload.refusal.is_some()));
                ensure!(alice.cancel_upload(id)? && !alice.cancel_upload(id)?);
                Ok((refusal.code, refusal.explanation))
            }
            other => bail!("{other:?}"),
        }
    };
    let (code, why) = refused((1 << 20) + 1, "large").await?;
    ensure!(code == Code::TooLarge && why.contains("1048832"), "{why}");
    for name in ["a", "b"] {
        sent(&alice, &chat, new(&file(lab.path(), name, 1 << 20)?, "")).await?;
    }
    let (code, why) = refused(1 << 20, "c").await?;
    ensure!(code == Code::OverQuota && why.contains("today"), "{why}");
    lab.jump(Duration::from_hours(24));
    sent(&alice, &chat, new(&file(lab.path(), "d", 1 << 20)?, "")).await?;
    let (code, why) = refused(1 << 20, "e").await?;
    ensure!(code == Code::OverQuota && why.contains("your attachments"), "{why}");
    // Another has a quota of their own, and what was refused left nothing.
    sent(&bob, &chat, new(&file(lab.path(), "f", 1 << 20)?, "")).await?;
    ensure!(stored_files(&lab.path().join("data/blobs"))?.len() == 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_refers_to_is_collected_and_what_is_referred_to_stays() -> Result<()> {
    let lab = Lab::with(&[("attachments.grace", "1s")]).await?;
    let alice = lab.client("alice@eu/phone").await?;
    let bob = lab.client("bob@eu/phone").await?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let kept = sent(&alice, &chat, new(&file(lab.path(), "kept", 100_000)?, "")).await?;
    let redacted = sent(&alice, &chat, new(&file(lab.path(), "redacted", 100_000)?, "")).await?;
    // An upload that does not go on.
    let (wire, own) = talks_to_bob(&lab, "carol").await?;
    let (blob, bytes) = manifest(PART_BYTES + 5, 1)?;
    wire.ask(&Request::BeginBlob { chat: own.clone(), blob: blob.clone() }).await?;
    ensure!(put(&wire, &own, blob.blob().hash, 0, &bytes[0]).await? == Reply::Done);
    let blobs = lab.path().join("data/blobs");
    let done = alice.redact(&chat, redacted)?;
    alice.wait_for(done, MessageState::Sent, PATIENCE).await?;
    // Bytes of which nothing is known, as a restored store leaves them.
    let orphan = blobs.join("ab").join("ab".repeat(32));
    std::fs::create_dir_all(&orphan)?;
    std::fs::write(orphan.join("00000"), b"orphan")?;
    until("all but one to be collected", || stored_files(&blobs).is_ok_and(|files| files.len() == 1)).await?;
    until("the orphan's folder to go", || !orphan.exists()).await?;
    ensure!(lab.metric("godwit_blobs_collected_total") > 2.5);
    let got = lab.path().join("got");
    fetched(&bob, &chat, kept, &got).await?;
    let gone = bob.fetch_attachment(&chat, redacted, &lab.path().join("gone"), &Progress::default()).await;
    ensure!(matches!(gone, Err(Error::Invalid(_))), "{gone:?}");
    // It can come again.
    let again = wire.ask(&Request::BeginBlob { chat: own.clone(), blob }).await?;
    ensure!(again == missing(&[(0, 0), (1, 0)]), "{again:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_reach_chats_of_other_regions_and_are_forwarded_without_the_phone() -> Result<()> {
    let cluster = Cluster::start(&[("eu/eu-1", "store"), ("eu/eu-2", "edge"), ("us/us-1", "store")]).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-2"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    let carol = cluster.client("carol@eu/phone", &["eu/eu-1"]).await?;
    let member = Member { user: "alice@eu".parse()?, role: Role::Member };
    let (walks, created) = bob.create_group(Title::parse("walks")?, vec![member])?;
    bob.wait_for(created, MessageState::Delivered, PATIENCE).await?;
    let folder = tempfile::tempdir()?;
    let path = file(folder.path(), "walk.mp4", 20_000_000)?;
    let original = std::fs::read(&path)?;
    // From an edge to the home of the chat, in another region.
    let seq = sent(&alice, &walks, new(&path, "")).await?;
    ensure!(fetched(&bob, &walks, seq, &folder.path().join("bob")).await? == original);
    ensure!(cluster.metric("us/us-1", "godwit_blob_parts_total") > 2.5);
    ensure!(cluster.metric("eu/eu-1", "godwit_blob_parts_total") < 0.5);

    let (own, _) = alice.direct("carol@eu".parse()?)?;
    let forwarded = alice.forward(&walks, seq, &own, "as I said").await?;
    let forwarded = alice.wait_for(forwarded, MessageState::Sent, PATIENCE).await?.seq.context("sent")?;
    let (chat, at, attachment) = received(&carol).await?;
    ensure!((&chat, at, attachment.caption.as_str()) == (&own, forwarded, "as I said"));
    ensure!(cluster.metric("eu/eu-1", "godwit_blob_parts_total") > 2.5, "copied from region to region");
    ensure!(fetched(&carol, &own, at, &folder.path().join("carol")).await? == original);
    // Once more, it is there.
    let (group, _) =
        alice.create_group(Title::parse("more")?, vec![Member { user: "carol@eu".parse()?, role: Role::Member }])?;
    let again = alice.forward(&walks, seq, &group, "").await?;
    alice.wait_for(again, MessageState::Sent, PATIENCE).await?;
    ensure!(cluster.metric("eu/eu-1", "godwit_blob_parts_total") < 3.5, "stored once");
    Ok(())
}

/// A command of a device that is killed once `seen` is true. False if it was done before.
async fn killed(args: &[&str], seen: impl Fn() -> bool) -> Result<bool> {
    let mut command = tokio::process::Command::new(commands().join("godwit-chat"));
    let mut child = command.args(args).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let begun = std::time::Instant::now();
    while !seen() {
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        ensure!(begun.elapsed() < PATIENCE, "nothing moves: {args:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().await?;
    Ok(true)
}

/// Relay and commands are killed in the middle, each way.
async fn survives_kills(settings: &[(&str, &str)]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut relays = Processes::start(folder.path(), &[("eu/eu-1", "store")], settings).await?;
    let home = async |device: &str| -> Result<String> {
        let home = enrol(folder.path(), vec![relays.relays[0].quic.clone()], device).await?;
        Ok(home.display().to_string())
    };
    let (alice, bob) = (home("alice@eu/phone").await?, home("bob@eu/phone").await?);
    let path = file(folder.path(), "walk.mp4", 60_000_000)?;
    let (shown, to) = (path.display().to_string(), folder.path().join("got"));
    let chat = process::succeed("godwit-chat", &["--home", &alice, "direct", "bob@eu"])?;
    let attach = ["--home", &alice, "attach", chat.trim(), &shown];
    let stored = || relays.metric(0, "godwit_blob_parts_total").is_ok_and(|parts| parts > 1.5);
    ensure!(killed(&attach, stored).await?, "60 MB went too fast to be cut");
    relays.kill_and_start(0).await?;
    let sent = process::succeed("godwit-chat", &attach)?;
    ensure!(relays.metric(0, "godwit_blob_resumes_total")? > 0.5, "it went on");
    ensure!(relays.metric(0, "godwit_blob_parts_total")? < 7.5, "and did not begin anew");
    let seq = sent.trim().strip_prefix("sent #").context("sent")?;
    let got = to.display().to_string();
    let fetch = ["--home", &bob, "fetch", chat.trim(), seq, "--out", &got];
    let some = || {
        let names = std::fs::read_dir(folder.path()).into_iter().flatten().flatten();
        names
            .filter(|name| name.file_name().to_string_lossy().starts_with(".got."))
            .any(|name| name.metadata().is_ok_and(|meta| meta.len() > 10_000_000))
    };
    ensure!(killed(&fetch, some).await? && !to.exists(), "60 MB went too fast to be cut");
    relays.kill_and_start(0).await?;
    process::succeed("godwit-chat", &fetch)?;
    ensure!(std::fs::read(&to)? == std::fs::read(&path)?);
    ensure!(relays.metric(0, "godwit_blob_bytes_out_total")? < 55_000_000.0, "what was there was not fetched again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_relays_and_apps_go_on_with_files() -> Result<()> {
    survives_kills(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_relays_and_apps_go_on_with_a_bucket() -> Result<()> {
    let bucket = seaweed::bucket("kills").await?;
    let settings = seaweed::environment(&bucket, seaweed::endpoint().await?);
    survives_kills(&settings.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_attach_where_they_are_new_wait_their_turn_and_let_go_of_what_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [("GODWIT_ATTACHMENTS__PER_DEVICE", "1"), ("GODWIT_ATTACHMENTS__FILE_SIZE", "20MiB")];
    let relays = Processes::start(folder.path(), &[("eu/eu-1", "store")], &settings).await?;
    let home = async |device: &str| -> Result<String> {
        let home = enrol(folder.path(), vec![relays.relays[0].quic.clone()], device).await?;
        Ok(home.display().to_string())
    };
    let (alice, bob) = (home("alice@eu/phone").await?, home("bob@eu/phone").await?);
    let group = process::succeed("godwit-chat", &["--home", &alice, "new", "walks", "bob@eu"])?;
    let attach = |bytes: usize| -> Result<std::process::Child> {
        let path = file(folder.path(), &format!("walk-{bytes}.mp4"), bytes)?;
        let mut command = std::process::Command::new(commands().join("godwit-chat"));
        let command = command.args(["--home", &bob, "attach", group.trim()]).arg(path);
        Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
    };
    // A chat of which this device has not heard, and one lane for three files of several parts.
    let running = [18_000_000, 17_000_000, 1].map(attach);
    for child in running {
        let output = child?.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let other = process::succeed("godwit-chat", &["--home", &bob, "direct", "alice@eu"])?;
    let forward = ["--home", &bob, "forward", group.trim(), "2", other.trim(), "--caption", "once more"];
    let sent = process::succeed("godwit-chat", &forward)?;
    let seq = sent.trim().strip_prefix("sent #").and_then(|text| text.split(' ').next()).context("sent")?;
    let got = folder.path().join("got").display().to_string();
    process::succeed("godwit-chat", &["--home", &alice, "fetch", other.trim(), seq, "--out", &got])?;
    let is_one =
        |bytes: usize| std::fs::read(folder.path().join(format!("walk-{bytes}.mp4"))).ok() == std::fs::read(&got).ok();
    ensure!([18_000_000, 17_000_000, 1].into_iter().any(is_one), "the file of the group's second message");
    let large = attach(30_000_000)?.wait_with_output()?;
    let said = String::from_utf8_lossy(&large.stderr).into_owned();
    ensure!(large.status.code() == Some(3) && said.contains("attachments.file_size"), "{said}");
    let outbox = |args: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = std::process::Command::new(commands().join("godwit-chat"));
        let output = command.args(["--home", &bob, "outbox"]).args(args).output()?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (code, listed) = outbox(&["--wait"])?;
    ensure!(code == Some(3) && listed.contains("walk-30000000.mp4"), "{code:?} {listed}");
    ensure!(outbox(&["--forget"])?.1 == listed, "once more");
    ensure!(outbox(&["--wait"])? == (Some(0), String::new()), "and no more");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_killed_removes_what_it_should_and_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [("GODWIT_ATTACHMENTS__GRACE", "1s")];
    let mut relays = Processes::start(folder.path(), &[("eu/eu-1", "store")], &settings).await?;
    let open = async |device: &str| -> Result<Client> {
        let home = enrol(folder.path(), vec![relays.relays[0].quic.clone()], device).await?;
        let client = Client::open(ClientOptions::new(home))?;
        client.wait_synced(PATIENCE).await?;
        Ok(client)
    };
    let (alice, bob) = (open("alice@eu/phone").await?, open("bob@eu/phone").await?);
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let path = file(folder.path(), "kept", 100_000)?;
    let kept = sent(&alice, &chat, new(&path, "")).await?;
    for n in 0..20 {
        let gone = sent(&alice, &chat, new(&file(folder.path(), &format!("gone-{n}"), 100_000 + n)?, "")).await?;
        alice.redact(&chat, gone)?;
    }
    let blobs = folder.path().join("data").join("eu/eu-1").join("blobs");
    for _ in 0..6 {
        // At whatever it does then.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(200..900))).await;
        relays.kill_and_start(0).await?;
    }
    until("all but one to be collected", || stored_files(&blobs).is_ok_and(|files| files.len() == 1)).await?;
    ensure!(fetched(&bob, &chat, kept, &folder.path().join("got")).await? == std::fs::read(&path)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_down_holds_up_files_and_no_messages() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [
        ("GODWIT_ATTACHMENTS__STORE", "s3"),
        ("GODWIT_S3__BUCKET", "nowhere"),
        ("GODWIT_S3__REGION", "us-east-1"),
        ("GODWIT_S3__ENDPOINT", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "none"),
        ("AWS_SECRET_ACCESS_KEY", "none"),
    ];
    let relays = Processes::start(folder.path(), &[("eu/eu-1", "store")], &settings).await?;
    let at = || vec![relays.relays[0].quic.clone()];
    enrol(folder.path(), at(), "bob@eu/phone").await?;
    let alice = Client::open(ClientOptions::new(enrol(folder.path(), at(), "alice@eu/phone").await?))?;
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    let attached = alice.attach(&chat, new(&file(folder.path(), "walk.mp4", 100_000)?, ""))?;
    let failed = || relays.metric(0, "godwit_blob_faults_total").is_ok_and(|faults| faults > 0.5);
    until("the bucket to be missed", failed).await?;
    let text = alice.send(&chat, Content::text("it takes a while"))?;
    alice.wait_for(text, MessageState::Sent, PATIENCE).await?;
    let waits = alice.message_state(attached)?.context("known")?;
    ensure!(waits.state == MessageState::Pending && alice.uploads()?.iter().all(|upload| upload.refusal.is_none()));
    Ok(())
}
