//! Going on at another relay: the new session begins before this connection ends, so nothing waits in between.
//!
//! What was sent here and not answered is sent there again, and is the same request; what comes twice is dropped by its
//! place in the chat.

use super::super::join::Joined;
use super::{Brought, Live};
use crate::error::Error;
use crate::worker::Worker;
use std::time::Duration;

/// Above this, it is worth knowing whether another relay is nearer.
const FAR: Duration = Duration::from_millis(50);
/// Relays measured on one connection.
const MEASURED: u32 = 3;

impl Live {
    /// Joins another relay: one of `relays`, or any that is known.
    pub(super) fn move_on(&mut self, worker: &Worker, mut relays: Vec<String>, after: Duration) -> Result<(), Error> {
        self.moving = true;
        let known = worker.inner.store().relays()?;
        let more = known.into_iter().filter(|address| !relays.contains(address)).collect::<Vec<_>>();
        relays.extend(more);
        let (joiner, here) = (worker.joiner.clone(), self.welcome.relay.clone());
        self.errands.spawn(async move {
            tokio::time::sleep(after).await;
            Brought::Moved(joiner.join(relays, Some(here)).await)
        });
        Ok(())
    }

    /// This connection ended while another relay was being joined: by the home, which attached the device there, or
    /// because the relay did not wait.
    pub(super) async fn moved(&mut self, ended: Error) -> Result<Option<Joined>, Error> {
        while let Some(brought) = self.errands.join_next().await {
            if let Ok(Brought::Moved(result)) = brought {
                return result.map(Some);
            }
        }
        Err(ended)
    }

    /// Takes what came before this connection was left. What does not come that way comes on the next one.
    pub(super) async fn take_rest(&mut self, worker: &mut Worker) {
        let mut rest = Vec::new();
        while let Ok(item) = self.incoming.try_recv() {
            rest.push(item);
        }
        if let Err(error) = self.arrived(worker, &mut rest).await {
            tracing::debug!(%error, "the relay that was left");
        }
    }

    /// Measures relays that might be nearer than this one.
    pub(super) fn measure(&mut self, worker: &Worker) -> Result<(), Error> {
        if self.session.connection().rtt() < FAR {
            return Ok(());
        }
        for address in worker.inner.store().unmeasured_relays(MEASURED)? {
            let joiner = worker.joiner.clone();
            self.errands.spawn(async move { Brought::Measured(joiner.measure(address).await) });
        }
        Ok(())
    }
}
