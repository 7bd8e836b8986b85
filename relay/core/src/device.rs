//! Devices: enrolment, renewal, revocation, and who is let in.

use godwit_wire::{Code, DeviceId, Refusal, UnixMillis};
use serde::{Deserialize, Serialize};

/// The record of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// 1 for the first enrolment, one more for each later one. A certificate names the enrolment it belongs to.
    pub enrolment: u32,
    /// SHA-256 of the newest certificate.
    pub fingerprint: [u8; 32],
    pub enrolled_at: UnixMillis,
    pub last_seen: UnixMillis,
    pub revoked: bool,
}

/// Enrolments of a device that are shut out: this one and all before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub device: DeviceId,
    pub enrolment: u32,
    /// [`Code::Revoked`], or [`Code::Superseded`] by a later enrolment.
    pub why: Code,
    pub at: UnixMillis,
}

/// The enrolment number that a device gets next.
pub fn next_enrolment(existing: Option<&Device>) -> u32 {
    existing.map_or(1, |device| device.enrolment.saturating_add(1))
}

/// Whether a device with a valid certificate of `enrolment` is let in.
pub fn admit(device: Option<&Device>, enrolment: u32) -> Result<(), Refusal> {
    match device {
        None => Err(Refusal::because(Code::Unauthenticated, "this relay's region does not know the device")),
        Some(device) if device.enrolment > enrolment => Err(Code::Superseded.into()),
        // Only a store that was restored from a backup can be behind a certificate; the certificate is genuine.
        Some(device) if device.revoked && device.enrolment == enrolment => Err(Code::Revoked.into()),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_let_in() {
        let device = |enrolment, revoked| Device {
            enrolment,
            fingerprint: [0; 32],
            enrolled_at: UnixMillis(0),
            last_seen: UnixMillis(0),
            revoked,
        };
        let code = |d: Option<&Device>, e| admit(d, e).map_err(|r| r.code);
        assert_eq!(code(None, 1), Err(Code::Unauthenticated));
        assert_eq!(code(Some(&device(1, false)), 1), Ok(()));
        assert_eq!(code(Some(&device(2, false)), 1), Err(Code::Superseded));
        assert_eq!(code(Some(&device(1, true)), 1), Err(Code::Revoked));
        assert_eq!(next_enrolment(None), 1);
        assert_eq!(next_enrolment(Some(&device(4, true))), 5);
    }
}
