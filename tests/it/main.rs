//! Relays and clients over real sockets: one module a behaviour.

mod clients;
mod commands;
mod crash;
mod door;
mod sessions;
mod store;
