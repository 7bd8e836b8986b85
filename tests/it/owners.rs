//! A shared store under relays that all hold themselves for the owner, that are killed anywhere, or that hear no answers:
//! one log, and everything that follows from it.

use crate::stores::bench::*;
use anyhow::{Context, Result, bail, ensure};
use godwit_core::{Action, Command, Outcome};
use godwit_relay::store::shared::engine::{Engine, Item, Place};
use godwit_relay::store::shared::memory::{Fate, Memory, Weather};
use godwit_relay::store::{OpenStore, Store};
use godwit_tests::dynamo::{self, Server};
use godwit_tests::proxy;
use godwit_wire::entry::{Change, LogEntry};
use godwit_wire::{Code, MessageId, Seq};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Calls take a little, some are throttled, and some get no answer.
fn bad_weather(seed: u64) -> Weather {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    Arc::new(move || {
        let mut random = random.lock().expect("nobody panics with it");
        let after = Duration::from_micros(random.u64(0..3_000));
        match random.u32(0..100) {
            0..3 => Fate::Throttled,
            3..6 => Fate::NoAnswer { landed: random.bool(), after },
            _ => Fate::Done(after),
        }
    })
}

/// Relays of the region, each of which tries until the store lets it read.
async fn open_in_bad_weather(calm: &Memory, seed: u64, relays: u64) -> Result<Vec<OpenStore>> {
    let mut open = Vec::new();
    for i in 0..relays {
        let engine = Arc::new(calm.seen_under(bad_weather(seed + i)));
        open.push(loop {
            if let Ok(store) = open_shared(engine.clone()).await {
                break store;
            }
        });
    }
    Ok(open)
}

/// Everybody is enrolled, and alice's chat with bob is there.
async fn begun(engine: Arc<dyn Engine>) -> Result<()> {
    let bench = Bench::new(Under::shared(engine).await?).await?;
    sent(&bench.one(create()).await?)?;
    Ok(())
}

/// What must hold of a log, whoever wrote it: no hole, nobody's message twice.
fn is_one_log(log: &[LogEntry]) -> Result<()> {
    let mut ids = BTreeSet::new();
    for (entry, seq) in log.iter().zip(1..) {
        ensure!(entry.seq.get() == seq, "{} stands where {seq} belongs", entry.seq);
        ensure!(ids.insert((entry.from.clone(), entry.id)), "{} is there twice", entry.id);
    }
    Ok(())
}

/// Each relay sends for everybody, the same messages at the same time, as devices do that change relays.
async fn write_one_log(relays: &[OpenStore], calm: Arc<dyn Engine>, last: u64) -> Result<()> {
    let told: Arc<Mutex<BTreeMap<MessageId, Seq>>> = Arc::default();
    let mut sending = tokio::task::JoinSet::new();
    for relay in relays {
        for (name, first) in [("alice", 2), ("bob", 1)] {
            let (store, told) = (relay.store.clone(), told.clone());
            sending.spawn(async move {
                for n in first..=last {
                    let command = send(name, n);
                    let Outcome::Sent { seq, .. } = eventually(&store, &command).await? else {
                        bail!("{name} {n} was refused")
                    };
                    let before = told.lock().expect("nobody panics with it").insert(command.stamp.id, seq);
                    ensure!(before.is_none_or(|before| before == seq), "{name} {n}: {seq}, and {before:?} before");
                }
                Ok(())
            });
        }
    }
    while let Some(ended) = sending.join_next().await {
        ended??;
    }
    let log = log(&open_shared(calm).await?.store, "alice").await?;
    is_one_log(&log)?;
    ensure!(log.len() as u64 == 2 * last, "{} entries", log.len());
    for entry in &log[1..] {
        let told = told.lock().expect("nobody panics with it").get(&entry.id).copied();
        ensure!(told == Some(entry.seq), "{} was told as {told:?}", entry.seq);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_all_hold_themselves_for_the_owner_write_one_log() -> Result<()> {
    for _ in 0..8 {
        let seed = fastrand::u64(..);
        let calm = Memory::default();
        begun(Arc::new(calm.clone())).await?;
        let relays = open_in_bad_weather(&calm, seed, 3).await?;
        write_one_log(&relays, Arc::new(calm), 30).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

/// Relays reach the server by somebody who throttles, and loses requests and answers.
async fn write_one_log_by_proxies(server: Server) -> Result<()> {
    let seed = fastrand::u64(..);
    let prefix = dynamo::prefix();
    let calm = Arc::new(dynamo::reached_at(server.endpoint().await?, &prefix));
    calm.make_tables(|_| {}).await?;
    begun(calm.clone()).await?;
    let mut relays = Vec::new();
    for i in 0..3 {
        let proxy = proxy::start(server.endpoint().await?, seed + i).await?;
        relays.push(open_shared(Arc::new(dynamo::reached_at(&proxy, &prefix))).await?);
    }
    write_one_log(&relays, calm, 15).await.with_context(|| format!("seed {seed}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_write_one_log_to_dynoxide_whatever_gets_lost() -> Result<()> {
    write_one_log_by_proxies(Server::Dynoxide).await
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_write_one_log_to_dynalite_whatever_gets_lost() -> Result<()> {
    write_one_log_by_proxies(Server::Dynalite).await
}

/// A batch that the server leaves half done is done to its end.
#[tokio::test(flavor = "multi_thread")]
async fn batches_are_done_to_their_end() -> Result<()> {
    let prefix = dynamo::prefix();
    let calm = Arc::new(dynamo::reached_at(Server::Dynoxide.endpoint().await?, &prefix));
    calm.make_tables(|_| {}).await?;
    let items: Vec<(Place, Item)> = (0..90_u8)
        .map(|n| {
            let place = Place { table: "meta", partition: vec![1], sort: vec![n] };
            (place, Item { value: vec![n; 1_000].into(), order: u64::from(n) })
        })
        .collect();
    let proxy = proxy::start(Server::Dynoxide.endpoint().await?, fastrand::u64(..)).await?;
    let engine = dynamo::reached_at(&proxy, &prefix);
    for _ in 0..10 {
        engine.put_all(items.clone()).await?;
        let found = tokio::task::spawn_blocking({
            let (calm, items) = (calm.clone(), items.clone());
            move || items.iter().map(|(place, _)| calm.get(place)).collect::<Result<Vec<_>, _>>()
        });
        for (found, (place, item)) in found.await??.into_iter().zip(&items) {
            ensure!(found.as_ref() == Some(item), "{place:?}: {found:?}");
        }
    }
    Ok(())
}

/// A number that one relay decides to refuse and another to take is decided once.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_decided_once_by_relays_that_see_different_rights() -> Result<()> {
    for _ in 0..20 {
        let seed = fastrand::u64(..);
        let calm = Memory::default();
        begun(Arc::new(calm.clone())).await?;
        let relays = open_in_bad_weather(&calm, seed, 2).await?;
        let [one, two] = [&relays[0].store, &relays[1].store];
        // Both have the chat in memory.
        eventually(one, &send("alice", 2)).await?;
        eventually(two, &send("bob", 1)).await?;
        // Bob is removed while he sends through the other.
        let remove = command("alice", 3, Action::Update(Change::Remove(user("bob"))));
        let bobs = send("bob", 2);
        let (removed, first) = tokio::join!(eventually(one, &remove), eventually(two, &bobs));
        sent(&removed?)?;
        let first = first?;
        for store in [one, two, one] {
            let again = eventually(store, &bobs).await?;
            ensure!(again == first, "seed {seed}: {first:?}, and then {again:?}");
        }
        let log = log(&open_shared(Arc::new(calm)).await?.store, "alice").await?;
        is_one_log(&log)?;
        let is_there = log.iter().any(|entry| entry.id == bobs.stamp.id);
        ensure!(is_there == sent(&first).is_ok(), "seed {seed}: {first:?}, and it is in the log: {is_there}");
        if let Outcome::Refused(refusal) = first {
            ensure!(refusal.code == Code::NotParticipant, "{refusal:?}");
        }
    }
    Ok(())
}

/// A relay that is gone after so many calls; the last one it made may land.
pub struct Mortal {
    calls: AtomicU64,
    last: u64,
    is_dead: AtomicBool,
}

impl Mortal {
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }
}

pub fn mortal(last: u64, landed: bool) -> (Weather, Arc<Mortal>) {
    let mortal = Arc::new(Mortal { calls: AtomicU64::new(0), last, is_dead: AtomicBool::new(false) });
    let life = mortal.clone();
    let weather = Arc::new(move || {
        let after = Duration::ZERO;
        match mortal.calls.fetch_add(1, Ordering::Relaxed) {
            call if call < mortal.last => Fate::Done(after),
            call => {
                mortal.is_dead.store(true, Ordering::Relaxed);
                Fate::NoAnswer { landed: landed && call == mortal.last, after }
            }
        }
    });
    (weather, life)
}

/// What alice does before and after the owner is killed.
pub fn changes() -> Vec<Command> {
    let update = |n, change| command("alice", n, Action::Update(change));
    vec![
        send("alice", 2),
        update(3, Change::Add(vec![member("carol")])),
        send("alice", 4),
        // A refusal that decides its number.
        command(
            "alice",
            5,
            Action::Send { content: godwit_wire::entry::Content(vec![0; 70_000].into()), blobs: vec![] },
        ),
        command("alice", 6, Action::Redact { of: Seq::new(2).expect("a seq") }),
        update(7, Change::Remove(user("bob"))),
        send("alice", 8),
    ]
}

/// What everybody sees once all of it was done.
pub async fn is_all_done(store: &Store, told: &[Outcome]) -> Result<()> {
    let alices = log(store, "alice").await?;
    is_one_log(&alices)?;
    ensure!(alices.len() == 7, "{} entries", alices.len());
    ensure!(!matches!(alices[1].body.as_known(), Some(godwit_wire::entry::EntryBody::Message { .. })), "not erased");
    for outcome in told {
        if let Outcome::Sent { seq, .. } = outcome {
            ensure!(seq.get() <= 7, "told as {seq}");
        }
    }
    let seen = |log: Vec<LogEntry>| log.iter().map(|entry| entry.seq.get()).collect::<Vec<_>>();
    let bobs = seen(log(store, "bob").await?);
    ensure!(bobs == [1, 2, 3, 4, 5, 6], "bob: {bobs:?}");
    let carols = seen(log(store, "carol").await?);
    ensure!(carols == [3, 4, 5, 6, 7], "carol: {carols:?}");
    ensure!(listed(store, "carol").await?.is_some_and(|chat| chat.role.is_some()), "carol's list");
    ensure!(listed(store, "bob").await?.is_some_and(|chat| chat.role.is_none()), "bob's list");
    Ok(())
}

/// The owner is killed at every call that it makes, and the next one goes on, one command at a time or all at once.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_owner_left_the_next_one_finishes_first() -> Result<()> {
    for (landed, at_once) in [(false, false), (true, false), (false, true), (true, true)] {
        for last in 0.. {
            let calm = Memory::default();
            begun(Arc::new(calm.clone())).await?;
            let (weather, life) = mortal(last, landed);
            let mut told = Vec::new();
            let commands = changes();
            // Opening reads what the store says of itself.
            if let Ok(owner) = open_shared(Arc::new(calm.seen_under(weather))).await {
                let batches: Vec<Vec<Command>> =
                    if at_once { vec![commands.clone()] } else { commands.iter().map(|c| vec![c.clone()]).collect() };
                for batch in batches {
                    match run(&owner.store, batch).await {
                        Ok(outcomes) => told.extend(outcomes),
                        Err(refusal) => {
                            ensure!(
                                refusal.code == Code::Unavailable && refusal.retry_after().is_some(),
                                "{refusal:?}"
                            );
                            break;
                        }
                    }
                }
            }
            let is_dead = life.is_dead();
            let mut next = open_shared(Arc::new(calm)).await?;
            let where_ = || format!("killed at call {last}, landed {landed}, at once {at_once}");
            for (i, command) in commands.iter().enumerate() {
                let outcome = eventually(&next.store, command).await.with_context(where_)?;
                if let Some(told) = told.get(i) {
                    ensure!(*told == outcome, "{}: {told:?}, and then {outcome:?}", where_());
                }
            }
            is_all_done(&next.store, &told).await.with_context(where_)?;
            if !is_dead {
                break;
            }
            // What the killed one may not have delivered is told to fan-out of the next.
            let is_told = told_of(&mut next.committed, 1..=7);
            let untold: Vec<u64> = (2..=7).filter(|seq| !is_told.contains(seq)).collect();
            ensure!(untold.is_empty(), "{}: nobody hears of {untold:?}", where_());
        }
    }
    Ok(())
}

/// Whoever reads before anything was written by the new owner sees no more than their rights.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_more_than_their_rights_after_an_owner_was_killed() -> Result<()> {
    for last in 0.. {
        let calm = Memory::default();
        begun(Arc::new(calm.clone())).await?;
        let (weather, life) = mortal(last, true);
        if let Ok(owner) = open_shared(Arc::new(calm.seen_under(weather))).await {
            // One item: bob is removed, and alice goes on.
            let remove = command("alice", 2, Action::Update(Change::Remove(user("bob"))));
            let _ = run(&owner.store, vec![remove, send("alice", 3)]).await;
        }
        let next = open_shared(Arc::new(calm)).await?;
        let bobs: Vec<u64> = log(&next.store, "bob").await?.iter().map(|entry| entry.seq.get()).collect();
        ensure!(bobs == [1] || bobs == [1, 2], "killed at call {last}: bob reads {bobs:?}");
        if !life.is_dead() {
            return Ok(());
        }
    }
    Ok(())
}

/// A store that cannot be reached refuses in bounded time, and takes everything again once it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_out_of_reach_is_told_and_comes_back() -> Result<()> {
    let is_away = Arc::new(AtomicBool::new(false));
    let weather = {
        let is_away = is_away.clone();
        Arc::new(move || if is_away.load(Ordering::Relaxed) { Fate::Throttled } else { Fate::Done(Duration::ZERO) })
    };
    let engine: Arc<dyn Engine> = Arc::new(Memory::under(weather));
    let bench = Bench::new(Under::shared(engine).await?).await?;
    bench.one(create()).await?;
    for n in 2..6 {
        is_away.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let refusal = tokio::time::timeout(PATIENCE, bench.one(send("alice", n))).await?.expect_err("it is away");
            ensure!(refusal.code == Code::Unavailable && refusal.retry_after().is_some(), "{refusal:?}");
        }
        is_away.store(false, Ordering::Relaxed);
        ensure!(sent(&eventually(&bench.store(), &send("alice", n)).await?)? == n, "once, at its place");
    }
    Ok(())
}
