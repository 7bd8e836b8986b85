//! Reads, on a snapshot beside the writer.

use super::chats::{last_entry, participants};
use super::keys::{self, Key, Parts, Span};
use super::rows::{Freshness, Order, Records, Rows, Scan, decode};
use super::tables::{
    CHATS, CURSORS, ChatRow, DEVICES, DIRTY, Floor, INBOX, LOG, Marks, PARTICIPANTS, REVOCATIONS, USER_CHATS, Watermark,
};
use super::{Base, StoreError, marks, meta};
use godwit_core::device::Revocation;
use godwit_core::inbox::InboxRow;
use godwit_core::participant::Visibility;
use godwit_core::{Chat, Device, Entry, Participant};
use godwit_wire::entry::Member;
use godwit_wire::frame::{ChatInfo, ChatList, ChatSummary, HistoryPage, Range, SeqRange};
use godwit_wire::{ChatId, Code, DeviceId, Refusal, RegionId, Seq, UnixMillis, UserId, limits};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What the store held at one moment; of a shared store, what it holds.
pub(crate) struct Snapshot {
    now: Box<dyn Rows + Send>,
}

/// A stretch of a chat's log as one user may see it.
#[derive(Debug)]
pub(crate) struct Stretch {
    /// Ascending.
    pub(crate) entries: Vec<Entry>,
    /// What lies between them and is not for this user.
    pub(crate) hidden: Vec<SeqRange>,
    /// The last entry this user may see.
    pub(crate) head: Seq,
}

/// Entries of a chat for one region.
#[derive(Debug, Default)]
pub(crate) struct RegionRun {
    /// The chat as it is, if the region takes part anew with the first entry.
    pub(crate) base: Option<Base>,
    /// Ascending, without a hole.
    pub(crate) entries: Vec<Entry>,
    /// Everything up to here is in `entries`, or not for the region.
    pub(crate) covered: Option<Seq>,
    /// The end of the log.
    pub(crate) head: Option<Seq>,
}

/// How much one page takes at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageLimit {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
}

/// A chat whose log may reach beyond what is settled.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) chat: ChatId,
    pub(crate) entries: Vec<(Entry, Arc<[UserId]>)>,
}

impl Snapshot {
    pub(super) fn new(now: impl Rows + Send + 'static) -> Self {
        Self { now: Box::new(now) }
    }

    pub(super) fn rows(&self) -> &dyn Rows {
        &*self.now
    }

    pub(crate) fn device(&self, device: &DeviceId) -> Result<Option<Device>, StoreError> {
        self.rows().get(DEVICES, &Key::new().device(device).bytes())
    }

    /// A user's devices that are not revoked, with their enrolments.
    pub(crate) fn devices(&self, user: &UserId) -> Result<Vec<(DeviceId, u32)>, StoreError> {
        let mut devices = Vec::new();
        for (key, record) in self.rows().all(DEVICES, &Key::new().user(user).prefix())? {
            if !record.revoked {
                devices.push((Parts(&key).device()?, record.enrolment));
            }
        }
        Ok(devices)
    }

    /// The inbox rows of all devices of a user.
    pub(crate) fn inbox_of_user(
        &self,
        user: &UserId,
        freshness: Freshness,
    ) -> Result<Vec<(DeviceId, ChatId, InboxRow)>, StoreError> {
        let mut rows = Vec::new();
        for (key, row) in self.rows().some(INBOX, &Key::new().user(user).prefix(), Scan { freshness, ..Scan::ALL })? {
            let mut parts = Parts(&key);
            rows.push((parts.device()?, parts.chat()?, row));
        }
        Ok(rows)
    }

    /// The first `limit` inbox rows of all: who has not taken which chat, from where on.
    pub(crate) fn inbox(&self, limit: usize) -> Result<Vec<(DeviceId, ChatId, Seq)>, StoreError> {
        let mut rows = Vec::new();
        for (key, row) in self.rows().first(INBOX, &Span::ALL, limit)? {
            let mut parts = Parts(&key);
            rows.push((parts.device()?, parts.chat()?, row.from));
        }
        Ok(rows)
    }

    /// Reads as little as there is to read.
    pub(crate) fn answers(&self) -> Result<(), StoreError> {
        meta::get(self.rows(), meta::FORMAT).map(drop)
    }

    pub(crate) fn head(&self, chat: &ChatId) -> Result<Option<Seq>, StoreError> {
        Ok(last_entry(self.rows(), chat)?.map(|entry| entry.seq))
    }

    pub(crate) fn entry(&self, chat: &ChatId, seq: Seq) -> Result<Option<Entry>, StoreError> {
        self.rows().get(LOG, &keys::log(chat, seq))
    }

    pub(super) fn participant(&self, chat: &ChatId, user: &UserId) -> Result<Option<Participant>, StoreError> {
        self.rows().get(PARTICIPANTS, &Key::new().chat(chat).user(user).bytes())
    }

    /// Who belongs to the chat now, with how far each got.
    pub(crate) fn watermarks(&self, chat: &ChatId) -> Result<BTreeMap<UserId, Watermark>, StoreError> {
        let mut saved = Marks::new();
        marks::each(self.rows(), &Key::new().chat(chat).prefix(), |_, user, mark| {
            saved.entry(user).or_default().rise(mark);
            Ok(())
        })?;
        let mut all = BTreeMap::new();
        for (user, row) in participants(self.rows(), chat)? {
            if row.is_present() {
                let mut mark = saved.remove(&user).unwrap_or_default();
                // What came before somebody joined is not theirs to take.
                mark.rise(Watermark { delivered: row.since().prev(), read: row.since().prev() });
                all.insert(user, mark);
            }
        }
        Ok(all)
    }

    /// How far the slowest got, as it was saved last.
    pub(crate) fn floors(&self, chat: &ChatId) -> Result<(Option<Floor>, Option<Floor>), StoreError> {
        let cursor = self.rows().get(CURSORS, &Key::new().chat(chat).bytes())?.unwrap_or_default();
        Ok((cursor.delivered, cursor.read))
    }

    /// A page of history.
    pub(crate) fn history(
        &self,
        user: &UserId,
        chat: &ChatId,
        range: Range,
        limit: usize,
    ) -> Result<Result<HistoryPage, Refusal>, StoreError> {
        let limit = PageLimit { entries: limit, bytes: limits::PAGE_BYTES };
        // Of something erased a moment ago, nobody is to see what it was.
        Ok(self.stretch(user, chat, range, limit, Freshness::Now)?.map(|stretch| HistoryPage {
            entries: stretch.entries.iter().map(Entry::to_wire).collect(),
            hidden: stretch.hidden,
            head: stretch.head,
        }))
    }

    pub(crate) fn stretch(
        &self,
        user: &UserId,
        chat: &ChatId,
        range: Range,
        limit: PageLimit,
        freshness: Freshness,
    ) -> Result<Result<Stretch, Refusal>, StoreError> {
        let (Some(row), Some(log_head)) = (self.participant(chat, user)?, self.head(chat)?) else {
            return Ok(Err(Code::NotParticipant.into()));
        };
        let head = row.visible_head(log_head);
        let mut page = Page { limit, bytes: 0, entries: Vec::new(), hidden: Vec::new() };
        match range {
            Range::From(from) if from <= head => {
                for (part, visibility) in row.cut(SeqRange { from, to: head }) {
                    if page.is_full() {
                        break;
                    }
                    if visibility == Visibility::Hidden {
                        page.hidden.push(part);
                        continue;
                    }
                    match freshness {
                        Freshness::Now => page.take(self.rows(), &keys::log_span(chat, part), Order::Ascending)?,
                        Freshness::Lately => page.take_lately(self.rows(), chat, part)?,
                    }
                }
            }
            Range::Before(before) => {
                let to = match before {
                    Some(before) => before.prev().map(|to| to.min(head)),
                    None => Some(head),
                };
                let parts = to.map(|to| row.cut(SeqRange { from: Seq::FIRST, to })).unwrap_or_default();
                for (part, visibility) in parts.into_iter().rev() {
                    if page.is_full() {
                        break;
                    }
                    if visibility == Visibility::Hidden {
                        page.hidden.push(part);
                        continue;
                    }
                    page.take(self.rows(), &keys::log_span(chat, part), Order::Descending)?;
                }
                page.entries.reverse();
                page.hidden.reverse();
            }
            Range::From(_) => {}
        }
        Ok(Ok(Stretch { entries: page.entries, hidden: page.hidden, head }))
    }

    fn summary(&self, user: &UserId, device: &DeviceId, chat: &ChatId) -> Result<Option<ChatSummary>, StoreError> {
        let Some(row) = self.participant(chat, user)? else { return Ok(None) };
        let key = Key::new().chat(chat).bytes();
        let (Some(record), Some(log_head)) = (self.rows().get(CHATS, &key)?, self.head(chat)?) else {
            return Err(StoreError::Inconsistent("a participant of a chat that is not there"));
        };
        let inbox = self.rows().get(INBOX, &Key::new().device(device).chat(chat).bytes())?;
        let cursor = self.rows().get(CURSORS, &key)?.unwrap_or_default();
        let head = row.visible_head(log_head);
        Ok(Some(ChatSummary {
            chat: chat.clone(),
            kind: record.kind,
            title: record.title,
            role: row.present_role(),
            head,
            next: inbox.map_or(head.next(), |row| row.from),
            receipt: cursor.receipt(user),
        }))
    }

    pub(crate) fn list_chats(
        &self,
        device: &DeviceId,
        after: Option<&ChatId>,
        limit: usize,
    ) -> Result<ChatList, StoreError> {
        let user = device.user();
        let all = Key::new().user(&user).prefix();
        let prefix = all.start.len();
        let span = match after {
            Some(after) => all.after(Key::new().user(&user).chat(after).bytes()),
            None => all,
        };
        let mut rows = self.rows().first(USER_CHATS, &span, limit + 1)?;
        let mut list = ChatList { chats: Vec::new(), more: rows.len() > limit };
        rows.truncate(limit);
        for (key, ()) in rows {
            let chat = Parts(&key[prefix..]).chat()?;
            list.chats.extend(self.summary(&user, device, &chat)?);
        }
        Ok(list)
    }

    pub(crate) fn chat_info(&self, device: &DeviceId, chat: &ChatId) -> Result<Result<ChatInfo, Refusal>, StoreError> {
        let user = device.user();
        let Some(summary) = self.summary(&user, device, chat)? else { return Ok(Err(Code::NotParticipant.into())) };
        let mut present = Vec::new();
        if summary.role.is_some() {
            for (user, row) in participants(self.rows(), chat)? {
                present.extend(row.present_role().map(|role| Member { user, role }));
            }
        }
        Ok(Ok(ChatInfo { summary, participants: present }))
    }

    /// Chats on the dirty list after `after`, at most `limit`: where fan-out goes on after a crash.
    pub(crate) fn dirty(&self, after: Option<&ChatId>, limit: usize) -> Result<Vec<ChatId>, StoreError> {
        let span = after.map_or(Span::ALL, |chat| Span::ALL.after(Key::new().chat(chat).bytes()));
        self.rows().first(DIRTY, &span, limit)?.iter().map(|(key, ())| Parts(key).chat()).collect()
    }

    /// The entries of `chat` that are not settled, from `from` if that is later, with the recipients of each.
    pub(crate) fn unsettled(
        &self,
        chat: &ChatId,
        from: Option<Seq>,
        limit: PageLimit,
    ) -> Result<Unsettled, StoreError> {
        let key = Key::new().chat(chat).bytes();
        let cursor = self.rows().get(CURSORS, &key)?.unwrap_or_default();
        let first = cursor.settled.map_or(Seq::FIRST, Seq::next).max(from.unwrap_or(Seq::FIRST));
        self.with_recipients(chat, first, limit)
    }

    /// The entries of `chat` from `first` on, with the recipients of each.
    pub(crate) fn with_recipients(&self, chat: &ChatId, first: Seq, limit: PageLimit) -> Result<Unsettled, StoreError> {
        let key = Key::new().chat(chat).bytes();
        let mut page = Page { limit, bytes: 0, entries: Vec::new(), hidden: Vec::new() };
        page.take(self.rows(), &keys::log_from(chat, first), Order::Ascending)?;
        let (Some(last), Some(row)) = (last_entry(self.rows(), chat)?, self.rows().get(CHATS, &key)?) else {
            return Ok(Unsettled { chat: chat.clone(), entries: Vec::new() });
        };
        let rows = participants(self.rows(), chat)?;
        let state = Chat::from_records(chat.clone(), row.kind, row.title, row.created_at, rows, &last);
        let entries = page.entries.into_iter().map(|entry| {
            let recipients = state.recipients_at(entry.seq);
            (entry, recipients)
        });
        Ok(Unsettled { chat: chat.clone(), entries: entries.collect() })
    }

    /// The next entries from `from` on that are for users of `region`: a run without a hole.
    pub(crate) fn region_run(
        &self,
        region: &RegionId,
        chat: &ChatId,
        from: Seq,
        limit: PageLimit,
    ) -> Result<RegionRun, StoreError> {
        let row = self.rows().get(CHATS, &Key::new().chat(chat).bytes())?;
        let (Some(last), Some(row)) = (last_entry(self.rows(), chat)?, row) else { return Ok(RegionRun::default()) };
        let rows = participants(self.rows(), chat)?;
        let takes_part = |seq: Seq| rows.iter().any(|(user, row)| user.is_home(region) && row.sees(seq));
        let mut run = RegionRun { head: Some(last.seq), ..RegionRun::default() };
        let mut first = from;
        while first <= last.seq && !takes_part(first) {
            run.covered = Some(first);
            first = first.next();
        }
        let mut page = Page { limit, bytes: 0, entries: Vec::new(), hidden: Vec::new() };
        if first <= last.seq {
            page.take_lately(self.rows(), chat, SeqRange { from: first, to: last.seq })?;
        }
        run.entries = page.entries;
        let ends = run.entries.iter().position(|entry| !takes_part(entry.seq)).unwrap_or(run.entries.len());
        run.entries.truncate(ends);
        run.covered = run.entries.last().map(|entry| entry.seq).or(run.covered);
        if !run.entries.is_empty() && first.prev().is_some_and(|before| !takes_part(before)) {
            let ChatRow { kind, title, created_at } = row;
            let participants = rows.into_iter().collect();
            run.base = Some(Base { as_of: last.seq, kind, title, created_at, participants });
        }
        Ok(run)
    }

    /// Revocations from `since` on, of every region.
    pub(crate) fn revocations(&self, since: UnixMillis) -> Result<Vec<Revocation>, StoreError> {
        let rows = self.rows().all(REVOCATIONS, &Span::from(Key::new().number(since.0).bytes()))?;
        Ok(rows.into_iter().map(|(_, revocation)| revocation).collect())
    }

    /// Which of `users`, whose home this is, were never enrolled.
    pub(crate) fn missing(&self, users: &[UserId]) -> Result<Vec<UserId>, StoreError> {
        let mut missing = Vec::new();
        for user in users {
            if self.rows().is_empty(DEVICES, &Key::new().user(user).prefix())? {
                missing.push(user.clone());
            }
        }
        Ok(missing)
    }

    /// Totals over the inboxes, for metrics. Reads every row: for now and then.
    pub(crate) fn inbox_totals(&self) -> Result<InboxTotals, StoreError> {
        let mut totals = InboxTotals::default();
        let mut heads: BTreeMap<ChatId, u64> = BTreeMap::new();
        self.rows().each(INBOX, &Span::ALL, |key, row| {
            let mut parts = Parts(key);
            let (_, chat) = (parts.device()?, parts.chat()?);
            totals.rows += 1;
            let head = if let Some(bytes) = heads.get(&chat) {
                *bytes
            } else {
                let bytes = last_entry(self.rows(), &chat)?.map_or(0, |entry| entry.total_bytes);
                heads.insert(chat.clone(), bytes);
                bytes
            };
            let taken = match row.from.prev() {
                Some(seq) => self.entry(&chat, seq)?.map_or(0, |entry| entry.total_bytes),
                None => 0,
            };
            if head > taken {
                totals.bytes += head - taken;
                let oldest = totals.oldest.map_or(row.since, |oldest: godwit_wire::UnixMillis| oldest.min(row.since));
                totals.oldest = Some(oldest);
            }
            Ok(())
        })?;
        Ok(totals)
    }
}

/// What all inboxes hold together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InboxTotals {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) oldest: Option<godwit_wire::UnixMillis>,
}

struct Page {
    limit: PageLimit,
    bytes: usize,
    entries: Vec<Entry>,
    hidden: Vec<SeqRange>,
}

impl Page {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.limit.entries
            || self.bytes >= self.limit.bytes
            || self.hidden.len() >= limits::RANGES
    }

    /// Takes entries of a part of the log that is whole, as [`Page::take`], each as it was a moment ago, perhaps: whoever
    /// gets them in their order gets what came of them since later. If they are not all there, they are read as they are now.
    fn take_lately(&mut self, rows: &dyn Rows, chat: &ChatId, part: SeqRange) -> Result<(), StoreError> {
        let span = keys::log_span(chat, part);
        let (before, bytes) = (self.entries.len(), self.bytes);
        let room = self.limit.entries.saturating_sub(before);
        let mut next = part.from;
        let lately = Scan { most: room, freshness: Freshness::Lately, ..Scan::ALL };
        rows.scan(LOG.id, &span, lately, &mut |_, value| {
            let entry: Entry = decode(value)?;
            if entry.seq != next {
                return Ok(ControlFlow::Break(()));
            }
            next = next.next();
            self.bytes += value.len();
            self.entries.push(entry);
            Ok(if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if self.is_full() || next > part.to {
            return Ok(());
        }
        self.entries.truncate(before);
        self.bytes = bytes;
        self.take(rows, &span, Order::Ascending)
    }

    /// Takes entries as long as there is room, at least one if there is any.
    fn take(&mut self, rows: &dyn Rows, part: &Span, order: Order) -> Result<(), StoreError> {
        let room = self.limit.entries.saturating_sub(self.entries.len());
        rows.scan(LOG.id, part, Scan { order, most: room, ..Scan::ALL }, &mut |_, value| {
            self.bytes += value.len();
            self.entries.push(decode(value)?);
            Ok(if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    }
}
