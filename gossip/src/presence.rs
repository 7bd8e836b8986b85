//! What other relays claim, and how far each is known: items and heads come from gossip, the rest is pulled.
//!
//! A relay's changes are applied in order and without gaps. Whoever hears of changes that do not follow on what it knows
//! pulls, one pull a relay at a time, with a rest after each.

use crate::Config;
use crate::broadcast::{ClaimsItem, HeadItem};
use crate::hash::UserHash;
use crate::page::ClaimsPage;
use crate::peer::{PageError, Peer, Progress, Pull};
use crate::table::Table;
use godwit_wire::{RelayId, UserId};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;

/// What presence wants done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Pull {
        relay: RelayId,
        epoch: u64,
        since: u64,
    },
    /// Come back with the number after this time.
    Wait {
        relay: RelayId,
        token: u64,
        after: Duration,
    },
}

#[derive(Debug)]
pub(crate) struct Presence {
    table: Table,
    peers: BTreeMap<RelayId, Peer>,
    rng: SmallRng,
    tokens: u64,
    rest: Duration,
    retry: (Duration, Duration),
    pub wants: Vec<Want>,
}

impl Presence {
    pub fn new(config: &Config, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        Self {
            table: Table::new(config.claims_max, rng.random()),
            peers: BTreeMap::new(),
            rng,
            tokens: 0,
            rest: config.pull_rest,
            retry: config.pull_retry,
            wants: Vec::new(),
        }
    }

    pub fn holders(&self, user: &UserId) -> impl Iterator<Item = &RelayId> + use<'_> {
        self.table.holders(UserHash::of(user))
    }

    /// How many claims of a relay are known.
    pub fn claims_of(&self, relay: &RelayId) -> usize {
        self.peers.get(relay).map_or(0, |peer| self.table.claims(&peer.number))
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// The process whose claims are kept.
    pub fn epoch(&self, relay: &RelayId) -> Option<u64> {
        Some(self.peers.get(relay)?.epoch)
    }

    /// How far a relay's claims are known.
    pub fn version(&self, relay: &RelayId) -> Option<u64> {
        self.peers.get(relay)?.version
    }

    /// A process that was not known before is up. Its claims are pulled in a moment, unless it says first that it has
    /// none. The moment spreads out the pulls of all the others.
    pub fn up(&mut self, relay: &RelayId, epoch: u64) {
        self.down(relay);
        // 65,536 numbers are more than twice the members allowed.
        let Some(number) = self.table.open() else { return };
        self.table.show(&number, relay);
        let peer = Peer::new(epoch, number);
        self.peers.insert(relay.clone(), peer);
        let after = self.rng.random_range(Duration::ZERO..=self.rest);
        self.wait(relay, after);
    }

    pub fn down(&mut self, relay: &RelayId) {
        let Some(peer) = self.peers.remove(relay) else { return };
        self.table.drop_number(peer.number);
        if let Some((number, _)) = peer.loading {
            self.table.drop_number(number);
        }
    }

    pub fn item(&mut self, item: &ClaimsItem) {
        let Some(peer) = self.peers.get_mut(&item.relay).filter(|peer| peer.epoch == item.epoch) else { return };
        peer.wanted = peer.wanted.max(item.last());
        match peer.apply(&mut self.table, item.first, &item.changes) {
            Ok(()) => {}
            Err(PageError::Full) => self.overflow(&item.relay),
            Err(_) => self.ask(&item.relay),
        }
    }

    pub fn head(&mut self, item: &HeadItem) {
        let Some(peer) = self.peers.get_mut(&item.relay).filter(|peer| peer.epoch == item.epoch) else { return };
        peer.wanted = peer.wanted.max(item.version);
        self.ask(&item.relay);
    }

    /// The relay itself says which version everybody should have heard of.
    pub fn settled(&mut self, relay: &RelayId, epoch: u64, version: u64) {
        let Some(peer) = self.peers.get_mut(relay).filter(|peer| peer.epoch == epoch) else { return };
        if version == 0 {
            // Nothing is settled: whatever it claims is recent and comes with its items from the first on.
            peer.version.get_or_insert(0);
        } else if version > peer.known() {
            peer.wanted = peer.wanted.max(version);
            self.ask(relay);
        }
    }

    /// Pulls, if something is missing and no pull is going on or resting.
    fn ask(&mut self, relay: &RelayId) {
        let Some(peer) = self.peers.get_mut(relay) else { return };
        if peer.pull == Pull::Idle && peer.lacks() {
            peer.pull = Pull::Asked { wanted: peer.wanted };
            self.wants.push(Want::Pull { relay: relay.clone(), epoch: peer.epoch, since: peer.known() });
        }
    }

    fn wait(&mut self, relay: &RelayId, after: Duration) {
        self.tokens += 1;
        if let Some(peer) = self.peers.get_mut(relay) {
            peer.pull = Pull::Resting { token: self.tokens };
            self.wants.push(Want::Wait { relay: relay.clone(), token: self.tokens, after });
        }
    }

    pub fn timer(&mut self, relay: &RelayId, token: u64) {
        let Some(peer) = self.peers.get_mut(relay) else { return };
        if peer.pull == (Pull::Resting { token }) {
            peer.pull = Pull::Idle;
            self.ask(relay);
        }
    }

    pub fn page(&mut self, relay: &RelayId, page: ClaimsPage) -> Result<Progress, PageError> {
        let Some(peer) = self.peers.get_mut(relay) else { return Err(PageError::NotAsked) };
        let Pull::Asked { wanted } = peer.pull else { return Err(PageError::NotAsked) };
        match peer.page(&mut self.table, relay, &page) {
            Err(PageError::Full) => {
                self.overflow(relay);
                return Err(PageError::Full);
            }
            Err(error) => {
                self.pull_failed(relay);
                return Err(error);
            }
            Ok(()) if !page.last => return Ok(Progress::More),
            Ok(()) => {}
        }
        // The relay knows best how far its claims go. Less than was wanted when we asked means that somebody told of
        // changes that never were; what was heard of since then may still be true.
        if peer.wanted == wanted {
            peer.wanted = peer.known();
        }
        peer.failures = 0;
        let after = self.rng.random_range(self.rest / 2..=self.rest * 3 / 2);
        self.wait(relay, after);
        Ok(Progress::Done)
    }

    pub fn pull_failed(&mut self, relay: &RelayId) {
        let Some(peer) = self.peers.get_mut(relay).filter(|peer| matches!(peer.pull, Pull::Asked { .. })) else {
            return;
        };
        if let Some((number, _)) = peer.loading.take() {
            self.table.drop_number(number);
        }
        let step = self.retry.0.saturating_mul(1 << peer.failures.min(16)).min(self.retry.1);
        peer.failures = peer.failures.saturating_add(1);
        let after = self.rng.random_range(step / 2..=step * 3 / 2);
        self.wait(relay, after);
    }

    /// A relay claims more than there is room for: it is as if it claimed nothing, until there is.
    fn overflow(&mut self, relay: &RelayId) {
        let Some(Peer { epoch, wanted, failures, .. }) = self.peers.get(relay) else { return };
        let (epoch, wanted, failures) = (*epoch, *wanted, *failures);
        self.up(relay, epoch);
        if let Some(peer) = self.peers.get_mut(relay) {
            (peer.wanted, peer.failures, peer.pull) = (wanted, failures, Pull::Asked { wanted });
            self.pull_failed(relay);
        }
    }

    pub fn wanted(&self, relay: &RelayId) -> u64 {
        self.peers.get(relay).map_or(0, |peer| peer.wanted)
    }
}

#[cfg(test)]
mod tests;
