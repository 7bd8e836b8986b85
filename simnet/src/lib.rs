//! Godwit in a simulated world: the real relays and the real client library under a seeded, hostile network.
//!
//! Nothing of a relay or client is replaced. Their network, clock, randomness, disk and threads come in from outside
//! (`godwit_relay::Host`, `godwit_client::Host`), and here they come from a [`Sim`]: one thread, tokio's clock stopped, so
//! that time passes only when nobody has anything to do, and everything that happens follows from one number. A day with
//! three relays passes in seconds, and can be had again.
//!
//! A test of your own app's logic on the client library:
//!
//! ```
//! use godwit_client::{Content, Event, MessageState};
//! use godwit_simnet::{Access, Options, Sim, Unsynced};
//! use std::time::Duration;
//!
//! # fn main() -> anyhow::Result<()> {
//! Sim::run(&Options::seed(1), async |sim| {
//!     sim.relay("eu/eu-1", &[]).await?;
//!     let alice = sim.device("alice@eu/phone", Access::WIFI).await?;
//!     let bob = sim.device("bob@eu/phone", Access::TRAIN).await?;
//!     let (chat, _) = alice.direct("bob@eu".parse()?)?;
//!     let message = alice.send(&chat, Content::text("hello"))?;
//!     sim.crash("eu/eu-1", Unsynced::Lost)?;
//!     sim.sleep(Duration::from_secs(5)).await;
//!     sim.start("eu/eu-1").await?;
//!     alice.wait_for(message, MessageState::Delivered, Duration::from_secs(60)).await?;
//!     let mut events = bob.events()?;
//!     while let Some(next) = events.next().await.transpose()? {
//!         bob.acknowledge(&next)?;
//!         if matches!(next.event, Event::MessageReceived { .. }) {
//!             break;
//!         }
//!     }
//!     Ok(())
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! Use `tokio::time` and [`Sim::rng`] in it; what asks the system for time, or waits for it, is outside of the simulation.
//! A run is the same, byte for byte of its trace, for the same seed and build in a process of its own; where several
//! simulations share a process, as tests do, tokio wakes those who wait for one thing in an order that may depend on how
//! many runtimes were made before. TLS draws the keys of its connections itself: the bytes on the wire differ between runs,
//! their number and times do not.
//!
//! - [`sim`]: one simulation: relays, devices, what happens to them
//! - [`world`]: the network between them; [`world::places`] regions and access networks
//! - [`godwit_checker`]: the promises, in a library of their own
//! - [`plan`]: what happens in a run, as data; [`play`] plays it
//! - [`report`]: a page that shows a run
//! - [`general`]: a bad day from a seed; [`scenario`] one from a file

mod disk;
mod entropy;
pub mod general;
mod membership;
pub mod plan;
pub mod play;
pub mod report;
pub mod scenario;
pub mod sim;
mod trace;
pub mod world;

pub use disk::{SimDisk, Unsynced};
pub use godwit_core::sabotage::Sabotage;
pub use sim::{Options, Ran, Sim, virtual_time};
pub use world::places::Access;
