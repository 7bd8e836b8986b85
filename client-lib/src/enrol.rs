//! How a device gets its certificate: with a token from the app's backend, once. Its key never leaves it.

use crate::dial::{Dialer, Sockets, ended};
use crate::error::Error;
use crate::host::Host;
use crate::session::one_shot;
use crate::store::{DeviceRow, Store, lock};
use godwit_certs::{DeviceKey, Identity, identity};
use godwit_wire::frame::{EnrolRequest, Reply};
use godwit_wire::{ALPN_ENROL, DeviceId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::PathBuf;

/// What enrolment needs.
#[derive(Clone, Debug)]
pub struct EnrolOptions {
    /// The device's folder. Made if it is not there.
    pub home: PathBuf,
    /// `host:port` of one or more relays of the user's region.
    pub relays: Vec<String>,
    /// The root's certificate, PEM.
    pub authority_pem: String,
    /// The token. Used up by this.
    pub token: String,
    /// The machine it runs on.
    pub host: Host,
}

/// Enrols this device. On a home that was enrolled before, the device must be the same: it gets a new key and
/// certificate, and keeps its chats and what it had not sent.
///
/// # Errors
/// [`Error::Refused`] if the token is not valid, expired, used or for another device; [`Error::InUse`] if a client
/// works on the home. Nothing in the home is changed then.
///
/// Cancel safety: if the relay had answered already, the token is used up and the certificate lost.
pub async fn enrol(options: EnrolOptions) -> Result<DeviceId, Error> {
    let EnrolOptions { home, relays, authority_pem, token, host } = options;
    let certificates = |error: &dyn ToString| Error::Certificates(error.to_string());
    let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes())
        .map_err(|error| Error::Invalid(format!("authority: not a certificate: {error}")))?;
    let device = subject(&token)?;
    std::fs::create_dir_all(&home).map_err(|source| Error::Io { path: home.clone(), source })?;
    let Some(_lock) = lock(&home)? else { return Err(Error::InUse(home)) };
    let mut store = Store::open(&home, &host, true)?;
    if let Some(known) = store.device()?
        && known.id != device
    {
        return Err(Error::AlreadyEnrolled(home));
    }
    let key = DeviceKey::generate().map_err(|error| certificates(&error))?;
    let csr = key.request(&device).map_err(|error| certificates(&error))?.into();
    let dialer = Dialer::new(&host.crypto, &authority, None, ALPN_ENROL)?;
    let connection = dialer.connect(&Sockets::new(host), &relays, &[]).await?.connection;
    let reply = one_shot(&connection, &EnrolRequest::Enrol { token, csr }).await;
    let chain = match reply {
        Ok(Reply::Certificate(chain)) => chain,
        Ok(Reply::Refused(refusal)) => return Err(refusal.into()),
        Ok(_) => return Err(Error::Unreachable("the relay answered something else".to_owned())),
        Err(gone) => {
            return Err(connection.close_reason().map_or(gone, |e| ended(&e, connection.remote_address())));
        }
    };
    connection.close(0u32.into(), b"");
    let chain: Vec<Vec<u8>> = chain.into_iter().map(|certificate| certificate.0.to_vec()).collect();
    let ders: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    match identity::identity(&ders) {
        Ok(Identity::Device { device: named, .. }) if named == device => {}
        _ => return Err(Error::Certificates("the certificate that came is not for this device".to_owned())),
    }
    let row = DeviceRow { id: device.clone(), key: key.to_der(), chain, authority: authority.to_vec() };
    store.enrol(&row, &relays)?;
    Ok(device)
}

/// The device that a token is for. The relay checks the token; this only reads it.
fn subject(token: &str) -> Result<DeviceId, Error> {
    godwit_certs::token::subject(token).ok_or_else(|| Error::Invalid("token: not an enrolment token".to_owned()))
}
