//! Where a request belongs: the relay that decides for a user or chat, as their id says.
//!
//! With redb one relay of a region holds its store and decides for all its users and chats. Where a region's relays
//! share a store, the owner will be found by the id itself; callers ask with it already.

use crate::cluster::Cluster;
use crate::owner::Owner;
use crate::peers::PeerLink;
use crate::peers::frame::{PeerAsk, PeerPage};
use godwit_core::Command;
use godwit_wire::{Code, DeviceId, Refusal, RegionId, UserId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// When a client should try again if nobody decides for a region now.
const RETRY_AFTER: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub(crate) struct Router {
    pub(crate) region: RegionId,
    /// None at an edge.
    pub(crate) owner: Option<Owner>,
    pub(crate) cluster: Arc<Cluster>,
}

/// Who decides.
#[derive(Debug)]
pub(crate) enum Route<'a> {
    Here(&'a Owner),
    There(Arc<PeerLink>),
    /// Nobody who can be reached now.
    Away,
    /// This relay stands alone, and the home is another region.
    Nowhere,
}

impl Router {
    pub(crate) fn route(&self, home: &RegionId) -> Route<'_> {
        match &self.owner {
            Some(owner) if *home == self.region => Route::Here(owner),
            _ => match self.cluster.store_of(home).and_then(|relay| self.cluster.peers.get(&relay)) {
                Some(link) => Route::There(link),
                None if self.cluster.is_alone() => Route::Nowhere,
                None => Route::Away,
            },
        }
    }

    /// This relay, if it decides for `home`.
    pub(crate) fn owner_of(&self, home: &RegionId) -> Option<&Owner> {
        self.owner.as_ref().filter(|_| *home == self.region)
    }

    /// Users named in these commands who do not exist, where their home can be asked: it is not waited for.
    pub(crate) async fn missing(&self, commands: &[Command]) -> Vec<UserId> {
        let mut homes: BTreeMap<RegionId, Vec<UserId>> = BTreeMap::new();
        for user in commands.iter().flat_map(Command::added).filter(|user| !user.is_home(&self.region)) {
            homes.entry(user.home()).or_default().push(user.clone());
        }
        let mut missing = Vec::new();
        for (home, users) in homes {
            match self.route(&home) {
                Route::There(peer) => {
                    if let Ok(PeerPage::Missing(users)) = peer.ask_one(&PeerAsk::Missing(users)).await {
                        missing.extend(users);
                    }
                }
                Route::Nowhere => missing.extend(users),
                Route::Here(_) | Route::Away => {}
            }
        }
        missing
    }

    /// Hears whenever a route may have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.cluster.peers.changes()
    }
}

/// How a client hears that nobody decides for a region now.
pub(crate) fn away(home: &RegionId) -> Refusal {
    let why = format!("no relay that holds the store of region {home} can be reached");
    Refusal::retry(Code::Unavailable, RETRY_AFTER).explained(&why)
}

/// How a device hears that it belongs elsewhere.
pub(crate) fn nowhere(device: &DeviceId) -> Refusal {
    let why = format!("{device} belongs to region {}, which this relay knows nothing of", device.home());
    Refusal::because(Code::WrongDevice, why)
}

/// How a device hears that its home's store has another past than when it connected.
pub(crate) fn another_past() -> Refusal {
    let again = Duration::from_millis(fastrand::u64(0..5_000));
    Refusal::retry(Code::Unavailable, again).explained("the home's store was restored: connect again and compare")
}
