//! Comparing the relay's chats with one's own: after a start, and whole logs after the home's store was restored from a
//! backup. What is here of another past is cut off, fetched anew, and what this device had sent then is sent again.

use super::{Brought, Live, RETRY, note};
use crate::error::Error;
use crate::session::one_shot;
use crate::store::{Here, Incoming};
use crate::worker::Worker;
use godwit_wire::entry::EntryId;
use godwit_wire::frame::{ChatSummary, Event, History, HistoryPage, Range, Reply, Request};
use godwit_wire::{ChatId, Seq, UnixMillis, limits};
use quinn::Connection;
use std::collections::{HashMap, HashSet};
use tokio::time::Instant;

/// How far a chat here and at the relay are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreed {
    /// As far as both reach.
    Whole,
    /// Up to this entry, and not beyond it. Not `surely`, if all that is here stands beyond what the relay has: it may only
    /// be behind.
    UpTo { last: Option<Seq>, surely: bool },
}

/// How far a comparison is.
#[derive(Debug)]
pub(super) struct Comparing {
    /// The home's store has another past than when this device compared last.
    restored: bool,
    /// Chats that the relay named, if so.
    listed: HashSet<ChatId>,
    all_listed: bool,
    /// Chats of which it is being found out how far they are the relay's.
    chats: HashSet<ChatId>,
    /// What came meanwhile: up to where it is fetched afterwards.
    put_off: HashMap<ChatId, Seq>,
}

impl Comparing {
    pub(super) fn new(restored: bool) -> Self {
        Self { restored, listed: HashSet::new(), all_listed: false, chats: HashSet::new(), put_off: HashMap::new() }
    }

    /// Whether an event has to wait until it is known what it follows.
    pub(super) fn puts_off(&mut self, event: &Event) -> bool {
        let (chat, last) = match event {
            Event::Entry { chat, entry } => (chat, entry.seq),
            Event::Hidden { chat, range } | Event::Gap { chat, range } => (chat, range.to),
            _ => return false,
        };
        let doubtful = self.restored || self.is_doubtful(chat);
        if doubtful {
            let put_off = self.put_off.entry(chat.clone()).or_insert(last);
            *put_off = last.max(*put_off);
        }
        doubtful
    }

    /// It is not known how far a chat here is the relay's.
    pub(super) fn is_doubtful(&self, chat: &ChatId) -> bool {
        self.chats.contains(chat)
    }
}

/// Asks for entries of a chat until it is known how far these are the same.
async fn agreed(connection: &Connection, chat: &ChatId, here: &Here, bound: Seq) -> Result<Agreed, Error> {
    let Here { others, own, began } = here;
    let (mut same, mut other) = (0, others.len());
    // Most often all are.
    let mut middle = others.len().saturating_sub(1);
    while same < other {
        if is_same(connection, chat, others[middle]).await? {
            same = middle + 1;
        } else {
            other = middle;
        }
        middle = usize::midpoint(same, other);
    }
    let mut last = same.checked_sub(1).map(|i| others[i].0);
    let end = others.get(same).map(|(seq, _)| *seq);
    let between = |seq: Seq| Some(seq) > last && end.is_none_or(|end| seq < end);
    let own: Vec<_> = own.iter().filter(|(seq, _)| between(*seq)).copied().collect();
    let count = own.len();
    let same = how_many_are_same(connection, chat, &own).await?;
    if let Some((seq, _)) = same.checked_sub(1).map(|i| own[i]) {
        last = Some(seq);
    }
    if let (None, Some(began)) = (last, *began) {
        // What this device began with is lost: it begins with what was written since.
        last = last_before(connection, chat, began).await?;
    }
    // What was hidden beyond the last that is the same may be an entry of the other past.
    let is_whole = end.is_none() && same == count && (began.is_none() || last >= Some(bound));
    let surely = !(others.is_empty() && here.own.is_empty());
    Ok(if is_whole { Agreed::Whole } else { Agreed::UpTo { last, surely } })
}

/// The last entry of the relay's that was written by `time`.
async fn last_before(connection: &Connection, chat: &ChatId, time: UnixMillis) -> Result<Option<Seq>, Error> {
    let mut before = None;
    loop {
        let page = read(connection, chat, Range::Before(before), limits::PAGE_ENTRIES).await?;
        let Some(page) = page else { return Ok(None) };
        if let Some(entry) = page.entries.iter().rev().find(|entry| entry.at <= time) {
            return Ok(Some(entry.seq));
        }
        let first = page.entries.iter().map(|entry| entry.seq).chain(page.hidden.iter().map(|part| part.from));
        before = first.min();
        if before.and_then(Seq::prev).is_none() {
            return Ok(None);
        }
    }
}

/// A page of the relay's log, however long it is busy; none if it gives none.
async fn read(
    connection: &Connection,
    chat: &ChatId,
    range: Range,
    limit: usize,
) -> Result<Option<HistoryPage>, Error> {
    let limit = u16::try_from(limit.min(limits::PAGE_ENTRIES)).unwrap_or(u16::MAX);
    let request = Request::History(History { chat: chat.clone(), range, limit });
    loop {
        match one_shot(connection, &request).await? {
            Reply::HistoryPage(page) => return Ok(Some(page)),
            Reply::Refused(refusal) if refusal.code.is_passing() => {
                tokio::time::sleep(refusal.retry_after().unwrap_or(RETRY)).await;
            }
            Reply::Refused(_) => return Ok(None),
            _ => return Err(Error::Unreachable("history was answered with something else".to_owned())),
        }
    }
}

async fn is_same(connection: &Connection, chat: &ChatId, entry: (Seq, EntryId)) -> Result<bool, Error> {
    Ok(how_many_are_same(connection, chat, &[entry]).await? == 1)
}

/// How many of these entries are the relay's, up to the first that is not.
async fn how_many_are_same(connection: &Connection, chat: &ChatId, here: &[(Seq, EntryId)]) -> Result<usize, Error> {
    let mut same = 0;
    while let Some((seq, _)) = here.get(same) {
        let page = read(connection, chat, Range::From(*seq), here.len() - same).await?;
        let Some(page) = page else { return Ok(same) };
        let before = same;
        let theirs: HashMap<Seq, EntryId> = page.entries.iter().map(|entry| (entry.seq, entry.entry_id())).collect();
        same += here[same..].iter().take_while(|(seq, id)| theirs.get(seq) == Some(id)).count();
        let told = page.entries.last().map(|entry| entry.seq);
        // The first that is not, or was not told: the page was full before it.
        if same == before || here.get(same).is_some_and(|(seq, _)| Some(*seq) <= told) {
            return Ok(same);
        }
    }
    Ok(same)
}

impl Live {
    pub(super) async fn listed(&mut self, worker: &mut Worker, reply: Reply) -> Result<(), Error> {
        let list = match reply {
            Reply::ChatList(list) => list,
            Reply::Refused(refusal) => return Err(refusal.into()),
            _ => return Err(Error::Unreachable("the chats were answered with something else".to_owned())),
        };
        let last = list.chats.last().map(|summary| summary.chat.clone());
        let mut items = Vec::new();
        for summary in list.chats {
            let chat = summary.chat.clone();
            if self.comparing.restored {
                self.comparing.listed.insert(chat.clone());
            }
            let position = worker.position(&chat)?;
            match position.filter(|_| self.comparing.restored) {
                Some(position) => self.compare(worker, &chat, position.min(summary.head), Some(summary))?,
                None => self.known(worker, summary, position, &mut items)?,
            }
        }
        self.take(worker, items).await?;
        if let Some(last) = last.filter(|_| list.more) {
            self.list(Some(last));
        } else {
            self.comparing.all_listed = true;
            self.forget_unlisted(worker)?;
            self.compared(worker)?;
        }
        Ok(())
    }

    /// Finds out how far a chat here is the relay's, up to `last` at most.
    fn compare(
        &mut self,
        worker: &Worker,
        chat: &ChatId,
        last: Seq,
        summary: Option<ChatSummary>,
    ) -> Result<(), Error> {
        // What is not the relay's is not to be built on, whatever was taken on top of it.
        let last = worker.strange.get(chat).map_or(last, |strange| last.min(*strange));
        let here = worker.inner.store().entry_ids(chat, last, &worker.inner.device)?;
        let (connection, chat) = (self.session.connection().clone(), chat.clone());
        self.held.insert(chat.clone());
        self.comparing.chats.insert(chat.clone());
        self.errands.spawn(async move {
            let agreed = agreed(&connection, &chat, &here, last).await;
            Brought::Compared { chat, summary, agreed }
        });
        Ok(())
    }

    /// An entry of the relay's is another than the one here: its chat's home was restored, and nobody said so yet.
    pub(super) fn suspect(&mut self, worker: &mut Worker, chat: ChatId, first: Seq) -> Result<(), Error> {
        if self.comparing.is_doubtful(&chat) {
            return Ok(());
        }
        tracing::warn!(%chat, seq = %first, "the relay has another entry there");
        worker.strange.insert(chat.clone(), first);
        self.compare(worker, &chat, first, None)
    }

    /// Goes on with comparisons that the end of a connection cut off.
    pub(super) fn compare_on(&mut self, worker: &Worker) -> Result<(), Error> {
        // All are compared whole after a restore that was told of.
        let strange = worker.strange.iter().filter(|_| !self.comparing.restored);
        for (chat, first) in strange.map(|(chat, first)| (chat.clone(), *first)).collect::<Vec<_>>() {
            self.compare(worker, &chat, first, None)?;
        }
        Ok(())
    }

    /// Chats that the restored store does not know: whoever made them makes them again.
    fn forget_unlisted(&mut self, worker: &mut Worker) -> Result<(), Error> {
        if !self.comparing.restored {
            return Ok(());
        }
        let chats = worker.inner.store().chats()?;
        for chat in chats.into_iter().map(|row| row.chat).filter(|chat| !self.comparing.listed.contains(chat)) {
            tracing::warn!(%chat, "the home's store does not know the chat any more");
            worker.inner.store().cut_back(&chat, None, worker.is_home_of(&chat))?;
            worker.orders.chats.remove(&chat);
            worker.unacknowledged.remove(&chat);
        }
        self.comparing.listed.clear();
        Ok(())
    }

    /// A chat as the relay knows it, of which nothing here is of another past.
    fn known(
        &mut self,
        worker: &mut Worker,
        summary: ChatSummary,
        position: Option<Seq>,
        items: &mut Vec<Incoming>,
    ) -> Result<(), Error> {
        // The relay waits for an acknowledgement of what is here already.
        if let Some(position) = position.filter(|position| *position >= summary.next) {
            note(&mut worker.unacknowledged, summary.chat.clone(), position.min(summary.head));
        }
        if position < Some(summary.head) {
            self.held.insert(summary.chat.clone());
        }
        if summary.role.is_some() && !worker.inner.store().knows_participants(&summary.chat)? {
            self.ask_info(summary.chat.clone(), None);
        }
        self.gaps.insert(summary.chat.clone(), Instant::now());
        items.push(Incoming::Summary(summary));
        Ok(())
    }

    /// It was found out how far a chat here is the relay's.
    pub(super) async fn agreed(
        &mut self,
        worker: &mut Worker,
        chat: ChatId,
        summary: Option<ChatSummary>,
        agreed: Agreed,
    ) -> Result<(), Error> {
        let position = worker.position(&chat)?;
        let cut = match (agreed, &summary) {
            (Agreed::UpTo { last, .. }, Some(summary)) => Some(last.min(Some(summary.head))),
            (Agreed::UpTo { last, .. }, None) => Some(last),
            (Agreed::Whole, Some(summary)) => Some(summary.head).filter(|head| position > Some(*head)).map(Some),
            (Agreed::Whole, None) => None,
        };
        if let Some(last) = cut {
            tracing::warn!(%chat, ?last, "what is here is of another past from there on");
            let surely = matches!(agreed, Agreed::UpTo { surely: true, .. }) || worker.is_home_of(&chat);
            worker.inner.store().cut_back(&chat, last, surely)?;
            worker.orders.chats.remove(&chat);
            worker.unacknowledged.remove(&chat);
            self.ask_info(chat.clone(), None);
            // What the store lost waits again, under numbers below those written on this connection.
            self.sending.entry(chat.clone()).or_default().begin_again(Instant::now());
        }
        self.comparing.chats.remove(&chat);
        worker.strange.remove(&chat);
        self.gaps.insert(chat.clone(), Instant::now());
        if let Some(last) = self.comparing.put_off.remove(&chat) {
            self.was_put_off(worker, chat.clone(), last)?;
        }
        if let Some(summary) = summary {
            self.held.remove(&chat);
            let position = worker.position(&chat)?;
            let mut items = Vec::new();
            self.known(worker, summary, position, &mut items)?;
            self.take(worker, items).await?;
        }
        self.compared(worker)
    }

    /// A chat reaches to an entry that was not taken as it came.
    pub(super) fn reaches(&mut self, worker: &mut Worker, chat: &ChatId, last: Seq) -> Result<(), Error> {
        match worker.order(chat)? {
            Some(order) => order.reaches(last),
            None => self.ask_info(chat.clone(), None),
        }
        self.gaps.insert(chat.clone(), Instant::now());
        Ok(())
    }

    /// Entries up to `last` came while it was not known what they follow.
    fn was_put_off(&mut self, worker: &mut Worker, chat: ChatId, last: Seq) -> Result<(), Error> {
        self.reaches(worker, &chat, last)?;
        // The relay waits for an acknowledgement of what was here before.
        if let Some(position) = worker.position(&chat)?.filter(|position| *position >= last) {
            note(&mut worker.unacknowledged, chat, position);
        }
        Ok(())
    }

    /// Goes on once everything is compared.
    fn compared(&mut self, worker: &mut Worker) -> Result<(), Error> {
        if !self.comparing.all_listed || !self.comparing.chats.is_empty() {
            return Ok(());
        }
        if self.comparing.restored {
            self.comparing.restored = false;
            // Only now: a comparison that was cut off begins again.
            worker.inner.store().set_generation(self.welcome.store_generation)?;
            for (chat, last) in std::mem::take(&mut self.comparing.put_off) {
                self.was_put_off(worker, chat, last)?;
            }
        }
        worker.inner.store().set_listed()?;
        worker.compared = true;
        self.room = true;
        worker.inner.set_synced();
        Ok(())
    }
}
