//! Certificate → device or relay.
//!
//! | who | URI in the subject alternative name |
//! | --- | --- |
//! | device | `godwit://alice@eu/phone` |
//! | relay | `godwit://relay/eu/eu-1` |
//! | issuer | `godwit://issuer/eu` |
//!
//! TLS has proved that the chain leads to the root. What TLS does not know is checked here, on every connection, since
//! a resumed session bypasses the verifier: the dates, the one name, and that the issuer is of the same region.

use crate::authority::ENROLMENT_OID;
use godwit_wire::{Code, DeviceId, Refusal, RegionId, RelayId, UnixMillis};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Device { device: DeviceId, enrolment: u32 },
    Relay(RelayId),
    Issuer(RegionId),
}

impl Identity {
    pub fn uri(&self) -> String {
        match self {
            Self::Device { device, .. } => format!("godwit://{device}"),
            Self::Relay(relay) => format!("godwit://relay/{relay}"),
            Self::Issuer(region) => format!("godwit://issuer/{region}"),
        }
    }

    fn region(&self) -> RegionId {
        match self {
            Self::Device { device, .. } => device.home(),
            Self::Relay(relay) => relay.region(),
            Self::Issuer(region) => region.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("no certificate")]
    Missing,
    #[error("a certificate that cannot be read")]
    Unreadable,
    #[error("a certificate that names nobody of this system")]
    Nameless,
    #[error("the certificate is not of this authority")]
    OtherAuthority,
    #[error("the certificate has expired")]
    Expired,
    #[error("the certificate is not valid yet")]
    NotYetValid,
    #[error("an issuer of region {issuer} certified somebody of region {subject}")]
    OtherRegion { issuer: RegionId, subject: RegionId },
}

impl IdentityError {
    /// How a peer hears of it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Expired => Code::CertificateExpired.into(),
            Self::Nameless => Code::NotADevice.into(),
            _ => Refusal::because(Code::Unauthenticated, self.to_string()),
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    pub not_after: UnixMillis,
    /// SHA-256 of the leaf certificate.
    pub fingerprint: [u8; 32],
}

struct Parsed {
    identity: Identity,
    not_before: UnixMillis,
    not_after: UnixMillis,
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Parsed, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(IdentityError::Nameless) };
    let rest = uri.strip_prefix("godwit://").ok_or(IdentityError::Nameless)?;
    // A device's name holds an `@` before its first `/`; the words `relay` and `issuer` do not.
    let identity = if let Some(relay) = rest.strip_prefix("relay/") {
        Identity::Relay(relay.parse().map_err(|_| IdentityError::Nameless)?)
    } else if let Some(region) = rest.strip_prefix("issuer/") {
        Identity::Issuer(region.parse().map_err(|_| IdentityError::Nameless)?)
    } else {
        let device = rest.parse().map_err(|_| IdentityError::Nameless)?;
        let oid = x509_parser::der_parser::Oid::from(&ENROLMENT_OID).map_err(|_| IdentityError::Nameless)?;
        let enrolment = parsed.subject().iter_by_oid(&oid).next().and_then(|value| value.as_str().ok());
        let enrolment = enrolment.and_then(|text| text.parse().ok()).ok_or(IdentityError::Nameless)?;
        Identity::Device { device, enrolment }
    };
    let time = |t: x509_parser::time::ASN1Time| UnixMillis::from_seconds(u64::try_from(t.timestamp()).unwrap_or(0));
    let validity = parsed.validity();
    Ok(Parsed { identity, not_before: time(validity.not_before), not_after: time(validity.not_after) })
}

/// Who presented `chain` (leaf, then the region's issuer), at `now`. TLS has verified the chain up to the root.
pub fn peer(chain: &[CertificateDer<'_>], now: UnixMillis) -> Result<Peer, IdentityError> {
    let (leaf, issuer) = match chain {
        [] => return Err(IdentityError::Missing),
        [leaf, issuer] => (leaf, issuer),
        // With another length it is not clear who signed the leaf.
        _ => return Err(IdentityError::Nameless),
    };
    let (parsed, issuer) = (parse(leaf)?, parse(issuer)?);
    let Identity::Issuer(issuer_region) = &issuer.identity else { return Err(IdentityError::Nameless) };
    let subject = parsed.identity.region();
    if *issuer_region != subject {
        return Err(IdentityError::OtherRegion { issuer: issuer_region.clone(), subject });
    }
    if now < parsed.not_before {
        return Err(IdentityError::NotYetValid);
    }
    let not_after = parsed.not_after.min(issuer.not_after);
    if now >= not_after {
        return Err(IdentityError::Expired);
    }
    Ok(Peer { identity: parsed.identity, not_after, fingerprint: fingerprint(leaf) })
}

/// The bytes of the public key in a certificate.
pub(crate) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}

/// SHA-256 of a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// When the leaf of `chain` expires, whatever the time is now.
pub fn expiry(chain: &[CertificateDer<'_>]) -> Result<UnixMillis, IdentityError> {
    chain.first().ok_or(IdentityError::Missing).and_then(parse).map(|parsed| parsed.not_after)
}

/// Whom the leaf of `chain` names, whatever the time is now.
pub fn identity(chain: &[CertificateDer<'_>]) -> Result<Identity, IdentityError> {
    chain.first().ok_or(IdentityError::Missing).and_then(parse).map(|parsed| parsed.identity)
}
