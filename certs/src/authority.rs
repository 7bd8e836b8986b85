//! The root, the issuers of regions, and what they sign.
//!
//! Keys are Ed25519 (RFC 8410). Lives: root 20 years, issuer 5 years, relay 1 year, device 7 days; every certificate
//! is valid from an hour before it was made, for devices whose clock is behind.

use crate::identity::Identity;
use godwit_wire::{DeviceId, RELAY_SERVER_NAME, RegionId, RelayId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);
/// How long a device's certificate lives. A device renews at half of it.
pub const DEVICE_LIFE: Duration = Duration::from_hours(168);
const BACKDATE: Duration = Duration::from_hours(1);
/// The subject's `serialNumber` (X.520) holds the enrolment.
pub(crate) const ENROLMENT_OID: [u64; 4] = [2, 5, 4, 5];

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the certificate signing request is not valid: {0}")]
    BadRequest(String),
    #[error("the certificate signing request names {0}, which is not the device it is for")]
    OtherName(String),
    #[error("{id} does not belong to region {region}")]
    OtherRegion { id: String, region: RegionId },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate with its private key.
#[derive(Debug)]
pub struct Signer {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

impl Signer {
    fn issuer(&self) -> Result<rcgen::Issuer<'static, &KeyPair>, AuthorityError> {
        Ok(rcgen::Issuer::from_ca_cert_der(&self.certificate, &self.key)?)
    }
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    Ok(KeyPair::generate_for(&PKCS_ED25519)?)
}

fn params(common_name: &str, life: Duration, now: UnixMillis) -> CertificateParams {
    let time = |t: UnixMillis| {
        let seconds = i64::try_from(t.seconds()).unwrap_or(i64::MAX);
        time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = time(now.minus(BACKDATE));
    params.not_after = time(now.plus(life));
    params.use_authority_key_identifier_extension = true;
    // Of one length: one that is made of the key may be shorter, and a certificate's size would vary.
    params.serial_number = Some(SerialNumber::from_slice(serial(now).as_bytes()));
    params
}

fn serial(now: UnixMillis) -> uuid::Uuid {
    let nanos = u32::try_from(now.0 % 1000).unwrap_or(0) * 1_000_000;
    uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, now.seconds(), nanos))
}

fn name(params: &mut CertificateParams, identity: &Identity) -> Result<(), AuthorityError> {
    params.subject_alt_names.push(SanType::URI(identity.uri().try_into()?));
    Ok(())
}

/// The authority's root. Its key belongs offline.
#[derive(Debug)]
pub struct Root(pub(crate) Signer);

impl Root {
    pub fn create(now: UnixMillis) -> Result<Self, AuthorityError> {
        let key = new_key()?;
        let mut params = params("Godwit root", 20 * 365 * DAY, now);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self(Signer { certificate, key }))
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.0.certificate
    }

    /// Certifies a new issuer for `region`.
    pub fn issuer(&self, region: &RegionId, now: UnixMillis) -> Result<Issuer, AuthorityError> {
        let key = new_key()?;
        let mut params = params(&format!("Godwit issuer {region}"), 5 * 365 * DAY, now);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        name(&mut params, &Identity::Issuer(region.clone()))?;
        let certificate = params.signed_by(&key, &self.0.issuer()?)?.der().clone();
        Ok(Issuer { region: region.clone(), signer: Signer { certificate, key } })
    }
}

/// A region's issuer: certifies its relays and devices.
#[derive(Debug)]
pub struct Issuer {
    pub(crate) region: RegionId,
    pub(crate) signer: Signer,
}

impl Issuer {
    pub fn region(&self) -> &RegionId {
        &self.region
    }

    fn check_region(&self, id: &str, region: &RegionId) -> Result<(), AuthorityError> {
        if *region == self.region {
            Ok(())
        } else {
            Err(AuthorityError::OtherRegion { id: id.to_owned(), region: self.region.clone() })
        }
    }

    /// A certificate and a new key for a relay of this region.
    pub fn relay(&self, relay: &RelayId, now: UnixMillis) -> Result<Credential, AuthorityError> {
        self.check_region(relay.as_str(), &relay.region())?;
        let key = new_key()?;
        let mut params = params(relay.as_str(), 365 * DAY, now);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        name(&mut params, &Identity::Relay(relay.clone()))?;
        params.subject_alt_names.push(SanType::DnsName(RELAY_SERVER_NAME.try_into()?));
        let leaf = params.signed_by(&key, &self.signer.issuer()?)?.der().clone();
        Ok(Credential { chain: self.chain(leaf), key: pkcs8(&key) })
    }

    /// A certificate for a device: leaf and issuer, DER. Nothing the request asks for is taken over but its key; a
    /// name in it that is not `device` is refused.
    pub fn device(
        &self,
        csr: &[u8],
        device: &DeviceId,
        enrolment: u32,
        now: UnixMillis,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        self.check_region(device.as_str(), &device.home())?;
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .map_err(|e| AuthorityError::BadRequest(e.to_string()))?;
        let identity = Identity::Device { device: device.clone(), enrolment };
        for san in &request.params.subject_alt_names {
            match san {
                SanType::URI(uri) if uri.as_str() == identity.uri() => {}
                SanType::URI(uri) => return Err(AuthorityError::OtherName(uri.as_str().to_owned())),
                _ => return Err(AuthorityError::OtherName("something that is no device".to_owned())),
            }
        }
        let mut params = params(device.as_str(), DEVICE_LIFE, now);
        params.distinguished_name.push(DnType::from_oid(&ENROLMENT_OID), enrolment.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        name(&mut params, &identity)?;
        let leaf = params.signed_by(&request.public_key, &self.signer.issuer()?)?.der().clone();
        Ok(self.chain(leaf))
    }

    fn chain(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        vec![leaf, self.signer.certificate.clone()]
    }
}

/// A certificate chain, leaf first, with the leaf's private key.
#[derive(Debug)]
pub struct Credential {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Credential {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

fn pkcs8(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// A device's own key, which never leaves the device.
#[derive(Debug)]
pub struct DeviceKey(KeyPair);

impl DeviceKey {
    pub fn generate() -> Result<Self, AuthorityError> {
        Ok(Self(new_key()?))
    }

    pub fn from_der(pkcs8: &[u8]) -> Result<Self, AuthorityError> {
        let der = PrivatePkcs8KeyDer::from(pkcs8);
        Ok(Self(KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?))
    }

    /// PKCS #8, DER. Secret.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// A certificate signing request (PKCS #10, DER) for `device`.
    pub fn request(&self, device: &DeviceId) -> Result<Vec<u8>, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device.as_str());
        // What is asked for is the name alone; the enrolment is the relay's to give.
        name(&mut params, &Identity::Device { device: device.clone(), enrolment: 0 })?;
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    pub fn credential(&self, chain: Vec<CertificateDer<'static>>) -> Credential {
        Credential { chain, key: pkcs8(&self.0) }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        Ok(SigningKey::sign(&self.0, message)?)
    }

    /// The public key's bytes.
    pub fn public(&self) -> &[u8] {
        self.0.der_bytes()
    }
}
