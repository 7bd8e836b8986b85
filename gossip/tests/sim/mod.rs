//! A cluster in simulated time: cores, and a heap of what happens next. Latency and loss come from a seed. Shared by the
//! tests and the benchmark.
#![allow(dead_code, reason = "each of its users needs a part")]

use godwit_gossip::{ClaimsPage, Config, Effect, Gossip, Identity, Kind, Progress, Timer, Versions};
use godwit_wire::{RelayId, UserId};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

pub const VERSIONS: Versions = Versions { min: 1, max: 1 };
/// What UDP, QUIC and its encryption add to a datagram.
pub const OVERHEAD_BYTES: u64 = 40;

#[derive(Debug)]
enum Event {
    Packet {
        from: usize,
        to: usize,
        bytes: bytes::Bytes,
    },
    Timer {
        node: usize,
        life: u32,
        timer: Timer,
    },
    /// The request of a pull arrives.
    Pull {
        from: usize,
        life: u32,
        to: usize,
        epoch: u64,
        since: u64,
    },
    /// All its pages arrive, or none.
    Pages {
        from: RelayId,
        to: usize,
        life: u32,
        pages: Option<Vec<Vec<u8>>>,
    },
}

struct Due {
    at: Duration,
    n: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.n == other.n
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.n).cmp(&(other.at, other.n))
    }
}

/// What a node saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Up(Identity),
    Down(Identity),
    Renewed(Identity),
    Pull(RelayId, u64),
}

pub struct Node {
    pub gossip: Gossip,
    pub alive: bool,
    /// Raised at each start, so that timers of an earlier process come to nothing.
    life: u32,
    /// Nodes of different sides do not hear each other.
    pub side: u8,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub pages_bytes_in: u64,
    /// Gossip bytes sent in the current second, and the most in any.
    second: (u64, u64),
    pub bytes_max: u64,
}

pub struct Sim {
    pub now: Duration,
    pub nodes: Vec<Node>,
    pub loss: f64,
    pub pull_loss: f64,
    pub duplicates: f64,
    pub latency: (Duration, Duration),
    pub config: Config,
    /// What everyone saw, if it is kept.
    pub seen: Option<Vec<(Duration, usize, Seen)>>,
    /// Every packet that arrived, if they are kept: from, to, bytes.
    pub tapped: Option<Vec<(usize, usize, bytes::Bytes)>>,
    index: HashMap<RelayId, usize>,
    heap: BinaryHeap<Reverse<Due>>,
    events: u64,
    rng: fastrand::Rng,
}

pub fn relay(n: usize) -> RelayId {
    format!("r{}/relay-{n}", n % 4).parse().unwrap()
}

pub fn user(n: usize) -> UserId {
    format!("user{n}@eu").parse().unwrap()
}

impl Sim {
    pub fn new(nodes: usize, config: Config, seed: u64) -> Self {
        config.check().unwrap();
        let mut sim = Self {
            now: Duration::ZERO,
            nodes: Vec::new(),
            loss: 0.0,
            pull_loss: 0.0,
            duplicates: 0.0,
            latency: (Duration::from_millis(5), Duration::from_millis(140)),
            config,
            seen: Some(Vec::new()),
            tapped: None,
            index: HashMap::new(),
            heap: BinaryHeap::new(),
            events: 0,
            rng: fastrand::Rng::with_seed(seed),
        };
        for n in 0..nodes {
            let gossip = sim.start(n, 1000);
            let (life, side, second) = (0, 0, (0, 0));
            let counts = (0, 0, 0, 0);
            let (packets_out, bytes_out, pages_bytes_in, bytes_max) = counts;
            sim.index.insert(relay(n), n);
            sim.nodes.push(Node {
                gossip,
                alive: true,
                life,
                side,
                packets_out,
                bytes_out,
                pages_bytes_in,
                second,
                bytes_max,
            });
        }
        sim
    }

    fn start(&mut self, n: usize, epoch: u64) -> Gossip {
        let addr = ([10, 0, u8::try_from(n / 256).unwrap(), u8::try_from(n % 256).unwrap()], 4433).into();
        let me = Identity::new(relay(n), addr, epoch, VERSIONS, Kind::Edge);
        Gossip::new(me, &self.config, self.rng.u64(..))
    }

    /// Every node has a link to the first, as to a seed.
    pub fn meet_first(&mut self) {
        let first = self.nodes[0].gossip.me().clone();
        for n in 1..self.nodes.len() {
            self.with(n, |gossip| gossip.meet(first.clone()));
        }
    }

    /// The node is gone without a word.
    pub fn kill(&mut self, n: usize) {
        self.nodes[n].alive = false;
    }

    /// A new process of the node, which knows the first one (or the second, if it is the first).
    pub fn restart(&mut self, n: usize, epoch: u64) {
        self.nodes[n].gossip = self.start(n, epoch);
        self.nodes[n].alive = true;
        self.nodes[n].life += 1;
        let peer = self.nodes[usize::from(n == 0)].gossip.me().clone();
        self.with(n, |gossip| gossip.meet(peer));
    }

    /// Calls a core, then does what it wants.
    pub fn with<T>(&mut self, n: usize, call: impl FnOnce(&mut Gossip) -> T) -> T {
        let result = call(&mut self.nodes[n].gossip);
        let effects: Vec<Effect> = self.nodes[n].gossip.effects().collect();
        for effect in effects {
            self.effect(n, effect);
        }
        result
    }

    fn effect(&mut self, n: usize, effect: Effect) {
        let life = self.nodes[n].life;
        match effect {
            Effect::Send { to, packet } => {
                let bytes = packet.len() as u64 + OVERHEAD_BYTES;
                let node = &mut self.nodes[n];
                node.packets_out += 1;
                node.bytes_out += bytes;
                if node.second.0 != self.now.as_secs() {
                    node.second = (self.now.as_secs(), 0);
                }
                node.second.1 += bytes;
                node.bytes_max = node.bytes_max.max(node.second.1);
                // Always drawn, so that one fault does not shift all later draws.
                let (lost, twice) = (self.rng.f64() < self.loss, self.rng.f64() < self.duplicates);
                let delays = (self.delay(), self.delay());
                let Some(&to) = self.index.get(to.relay()) else { return };
                if lost || self.nodes[to].side != self.nodes[n].side {
                    return;
                }
                if twice {
                    self.push(delays.1, Event::Packet { from: n, to, bytes: packet.clone() });
                }
                self.push(delays.0, Event::Packet { from: n, to, bytes: packet });
            }
            Effect::Timer { after, timer } => self.push(after, Event::Timer { node: n, life, timer }),
            Effect::Pull { relay, epoch, since } => {
                let delay = self.delay();
                let event = match self.index.get(&relay) {
                    Some(&to) => Event::Pull { from: n, life, to, epoch, since },
                    // Somebody made it up.
                    None => Event::Pages { from: relay.clone(), to: n, life, pages: None },
                };
                self.push(delay, event);
                self.see(n, Seen::Pull(relay, since));
            }
            Effect::Up(identity) => self.see(n, Seen::Up(identity)),
            Effect::Down(identity) => self.see(n, Seen::Down(identity)),
            Effect::Renewed(identity) => self.see(n, Seen::Renewed(identity)),
            Effect::Status { .. } => {}
        }
    }

    fn see(&mut self, n: usize, seen: Seen) {
        if let Some(all) = &mut self.seen {
            all.push((self.now, n, seen));
        }
    }

    fn delay(&mut self) -> Duration {
        let (min, max) = self.latency;
        min + max.saturating_sub(min).mul_f64(self.rng.f64())
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.events += 1;
        self.heap.push(Reverse(Due { at: self.now + after, n: self.events, event }));
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.heap.peek().is_some_and(|next| next.0.at <= end) {
            let Reverse(due) = self.heap.pop().unwrap();
            self.now = due.at;
            self.happen(due.event);
        }
        self.now = end;
    }

    /// Runs until the condition holds, looked at every 100 ms; how long that took, or `None` after `limit`.
    pub fn run_until(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        while !holds(self) {
            if self.now >= start + limit {
                return None;
            }
            self.run(Duration::from_millis(100));
        }
        Some(self.now.saturating_sub(start))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Packet { from, to, bytes } => {
                if let Some(all) = &mut self.tapped {
                    all.push((from, to, bytes.clone()));
                }
                if self.nodes[to].alive {
                    self.with(to, |gossip| gossip.packet(&relay(from), &bytes)).unwrap();
                }
            }
            Event::Timer { node, life, timer } => {
                if self.nodes[node].alive && self.nodes[node].life == life {
                    self.with(node, |gossip| gossip.timer(timer));
                }
            }
            Event::Pull { from, life, to, epoch, since } => {
                let fails = self.rng.f64() < self.pull_loss;
                let reached = self.nodes[to].alive && self.nodes[to].side == self.nodes[from].side && !fails;
                let pages = reached
                    .then(|| self.nodes[to].gossip.claims_since(epoch, since).map(|page| page.encode()).collect());
                let delay = self.delay();
                self.push(delay, Event::Pages { from: relay(to), to: from, life, pages });
            }
            Event::Pages { from, to, life, pages } => {
                if !self.nodes[to].alive || self.nodes[to].life != life {
                    return;
                }
                let Some(pages) = pages else { return self.with(to, |gossip| gossip.pull_failed(&from)) };
                for page in pages {
                    self.nodes[to].pages_bytes_in += page.len() as u64;
                    let page = ClaimsPage::decode(&page).unwrap();
                    // A pull of a process that went meanwhile, or was asked for another reason, ends here.
                    match self.with(to, |gossip| gossip.apply_page(&from, page)) {
                        Ok(Progress::More) => {}
                        Ok(Progress::Done) | Err(_) => break,
                    }
                }
            }
        }
    }

    pub fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&n| self.nodes[n].alive)
    }

    /// Everyone who is alive knows exactly the others that are alive, by their current identities.
    pub fn agreed(&self) -> bool {
        let all: BTreeSet<String> = self.alive().map(|n| format!("{:?}", self.nodes[n].gossip.me())).collect();
        self.alive().all(|n| {
            let node = &self.nodes[n].gossip;
            let mut known: BTreeSet<String> = node.members().iter().map(|m| format!("{:?}", m.identity)).collect();
            known.insert(format!("{:?}", node.me()));
            known == all
        })
    }

    /// Everyone knows everyone, by number: cheaper than [`Sim::agreed`].
    pub fn full(&self) -> bool {
        let alive = self.alive().count();
        self.alive().all(|n| self.nodes[n].gossip.members().len() + 1 == alive)
    }

    pub fn holders(&self, n: usize, user: &UserId) -> BTreeSet<String> {
        self.nodes[n].gossip.holders(user).map(ToString::to_string).collect()
    }

    pub fn downs(&self, of: usize) -> usize {
        let seen = self.seen.as_ref().unwrap();
        seen.iter().filter(|(_, _, s)| matches!(s, Seen::Down(id) if *id.relay() == relay(of))).count()
    }
}
