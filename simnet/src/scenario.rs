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
//! ```
//!
//! What can stand there is listed at [`Action`], [`DeviceFault`], [`RelayFault`] and [`Cut`]. Names of chats are the file's
//! own; they are the titles of groups. Unknown keys and names are refused with their line or step.

use crate::general;
use crate::plan::{Action, Cut, DeviceFault, DevicePlan, Plan, RelayFault, RelayPlan, Step, What};
use crate::world::places::Access;
use godwit_client::{DeviceId, UserId};
use godwit_wire::RelayId;
use serde::{Deserialize, Deserializer};
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

fn time<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    humantime::parse_duration(&text).map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
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
}

impl StepFile {
    fn step(self) -> Result<Step, String> {
        let Self { at, lasts, device, relay, does, suffers, fails, cut } = self;
        let what = match (device, relay, does, suffers, fails, cut) {
            (Some(device), None, Some(action), None, None, None) => What::Do { device, action },
            (Some(device), None, None, Some(fault), None, None) => What::Device { device, fault },
            (None, Some(relay), None, None, Some(fault), None) => What::Relay { relay, fault },
            (None, None, None, None, None, Some(cut)) => What::Cut(cut),
            _ => return Err("must have device and does, device and suffers, relay and fails, or cut".to_owned()),
        };
        Ok(Step { at, lasts, what })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    relays: Vec<String>,
    devices: BTreeMap<String, String>,
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
        let File { about, relays, devices, heals, settles, events, settings, random, step } = file;
        let settings: Vec<(String, String)> = settings.into_iter().collect();
        let mut regions = BTreeSet::new();
        for id in &relays {
            let relay: RelayId = id.parse().map_err(|error| format!("relays: {id:?}: {error}"))?;
            regions.insert(relay.region().to_string());
        }
        if relays.is_empty() || devices.is_empty() {
            return Err("relays and devices must not be empty".to_owned());
        }
        let mut names: BTreeSet<String> = relays.iter().chain(&regions).cloned().collect();
        for (id, access) in &devices {
            let device: DeviceId = id.parse().map_err(|error| format!("devices: {id:?}: {error}"))?;
            if !regions.contains(device.home().as_str()) {
                return Err(format!("devices: {id:?}: there is no relay of its region"));
            }
            if Access::named(access).is_none() {
                return Err(format!("devices: {id:?}: there is no access network {access:?}"));
            }
            names.extend([id.clone(), device.user().to_string()]);
        }
        let mut steps = Vec::new();
        for (number, step) in (1..).zip(step) {
            let bad = |what: String| format!("step {number}: {what}");
            let step = step.step().map_err(bad)?;
            check_names(&step, &relays, &devices, &names).map_err(bad)?;
            if step.at > heals {
                return Err(bad(format!("at {:?} is after all heals, at {heals:?}", step.at)));
            }
            steps.push(step);
        }
        steps.sort_by_key(|step| step.at);
        let plan = Plan {
            relays: relays.into_iter().map(|id| RelayPlan { id, settings: settings.clone() }).collect(),
            devices: devices.into_iter().map(|(id, access)| DevicePlan { id, access }).collect(),
            steps,
            heals,
            settles,
            events,
        };
        Ok(Self { about, random, plan })
    }

    /// What is played with a seed.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut plan = self.plan.clone();
        general::add(&mut plan, self.random, seed);
        plan
    }
}

fn check_names(
    step: &Step,
    relays: &[String],
    devices: &BTreeMap<String, String>,
    names: &BTreeSet<String>,
) -> Result<(), String> {
    let known = |is: bool, kind: &str, id: &String| if is { Ok(()) } else { Err(format!("there is no {kind} {id:?}")) };
    let device = |id: &String| known(devices.contains_key(id), "device", id);
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
                DeviceFault::Access { access } | DeviceFault::Roam { access, .. }
                    if Access::named(access).is_none() =>
                {
                    Err(format!("there is no access network {access:?}"))
                }
                _ => Ok(()),
            }
        }
        What::Relay { relay, .. } => known(relays.contains(relay), "relay", relay),
        What::Cut(cut) => match cut.from.iter().chain(&cut.to).find(|name| !names.contains(*name)) {
            Some(name) => Err(format!("there is nobody called {name:?}")),
            None => Ok(()),
        },
    }
}
