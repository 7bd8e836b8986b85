//! Whether a chain leads to the root, for certificates that did not come through a TLS handshake.

use crate::identity::{IdentityError, Peer, peer, public_key};
use crate::tls::{Crypto, TlsError, roots};
use godwit_wire::UnixMillis;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime, alg_id};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct ChainVerifier {
    verifier: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    pub fn new(crypto: &Crypto, root: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(root)?, crypto.provider.clone())
            .build()
            .map_err(|error| TlsError::Root(error.to_string()))?;
        Ok(Self { verifier, algorithms: crypto.provider.signature_verification_algorithms })
    }

    /// Whom `chain` (leaf, then the region's issuer) names, if it leads to the root and is valid at `now`.
    pub fn peer(&self, chain: &[CertificateDer<'_>], now: UnixMillis) -> Result<Peer, IdentityError> {
        // Dates first: webpki's error for them says less.
        let peer = peer(chain, now)?;
        let [leaf, issuers @ ..] = chain else { return Err(IdentityError::Missing) };
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        self.verifier.verify_client_cert(leaf, issuers, now).map_err(|_| IdentityError::OtherAuthority)?;
        Ok(peer)
    }

    /// Whether `signature` (Ed25519) over `message` is by the key in `certificate`.
    pub(crate) fn is_signed(
        &self,
        certificate: &CertificateDer<'_>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, IdentityError> {
        let key = public_key(certificate)?;
        let ed25519 = self.algorithms.all.iter().find(|algorithm| {
            algorithm.public_key_alg_id() == alg_id::ED25519 && algorithm.signature_alg_id() == alg_id::ED25519
        });
        Ok(ed25519.is_some_and(|algorithm| algorithm.verify_signature(&key, message, signature).is_ok()))
    }
}
