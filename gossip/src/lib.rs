//! Which relays are up, and who is connected where: SWIM membership with presence claims, as a core without I/O.
//!
//! [`Gossip`] is the whole of it. Packets, timers and calls go in; [`Effect`]s come out: send this, come back then, this
//! relay is up, pull claims from that one. No clock, socket, randomness or `async` inside: time enters only as timers
//! that come due, randomness as a seed. What comes from the network is checked before it is believed, and what it can
//! make grow has a bound.
//!
//! - [`gossip`]: the core; [`effect`]: what comes out of it
//! - [`identity`]: who a relay is, and which of two selves wins
//! - [`config`]: every knob; settings for LAN and WAN
//! - `membership`: foca, wrapped; `roster`: who is up, and what was heard of each
//! - `own`: this relay's claims, numbered
//! - `presence`: what others claim; `peer`: how far one of them is known, and pulls; `table`: the compact table
//! - `broadcast`: what rides on packets; `packet`: how a packet is laid out and checked; [`page`]: what a pull brings
//!
//! A claim is a hint. A late or wrong one costs a detour, never a message.

mod broadcast;
pub mod config;
pub mod effect;
pub mod gossip;
mod hash;
pub mod identity;
mod membership;
mod own;
mod packet;
pub mod page;
mod peer;
mod presence;
mod roster;
mod status;
mod table;

pub use config::{Config, ConfigError, PresenceScope};
pub use effect::{Effect, Stats, Timer};
pub use gossip::Gossip;
pub use hash::{Change, UserHash};
pub use identity::{Identity, Kind, Versions};
pub use packet::PacketError;
pub use page::{ClaimsPage, PAGE_CLAIMS, Pages, Part};
pub use peer::{PageError, Progress};
pub use roster::Member;
pub use status::Status;
