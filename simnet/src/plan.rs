//! What happens in a run: where everything is, what people do, and what goes wrong, on one time line.
//!
//! A plan is made from a seed ([`crate::general`]) or read from a scenario file ([`crate::scenario`]), and played by
//! [`crate::play`]. It is plain data, so that parts of it can be left out to find the smallest that still fails.

use crate::disk::Unsynced;
use crate::world::places::{Access, PipeChanges};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A relay: the first of a region holds its store, those after it are edges; or all share it, as the settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayPlan {
    pub id: String,
    pub settings: Vec<(String, String)>,
}

/// What the settings of the membership are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    Lan,
    Wan,
}

/// A device with the access network it begins on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    pub id: String,
    pub access: String,
}

/// What a person does on a device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Begins a direct chat with a user, as `chat`.
    Direct {
        chat: String,
        with: String,
    },
    /// Begins a group, as `chat`.
    Group {
        chat: String,
        members: Vec<String>,
    },
    /// Sends so many messages at once.
    Send {
        chat: String,
        count: usize,
    },
    Add {
        chat: String,
        user: String,
    },
    Remove {
        chat: String,
        user: String,
    },
    Leave {
        chat: String,
    },
    /// Changes the title.
    Title {
        chat: String,
    },
    /// Redacts its own last message.
    Redact {
        chat: String,
    },
    /// Has read all that is there.
    Read {
        chat: String,
    },
    /// Reads back in the chat.
    History {
        chat: String,
    },
    /// Sends a file of so many bytes.
    Attach {
        chat: String,
        bytes: usize,
    },
    /// Gets the latest file that was sent in the chat.
    Fetch {
        chat: String,
    },
}

/// What goes wrong with a device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceFault {
    /// The app is killed, at once or once it has committed so many transactions.
    Kill {
        commits: Option<u64>,
    },
    /// The app is closed in order.
    Close,
    Offline,
    /// It is on another access network for a time.
    Access {
        access: String,
    },
    /// It moves to another network, where it stays.
    Roam {
        access: String,
        told: bool,
    },
    /// The address translator forgets it.
    Rebind,
    /// A backup is made, to come back to.
    BackUp,
    /// It comes back from its backup.
    Restore,
    /// Its home is lost, and it is enrolled anew.
    Lose,
    /// It is enrolled anew on the home that it has.
    Renew,
    /// Its operator shuts it out, and it stays out.
    Revoke,
    Clock {
        millis: i64,
    },
}

/// What goes wrong with a relay.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RelayFault {
    /// Power fails, at once or in the middle of the sync that is so many from now.
    Crash {
        unsynced: Unsynced,
        syncs: Option<u64>,
    },
    Stop,
    Drain,
    /// Its machine is suspended, and goes on as if nothing had been.
    Freeze,
    FailSync,
    FullDisk,
    SlowDisk {
        sync_millis: u64,
    },
    Clock {
        millis: i64,
    },
    /// A copy of its store's file is made, to come back to.
    BackUp,
    /// It loses power, and its store is the copy that was made.
    Restore,
    /// It loses power and its disk. Of a region's store, what was only there is gone; its devices are enrolled anew.
    Lose,
}

/// Nothing passes from one to the other: relays, devices, users (their devices) or regions (their relays).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    pub from: Vec<String>,
    pub to: Vec<String>,
    #[serde(default)]
    pub both: bool,
}

/// What packets meet between two regions, or within one.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub from: String,
    pub to: String,
    #[serde(default)]
    pub both: bool,
    /// What is different from the usual.
    pub with: PipeChanges,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Do { device: String, action: Action },
    Device { device: String, fault: DeviceFault },
    Relay { relay: String, fault: RelayFault },
    Cut(Cut),
    Link(Link),
}

/// One thing on the time line.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub at: Duration,
    /// How long what goes wrong lasts.
    pub lasts: Duration,
    pub what: What,
}

impl Step {
    pub fn is_fault(&self) -> bool {
        !matches!(self.what, What::Do { .. })
    }
}

fn arrow(both: bool) -> &'static str {
    if both { "<->" } else { "->" }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>8.3} s ", self.at.as_secs_f64())?;
        match &self.what {
            What::Do { device, action } => return write!(f, "{device} {action:?}"),
            What::Device { device, fault } => write!(f, "{device} {fault:?}")?,
            What::Relay { relay, fault } => write!(f, "{relay} {fault:?}")?,
            What::Cut(Cut { from, to, both }) => {
                write!(f, "cut {} {} {}", from.join(" "), arrow(*both), to.join(" "))?;
            }
            What::Link(Link { from, to, both, with }) => write!(f, "link {from} {} {to}{with}", arrow(*both))?,
        }
        write!(f, ", for {:.3} s", self.lasts.as_secs_f64())
    }
}

/// A whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Access networks of its own, by name.
    pub networks: BTreeMap<String, Access>,
    pub relays: Vec<RelayPlan>,
    /// Relays are their membership cores alone, with the settings of this network.
    pub gossip: Option<Network>,
    pub devices: Vec<DevicePlan>,
    /// In the order of their time.
    pub steps: Vec<Step>,
    /// When all faults end.
    pub heals: Duration,
    /// Within this after that everything must have reached everyone.
    pub settles: Duration,
    /// Apps must be told at least so much, or nothing was tried.
    pub events: u64,
}

impl Plan {
    /// Whether relays are to keep files.
    pub(crate) fn has_files(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.what, What::Do { action: Action::Attach { .. }, .. }))
    }

    /// An access network by its name.
    pub(crate) fn access(&self, name: &str) -> Option<Access> {
        self.networks.get(name).copied().or_else(|| Access::named(name))
    }
}
