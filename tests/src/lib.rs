//! What tests, benchmarks and the load command stand on: relays to talk to, and raw sessions that speak the protocol
//! frame by frame.
//!
//! - [`counted`]: what a shared store is asked, counted
//! - [`dynamo`]: real servers of the DynamoDB API
//! - [`lab`]: a relay in this process, with its authority in a temporary folder
//! - [`netns`]: networks that can be cut
//! - [`process`]: the real commands as child processes
//! - [`cluster`]: several relays in this process
//! - [`processes`]: a cluster of such
//! - [`proxy`]: somebody between relays and such a server
//! - [`seaweed`]: a real S3 server
//! - [`servers`]: how such servers are started
//! - [`talk`]: clients that talk
//! - [`wire`]: a session on the wire, without the client library

pub mod cluster;
pub mod counted;
pub mod dynamo;
pub mod lab;
pub mod netns;
pub mod process;
pub mod processes;
pub mod proxy;
pub mod seaweed;
pub mod servers;
pub mod talk;
pub mod wire;
