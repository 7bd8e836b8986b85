//! The general workload: a cluster, its people and its bad day, all from one seed.

use crate::disk::Unsynced;
use crate::plan::{Action, Cut, DeviceFault, DevicePlan, Link, Plan, RelayFault, RelayPlan, Step, What};
use crate::scenario::Random;
use crate::world::places::PipeChanges;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::time::Duration;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
const NAMES: [&str; 6] = ["alice", "bob", "carol", "dave", "erin", "frank"];
const NETWORKS: [&str; 5] = ["wifi", "4g", "edge", "train", "airport"];
/// Of every network anywhere, the most are good ones.
const COMMON: [&str; 4] = ["wifi", "wifi", "4g", "4g"];

struct Making {
    rng: Rng,
    length: Duration,
    relays: Vec<String>,
    devices: Vec<String>,
    users: Vec<String>,
    steps: Vec<Step>,
}

fn pick<'a>(rng: &mut Rng, all: &'a [String]) -> &'a str {
    &all[rng.usize(..all.len())]
}

impl Making {
    fn time(&mut self, most: Duration) -> Duration {
        Duration::from_millis(self.rng.u64(0..=u64::try_from(most.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Short times more often than long ones.
    fn lasting(&mut self, most: Duration) -> Duration {
        let short = self.rng.f64();
        self.time(most.mul_f64(short * short))
    }

    fn step(&mut self, at: Duration, lasts: Duration, what: What) {
        self.steps.push(Step { at, lasts, what });
    }

    fn act(&mut self, at: Duration, device: &str, action: Action) {
        self.step(at, Duration::ZERO, What::Do { device: device.to_owned(), action });
    }

    fn region(&mut self) -> String {
        let relay = pick(&mut self.rng, &self.relays);
        relay.split_once('/').map_or(relay, |(region, _)| region).to_owned()
    }

    fn device_of(&mut self, user: &str) -> String {
        let own: Vec<String> = self.devices.iter().filter(|id| id.starts_with(&format!("{user}/"))).cloned().collect();
        pick(&mut self.rng, &own).to_owned()
    }

    /// All of it, in the order of time.
    fn make(mut self, random: Random) -> (Rng, Vec<Step>) {
        let chats = self.chats(random.chats);
        for _ in 0..random.actions {
            let Some((chat, members)) = self.rng.choice(chats.iter()).cloned() else { break };
            let user = pick(&mut self.rng, &members).to_owned();
            let device = self.device_of(&user);
            let at = self.time(self.length);
            let action = self.action(&chat);
            self.act(at, &device, action);
        }
        for _ in 0..random.faults {
            self.fault();
        }
        // Aside from all else: a seed without files is what it was before there were any.
        let rng = self.rng.clone();
        for _ in 0..random.files {
            self.file(&chats);
        }
        self.rng = rng;
        self.steps.sort_by_key(|step| step.at);
        (self.rng, self.steps)
    }

    /// Chats begin, in the first quarter.
    fn chats(&mut self, count: usize) -> Vec<(String, Vec<String>)> {
        let mut chats = Vec::new();
        if self.users.len() < 2 {
            return chats;
        }
        for number in 0..count {
            let mut members = self.users.clone();
            self.rng.shuffle(&mut members);
            let name = format!("r{number}");
            let at = self.time(self.length / 4);
            let direct = self.rng.bool();
            members.truncate(if direct { 2 } else { self.rng.usize(2..=members.len()) });
            let device = self.device_of(&members[0].clone());
            let others = members[1..].to_vec();
            let action = if direct {
                Action::Direct { chat: name.clone(), with: others[0].clone() }
            } else {
                Action::Group { chat: name.clone(), members: others }
            };
            self.act(at, &device, action);
            chats.push((name, members));
        }
        chats
    }

    fn action(&mut self, chat: &str) -> Action {
        let (chat, user) = (chat.to_owned(), pick(&mut self.rng, &self.users).to_owned());
        match self.rng.u32(0..100) {
            0..60 => Action::Send { chat, count: self.rng.usize(1..=3) },
            60..65 => Action::Send { chat, count: self.rng.usize(10..=60) },
            65..75 => Action::Read { chat },
            75..80 => Action::History { chat },
            80..85 => Action::Redact { chat },
            85..88 => Action::Title { chat },
            88..93 => Action::Remove { chat, user },
            93..98 => Action::Add { chat, user },
            _ => Action::Leave { chat },
        }
    }

    /// One is sent, and one had.
    fn file(&mut self, chats: &[(String, Vec<String>)]) {
        for sends in [true, false] {
            let Some((chat, members)) = self.rng.choice(chats).cloned() else { return };
            let user = pick(&mut self.rng, &members).to_owned();
            let (device, at) = (self.device_of(&user), self.time(self.length));
            let bytes = match self.rng.u32(0..100) {
                0..80 => self.rng.usize(..200_000),
                80..95 => self.rng.usize(200_000..2_000_000),
                // More than a part.
                _ => self.rng.usize(8_500_000..10_000_000),
            };
            let action = if sends { Action::Attach { chat, bytes } } else { Action::Fetch { chat } };
            self.act(at, &device, action);
        }
    }

    fn device_fault(&mut self) -> (DeviceFault, Duration) {
        let access = NETWORKS[self.rng.usize(..NETWORKS.len())].to_owned();
        let minute = Duration::from_mins(1);
        let lasts = self.lasting(minute);
        let fault = match self.rng.u32(0..100) {
            0..15 => DeviceFault::Kill { commits: None },
            15..35 => DeviceFault::Kill { commits: Some(self.rng.u64(0..20)) },
            35..40 => DeviceFault::Close,
            40..55 => DeviceFault::Offline,
            55..65 => DeviceFault::Access { access },
            65..75 => DeviceFault::Roam { access, told: self.rng.bool() },
            75..82 => DeviceFault::Rebind,
            82..88 => DeviceFault::BackUp,
            88..93 => DeviceFault::Restore,
            93..95 => DeviceFault::Lose,
            95..97 => DeviceFault::Renew,
            97 => DeviceFault::Revoke,
            _ => DeviceFault::Clock { millis: self.rng.i64(-50_000..50_000) },
        };
        (fault, lasts)
    }

    fn relay_fault(&mut self) -> (RelayFault, Duration) {
        let minute = Duration::from_mins(1);
        let lasts = self.lasting(minute);
        let unsynced = [Unsynced::Kept, Unsynced::Lost, Unsynced::Torn][self.rng.usize(0..3)];
        let fault = match self.rng.u32(0..100) {
            0..20 => RelayFault::Crash { unsynced, syncs: None },
            20..45 => RelayFault::Crash { unsynced, syncs: Some(self.rng.u64(0..30)) },
            45..52 => RelayFault::Stop,
            52..60 => RelayFault::Drain,
            60..75 => RelayFault::Freeze,
            75..82 => RelayFault::FailSync,
            82..87 => RelayFault::FullDisk,
            87..95 => RelayFault::SlowDisk { sync_millis: self.rng.u64(20..2_000) },
            _ => RelayFault::Clock { millis: self.rng.i64(-20_000..20_000) },
        };
        (fault, lasts)
    }

    fn fault(&mut self) {
        let at = self.time(self.length);
        match self.rng.u32(0..100) {
            0..45 => {
                let device = pick(&mut self.rng, &self.devices).to_owned();
                let (fault, lasts) = self.device_fault();
                self.step(at, lasts, What::Device { device, fault });
            }
            45..75 => {
                let relay = pick(&mut self.rng, &self.relays).to_owned();
                let (fault, lasts) = self.relay_fault();
                self.step(at, lasts, What::Relay { relay, fault });
            }
            75..80 => {
                let (from, to) = (self.region(), self.region());
                let with = PipeChanges {
                    latency: Some(self.time(Duration::from_millis(400))),
                    jitter: Some(self.time(Duration::from_millis(100))),
                    loss: Some(self.rng.f64() * 0.2),
                    burst: Some(self.rng.f64() * 0.01),
                    burst_length: Some(30.0),
                    duplicate: Some(self.rng.f64() * 0.05),
                    reorder: Some(self.rng.f64() * 0.05),
                    mbit_per_second: Some(1.0 + self.rng.f64() * 20.0),
                    ..PipeChanges::default()
                };
                let both = self.rng.bool();
                let lasts = self.lasting(Duration::from_mins(1));
                self.step(at, lasts, What::Link(Link { from, to, both, with }));
            }
            _ => {
                let mut all = self.relays.clone();
                if self.rng.bool() {
                    all.extend(self.devices.iter().cloned());
                }
                self.rng.shuffle(&mut all);
                let middle = self.rng.usize(1..=all.len());
                let (from, to) = all.split_at(middle);
                let (from, to) = (from.to_vec(), to.to_vec());
                let both = self.rng.bool();
                let lasts = self.lasting(Duration::from_mins(1));
                self.step(at, lasts, What::Cut(Cut { from, to, both }));
            }
        }
    }
}

/// Adds to a plan what the seed makes up for its people.
pub(crate) fn add(plan: &mut Plan, random: Random, seed: u64) {
    let relays = plan.relays.iter().map(|relay| relay.id.clone()).collect();
    let devices: Vec<String> = plan.devices.iter().map(|device| device.id.clone()).collect();
    let mut users: Vec<String> = devices.iter().filter_map(|id| Some(id.split_once('/')?.0.to_owned())).collect();
    users.dedup();
    let rng = Rng::with_seed(seed ^ 0x7363_656e_6172_696f);
    let making = Making { rng, length: plan.heals, relays, devices, users, steps: std::mem::take(&mut plan.steps) };
    plan.steps = making.make(random).1;
}

/// The plan of a seed.
pub fn plan(seed: u64) -> Plan {
    made(seed, false)
}

/// The plan of a seed in which the relays of each region share its store, and each owns some of the chats.
pub fn sharing(seed: u64) -> Plan {
    made(seed, true)
}

fn made(seed: u64, sharing: bool) -> Plan {
    let mut rng = Rng::with_seed(seed ^ 0x6765_6e65_7261_6c00);
    let length = Duration::from_secs(rng.u64(60..=300));
    let regions = &REGIONS[..rng.usize(1..=3)];
    let mut relays = Vec::new();
    let (mut devices, mut users) = (Vec::new(), Vec::new());
    for region in regions {
        for number in 1..=if sharing { rng.usize(2..=3) } else { rng.usize(1..=2) } {
            relays.push(format!("{region}/{region}-{number}"));
        }
        for name in &NAMES[..rng.usize(1..=3)] {
            let user = format!("{name}@{region}");
            for device in &["phone", "laptop"][..rng.usize(1..=2)] {
                devices.push(format!("{user}/{device}"));
            }
            users.push(user);
        }
    }
    if users.len() < 2 {
        users.push("zoe@eu".to_owned());
        devices.push("zoe@eu/phone".to_owned());
    }
    let mut files = Rng::with_seed(seed ^ 0x6669_6c65_7300_0000);
    // Files lie at one relay.
    let files = if files.u8(..) < 64 && !sharing { files.usize(1..=5) } else { 0 };
    let random = Random { chats: rng.usize(2..=6), actions: rng.usize(20..=120), faults: rng.usize(0..=25), files };
    let making = Making { rng, length, relays: relays.clone(), devices: devices.clone(), users, steps: Vec::new() };
    let (mut rng, steps) = making.make(random);
    let network = |rng: &mut Rng| COMMON[rng.usize(..COMMON.len())].to_owned();
    let wan = regions.len() > 1;
    let mut settings = vec![("cluster.network".to_owned(), if wan { "wan" } else { "lan" }.to_owned())];
    if sharing {
        settings.push(("store.engine".to_owned(), "dynamodb".to_owned()));
    }
    Plan {
        networks: BTreeMap::new(),
        relays: relays.into_iter().map(|id| RelayPlan { id, settings: settings.clone() }).collect(),
        devices: devices.into_iter().map(|id| DevicePlan { id, access: network(&mut rng) }).collect(),
        gossip: None,
        steps,
        heals: length,
        settles: Duration::from_mins(10),
        events: 0,
    }
}
