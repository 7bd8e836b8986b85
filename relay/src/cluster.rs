//! This relay in its cluster: runs gossip, keeps links to the members that are up, and knows who is where.
//!
//! - [`load`]: how busy this relay is
//! - [`report`]: what an operator sees of it
//!
//! Gossip's core decides; here are its clock, its packets (datagrams on links) and its pulls (streams on links).

mod load;
pub mod report;

use crate::edge::Edge;
use crate::host::Threads;
use crate::peers::frame::{PeerAsk, PeerPage};
use crate::peers::{self, PeerLink, Peers};
use crate::rank;
use crate::seldom::Seldom;
use godwit_core::device::Revocation;
use godwit_gossip::{Effect, Gossip, Identity, Kind, Stats, Status, Timer};
use godwit_wire::{RegionId, RelayId, UserId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Waits between attempts to dial a relay: doubled each time, and up to half of it more at random.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// The relay with the larger id lets the other one dial first.
const COURTESY: Duration = Duration::from_millis(500);

/// How long a relay that went down is shown. One that left for good looks the same.
const REMEMBER_LOST: Duration = Duration::from_hours(1);
/// Pulls of claims at the same time.
const PULLS: usize = 16;

#[derive(Debug)]
pub(crate) struct Cluster {
    gossip: Mutex<Gossip>,
    pub(crate) peers: Arc<Peers>,
    /// Relays that hold a region's store, or share it, by region, with when each started. More than one that holds it is a
    /// mistake of the region's operator.
    stores: RwLock<HashMap<RegionId, BTreeMap<RelayId, u64>>>,
    /// Relays that went down and did not come back, with what was heard of them last; for an operator to see.
    lost: Mutex<BTreeMap<RelayId, (Identity, Instant)>>,
    declared_down: Seldom,
    outdone: Seldom,
    /// It was told of other relays, or met one.
    joined: AtomicBool,
    /// Pulls at the same time.
    pulls: Semaphore,
    /// Relays to which a link is kept up.
    kept: Mutex<HashSet<RelayId>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// What serves links; it holds this cluster.
    edge: OnceLock<Weak<Edge>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    pub(crate) fn new(gossip: Gossip, peers: Arc<Peers>) -> Arc<Self> {
        Arc::new(Self {
            gossip: Mutex::new(gossip),
            peers,
            stores: RwLock::default(),
            lost: Mutex::default(),
            declared_down: Seldom::default(),
            outdone: Seldom::default(),
            joined: AtomicBool::new(false),
            pulls: Semaphore::new(PULLS),
            kept: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            edge: OnceLock::new(),
        })
    }

    /// Looks for the relays at `join` until each is linked; addresses may be names with several addresses. Links are
    /// served by `edge`.
    pub(crate) fn join(self: &Arc<Self>, edge: &Arc<Edge>, join: &[String], threads: &Threads) {
        // A cluster is joined once.
        let _ = self.edge.set(Arc::downgrade(edge));
        self.spawn(self.clone().measure(Arc::downgrade(edge), threads.clone()));
        self.joined.fetch_or(!join.is_empty(), Ordering::Relaxed);
        for address in join {
            let (cluster, address) = (self.clone(), address.clone());
            self.spawn(async move { cluster.seek(&address).await });
        }
    }

    /// Runs something until this relay leaves the cluster.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    fn serve(&self, link: Arc<PeerLink>) {
        // At once: whoever looks for a link must find it.
        if let Some(edge) = self.edge.get().and_then(Weak::upgrade)
            && self.peers.enter(&link)
        {
            self.spawn(async move { peers::serve(&edge, link).await });
        }
    }

    /// Does something with gossip, and what follows from it.
    fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut Gossip) -> T) -> T {
        let (result, effects) = {
            let mut gossip = locked(&self.gossip);
            let result = act(&mut gossip);
            (result, gossip.effects().collect::<Vec<_>>())
        };
        for effect in effects {
            self.effect(effect);
        }
        result
    }

    fn effect(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::Send { to, packet } => match self.peers.get(to.relay()) {
                Some(link) => link.datagram(packet),
                // Lost, as packets may be; the next one finds a link.
                None => self.keep(&to),
            },
            Effect::Timer { after, timer } => self.later(after, timer),
            Effect::Up(identity) => {
                tracing::info!(relay = %identity.relay(), address = %identity.addr(), "a relay is up");
                if identity.kind().is_owner() {
                    let mut stores = self.stores.write().unwrap_or_else(PoisonError::into_inner);
                    let region = stores.entry(identity.relay().region()).or_default();
                    region.insert(identity.relay().clone(), identity.epoch());
                    if region.len() > 1 && identity.kind() == Kind::Store {
                        tracing::error!(region = %identity.relay().region(), "several relays hold a store of one region");
                    }
                }
                self.keep(&identity);
                self.peers.touch();
            }
            Effect::Down(identity) => {
                tracing::warn!(relay = %identity.relay(), "a relay is down");
                locked(&self.lost).insert(identity.relay().clone(), (identity.clone(), Instant::now()));
                let mut stores = self.stores.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(region) = stores.get_mut(&identity.relay().region()) {
                    region.remove(identity.relay());
                }
                drop(stores);
                if let Some(link) =
                    self.peers.get(identity.relay()).filter(|link| link.peer.epoch() <= identity.epoch())
                {
                    link.close(&godwit_wire::Refusal::because(godwit_wire::Code::Replaced, "declared down"));
                }
                self.peers.touch();
            }
            Effect::Status { .. } => {}
            Effect::Pull { relay, epoch, since } => {
                let cluster = self.clone();
                self.spawn(async move { cluster.pull(&relay, epoch, since).await });
            }
            Effect::Renewed(me) => {
                self.renewed(&me);
                self.peers.renewed(me);
            }
        }
    }

    /// Tells why this relay had to have another identity.
    fn renewed(&self, me: &Identity) {
        if self.peers.me().epoch() == me.epoch() {
            if let Some(times) = self.declared_down.happened() {
                tracing::warn!(times, "the cluster had declared this relay down");
            }
        } else if let Some(times) = self.outdone.happened() {
            // Once: this one's clock went back since it ran last. Again and again: both are there.
            tracing::error!(
                times,
                "the cluster knows a later start of this relay; if this is said again, another runs with its id"
            );
        }
    }

    fn later(self: &Arc<Self>, after: Duration, timer: Timer) {
        let cluster = self.clone();
        self.spawn(async move {
            tokio::time::sleep(after).await;
            cluster.with(|gossip| gossip.timer(timer));
        });
    }

    async fn pull(self: &Arc<Self>, relay: &RelayId, epoch: u64, since: u64) {
        let pulled = async {
            let _turn = self.pulls.acquire().await.ok()?;
            let link = self.peers.get(relay)?;
            let mut answer = link.ask(&PeerAsk::Claims { epoch, since }).await.ok()?;
            while let Some(PeerPage::Claims(page)) = answer.next().await.ok()? {
                if self.with(|gossip| gossip.apply_page(relay, page)).is_err() {
                    // Gossip tries again by itself.
                    return Some(());
                }
            }
            Some(())
        };
        if pulled.await.is_none() {
            self.with(|gossip| gossip.pull_failed(relay));
        }
    }

    /// Keeps a link to a relay, as long as it is a member.
    fn keep(self: &Arc<Self>, identity: &Identity) {
        if !locked(&self.kept).insert(identity.relay().clone()) {
            return;
        }
        let (cluster, first) = (self.clone(), identity.clone());
        self.spawn(async move {
            cluster.keep_up(first.clone()).await;
            locked(&cluster.kept).remove(first.relay());
        });
    }

    async fn keep_up(self: &Arc<Self>, mut identity: Identity) {
        let mut changes = self.peers.changes();
        let mut failures = 0;
        if self.peers.me().relay() > identity.relay() {
            tokio::time::sleep(COURTESY).await;
        }
        loop {
            changes.mark_unchanged();
            if self.peers.get(identity.relay()).is_some() {
                failures = 0;
                // The relay's own end is never dropped before this task.
                let _ = changes.changed().await;
                continue;
            }
            match locked(&self.gossip).member(identity.relay()) {
                Some(member) => identity = member.identity,
                // Not a member (yet): gossip wanted to send it something, once.
                None if failures > 0 => return,
                None => {}
            }
            match self.peers.dial(identity.addr()).await {
                Ok(link) => self.serve(link),
                Err(refusal) => {
                    tracing::debug!(relay = %identity.relay(), %refusal, "cannot dial");
                    failures += 1;
                    let _ = tokio::time::timeout(back_off(failures), changes.changed()).await;
                }
            }
        }
    }

    async fn seek(self: &Arc<Self>, address: &str) {
        let mut changes = self.peers.changes();
        let mut failures = 0;
        let mut found: Option<RelayId> = None;
        loop {
            changes.mark_unchanged();
            if found.as_ref().is_some_and(|relay| self.peers.get(relay).is_some()) {
                failures = 0;
                let _ = changes.changed().await;
                continue;
            }
            for address in resolve(address).await {
                if address == self.peers.me().addr() {
                    continue;
                }
                if let Some(relay) = self.peers.linked_to(address) {
                    found = Some(relay);
                    break;
                }
                match self.peers.dial(address).await {
                    Ok(link) => {
                        found = Some(link.relay().clone());
                        self.serve(link);
                        break;
                    }
                    Err(refusal) => tracing::debug!(%address, %refusal, "nobody to join"),
                }
            }
            failures += 1;
            tokio::time::sleep(back_off(failures)).await;
        }
    }

    /// There are other relays, as an earlier run of this one knew.
    pub(crate) fn remember(&self) {
        self.joined.store(true, Ordering::Relaxed);
    }

    /// There is no cluster around this relay.
    pub(crate) fn is_alone(&self) -> bool {
        !self.joined.load(Ordering::Relaxed)
    }

    /// A link was made: its relay is worth meeting.
    pub(crate) fn linked(self: &Arc<Self>, link: &PeerLink) {
        self.joined.store(true, Ordering::Relaxed);
        self.with(|gossip| gossip.meet(link.peer.clone()));
    }

    pub(crate) fn packet(self: &Arc<Self>, from: &RelayId, packet: &[u8]) {
        if let Err(error) = self.with(|gossip| gossip.packet(from, packet)) {
            tracing::warn!(peer = %from, %error, "a gossip packet was refused");
        }
    }

    pub(crate) fn claim(self: &Arc<Self>, user: &UserId) {
        self.with(|gossip| gossip.claim(user));
    }

    pub(crate) fn withdraw(self: &Arc<Self>, user: &UserId) {
        self.with(|gossip| gossip.withdraw(user));
    }

    /// Relays that claim these users and have a link, with whom each claims. A hint.
    pub(crate) fn holders(&self, users: &[UserId]) -> Vec<(Arc<PeerLink>, Vec<UserId>)> {
        let mut relays: BTreeMap<RelayId, Vec<UserId>> = BTreeMap::new();
        {
            let gossip = locked(&self.gossip);
            for user in users {
                for relay in gossip.holders(user) {
                    relays.entry(relay.clone()).or_default().push(user.clone());
                }
            }
        }
        relays.into_iter().filter_map(|(relay, users)| Some((self.peers.get(&relay)?, users))).collect()
    }

    /// Shuts enrolments of a device out at all relays.
    pub(crate) fn shut_out(&self, revocation: &Revocation) {
        // Without an edge the relay is starting or stopping, and tells of it when it is met.
        if let Some(edge) = self.edge.get().and_then(Weak::upgrade) {
            edge.shut_out(revocation);
        }
    }

    fn claims_of(&self, relay: &RelayId) -> usize {
        locked(&self.gossip).claims_of(relay)
    }

    pub(crate) fn claims_since(&self, epoch: u64, since: u64) -> godwit_gossip::Pages {
        locked(&self.gossip).claims_since(epoch, since)
    }

    /// The relays that hold the store of `region`, or share it, as far as is known, with when each started: one that started
    /// anew has left off what it was doing.
    pub(crate) fn owners(&self, region: &RegionId) -> BTreeMap<RelayId, u64> {
        let stores = self.stores.read().unwrap_or_else(PoisonError::into_inner);
        let mut owners = stores.get(region).cloned().unwrap_or_default();
        drop(stores);
        let me = self.peers.me();
        if me.kind().is_owner() && me.relay().region() == *region {
            owners.insert(me.relay().clone(), me.epoch());
        }
        owners
    }

    /// Which of them owns what `key` names.
    pub(crate) fn owner(&self, region: &RegionId, key: &[u8]) -> Option<RelayId> {
        rank::first(self.owners(region).keys(), key).cloned()
    }

    /// Whether this relay owns what `key` names in its own region.
    pub(crate) fn is_owner(&self, key: &[u8]) -> bool {
        let me = self.peers.me();
        self.owner(&me.relay().region(), key).as_ref() == Some(me.relay())
    }

    /// The other relays that are up.
    pub(crate) fn members(&self) -> Vec<godwit_gossip::Member> {
        locked(&self.gossip).members()
    }

    /// Relays that went down lately.
    pub(crate) fn lost(&self) -> Vec<Identity> {
        let up: HashSet<RelayId> = self.members().iter().map(|member| member.identity.relay().clone()).collect();
        let mut lost = locked(&self.lost);
        lost.retain(|relay, (_, since)| since.elapsed() < REMEMBER_LOST && !up.contains(relay));
        lost.values().map(|(identity, _)| identity.clone()).collect()
    }

    /// How this relay is doing, as the others are told.
    pub(crate) fn status(&self) -> Status {
        locked(&self.gossip).status()
    }

    fn set_status(self: &Arc<Self>, status: Status) {
        self.with(|gossip| gossip.set_status(status));
    }

    /// Tells the others that this relay takes no more devices.
    pub(crate) fn drain(self: &Arc<Self>) {
        self.set_status(Status { draining: true, ..self.status() });
    }

    pub(crate) fn stats(&self) -> Stats {
        locked(&self.gossip).stats()
    }

    /// Ends its tasks at once.
    pub(crate) fn abort(&self) {
        self.stop.cancel();
    }

    /// Tells the others that this relay goes, and ends its tasks.
    pub(crate) async fn leave(self: &Arc<Self>) {
        self.with(Gossip::leave);
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn back_off(failures: u32) -> Duration {
    let wait = LONGEST_WAIT.min(FIRST_WAIT * 2u32.saturating_pow(failures.min(10)));
    wait + wait.mul_f64(fastrand::f64() / 2.0)
}

async fn resolve(address: &str) -> Vec<SocketAddr> {
    match tokio::net::lookup_host(address).await {
        Ok(found) => found.collect(),
        Err(error) => {
            tracing::warn!(%address, %error, "cannot be resolved");
            Vec::new()
        }
    }
}
