//! Who a relay is to the cluster: fixed for the run of a process, unless the cluster declared it down by mistake.
//!
//! What changes while it runs (load, draining) is a [`Status`](crate::Status), not part of this.

use godwit_wire::RelayId;
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, SocketAddrV6};

/// What a relay does for its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// It owns users and chats.
    Store,
    /// It carries connections only.
    Edge,
    /// It shares the region's store with others, and owns some of the users and chats.
    Share,
}

impl Kind {
    /// Whether it owns users and chats.
    pub fn is_owner(self) -> bool {
        matches!(self, Self::Store | Self::Share)
    }
}

/// The versions of the peer protocol that a relay speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub min: u16,
    pub max: u16,
}

impl Versions {
    /// The highest version that both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let max = self.max.min(other.max);
        (max >= self.min.max(other.min)).then_some(max)
    }
}

/// One run of one relay.
///
/// Of two identities of a relay the one with the larger (epoch, renewal) wins. The epoch is the start of the process, so
/// a restarted relay replaces its old self at once. The renewal counts how often the cluster declared this run down by
/// mistake. It is a number beside the epoch and not a larger epoch because the process did not restart: its claims, and
/// the numbers of their changes, are the ones it had. Relays that dropped them at the false death see a newcomer and
/// pull them; relays that never heard of the death see only the renewal, keep what they have and lose nothing. A larger
/// epoch would make every relay throw away and pull what it already knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    relay: RelayId,
    addr: SocketAddr,
    epoch: u64,
    renewal: u32,
    versions: Versions,
    kind: Kind,
}

impl Identity {
    /// `addr` is what peers dial; `epoch` is the start of the process in milliseconds since 1970.
    pub fn new(relay: RelayId, addr: SocketAddr, epoch: u64, versions: Versions, kind: Kind) -> Self {
        // Flow label and scope mean nothing to others and do not travel; keeping them here would make the identity
        // that comes back from the cluster another one than ours.
        let addr = match addr {
            SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0).into(),
            SocketAddr::V4(_) => addr,
        };
        Self { relay, addr, epoch, renewal: 0, versions, kind }
    }

    pub fn relay(&self) -> &RelayId {
        &self.relay
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn renewal(&self) -> u32 {
        self.renewal
    }

    pub fn versions(&self) -> Versions {
        self.versions
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn age(&self) -> (u64, u32) {
        (self.epoch, self.renewal)
    }

    /// An identity of the same relay that replaces `other`, if `other` replaces this one. A relay meets a newer self when
    /// its clock went back between two starts.
    pub(crate) fn above(&self, other: &Self) -> Option<Self> {
        if self.relay != other.relay || self.age() >= other.age() {
            return None;
        }
        if self.epoch == other.epoch {
            return Some(Self { renewal: other.renewal.checked_add(1)?, ..self.clone() });
        }
        Some(Self { epoch: other.epoch.checked_add(1)?, renewal: 0, ..self.clone() })
    }
}

impl foca::Identity for Identity {
    type Addr = RelayId;

    fn renew(&self) -> Option<Self> {
        Some(Self { renewal: self.renewal.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> RelayId {
        self.relay.clone()
    }

    /// At a tie the known one stays, so that two texts of one identity cannot replace each other for ever.
    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.age() >= adversary.age()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foca::Identity as _;

    fn identity(epoch: u64) -> Identity {
        let versions = Versions { min: 1, max: 2 };
        Identity::new("eu/eu-1".parse().unwrap(), "[fe80::1%7]:443".parse().unwrap(), epoch, versions, Kind::Edge)
    }

    #[test]
    fn a_later_start_wins_and_a_renewal_wins_within_it() {
        let (old, new) = (identity(1), identity(2));
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new));
        let renewed = old.renew().unwrap();
        assert!(
            renewed.win_addr_conflict(&old) && !old.win_addr_conflict(&renewed) && !renewed.win_addr_conflict(&new)
        );
        assert_eq!((renewed.epoch(), renewed.relay()), (old.epoch(), old.relay()));
        let above = old.above(&new).unwrap();
        assert!(above.win_addr_conflict(&new) && !new.win_addr_conflict(&above) && new.above(&old).is_none());
    }

    #[test]
    fn an_identity_comes_back_as_it_was_sent() {
        let sent = identity(7);
        let back: Identity = postcard::from_bytes(&postcard::to_allocvec(&sent).unwrap()).unwrap();
        assert_eq!(back, sent);
    }

    #[test]
    fn versions_meet_at_the_highest_both_speak() {
        let speaks = |min, max| Versions { min, max };
        assert_eq!(speaks(1, 3).common(speaks(2, 5)), Some(3));
        assert_eq!(speaks(1, 1).common(speaks(2, 5)), None);
    }
}
