//! rustls configurations: TLS 1.3 only, no early data, mutual authentication, hybrid post-quantum key exchange where
//! the provider has it. The provider and the time are always passed in.

use crate::authority::Credential;
use arc_swap::ArcSwap;
use godwit_wire::Clock;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, StoresServerSessions, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the authority's root certificate is not usable: {0}")]
    Root(String),
    #[error("certificate and key are not usable: {0}")]
    Credential(#[from] rustls::Error),
}

/// What comes in from outside: cryptography, randomness and the time.
#[derive(Clone, Debug)]
pub struct Crypto {
    pub provider: Arc<CryptoProvider>,
    pub clock: Clock,
}

impl Crypto {
    /// aws-lc-rs and the machine's clock.
    pub fn system() -> Self {
        Self { provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()), clock: Clock::system() }
    }

    /// Fresh bytes of the provider's secure randomness.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.provider.secure_random.fill(&mut bytes).expect("a provider without randomness could make no handshake");
        bytes
    }

    /// A fresh random number, never 0.
    pub fn random_number(&self) -> u64 {
        u64::from_le_bytes(self.random()).max(1)
    }

    fn time(&self) -> Arc<dyn TimeProvider> {
        Arc::new(Time(self.clock.clone()))
    }
}

#[derive(Debug)]
struct Time(Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now().0)))
    }
}

pub(crate) fn roots(root: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    store.add(root.clone().into_owned()).map_err(|e| TlsError::Root(e.to_string()))?;
    Ok(Arc::new(store))
}

/// A relay's certificate, replaceable while connections live.
#[derive(Debug)]
pub struct ServedCertificate {
    crypto: Crypto,
    current: ArcSwap<CertifiedKey>,
}

impl ServedCertificate {
    pub fn new(crypto: &Crypto, credential: Credential) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from_pointee(certified(crypto, credential)?);
        Ok(Arc::new(Self { crypto: crypto.clone(), current }))
    }

    /// New handshakes get the new certificate; sessions that live stay as they are.
    pub fn replace(&self, credential: Credential) -> Result<(), TlsError> {
        self.current.store(Arc::new(certified(&self.crypto, credential)?));
        Ok(())
    }

    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().cert.clone()
    }
}

fn certified(crypto: &Crypto, credential: Credential) -> Result<CertifiedKey, TlsError> {
    Ok(CertifiedKey::from_der(credential.chain, credential.key, &crypto.provider)?)
}

impl ResolvesServerCert for ServedCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// Which sessions a relay can resume. Resumption saves round trips; who the device is, is checked again all the same.
#[derive(Debug)]
pub enum Tickets {
    /// Self-contained tickets, encrypted under a key of this process that rotates.
    Stateless(Arc<dyn rustls::server::ProducesTickets>),
    /// Up to this many sessions in memory.
    Stateful(Arc<dyn StoresServerSessions>),
}

/// A relay's side. Whether a client must have a certificate depends on the ALPN it chose, which TLS learns too late:
/// the relay decides after the handshake. One that is presented must lead to the root.
pub fn relay(
    crypto: &Crypto,
    root: &CertificateDer<'_>,
    served: Arc<ServedCertificate>,
    tickets: Tickets,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(root)?, crypto.provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsError::Root(e.to_string()))?;
    let mut config = ServerConfig::builder_with_details(crypto.provider.clone(), crypto.time())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(served);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // Early data can be replayed and comes before the client is authenticated.
    config.max_early_data_size = 0;
    match tickets {
        Tickets::Stateless(ticketer) => config.ticketer = ticketer,
        Tickets::Stateful(store) => config.session_storage = store,
    }
    Ok(config)
}

/// The side that connects: a device, or a relay to another one, with its certificate; a device that enrols without one.
pub fn client(
    crypto: &Crypto,
    root: &CertificateDer<'_>,
    credential: Option<Credential>,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_details(crypto.provider.clone(), crypto.time())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(root)?);
    let mut config = match credential {
        Some(credential) => builder.with_client_auth_cert(credential.chain, credential.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = false;
    Ok(config)
}
