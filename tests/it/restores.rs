//! Stores that come back from a backup: nobody keeps a past that is no more, and nothing is missed or told twice.

use anyhow::{Context, Result, bail, ensure};
use godwit_client::{
    ChatId, Client, ClientOptions, Content, EventStream, Member, MessageState, NewAttachment, Progress, Role, Title,
};
use godwit_tests::cluster::Cluster;
use godwit_tests::lab::PATIENCE;
use godwit_tests::process;
use godwit_tests::talk::{send, texts};
use godwit_wire::frame::{History, Range, Reply, Request};
use std::time::Duration;

const TWO: [(&str, &str); 2] = [("eu/eu-1", "store"), ("us/us-1", "store")];

/// Copies a relay's store as it is now.
async fn back_up(cluster: &Cluster, id: &str) -> Result<()> {
    let admin = cluster.relay(id).admin.to_string();
    let to = cluster.data(id).join("backup.redb").to_string_lossy().into_owned();
    let run = move || process::succeed("godwit", &["store", "backup", "--admin", &admin, "--to", &to]);
    tokio::task::spawn_blocking(run).await??;
    Ok(())
}

/// The relay loses its store and starts on the backup.
async fn restore(cluster: &mut Cluster, id: &str) -> Result<()> {
    cluster.down(id).await;
    let data = cluster.data(id);
    std::fs::copy(data.join("backup.redb"), data.join("store.redb"))?;
    cluster.up(id).await?;
    cluster.meet().await
}

async fn group(owner: &Client, users: &[&str]) -> Result<ChatId> {
    let member = |user: &&str| Ok(Member { user: user.parse()?, role: Role::Member });
    let members = users.iter().map(member).collect::<Result<_>>()?;
    let (chat, created) = owner.create_group(Title::parse("walks")?, members)?;
    owner.wait_for(created, MessageState::Delivered, PATIENCE).await?;
    Ok(chat)
}

/// What a client shows of a chat, once it is so many messages.
async fn shown(client: &Client, chat: &ChatId, count: usize) -> Result<Vec<String>> {
    let look = async {
        loop {
            let history = client.history(chat, None, 1000).await?;
            let texts: Vec<String> = history
                .into_iter()
                .filter_map(|entry| match entry.what {
                    godwit_client::client::HistoryBody::Message(content) => content.as_text().map(str::to_owned),
                    _ => None,
                })
                .collect();
            if texts.len() >= count {
                return anyhow::Ok(texts);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.context("it is not all there")?
}

/// Each of the numbers once, in whatever order.
fn each_once(texts: &[String], numbers: std::ops::Range<usize>) -> Result<()> {
    let mut own: Vec<usize> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    own.sort_unstable();
    ensure!(own == numbers.collect::<Vec<_>>(), "{own:?}");
    Ok(())
}

/// The rest of what the app is told, until it has been told of all numbers: each once.
async fn told(client: &Client, events: &mut EventStream, before: Vec<String>, numbers: usize) -> Result<()> {
    let mut all = before;
    all.extend(texts(client, events, numbers - all.len()).await?);
    each_once(&all, 0..numbers)
}

/// The home of a group is restored; while one who was there before is offline, others write more than was lost.
async fn others_write_over_what_was_lost(reader_region: &str) -> Result<()> {
    let mut cluster = Cluster::start(&TWO).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let (reader, at) = (format!("bob@{reader_region}"), format!("{reader_region}/{reader_region}-1"));
    let bob = cluster.client(&format!("{reader}/phone"), &[&at]).await?;
    let carol = cluster.client("carol@eu/phone", &["eu/eu-1"]).await?;
    let chat = group(&alice, &[&reader, "carol@eu"]).await?;
    send(&alice, &chat, 0..10, MessageState::Delivered).await?;
    back_up(&cluster, "eu/eu-1").await?;
    send(&alice, &chat, 10..30, MessageState::Delivered).await?;
    let mut events = bob.events()?;
    let at_bob = texts(&bob, &mut events, 30).await?;
    // Alice, who has what was lost, is not there at first; nor is bob.
    alice.close().await;
    bob.close().await;
    drop((alice, bob, events));
    restore(&mut cluster, "eu/eu-1").await?;
    send(&carol, &chat, 30..80, MessageState::Sent).await?;
    let bob = Client::open(ClientOptions::new(cluster.home(&format!("{reader}/phone"))))?;
    let mut events = bob.events()?;
    let more = texts(&bob, &mut events, 50).await?;
    ensure!(more.iter().zip(30..80).all(|(text, n)| *text == n.to_string()), "{more:?}");
    let alice = Client::open(ClientOptions::new(cluster.home("alice@eu/phone")))?;
    let last = alice.send(&chat, Content::text("80"))?;
    alice.wait_for(last, MessageState::Delivered, PATIENCE).await?;
    let before = at_bob.into_iter().chain(more).collect();
    told(&bob, &mut events, before, 81).await?;
    // What alice had sent came again, and all see the same.
    let expected = shown(&carol, &chat, 81).await?;
    each_once(&expected, 0..81)?;
    for client in [&alice, &bob] {
        ensure!(shown(client, &chat, 81).await? == expected, "they see another order");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_longer_log_after_a_restore_is_not_taken_for_the_old_one() -> Result<()> {
    others_write_over_what_was_lost("eu").await
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_other_regions_follow_a_restored_home() -> Result<()> {
    others_write_over_what_was_lost("us").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_region_is_given_what_its_copies_lack() -> Result<()> {
    let mut cluster = Cluster::start(&TWO).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    let quiet = group(&alice, &["bob@us"]).await?;
    send(&alice, &quiet, 0..10, MessageState::Delivered).await?;
    back_up(&cluster, "us/us-1").await?;
    send(&alice, &quiet, 10..30, MessageState::Delivered).await?;
    // Of this chat the backup knows nothing.
    let new = group(&alice, &["bob@us"]).await?;
    send(&alice, &new, 0..5, MessageState::Delivered).await?;
    let mut events = bob.events()?;
    let mut heard = texts(&bob, &mut events, 35).await?;
    restore(&mut cluster, "us/us-1").await?;
    // Nobody writes; a new device of bob's reads what his home has.
    let credential = cluster.enrol("bob@us/laptop", "us/us-1").await?;
    for (chat, count) in [(&quiet, 31), (&new, 6)] {
        let read = async {
            loop {
                let session = cluster.connect(credential.clone(), "us/us-1").await?;
                let request = History { chat: chat.clone(), range: Range::Before(None), limit: 100 };
                match session.ask(&Request::History(request)).await? {
                    Reply::HistoryPage(page) if page.entries.len() == count => return anyhow::Ok(()),
                    Reply::HistoryPage(_) | Reply::Refused(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    other => bail!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.with_context(|| format!("{chat} is not whole"))??;
    }
    send(&alice, &quiet, 30..40, MessageState::Delivered).await?;
    send(&alice, &new, 5..10, MessageState::Delivered).await?;
    heard.extend(texts(&bob, &mut events, 15).await?);
    ensure!(heard.len() == 50, "nothing is told twice: {heard:?}");
    let (a, b) = (shown(&bob, &quiet, 40).await?, shown(&bob, &new, 10).await?);
    each_once(&a, 0..40)?;
    each_once(&b, 0..10)
}

/// What carol sends between restores of the same copy is lost each time, and sent again each time.
async fn the_same_copy_again_and_again(cold: bool) -> Result<()> {
    let mut cluster = Cluster::start(&TWO).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let bob = cluster.client("bob@us/phone", &["us/us-1"]).await?;
    let chat = group(&alice, &["bob@us"]).await?;
    send(&alice, &chat, 0..3, MessageState::Delivered).await?;
    if cold {
        cluster.down("eu/eu-1").await;
        let data = cluster.data("eu/eu-1");
        std::fs::copy(data.join("store.redb"), data.join("backup.redb"))?;
        cluster.up("eu/eu-1").await?;
        cluster.meet().await?;
    } else {
        back_up(&cluster, "eu/eu-1").await?;
    }
    for round in 0..3 {
        let first = 3 + round * 10;
        send(&alice, &chat, first..first + 5, MessageState::Delivered).await?;
        send(&bob, &chat, first + 5..first + 10, MessageState::Delivered).await?;
        restore(&mut cluster, "eu/eu-1").await?;
    }
    send(&alice, &chat, 33..34, MessageState::Delivered).await?;
    let seen = shown(&alice, &chat, 34).await?;
    each_once(&seen, 0..34)?;
    ensure!(shown(&bob, &chat, 34).await? == seen, "bob sees another order");
    // A device that was not there has it from the logs alone.
    for (device, at) in [("alice@eu/laptop", "eu/eu-1"), ("bob@us/laptop", "us/us-1")] {
        let fresh = cluster.client(device, &[at]).await?;
        ensure!(shown(&fresh, &chat, 34).await? == seen, "{device} sees something else");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_can_be_restored_more_than_once() -> Result<()> {
    the_same_copy_again_and_again(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_file_put_back_is_noticed_as_a_backup_is() -> Result<()> {
    the_same_copy_again_and_again(true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_lost_with_the_store_is_uploaded_and_sent_again() -> Result<()> {
    let mut cluster = Cluster::start(&TWO).await?;
    let alice = cluster.client("alice@eu/phone", &["eu/eu-1"]).await?;
    let carol = cluster.client("carol@eu/phone", &["eu/eu-1"]).await?;
    let chat = group(&alice, &["carol@eu"]).await?;
    back_up(&cluster, "eu/eu-1").await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("walk.mp4");
    std::fs::write(&path, vec![7; 300_000])?;
    let id = alice.attach(&chat, NewAttachment { path: path.clone(), ..NewAttachment::default() })?;
    alice.wait_for(id, MessageState::Delivered, PATIENCE).await?;
    restore(&mut cluster, "eu/eu-1").await?;
    let has = async {
        for n in 0.. {
            let seq = alice.message_state(id)?.and_then(|sent| sent.seq);
            let to = folder.path().join(format!("got-{n}"));
            if let Some(seq) = seq
                && carol.fetch_attachment(&chat, seq, &to, &Progress::default()).await.is_ok()
            {
                return anyhow::Ok(std::fs::read(to)?);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!("there is no last number")
    };
    let got = tokio::time::timeout(PATIENCE, has).await.context("it does not come again")??;
    ensure!(got == std::fs::read(&path)?);
    Ok(())
}

/// Tables that were restored from a backup are others: relays notice by themselves, and devices send again what the store
/// forgot.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_were_restored_are_noticed() -> Result<()> {
    let relays = ["eu/eu-1", "eu/eu-2"];
    let mut cluster = Cluster::sharing(&relays).await?;
    let alice = cluster.client("alice@eu/phone", &relays).await?;
    let bob = cluster.client("bob@eu/phone", &relays).await?;
    let credential = cluster.enrol("carol@eu/phone", relays[0]).await?;
    let generation = async |cluster: &Cluster, at| {
        anyhow::Ok(cluster.connect(credential.clone(), at).await?.welcome.store_generation)
    };
    let (chat, _) = alice.direct("bob@eu".parse()?)?;
    send(&alice, &chat, 0..5, MessageState::Delivered).await?;
    let before = generation(&cluster, relays[0]).await?;
    let region: godwit_wire::RegionId = "eu".parse()?;
    let backup = cluster.stores().back_up(&region).context("a shared store")?;
    send(&alice, &chat, 5..10, MessageState::Delivered).await?;
    for relay in relays {
        cluster.down(relay).await;
    }
    cluster.stores().put_back(region, backup);
    for relay in relays {
        cluster.up(relay).await?;
    }
    cluster.meet().await?;
    send(&alice, &chat, 10..15, MessageState::Delivered).await?;
    let after = generation(&cluster, relays[0]).await?;
    ensure!(after != before && after == generation(&cluster, relays[1]).await?, "generation {before}, then {after}");
    let texts = shown(&bob, &chat, 15).await?;
    ensure!(texts == (0..15).map(|n| n.to_string()).collect::<Vec<_>>(), "{texts:?}");
    // Started once more, it is the same store.
    cluster.down(relays[1]).await;
    cluster.up(relays[1]).await?;
    ensure!(generation(&cluster, relays[1]).await? == after, "once");
    Ok(())
}
