//! How a relay is doing: told to others whenever it changed notably, the newest wins.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub connections: u32,
    pub cpu_permille: u16,
    /// How long a durable commit takes.
    pub commit_micros: u32,
    /// It hands its devices over and takes no new ones.
    pub draining: bool,
}

impl Status {
    /// Whether others would act otherwise on this than on `old`. Small changes only ride on the relay's own packets.
    pub(crate) fn notable(&self, old: &Self) -> bool {
        self.draining != old.draining
            || self.connections.abs_diff(old.connections) > (old.connections / 8).max(50)
            || self.cpu_permille.abs_diff(old.cpu_permille) > 100
            || self.commit_micros.abs_diff(old.commit_micros) > old.commit_micros.max(1000)
    }
}
