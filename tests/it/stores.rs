//! What every store does, whatever is under it: outcomes that stay, rows that say how far everybody got. The same tests run
//! on redb and on each engine of a shared store.

pub mod bench;

use anyhow::{Result, bail, ensure};
use bench::*;
use godwit_core::{Action, Command, Outcome};
use godwit_relay::store::shared::memory::Memory;
use godwit_relay::store::{ChatProgress, Floor, InboxChange, InboxWrite, Watermark};
use godwit_tests::dynamo::Server;
use godwit_wire::entry::{Change, Content, EntryBody, Title};
use godwit_wire::frame::{Range, SeqRange};
use godwit_wire::{Code, Seq, UnixMillis};
use std::sync::Arc;

macro_rules! on_each {
    ($($case:ident),* $(,)?) => {
        mod redb {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() -> Result<()> {
                super::$case(Under::file()?).await
            })*
        }

        mod memory {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() -> Result<()> {
                super::$case(Under::shared(Arc::new(Memory::default())).await?).await
            })*
        }

        mod dynoxide {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() -> Result<()> {
                super::$case(Under::shared(Arc::new(Server::Dynoxide.tables().await?)).await?).await
            })*
        }

        mod dynalite {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() -> Result<()> {
                super::$case(Under::shared(Arc::new(Server::Dynalite.tables().await?)).await?).await
            })*
        }
    };
}

on_each!(
    outcomes_stay_however_old_and_over_restarts,
    what_was_sent_under_an_earlier_enrolment_is_the_same_message,
    a_void_stays_void_until_the_device_has_heard_of_it,
    a_number_waits_for_the_one_before_it,
    a_write_that_panics_is_answered_internal_and_the_others_run,
    history_is_paged_from_both_ends_and_from_within,
    an_erased_message_stays_erased,
    who_takes_part_follows_from_the_log,
    many_take_part_at_once,
    an_inbox_row_goes_on_and_never_back,
    how_far_everybody_got_is_kept,
    a_token_is_used_once_and_a_device_shut_out,
);

pub async fn outcomes_stay_however_old_and_over_restarts(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    let mut commands = vec![create()];
    commands.extend((2..=900).map(|n| send("alice", n)));
    let first = bench.run(commands.clone()).await?;
    for (i, outcome) in first.iter().enumerate() {
        ensure!(sent(outcome)? == i as u64 + 1, "gapless");
    }
    for _ in 0..2 {
        // All of them again, one by one and together: the same outcomes, and nothing new in the log.
        for n in [1, 2, 255, 256, 257, 511, 700, 899, 900] {
            ensure!(bench.one(commands[n - 1].clone()).await? == first[n - 1], "number {n}");
        }
        ensure!(bench.run(commands.clone()).await? == first, "all again");
        ensure!(bench.log().await?.len() == 900, "nothing doubled");
        bench.restart().await?;
    }
    ensure!(sent(&bench.one(send("alice", 901)).await?)? == 901, "and it goes on");
    Ok(())
}

/// A device that was enrolled anew numbers anew what it does not know to be sent.
pub async fn what_was_sent_under_an_earlier_enrolment_is_the_same_message(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    let earlier = bench.run((2..=600).map(|n| send("alice", n)).collect()).await?;
    // It knows that 2..=400 were sent.
    let anew = |n: u64| {
        let mut command = send("alice", n + 400);
        (command.sender.enrolment, command.stamp.n) = (2, n);
        command.stamp.previous = command.stamp.previous.filter(|_| n > 1);
        command
    };
    let again: Vec<Command> = (1..=250).map(anew).collect();
    for run in 0..3 {
        let outcomes = bench.run(again.clone()).await?;
        ensure!(outcomes[..200] == earlier[399..], "run {run}: those that were sent");
        for (i, outcome) in outcomes[200..].iter().enumerate() {
            ensure!(sent(outcome)? == 601 + i as u64, "run {run}: and those that were not");
        }
        ensure!(bench.log().await?.len() == 650, "run {run}: nothing doubled");
        bench.restart().await?;
    }
    // What is late of the earlier enrolment is the same as well.
    let mut late = anew(240);
    (late.sender.enrolment, late.stamp.n, late.stamp.previous) = (1, 601, None);
    bench.one(anew(251)).await?;
    ensure!(sent(&bench.one(late).await?)? == 640, "as it was sent under the later one");
    Ok(())
}

pub async fn a_void_stays_void_until_the_device_has_heard_of_it(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    let big = command("alice", 2, Action::Send { content: Content(vec![0; 70_000].into()), blobs: Vec::new() });
    let refused = bench.one(big.clone()).await?;
    ensure!(matches!(&refused, Outcome::Refused(r) if r.code == Code::TooLarge), "{refused:?}");
    ensure!(sent(&bench.one(send("alice", 3)).await?)? == 2, "voids take no seq");
    bench.restart().await?;
    ensure!(bench.one(big.clone()).await? == refused, "the same after a restart");
    // "I wait for nothing below 4": the void is forgotten, and its number is not free again.
    let mut next = send("alice", 4);
    next.stamp.oldest = 4;
    ensure!(sent(&bench.one(next).await?)? == 3, "next");
    let Outcome::Refused(refusal) = bench.one(big).await? else { bail!("a decided number was taken again") };
    ensure!(refusal.code == Code::NumberTaken && refusal.next == Some(5), "{refusal:?}");
    Ok(())
}

pub async fn a_number_waits_for_the_one_before_it(under: Under) -> Result<()> {
    let bench = Bench::new(under).await?;
    bench.one(create()).await?;
    let Outcome::Refused(refusal) = bench.one(send("alice", 4)).await? else { bail!("out of order") };
    ensure!(refusal.code == Code::OutOfOrder && refusal.next == Some(2), "{refusal:?}");
    for n in 2..=4 {
        ensure!(sent(&bench.one(send("alice", n)).await?)? == n, "in order");
    }
    Ok(())
}

/// A write that panics harms nobody but itself.
pub async fn a_write_that_panics_is_answered_internal_and_the_others_run(under: Under) -> Result<()> {
    let bench = Bench::new(under).await?;
    bench.one(create()).await?;
    for n in 2..=20 {
        let store = bench.store();
        let culprit = tokio::spawn(async move {
            let id = "dave@eu/phone".parse().expect("a device id");
            store.enrol(id, format!("t{n}"), UnixMillis(u64::MAX), |_| panic!("on purpose")).await
        });
        let sending = [send("alice", n)].map(|command| bench.one(command));
        for outcome in sending {
            ensure!(sent(&outcome.await?)? == n, "sent all the same");
        }
        let refusal = culprit.await?.expect_err("enrolled by a panic");
        ensure!(refusal.code == Code::Internal, "{refusal:?}");
    }
    ensure!(bench.log().await?.len() == 20, "each once");
    Ok(())
}

/// However the entries were committed: pages of any size, ascending and descending, from any seq.
pub async fn history_is_paged_from_both_ends_and_from_within(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    let mut n = 2;
    for size in [1, 7, 1, 30, 2, 100, 1] {
        bench.run((n..n + size).map(|n| send("alice", n)).collect()).await?;
        n += size;
    }
    let last = n - 1;
    for _ in 0..2 {
        for (from, limit) in [(1, 5), (2, 1), (5, 3), (9, 40), (40, 2), (last - 1, 512), (last, 1), (last + 1, 10)] {
            let range = Range::From(Seq::new(from)?);
            let page = bench.store().history(user("bob"), chat(), range, limit).await??;
            let found: Vec<u64> = page.entries.iter().map(|entry| entry.seq.get()).collect();
            let expected: Vec<u64> = (from..=last).take(limit).collect();
            ensure!(found == expected, "from {from}, {limit}: {found:?}");
            ensure!(page.head.get() == last, "the head");
        }
        for (before, limit) in [(None, 10), (Some(2), 5), (Some(1), 5), (Some(41), 40), (Some(last + 50), 3)] {
            let range = Range::Before(before.map(Seq::new).transpose()?);
            let page = bench.store().history(user("bob"), chat(), range, limit).await??;
            let found: Vec<u64> = page.entries.iter().map(|entry| entry.seq.get()).collect();
            let end = before.map_or(last, |before| (before - 1).min(last));
            let expected: Vec<u64> = (1.max((end + 1).saturating_sub(limit as u64))..=end).collect();
            ensure!(found == expected, "before {before:?}, {limit}: {found:?}");
        }
        bench.restart().await?;
    }
    Ok(())
}

pub async fn an_erased_message_stays_erased(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    bench.run((2..=9).map(|n| send("alice", n)).collect()).await?;
    let of = Seq::new(5)?;
    ensure!(sent(&bench.one(command("alice", 10, Action::Redact { of })).await?)? == 10, "redacted");
    for _ in 0..2 {
        for entry in log(&bench.store(), "bob").await? {
            let is_message = matches!(entry.body.as_known(), Some(EntryBody::Message { .. }));
            let (seq, body) = (entry.seq.get(), &entry.body);
            ensure!(is_message == ((2..=9).contains(&seq) && seq != 5), "{seq}: {body:?}");
        }
        bench.restart().await?;
    }
    let again = bench.one(send("alice", 5)).await?;
    ensure!(sent(&again)? == 5, "its number stays decided");
    Ok(())
}

pub async fn who_takes_part_follows_from_the_log(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    let update = |n, change| command("alice", n, Action::Update(change));
    let commands = vec![
        send("alice", 2),
        update(3, Change::Add(vec![member("carol")])),
        send("alice", 4),
        update(5, Change::Remove(user("carol"))),
        send("alice", 6),
        update(7, Change::Title(Title::parse("a title")?)),
    ];
    for outcome in bench.run(commands).await? {
        sent(&outcome)?;
    }
    for _ in 0..2 {
        let seen: Vec<u64> = log(&bench.store(), "carol").await?.iter().map(|entry| entry.seq.get()).collect();
        ensure!(seen == [3, 4, 5], "carol sees what came while she took part: {seen:?}");
        let refused = bench.one(send("carol", 1)).await?;
        ensure!(matches!(&refused, Outcome::Refused(r) if r.code == Code::NotParticipant), "{refused:?}");
        let carols = listed(&bench.store(), "carol").await?;
        ensure!(carols.is_some_and(|chat| chat.role.is_none() && chat.head.get() == 5), "her list");
        let bobs = listed(&bench.store(), "bob").await?;
        ensure!(bobs.is_some_and(|chat| chat.head.get() == 7 && chat.title.as_str() == "a title"), "bob's list");
        bench.restart().await?;
    }
    Ok(())
}

/// As many as may, beside long messages: what follows from the entries is more than an item of a shared store holds.
pub async fn many_take_part_at_once(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    let names: Vec<String> = (0..1000).map(|i| format!("user-{i:027}")).collect();
    for name in &names {
        bench.enrol(name, 1).await?;
    }
    let add = Change::Add(names.iter().map(|name| member(name)).collect());
    let long = |n| command("alice", n, Action::Send { content: Content(vec![7; 60_000].into()), blobs: Vec::new() });
    let outcomes = bench.run(vec![command("alice", 2, Action::Update(add)), long(3), long(4), long(5)]).await?;
    ensure!(sent(&outcomes[0])? == 2 && sent(&outcomes[3])? == 5, "added");
    for _ in 0..2 {
        for name in names.iter().step_by(97) {
            ensure!(log(&bench.store(), name).await?.len() == 4, "{name} sees what came since they were added");
            ensure!(listed(&bench.store(), name).await?.is_some(), "{name} has it in their list");
        }
        bench.restart().await?;
    }
    Ok(())
}

pub async fn an_inbox_row_goes_on_and_never_back(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    bench.run((2..=20).map(|n| send("alice", n)).collect()).await?;
    let seq = |n| Seq::new(n).expect("a seq");
    let took = |from, to| InboxChange::Took(SeqRange { from: seq(from), to: seq(to) });
    let took_all = |from, to| InboxChange::TookAll(SeqRange { from: seq(from), to: seq(to) });
    let steps = [
        (InboxChange::Begin(seq(5)), 5),
        (InboxChange::Begin(seq(9)), 5),
        (took(5, 11), 12),
        (took(5, 6), 12),
        // Whoever says so does not know of what comes before.
        (took(14, 16), 12),
        (took_all(14, 20), 12),
        (InboxChange::Begin(seq(3)), 3),
        (took_all(3, 20), 21),
        (took(3, 5), 21),
        (InboxChange::Begin(seq(20)), 20),
    ];
    let lower = |known: &InboxChange, row: u64| match known {
        InboxChange::Begin(from) => from.get() > row,
        InboxChange::Took(range) | InboxChange::TookAll(range) => range.from.get() > row,
    };
    let mut row = 21;
    for (change, next) in steps {
        let write = InboxWrite { device: device("bob"), enrolment: 1, chat: chat(), change: change.clone() };
        let other = InboxWrite { enrolment: 2, ..write.clone() };
        let left = bench.store().write_inbox(vec![write, other]).await?;
        let known: Vec<u64> = left.iter().map(|(_, _, from)| from.get()).collect();
        let lowest = lower(&change, row).then_some(row);
        ensure!(known == lowest.as_slice(), "after {change:?} of a row from {row}: {known:?}");
        row = next;
        let found = listed(&bench.store(), "bob").await?.map(|chat| chat.next.get());
        ensure!(found == Some(next), "after {change:?}: {found:?}");
    }
    bench.restart().await?;
    ensure!(listed(&bench.store(), "bob").await?.is_some_and(|chat| chat.next.get() == 20), "after a restart");
    // Enrolled anew, the phone begins after the head.
    ensure!(bench.enrol("bob", 2).await? == 2, "the second enrolment");
    ensure!(listed(&bench.store(), "bob").await?.is_some_and(|chat| chat.next.get() == 21), "anew");
    ensure!(bench.store().revoke(device("bob")).await?, "revoked");
    let late = InboxWrite { device: device("bob"), enrolment: 2, chat: chat(), change: InboxChange::Begin(seq(2)) };
    bench.store().write_inbox(vec![late]).await?;
    ensure!(listed(&bench.store(), "bob").await?.is_some_and(|chat| chat.next.get() == 21), "one that is shut out");
    Ok(())
}

pub async fn how_far_everybody_got_is_kept(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    bench.one(create()).await?;
    bench.run((2..=20).map(|n| send("alice", n)).collect()).await?;
    let seq = |n| Seq::new(n).ok();
    let floor = |at| Some(Floor { slowest: user("bob"), at: seq(at), others: seq(20) });
    let progress = |delivered, read| ChatProgress {
        chat: chat(),
        settled: seq(20),
        watermarks: vec![(user("bob"), Watermark { delivered: seq(delivered), read: seq(read) })],
        delivered: floor(delivered),
        read: floor(read),
    };
    bench.store().save_progress(vec![progress(12, 7)]).await?;
    bench.store().save_progress(vec![ChatProgress { delivered: None, ..progress(9, 8) }]).await?;
    for _ in 0..2 {
        let receipt = listed(&bench.store(), "alice").await?.map(|chat| chat.receipt);
        ensure!(receipt.is_some_and(|r| r.delivered == seq(12) && r.read == seq(8)), "{receipt:?}");
        bench.restart().await?;
    }
    Ok(())
}

pub async fn a_token_is_used_once_and_a_device_shut_out(under: Under) -> Result<()> {
    let mut bench = Bench::new(under).await?;
    for round in 0..2 {
        let refusal = bench.enrol("alice", 1).await.expect_err("a token was used twice");
        ensure!(refusal.code == Code::TokenUsed, "{refusal:?}");
        ensure!(bench.enrol("alice", 10 + round).await? == 2 + round, "each enrolment is the next");
        let store = bench.store();
        ensure!(!store.renewed(device("alice"), 1 + round, [1; 32]).await?, "an earlier enrolment is renewed");
        ensure!(store.renewed(device("alice"), 2 + round, [1; 32]).await?, "the last is not");
        ensure!(!store.revoke(device("nobody")).await?, "nobody's device");
        store.seen(device("alice")).await?;
        drop(store);
        bench.restart().await?;
    }
    ensure!(bench.store().revoke(device("alice")).await?, "revoked");
    ensure!(!bench.store().renewed(device("alice"), 3, [1; 32]).await?, "renewed though it is shut out");
    Ok(())
}

/// A device was enrolled anew where not every relay could be told: what those commit is for it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_not_heard_of_an_enrolment_leaves_a_row_for_it() -> Result<()> {
    let bench = Bench::new(Under::shared(Arc::new(Memory::default())).await?).await?;
    bench.one(create()).await?;
    ensure!(bench.enrol("bob", 2).await? == 2, "the second enrolment");
    let seq = |n| Seq::new(n).expect("a seq");
    let write = |enrolment, change| InboxWrite { device: device("bob"), enrolment, chat: chat(), change };
    // All there is was taken under the new one.
    let all = InboxChange::TookAll(SeqRange { from: seq(2), to: seq(1) });
    bench.store().write_inbox(vec![write(2, all)]).await?;
    bench.one(send("alice", 2)).await?;
    ensure!(listed(&bench.store(), "bob").await?.is_some_and(|chat| chat.next.get() == 3), "no row");
    bench.store().write_inbox(vec![write(1, InboxChange::Begin(seq(2)))]).await?;
    ensure!(listed(&bench.store(), "bob").await?.is_some_and(|chat| chat.next.get() == 2), "a row");
    // It is not for whoever does not know of the enrolment to say what it took.
    let took = InboxChange::TookAll(SeqRange { from: seq(2), to: seq(2) });
    bench.store().write_inbox(vec![write(1, took)]).await?;
    ensure!(listed(&bench.store(), "bob").await?.is_some_and(|chat| chat.next.get() == 2), "the row stays");
    Ok(())
}
