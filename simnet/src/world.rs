//! The network between hosts: who can reach whom, what a packet meets on its way, and when it arrives.
//!
//! A packet passes the sender's access ([`Pipe`] up), the distance between the two regions, and the receiver's access
//! (down). Each is drawn for, also for packets that are lost anyway, so that one fault does not shift all later draws.
//! Time is tokio's, which a simulation stops; packets arrive to the millisecond, as its timers do, in an order that does
//! not vary.
//!
//! - [`places`]: regions and access networks
//! - [`socket`]: quinn's socket over this network

pub mod places;
mod socket;

pub(crate) use socket::SimSocket;

use crate::trace::Trace;
use bytes::Bytes;
use fastrand::Rng;
use places::{Access, Pipe, distance};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Datagrams that wait at a port; what comes then is dropped, as by a kernel.
const PORT_QUEUE: usize = 4096;
/// A packet that is out of order is late by up to so much.
const LATE: Duration = Duration::from_millis(20);
/// Of the packets of a bad time, so many are lost.
const BAD: f64 = 0.8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(u32);

/// One direction of an access network, as it is now.
#[derive(Debug)]
struct Way {
    pipe: Pipe,
    /// When its bandwidth is free again.
    free_at: Duration,
    /// When the last packet leaves it that keeps its order.
    last: Duration,
    bad: bool,
}

#[derive(Debug)]
struct Port {
    queue: VecDeque<(SocketAddr, Bytes)>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Host {
    name: String,
    region: String,
    address: Ipv4Addr,
    udp_blocked: bool,
    up: Way,
    down: Way,
    /// Sockets of an earlier life reach nothing.
    life: u32,
    ports: BTreeMap<u16, Port>,
    next_port: u16,
    /// What the world knows a port as: by an address translator, for a device.
    outside: BTreeMap<u16, SocketAddr>,
    translated: bool,
    state: Reach,
    /// What it sends once it goes on.
    held: Vec<(u16, SocketAddr, Bytes)>,
}

/// Whether packets reach a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Online,
    /// No packet leaves or reaches it.
    Offline,
    /// It does nothing: packets wait at its door, from both sides.
    Frozen,
}

struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    host: HostId,
    port: u16,
    bytes: Bytes,
}

/// What became of packets, from the start on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    pub sent: u64,
    pub delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    pub bytes: u64,
}

struct State {
    rng: Rng,
    trace: Trace,
    start: Instant,
    hosts: Vec<Host>,
    /// Who is behind an address.
    addresses: BTreeMap<SocketAddr, (HostId, u16)>,
    next_address: u32,
    in_flight: BTreeMap<(Duration, u64), Flight>,
    sequence: u64,
    /// The ways from one region to another that are not as the table has them.
    links: Vec<(String, String, Way)>,
    /// Nothing passes from the first to the second, for so many reasons.
    cuts: BTreeMap<(HostId, HostId), u32>,
    packets: Packets,
}

/// The network. Cloning shares it.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl Way {
    fn new(pipe: Pipe) -> Self {
        Self { pipe, free_at: Duration::ZERO, last: Duration::ZERO, bad: false }
    }

    /// When a packet that comes at `now` leaves; none if it is lost. `draw` is what was drawn for it.
    fn pass(&mut self, now: Duration, len: usize, draw: &Draw) -> Option<Duration> {
        let Pipe { latency, jitter, loss, reorder, bandwidth, queue, mtu, .. } = self.pipe;
        self.bad = if self.bad { draw.burst >= 1.0 / loss.burst_length.max(1.0) } else { draw.burst < loss.burst };
        if len > mtu || draw.loss < loss.random || (self.bad && draw.bad < BAD) {
            return None;
        }
        let starts = now.max(self.free_at);
        if starts.saturating_sub(now) > queue {
            return None;
        }
        let sending = Duration::from_micros(len as u64 * 1_000_000 / bandwidth.max(1));
        self.free_at = starts + sending;
        let leaves = self.free_at + latency + jitter.mul_f64(draw.jitter);
        if draw.reorder < reorder {
            return Some(leaves + LATE.mul_f64(draw.late));
        }
        self.last = self.last.max(leaves);
        Some(self.last)
    }
}

/// What is drawn for each packet and direction.
struct Draw {
    loss: f64,
    burst: f64,
    bad: f64,
    jitter: f64,
    reorder: f64,
    late: f64,
    duplicate: f64,
}

impl Draw {
    fn new(rng: &mut Rng) -> Self {
        let mut next = || rng.f64();
        let (loss, burst, bad, jitter) = (next(), next(), next(), next());
        Self { loss, burst, bad, jitter, reorder: next(), late: next(), duplicate: next() }
    }
}

impl State {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn host(&self, host: HostId) -> &Host {
        &self.hosts[host.0 as usize]
    }

    fn host_mut(&mut self, host: HostId) -> &mut Host {
        &mut self.hosts[host.0 as usize]
    }

    fn new_address(&mut self) -> Ipv4Addr {
        self.next_address += 1;
        Ipv4Addr::from(0x0a00_0000 + self.next_address)
    }

    /// The address that the world sees for a host's port.
    fn outside(&mut self, id: HostId, port: u16) -> SocketAddr {
        if let Some(known) = self.host(id).outside.get(&port) {
            return *known;
        }
        let mut number = port;
        if self.host(id).translated {
            number = self.rng.u16(1024..);
            let address = self.host(id).address;
            while self.addresses.contains_key(&(IpAddr::V4(address), number).into()) {
                number = number.wrapping_add(1).max(1024);
            }
        }
        let address = SocketAddr::from((self.host(id).address, number));
        self.host_mut(id).outside.insert(port, address);
        self.addresses.insert(address, (id, port));
        address
    }

    fn forget_outside(&mut self, id: HostId) {
        for address in std::mem::take(&mut self.host_mut(id).outside).into_values() {
            self.addresses.remove(&address);
        }
    }

    /// Whether it is on its way.
    fn send(&mut self, id: HostId, port: u16, to: SocketAddr, bytes: &[u8]) -> bool {
        let host = self.host_mut(id);
        if host.state == Reach::Frozen {
            if host.held.len() < PORT_QUEUE {
                host.held.push((port, to, Bytes::copy_from_slice(bytes)));
            }
            return false;
        }
        let now = self.now();
        let (up, down) = (Draw::new(&mut self.rng), Draw::new(&mut self.rng));
        let from = self.outside(id, port);
        let target = self.addresses.get(&to).copied();
        self.packets.sent += 1;
        self.packets.bytes += bytes.len() as u64;
        let (arrival, doubled) = self.travel(id, target.map(|(host, _)| host), now, bytes.len(), &up, &down);
        let number = |host: HostId| u64::from(host.0);
        let receiver = target.map_or(u64::MAX, |(host, _)| number(host));
        let lands = arrival.map_or(u64::MAX, |at| u64::try_from(at.as_micros()).unwrap_or(u64::MAX));
        let numbers = [number(id), receiver, bytes.len() as u64, lands];
        self.trace.packet(now, numbers, || {
            let name = |host: HostId| self.hosts[host.0 as usize].name.as_str();
            let (sender, receiver) = (name(id), target.map_or("nobody", |(host, _)| name(host)));
            let fate = arrival.map_or_else(|| "lost".to_owned(), |at| format!("{:.6}", at.as_secs_f64()));
            format!("{sender} -> {receiver}: {} bytes, {fate}", bytes.len())
        });
        let (Some(arrival), Some((host, port))) = (arrival, target) else {
            self.packets.lost += 1;
            return false;
        };
        let bytes = Bytes::copy_from_slice(bytes);
        let twice = up.duplicate < self.host(id).up.pipe.duplicate
            || down.duplicate < self.host(host).down.pipe.duplicate
            || doubled;
        if twice {
            self.packets.doubled += 1;
            let late = arrival + LATE.mul_f64(up.late);
            self.launch(late, Flight { from, to, host, port, bytes: bytes.clone() });
        }
        self.launch(arrival, Flight { from, to, host, port, bytes });
        true
    }

    fn launch(&mut self, arrival: Duration, flight: Flight) {
        self.sequence += 1;
        self.in_flight.insert((arrival, self.sequence), flight);
    }

    /// When a packet is there, if it gets there, and whether the way between regions doubles it.
    fn travel(
        &mut self,
        from: HostId,
        to: Option<HostId>,
        now: Duration,
        len: usize,
        up: &Draw,
        down: &Draw,
    ) -> (Option<Duration>, bool) {
        let sender = self.host_mut(from);
        let left = sender.up.pass(now, len, up);
        let Some(to) = to else { return (None, false) };
        if sender.state == Reach::Offline
            || sender.udp_blocked
            || self.host(to).udp_blocked
            || self.cuts.contains_key(&(from, to))
        {
            return (None, false);
        }
        let Some(left) = left else { return (None, false) };
        let (near, far) = (&self.hosts[from.0 as usize].region, &self.hosts[to.0 as usize].region);
        let link = self.links.iter_mut().find(|(from, to, _)| from == near && to == far);
        let (arrived, doubled) = if let Some((.., link)) = link {
            let draw = Draw::new(&mut self.rng);
            (link.pass(left, len, &draw), draw.duplicate < link.pipe.duplicate)
        } else {
            let far = distance(near, far);
            // On long ways, a little by which routes vary.
            (Some(left + far + far.mul_f64(up.late / 20.0)), false)
        };
        let there = arrived.and_then(|arrived| self.host_mut(to).down.pass(arrived, len, down));
        (there, doubled)
    }

    /// Hands over what has arrived. The wakers of those who wait for it.
    fn arrive(&mut self) -> Vec<Waker> {
        let now = self.now();
        let mut wakers = Vec::new();
        while let Some(first) = self.in_flight.first_entry().filter(|first| first.key().0 <= now) {
            let Flight { from, to, host, port, bytes } = first.remove();
            // The address may be another's by now, or nobody's.
            let still = self.addresses.get(&to) == Some(&(host, port));
            let target = self.host_mut(host);
            let reach = target.state;
            let port = target.ports.get_mut(&port).filter(|port| port.queue.len() < PORT_QUEUE);
            let Some(port) = port.filter(|_| still && reach != Reach::Offline) else {
                self.packets.lost += 1;
                continue;
            };
            port.queue.push_back((from, bytes));
            wakers.extend(port.waker.take_if(|_| reach != Reach::Frozen));
            self.packets.delivered += 1;
        }
        wakers
    }
}

impl World {
    /// A world without hosts. Must be called within a runtime whose clock stands still.
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        let state = State {
            rng: Rng::with_seed(seed),
            trace,
            start: Instant::now(),
            hosts: Vec::new(),
            addresses: BTreeMap::new(),
            next_address: 0,
            in_flight: BTreeMap::new(),
            sequence: 0,
            links: Vec::new(),
            cuts: BTreeMap::new(),
            packets: Packets::default(),
        };
        Self { state: Arc::new(Mutex::new(state)), news: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries packets for as long as the simulation runs.
    pub(crate) async fn carry(self) {
        loop {
            let next = {
                let state = self.state();
                state.in_flight.first_key_value().map(|((at, _), _)| state.start + *at)
            };
            let arrival = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.news.notified() => {}
                () = arrival => {}
            }
            let wakers = self.state().arrive();
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.state().now()
    }

    /// A new host, connected. A device is behind an address translator.
    pub(crate) fn add(&self, name: &str, region: &str, access: Access, translated: bool) -> HostId {
        let mut state = self.state();
        let id = HostId(u32::try_from(state.hosts.len()).unwrap_or(u32::MAX));
        let address = state.new_address();
        state.hosts.push(Host {
            name: name.to_owned(),
            region: region.to_owned(),
            address,
            udp_blocked: access.udp_blocked,
            up: Way::new(access.up),
            down: Way::new(access.down),
            life: 0,
            ports: BTreeMap::new(),
            next_port: 40_000,
            outside: BTreeMap::new(),
            translated,
            state: Reach::Online,
            held: Vec::new(),
        });
        id
    }

    pub(crate) fn address(&self, host: HostId) -> Ipv4Addr {
        self.state().host(host).address
    }

    /// The host's sockets reach nothing from now on: it begins another life.
    pub(crate) fn unplug(&self, host: HostId) {
        let mut state = self.state();
        state.forget_outside(host);
        let host = state.host_mut(host);
        host.life += 1;
        host.ports.clear();
        host.held.clear();
        host.state = Reach::Online;
    }

    /// Moves a host to another access network, with a new address. Nobody tells it.
    pub(crate) fn move_to(&self, host: HostId, access: Access) {
        let mut state = self.state();
        state.forget_outside(host);
        let address = state.new_address();
        let host = state.host_mut(host);
        host.address = address;
        host.udp_blocked = access.udp_blocked;
        (host.up, host.down) = (Way::new(access.up), Way::new(access.down));
    }

    /// Changes how a host is connected, where it is.
    pub(crate) fn set_access(&self, host: HostId, access: Access) {
        let mut state = self.state();
        let host = state.host_mut(host);
        host.udp_blocked = access.udp_blocked;
        (host.up.pipe, host.down.pipe) = (access.up, access.down);
    }

    /// The address translator before a host forgets its ports, and gives new ones.
    pub(crate) fn rebind(&self, host: HostId) {
        self.state().forget_outside(host);
    }

    pub(crate) fn set_offline(&self, host: HostId, offline: bool) {
        self.state().host_mut(host).state = if offline { Reach::Offline } else { Reach::Online };
    }

    /// Stops and resumes what a host hears and says. What comes meanwhile waits.
    pub(crate) fn freeze(&self, id: HostId, frozen: bool) {
        let wakers: Vec<Waker> = {
            let mut state = self.state();
            let host = state.host_mut(id);
            host.state = if frozen { Reach::Frozen } else { Reach::Online };
            let ports = host.ports.values_mut().filter(|_| !frozen);
            let wakers = ports.filter_map(|port| port.waker.take()).collect();
            if !frozen {
                for (port, to, bytes) in std::mem::take(&mut state.host_mut(id).held) {
                    state.send(id, port, to, &bytes);
                }
            }
            wakers
        };
        self.news.notify_one();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nothing passes from `from` to `to` any more, or does again once it is mended as often as it was cut.
    pub(crate) fn cut(&self, from: &[HostId], to: &[HostId], cut: bool) {
        let mut state = self.state();
        for pair in from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).filter(|(a, b)| a != b) {
            let cuts = state.cuts.entry(pair).or_default();
            *cuts = if cut { *cuts + 1 } else { cuts.saturating_sub(1) };
            if *cuts == 0 {
                state.cuts.remove(&pair);
            }
        }
    }

    /// Changes the way from one region to another, or has it be as usual.
    pub(crate) fn set_link(&self, from: &str, to: &str, pipe: Option<Pipe>) {
        let links = &mut self.state().links;
        links.retain(|(near, far, _)| (near.as_str(), far.as_str()) != (from, to));
        if let Some(pipe) = pipe {
            links.push((from.to_owned(), to.to_owned(), Way::new(pipe)));
        }
    }

    /// Ends all cuts, and has all links be as usual.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.links.clear();
    }

    /// Whether packets pass between two, both ways.
    pub(crate) fn reach(&self, one: HostId, other: HostId) -> bool {
        let state = self.state();
        let online = |host: HostId| state.host(host).state == Reach::Online;
        let cut = state.cuts.contains_key(&(one, other)) || state.cuts.contains_key(&(other, one));
        online(one) && online(other) && !cut
    }

    /// Writes an event into the trace.
    pub fn note(&self, what: &str) {
        let mut state = self.state();
        let now = state.now();
        state.trace.note(now, what);
        tracing::debug!(at = now.as_secs_f64(), "{what}");
    }

    pub fn packets(&self) -> Packets {
        self.state().packets
    }

    /// The trace's hash and number of events.
    pub(crate) fn sum(&self) -> (u64, u64) {
        self.state().trace.sum()
    }

    pub(crate) fn flush(&self) -> std::io::Result<()> {
        self.state().trace.flush()
    }
}
