//! Scenario files: a topology, people, and what happens to them, in TOML.
//!
//! ```toml
//! about  = "What this is for, in a sentence."
//! relays = ["eu/eu-1", "eu/eu-2", "us/us-1"]     # the first of a region holds its store, the others are edges
//! heals  = "5m"                                  # when all that went wrong ends
//! settles = "10m"                                # how long after that everything may take to arrive; 10m
//! events = 20                                    # apps must be told at least so much; 1
//!
//! [devices]                                      # with their access networks
//! "alice@eu/phone" = "wifi"                      # data-centre, wifi, 4g, edge, train, airport, udp-blocked
//! "bob@us/phone" = "4g"
//!
//! [settings]                                     # of all relays, over the defaults
//! "cluster.network" = "wan"
//!
//! [random]                                       # more of it, from the seed
//! chats = 4
//! actions = 100
//! faults = 10
//!
//! [[step]]
//! at = "10s"
//! device = "alice@eu/phone"
//! does = { direct = { chat = "c", with = "bob@us" } }     # any Action
//!
//! [[step]]
//! at = "20s"
//! lasts = "1m"
//! device = "bob@us/phone"
//! suffers = { kill = { commits = 3 } }                    # any DeviceFault
//!
//! [[step]]
//! at = "30s"
//! lasts = "1m"
//! relay = "eu/eu-1"
//! fails = { crash = { unsynced = "torn" } }               # any RelayFault
//!
//! [[step]]
//! at = "40s"
//! lasts = "1m"
//! cut = { from = ["eu"], to = ["us"], both = true }
//!
//! [[step]]
//! at = "50s"
//! lasts = "1m"
//! link = { from = "eu", to = "us", both = true, with = { latency = "300ms", loss = 0.05 } }
//!
//! [networks.ship]                                # access networks of its own
//! like = "edge"
//! up = { latency = "300ms", mbit_per_second = 0.1 }
//! down = { latency = "300ms" }
//! ```
//!
//! Instead of relays and devices, `gossip = { relays = 1000, regions = ["eu", "us"], network = "wan" }` has the membership
//! cores of so many relays, `eu/eu-1`, `us/us-1`, `eu/eu-2` and so on, and nothing else.
//!
//! What can stand there is listed at [`Action`], [`DeviceFault`], [`RelayFault`], [`Cut`], [`Link`] and [`PipeChanges`]. Names of chats are the file's
//! own; they are the titles of groups. Unknown keys and names are refused with their line or step.

use crate::general;
use crate::plan::{Action, Cut, DeviceFault, DevicePlan, Link, Network, Plan, RelayFault, RelayPlan, Step, What};
use crate::world::places::{Access, PipeChanges, time};
use godwit_client::{DeviceId, UserId};
use godwit_wire::RelayId;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: {what}", path.display())]
    Meaning { path: PathBuf, what: String },
}

fn ten_minutes() -> Duration {
    Duration::from_mins(10)
}

const fn one() -> u64 {
    1
}

/// What the seed adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Random {
    pub chats: usize,
    pub actions: usize,
    pub faults: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    #[serde(deserialize_with = "time")]
    at: Duration,
    #[serde(default, deserialize_with = "time")]
    lasts: Duration,
    device: Option<String>,
    relay: Option<String>,
    does: Option<Action>,
    suffers: Option<DeviceFault>,
    fails: Option<RelayFault>,
    cut: Option<Cut>,
    link: Option<Link>,
}

impl StepFile {
    fn step(self) -> Result<Step, String> {
        let Self { at, lasts, device, relay, does, suffers, fails, cut, link } = self;
        let what = match (device, relay, does, suffers, fails, cut, link) {
            (Some(device), None, Some(action), None, None, None, None) => What::Do { device, action },
            (Some(device), None, None, Some(fault), None, None, None) => What::Device { device, fault },
            (None, Some(relay), None, None, Some(fault), None, None) => What::Relay { relay, fault },
            (None, None, None, None, None, Some(cut), None) => What::Cut(cut),
            (None, None, None, None, None, None, Some(link)) => What::Link(link),
            _ => return Err("must have device and does, device and suffers, relay and fails, cut, or link".to_owned()),
        };
        Ok(Step { at, lasts, what })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkFile {
    like: String,
    #[serde(default)]
    up: PipeChanges,
    #[serde(default)]
    down: PipeChanges,
}

impl NetworkFile {
    fn access(&self) -> Result<Access, String> {
        let like = Access::named(&self.like).ok_or_else(|| format!("there is no access network {:?}", self.like))?;
        self.up.check().map_err(|what| format!("up: {what}"))?;
        self.down.check().map_err(|what| format!("down: {what}"))?;
        Ok(Access { up: self.up.over(like.up), down: self.down.over(like.down), ..like })
    }
}

/// Relays of which there is the membership core alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GossipFile {
    relays: usize,
    regions: Vec<String>,
    network: Network,
}

impl GossipFile {
    const MOST: usize = 10_000;

    /// In turns from each region.
    fn names(&self) -> Result<Vec<String>, String> {
        if self.regions.is_empty() || !(1..=Self::MOST).contains(&self.relays) {
            return Err(format!("gossip: there must be a region, and from 1 to {} relays", Self::MOST));
        }
        let name =
            |(number, region): (usize, &String)| format!("{region}/{region}-{}", number / self.regions.len() + 1);
        Ok((0..self.relays).zip(self.regions.iter().cycle()).map(name).collect())
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    #[serde(default)]
    relays: Vec<String>,
    gossip: Option<GossipFile>,
    #[serde(default)]
    devices: BTreeMap<String, String>,
    #[serde(default)]
    networks: BTreeMap<String, NetworkFile>,
    #[serde(deserialize_with = "time")]
    heals: Duration,
    #[serde(default = "ten_minutes", deserialize_with = "time")]
    settles: Duration,
    #[serde(default = "one")]
    events: u64,
    #[serde(default)]
    settings: BTreeMap<String, String>,
    #[serde(default)]
    random: Random,
    #[serde(default)]
    step: Vec<StepFile>,
}

/// A scenario that was read and checked.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub about: String,
    random: Random,
    plan: Plan,
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// That the file cannot be read, or what in it is wrong, and where.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ScenarioError::Read { path: path.to_owned(), source })?;
        let file: File = toml::from_str(&text)
            .map_err(|source| ScenarioError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        Self::check(file).map_err(|what| ScenarioError::Meaning { path: path.to_owned(), what })
    }

    fn check(file: File) -> Result<Self, String> {
        let File { about, mut relays, gossip, devices, networks, heals, settles, events, settings, random, step } =
            file;
        let settings: Vec<(String, String)> = settings.into_iter().collect();
        if let Some(gossip) = &gossip {
            if !(relays.is_empty() && devices.is_empty()) {
                return Err("gossip has relays of its own, and no devices".to_owned());
            }
            relays = gossip.names()?;
        }
        let mut regions = BTreeSet::new();
        for id in &relays {
            let relay: RelayId = id.parse().map_err(|error| format!("relays: {id:?}: {error}"))?;
            regions.insert(relay.region().to_string());
        }
        if relays.is_empty() || (devices.is_empty() && gossip.is_none()) {
            return Err("relays and devices must not be empty".to_owned());
        }
        let mut own = BTreeMap::new();
        for (name, network) in networks {
            let bad = |what: String| format!("networks: {name:?}: {what}");
            if Access::named(&name).is_some() {
                return Err(bad("there is one of this name already".to_owned()));
            }
            own.insert(name.clone(), network.access().map_err(bad)?);
        }
        let mut names: BTreeSet<String> = relays.iter().chain(&regions).cloned().collect();
        let mut plan = Plan {
            networks: own,
            relays: relays.into_iter().map(|id| RelayPlan { id, settings: settings.clone() }).collect(),
            devices: devices.into_iter().map(|(id, access)| DevicePlan { id, access }).collect(),
            gossip: gossip.map(|gossip| gossip.network),
            steps: Vec::new(),
            heals,
            settles,
            events,
        };
        for DevicePlan { id, access } in &plan.devices {
            let device: DeviceId = id.parse().map_err(|error| format!("devices: {id:?}: {error}"))?;
            if !regions.contains(device.home().as_str()) {
                return Err(format!("devices: {id:?}: there is no relay of its region"));
            }
            if plan.access(access).is_none() {
                return Err(format!("devices: {id:?}: there is no access network {access:?}"));
            }
            names.extend([id.clone(), device.user().to_string()]);
        }
        for (number, step) in (1..).zip(step) {
            let bad = |what: String| format!("step {number}: {what}");
            let step = step.step().map_err(bad)?;
            check_names(&step, &plan, &names, &regions).map_err(bad)?;
            if step.at > heals {
                return Err(bad(format!("at {:?} is after all heals, at {heals:?}", step.at)));
            }
            plan.steps.push(step);
        }
        plan.steps.sort_by_key(|step| step.at);
        Ok(Self { about, random, plan })
    }

    /// What is played with a seed.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut plan = self.plan.clone();
        general::add(&mut plan, self.random, seed);
        plan
    }
}

fn check_names(step: &Step, plan: &Plan, names: &BTreeSet<String>, regions: &BTreeSet<String>) -> Result<(), String> {
    let known = |is: bool, kind: &str, id: &String| if is { Ok(()) } else { Err(format!("there is no {kind} {id:?}")) };
    let device = |id: &String| known(plan.devices.iter().any(|device| device.id == *id), "device", id);
    let user = |id: &String| {
        let is_user = id.parse::<UserId>().is_ok_and(|user| names.contains(user.as_str()));
        known(is_user, "user", id)
    };
    match &step.what {
        What::Do { device: id, action } => {
            device(id)?;
            match action {
                Action::Direct { with: id, .. } | Action::Add { user: id, .. } | Action::Remove { user: id, .. } => {
                    user(id)
                }
                Action::Group { members, .. } => members.iter().try_for_each(user),
                _ => Ok(()),
            }
        }
        What::Device { device: id, fault } => {
            device(id)?;
            match fault {
                DeviceFault::Access { access } | DeviceFault::Roam { access, .. } => {
                    known(plan.access(access).is_some(), "access network", access)
                }
                _ => Ok(()),
            }
        }
        What::Relay { relay, fault } => {
            let alone = matches!(fault, RelayFault::Crash { syncs: None, .. } | RelayFault::Stop | RelayFault::Freeze);
            if plan.gossip.is_some() && !alone {
                return Err("of membership alone a relay can crash, stop or freeze".to_owned());
            }
            known(plan.relays.iter().any(|known| known.id == *relay), "relay", relay)
        }
        What::Cut(cut) => match cut.from.iter().chain(&cut.to).find(|name| !names.contains(*name)) {
            Some(name) => Err(format!("there is nobody called {name:?}")),
            None => Ok(()),
        },
        What::Link(Link { from, to, with, .. }) => {
            for name in [from, to] {
                known(regions.contains(name), "region", name)?;
            }
            with.check()
        }
    }
}
