//! Parts that broke off. What came of them stays for a while, for the device that sent it: over a network on which no
//! connection lives long enough for a whole part, it goes on over the next one.
//!
//! Capacity: [`KEPT`] parts, of which one device has [`KEPT_PER_DEVICE`]; the oldest goes first, and all go with the relay.

use crate::blobs::spool::{Spool, SpoolError};
use godwit_wire::DeviceId;
use godwit_wire::blob::BlobHash;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Parts of all devices: half a GiB on the disk.
const KEPT: usize = 64;
const KEPT_PER_DEVICE: usize = 4;
/// How long a lane may take to give up what came.
const INTERRUPTED: Duration = Duration::from_secs(1);

/// Whose part it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartOf {
    pub(crate) device: DeviceId,
    pub(crate) hash: BlobHash,
    pub(crate) part: u32,
}

impl PartOf {
    fn is_of(&self, device: &DeviceId, hash: BlobHash) -> bool {
        self.device == *device && self.hash == hash
    }
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    kept: VecDeque<(PartOf, Spool)>,
    /// Lanes on which parts come in.
    coming: HashMap<u64, (PartOf, CancellationToken)>,
    next: u64,
}

impl State {
    fn keep(&mut self, of: PartOf, spool: Spool) {
        self.kept.retain(|(other, _)| *other != of);
        let is_own = |(other, _): &(PartOf, Spool)| other.device == of.device;
        if self.kept.iter().filter(|kept| is_own(kept)).count() >= KEPT_PER_DEVICE {
            let oldest = self.kept.iter().position(is_own);
            oldest.and_then(|at| self.kept.remove(at));
        } else if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((of, spool));
    }
}

/// Parts that broke off, and those that come in. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partials {
    state: Arc<Mutex<State>>,
    ended: Arc<Notify>,
}

/// A part that comes in. Dropped, it leaves what came of it.
#[derive(Debug)]
pub(crate) struct Coming {
    partials: Partials,
    number: u64,
    of: PartOf,
    /// None while it is written, and once it is stored or worth nothing.
    pub(crate) spool: Option<Spool>,
    /// The device begins anew elsewhere.
    pub(crate) interrupted: CancellationToken,
}

impl Partials {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of its parts of a blob came from a device. Lanes that it still has open for them end: it asks because it
    /// does not use them any more.
    pub(crate) async fn of(&self, device: &DeviceId, hash: BlobHash) -> HashMap<u32, u64> {
        let stopped = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                let mut any = false;
                for (of, interrupted) in self.state().coming.values() {
                    if of.is_of(device, hash) {
                        interrupted.cancel();
                        any = true;
                    }
                }
                if !any {
                    return;
                }
                ended.await;
            }
        };
        // One that is just being stored goes on, and the part may come twice.
        let _ = tokio::time::timeout(INTERRUPTED, stopped).await;
        let state = self.state();
        let own = state.kept.iter().filter(|(of, _)| of.is_of(device, hash));
        own.map(|(of, spool)| (of.part, spool.size_bytes())).collect()
    }

    /// A part comes in, on top of `from` bytes that came before. The spool is none if there are none; or, if `from` is not
    /// 0, if they are not here any more.
    pub(crate) fn come(&self, of: PartOf, from: u64) -> Coming {
        let mut state = self.state();
        let at = state.kept.iter().position(|(other, _)| *other == of);
        let kept = at.and_then(|at| state.kept.remove(at)).map(|(_, spool)| spool);
        let spool = kept.filter(|spool| from > 0 && spool.size_bytes() == from);
        let (number, interrupted) = (state.next, CancellationToken::new());
        state.next += 1;
        state.coming.insert(number, (of.clone(), interrupted.clone()));
        drop(state);
        Coming { partials: self.clone(), number, of, spool, interrupted }
    }
}

impl Coming {
    pub(crate) fn part(&self) -> u32 {
        self.of.part
    }

    /// Has the spool take more. It is gone if that fails, or is not waited for.
    pub(crate) async fn write(
        &mut self,
        work: impl AsyncFnOnce(Spool) -> Result<Spool, SpoolError>,
    ) -> Result<(), SpoolError> {
        if let Some(spool) = self.spool.take() {
            self.spool = Some(work(spool).await?);
        }
        Ok(())
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut state = self.partials.state();
        state.coming.remove(&self.number);
        if let Some(spool) = self.spool.take().filter(|spool| spool.size_bytes() > 0) {
            state.keep(self.of.clone(), spool);
        }
        drop(state);
        self.partials.ended.notify_waiters();
    }
}
