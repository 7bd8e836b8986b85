//! Devices at a relay: delivery, order, several devices, slow ones, garbage.

use anyhow::{Context, Result, ensure};
use godwit_tests::lab::{Lab, PATIENCE};
use godwit_tests::wire::{self, Wire, close_reason, create_direct, message, stamp};
use godwit_wire::entry::EntryBody;
use godwit_wire::frame::{Ack, Event, History, Range, Reply, Request};
use godwit_wire::{ChatId, Code, Seq, limits};
use std::time::Duration;

fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

fn direct() -> ChatId {
    ChatId::direct(&"alice@eu".parse().unwrap(), &"bob@eu".parse().unwrap())
}

/// Two users, one device each, in a direct chat.
async fn pair(lab: &Lab) -> Result<(Wire, Wire, ChatId)> {
    let alice = lab.session("alice@eu/phone").await?;
    let mut bob = lab.session("bob@eu/phone").await?;
    let chat = direct();
    let reply = alice.ask(&create_direct(stamp(&chat, 1), "bob@eu")).await?;
    ensure!(matches!(reply, Reply::Sent { seq, .. } if seq == Seq::FIRST), "{reply:?}");
    let event = bob.event().await?;
    ensure!(entry_seq(&event) == Some(Seq::FIRST), "{event:?}");
    ack(&bob, &chat, 1).await?;
    Ok((alice, bob, chat))
}

fn entry_seq(event: &Event) -> Option<Seq> {
    match event {
        Event::Entry { entry, .. } => Some(entry.seq),
        _ => None,
    }
}

async fn ack(session: &Wire, chat: &ChatId, up_to: u64) -> Result<()> {
    let reply = session.ask(&Request::Ack(vec![Ack { chat: chat.clone(), up_to: seq(up_to) }])).await?;
    ensure!(reply == Reply::Done, "{reply:?}");
    Ok(())
}

/// The next `count` entries, acknowledged as they come.
async fn entries(session: &mut Wire, count: usize) -> Result<Vec<(Seq, Vec<u8>)>> {
    let mut got = Vec::new();
    while got.len() < count {
        if let Event::Entry { chat, entry } = session.event().await? {
            let content = match entry.body.as_known() {
                Some(EntryBody::Message { content, .. }) => content.0.to_vec(),
                _ => Vec::new(),
            };
            got.push((entry.seq, content));
            ack(session, &chat, entry.seq.get()).await?;
        }
    }
    Ok(got)
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_messages_arrive_in_their_order() -> Result<()> {
    let lab = Lab::start().await?;
    let (alice, mut bob, chat) = pair(&lab).await?;
    let mut lane = alice.lane().await?;
    let requests: Vec<_> = (2..=501).map(|n| message(stamp(&chat, n), format!("{n}"))).collect();
    lane.write(&requests).await?;
    for n in 2..=501 {
        let (number, reply) = lane.reply().await?;
        ensure!(u64::from(number) == n - 1, "replies keep the order of requests");
        ensure!(matches!(reply, Reply::Sent { seq, .. } if seq.get() == n), "{reply:?}");
    }
    for (i, (at, content)) in entries(&mut bob, 500).await?.into_iter().enumerate() {
        ensure!(at.get() == i as u64 + 2 && content == at.to_string().as_bytes(), "{at} holds {content:?}");
    }
    ensure!(lab.metric("godwit_inbox_rows_written_total") == 0.0, "live messages write no inbox rows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_the_same_message() -> Result<()> {
    let lab = Lab::start().await?;
    let (alice, mut bob, chat) = pair(&lab).await?;
    let send = message(stamp(&chat, 2), "once");
    let first = alice.ask(&send).await?;
    for _ in 0..3 {
        ensure!(alice.ask(&send).await? == first, "a retry is answered with its outcome");
    }
    ensure!(
        matches!(alice.ask(&message(stamp(&chat, 3), "next")).await?, Reply::Sent { seq, .. } if seq.get() == 3),
        "no number was lost"
    );
    let got = entries(&mut bob, 2).await?;
    ensure!(got[0].1 == b"once" && got[1].1 == b"next", "{got:?}");
    // Another message under the same number is told the next free one.
    let mut other = stamp(&chat, 2);
    other.id = godwit_wire::MessageId(uuid::Uuid::from_u128(99));
    let Reply::Refused(refusal) = alice.ask(&message(other, "other")).await? else { anyhow::bail!("taken") };
    ensure!(refusal.code == Code::NumberTaken && refusal.next == Some(4), "{refusal:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_device_gets_everything_in_order() -> Result<()> {
    let lab = Lab::start().await?;
    let credential = lab.enrol("bob@eu/phone").await?;
    let alice = lab.session("alice@eu/phone").await?;
    let chat = direct();
    let mut requests = vec![create_direct(stamp(&chat, 1), "bob@eu")];
    requests.extend((2..=2000).map(|n| message(stamp(&chat, n), format!("{n}"))));
    let mut lane = alice.lane().await?;
    lane.write(&requests).await?;
    for _ in &requests {
        let (_, reply) = lane.reply().await?;
        ensure!(matches!(reply, Reply::Sent { .. }), "{reply:?}");
    }
    let mut bob = lab.connect(credential.clone()).await?;
    let got = entries(&mut bob, 1500).await?;
    ensure!(got.iter().zip(1..).all(|((at, _), n)| at.get() == n), "the first 1500 in order");
    drop(bob);
    // The rest comes with the next connection, from where it was acknowledged.
    let mut bob = lab.connect(credential).await?;
    let got = entries(&mut bob, 500).await?;
    ensure!(got.last().map(|(at, _)| at.get()) == Some(2000), "the rest");
    ensure!(lab.metric("godwit_inbox_rows_written_total") <= 2.0, "a backlog is one row, however long");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_senders_other_devices_get_the_message_and_the_sender_does_not() -> Result<()> {
    let lab = Lab::start().await?;
    let (mut alice, mut bob, chat) = pair(&lab).await?;
    let mut laptop = lab.session("alice@eu/laptop").await?;
    alice.ask(&message(stamp(&chat, 2), "hi")).await?;
    for session in [&mut laptop, &mut bob] {
        let got = entries(session, 1).await?;
        ensure!(got[0].1 == b"hi", "{got:?}");
    }
    ensure!(!matches!(alice.event_within(Duration::from_millis(200)).await, Some(Event::Entry { .. })), "an echo");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_does_not_acknowledge_is_served_again() -> Result<()> {
    let lab = Lab::with(&[("delivery.ack_timeout", "200ms")]).await?;
    let alice = lab.session("alice@eu/phone").await?;
    let credential = lab.enrol("bob@eu/phone").await?;
    let mut bob = lab.connect(credential.clone()).await?;
    let chat = direct();
    alice.ask(&create_direct(stamp(&chat, 1), "bob@eu")).await?;
    alice.ask(&message(stamp(&chat, 2), "hi")).await?;
    ensure!(entry_seq(&bob.event().await?) == Some(seq(1)), "pushed");
    let written = async {
        while lab.metric("godwit_inbox_rows_written_total") < 1.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.context("no inbox row after the time-out")?;
    drop(bob);
    let mut bob = lab.connect(credential).await?;
    let got = entries(&mut bob, 2).await?;
    ensure!(got.iter().map(|(at, _)| at.get()).eq(1..=2), "{got:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_device_does_not_slow_others_and_catches_up() -> Result<()> {
    let lab = Lab::with(&[("delivery.lane_bytes", "1 MiB"), ("limits.bytes_burst", "1 GiB")]).await?;
    let (alice, mut bob, chat) = pair(&lab).await?;
    // Reads nothing: its events pile up, in QUIC's windows first, then at the relay.
    let config = godwit_certs::tls::client(
        &godwit_certs::tls::Crypto::system(),
        &lab.root()?,
        Some(lab.enrol("bob@eu/slow").await?),
        godwit_wire::ALPN_DEVICE,
    )?;
    let slow = wire::dial(lab.address(), config).await?;
    let hello = Request::Hello(godwit_wire::frame::Hello {
        client: "slow".into(),
        options: godwit_wire::frame::Options::default(),
    });
    ensure!(matches!(wire::ask(&slow, &hello).await?, Reply::Welcome(_)), "welcome");
    let mut lane = alice.lane().await?;
    let body = vec![b'x'; 60_000];
    for n in 2..=201 {
        lane.write(&[message(stamp(&chat, n), body.clone())]).await?;
        let (_, reply) = lane.reply().await?;
        ensure!(matches!(reply, Reply::Sent { .. }), "{reply:?}");
        ensure!(entries(&mut bob, 1).await?[0].0.get() == n, "live all the while");
    }
    ensure!(lab.metric("godwit_inbox_rows_written_total") >= 1.0, "what does not fit a lane becomes an inbox row");
    // It reads at last, and gets everything.
    let mut slow = Wire::hello(slow).await?;
    let got = entries(&mut slow, 200).await?;
    ensure!(got.iter().map(|(at, _)| at.get()).eq(2..=201), "all in order");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn history_pages_both_ways_and_hides_what_is_not_ones_own() -> Result<()> {
    let lab = Lab::start().await?;
    let (alice, bob, chat) = pair(&lab).await?;
    for n in 2..=30 {
        alice.ask(&message(stamp(&chat, n), format!("{n}"))).await?;
    }
    let page = |range, limit| Request::History(History { chat: chat.clone(), range, limit });
    let seqs = |reply: Reply| match reply {
        Reply::HistoryPage(page) => page.entries.iter().map(|e| e.seq.get()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    ensure!(seqs(bob.ask(&page(Range::Before(None), 3)).await?) == [28, 29, 30], "newest");
    ensure!(seqs(bob.ask(&page(Range::Before(Some(seq(3))), 10)).await?) == [1, 2], "oldest");
    ensure!(seqs(bob.ask(&page(Range::From(seq(4)), 2)).await?) == [4, 5], "from");
    ensure!(seqs(bob.ask(&page(Range::From(seq(31)), 2)).await?).is_empty(), "past the head");
    let stranger = lab.session("eve@eu/phone").await?;
    for request in [page(Range::Before(None), 3), Request::GetChat { chat: chat.clone() }] {
        let Reply::Refused(refusal) = stranger.ask(&request).await? else { anyhow::bail!("shown to a stranger") };
        ensure!(refusal.code == Code::NotParticipant, "{refusal:?}");
    }
    for limit in [0, 513] {
        let Reply::Refused(refusal) = bob.ask(&page(Range::Before(None), limit)).await? else {
            anyhow::bail!("{limit}")
        };
        ensure!(refusal.code == Code::Invalid && refusal.explanation.contains("512"), "{refusal:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_is_refused_by_its_number_and_the_next_goes_on() -> Result<()> {
    let lab = Lab::start().await?;
    let (alice, _bob, chat) = pair(&lab).await?;
    let big = message(stamp(&chat, 2), vec![0; limits::CONTENT_BYTES + 1]);
    for _ in 0..2 {
        let Reply::Refused(refusal) = alice.ask(&big).await? else { anyhow::bail!("taken") };
        ensure!(refusal.code == Code::TooLarge && refusal.explanation.contains("65536"), "{refusal:?}");
    }
    let fits = message(stamp(&chat, 3), vec![0; limits::CONTENT_BYTES]);
    ensure!(matches!(alice.ask(&fits).await?, Reply::Sent { seq, .. } if seq.get() == 2), "the log has no gap");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_request_is_unsupported_and_the_connection_lives() -> Result<()> {
    let lab = Lab::start().await?;
    let alice = lab.session("alice@eu/phone").await?;
    let mut lane = alice.lane().await?;
    // Length 3: request 7, variant 99, one byte.
    lane.send.write_all(&[3, 0, 0, 0, 7, 99, 1]).await?;
    ensure!(lane.reply().await? == (7, Reply::Unsupported { variant: 99 }), "unsupported");
    ensure!(
        matches!(
            alice.ask(&Request::ListChats(godwit_wire::frame::ListChats { after: None, limit: 1 })).await?,
            Reply::ChatList(_)
        ),
        "lives"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_read_is_refused_and_the_connection_lives() -> Result<()> {
    let lab = Lab::start().await?;
    let (alice, _bob, chat) = pair(&lab).await?;
    let mut lane = alice.lane().await?;
    lane.send.write_all(&[3, 0, 0, 0, 7, 3, 255]).await?;
    let (number, reply) = lane.reply().await?;
    ensure!(number == 7 && matches!(&reply, Reply::Refused(r) if r.code == Code::Malformed), "{reply:?}");
    ensure!(matches!(alice.ask(&message(stamp(&chat, 2), "on")).await?, Reply::Sent { .. }), "lives");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_connection_only() -> Result<()> {
    let lab = Lab::start().await?;
    let (alice, mut bob, chat) = pair(&lab).await?;
    let oversize = u32::try_from(limits::FRAME_BYTES + 1)?.to_le_bytes().to_vec();
    for (i, bytes) in [oversize, vec![255; 100], [[3, 0, 0, 0, 1, 3, 255]; 65].concat()].into_iter().enumerate() {
        let eve = lab.session(&format!("eve@eu/d{i}")).await?;
        let mut lane = eve.lane().await?;
        lane.send.write_all(&bytes).await?;
        ensure!(close_reason(&eve.connection).await?.code == Code::Malformed, "{bytes:?}");
    }
    alice.ask(&message(stamp(&chat, 2), "still here")).await?;
    ensure!(entries(&mut bob, 1).await?[0].1 == b"still here", "others go on");
    ensure!(lab.metric("godwit_malformed_frames_total") >= 3.0, "counted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_over_their_rate_is_told_when_to_come_back() -> Result<()> {
    let lab = Lab::with(&[("limits.sends_per_second", "20"), ("limits.sends_burst", "5")]).await?;
    let (alice, _bob, chat) = pair(&lab).await?;
    let mut lane = alice.lane().await?;
    let requests: Vec<_> = (2..=30).map(|n| message(stamp(&chat, n), "x")).collect();
    lane.write(&requests).await?;
    let mut limited = None;
    for _ in &requests {
        match lane.reply().await?.1 {
            Reply::Sent { .. } => {}
            Reply::Refused(refusal) if refusal.code == Code::RateLimited => limited = limited.or(refusal.retry_after()),
            Reply::Refused(refusal) => ensure!(refusal.code == Code::OutOfOrder, "{refusal:?}"),
            other => anyhow::bail!("{other:?}"),
        }
    }
    let wait = limited.context("nothing was limited")?;
    ensure!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
    Ok(())
}

/// The news of an enrolment may reach fan-out after the device has connected.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_connect_right_after_enrolling_are_served() -> Result<()> {
    let lab = std::sync::Arc::new(Lab::start().await?);
    let mut pairs = tokio::task::JoinSet::new();
    for i in 0..60 {
        let lab = lab.clone();
        pairs.spawn(async move {
            let alice = lab.session(&format!("a{i}@eu/d")).await?;
            let mut bob = lab.session(&format!("b{i}@eu/d")).await?;
            let other = format!("b{i}@eu");
            let chat = ChatId::direct(&format!("a{i}@eu").parse()?, &other.parse()?);
            alice.ask(&create_direct(stamp(&chat, 1), &other)).await?;
            ensure!(entry_seq(&bob.event().await?) == Some(Seq::FIRST), "pair {i}");
            ack(&bob, &chat, 1).await
        });
    }
    while let Some(pair) = pairs.join_next().await {
        pair??;
    }
    ensure!(lab.metric("godwit_inbox_rows_written_total") == 0.0, "everybody was live");
    Ok(())
}

/// Entries and an enrolment of one of their recipients in one commit: nobody misses any.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_enrols_devices_misses_nothing_on_the_others() -> Result<()> {
    let lab = std::sync::Arc::new(Lab::start().await?);
    let (alice, mut bob, chat) = pair(&lab).await?;
    let enrolling = tokio::spawn({
        let lab = lab.clone();
        async move {
            for i in 0..40 {
                lab.enrol(&format!("bob@eu/d{i}")).await?;
            }
            anyhow::Ok(())
        }
    });
    let mut lane = alice.lane().await?;
    let mut n = 1;
    while !enrolling.is_finished() {
        let requests: Vec<_> = (n + 1..=n + 20).map(|n| message(stamp(&chat, n), "x")).collect();
        lane.write(&requests).await?;
        for _ in &requests {
            let (_, reply) = lane.reply().await?;
            ensure!(matches!(reply, Reply::Sent { .. }), "{reply:?}");
        }
        n += 20;
    }
    enrolling.await??;
    let mut last = 1;
    while last < n {
        let Event::Entry { entry, .. } = bob.event().await.with_context(|| format!("after {last} of {n}"))? else {
            continue;
        };
        ensure!(entry.seq.get() == last + 1, "{} after {last}", entry.seq);
        last += 1;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_replaces_the_older() -> Result<()> {
    let lab = Lab::start().await?;
    let credential = lab.enrol("alice@eu/phone").await?;
    let old = lab.connect(credential.clone()).await?;
    let new = lab.connect(credential).await?;
    ensure!(close_reason(&old.connection).await?.code == Code::Replaced, "replaced");
    ensure!(new.connection.close_reason().is_none(), "the newer one lives");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn backlogs_over_a_limit_are_named_as_a_gap() -> Result<()> {
    let lab = Lab::with(&[("delivery.inbox_max_bytes", "10000")]).await?;
    let credential = lab.enrol("bob@eu/phone").await?;
    let alice = lab.session("alice@eu/phone").await?;
    let chat = direct();
    alice.ask(&create_direct(stamp(&chat, 1), "bob@eu")).await?;
    for n in 2..=50 {
        alice.ask(&message(stamp(&chat, n), vec![0; 1000])).await?;
    }
    let mut bob = lab.connect(credential).await?;
    let Event::Gap { range, .. } = bob.event().await? else { anyhow::bail!("no gap") };
    ensure!((range.from.get(), range.to.get()) == (1, 40), "{range:?}");
    let got = entries(&mut bob, 10).await?;
    ensure!(got.iter().map(|(at, _)| at.get()).eq(41..=50), "what fits is pushed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn backlogs_over_an_age_are_named_as_a_gap() -> Result<()> {
    let lab = Lab::with(&[("delivery.inbox_max_age", "1h")]).await?;
    let credential = lab.enrol("bob@eu/phone").await?;
    let alice = lab.session("alice@eu/phone").await?;
    let chat = direct();
    alice.ask(&create_direct(stamp(&chat, 1), "bob@eu")).await?;
    for n in 2..=20 {
        alice.ask(&message(stamp(&chat, n), "old")).await?;
    }
    lab.jump(Duration::from_hours(2));
    for n in 21..=25 {
        alice.ask(&message(stamp(&chat, n), "new")).await?;
    }
    let mut bob = lab.connect(credential).await?;
    let Event::Gap { range, .. } = bob.event().await? else { anyhow::bail!("no gap") };
    ensure!((range.from.get(), range.to.get()) == (1, 20), "{range:?}");
    let got = entries(&mut bob, 5).await?;
    ensure!(got.iter().map(|(at, _)| at.get()).eq(21..=25), "what is young enough is pushed");
    let history = Request::History(History { chat, range: Range::From(Seq::FIRST), limit: 100 });
    let Reply::HistoryPage(page) = bob.ask(&history).await? else { anyhow::bail!("no history") };
    ensure!(page.entries.len() == 25, "nothing is lost: the history has all");
    Ok(())
}
