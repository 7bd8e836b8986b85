//! Whether a chain leads to the root, for certificates that did not come through a TLS handshake.

use crate::identity::{IdentityError, Peer, peer};
use crate::tls::{Crypto, TlsError, roots};
use godwit_wire::UnixMillis;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct ChainVerifier(Arc<dyn ClientCertVerifier>);

impl ChainVerifier {
    pub fn new(crypto: &Crypto, root: &CertificateDer<'_>) -> Result<Self, TlsError> {
        WebPkiClientVerifier::builder_with_provider(roots(root)?, crypto.provider.clone())
            .build()
            .map(Self)
            .map_err(|error| TlsError::Root(error.to_string()))
    }

    /// Whom `chain` (leaf, then the region's issuer) names, if it leads to the root and is valid at `now`.
    pub fn peer(&self, chain: &[CertificateDer<'_>], now: UnixMillis) -> Result<Peer, IdentityError> {
        // Dates first: webpki's error for them says less.
        let peer = peer(chain, now)?;
        let [leaf, issuers @ ..] = chain else { return Err(IdentityError::Missing) };
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        self.0.verify_client_cert(leaf, issuers, now).map_err(|_| IdentityError::OtherAuthority)?;
        Ok(peer)
    }
}
