//! Relays and clients over real sockets: one module a behaviour.

mod addresses;
mod attachments;
mod blobs;
mod clients;
mod cluster;
mod commands;
mod copies;
mod costs;
mod crash;
mod door;
mod full_disk;
mod handover;
mod herd;
mod owners;
mod partition;
mod restores;
mod sessions;
mod sharing;
mod stores;
