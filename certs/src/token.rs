//! One-time enrolment tokens: a JWT (RFC 7519) signed with EdDSA (RFC 8037) by the app's own backend.
//!
//! | claim | meaning |
//! | --- | --- |
//! | `sub` | the device it enrols, `alice@eu/phone` |
//! | `aud` | `godwit-enrol` |
//! | `jti` | used up at the user's home with the first enrolment; 1 to 64 bytes |
//! | `iat`, `exp` | made and expires, seconds; at most 24 hours apart |
//!
//! Clocks may differ by [`SKEW`].

use godwit_wire::{Code, DeviceId, Refusal, UnixMillis};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PKCS_ED25519};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// How far the backend's clock may differ from the relay's.
pub const SKEW: Duration = Duration::from_mins(1);
/// The longest life a token may have.
pub const MAX_LIFE: Duration = Duration::from_hours(24);
/// Bytes of a token's `jti`.
pub const MAX_JTI_BYTES: usize = 64;
const AUDIENCE: &str = "godwit-enrol";

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: String,
    jti: String,
    iat: u64,
    exp: u64,
}

/// A token that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub device: DeviceId,
    pub jti: String,
    /// When the token's `jti` can be forgotten: no relay takes the token from then on.
    pub forget_at: UnixMillis,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token key cannot be read: {0}")]
    Key(String),
    #[error("a token lives between 1 second and 24 hours, not {0:?}")]
    Life(Duration),
    #[error("cannot sign: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    #[error("cannot make a key: {0}")]
    Make(#[from] rcgen::Error),
}

/// The app backend's private key.
pub struct TokenSigner(EncodingKey);

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSigner")
    }
}

/// A new pair of keys for tokens: private and public, PEM. The private one is secret.
pub fn new_keys() -> Result<(String, String), TokenError> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

impl TokenSigner {
    pub fn from_pem(pem: &str) -> Result<Self, TokenError> {
        EncodingKey::from_ed_pem(pem.as_bytes()).map(Self).map_err(|e| TokenError::Key(e.to_string()))
    }

    /// A token that enrols `device` once, within `life` from `now`.
    pub fn sign(&self, device: &DeviceId, jti: &str, life: Duration, now: UnixMillis) -> Result<String, TokenError> {
        if life < Duration::from_secs(1) || life > MAX_LIFE {
            return Err(TokenError::Life(life));
        }
        let claims = Claims {
            sub: device.to_string(),
            aud: AUDIENCE.to_owned(),
            jti: jti.to_owned(),
            iat: now.seconds(),
            exp: now.plus(life).seconds(),
        };
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.0)?)
    }
}

/// The device that a token names, without checking anything: for the device itself, which holds no key for that.
pub fn subject(token: &str) -> Option<DeviceId> {
    jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token).ok()?.sub.parse().ok()
}

/// The app backend's public key, as relays hold it.
pub struct TokenVerifier(DecodingKey);

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenVerifier")
    }
}

impl TokenVerifier {
    pub fn from_pem(pem: &str) -> Result<Self, TokenError> {
        DecodingKey::from_ed_pem(pem.as_bytes()).map(Self).map_err(|e| TokenError::Key(e.to_string()))
    }

    /// Checks everything but that the token was not used before.
    pub fn verify(&self, token: &str, now: UnixMillis) -> Result<Grant, Refusal> {
        let invalid = |why: &str| Refusal::because(Code::TokenInvalid, why);
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_audience(&[AUDIENCE]);
        rules.set_required_spec_claims(&["exp", "aud", "sub"]);
        // Dates are checked below, against the time that was handed in.
        rules.validate_exp = false;
        let claims =
            jsonwebtoken::decode::<Claims>(token, &self.0, &rules).map_err(|e| invalid(&e.to_string()))?.claims;
        if claims.jti.is_empty() || claims.jti.len() > MAX_JTI_BYTES {
            return Err(invalid("jti must have 1 to 64 bytes"));
        }
        let (made, expires) = (UnixMillis::from_seconds(claims.iat), UnixMillis::from_seconds(claims.exp));
        if expires <= made || expires.since(made) > MAX_LIFE {
            return Err(invalid("exp must lie within 24 hours after iat"));
        }
        if made.minus(SKEW) > now {
            return Err(invalid("iat lies in the future"));
        }
        let forget_at = expires.plus(SKEW);
        if now >= forget_at {
            return Err(Code::TokenExpired.into());
        }
        let device = claims.sub.parse().map_err(|e| invalid(&format!("sub: {e}")))?;
        Ok(Grant { device, jti: claims.jti, forget_at })
    }
}
