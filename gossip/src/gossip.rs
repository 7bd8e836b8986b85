//! The one core: SWIM membership and presence claims, tied together. It does nothing by itself: packets, timers and calls
//! go in, [`Effect`]s come out. Take the effects after every call.

use crate::broadcast::{Item, StatusItem};
use crate::effect::{Due, Effect, Stats, Timer};
use crate::membership::{Membership, Notice};
use crate::own::OwnClaims;
use crate::packet::{self, PacketError, Preface};
use crate::page::{ClaimsPage, Pages};
use crate::peer::{PageError, Progress};
use crate::presence::{Presence, Want};
use crate::roster::{Member, SharedRoster};
use crate::{Config, Identity, PresenceScope, Status};
use godwit_wire::{RelayId, UserId};
use std::collections::VecDeque;
use std::time::Duration;

/// Which of the core's own timers are out.
#[derive(Debug, Default)]
struct Waiting {
    flush: bool,
    spread: bool,
    status: bool,
}

#[derive(Debug)]
pub struct Gossip {
    membership: Membership,
    roster: SharedRoster,
    presence: Presence,
    own: OwnClaims,
    status: (u64, Status),
    /// The status last broadcast.
    told: Status,
    status_period: Duration,
    flush_period: Duration,
    /// Gossip goes to random members of the cluster; where claims stay in the region, few of those may have them. Then
    /// items are also sent to members of the region alone, this often.
    spread_period: Option<Duration>,
    waiting: Waiting,
    packet_bytes: usize,
    left: bool,
    effects: VecDeque<Effect>,
    stats: Stats,
}

impl Gossip {
    /// The same seed, calls and timers give the same effects.
    pub fn new(me: Identity, config: &Config, seed: u64) -> Self {
        let roster = SharedRoster::new(me.relay().clone(), config.scope);
        let swim_bytes = config.packet_bytes.saturating_sub(packet::HEAD_BYTES);
        Self {
            own: OwnClaims::new(me.relay().clone(), me.epoch(), config),
            membership: Membership::new(me, config, swim_bytes, seed, roster.clone()),
            roster,
            presence: Presence::new(config, !seed),
            status: (0, Status::default()),
            told: Status::default(),
            status_period: config.status_period,
            flush_period: config.presence_flush,
            spread_period: (config.scope == PresenceScope::Region).then_some(config.gossip_period),
            waiting: Waiting::default(),
            packet_bytes: config.packet_bytes,
            left: false,
            effects: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// This relay as the cluster knows it.
    pub fn me(&self) -> &Identity {
        self.membership.me()
    }

    /// An authenticated link to this peer exists: say hello.
    pub fn meet(&mut self, peer: Identity) {
        if !self.left && peer.relay() != self.me().relay() {
            self.membership.announce(peer);
            self.settle();
        }
    }

    /// A packet from a peer, which the link has authenticated. A refused one changes nothing.
    pub fn packet(&mut self, from: &RelayId, bytes: &[u8]) -> Result<(), PacketError> {
        if self.left {
            return Ok(());
        }
        self.stats.packets_in += 1;
        self.stats.bytes_in += bytes.len() as u64;
        let result = self.accept(from, bytes);
        self.stats.packets_refused += u64::from(result.is_err());
        self.settle();
        result
    }

    fn accept(&mut self, from: &RelayId, bytes: &[u8]) -> Result<(), PacketError> {
        if bytes.len() > self.packet_bytes {
            return Err(PacketError::TooLarge(bytes.len()));
        }
        let checked = packet::check(bytes, from, self.me().relay())?;
        if !self.membership.admits(&checked.members) {
            return Err(PacketError::TooManyMembers);
        }
        self.membership.outbid(&checked.dst);
        self.membership.packet(checked.swim)?;
        self.settle();
        let (epoch, Preface { settled, status_version, status }) = (checked.src.epoch(), checked.preface);
        if self.roster.lock().in_scope(from) {
            self.presence.settled(from, epoch, settled);
        }
        if self.roster.lock().hear_status_itself(from, epoch, status_version, status) {
            self.effects.push_back(Effect::Status { relay: from.clone(), status });
        }
        Ok(())
    }

    pub fn timer(&mut self, timer: Timer) {
        if self.left {
            return;
        }
        match timer.0 {
            Due::Swim(timer) => self.membership.timer(timer),
            Due::Pull { relay, token } => self.presence.timer(&relay, token),
            Due::Flush => {
                self.waiting.flush = false;
                if let Some(item) = self.own.flush(self.membership.backlog()) {
                    self.broadcast(&item);
                }
                self.start_flush();
            }
            Due::Spread => {
                self.waiting.spread = false;
                self.membership.spread();
            }
            Due::Status => {
                self.waiting.status = false;
                self.tell_status();
            }
        }
        self.settle();
    }

    /// A device of the user connected here.
    pub fn claim(&mut self, user: &UserId) {
        self.own.claim(user);
        self.start_flush();
    }

    /// A device of the user went from here.
    pub fn withdraw(&mut self, user: &UserId) {
        self.own.withdraw(user);
        self.start_flush();
    }

    fn start_flush(&mut self) {
        if self.own.busy() && !self.waiting.flush && !self.left {
            self.waiting.flush = true;
            self.effects.push_back(Effect::Timer { after: self.flush_period, timer: Timer(Due::Flush) });
        }
    }

    /// How this relay is doing. Call it as often as is handy: only what matters is broadcast.
    pub fn set_status(&mut self, status: Status) {
        if status != self.status.1 || self.status.0 == 0 {
            self.status = (self.status.0 + 1, status);
            self.tell_status();
        }
    }

    /// How this relay is doing, as it was said last.
    pub fn status(&self) -> Status {
        self.status.1
    }

    fn tell_status(&mut self) {
        let (version, status) = self.status;
        let urgent = status.draining != self.told.draining;
        if self.left || !status.notable(&self.told) || (self.waiting.status && !urgent) {
            return;
        }
        self.told = status;
        let (relay, epoch) = (self.me().relay().clone(), self.me().epoch());
        self.broadcast(&Item::Status(StatusItem { relay, epoch, version, status }));
        if !self.waiting.status {
            self.waiting.status = true;
            self.effects.push_back(Effect::Timer { after: self.status_period, timer: Timer(Due::Status) });
        }
    }

    fn broadcast(&mut self, item: &Item) {
        // An item that nobody may have would never leave foca's backlog, and as long as there is one foca gossips. Who
        // comes later pulls.
        if !self.roster.lock().audience() {
            return;
        }
        self.membership.broadcast(item);
        self.stats.broadcasts_made += 1;
    }

    /// Tells others that this relay goes, for good: it takes no part from then on.
    pub fn leave(&mut self) {
        if !self.left {
            self.membership.leave();
            self.settle();
            self.left = true;
        }
    }

    /// The other relays that are up, ordered by id.
    pub fn members(&self) -> Vec<Member> {
        self.roster.lock().members()
    }

    pub fn member(&self, relay: &RelayId) -> Option<Member> {
        self.roster.lock().member(relay)
    }

    /// The other relays that claim this user. A hint, and rarely a wrong one: hashes collide.
    pub fn holders(&self, user: &UserId) -> impl Iterator<Item = &RelayId> + use<'_> {
        self.presence.holders(user)
    }

    /// How many claims of another relay are known here.
    pub fn claims_of(&self, relay: &RelayId) -> usize {
        self.presence.claims_of(relay)
    }

    /// The answer to a pull: this relay's own claims after `since`.
    pub fn claims_since(&mut self, epoch: u64, since: u64) -> Pages {
        self.own.pages(epoch, since)
    }

    /// A page of a pull that is under way. A refused page ends the pull, which is tried again later.
    pub fn apply_page(&mut self, relay: &RelayId, page: ClaimsPage) -> Result<Progress, PageError> {
        let result = self.presence.page(relay, page);
        match result {
            Ok(progress) => {
                self.stats.pages_in += 1;
                if progress == Progress::Done {
                    self.roster.lock().correct_head(relay, self.presence.wanted(relay));
                }
            }
            Err(PageError::NotAsked) => {}
            Err(_) => self.stats.pulls_failed += 1,
        }
        self.settle();
        result
    }

    /// The pull could not be made, or broke off.
    pub fn pull_failed(&mut self, relay: &RelayId) {
        self.stats.pulls_failed += 1;
        self.presence.pull_failed(relay);
        self.settle();
    }

    /// How far a relay's claims are known.
    pub fn claims_version(&self, relay: &RelayId) -> Option<u64> {
        self.presence.version(relay)
    }

    /// What is to be done, in order.
    pub fn effects(&mut self) -> impl Iterator<Item = Effect> {
        self.effects.drain(..)
    }

    pub fn stats(&self) -> Stats {
        Stats {
            claims_known: self.presence.len(),
            claims_own: self.own.len(),
            claims_bytes: self.presence.bytes(),
            backlog: self.membership.backlog(),
            ..self.stats
        }
    }

    /// Turns what membership and presence want into effects.
    fn settle(&mut self) {
        for notice in std::mem::take(&mut self.membership.out.notices) {
            self.notice(notice);
        }
        let heard = self.roster.lock().take_heard();
        for item in heard {
            match item {
                Item::Claims(item) => self.presence.item(&item),
                Item::Head(item) => self.presence.head(&item),
                Item::Status(StatusItem { relay, status, .. }) => {
                    self.effects.push_back(Effect::Status { relay, status });
                }
            }
        }
        let (version, status) = self.status;
        let preface = Preface { settled: self.own.settled(), status_version: version, status };
        for (to, swim) in self.membership.out.packets.drain(..) {
            let packet = packet::encode(&preface, &swim);
            self.stats.packets_out += 1;
            self.stats.bytes_out += packet.len() as u64;
            self.effects.push_back(Effect::Send { to, packet });
        }
        for (after, timer) in self.membership.out.timers.drain(..) {
            self.effects.push_back(Effect::Timer { after, timer: Timer(Due::Swim(timer)) });
        }
        if let Some(after) = self.spread_period.filter(|_| !self.waiting.spread && self.membership.backlog() > 0) {
            self.waiting.spread = true;
            self.effects.push_back(Effect::Timer { after, timer: Timer(Due::Spread) });
        }
        for want in self.presence.wants.drain(..) {
            self.effects.push_back(match want {
                Want::Pull { relay, epoch, since } => {
                    self.stats.pulls_asked += 1;
                    Effect::Pull { relay, epoch, since }
                }
                Want::Wait { relay, token, after } => Effect::Timer { after, timer: Timer(Due::Pull { relay, token }) },
            });
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Up { identity, replaced } => {
                if let Some(old) = replaced {
                    self.presence.down(old.relay());
                    self.effects.push_back(Effect::Down(old));
                }
                if self.presence.epoch(identity.relay()) != Some(identity.epoch())
                    && self.roster.lock().in_scope(identity.relay())
                {
                    self.presence.up(identity.relay(), identity.epoch());
                }
                self.effects.push_back(Effect::Up(identity));
            }
            Notice::Down(identity) => {
                self.presence.down(identity.relay());
                self.effects.push_back(Effect::Down(identity));
            }
            Notice::Renewed(identity) => {
                self.stats.renewals += 1;
                if self.own.set_epoch(identity.epoch()) {
                    self.told = Status::default();
                }
                self.effects.push_back(Effect::Renewed(identity));
            }
        }
    }
}
