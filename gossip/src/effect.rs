//! What comes out of the core: effects, the timers among them, and counts.

use crate::membership::SwimTimer;
use crate::{Identity, Status};
use bytes::Bytes;
use godwit_wire::RelayId;
use std::time::Duration;

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the packet to this relay; it may get lost.
    Send { to: Identity, packet: Bytes },
    /// Hand the timer back to [`Gossip::timer`](crate::Gossip::timer) after this time.
    Timer { after: Duration, timer: Timer },
    /// A relay is up, or came to be known by a newer identity (another address, a renewal).
    Up(Identity),
    /// A relay is down, or the process was replaced by a newer one, whose `Up` follows. Its claims are gone.
    Down(Identity),
    /// A relay told how it is doing.
    Status { relay: RelayId, status: Status },
    /// Ask the relay for its claims ([`Gossip::claims_since`](crate::Gossip::claims_since)) over a stream, and hand the pages to
    /// [`Gossip::apply_page`](crate::Gossip::apply_page), or say [`Gossip::pull_failed`](crate::Gossip::pull_failed). Give it
    /// a deadline: a stream that never ends is not noticed here.
    Pull { relay: RelayId, epoch: u64, since: u64 },
    /// This relay goes by a new identity: tell it on new links.
    Renewed(Identity),
}

/// Something that comes due. Opaque: it goes back where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer(pub(crate) Due);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Swim(SwimTimer),
    Flush,
    Spread,
    Status,
    Pull { relay: RelayId, token: u64 },
}

/// Counts since the start, and two sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub packets_in: u64,
    pub packets_out: u64,
    pub packets_refused: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Items and heads of this relay's own claims, and its status.
    pub broadcasts_made: u64,
    pub pulls_asked: u64,
    pub pulls_failed: u64,
    pub pages_in: u64,
    /// How often the cluster declared this relay down by mistake.
    pub renewals: u64,
    /// Claims of other relays, by (user's hash, relay).
    pub claims_known: usize,
    /// Users claimed by this relay.
    pub claims_own: usize,
    /// Memory of the table of others' claims.
    pub claims_bytes: usize,
    /// Items waiting to be passed on.
    pub backlog: usize,
}
