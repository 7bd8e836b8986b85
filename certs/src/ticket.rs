//! Attach tickets: a device's word, signed with its key, that one relay may act for it.
//!
//! A relay that holds a device's connection sends, acknowledges and claims for it at other relays. Those do not take
//! its word for that: they want the device's certificate and a ticket, which names the relay. So a relay that was
//! broken into can act only for devices that connect to it, and only until their tickets expire.
//!
//! Signed is (Ed25519, RFC 8032): `godwit ticket 1`, the relay's id, the device's id, the enrolment and the expiry in
//! decimal, each ended by a line feed.

use crate::authority::{AuthorityError, DeviceKey};
use crate::chain::ChainVerifier;
use crate::identity::{Identity, IdentityError, expiry, identity};
use godwit_wire::{DeviceId, RelayId, Ticket, UnixMillis};
use rustls::pki_types::CertificateDer;

/// A device for which a relay may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub device: DeviceId,
    pub enrolment: u32,
    /// The earlier of the ticket's and the certificate's end.
    pub expires: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot sign: {0}")]
    Sign(String),
    #[error("the certificate does not name a device")]
    NotADevice,
    #[error("the ticket has expired")]
    Expired,
    #[error("the ticket is not signed by the device for this relay")]
    Forged,
}

impl From<AuthorityError> for TicketError {
    fn from(error: AuthorityError) -> Self {
        Self::Sign(error.to_string())
    }
}

fn signed(relay: &RelayId, device: &DeviceId, enrolment: u32, expires: UnixMillis) -> Vec<u8> {
    format!("godwit ticket 1\n{relay}\n{device}\n{enrolment}\n{}\n", expires.0).into_bytes()
}

impl DeviceKey {
    /// A ticket for `relay`, as long as the device's certificate `chain` lives.
    pub fn ticket_for(&self, relay: &RelayId, chain: &[CertificateDer<'_>]) -> Result<Ticket, TicketError> {
        let Identity::Device { device, enrolment } = identity(chain)? else { return Err(TicketError::NotADevice) };
        Ok(self.ticket(relay, &device, enrolment, expiry(chain)?)?)
    }

    /// A ticket for `relay`, until `expires`.
    pub fn ticket(
        &self,
        relay: &RelayId,
        device: &DeviceId,
        enrolment: u32,
        expires: UnixMillis,
    ) -> Result<Ticket, AuthorityError> {
        let signature = self.sign(&signed(relay, device, enrolment, expires))?;
        Ok(Ticket { expires, signature: signature.into() })
    }
}

impl ChainVerifier {
    /// For which device `relay` may act, by the device's certificate `chain` and its ticket.
    pub fn ticket(
        &self,
        chain: &[CertificateDer<'_>],
        relay: &RelayId,
        ticket: &Ticket,
        now: UnixMillis,
    ) -> Result<Attached, TicketError> {
        let peer = self.peer(chain, now)?;
        let Identity::Device { device, enrolment } = peer.identity else { return Err(TicketError::NotADevice) };
        if now >= ticket.expires {
            return Err(TicketError::Expired);
        }
        let message = signed(relay, &device, enrolment, ticket.expires);
        let leaf = chain.first().ok_or(IdentityError::Missing)?;
        if self.is_signed(leaf, &message, &ticket.signature)? {
            Ok(Attached { device, enrolment, expires: ticket.expires.min(peer.not_after) })
        } else {
            Err(TicketError::Forged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Root;
    use crate::tls::Crypto;
    use godwit_wire::Clock;
    use std::time::Duration;

    #[test]
    fn a_ticket_is_good_for_its_relay_its_device_and_its_time() {
        let (crypto, now) = (Crypto::system(), Clock::system().now());
        let root = Root::create(now).unwrap();
        let issuer = root.issuer(&"eu".parse().unwrap(), now).unwrap();
        let device: DeviceId = "alice@eu/phone".parse().unwrap();
        let key = DeviceKey::generate().unwrap();
        let chain = issuer.device(&key.request(&device).unwrap(), &device, 3, now).unwrap();
        let verifier = ChainVerifier::new(&crypto, root.certificate()).unwrap();
        let relay = |name: &str| name.parse::<RelayId>().unwrap();
        let expires = now.plus(Duration::from_mins(1));
        let ticket = key.ticket(&relay("us/us-1"), &device, 3, expires).unwrap();
        let check = |name: &str, ticket: &Ticket, now| verifier.ticket(&chain, &relay(name), ticket, now);

        let attached = Attached { device: device.clone(), enrolment: 3, expires };
        assert_eq!(check("us/us-1", &ticket, now), Ok(attached));
        assert_eq!(check("us/us-2", &ticket, now), Err(TicketError::Forged));
        assert_eq!(check("us/us-1", &ticket, expires), Err(TicketError::Expired));
        let longer = Ticket { expires: expires.plus(Duration::from_hours(1)), ..ticket.clone() };
        assert_eq!(check("us/us-1", &longer, now), Err(TicketError::Forged));
        let other = key.ticket(&relay("us/us-1"), &device, 4, expires).unwrap();
        assert_eq!(check("us/us-1", &other, now), Err(TicketError::Forged));
        let stranger = DeviceKey::generate().unwrap().ticket(&relay("us/us-1"), &device, 3, expires).unwrap();
        assert_eq!(check("us/us-1", &stranger, now), Err(TicketError::Forged));

        // A relay's own certificate makes nobody a device; another root's certificate is nothing at all.
        let credential = issuer.relay(&relay("eu/eu-1"), now).unwrap();
        let as_relay = verifier.ticket(&credential.chain, &relay("us/us-1"), &ticket, now);
        assert_eq!(as_relay, Err(TicketError::NotADevice));
        let strange = Root::create(now).unwrap().issuer(&"eu".parse().unwrap(), now).unwrap();
        let chain = strange.device(&key.request(&device).unwrap(), &device, 3, now).unwrap();
        let forged = verifier.ticket(&chain, &relay("us/us-1"), &ticket, now);
        assert_eq!(forged, Err(TicketError::Identity(IdentityError::OtherAuthority)));
    }
}
