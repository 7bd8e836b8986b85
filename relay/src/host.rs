//! The machine a relay runs on, as far as the relay touches it. It comes in from outside, so that the same relay runs on
//! a real machine ([`Host::system`]) and in a simulation.
//!
//! - [`Network`], its sockets
//! - [`Disk`], what is in the data folder
//! - [`Threads`], where work runs that blocks
//!
//! Cryptography, randomness and the wall clock are in [`Crypto`]; the time that passes is tokio's. Certificates and
//! configuration are read from real files in either case.

mod disk;
mod threads;

pub use disk::{Disk, SystemDisk};
pub use threads::{Thread, Threads};

use crate::quic::endpoint;
use crate::store::shared::engine::Engine;
use godwit_certs::tls::Crypto;
use quinn::{AsyncUdpSocket, Runtime};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

/// Where a relay's sockets come from.
pub trait Network: Send + Sync + fmt::Debug + 'static {
    /// The one UDP port. Called within the runtime.
    fn udp(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;
    /// The admin port; none where there is no TCP, and then the relay has no admin port.
    fn tcp(&self, address: SocketAddr) -> io::Result<Option<TcpListener>>;
}

/// The system's sockets.
#[derive(Clone, Copy, Debug)]
pub struct SystemNetwork;

impl Network for SystemNetwork {
    fn udp(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(endpoint::bind(address)?)
    }

    fn tcp(&self, address: SocketAddr) -> io::Result<Option<TcpListener>> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }
}

/// What a relay runs on. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Host {
    pub crypto: Crypto,
    pub network: Arc<dyn Network>,
    pub disk: Arc<dyn Disk>,
    pub threads: Threads,
    /// The shared store of the region where it is not reached as the configuration says: in a simulation.
    pub shared: Option<Arc<dyn Engine>>,
}

impl Host {
    /// This machine.
    pub fn system() -> Self {
        Self {
            crypto: Crypto::system(),
            network: Arc::new(SystemNetwork),
            disk: Arc::new(SystemDisk),
            threads: Threads::System,
            shared: None,
        }
    }
}
