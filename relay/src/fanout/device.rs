//! One device in delivery: its connection, and where each chat stands for it.

use super::pushes::Pushes;
use crate::edge::Link;
use bytes::Bytes;
use godwit_core::inbox::{Open, Row, Track};
use godwit_wire::{ChatId, Seq};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Every device of every user that fan-out has met. A chat without a track was taken whole.
#[derive(Debug, Default)]
pub(super) struct DeviceFan {
    pub(super) link: Option<Arc<Link>>,
    /// The enrolment that what is known here is of; 0 of a region.
    pub(super) enrolment: u32,
    tracks: HashMap<ChatId, Track>,
    /// Entries on their way, over all chats.
    in_flight: u64,
    /// Chats to read from the log, in this order.
    behind: VecDeque<ChatId>,
    /// A page is being read.
    pub(super) reading: bool,
}

/// What became of an entry offered to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// On its way; `first` if nothing of the chat was before it.
    Pushed { first: bool },
    /// To be read from the log. A row must be begun at `begin`, if there is none yet.
    Behind { begin: Option<Seq> },
}

impl DeviceFan {
    pub(super) fn of(enrolment: u32) -> Self {
        Self { enrolment, ..Self::default() }
    }

    /// Takes the newest entry of a chat to the device: onto its lane, or behind. Without `frame` it is to be read from the
    /// log, whatever room there is.
    pub(super) fn offer(
        &mut self,
        chat: &ChatId,
        seq: Seq,
        frame: Option<impl FnOnce() -> Bytes>,
        pushes: &mut Pushes,
        (window, now): (u64, u64),
    ) -> Offer {
        let track = self.tracks.get(chat).copied();
        let pushed = match (&self.link, frame) {
            (Some(link), Some(frame)) if !matches!(track, Some(Track::Behind { .. })) => {
                self.in_flight < window && pushes.push(link, chat, seq, frame())
            }
            _ => false,
        };
        let (next, offer) = match track {
            Some(Track::Live { open, row }) if pushed => {
                (Track::Live { open: Open { last: seq, ..open }, row }, Offer::Pushed { first: false })
            }
            None if pushed => (Track::live(seq, now), Offer::Pushed { first: true }),
            Some(Track::Behind { from, pushed, .. }) => {
                (Track::Behind { from, pushed, latest: Some(seq) }, Offer::Behind { begin: None })
            }
            // What is on its way stays so, the rest is read from the log.
            Some(Track::Live { open, row }) => (
                Track::Behind { from: open.first, pushed: Some(open.last), latest: Some(seq) },
                Offer::Behind { begin: (row == Row::None).then_some(open.first) },
            ),
            None => (Track::Behind { from: seq, pushed: None, latest: Some(seq) }, Offer::Behind { begin: Some(seq) }),
        };
        self.set(chat, Some(next));
        offer
    }

    /// Connected, with something to read and nobody reading it.
    pub(super) fn wants_drain(&self) -> bool {
        self.link.is_some() && !self.reading && !self.behind.is_empty()
    }

    pub(super) fn track(&self, chat: &ChatId) -> Option<&Track> {
        self.tracks.get(chat)
    }

    pub(super) fn tracks(&self) -> impl Iterator<Item = (&ChatId, &Track)> {
        self.tracks.iter()
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Changes a chat's track; none ends it.
    pub(super) fn set(&mut self, chat: &ChatId, track: Option<Track>) {
        let before = match track {
            Some(track) => {
                self.in_flight += track.in_flight();
                if matches!(track, Track::Behind { .. }) && !matches!(self.tracks.get(chat), Some(Track::Behind { .. }))
                {
                    self.behind.push_back(chat.clone());
                }
                self.tracks.insert(chat.clone(), track)
            }
            None => self.tracks.remove(chat),
        };
        self.in_flight -= before.map_or(0, |before| before.in_flight());
    }

    /// The chat to read next. One that is not behind any more is passed over.
    pub(super) fn next_behind(&mut self) -> Option<(ChatId, Track)> {
        while let Some(chat) = self.behind.front() {
            match self.tracks.get(chat) {
                Some(track @ Track::Behind { .. }) => return Some((chat.clone(), *track)),
                _ => self.behind.pop_front(),
            };
        }
        None
    }

    /// Ends the connection: what was on its way is behind. Gives the chats for which a row must be begun: also those for
    /// which there was one, if that may be gone.
    pub(super) fn detach(&mut self, rows_may_go: bool) -> Vec<(ChatId, Seq)> {
        self.link = None;
        self.reading = false;
        let chats: Vec<ChatId> = self.tracks.keys().cloned().collect();
        let mut begin = Vec::new();
        for chat in chats {
            let was_live = matches!(self.tracks[&chat], Track::Live { .. });
            let (track, range) = self.tracks[&chat].detach();
            self.set(&chat, Some(track));
            let from = range.map(|range| range.from).or_else(|| (rows_may_go && was_live).then(|| track.first()));
            begin.extend(from.map(|from| (chat, from)));
        }
        begin
    }
}
