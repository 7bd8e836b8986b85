//! A relay: takes devices' connections over QUIC, keeps chats and inboxes, and delivers.
//!
//! How a message travels: [`edge`] takes it from a device, [`store`] decides and commits it with everything that queued
//! up, only then the sender hears `sent`; [`fanout`] takes it to every recipient, and what a device does not take waits
//! in its inbox.
//!
//! - [`relay`]: starts the parts, stops them in order
//! - [`config`]: what can be set
//! - [`edge`]: devices, their sessions and lanes
//! - [`quic`]: the transport
//! - [`host`]: the machine a relay runs on, as it comes in from outside
//! - [`store`]: where chats, inboxes and devices are kept
//! - [`attachments`]: what the store's relay does for files that belong to messages; [`blobs`] where their bytes are kept;
//!   [`aws`] what S3 and DynamoDB say
//! - [`router`]: where a request belongs, [`rank`] by which relay; [`peers`] links to other relays; [`cluster`] who they are, and who is where
//! - [`outbox`]: requests that wait for a home out of reach
//! - [`owner`]: what the relay that holds the store does for a device
//! - [`revocations`]: enrolments that are shut out, of every region
//! - [`fanout`]: serves every recipient of every entry
//! - [`admin`]: health, metrics, commands for operators

mod admin;
mod attachments;
#[cfg(any(feature = "dynamodb", feature = "s3"))]
mod aws;
pub mod blobs;
pub mod cluster;
pub mod config;
mod edge;
mod fanout;
pub mod host;
pub mod metrics;
mod outbox;
mod owner;
mod peers;
mod quic;
mod rank;
mod relay;
mod revocations;
mod router;
mod seldom;
pub mod store;

pub use config::Config;
pub use host::Host;
pub use relay::{Relay, StartError};
