//! Where a request belongs: the relay that decides for a user or chat, as their id says.
//!
//! With redb one relay of a region holds its store and owns all its users and chats. Where a region's relays share a store,
//! each owns those for whose ids it ranks first among the relays that are up; whoever is asked though another owns them
//! does it all the same, and the store sees to it that nothing is decided twice.

use crate::cluster::Cluster;
use crate::owner::Owner;
use crate::peers::PeerLink;
use crate::peers::frame::{PeerAsk, PeerFrame, PeerPage};
use bytes::Bytes;
use godwit_core::Command;
use godwit_wire::frame::Credential;
use godwit_wire::{ChatId, Code, DeviceId, Refusal, RegionId, RelayId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

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
    /// The owner of what concerns a region as a whole.
    pub(crate) fn route(&self, home: &RegionId) -> Route<'_> {
        self.to(home, &[])
    }

    /// The owner of a chat.
    pub(crate) fn route_chat(&self, chat: &ChatId) -> Route<'_> {
        self.to(chat.home(), &chat_key(chat))
    }

    /// The owner of a chat, or of its copy, for users of `region`.
    pub(crate) fn route_copy(&self, region: &RegionId, chat: &ChatId) -> Route<'_> {
        if chat.home() == region { self.route_chat(chat) } else { self.route(region) }
    }

    fn to(&self, home: &RegionId, key: &[u8]) -> Route<'_> {
        let nobody = || if self.cluster.is_alone() { Route::Nowhere } else { Route::Away };
        match (self.local(home), self.cluster.owner(home, key)) {
            (Some(owner), Some(relay)) if relay == *self.cluster.peers.me().relay() => Route::Here(owner),
            (_, Some(relay)) => self.cluster.peers.get(&relay).map_or_else(nobody, Route::There),
            (_, None) => nobody(),
        }
    }

    /// This relay, if it holds the store of `home` or shares it.
    pub(crate) fn local(&self, home: &RegionId) -> Option<&Owner> {
        self.owner.as_ref().filter(|_| *home == self.region)
    }

    /// This relay, if it owns `chat`.
    pub(crate) fn owns(&self, chat: &ChatId) -> Option<&Owner> {
        match self.route_chat(chat) {
            Route::Here(owner) => Some(owner),
            _ => None,
        }
    }

    /// The other relays that hold the store of `home` or share it.
    pub(crate) fn others(&self, home: &RegionId) -> BTreeSet<RelayId> {
        let mut owners = self.cluster.owners(home);
        owners.remove(self.cluster.peers.me().relay());
        owners.into_keys().collect()
    }

    /// A certificate for a token, which is used up at the store of `owner`. Relays that share it hear of the device before
    /// whoever asked does: what is committed from then on is for it as well.
    pub(crate) async fn enrol(&self, owner: &Owner, token: &str, csr: Bytes) -> Result<Vec<Credential>, Refusal> {
        let (device, issued) = owner.enrol(token, csr).await?;
        let mut telling = JoinSet::new();
        for relay in self.others(&self.region) {
            if let Some(peer) = self.cluster.peers.get(&relay) {
                let frame = PeerFrame::Enrolled { device: device.clone(), enrolment: issued.enrolment };
                telling.spawn(async move { peer.call(None, &frame).await });
            }
        }
        // One that cannot be told reads of the device when it connects; its user's lists have what was missed.
        while telling.join_next().await.is_some() {}
        Ok(issued.chain.into_iter().map(Credential).collect())
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

/// By what a chat's owner is found.
pub(crate) fn chat_key(chat: &ChatId) -> [u8; 16] {
    *chat.uuid().as_bytes()
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
