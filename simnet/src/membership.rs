//! Plays a plan with the membership cores of its relays alone, of which a thousand fit into one process.
//!
//! Packets go over the world's network. Links between relays, and pulls over them, take the time of the way and fail where
//! nothing passes. The promises: all find each other; who dies is known to almost all within seconds; nobody is declared down
//! who is well; in the end all agree on who is there and who holds whom.

use crate::plan::{Cut, Network, Plan, RelayFault, Step, What};
use crate::sim::{Options, Ran, Sim};
use crate::world::places::{self, Access};
use crate::world::{HostId, SimSocket};
use anyhow::{Context, Result, bail};
use godwit_gossip::{ClaimsPage, Config, Effect, Gossip, Identity, Kind, Progress, Timer, Versions};
use godwit_wire::{RelayId, UserId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

const PORT: u16 = 4433;
const VERSIONS: Versions = Versions { min: 1, max: 1 };
/// Users at each relay.
const USERS: usize = 3;
/// In so much time, almost all know of a death.
const KNOWN: Duration = Duration::from_secs(15);
/// So many of a thousand are almost all.
const ALMOST_ALL: usize = 990;
/// For so long after something went wrong it may show.
const AFTERMATH: Duration = Duration::from_mins(1);
/// On a link that takes longer, probes are late.
const SLOW: Duration = Duration::from_secs(1);
/// How often it is looked whether all agree.
const LOOK: Duration = Duration::from_secs(1);
/// A pull gets no answer, after this.
const NO_ANSWER: Duration = Duration::from_secs(10);

struct Node {
    relay: RelayId,
    host: HostId,
    address: SocketAddr,
    gossip: RefCell<Gossip>,
    socket: RefCell<Arc<SimSocket>>,
    timers: RefCell<BTreeMap<(Instant, u64), Timer>>,
    /// Where pulls bring what they bring.
    pulls: RefCell<mpsc::UnboundedSender<(RelayId, Option<Vec<ClaimsPage>>)>>,
    task: RefCell<Option<JoinHandle<()>>>,
    starts: Cell<u64>,
    /// Something is wrong with it, or was until then.
    troubled: Cell<Option<Instant>>,
    frozen: watch::Sender<bool>,
    /// Who was told that it is down, since it went.
    told_down: Cell<usize>,
}

struct Cluster {
    sim: Sim,
    config: Config,
    nodes: Vec<Node>,
    index: HashMap<RelayId, usize>,
    addresses: HashMap<SocketAddr, usize>,
    numbers: Cell<u64>,
    /// Links are not as they should be, or were not until then.
    troubled: Cell<Option<Instant>>,
    told: Cell<u64>,
}

/// # Errors
/// The promises that were broken; that the plan cannot be played.
pub(crate) fn play(plan: &Plan, network: Network, options: &Options) -> Result<Ran> {
    let plan = plan.clone();
    let ((), ran) = Sim::run(options, async move |sim| {
        let cluster = Rc::new(Cluster::new(sim, &plan, network)?);
        cluster.play(&plan).await
    })?;
    Ok(ran)
}

fn user(relay: usize, number: usize) -> Result<UserId> {
    Ok(format!("user{}@eu", relay * USERS + number).parse()?)
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_hours(1_000)
}

impl Cluster {
    fn new(sim: Sim, plan: &Plan, network: Network) -> Result<Self> {
        let config = match network {
            Network::Lan => Config::lan(),
            Network::Wan => Config::wan(),
        };
        let (mut nodes, mut index, mut addresses) = (Vec::new(), HashMap::new(), HashMap::new());
        for (number, relay) in plan.relays.iter().enumerate() {
            let relay: RelayId = relay.id.parse()?;
            let host = sim.world().add(&relay.to_string(), relay.region().as_str(), Access::DATA_CENTRE, false);
            let address = SocketAddr::from((sim.world().address(host), PORT));
            let me = Identity::new(relay.clone(), address, 1, VERSIONS, Kind::Edge);
            index.insert(relay.clone(), number);
            addresses.insert(address, number);
            nodes.push(Node {
                relay,
                host,
                address,
                gossip: RefCell::new(Gossip::new(me, &config, number as u64)),
                socket: RefCell::new(SimSocket::bind(sim.world(), host, PORT)?),
                timers: RefCell::default(),
                pulls: RefCell::new(mpsc::unbounded_channel().0),
                task: RefCell::default(),
                starts: Cell::new(0),
                troubled: Cell::new(None),
                frozen: watch::Sender::new(false),
                told_down: Cell::new(0),
            });
        }
        let (numbers, troubled, told) = (Cell::new(0), Cell::new(None), Cell::new(0));
        Ok(Self { sim, config, nodes, index, addresses, numbers, troubled, told })
    }

    async fn play(self: &Rc<Self>, plan: &Plan) -> Result<()> {
        for number in 0..self.nodes.len() {
            self.start(number)?;
        }
        self.agree(plan.settles).await;
        let found = self.sim.now();
        self.sim.world().note(&format!("all know each other after {found:?}"));
        self.sim.sleep(AFTERMATH).await;
        let begun = self.sim.now();
        let mut tasks = JoinSet::new();
        for step in &plan.steps {
            self.sim.sleep((begun + step.at).saturating_sub(self.sim.now())).await;
            let (cluster, step, heals) = (self.clone(), step.clone(), plan.heals);
            tasks.spawn_local(async move { cluster.step(&step, heals).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        self.sim.sleep((begun + plan.heals).saturating_sub(self.sim.now())).await;
        self.agree(plan.settles).await;
        if self.told.get() < plan.events {
            let (told, least) = (self.told.get(), plan.events);
            self.broken(format!("expected: relays are told of at least {least} others, and were told of {told}"));
        }
        Ok(())
    }

    fn broken(&self, what: String) {
        self.sim.checker().broken(what);
    }

    fn start(self: &Rc<Self>, number: usize) -> Result<()> {
        let node = &self.nodes[number];
        node.starts.set(node.starts.get() + 1);
        let me = Identity::new(node.relay.clone(), node.address, node.starts.get(), VERSIONS, Kind::Edge);
        let seed = self.sim.rng(&format!("{} {}", node.relay, node.starts.get())).u64(..);
        let mut gossip = Gossip::new(me, &self.config, seed);
        for user in (0..USERS).map(|n| user(number, n)) {
            gossip.claim(&user?);
        }
        // Of each region the first that is up, as operators name some to join.
        let mut regions = std::collections::BTreeSet::new();
        for peer in self.nodes.iter().filter(|peer| peer.relay != node.relay && peer.troubled.get().is_none()) {
            if regions.insert(peer.relay.region()) {
                gossip.meet(peer.gossip.borrow().me().clone());
            }
        }
        *node.gossip.borrow_mut() = gossip;
        node.timers.borrow_mut().clear();
        if node.starts.get() > 1 {
            *node.socket.borrow_mut() = SimSocket::bind(self.sim.world(), node.host, PORT)?;
        }
        let (sender, pulls) = mpsc::unbounded_channel();
        *node.pulls.borrow_mut() = sender;
        let task = tokio::task::spawn_local(self.clone().live(number, pulls));
        *node.task.borrow_mut() = Some(task);
        Ok(())
    }

    fn kill(&self, number: usize) {
        let node = &self.nodes[number];
        self.sim.world().unplug(node.host);
        if let Some(task) = node.task.borrow_mut().take() {
            task.abort();
        }
    }

    async fn live(
        self: Rc<Self>,
        number: usize,
        mut pulls: mpsc::UnboundedReceiver<(RelayId, Option<Vec<ClaimsPage>>)>,
    ) {
        let node = &self.nodes[number];
        let socket = node.socket.borrow().clone();
        let mut frozen = node.frozen.subscribe();
        loop {
            // Its sender is the node's.
            let _ = frozen.wait_for(|frozen| !frozen).await;
            self.carry_out(number);
            let first = node.timers.borrow().first_key_value().map(|(key, _)| *key);
            tokio::select! {
                biased;
                (from, bytes) = socket.receive() => {
                    let Some(from) = self.addresses.get(&from) else { continue };
                    let taken = node.gossip.borrow_mut().packet(&self.nodes[*from].relay, &bytes);
                    if let Err(error) = taken {
                        self.broken(format!("packets: {} refuses one of {}: {error}", node.relay, self.nodes[*from].relay));
                    }
                }
                () = tokio::time::sleep_until(first.map_or_else(far_future, |(at, _)| at)) => {
                    let due = first.and_then(|key| node.timers.borrow_mut().remove(&key));
                    if let Some(timer) = due {
                        node.gossip.borrow_mut().timer(timer);
                    }
                }
                Some((relay, pages)) = pulls.recv() => {
                    let mut gossip = node.gossip.borrow_mut();
                    match pages {
                        None => gossip.pull_failed(&relay),
                        Some(pages) => for page in pages {
                            // A pull of a process that went meanwhile, or was asked for another reason, ends here.
                            if !matches!(gossip.apply_page(&relay, page), Ok(Progress::More)) {
                                break;
                            }
                        },
                    }
                }
            }
        }
    }

    fn carry_out(self: &Rc<Self>, number: usize) {
        let node = &self.nodes[number];
        let effects: Vec<Effect> = node.gossip.borrow_mut().effects().collect();
        for effect in effects {
            match effect {
                Effect::Send { to, packet } => node.socket.borrow().send_to(to.addr(), &packet),
                Effect::Timer { after, timer } => {
                    self.numbers.set(self.numbers.get() + 1);
                    node.timers.borrow_mut().insert((Instant::now() + after, self.numbers.get()), timer);
                }
                Effect::Pull { relay, epoch, since } => {
                    tokio::task::spawn_local(self.clone().pull(number, relay, epoch, since));
                }
                Effect::Down(identity) => self.down(node, &identity),
                Effect::Up(identity) => {
                    self.told.set(self.told.get() + 1);
                    tokio::task::spawn_local(self.clone().link(number, identity));
                }
                Effect::Renewed(_) if self.is_well(node) => {
                    self.broken(format!("deaths: {} was declared down, and was well", node.relay));
                }
                Effect::Renewed(_) | Effect::Status { .. } => {}
            }
        }
    }

    fn is_well(&self, node: &Node) -> bool {
        let trouble = node.troubled.get().max(self.troubled.get());
        trouble.is_none_or(|until| Instant::now() > until + AFTERMATH)
    }

    fn down(&self, at: &Node, identity: &Identity) {
        self.told.set(self.told.get() + 1);
        let Some(node) = self.index.get(identity.relay()).map(|number| &self.nodes[*number]) else { return };
        node.told_down.set(node.told_down.get() + 1);
        // Of a self that was replaced some hear late.
        if *identity == *node.gossip.borrow().me() && self.is_well(node) && self.is_well(at) {
            self.broken(format!("deaths: {} takes {} to be down, which is well", at.relay, node.relay));
        }
    }

    /// A relay makes a link to each that it hears of, and whoever has a link meets its other end.
    async fn link(self: Rc<Self>, number: usize, identity: Identity) {
        let Some(other) = self.index.get(identity.relay()).copied() else { return };
        let (near, far) = (&self.nodes[number], &self.nodes[other]);
        tokio::time::sleep(2 * places::distance(near.relay.region().as_str(), far.relay.region().as_str())).await;
        if self.reach(near, far) {
            let me = near.gossip.borrow().me().clone();
            far.gossip.borrow_mut().meet(me);
            self.carry_out(other);
        }
    }

    async fn pull(self: Rc<Self>, asker: usize, relay: RelayId, epoch: u64, since: u64) {
        let node = &self.nodes[asker];
        let answer = node.pulls.borrow().clone();
        let pages = match self.index.get(&relay).map(|number| &self.nodes[*number]) {
            Some(peer) if self.reach(node, peer) => {
                let way = places::distance(node.relay.region().as_str(), relay.region().as_str());
                tokio::time::sleep(way).await;
                let pages: Vec<Vec<u8>> =
                    peer.gossip.borrow_mut().claims_since(epoch, since).map(|page| page.encode()).collect();
                tokio::time::sleep(way).await;
                pages.iter().map(|page| ClaimsPage::decode(page)).collect()
            }
            _ => {
                tokio::time::sleep(NO_ANSWER).await;
                None
            }
        };
        // Whoever asked may be gone.
        let _ = answer.send((relay, pages));
    }

    /// Whether a stream between two could be had.
    fn reach(&self, one: &Node, other: &Node) -> bool {
        let up = |node: &Node| node.task.borrow().is_some();
        up(one) && up(other) && self.sim.world().reach(one.host, other.host)
    }

    /// Waits until all that are up agree, or says who does not.
    async fn agree(&self, within: Duration) {
        let deadline = self.sim.now() + within;
        while let Err(what) = self.agreed() {
            if self.sim.now() >= deadline {
                return self.broken(format!("liveness: {what}"));
            }
            if self.sim.now().as_secs().is_multiple_of(30) {
                self.sim.world().note(&what);
            }
            self.sim.sleep(LOOK).await;
        }
    }

    fn up(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.task.borrow().is_some())
    }

    fn agreed(&self) -> Result<(), String> {
        let all: HashMap<RelayId, Identity> =
            self.up().map(|(_, node)| (node.relay.clone(), node.gossip.borrow().me().clone())).collect();
        for (_, node) in self.up() {
            let members = node.gossip.borrow().members();
            if members.len() + 1 != all.len() {
                return Err(format!("{} knows {} others of {}", node.relay, members.len(), all.len() - 1));
            }
            if let Some(member) =
                members.iter().find(|member| all.get(member.identity.relay()) != Some(&member.identity))
            {
                return Err(format!("{} knows {:?}, who is not there", node.relay, member.identity));
            }
        }
        for (_, node) in self.up() {
            let gossip = node.gossip.borrow();
            for (holder, peer) in self.up().filter(|(_, peer)| peer.relay != node.relay) {
                for user in (0..USERS).map(|n| user(holder, n)) {
                    let user = user.map_err(|error| error.to_string())?;
                    if !gossip.holders(&user).any(|relay| *relay == peer.relay) {
                        return Err(format!("{} does not know that {user} is at {}", node.relay, peer.relay));
                    }
                }
            }
        }
        Ok(())
    }

    async fn step(self: &Rc<Self>, step: &Step, heals: Duration) -> Result<()> {
        let lasts = step.lasts.min(heals.saturating_sub(step.at));
        match &step.what {
            What::Relay { relay, fault } => {
                let number = self.index.get(&relay.parse::<RelayId>()?).context("no such relay")?;
                self.fail(*number, fault, lasts).await
            }
            What::Cut(Cut { from, to, both }) => {
                let (from, to) = (self.hosts(from), self.hosts(to));
                let cut = |cut| {
                    self.sim.world().cut(&from, &to, cut);
                    if *both {
                        self.sim.world().cut(&to, &from, cut);
                    }
                };
                cut(true);
                self.sim.world().note(&step.to_string());
                self.trouble(lasts).await;
                cut(false);
                Ok(())
            }
            What::Link(link) => {
                self.sim.change_link(link, true);
                // One that loses a little is no excuse.
                let with = &link.with;
                let is_bad = with.loss > Some(0.1) || with.burst.is_some() || with.latency > Some(SLOW);
                if is_bad {
                    self.trouble(lasts).await;
                } else {
                    self.sim.sleep(lasts).await;
                }
                self.sim.change_link(link, false);
                Ok(())
            }
            What::Do { .. } | What::Device { .. } => bail!("there are no devices"),
        }
    }

    fn hosts(&self, names: &[String]) -> Vec<HostId> {
        let is =
            |node: &&Node| names.iter().any(|name| node.relay.as_str() == name || node.relay.region().as_str() == name);
        self.nodes.iter().filter(is).map(|node| node.host).collect()
    }

    async fn trouble(&self, lasts: Duration) {
        self.troubled.set(Some(Instant::now() + lasts).max(self.troubled.get()));
        self.sim.sleep(lasts).await;
    }

    async fn fail(self: &Rc<Self>, number: usize, fault: &RelayFault, lasts: Duration) -> Result<()> {
        let (node, world) = (&self.nodes[number], self.sim.world());
        if node.troubled.get().is_some_and(|until| until > Instant::now()) {
            world.note(&format!("left out, since something happens to {} already: {fault:?}", node.relay));
            return Ok(());
        }
        node.troubled.set(Some(Instant::now() + lasts));
        node.told_down.set(0);
        world.note(&format!("{} {fault:?}", node.relay));
        match fault {
            RelayFault::Freeze => {
                world.freeze(node.host, true);
                node.frozen.send_replace(true);
                self.sim.sleep(lasts).await;
                world.freeze(node.host, false);
                node.frozen.send_replace(false);
                return Ok(());
            }
            RelayFault::Stop => {
                node.gossip.borrow_mut().leave();
                self.carry_out(number);
                self.kill(number);
            }
            _ => self.kill(number),
        }
        // Of those that nothing happens to.
        let well = || self.nodes.iter().filter(|other| other.troubled.get().is_none_or(|until| until < Instant::now()));
        let need = || well().count() * ALMOST_ALL / 1000;
        let began = self.sim.now();
        while node.told_down.get() < need() && self.sim.now() < began + lasts.min(KNOWN) {
            self.sim.sleep(Duration::from_millis(100)).await;
        }
        let need = need();
        let (known, took) = (node.told_down.get(), self.sim.now().saturating_sub(began));
        world.note(&format!("{} is down for {known} others after {took:?}", node.relay));
        if known < need && lasts >= KNOWN && self.troubled.get().is_none_or(|until| Instant::now() > until + AFTERMATH)
        {
            self.broken(format!("deaths: {took:?} after {} died {known} others know, not {need}", node.relay));
        }
        self.sim.sleep((began + lasts).saturating_sub(self.sim.now())).await;
        self.start(number)?;
        node.troubled.set(Some(Instant::now()));
        Ok(())
    }
}
