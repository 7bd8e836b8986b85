//! One connection while it lives.
//!
//! - [`sending`]: what is in the outbox
//! - [`uploading`]: files on their way
//! - [`compare`]: one's own chats with the relay's
//! - [`moving`]: to another relay, before this connection ends
//! - [`pulse`]: whether the relay is still there

mod compare;
mod moving;
mod pulse;
mod sending;
mod uploading;

use super::join::{Joined, addresses};
use super::{Job, Worker};
use crate::error::Error;
use crate::session::{FromRelay, Session, one_shot};
use crate::store::{Fetch, Incoming, Taken, UploadRow};
use compare::{Agreed, Comparing};
use godwit_certs::DeviceKey;
use godwit_certs::authority::DEVICE_LIFE;
use godwit_wire::blob::Manifest;
use godwit_wire::frame::{Ack, ChatSummary, Event, History, ListChats, Range, Reply, Request, SeqRange, Welcome};
use godwit_wire::{ChatId, Code, MessageId, Seq, limits};
use pulse::{Packets, Pulse};
use sending::Sending;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uploading::Uploading;

/// What came is taken in so much at a time, in one transaction.
const TAKE: usize = 512;
/// Gaps of so many chats are closed at the same time.
const FETCHES: usize = 4;
/// How long a gap may be one's own message, whose reply comes on another stream.
const OWN_GAP: Duration = Duration::from_millis(200);
/// How often the store is looked at for what other processes put there.
const TICK: Duration = Duration::from_millis(50);
/// The same, once nothing has happened for a while: a phone is idle most of the time.
const IDLE_TICK: Duration = Duration::from_millis(500);
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// A certificate that was not renewed is asked for again after this: it lives for days yet.
const RENEW_AGAIN: Duration = Duration::from_hours(1);
/// The wait after a passing refusal that names none.
const RETRY: Duration = Duration::from_millis(500);
/// After a change of network the relay must answer within this, or a new connection is made.
const PROBE: Duration = Duration::from_millis(1500);
/// A relay answers with receipts as it saved them, and does so within this.
const RECEIPTS_SAVED: Duration = Duration::from_secs(3);
/// Chats with undelivered messages that are asked about after a reconnect.
const ASK_RECEIPTS: usize = 50;

/// How a connection ended.
pub(super) enum End {
    Stopped,
    /// The next one has begun.
    Moved(Box<Joined>),
    Lost {
        error: Error,
        /// It had been up.
        lived: bool,
    },
}

enum Asked {
    Numbered { chat: ChatId, n: u64, id: MessageId },
    Acks(Vec<Ack>),
}

/// What a request on a stream of its own brought.
enum Brought {
    Gap {
        chat: ChatId,
        missing: SeqRange,
        result: Result<Reply, Error>,
    },
    Older {
        chat: ChatId,
        result: Result<Reply, Error>,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// For another process.
    OlderFor {
        id: i64,
        chat: ChatId,
        result: Result<Reply, Error>,
    },
    Info {
        chat: ChatId,
        result: Result<Reply, Error>,
        done: Option<oneshot::Sender<Result<(), Error>>>,
    },
    List(Result<Reply, Error>),
    Compared {
        chat: ChatId,
        summary: Option<ChatSummary>,
        agreed: Result<Agreed, Error>,
    },
    Read {
        chat: ChatId,
        up_to: Seq,
        result: Result<Reply, Error>,
    },
    Uploaded {
        id: MessageId,
        result: Result<Box<(UploadRow, Manifest)>, Error>,
    },
    Certificate(Result<Reply, Error>),
    Probe(Result<Reply, Error>),
    Moved(Result<Joined, Error>),
    /// The round trip to another relay, if that answered.
    Measured(Option<(String, Duration)>),
}

pub(super) struct Live {
    session: Session,
    incoming: mpsc::Receiver<FromRelay>,
    welcome: Welcome,
    comparing: Comparing,
    asked: HashMap<u32, Asked>,
    /// Numbered requests that wait at the relay for their home.
    queued: HashMap<u32, (ChatId, u64, MessageId)>,
    sending: HashMap<ChatId, Sending>,
    /// Nothing is sent to these before their gap is closed: what was sent before may be in it.
    held: HashSet<ChatId>,
    gaps: HashMap<ChatId, Instant>,
    fetching: HashSet<ChatId>,
    info: HashSet<ChatId>,
    errands: JoinSet<Brought>,
    pulse: Pulse,
    /// When something happened last.
    busy_at: Instant,
    /// Another relay is being joined, to go on there.
    moving: bool,
    /// When the device's certificate is to be renewed.
    renew_at: Option<Instant>,
    /// It was, in this session.
    renewed: bool,
    /// When receipts are asked for once more.
    ask_later: Option<Instant>,
    /// The version of the store in which what other processes put there was looked for last.
    looked: i64,
    /// There may be more to send than when the outbox was looked at last.
    room: bool,
    asked_for: HashSet<i64>,
    telling: HashSet<ChatId>,
    uploading: Uploading,
}

impl Live {
    pub(super) fn new(session: Session, welcome: Welcome, incoming: mpsc::Receiver<FromRelay>, restored: bool) -> Self {
        Self {
            session,
            incoming,
            welcome,
            comparing: Comparing::new(restored),
            asked: HashMap::new(),
            queued: HashMap::new(),
            sending: HashMap::new(),
            held: HashSet::new(),
            gaps: HashMap::new(),
            fetching: HashSet::new(),
            info: HashSet::new(),
            errands: JoinSet::new(),
            pulse: Pulse::new(),
            busy_at: Instant::now(),
            moving: false,
            renew_at: None,
            renewed: false,
            ask_later: None,
            looked: -1,
            room: true,
            asked_for: HashSet::new(),
            telling: HashSet::new(),
            uploading: Uploading::new(),
        }
    }

    pub(super) async fn run(mut self, worker: &mut Worker) -> End {
        let result = match self.serve(worker).await {
            // The relay was to be left in any case.
            Err(error) if self.moving => self.moved(error).await,
            other => other,
        };
        if let Ok(Some(_)) = &result {
            self.take_rest(worker).await;
        }
        // What was on its way to be acknowledged is acknowledged again on the next connection.
        for asked in self.asked.into_values() {
            if let Asked::Acks(acks) = asked {
                for ack in acks {
                    note(&mut worker.unacknowledged, ack.chat, ack.up_to);
                }
            }
        }
        self.session.close();
        match result {
            Ok(None) => End::Stopped,
            Ok(Some(joined)) => End::Moved(Box::new(joined)),
            // The relay knows the session by the certificate that it began with.
            Err(Error::Refused(refusal)) if refusal.code == Code::CertificateExpired && self.renewed => {
                let error = Error::Unreachable("the certificate that the session began with has expired".to_owned());
                End::Lost { error, lived: true }
            }
            Err(error) => End::Lost { error, lived: true },
        }
    }

    /// Until the client is closed, or has joined another relay, which is given.
    async fn serve(&mut self, worker: &mut Worker) -> Result<Option<Joined>, Error> {
        let tick = tokio::time::sleep(TICK);
        tokio::pin!(tick);
        let remaining = self.welcome.certificate_expires.since(self.welcome.now);
        self.renew_at = Some(Instant::now() + remaining.saturating_sub(DEVICE_LIFE / 2));
        let mut batch = Vec::new();
        let wake = worker.inner.clone();
        // What others took while nobody told this device.
        self.ask_later = Some(Instant::now() + RECEIPTS_SAVED);
        if worker.compared {
            self.ask_receipts(worker)?;
        } else {
            self.list(None);
        }
        self.acknowledge(worker).await?;
        self.measure(worker)?;
        self.compare_on(worker)?;
        loop {
            self.close_gaps(worker);
            self.start_uploads(worker)?;
            self.send_all(worker).await?;
            tokio::select! {
                biased;
                () = worker.stop.cancelled() => return Ok(None),
                job = worker.jobs.recv() => match job {
                    Some(job) => self.job(worker, job)?,
                    None => return Ok(None),
                },
                () = wake.wake.notified() => {
                    self.busy_at = Instant::now();
                    (self.looked, self.room, self.uploading.look) = (-1, true, true);
                }
                () = &mut tick => {
                    self.look(worker).await?;
                    let idle = self.busy_at.elapsed() > IDLE_AFTER && self.nothing_waits();
                    tick.as_mut().reset(Instant::now() + if idle { IDLE_TICK } else { TICK });
                }
                Some(brought) = self.errands.join_next() => match brought {
                    Ok(Brought::Moved(Ok(joined))) => return Ok(Some(joined)),
                    Ok(brought) => self.brought(worker, brought).await?,
                    Err(error) => return Err(Error::Unreachable(format!("an errand did not end: {error}"))),
                },
                count = self.incoming.recv_many(&mut batch, TAKE) => {
                    if count == 0 {
                        return Err(Error::Unreachable("the connection ended".to_owned()));
                    }
                    self.pulse.heard();
                    self.busy_at = Instant::now();
                    self.arrived(worker, &mut batch).await?;
                }
            }
        }
    }

    /// Starts a request on a stream of its own.
    fn errand(&mut self, request: Request, bring: impl FnOnce(Result<Reply, Error>) -> Brought + Send + 'static) {
        let connection = self.session.connection().clone();
        self.errands.spawn(async move { bring(one_shot(&connection, &request).await) });
    }

    fn list(&mut self, after: Option<ChatId>) {
        let limit = u16::try_from(limits::PAGE_ENTRIES).unwrap_or(u16::MAX);
        self.errand(Request::ListChats(ListChats { after, limit }), Brought::List);
    }

    fn ask_info(&mut self, chat: ChatId, done: Option<oneshot::Sender<Result<(), Error>>>) {
        if done.is_none() && !self.info.insert(chat.clone()) {
            return;
        }
        let id = chat.clone();
        self.errand(Request::GetChat { chat }, |result| Brought::Info { chat: id, result, done });
    }

    fn older(
        &mut self,
        chat: &ChatId,
        before: Option<Seq>,
        count: usize,
        bring: impl FnOnce(Result<Reply, Error>) -> Brought + Send + 'static,
    ) {
        let limit = u16::try_from(count.clamp(1, limits::PAGE_ENTRIES)).unwrap_or(u16::MAX);
        self.errand(Request::History(History { chat: chat.clone(), range: Range::Before(before), limit }), bring);
    }

    fn job(&mut self, worker: &mut Worker, job: Job) -> Result<(), Error> {
        match job {
            Job::Fetch { chat, before, count, done } => {
                let id = chat.clone();
                self.older(&chat, before, count, |result| Brought::Older { chat: id, result, done });
            }
            Job::Connection { done } => {
                // Whoever asked may have gone.
                let _ = done.send(self.session.connection().clone());
            }
            Job::Info { chat, done } => self.ask_info(chat, Some(done)),
            Job::NetworkChanged => {
                worker.network_changed()?;
                let connection = self.session.connection().clone();
                let probe = Request::ListChats(ListChats { after: None, limit: 1 });
                self.errands.spawn(async move {
                    let answer = tokio::time::timeout(PROBE, one_shot(&connection, &probe)).await;
                    Brought::Probe(
                        answer.unwrap_or_else(|_| {
                            Err(Error::Unreachable("no answer since the network changed".to_owned()))
                        }),
                    )
                });
            }
        }
        Ok(())
    }

    fn renew(&mut self, worker: &Worker) -> Result<(), Error> {
        let Some(row) = worker.inner.store().device()? else { return Ok(()) };
        let certificates = |error: &dyn ToString| Error::Certificates(error.to_string());
        let key = DeviceKey::from_der(&row.key).map_err(|error| certificates(&error))?;
        let csr = key.request(&row.id).map_err(|error| certificates(&error))?;
        self.errand(Request::Renew { csr: csr.into() }, Brought::Certificate);
        Ok(())
    }

    async fn brought(&mut self, worker: &mut Worker, brought: Brought) -> Result<(), Error> {
        match brought {
            Brought::Gap { chat, missing, result } => {
                self.fetching.remove(&chat);
                let item = match result? {
                    Reply::HistoryPage(page) => {
                        let reaches = |last: Seq| last >= missing.from;
                        let news = page.entries.iter().any(|entry| reaches(entry.seq))
                            || page.hidden.iter().any(|range| reaches(range.to));
                        if !news {
                            // The log ends before it: there is nothing to wait for.
                            worker.orders.chats.remove(&chat);
                            self.gaps.remove(&chat);
                            self.room |= self.held.remove(&chat);
                        }
                        Incoming::Page { chat, page }
                    }
                    Reply::Refused(refusal) if !refusal.code.is_passing() => Incoming::Hidden { chat, range: missing },
                    Reply::Refused(refusal) => {
                        let wait = refusal.retry_after().unwrap_or(RETRY);
                        self.gaps.insert(chat, Instant::now() + wait);
                        return Ok(());
                    }
                    _ => return Err(Error::Unreachable("history was answered with something else".to_owned())),
                };
                self.take(worker, vec![item]).await
            }
            Brought::Older { chat, result, done } => {
                let outcome = self.keep_older(worker, &chat, result).await;
                // Whoever asked may have gone.
                let _ = done.send(outcome);
                Ok(())
            }
            Brought::OlderFor { id, chat, result } => {
                self.asked_for.remove(&id);
                let outcome = match self.keep_older(worker, &chat, result).await {
                    Ok(()) => Vec::new(),
                    Err(Error::Refused(refusal)) => postcard::to_stdvec(&refusal).unwrap_or_default(),
                    // Not reached: whoever takes the connection next tries again.
                    Err(_) => return Ok(()),
                };
                worker.inner.store().answer(id, &outcome)
            }
            Brought::Info { chat, result, done } => {
                self.info.remove(&chat);
                let outcome = match result {
                    Ok(Reply::ChatInfo(info)) => self.take(worker, vec![Incoming::Info(info)]).await,
                    Ok(Reply::Refused(refusal)) => Err(refusal.into()),
                    Ok(_) => Err(Error::Unreachable("a chat was answered with something else".to_owned())),
                    Err(error) => Err(error),
                };
                match done {
                    // Whoever asked may have gone.
                    Some(done) => drop(done.send(outcome)),
                    None => match outcome {
                        Ok(()) | Err(Error::Refused(_)) => {}
                        Err(error) => return Err(error),
                    },
                }
                Ok(())
            }
            Brought::List(result) => self.listed(worker, result?).await,
            Brought::Compared { chat, summary, agreed } => self.agreed(worker, chat, summary, agreed?).await,
            Brought::Read { chat, up_to, result } => {
                self.telling.remove(&chat);
                // More may have been read meanwhile, or it was refused for now.
                self.looked = -1;
                match result? {
                    Reply::Done => worker.inner.store().told_read(&chat, up_to),
                    _ => Ok(()),
                }
            }
            Brought::Uploaded { id, result } => self.uploaded(worker, id, result),
            Brought::Certificate(result) => {
                match result? {
                    Reply::Certificate(chain) => {
                        let chain: Vec<Vec<u8>> = chain.into_iter().map(|one| one.0.to_vec()).collect();
                        worker.inner.store().set_chain(&chain)?;
                        self.renewed = true;
                        tracing::info!("the certificate was renewed");
                    }
                    Reply::Refused(refusal) => {
                        self.renew_at = Some(Instant::now() + RENEW_AGAIN);
                        tracing::warn!(%refusal, "the certificate was not renewed");
                    }
                    _ => {}
                }
                Ok(())
            }
            Brought::Probe(result) => result.map(|_| ()),
            Brought::Moved(Ok(_)) => Ok(()),
            Brought::Moved(Err(error)) => {
                tracing::debug!(%error, "no other relay yet");
                self.move_on(worker, Vec::new(), RETRY)
            }
            Brought::Measured(measured) => match measured {
                Some((address, round_trip)) => worker.inner.store().set_round_trip(&address, round_trip),
                None => Ok(()),
            },
        }
    }

    async fn arrived(&mut self, worker: &mut Worker, batch: &mut Vec<FromRelay>) -> Result<(), Error> {
        let mut items = Vec::with_capacity(batch.len());
        let mut ended = None;
        for from_relay in batch.drain(..) {
            match from_relay {
                FromRelay::Event(event) if self.comparing.puts_off(&event) => {}
                FromRelay::Event(Event::Entry { chat, entry }) => items.push(Incoming::Entry { chat, entry }),
                FromRelay::Event(Event::Hidden { chat, range }) => items.push(Incoming::Hidden { chat, range }),
                FromRelay::Event(Event::Gap { chat, range }) => items.push(Incoming::Gap { chat, range }),
                FromRelay::Event(Event::Receipt { chat, receipt }) => items.push(Incoming::Receipt { chat, receipt }),
                FromRelay::Event(Event::Resumed) => {
                    self.ask_later = Some(Instant::now() + RECEIPTS_SAVED);
                    self.ask_receipts(worker)?;
                }
                FromRelay::Event(Event::GoAway { reason, relays }) => {
                    tracing::info!(%reason, "the relay asks to go elsewhere");
                    if !self.moving && !relays.is_empty() {
                        self.move_on(worker, addresses(&relays), Duration::ZERO)?;
                    }
                }
                FromRelay::Reply(number, reply) => items.extend(self.reply(worker, number, reply)?),
                FromRelay::Ended(error) => ended = ended.or(Some(error)),
            }
        }
        self.take(worker, items).await?;
        match ended {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn reply(&mut self, worker: &mut Worker, number: u32, reply: Reply) -> Result<Option<Incoming>, Error> {
        if let Some((chat, n, id)) = self.queued.remove(&number) {
            return self.outcome(worker, chat, n, id, reply);
        }
        match self.asked.remove(&number) {
            Some(Asked::Numbered { chat, n, id }) => {
                self.answered(&chat);
                if reply == Reply::Queued {
                    // Its outcome comes under the same number.
                    self.queued.insert(number, (chat.clone(), n, id));
                }
                self.outcome(worker, chat, n, id, reply)
            }
            Some(Asked::Acks(acks)) => {
                // One that will be refused again is not repeated; the next one covers it.
                if matches!(&reply, Reply::Refused(refusal) if refusal.code.is_passing()) {
                    for ack in acks {
                        note(&mut worker.unacknowledged, ack.chat, ack.up_to);
                    }
                }
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Takes in what came, and acknowledges what is contiguous and durable now.
    async fn take(&mut self, worker: &mut Worker, items: Vec<Incoming>) -> Result<(), Error> {
        if items.is_empty() {
            return Ok(());
        }
        let touched: HashSet<ChatId> = items.iter().map(|item| item.chat().clone()).collect();
        let taken = worker.inner.store().take(&worker.inner.device, &mut worker.orders, items);
        let Taken { advanced, unknown, strange } = taken?;
        worker.inner.changed();
        for chat in unknown {
            self.ask_info(chat, None);
        }
        for chat in touched {
            self.gaps.entry(chat).or_insert_with(Instant::now);
        }
        for (chat, first) in strange {
            self.suspect(worker, chat, first)?;
        }
        for (chat, position) in advanced.into_iter().filter(|(chat, _)| !self.comparing.is_doubtful(chat)) {
            note(&mut worker.unacknowledged, chat, position);
        }
        self.acknowledge(worker).await
    }

    async fn acknowledge(&mut self, worker: &mut Worker) -> Result<(), Error> {
        if worker.unacknowledged.is_empty() {
            return Ok(());
        }
        let acks: Vec<Ack> = worker.unacknowledged.drain().map(|(chat, up_to)| Ack { chat, up_to }).collect();
        for acks in acks.chunks(limits::ACKS) {
            let number = self.session.send(&acks[0].chat, &[Request::Ack(acks.to_vec())]).await?;
            self.asked.insert(number, Asked::Acks(acks.to_vec()));
        }
        Ok(())
    }

    /// Keeps what was read back. What this device has not passed yet is taken as if it had been pushed.
    async fn keep_older(
        &mut self,
        worker: &mut Worker,
        chat: &ChatId,
        result: Result<Reply, Error>,
    ) -> Result<(), Error> {
        let mut page = match result? {
            Reply::HistoryPage(page) => page,
            Reply::Refused(refusal) => return Err(refusal.into()),
            _ => return Err(Error::Unreachable("history was answered with something else".to_owned())),
        };
        let position = worker.inner.store().keep_page(chat, &page)?;
        page.entries.retain(|entry| Some(entry.seq) > position);
        page.hidden.retain(|range| Some(range.to) > position);
        let Some(last) = page.entries.last().map(|entry| entry.seq) else { return Ok(()) };
        if self.comparing.is_doubtful(chat) {
            return self.reaches(worker, chat, last);
        }
        self.take(worker, vec![Incoming::Page { chat: chat.clone(), page }]).await
    }

    /// Asks for what is missing before what is here.
    fn close_gaps(&mut self, worker: &mut Worker) {
        let now = Instant::now();
        let chats: Vec<(ChatId, Instant)> = self.gaps.iter().map(|(chat, since)| (chat.clone(), *since)).collect();
        for (chat, since) in chats {
            let Some(missing) = worker.orders.chats.get(&chat).and_then(crate::order::Order::missing) else {
                self.gaps.remove(&chat);
                self.room |= self.held.remove(&chat);
                continue;
            };
            let own = self.sending.get(&chat).is_some_and(|sending| sending.in_flight > 0);
            let wait = if own { OWN_GAP } else { Duration::ZERO };
            let busy = self.fetching.contains(&chat) || self.comparing.is_doubtful(&chat);
            if self.fetching.len() >= FETCHES || busy || now < since + wait {
                continue;
            }
            self.fetching.insert(chat.clone());
            // With the last that is here, which shows whether what comes follows it.
            let from = missing.from.prev().unwrap_or(missing.from);
            let count = missing.to.get() - from.get() + 1;
            let limit = u16::try_from(count.min(limits::PAGE_ENTRIES as u64)).unwrap_or(u16::MAX);
            let request = Request::History(History { chat: chat.clone(), range: Range::From(from), limit });
            self.errand(request, move |result| Brought::Gap { chat, missing, result });
        }
    }

    /// What other processes put into the store, and what waits for a time.
    fn ask_receipts(&mut self, worker: &Worker) -> Result<(), Error> {
        for chat in worker.inner.store().undelivered_chats(ASK_RECEIPTS)? {
            self.ask_info(chat, None);
        }
        Ok(())
    }

    /// Nothing is to be done at a time that is looked for.
    fn nothing_waits(&self) -> bool {
        self.asked.is_empty()
            && self.gaps.is_empty()
            && self.ask_later.is_none()
            && self.uploading.is_idle()
            && self.sending.values().all(Sending::is_calm)
    }

    async fn look(&mut self, worker: &mut Worker) -> Result<(), Error> {
        let stats = self.session.connection().stats();
        let packets = Packets { sent: stats.udp_tx.datagrams, received: stats.udp_rx.datagrams };
        if self.pulse.is_gone(!self.asked.is_empty(), packets) {
            return Err(Error::Unreachable("the relay does not answer".to_owned()));
        }
        self.acknowledge(worker).await?;
        if self.ask_later.is_some_and(|at| Instant::now() >= at) {
            self.ask_later = None;
            self.ask_receipts(worker)?;
        }
        if self.renew_at.is_some_and(|at| Instant::now() >= at) {
            self.renew_at = None;
            self.renew(worker)?;
        }
        self.uploading.wake();
        let version = worker.inner.store().data_version()?;
        if version == self.looked {
            return Ok(());
        }
        (self.looked, self.room, self.uploading.look) = (version, true, true);
        self.busy_at = Instant::now();
        let asked = worker.inner.store().asked()?;
        for Fetch { id, chat, before, count } in asked {
            if self.asked_for.insert(id) {
                let name = chat.clone();
                self.older(&chat, before, count, move |result| Brought::OlderFor { id, chat: name, result });
            }
        }
        let reads = worker.inner.store().untold_reads()?;
        for (chat, up_to) in reads {
            if self.telling.insert(chat.clone()) {
                let request = Request::MarkRead { chat: chat.clone(), up_to };
                self.errand(request, move |result| Brought::Read { chat, up_to, result });
            }
        }
        Ok(())
    }
}

fn note(all: &mut HashMap<ChatId, Seq>, chat: ChatId, up_to: Seq) {
    all.entry(chat).and_modify(|before| *before = (*before).max(up_to)).or_insert(up_to);
}

impl Incoming {
    fn chat(&self) -> &ChatId {
        match self {
            Self::Entry { chat, .. }
            | Self::Hidden { chat, .. }
            | Self::Gap { chat, .. }
            | Self::Receipt { chat, .. }
            | Self::Sent { chat, .. }
            | Self::Page { chat, .. } => chat,
            Self::Summary(summary) => &summary.chat,
            Self::Info(info) => &info.summary.chat,
        }
    }
}
