//! Reading the log for connected devices that are behind, a page at a time, as fast as they acknowledge.

use super::{Report, Worker, entry_event, event_frame};
use crate::edge::Link;
use crate::store::{Freshness, InboxChange, PageLimit, Snapshot, StoreError};
use godwit_core::Entry;
use godwit_core::inbox::Track;
use godwit_wire::frame::{Event, Range, SeqRange};
use godwit_wire::{ChatId, DeviceId, Seq, UnixMillis, UserId};
use std::sync::Arc;

/// Entries and bytes of one page.
pub(super) const PAGE: PageLimit = PageLimit { entries: 512, bytes: 256 << 10 };
/// Bytes that wait for a device's lanes, above which no further page is read for it.
const QUEUED_BYTES: usize = 512 << 10;

/// A page that was read for a device, or for a region.
#[derive(Debug)]
pub(super) struct PageRead<T> {
    pub(super) device: DeviceId,
    epoch: u64,
    pub(super) chat: ChatId,
    /// Where it begins.
    from: Seq,
    /// None if the store could not be read.
    pub(super) page: Option<T>,
}

#[derive(Debug)]
pub(super) struct Page {
    /// Over an inbox limit: not pushed.
    gap: Option<SeqRange>,
    entries: Vec<Entry>,
    hidden: Vec<SeqRange>,
    /// The last entry the user may see; none if there is nothing for them.
    head: Option<Seq>,
}

/// Which part of a backlog is pushed.
#[derive(Clone, Copy, Debug)]
struct Limits {
    oldest: UnixMillis,
    bytes: u64,
}

impl Worker {
    /// Reads on for a device, if it has room and nothing is being read for it.
    pub(super) fn drain(&mut self, device: &DeviceId) {
        let Some(state) = self.devices.get_mut(device) else { return };
        let Some(link) = state.link.clone() else { return };
        // Half a window, so that live entries find room beside a backlog.
        let full = state.in_flight() >= self.config.window / 2 || link.queued_bytes() >= QUEUED_BYTES;
        if state.reading || full {
            return;
        }
        let Some((chat, track)) = state.next_behind() else { return };
        tracing::trace!(%device, %chat, ?track, "reading on");
        let Some(from) = track.next_to_read() else { return };
        state.reading = true;
        if device.is_region() {
            let region = device.home();
            let read = move |store: &Snapshot, chat: &ChatId| store.region_run(&region, chat, from, PAGE);
            return self.read_page(&link, (chat, from), read, Report::Region);
        }
        // Limits are for what gathered while the device was away, not for what it is just being sent.
        let first = matches!(track, Track::Behind { pushed: None, .. });
        let now = self.clock.now();
        let limits =
            first.then(|| Limits { oldest: now.minus(self.config.inbox_max_age), bytes: self.config.inbox_max_bytes });
        let user = device.user();
        let read = move |store: &Snapshot, chat: &ChatId| read(store, &user, chat, from, limits);
        self.read_page(&link, (chat, from), read, Report::Page);
    }

    fn read_page<T: Send + 'static>(
        &self,
        link: &Link,
        (chat, from): (ChatId, Seq),
        read: impl FnOnce(&Snapshot, &ChatId) -> Result<T, StoreError> + Send + 'static,
        bring: fn(PageRead<T>) -> Report,
    ) {
        let (store, report) = (self.store.clone(), self.report.clone());
        let (device, epoch) = (link.device.clone(), link.epoch);
        tokio::spawn(async move {
            let page = store.read_chat(chat.clone(), read).await;
            let page = page.inspect_err(|error| tracing::warn!(%error, %chat, "a log cannot be read")).ok();
            // Nobody hears it if the relay is stopping.
            let _ = report.send(bring(PageRead { device, epoch, chat, from, page }));
        });
    }

    /// The connection that a page was read for, if it is still the device's. The next page may be read.
    pub(super) fn arrived<T>(&mut self, read: &PageRead<T>) -> Option<Arc<Link>> {
        let state = self.devices.get_mut(&read.device)?;
        let link = state.link.clone().filter(|link| link.epoch == read.epoch)?;
        state.reading = false;
        Some(link)
    }

    /// Where a chat stands that is behind. For one that is not any more, what comes next is read: the device may have
    /// acknowledged meanwhile, and what was read is still what comes next, or lies before it. So for one that turned out
    /// to begin lower.
    pub(super) fn still_behind<T>(&mut self, read: &PageRead<T>) -> Option<Track> {
        let track = self.devices.get(&read.device).and_then(|state| state.track(&read.chat)).copied();
        let track = track.filter(|track| track.next_to_read().is_some_and(|next| read.from <= next));
        if track.is_none() {
            self.drain(&read.device);
        }
        track
    }

    /// A page was pushed up to `covered`, all of it if it `fits`; the chat stood at `track`, and ends with `head`. Reads
    /// on.
    pub(super) fn pushed_up_to(
        &mut self,
        (device, chat): (&DeviceId, &ChatId),
        track: Track,
        covered: Option<Seq>,
        head: Option<Seq>,
        fits: bool,
    ) {
        let after = track.read_up_to(covered, head, self.now());
        if after.is_none() {
            // Where there is nothing for the device, it has taken what its row begins with.
            let (from, to) = (track.first(), head.max(covered).unwrap_or(track.first()));
            self.took(device, chat, InboxChange::TookAll(SeqRange { from, to }));
        }
        if let Some(state) = self.devices.get_mut(device) {
            state.set(chat, after);
        }
        if fits || after != Some(track) {
            self.drain(device);
        }
    }

    pub(super) fn page(&mut self, mut read: PageRead<Page>) {
        let Some(link) = self.arrived(&read) else { return };
        let Some(page) = read.page.take() else {
            // The store is being opened anew; the device comes back to a relay that can read.
            link.close(&StoreError::Closed.refusal());
            return;
        };
        let Some(track) = self.still_behind(&read) else { return };
        let mut covered = None;
        let mut push = |event: &Event, last: Seq| {
            let fits = link.push(&read.chat, Some(last), event_frame(event));
            if fits {
                covered = Some(last);
            }
            fits
        };
        let chat = || read.chat.clone();
        let mut fits = page.gap.is_none_or(|range| push(&Event::Gap { chat: chat(), range }, range.to));
        let mut hidden = page.hidden.iter().peekable();
        let mut pushed = 0;
        for entry in &page.entries {
            while let Some(range) = hidden.next_if(|range| range.from < entry.seq) {
                fits = fits && push(&Event::Hidden { chat: chat(), range: *range }, range.to);
            }
            fits = fits && push(&entry_event(&read.chat, entry), entry.seq);
            pushed += u64::from(fits);
        }
        for range in hidden {
            fits = fits && push(&Event::Hidden { chat: chat(), range: *range }, range.to);
        }
        self.metrics.inbox_drained.inc_by(pushed);
        self.pushed_up_to((&read.device, &read.chat), track, covered, page.head, fits);
    }
}

fn read(store: &Snapshot, user: &UserId, chat: &ChatId, from: Seq, limits: Option<Limits>) -> Result<Page, StoreError> {
    let head = store.head(chat)?;
    let mut start = from;
    if let (Some(limits), Some(head)) = (limits, head) {
        start = first_within(store, chat, from, head, limits)?;
    }
    let gap = start.prev().filter(|_| start > from).map(|to| SeqRange { from, to });
    match store.stretch(user, chat, Range::From(start), PAGE, Freshness::Lately)? {
        Ok(stretch) => Ok(Page { gap, entries: stretch.entries, hidden: stretch.hidden, head: Some(stretch.head) }),
        // No participant, or no chat: there is nothing for the device here.
        Err(_) => Ok(Page { gap: None, entries: Vec::new(), hidden: Vec::new(), head: None }),
    }
}

/// The first entry from `from` on that is young enough, with no more content after it than the limit allows. Both only
/// grow along a log, so it is found by halving.
fn first_within(store: &Snapshot, chat: &ChatId, from: Seq, head: Seq, limits: Limits) -> Result<Seq, StoreError> {
    let Some(last) = store.entry(chat, head)? else { return Ok(from) };
    let within = |seq: Seq| -> Result<bool, StoreError> {
        let Some(entry) = store.entry(chat, seq)? else { return Ok(true) };
        let content = Entry::content_bytes(&entry.body);
        Ok(entry.at >= limits.oldest && last.total_bytes - entry.total_bytes + content <= limits.bytes)
    };
    if from > head || within(from)? {
        return Ok(from);
    }
    let (mut outside, mut inside) = (from, head.next());
    while outside.next() < inside {
        let middle = Seq::new(u64::midpoint(outside.get(), inside.get())).map_err(|_| StoreError::BadKey)?;
        if within(middle)? {
            inside = middle;
        } else {
            outside = middle;
        }
    }
    Ok(inside)
}
