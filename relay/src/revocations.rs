//! Enrolments that are shut out, of every region: known at every relay for as long as their certificates could live, so
//! that a device is refused also where its home cannot be asked.
//!
//! The home decides, and keeps them in its store with the device. It tells every relay that it has a link to; a relay
//! that holds a store keeps what it is told, and tells the edges of its own region. So a relay believes a device's home,
//! and an edge the store of its own region too.

use crate::peers::PeerLink;
use crate::peers::frame::{PeerFrame, REVOCATIONS};
use godwit_certs::authority::DEVICE_LIFE;
use godwit_core::Sender;
use godwit_core::device::Revocation;
use godwit_wire::{Clock, DeviceId, Refusal, UnixMillis};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Clocks of relays may differ by less than this.
const SKEW: Duration = Duration::from_hours(1);
/// When a peer that did not take them is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// Before this nothing needs to be known any more: the certificates have expired.
pub(crate) fn forgotten_before(now: UnixMillis) -> UnixMillis {
    now.minus(DEVICE_LIFE + SKEW)
}

#[derive(Debug)]
pub(crate) struct Revocations {
    clock: Clock,
    known: RwLock<HashMap<DeviceId, Revocation>>,
}

impl Revocations {
    pub(crate) fn new(clock: Clock, known: Vec<Revocation>) -> Self {
        let all = Self { clock, known: RwLock::default() };
        for revocation in known {
            all.add(&revocation);
        }
        all
    }

    /// True if it was not known.
    pub(crate) fn add(&self, revocation: &Revocation) -> bool {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let news = revocation.at >= forgotten_before(self.clock.now()) && !covers(&known, revocation);
        if news {
            known.insert(revocation.device.clone(), revocation.clone());
        }
        news
    }

    /// Whether this or a later enrolment is shut out already.
    pub(crate) fn knows(&self, revocation: &Revocation) -> bool {
        covers(&self.known.read().unwrap_or_else(PoisonError::into_inner), revocation)
    }

    /// Whether a device may act, as far as is known here.
    pub(crate) fn check(&self, sender: &Sender) -> Result<(), Refusal> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        match known.get(&sender.device) {
            Some(revocation) if sender.enrolment <= revocation.enrolment => Err(revocation.why.into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn those(&self, wanted: impl Fn(&DeviceId) -> bool) -> Vec<Revocation> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().filter(|revocation| wanted(&revocation.device)).cloned().collect()
    }

    pub(crate) fn forget_old(&self) {
        let before = forgotten_before(self.clock.now());
        self.known.write().unwrap_or_else(PoisonError::into_inner).retain(|_, revocation| revocation.at >= before);
    }
}

fn covers(known: &HashMap<DeviceId, Revocation>, revocation: &Revocation) -> bool {
    known.get(&revocation.device).is_some_and(|known| known.enrolment >= revocation.enrolment)
}

/// Tells a peer, again and again until it has taken them or the link ends.
pub(crate) async fn tell(peer: Arc<PeerLink>, revocations: Vec<Revocation>) {
    for some in revocations.chunks(REVOCATIONS) {
        let frame = PeerFrame::Revoked(some.to_vec());
        loop {
            match peer.call(None, &frame).await {
                Ok(PeerFrame::Done) => break,
                // An older relay asks the home of every device.
                Ok(PeerFrame::Unsupported) => return,
                _ if peer.connection.is_closed() => return,
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_wire::Code;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn an_enrolment_is_shut_out_while_its_certificate_could_live() {
        let start = UnixMillis(1_764_000_000_000);
        let passed = Arc::new(AtomicU64::new(0));
        let clock = {
            let passed = passed.clone();
            Clock::new(move || UnixMillis(start.0 + passed.load(Ordering::Relaxed)))
        };
        let device: DeviceId = "alice@eu/phone".parse().unwrap();
        let revocation = |enrolment, why| Revocation { device: device.clone(), enrolment, why, at: start };
        let check = |all: &Revocations, enrolment| {
            all.check(&Sender { device: device.clone(), enrolment }).map_err(|refusal| refusal.code)
        };
        let all = Revocations::new(clock, vec![revocation(2, Code::Superseded)]);
        assert_eq!((check(&all, 2), check(&all, 3)), (Err(Code::Superseded), Ok(())));
        assert!(!all.add(&revocation(1, Code::Revoked)), "an older enrolment is out already");
        assert!(all.add(&revocation(3, Code::Revoked)));
        assert!(!all.add(&revocation(3, Code::Revoked)), "known");
        assert_eq!((check(&all, 3), check(&all, 4)), (Err(Code::Revoked), Ok(())));
        assert_eq!(all.those(|device| device.name() == "phone").len(), 1);

        passed.store(u64::try_from(DEVICE_LIFE.as_millis()).unwrap(), Ordering::Relaxed);
        all.forget_old();
        assert_eq!(check(&all, 3), Err(Code::Revoked), "a certificate of a clock that is behind may live");
        passed.store(u64::try_from((DEVICE_LIFE + SKEW).as_millis()).unwrap() + 1, Ordering::Relaxed);
        all.forget_old();
        assert_eq!(check(&all, 3), Ok(()), "it has expired");
        assert!(!all.add(&revocation(4, Code::Revoked)), "nothing old is learned");
    }
}
