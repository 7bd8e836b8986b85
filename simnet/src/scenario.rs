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
//! files = 3
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
//! What happens to a relay or device while something happens to it already is left out (the trace says so). A link is as the
//! latest step has it, until the first of those that change it ends.
//!
//! Instead of relays and devices, `gossip = { relays = 1000, regions = ["eu", "us"], network = "wan" }` has the membership
//! cores of so many relays, `eu/eu-1`, `us/us-1`, `eu/eu-2` and so on, and nothing else.
//!
//! What can stand there is listed at [`Action`], [`DeviceFault`], [`RelayFault`], [`Cut`], [`Link`] and [`PipeChanges`]. Names
//! of chats are the file's own; they are the titles of groups. Unknown keys and names are refused with their line or step.

use crate::general;
use crate::plan::{Action, Cut, DeviceFault, DevicePlan, Link, Network, Plan, RelayFault, RelayPlan, Step, What};
use crate::world::places::{Access, PipeChanges, time};
use godwit_client::{DeviceId, UserId};
use godwit_relay::config::Layers;
use godwit_wire::RelayId;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: {error}", path.display())]
    Syntax { path: PathBuf, error: Box<toml::de::Error> },
    #[error("there is no step {number} of {count} to leave out; the first is 0")]
    NoStep { number: usize, count: usize },
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
    /// Sent and had.
    pub files: usize,
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
        let distinct: BTreeSet<&String> = self.regions.iter().collect();
        if distinct.len() != self.regions.len() {
            return Err("gossip: a region is there twice".to_owned());
        }
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
            std::fs::read_to_string(path).map_err(|error| ScenarioError::Read { path: path.to_owned(), error })?;
        let file: File = toml::from_str(&text)
            .map_err(|error| ScenarioError::Syntax { path: path.to_owned(), error: Box::new(error) })?;
        Self::check(file).map_err(|what| ScenarioError::Meaning { path: path.to_owned(), what })
    }

    fn check(file: File) -> Result<Self, String> {
        let File { about, mut relays, gossip, devices, networks, heals, settles, events, settings, random, step } =
            file;
        let settings: Vec<(String, String)> = settings.into_iter().collect();
        if let Some(gossip) = &gossip {
            if !(relays.is_empty() && devices.is_empty() && settings.is_empty() && random == Random::default()) {
                return Err("gossip has relays of its own; there are no devices, settings or random".to_owned());
            }
            relays = gossip.names()?;
        }
        let mut regions = BTreeSet::new();
        for id in &relays {
            let relay: RelayId = id.parse().map_err(|error| format!("relays: {id:?}: {error}"))?;
            regions.insert(relay.region().to_string());
            if relays.iter().filter(|other| *other == id).count() > 1 {
                return Err(format!("relays: {id:?} is there twice"));
            }
        }
        check_settings(&settings)?;
        for (name, time) in [("heals", heals), ("settles", settles)] {
            if time > LONGEST {
                return Err(format!("{name} must be at most {LONGEST:?}"));
            }
        }
        if relays.len() > GossipFile::MOST || devices.len() > MOST_DEVICES {
            return Err(format!("there can be {} relays and {MOST_DEVICES} devices at most", GossipFile::MOST));
        }
        if [random.chats, random.actions, random.faults, random.files].iter().any(|count| *count > MOST_RANDOM) {
            return Err(format!("random: chats, actions, faults and files are at most {MOST_RANDOM} each"));
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
            check_amounts(&step).map_err(bad)?;
            if step.at > heals {
                return Err(bad(format!("at {:?} is after all heals, at {heals:?}", step.at)));
            }
            plan.steps.push(step);
        }
        plan.steps.sort_by_key(|step| step.at);
        check_order(&plan.steps, random.chats)?;
        Ok(Self { about, random, plan })
    }

    /// What is played with a seed.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut plan = self.plan.clone();
        general::add(&mut plan, self.random, seed);
        plan
    }
}

/// Settings of relays that the simulation makes itself.
const OWN_SETTINGS: [&str; 6] = ["listen", "admin", "certs", "data", "cluster.role", "cluster.join"];
/// No run is longer.
const LONGEST: Duration = Duration::from_hours(366 * 24);
const MOST_DEVICES: usize = 10_000;
const MOST_RANDOM: usize = 100_000;
/// Messages at once.
const MOST_MESSAGES: usize = 10_000;
/// Of a file; it is held in memory.
const MOST_BYTES: usize = 100_000_000;
const SLOWEST_DISK_MILLIS: u64 = 60_000;

fn check_settings(settings: &[(String, String)]) -> Result<(), String> {
    let mut layers = Layers::default();
    for (key, value) in settings {
        if OWN_SETTINGS.contains(&key.as_str()) {
            return Err(format!("settings: {key} is the simulation's own"));
        }
        layers.flag("settings", key, value).map_err(|error| error.to_string())?;
    }
    layers.config().map(drop).map_err(|error| error.to_string())
}

fn check_amounts(step: &Step) -> Result<(), String> {
    if step.lasts > LONGEST {
        return Err(format!("lasts must be at most {LONGEST:?}"));
    }
    match &step.what {
        What::Do { action: Action::Send { count, .. }, .. } if !(1..=MOST_MESSAGES).contains(count) => {
            Err(format!("count must be from 1 to {MOST_MESSAGES}"))
        }
        What::Do { action: Action::Attach { bytes, .. }, .. } if *bytes > MOST_BYTES => {
            Err(format!("bytes must be at most {MOST_BYTES}"))
        }
        What::Relay { fault: RelayFault::SlowDisk { sync_millis }, .. } if *sync_millis > SLOWEST_DISK_MILLIS => {
            Err(format!("sync_millis must be at most {SLOWEST_DISK_MILLIS}"))
        }
        What::Cut(Cut { from, to, .. }) if from.is_empty() || to.is_empty() => {
            Err("cut: from and to must not be empty".to_owned())
        }
        What::Cut(_) | What::Link(_) if step.lasts.is_zero() => {
            Err("lasts is missing: nothing would happen".to_owned())
        }
        _ => Ok(()),
    }
}

/// What needs something before it: chats that have begun (or will, at random), and backups.
fn check_order(steps: &[Step], random_chats: usize) -> Result<(), String> {
    let mut chats: BTreeSet<String> = (0..random_chats).map(|number| format!("r{number}")).collect();
    let mut backups: BTreeSet<&String> = BTreeSet::new();
    for step in steps {
        let at = |what: String| Err(format!("the step at {:?}: {what}", step.at));
        match &step.what {
            What::Do { action: Action::Direct { chat, .. } | Action::Group { chat, .. }, .. } => {
                chats.insert(chat.clone());
            }
            What::Do {
                action:
                    Action::Send { chat, .. }
                    | Action::Add { chat, .. }
                    | Action::Remove { chat, .. }
                    | Action::Leave { chat }
                    | Action::Title { chat }
                    | Action::Redact { chat }
                    | Action::Read { chat }
                    | Action::History { chat }
                    | Action::Attach { chat, .. }
                    | Action::Fetch { chat },
                ..
            } if !chats.contains(chat) => return at(format!("no chat {chat:?} was begun before")),
            What::Device { device: id, fault: DeviceFault::BackUp }
            | What::Relay { relay: id, fault: RelayFault::BackUp } => {
                backups.insert(id);
            }
            What::Device { device: id, fault: DeviceFault::Restore }
            | What::Relay { relay: id, fault: RelayFault::Restore }
                if !backups.contains(id) =>
            {
                return at(format!("{id} was not backed up before"));
            }
            _ => {}
        }
    }
    Ok(())
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
