//! Who is who: the authority, certificates, enrolment tokens, and the TLS configurations built on them.
//!
//! One root, kept offline, certifies one issuer a region. A region's issuer certifies its relays and its users'
//! devices, and nobody of another region: [`identity`] checks that on every connection. Nothing here opens a socket or
//! reads a clock; the crypto provider and the time come in from outside.
//!
//! - [`authority`]: root, issuers, and what they sign
//! - [`folder`]: their files
//! - [`chain`]: whether a chain leads to the root
//! - [`identity`]: certificate → device or relay
//! - [`token`]: one-time enrolment tokens (JWT)
//! - [`ticket`]: a device's word that a relay may act for it
//! - [`tls`]: rustls configurations for relays and devices

pub mod authority;
pub mod chain;
pub mod folder;
pub mod identity;
pub mod ticket;
pub mod tls;
pub mod token;

pub use authority::{DeviceKey, Issuer, Root};
pub use identity::{Identity, IdentityError, Peer};
