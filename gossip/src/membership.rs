//! SWIM: who is up. foca, wrapped, so that the rest of the crate sees effects only.
//!
//! One thing is added to foca. A suspect is told of the suspicion directly, several times (the buddy system of the
//! Lifeguard paper), as a ping that carries it. foca leaves that to gossip, and gossip may reach a suspect too late: the
//! shorter the time to declare a relay down, the likelier a false death.

use crate::broadcast::{Handler, Item};
use crate::packet::PacketError;
use crate::roster::SharedRoster;
use crate::{Config, Identity};
use foca::{Foca, Header, Incarnation, Message, Notification, PostcardCodec, Runtime, State};
use godwit_wire::RelayId;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a suspect is told, within the time that it has to answer.
const REMINDERS: u8 = 5;
/// Newer selves of ours that we outbid. One is a clock that went back; many are two processes under one name.
const OUTBIDS: u8 = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SwimTimer {
    Foca(foca::Timer<Identity>),
    Forget(Identity),
    Lonely,
    Remind { suspect: Identity, incarnation: Incarnation, left: u8 },
}

#[derive(Debug)]
pub(crate) enum Notice {
    /// `replaced` is an earlier process of the relay that was up.
    Up {
        identity: Identity,
        replaced: Option<Identity>,
    },
    Down(Identity),
    Renewed(Identity),
}

/// What foca wants done, until it is taken.
#[derive(Debug)]
pub(crate) struct Outbox {
    me: RelayId,
    roster: SharedRoster,
    pub packets: Vec<(Identity, Vec<u8>)>,
    pub timers: Vec<(Duration, SwimTimer)>,
    pub notices: Vec<Notice>,
    suspicions: Vec<(Identity, Incarnation)>,
    /// The latest identity of each relay that is to be forgotten. One timer a relay, however often it dies: otherwise a
    /// relay that comes and goes could make timers without bound.
    forget: BTreeMap<RelayId, Identity>,
    heal_period: Duration,
    /// The timer for having nobody left is out.
    lonely: bool,
}

impl Runtime<Identity> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(identity) => self.up(identity),
            Notification::MemberDown(identity) => {
                self.roster.lock().down(identity.relay());
                self.notices.push(Notice::Down(identity.clone()));
            }
            // If it was down, MemberUp follows; if it is down now, MemberDown does.
            Notification::Rename(old, new) => {
                let was_up = self.roster.lock().contains(old.relay());
                if was_up {
                    self.up(new);
                }
            }
            Notification::Rejoin(identity) => self.notices.push(Notice::Renewed(identity.clone())),
            Notification::Idle if !self.lonely => {
                self.lonely = true;
                self.timers.push((self.heal_period, SwimTimer::Lonely));
            }
            Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        // foca lists earlier selves of ours among those that are down, and calls them.
        if to.relay() != &self.me {
            self.packets.push((to, data.to_vec()));
        }
    }

    fn submit_after(&mut self, timer: foca::Timer<Identity>, after: Duration) {
        match timer {
            foca::Timer::RemoveDown(identity) => {
                let known = self.forget.insert(identity.relay().clone(), identity.clone());
                if known.is_none() {
                    self.timers.push((after, SwimTimer::Forget(identity)));
                }
            }
            timer => {
                if let foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
                    self.suspicions.push((member_id.clone(), *incarnation));
                }
                self.timers.push((after, SwimTimer::Foca(timer)));
            }
        }
    }
}

impl Outbox {
    fn up(&mut self, identity: &Identity) {
        let replaced = self.roster.lock().up(identity);
        self.notices.push(Notice::Up { identity: identity.clone(), replaced });
    }
}

pub(crate) struct Membership {
    foca: Foca<Identity, PostcardCodec, SmallRng, Handler>,
    pub out: Outbox,
    members_max: usize,
    suspicion: Duration,
    forget_after: Duration,
    outbids_left: u8,
    /// Calls to lost members so far, to take them in turn.
    calls: u32,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("me", self.foca.identity()).finish_non_exhaustive()
    }
}

impl Membership {
    pub fn new(me: Identity, config: &Config, swim_bytes: usize, seed: u64, roster: SharedRoster) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        let handler = Handler(roster.clone());
        let relay = me.relay().clone();
        Self {
            foca: Foca::with_custom_broadcast(me, config.swim(swim_bytes), rng, PostcardCodec, handler),
            out: Outbox {
                me: relay,
                roster,
                packets: Vec::new(),
                timers: Vec::new(),
                notices: Vec::new(),
                suspicions: Vec::new(),
                forget: BTreeMap::new(),
                heal_period: config.heal_period,
                lonely: false,
            },
            members_max: config.members_max,
            suspicion: config.suspicion,
            forget_after: config.forget_after,
            outbids_left: OUTBIDS,
            calls: 0,
        }
    }

    pub fn me(&self) -> &Identity {
        self.foca.identity()
    }

    /// Items waiting to be passed on.
    pub fn backlog(&self) -> usize {
        self.foca.custom_broadcast_backlog()
    }

    // The errors of the calls below are of encoding only: an identity and an item always fit a packet.

    pub fn announce(&mut self, peer: Identity) {
        let _ = self.foca.announce(peer, &mut self.out);
    }

    pub fn broadcast(&mut self, item: &Item) {
        let _ = self.foca.add_broadcast(&item.encode());
    }

    /// Sends waiting items to random members that may have them.
    pub fn spread(&mut self) {
        let _ = self.foca.broadcast(&mut self.out);
    }

    pub fn leave(&mut self) {
        let _ = self.foca.leave_cluster(&mut self.out);
    }

    /// Whether the members that a packet names leave room. Counted only near the limit, where it costs a scan.
    pub fn admits(&self, members: &[RelayId]) -> bool {
        let known = self.foca.iter_membership_state();
        if known.len() + members.len() <= self.members_max {
            return true;
        }
        members.iter().all(|relay| self.foca.iter_membership_state().any(|member| member.id().relay() == relay))
    }

    /// The bytes must have been checked: foca acts on the start of a packet before it reads the end.
    pub fn packet(&mut self, swim: &[u8]) -> Result<(), PacketError> {
        let result = self.foca.handle_data(swim, &mut self.out);
        self.warn_suspects();
        result.map_err(|error| PacketError::Unexpected(error.to_string()))
    }

    /// Somebody calls us by an identity of this relay that replaces ours: our clock went back since an earlier start.
    /// Nobody would listen to us until we replace it in turn.
    pub fn outbid(&mut self, other: &Identity) {
        let Some(above) = self.me().above(other) else { return };
        if self.outbids_left == 0 {
            return;
        }
        self.outbids_left -= 1;
        if self.foca.change_identity(above.clone(), &mut self.out).is_ok() {
            self.out.notices.push(Notice::Renewed(above));
        }
    }

    pub fn timer(&mut self, timer: SwimTimer) {
        match timer {
            // foca would tell a suspect that has cleared itself that it is down, and it would renew for nothing.
            SwimTimer::Foca(foca::Timer::ChangeSuspectToDown { ref member_id, incarnation, .. })
                if !self.suspects(member_id, incarnation) => {}
            // An error says that timers came in the wrong order; foca goes on with the next probe.
            SwimTimer::Foca(timer) => {
                let _ = self.foca.handle_timer(timer, &mut self.out);
            }
            SwimTimer::Forget(identity) => match self.out.forget.remove(identity.relay()) {
                Some(latest) if latest == identity => {
                    let _ = self.foca.handle_timer(foca::Timer::RemoveDown(identity), &mut self.out);
                }
                Some(latest) => self.out.submit_after(foca::Timer::RemoveDown(latest), self.forget_after),
                None => {}
            },
            SwimTimer::Lonely => {
                self.out.lonely = false;
                self.call_the_lost();
            }
            SwimTimer::Remind { suspect, incarnation, left } => {
                if self.suspects(&suspect, incarnation) {
                    self.remind(suspect, incarnation, left);
                }
            }
        }
        self.warn_suspects();
    }

    /// foca stops all its timers when nobody is up. Then it is on us to call those that were: they may think the same of
    /// us, as two relays do that lost each other.
    fn call_the_lost(&mut self) {
        if self.foca.num_members() > 0 {
            return;
        }
        let lost: Vec<Identity> = self.foca.iter_membership_state().map(|member| member.id().clone()).collect();
        let start = usize::try_from(self.calls).unwrap_or(0);
        self.calls = self.calls.wrapping_add(2);
        for n in start..start + lost.len().min(2) {
            let _ = self.foca.announce(lost[n % lost.len()].clone(), &mut self.out);
        }
        self.out.notify(Notification::Idle);
    }

    fn suspects(&self, identity: &Identity, incarnation: Incarnation) -> bool {
        let found = self.foca.iter_members().find(|member| member.id() == identity);
        found.is_some_and(|member| member.state() == State::Suspect && member.incarnation() == incarnation)
    }

    fn warn_suspects(&mut self) {
        for (suspect, incarnation) in std::mem::take(&mut self.out.suspicions) {
            self.remind(suspect, incarnation, REMINDERS);
        }
    }

    /// A ping like foca's own, with the suspicion in it. The suspect raises its incarnation before it answers, so the
    /// answer clears it here at once.
    fn remind(&mut self, suspect: Identity, incarnation: Incarnation, left: u8) {
        let header = Header {
            src: self.me().clone(),
            // Zero is never news to anyone who knows us; foca does not tell the real one.
            src_incarnation: 0,
            dst: suspect.clone(),
            // A number that foca may be waiting for only if it pings the same member: then the answer is as good.
            message: Message::Ping(0),
        };
        let member = foca::Member::new(suspect.clone(), incarnation, State::Suspect);
        let encoded = postcard::to_allocvec(&header).and_then(|mut packet| {
            packet.extend(1u16.to_be_bytes());
            packet.extend(postcard::to_allocvec(&member)?);
            Ok(packet)
        });
        let packet = encoded.expect("identities hold nothing that postcard refuses");
        self.out.packets.push((suspect.clone(), packet));
        if left > 1 {
            let next = SwimTimer::Remind { suspect, incarnation, left: left - 1 };
            self.out.timers.push((self.suspicion / u32::from(REMINDERS), next));
        }
    }
}
