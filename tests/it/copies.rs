//! Stores that are copied from their file into a shared one: all that is in them comes along, whatever interrupts it.

use crate::owners::{changes, is_all_done, mortal};
use crate::stores::bench::*;
use anyhow::{Context, Result, bail, ensure};
use godwit_core::{Action, Outcome};
use godwit_relay::host::{Host, Threads};
use godwit_relay::store::file;
use godwit_relay::store::shared::copy::{Digest, Progress, Source, Step, copy};
use godwit_relay::store::shared::engine::{Answer, Change, Engine, EngineError, If, Item, Page, Part, Place, Query};
use godwit_relay::store::shared::memory::Memory;
use godwit_relay::store::shared::{examine, init};
use godwit_relay::store::{ChatProgress, InboxChange, InboxWrite, StoreError, Watermark};
use godwit_tests::dynamo::{self, Server};
use godwit_tests::proxy;
use godwit_wire::entry::Change as Membership;
use godwit_wire::{RegionId, Seq};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

fn eu() -> RegionId {
    "eu".parse().expect("a region")
}

async fn made(engine: Arc<dyn Engine>) -> Result<()> {
    Ok(init(engine, &eu(), &Threads::System).await?)
}

async fn copied(folder: &Path, engine: Arc<dyn Engine>) -> Result<Digest, StoreError> {
    let source = Source { folder: folder.to_owned(), attachments: None };
    copy(source, engine, &eu(), &Host::system(), |_| {}).await
}

/// Where a store's file is, once nobody has it.
async fn closed(bench: Bench) -> Result<tempfile::TempDir> {
    match bench.stop().await? {
        Under::File(folder) => Ok(folder),
        Under::Shared(_) => bail!("it is in a file"),
    }
}

/// A store in a file in which alice did all she can, and bob's phone has not taken it. Gives what she was told.
async fn filled() -> Result<(tempfile::TempDir, Vec<Outcome>)> {
    let bench = Bench::new(Under::file()?).await?;
    sent(&bench.one(create()).await?)?;
    let outcomes = bench.run(changes()).await?;
    let seq = |n| Seq::new(n).ok();
    let change = InboxChange::Begin(seq(4).context("a seq")?);
    let write = InboxWrite { device: device("bob"), enrolment: 1, chat: chat(), change };
    bench.store().write_inbox(vec![write]).await?;
    let watermarks = vec![(user("bob"), Watermark { delivered: seq(3), read: seq(2) })];
    let progress = ChatProgress { chat: chat(), settled: seq(3), watermarks, delivered: None, read: None };
    bench.store().save_progress(vec![progress]).await?;
    Ok((closed(bench).await?, outcomes))
}

/// What was in the file is in the shared store, and goes on there.
async fn goes_on(engine: Arc<dyn Engine>, told: &[Outcome]) -> Result<()> {
    let mut open = open_shared(engine.clone()).await?;
    is_all_done(&open.store, told).await?;
    ensure!(listed(&open.store, "bob").await?.is_some_and(|chat| chat.next.get() == 4), "where bob's phone is");
    for (command, told) in changes().iter().zip(told) {
        let again = eventually(&open.store, command).await?;
        let is_same = match (&again, told) {
            (Outcome::Refused(again), Outcome::Refused(told)) => again.code == told.code,
            (again, told) => again == told,
        };
        ensure!(is_same, "{told:?}, and then {again:?}");
    }
    ensure!(sent(&eventually(&open.store, &send("alice", 9)).await?)? == 8, "the log goes on");
    // Nobody was told of what came after the third entry.
    let is_told = told_of(&mut open.committed, 4..=7);
    ensure!((4..=8).all(|seq| is_told.contains(&seq)), "{is_told:?}");
    let report = examine(engine, &eu(), &Threads::System).await?;
    ensure!(report.faults.is_empty() && report.entries == 8 && report.inbox_rows == 1, "{report:?}");
    Ok(())
}

async fn a_file_is_copied(engine: Arc<dyn Engine>) -> Result<()> {
    let (folder, told) = filled().await?;
    ensure!(matches!(copied(folder.path(), engine.clone()).await, Err(StoreError::NotMade)), "nobody made it ready");
    made(engine.clone()).await?;
    let digest = copied(folder.path(), engine.clone()).await?;
    ensure!(digest.rows > 20, "{digest}");
    ensure!(matches!(copied(folder.path(), engine.clone()).await, Err(StoreError::NotEmpty)), "it is there already");
    goes_on(engine, &told).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_copied_into_memory() -> Result<()> {
    a_file_is_copied(Arc::new(Memory::default())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_copied_into_dynoxide() -> Result<()> {
    a_file_is_copied(Arc::new(Server::Dynoxide.tables().await?)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_copied_into_dynalite() -> Result<()> {
    a_file_is_copied(Arc::new(Server::Dynalite.tables().await?)).await
}

/// Wherever it is interrupted, nobody starts on half a copy, and the next one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_interrupted_goes_on() -> Result<()> {
    let (folder, told) = filled().await?;
    let mut digest = None;
    for landed in [false, true] {
        for last in 0.. {
            let calm = Memory::default();
            made(Arc::new(calm.clone())).await?;
            let (weather, life) = mortal(last, landed);
            let first = copied(folder.path(), Arc::new(calm.seen_under(weather))).await;
            let is_dead = life.is_dead();
            let where_ = || format!("killed at call {last}, landed {landed}: {first:?}");
            let all = match (&first, open_shared(Arc::new(calm.clone())).await) {
                (Ok(all), Ok(_)) => *all,
                (Err(_), Err(StoreError::HalfCopied)) => {
                    copied(folder.path(), Arc::new(calm.clone())).await.with_context(where_)?
                }
                // It is as it was before; or all of it was done, and nobody said so.
                (Err(_), Ok(open)) if listed(&open.store, "alice").await?.is_none() => {
                    drop(open);
                    copied(folder.path(), Arc::new(calm.clone())).await.with_context(where_)?
                }
                (Err(_), Ok(_)) => digest.with_context(where_)?,
                (_, Err(error)) => bail!("{}, {error}", where_()),
            };
            ensure!(*digest.get_or_insert(all) == all, "{}: {all}", where_());
            goes_on(Arc::new(calm), &told).await.with_context(where_)?;
            if !is_dead {
                break;
            }
        }
    }
    Ok(())
}

/// So many entries that the copy is noted more than once on its way, by somebody who loses requests and answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_is_copied_whatever_gets_lost() -> Result<()> {
    let bench = Bench::new(Under::file()?).await?;
    sent(&bench.one(create()).await?)?;
    for first in (2..12_000).step_by(1_000) {
        bench.run((first..first + 1_000).map(|n| send("alice", n)).collect()).await?;
    }
    let expected = bench.log().await?;
    let folder = closed(bench).await?;
    let prefix = dynamo::prefix();
    let calm = Arc::new(dynamo::reached_at(Server::Dynoxide.endpoint().await?, &prefix));
    calm.make_tables(|_| {}).await?;
    made(calm.clone()).await?;
    let seed = fastrand::u64(..);
    let proxy = proxy::start(Server::Dynoxide.endpoint().await?, seed).await?;
    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let engine = Arc::new(dynamo::reached_at(&proxy, &prefix));
    let digest = loop {
        let (source, seen) = (Source { folder: folder.path().to_owned(), attachments: None }, seen.clone());
        let told = move |progress| seen.lock().expect("nobody panics with it").push(progress);
        match copy(source, engine.clone(), &eu(), &Host::system(), told).await {
            Err(StoreError::Engine(EngineError::NoAnswer(_) | EngineError::Throttled)) => {}
            copied => break copied.with_context(|| format!("seed {seed}"))?,
        }
    };
    let seen = seen.lock().expect("nobody panics with it").clone();
    let written: Vec<u64> = seen.iter().filter(|told| told.step == Step::Writes).map(|told| told.rows).collect();
    ensure!(written.is_sorted() && written.last() == Some(&digest.rows) && written.len() > 2, "{written:?}");
    ensure!(seen.iter().all(|told| told.of == digest.rows), "of how many");
    let open = open_shared(calm).await?;
    let found: Vec<_> = log(&open.store, "bob").await?.iter().map(|entry| (entry.seq, entry.id)).collect();
    ensure!(found == expected, "{} entries of {}", found.len(), expected.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_copy_goes_on_only_from_what_it_is_of() -> Result<()> {
    let (folder, _) = filled().await?;
    let calm = Memory::default();
    made(Arc::new(calm.clone())).await?;
    let half = calm.seen_under(mortal(40, true).0);
    ensure!(copied(folder.path(), Arc::new(half)).await.is_err(), "it is gone halfway");
    let mut bench = Bench::reopened(Under::File(folder)).await?;
    bench.one(send("alice", 9)).await?;
    let folder = closed(bench).await?;
    let other = copied(folder.path(), Arc::new(calm.clone())).await;
    ensure!(matches!(other, Err(StoreError::OtherCopy)), "{other:?}");
    ensure!(matches!(open_shared(Arc::new(calm)).await, Err(StoreError::HalfCopied)), "nobody starts on it");
    // Nor does it begin while a relay has the file.
    bench = Bench::reopened(Under::File(folder)).await?;
    let Under::File(folder) = bench.under() else { bail!("it is in a file") };
    let in_use = copied(folder.path(), Arc::new(Memory::default())).await;
    ensure!(matches!(in_use, Err(StoreError::InUse(_))), "{in_use:?}");
    Ok(())
}

/// Loses an item that it says it has put.
#[derive(Debug)]
struct Forgetful(Memory, AtomicBool);

impl Engine for Forgetful {
    fn get(&self, place: &Place) -> Result<Option<Item>, EngineError> {
        self.0.get(place)
    }

    fn query(&self, query: &Query<'_>) -> Result<Page, EngineError> {
        self.0.query(query)
    }

    fn scan(&self, table: &'static str, after: Option<&Place>) -> Result<Part, EngineError> {
        self.0.scan(table, after)
    }

    fn change(&self, change: Change) -> Answer<'_, ()> {
        self.0.change(change)
    }

    fn put_all(&self, mut items: Vec<(Place, Item)>) -> Answer<'_, ()> {
        if items.iter().any(|(place, _)| place.table == "inbox") && !self.1.swap(true, Ordering::Relaxed) {
            items.pop();
        }
        self.0.put_all(items)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_lacks_something_is_noticed() -> Result<()> {
    let (folder, _) = filled().await?;
    let calm = Memory::default();
    made(Arc::new(calm.clone())).await?;
    let lacking = copied(folder.path(), Arc::new(Forgetful(calm.clone(), AtomicBool::new(false)))).await;
    match lacking {
        Err(StoreError::Differs { table: "inbox", found, expected }) => {
            ensure!((found.rows, expected.rows) == (0, 1), "{found}, {expected}");
        }
        other => bail!("{other:?}"),
    }
    ensure!(matches!(open_shared(Arc::new(calm)).await, Err(StoreError::HalfCopied)), "nobody starts on it");
    Ok(())
}

/// By which relays notice that their tables were restored from a backup.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_known_again() -> Result<()> {
    for server in [Server::Dynoxide, Server::Dynalite] {
        let tables = server.tables().await?;
        let identity = tables.identity().await?;
        ensure!(identity.is_some() && tables.identity().await? == identity, "{server:?}: {identity:?}");
    }
    Ok(())
}

/// A store of the former format is taken up, and not given back to a version that knows no other; a later one is refused.
#[tokio::test(flavor = "multi_thread")]
async fn the_former_format_is_taken_up() -> Result<()> {
    let engine = Memory::default();
    made(Arc::new(engine.clone())).await?;
    let place = Place { table: "meta", partition: vec![0], sort: b"\0format".to_vec() };
    let set = async |format: u32| -> Result<()> {
        let item = Item { value: format.to_string().into(), order: 0 };
        Ok(engine.change(Change { place: place.clone(), item: Some(item), when: If::Always }).await?)
    };
    let is = |format: u32| -> Result<bool> {
        Ok(engine.get(&place)?.is_some_and(|item| item.value == format.to_string().as_bytes()))
    };
    ensure!(is(file::FORMAT)?, "a new one");
    set(file::FORMAT - 1).await?;
    examine(Arc::new(engine.clone()), &eu(), &Threads::System).await?;
    ensure!(is(file::FORMAT - 1)?, "a check changed it");
    open_shared(Arc::new(engine.clone())).await?;
    ensure!(is(file::FORMAT)?, "it is as before");
    set(file::FORMAT + 1).await?;
    ensure!(
        matches!(open_shared(Arc::new(engine.clone())).await, Err(StoreError::SharedNewer { .. }))
            && is(file::FORMAT + 1)?,
        "a later one"
    );
    Ok(())
}

/// Tables that do not belong together are noticed, whichever lacks what others know of.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_lacks_is_found() -> Result<()> {
    let (folder, _) = filled().await?;
    let whole = Memory::default();
    made(Arc::new(whole.clone())).await?;
    copied(folder.path(), Arc::new(whole.clone())).await?;
    let examined = async |engine: Memory| examine(Arc::new(engine), &eu(), &Threads::System).await;
    ensure!(examined(whole.clone()).await?.faults.is_empty(), "nothing is wrong");
    for (table, said) in [
        ("log", "its log is missing"),
        ("chats", "and not among the chats"),
        ("participants", "participants differ"),
        ("devices", "and is not among the devices"),
    ] {
        let lacking = whole.restored("lacking");
        for (place, _) in lacking.scan(table, None)?.items {
            lacking.change(Change { place, item: None, when: If::Always }).await?;
        }
        let faults = examined(lacking).await?.faults;
        ensure!(faults.iter().any(|fault| fault.contains(said)), "without {table}: {faults:?}");
    }
    // The end of a log, which nothing in the log itself tells.
    let (store, shorter) = (open_shared(Arc::new(whole.clone())).await?, whole.restored("shorter"));
    sent(&eventually(&store.store, &command("alice", 9, Action::Update(Membership::Add(vec![member("bob")])))).await?)?;
    for table in ["participants", "user_chats"] {
        shorter.put_all(whole.scan(table, None)?.items).await?;
    }
    let faults = examined(shorter).await?.faults;
    ensure!(faults.iter().any(|fault| fault.contains("participants know of 8, its log ends with 7")), "{faults:?}");
    Ok(())
}
