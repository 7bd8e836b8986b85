//! Makes a connection: resolves addresses, tries them a little apart, takes the first that answers.

use crate::error::Error;
use crate::host::Host;
use godwit_certs::authority::Credential;
use godwit_certs::identity::{self, Identity};
use godwit_certs::tls::{self, Crypto};
use godwit_wire::{Code, RELAY_SERVER_NAME, Refusal, RelayId, codec};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    AsyncUdpSocket, ClientConfig, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// How much later the next address is tried.
const STAGGER: Duration = Duration::from_millis(250);
/// One attempt's time.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Well under the relay's idle time-out, and under what NATs forget after.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is sent and not acknowledged, at most: how far a file is must not be told too early.
const SEND_WINDOW: u64 = 4 << 20;
/// Event lanes that a relay may open.
const EVENT_LANES: u32 = 16;

/// A socket for each family, made when first used. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    host: Host,
    endpoints: Arc<Mutex<Endpoints>>,
}

#[derive(Debug, Default)]
struct Endpoints {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

impl Sockets {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, endpoints: Arc::default() }
    }

    fn socket(&self, v6: bool) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        let any = if v6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
        (self.host.bind)(any)
    }

    fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, Error> {
        let v6 = address.is_ipv6();
        let mut endpoints = self.endpoints();
        let slot = if v6 { &mut endpoints.v6 } else { &mut endpoints.v4 };
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let unreachable = |error: std::io::Error| Error::Unreachable(format!("no socket: {error}"));
        let socket = self.socket(v6).map_err(unreachable)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut config = EndpointConfig::default();
        config.rng_seed(Some(self.host.crypto.random()));
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, runtime).map_err(unreachable)?;
        *slot = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Moves to new sockets: connections go on from there (QUIC path migration, RFC 9000, section 9).
    pub(crate) fn rebind(&self) -> std::io::Result<()> {
        let endpoints = self.endpoints();
        for (endpoint, v6) in [(&endpoints.v4, false), (&endpoints.v6, true)] {
            if let Some(endpoint) = endpoint {
                endpoint.rebind_abstract(self.socket(v6)?)?;
            }
        }
        Ok(())
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("30 s fit a QUIC time-out")))
        .max_concurrent_uni_streams(VarInt::from_u32(EVENT_LANES))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

/// A connection to a relay.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) connection: quinn::Connection,
    /// As its certificate says.
    pub(crate) relay: RelayId,
    /// The one of those given that led to it.
    pub(crate) address: String,
}

/// How to prove oneself, and whom to trust.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    config: ClientConfig,
}

impl Dialer {
    pub(crate) fn new(
        crypto: &Crypto,
        authority: &CertificateDer<'_>,
        credential: Option<Credential>,
        alpn: &[u8],
    ) -> Result<Self, Error> {
        let certificates = |error: &dyn ToString| Error::Certificates(error.to_string());
        let tls = tls::client(crypto, authority, credential, alpn).map_err(|e| certificates(&e))?;
        let quic = QuicClientConfig::try_from(tls).map_err(|e| certificates(&e))?;
        let mut config = ClientConfig::new(Arc::new(quic));
        config.transport_config(Arc::new(transport()));
        Ok(Self { config })
    }

    /// Connects to the first of `addresses` (`host:port`, DNS names may have several addresses) that answers and is none
    /// of the relays to `avoid`.
    ///
    /// Cancel safety: attempts under way are given up.
    pub(crate) async fn connect(
        &self,
        sockets: &Sockets,
        addresses: &[String],
        avoid: &[RelayId],
    ) -> Result<Dialed, Error> {
        let mut candidates = Vec::new();
        let mut last = Error::Unreachable("no relay's address is known".to_owned());
        for address in addresses {
            match tokio::net::lookup_host(address.as_str()).await {
                Ok(found) => candidates.extend(found.map(|found| (found, address.clone()))),
                Err(error) => last = Error::Unreachable(format!("{address}: {error}")),
            }
        }
        let mut attempts = JoinSet::new();
        for (turn, (candidate, address)) in (0u32..).zip(candidates) {
            let endpoint = match sockets.endpoint(candidate) {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let config = self.config.clone();
            attempts.spawn(async move {
                tokio::time::sleep(STAGGER * turn).await;
                let (connection, relay) = attempt(&endpoint, config, candidate).await?;
                Ok(Dialed { connection, relay, address })
            });
        }
        while let Some(result) = attempts.join_next().await {
            match result {
                Ok(Ok(connected)) if avoid.contains(&connected.relay) => {
                    connected.connection.close(VarInt::from_u32(0), b"");
                    last = Error::Unreachable(format!("{}: the relay to be left", connected.address));
                }
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => last = error,
                Err(error) => last = Error::Unreachable(error.to_string()),
            }
        }
        Err(last)
    }
}

async fn attempt(
    endpoint: &Endpoint,
    config: ClientConfig,
    address: SocketAddr,
) -> Result<(quinn::Connection, RelayId), Error> {
    let connecting = endpoint
        .connect_with(config, address, RELAY_SERVER_NAME)
        .map_err(|error| Error::Unreachable(format!("{address}: {error}")))?;
    let connection = tokio::time::timeout(ATTEMPT, connecting)
        .await
        .map_err(|_| Error::Unreachable(format!("{address}: no answer")))?
        .map_err(|error| ended(&error, address))?;
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    if let Some(Ok(Identity::Relay(relay))) = chain.map(|chain| identity::identity(&chain)) {
        return Ok((connection, relay));
    }
    connection.close(VarInt::from_u32(Code::Unauthenticated.number().into()), b"");
    Err(Error::Certificates(format!("{address}: what answers there is not a relay")))
}

/// TLS alerts (RFC 8446, section 6) as QUIC carries them.
const CRYPTO_ERROR: u64 = 0x100;
const BAD_CERTIFICATE: u64 = 42;
const CERTIFICATE_EXPIRED: u64 = 45;
const CERTIFICATE_UNKNOWN: u64 = 46;
const UNKNOWN_CA: u64 = 48;
/// A signature that does not verify: another authority of the same name.
const DECRYPT_ERROR: u64 = 51;

/// Why a connection ended, as an app hears it.
pub(crate) fn ended(error: &ConnectionError, address: SocketAddr) -> Error {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            Error::Refused(codec::decode_reason(close.error_code.into_inner(), &close.reason))
        }
        ConnectionError::ConnectionClosed(close) => {
            let code = u64::from(close.error_code);
            match code.checked_sub(CRYPTO_ERROR) {
                Some(CERTIFICATE_EXPIRED) => Error::Refused(Code::CertificateExpired.into()),
                Some(BAD_CERTIFICATE | CERTIFICATE_UNKNOWN | UNKNOWN_CA | DECRYPT_ERROR) => Error::Refused(
                    Refusal::because(Code::Unauthenticated, "the relay's authority did not issue this certificate"),
                ),
                _ => Error::Unreachable(format!("{address}: {close}")),
            }
        }
        ConnectionError::TransportError(error) => {
            let code = u64::from(error.code);
            match code.checked_sub(CRYPTO_ERROR) {
                Some(BAD_CERTIFICATE | CERTIFICATE_EXPIRED | CERTIFICATE_UNKNOWN | UNKNOWN_CA | DECRYPT_ERROR) => {
                    Error::Certificates(format!("{address}: the relay's certificate is not of our authority: {error}"))
                }
                _ => Error::Unreachable(format!("{address}: {error}")),
            }
        }
        other => Error::Unreachable(format!("{address}: {other}")),
    }
}
