//! Other regions as recipients: the home of a chat sends its log to the home of every participant, as it sends it to
//! devices, with a row for a region that is behind. What is told back is how far that region's users got, and to it how
//! far everybody did.

use super::chat::Floors;
use super::drain::PageRead;
use super::{Report, Worker, entry_event, event_frame};
use crate::edge::Link;
use crate::peers::PeerLink;
use crate::peers::frame::PeerFrame;
use crate::router::chat_key;
use crate::store::{PageLimit, RegionRun, Unsettled, Watermark};
use bytes::Bytes;
use godwit_core::Entry;
use godwit_core::entry::encode_record;
use godwit_core::inbox::Track;
use godwit_wire::{ChatId, DeviceId, RegionId, Seq, UserId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Of a chat, what is given to users whose home went away; what comes later finds its way by the gap it leaves.
const UNTAKEN: PageLimit = PageLimit { entries: 512, bytes: 1 << 20 };

/// Something about a chat that another region was told.
#[derive(Debug)]
pub(super) struct Told {
    chat: ChatId,
    region: RegionId,
    telling: Telling,
    taken: bool,
}

#[derive(Debug)]
enum Telling {
    Marks(Vec<(UserId, Watermark)>),
    Floors(Floors),
}

/// An entry as it travels between regions.
pub(super) fn record(entry: &Entry) -> Bytes {
    encode_record(entry).into()
}

/// The regions, other than `own`, that are to get an entry of the chat for its recipients. Of a copy nobody else is served.
pub(super) fn abroad(own: &RegionId, chat: &ChatId, recipients: &[UserId]) -> Vec<UserId> {
    if chat.home() != own {
        return Vec::new();
    }
    let regions: BTreeSet<RegionId> = recipients.iter().filter(|user| !user.is_home(own)).map(UserId::home).collect();
    regions.iter().map(UserId::of_region).collect()
}

/// Who is to be served from here: users of this region, and regions.
pub(super) fn served<'a>(
    own: &RegionId,
    recipients: &'a [UserId],
    abroad: &'a [UserId],
) -> impl Iterator<Item = &'a UserId> {
    recipients.iter().filter(|user| user.is_home(own)).chain(abroad)
}

impl Worker {
    pub(super) fn region_page(&mut self, mut read: PageRead<RegionRun>) {
        let Some(link) = self.arrived(&read) else { return };
        // The next look finds a store that can be read again.
        let Some(mut run) = read.page.take() else { return };
        let Some(mut track) = self.still_behind(&read) else { return };
        let mut covered = run.covered.filter(|_| run.entries.is_empty());
        if matches!(track, Track::Behind { pushed: None, .. })
            && let Some(up_to) = covered.take()
        {
            // Nothing is on its way, and none of this is for the region's users: it has nothing to acknowledge.
            self.taken(&link, &read.chat, up_to);
            let Some(moved) = self.still_behind(&read) else { return };
            track = moved;
        }
        let mut fits = true;
        for entry in &run.entries {
            fits = fits && link.replicate(&read.chat, run.base.take(), entry.seq, record(entry));
            if fits {
                covered = Some(entry.seq);
            }
        }
        self.pushed_up_to((&read.device, &read.chat), track, covered, run.head, fits);
    }

    /// A region does not have what came before what it got, or lost it. On whatever link it said so, it is to get it.
    pub(super) fn lacks(&mut self, region: &RegionId, chat: &ChatId, have: Option<Seq>) {
        let device = DeviceId::of_region(region);
        let state = self.devices.entry(device.clone()).or_default();
        let from = have.map_or(Seq::FIRST, Seq::next);
        if let Some(link) = &state.link {
            link.rewind(chat);
        }
        state.set(chat, Some(Track::Behind { from, pushed: None, latest: None }));
        self.begin_row(&device, chat, from);
        self.drain(&device);
    }

    /// How far users of another region got, as their home says.
    pub(super) fn reached_elsewhere(&mut self, region: &RegionId, chat: &ChatId, marks: Vec<(UserId, Watermark)>) {
        if *chat.home() != self.region {
            return;
        }
        for (user, mark) in marks.into_iter().filter(|(user, _)| user.is_home(region)) {
            if let Some(delivered) = mark.delivered {
                self.reached(&user, None, chat.clone(), delivered, false);
            }
            if let Some(read) = mark.read {
                self.reached(&user, None, chat.clone(), read, true);
            }
        }
    }

    /// How far everybody got in a chat, as its home says.
    pub(super) fn floors(&mut self, chat: &ChatId, floors: Floors) {
        let now = self.now();
        let fan = self.chats.entry(chat.clone()).or_default();
        fan.active_millis = now;
        fan.set_floors(floors);
        self.load_chat(chat);
    }

    fn region_link(&self, region: &RegionId) -> Option<&Arc<Link>> {
        self.devices.get(&DeviceId::of_region(region))?.link.as_ref()
    }

    /// The relay of a region that is told: the owner of a chat at home there, and whoever keeps the region's copies.
    fn who_hears(&self, region: &RegionId, chat: &ChatId, telling: &Telling) -> Option<Arc<PeerLink>> {
        match (telling, &self.cluster) {
            (Telling::Marks(_), Some(cluster)) => cluster.peers.get(&cluster.owner(region, &chat_key(chat))?),
            _ => self.region_link(region)?.peer().cloned(),
        }
    }

    /// Tells the homes of chats how far this region's users got, and other regions how far everybody did.
    pub(super) fn tell_regions(&mut self) {
        let mut tell = Vec::new();
        for (chat, fan) in &mut self.chats {
            if *chat.home() != self.region {
                let marks = fan.untold();
                if !marks.is_empty() && !fan.is_telling(chat.home()) {
                    tell.push((chat.clone(), chat.home().clone(), Telling::Marks(marks)));
                }
            } else if let Some((regions, floors)) = fan.floors_to_tell(&self.region) {
                tell.extend(regions.into_iter().map(|region| (chat.clone(), region, Telling::Floors(floors.clone()))));
            }
        }
        for (chat, region, telling) in tell {
            // One that is away is told once it is back.
            let Some(peer) = self.who_hears(&region, &chat, &telling) else { continue };
            let frame = match &telling {
                Telling::Marks(marks) => PeerFrame::Reached { chat: chat.clone(), marks: marks.clone() },
                Telling::Floors((delivered, read)) => {
                    PeerFrame::Floors { chat: chat.clone(), delivered: delivered.clone(), read: read.clone() }
                }
            };
            let Ok(answer) = peer.request(Some(&chat), &frame) else { continue };
            if let Some(fan) = self.chats.get_mut(&chat) {
                fan.telling(&region);
            }
            let report = self.report.clone();
            tokio::spawn(async move {
                let taken = matches!(answer.await, Ok(PeerFrame::Done));
                // Nobody hears it if the relay is stopping.
                let _ = report.send(Report::Told(Told { chat, region, telling, taken }));
            });
        }
    }

    pub(super) fn told(&mut self, told: Told) {
        let Told { chat, region, telling, taken } = told;
        let Some(fan) = self.chats.get_mut(&chat) else { return };
        match telling {
            Telling::Marks(marks) => fan.told_marks(&region, if taken { &marks } else { &[] }),
            Telling::Floors(floors) => fan.told_floors(&region, taken.then_some(floors)),
        }
    }

    /// A region went away: what it has not taken is read, a chat after the other, to be given to its users wherever they
    /// are.
    pub(super) fn serve_users_of(&mut self, region: &DeviceId) {
        let Some(state) = self.devices.get(region).filter(|_| self.cluster.is_some()) else { return };
        let rests = self.untaken.is_empty();
        self.untaken.extend(state.tracks().map(|(chat, track)| (chat.clone(), track.first())));
        if rests {
            self.read_untaken();
        }
    }

    /// Reads the chat at the front, if there is one.
    fn read_untaken(&self) {
        let Some((chat, first)) = self.untaken.front().cloned() else { return };
        let (store, report) = (self.store.clone(), self.report.clone());
        tokio::spawn(async move {
            let untaken = store.read(move |store| store.with_recipients(&chat, first, UNTAKEN)).await;
            let untaken = untaken.inspect_err(|error| tracing::warn!(%error, "a log cannot be read")).ok();
            // Nobody hears it if the relay is stopping.
            let _ = report.send(Report::Untaken(untaken));
        });
    }

    pub(super) fn push_untaken(&mut self, untaken: Option<Unsettled>) {
        if let Some(Unsettled { chat, entries }) = untaken {
            for (entry, recipients) in &entries {
                let abroad = abroad(&self.region, &chat, recipients);
                let event = || event_frame(&entry_event(&chat, entry));
                self.push_directly(&chat, entry, recipients, &abroad, event);
            }
        }
        self.untaken.pop_front();
        self.read_untaken();
    }

    /// Gives an entry at once to devices whose home is away, wherever they are connected. It is only a hint that finds
    /// them, and nobody waits for it: their home serves them once it is back.
    pub(super) fn push_directly(
        &self,
        chat: &ChatId,
        entry: &Entry,
        recipients: &[UserId],
        abroad: &[UserId],
        event: impl FnOnce() -> Bytes,
    ) {
        let away = |region: &RegionId| self.region_link(region).is_none_or(|link| link.is_closed());
        // What their devices have may be of a past that is no more, until their home has heard of it.
        let knows = |region: &RegionId| self.met.contains(region);
        let away: Vec<RegionId> = abroad.iter().map(UserId::home).filter(|home| knows(home) && away(home)).collect();
        let Some(cluster) = self.cluster.as_ref().filter(|_| !away.is_empty()) else { return };
        let users = recipients.iter().filter(|user| away.iter().any(|region| user.is_home(region)));
        let users: Vec<UserId> = users.cloned().collect();
        let event = event();
        for user in &users {
            if self.registry.push_user(user, Some(&entry.from), chat, &event) {
                self.metrics.direct_pushes.inc();
            }
        }
        for (peer, users) in cluster.holders(&users) {
            self.metrics.direct_pushes.inc_by(users.len() as u64);
            let except = Some(entry.from.clone());
            peer.note(Some(chat), &PeerFrame::PushUsers { users, except, chat: chat.clone(), event: event.clone() });
        }
    }
}
