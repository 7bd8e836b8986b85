//! Relays and clients over real sockets: one module a behaviour.

mod commands;
mod crash;
mod door;
mod sessions;
mod store;
