//! What an operator sees of a cluster, as one of its relays knows it. `godwit status` prints it.

use super::Cluster;
use godwit_gossip::{Identity, Kind, Stats, Status};
use godwit_wire::RelayId;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub relay: RelayId,
    /// All relays that are up, this one among them, and those that went down within the last hour, by their ids.
    pub members: Vec<MemberReport>,
    /// Users claimed by this relay.
    pub claims_own: usize,
    /// Claims of the others that are known here.
    pub claims_known: usize,
    /// Requests that wait at this relay for a home out of reach.
    pub outbox: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberReport {
    pub relay: RelayId,
    pub region: String,
    /// `store` or `edge`.
    pub role: String,
    pub address: SocketAddr,
    /// `up`, `draining`, or `down`.
    pub state: String,
    /// Devices connected; none until it was told.
    pub connections: Option<u32>,
    pub cpu_permille: Option<u16>,
    pub commit_micros: Option<u32>,
    /// Users that it claims, as far as they are known here.
    pub claims: usize,
    /// Of its store; changes when that was restored from a backup. None for an edge, and without a link.
    pub generation: Option<u64>,
    /// None for this relay itself, and for one without a link.
    pub link: Option<LinkReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The version of the protocol that both ends speak.
    pub version: u16,
    pub round_trip_micros: u64,
    pub queued_bytes: usize,
}

/// The state of a relay that went down.
const DOWN: &str = "down";

impl MemberReport {
    pub fn is_up(&self) -> bool {
        self.state != DOWN
    }
}

impl Cluster {
    pub(crate) fn report(&self, outbox: usize) -> Report {
        let me = self.peers.me();
        let stats = self.stats();
        let own = (me.clone(), Some(self.status()), stats.claims_own);
        let others = self.members().into_iter().map(|member| {
            let claims = self.claims_of(member.identity.relay());
            (member.identity, member.status, claims)
        });
        let up = others.chain([own]).map(|(identity, status, claims)| {
            let state = if status.is_some_and(|status| status.draining) { "draining" } else { "up" };
            self.member(&identity, state, status, claims)
        });
        let down = self.lost().into_iter().map(|identity| self.member(&identity, DOWN, None, 0));
        let mut members: Vec<_> = up.chain(down).collect();
        members.sort_by(|a, b| a.relay.as_str().cmp(b.relay.as_str()));
        let Stats { claims_own, claims_known, .. } = stats;
        Report { relay: me.relay().clone(), members, claims_own, claims_known, outbox }
    }

    fn member(&self, identity: &Identity, state: &str, status: Option<Status>, claims: usize) -> MemberReport {
        let link = self.peers.get(identity.relay());
        let role = match identity.kind() {
            Kind::Store => "store",
            Kind::Edge => "edge",
            Kind::Share => "share",
        };
        MemberReport {
            relay: identity.relay().clone(),
            region: identity.relay().region().to_string(),
            role: role.to_owned(),
            address: identity.addr(),
            state: state.to_owned(),
            connections: status.map(|status| status.connections),
            cpu_permille: status.map(|status| status.cpu_permille),
            commit_micros: status.map(|status| status.commit_micros),
            claims,
            generation: link.as_ref().and_then(|link| link.generation),
            link: link.map(|link| LinkReport {
                version: link.version,
                round_trip_micros: u64::try_from(link.connection.round_trip().as_micros()).unwrap_or(u64::MAX),
                queued_bytes: link.queued_bytes(),
            }),
        }
    }
}
