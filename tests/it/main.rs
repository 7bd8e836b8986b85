//! Relays and clients over real sockets: one module a behaviour.

mod door;
mod sessions;
