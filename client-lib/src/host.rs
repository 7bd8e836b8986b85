//! What a device is, as far as the client touches it: cryptography, clock, sockets. It comes in from outside, so that the
//! same client runs on a real device and in a simulation.

use godwit_certs::tls::Crypto;
use quinn::{AsyncUdpSocket, Runtime};
use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

/// Opens a UDP socket at an address. Called within the runtime.
pub type Bind = Arc<dyn Fn(SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> + Send + Sync>;

/// Whether a transaction on the device's store may be committed.
pub type MayCommit = Arc<dyn Fn() -> bool + Send + Sync>;

/// A device. Cloning shares it.
#[derive(Clone)]
pub struct Host {
    pub crypto: Crypto,
    pub bind: Bind,
    /// A simulation ends the app between two transactions with it.
    pub may_commit: Option<MayCommit>,
    /// Where work runs that blocks.
    pub threads: Threads,
}

/// Where work runs that blocks for long: reading and encrypting files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// On threads beside the runtime.
    System,
    /// Where it is asked for, in an order that does not vary: in a simulation.
    Inline,
}

impl Host {
    /// This machine.
    pub fn system() -> Self {
        let bind = |address| quinn::TokioRuntime.wrap_udp_socket(UdpSocket::bind(address)?);
        Self { crypto: Crypto::system(), bind: Arc::new(bind), may_commit: None, threads: Threads::System }
    }

    /// Runs `work` where it may block. Cancel safety: once this was polled, it runs to its end all the same.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self.threads {
            Threads::System => tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?,
            Threads::Inline => work(),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}
