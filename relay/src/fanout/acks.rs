//! Acknowledgements: what a device has taken, how far its user got, and what becomes of those who do not acknowledge.

use super::chat::Loaded;
use super::device::DeviceFan;
use super::{Deferred, Report, Worker};
use crate::edge::Link;
use crate::store::InboxChange;
use godwit_core::inbox::{Open, Progress, Row, Track};
use godwit_wire::frame::SeqRange;
use godwit_wire::{ChatId, DeviceId, Seq, UserId};
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

/// A device that did not acknowledge what it was sent again may take so many times longer before it is sent once more.
const ASLEEP: u64 = 12;

impl Worker {
    /// A user took or read a chat up to `up_to`; with `link`, on this connection.
    pub(super) fn reached(&mut self, user: &UserId, link: Option<&Arc<Link>>, chat: ChatId, up_to: Seq, read: bool) {
        let fan = self.chats.entry(chat.clone()).or_default();
        // Of a store that is shared, another relay may have committed what this one has not heard of.
        let is_news = self.store.is_shared() && fan.known_head().is_some_and(|head| head < up_to);
        if is_news && fan.loaded == Loaded::Yes {
            fan.loaded = Loaded::No;
        }
        let head = fan.known_head().filter(|_| !is_news);
        self.reached_of(head, user, link, chat, up_to, read);
    }

    /// As [`Worker::reached`], of a chat whose head is `head`, if that is known.
    pub(super) fn reached_of(
        &mut self,
        head: Option<Seq>,
        user: &UserId,
        link: Option<&Arc<Link>>,
        chat: ChatId,
        up_to: Seq,
        read: bool,
    ) {
        let now = self.now();
        let copy = *chat.home() != self.region;
        let fan = self.chats.entry(chat.clone()).or_default();
        fan.active_millis = now;
        let Some(head) = head else {
            self.deferred.entry(chat.clone()).or_default().push(Deferred {
                user: user.clone(),
                link: link.cloned(),
                up_to,
                read,
            });
            self.load_chat(&chat);
            return;
        };
        // Nobody has taken what does not exist.
        let up_to = up_to.min(head);
        fan.reached(user, up_to, read, copy);
        let loaded = fan.loaded;
        if let Some(link) = link {
            self.taken(link, &chat, up_to);
        }
        if loaded == Loaded::No {
            self.load_chat(&chat);
        }
    }

    /// A device, or a region, has everything up to `up_to`.
    pub(super) fn taken(&mut self, link: &Arc<Link>, chat: &ChatId, up_to: Seq) {
        let now = self.now();
        let Some(state) = self.devices.get_mut(&link.device) else { return };
        if state.link.as_ref().is_none_or(|current| current.epoch != link.epoch) {
            return;
        }
        link.taken(chat, up_to);
        let Some(mut track) = state.track(chat).copied() else { return };
        if let Track::Live { open, .. } = &track {
            let waited = Duration::from_millis(now.saturating_sub(open.since_millis));
            self.metrics.delivery_latency.observe(waited.as_secs_f64());
        }
        let range = SeqRange { from: track.first(), to: up_to };
        let progress = track.acknowledge(up_to, now);
        tracing::trace!(device = %link.device, %chat, %up_to, ?progress, "taken");
        state.set(chat, if matches!(progress, Progress::Done(_)) { None } else { Some(track) });
        match progress {
            Progress::Done(row) => {
                if let Some(fan) = self.chats.get_mut(chat) {
                    fan.waiting.remove(&link.device);
                }
                if row == Row::Written {
                    self.took(&link.device, chat, InboxChange::TookAll(range));
                }
            }
            Progress::Moved(_) if !matches!(track, Track::Live { row: Row::None, .. }) => {
                self.took(&link.device, chat, InboxChange::Took(range));
            }
            Progress::Moved(_) | Progress::Same => {}
        }
    }

    /// A row moves on, or goes. What waits to be done to it was as far as the row is known to begin.
    pub(super) fn took(&mut self, device: &DeviceId, chat: &ChatId, mut change: InboxChange) {
        let waits = self.moves.entry((device.clone(), chat.clone()));
        if let InboxChange::Took(range) | InboxChange::TookAll(range) = &mut change
            && let Entry::Occupied(earlier) = &waits
            && let InboxChange::Took(earlier) | InboxChange::TookAll(earlier) = earlier.get()
        {
            range.from = range.from.min(earlier.from);
        }
        waits.insert_entry(change);
    }

    /// The row of a device begins at `from`: lower than was known, or it stays for what came since it was to go.
    pub(super) fn row_stays(&mut self, device: &DeviceId, chat: &ChatId, from: Seq) {
        let owns = self.owns(chat);
        let Some(state) = self.devices.get_mut(device).filter(|_| owns) else { return };
        if let Some(found) = self.found.get_mut(chat) {
            found.remove(device);
        }
        let track = state.track(chat).copied();
        let lower = track.is_none_or(|track| from < track.first());
        match track {
            Some(Track::Live { open, .. }) if !lower => {
                state.set(chat, Some(Track::Live { open, row: Row::Written }));
            }
            Some(Track::Behind { .. }) if !lower => {}
            track => {
                let latest = track.and_then(|track| track.latest());
                state.set(chat, Some(Track::Behind { from, pushed: None, latest }));
                if let Some(link) = &state.link {
                    link.rewind(chat);
                }
                if let Some(fan) = self.chats.get_mut(chat) {
                    fan.waiting.remove(device);
                }
            }
        }
        self.drain(device);
    }

    pub(super) fn load_chat(&mut self, chat: &ChatId) {
        let Some(fan) = self.chats.get_mut(chat) else { return };
        if fan.loaded == Loaded::Asked {
            return;
        }
        fan.loaded = Loaded::Asked;
        let (store, report, chat) = (self.store.clone(), self.report.clone(), chat.clone());
        tokio::spawn(async move {
            let id = chat.clone();
            let read = store.read(move |store| Ok((store.head(&id)?, store.watermarks(&id)?, store.floors(&id)?)));
            let result = match read.await {
                Ok((head, watermarks, floors)) => Report::Loaded { chat, head, watermarks, floors },
                Err(_) => Report::LoadFailed { chat },
            };
            // Nobody hears it if the relay is stopping.
            let _ = report.send(result);
        });
    }

    /// Whoever did not acknowledge in time gets a row, and nobody waits for it any more.
    pub(super) fn time_out(&mut self, now: u64) {
        let limit = self.ack_limit();
        let mut late = Vec::new();
        for (chat, fan) in &self.chats {
            for device in &fan.waiting {
                if let Some(Track::Live { open, .. }) = self.devices.get(device).and_then(|d| d.track(chat))
                    && now.saturating_sub(open.since_millis) >= limit
                {
                    late.push((device.clone(), chat.clone(), *open));
                }
            }
        }
        self.late(late);
    }

    /// What was read from the log for another relay has a row, and may have got lost on the way all the same.
    pub(super) fn send_again(&mut self, now: u64) {
        let limit = self.ack_limit();
        let remote = |state: &DeviceFan| state.link.as_ref().is_some_and(|link| link.remote_epoch().is_some());
        let mut late = Vec::new();
        for (device, state) in self.devices.iter().filter(|(_, state)| remote(state)) {
            // A device may be asleep; a region is not.
            let limit = if device.is_region() { limit } else { limit * ASLEEP };
            for (chat, track) in state.tracks() {
                if let Track::Live { open, row: Row::Written } = track
                    && now.saturating_sub(open.since_millis) >= limit
                {
                    late.push((device.clone(), chat.clone(), *open));
                }
            }
        }
        self.late(late);
    }

    fn ack_limit(&self) -> u64 {
        u64::try_from(self.config.ack_timeout.as_millis()).unwrap_or(u64::MAX)
    }

    fn late(&mut self, late: Vec<(DeviceId, ChatId, Open)>) {
        for (device, chat, open) in late {
            let owns = self.owns(&chat);
            let Some(state) = self.devices.get_mut(&device) else { continue };
            if !owns {
                // The owner hears what the device takes, and finds the row.
                state.set(&chat, None);
                self.begin_row(&device, &chat, open.first);
                continue;
            }
            match state.link.as_ref().filter(|link| link.remote_epoch().is_some()) {
                // What is pushed to another relay may get lost on the way: it is read again.
                Some(link) => {
                    link.rewind(&chat);
                    state.set(&chat, Some(Track::Behind { from: open.first, pushed: None, latest: Some(open.last) }));
                }
                None => {
                    state.set(&chat, Some(Track::Live { open, row: Row::Written }));
                }
            }
            self.begin_row(&device, &chat, open.first);
            self.drain(&device);
        }
    }
}
