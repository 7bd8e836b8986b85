//! Leaving with nobody missing anything: hands this relay's devices over to others, at a bounded rate, and waits until
//! the outbox is empty.
//!
//! A device that is told to go connects to its new relay before it leaves this one. What waits in the outbox cannot go
//! along: a device's ticket names the one relay that may act for it. It stays, durable, until its home takes it.

use super::Edge;
use godwit_wire::{Code, Refusal};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often devices are told and the outbox is looked at.
const PERIOD: Duration = Duration::from_millis(20);
/// A device that has not gone so long after it was told is closed: it comes back elsewhere.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far a relay is with leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    Draining,
    /// No device is connected, and nothing waits.
    Drained,
}

#[derive(Debug)]
pub(crate) struct Drain(watch::Sender<Stage>);

impl Default for Drain {
    fn default() -> Self {
        Self(watch::Sender::new(Stage::Serving))
    }
}

impl Drain {
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow() > Stage::Serving
    }

    /// Waits until the relay has drained, which it may never. Cancel safe.
    pub(crate) async fn drained(&self) {
        // The sender is this drain's own.
        let _ = self.0.subscribe().wait_for(|stage| *stage == Stage::Drained).await;
    }
}

/// Begins to drain, once; devices are told at `per_second`.
pub(crate) fn begin(edge: &Arc<Edge>, per_second: usize) {
    let first = edge.drain.0.send_if_modified(|stage| {
        let first = *stage == Stage::Serving;
        if first {
            *stage = Stage::Draining;
        }
        first
    });
    if first {
        tracing::info!(devices = edge.registry.len(), "draining");
        edge.router.cluster.drain();
        let draining = edge.clone();
        edge.router.cluster.spawn(async move { hand_over(&draining, per_second).await });
    }
}

async fn hand_over(edge: &Edge, per_second: usize) {
    let reason = Refusal::because(Code::ShuttingDown, "the relay hands its devices over");
    let mut told: HashMap<u64, Instant> = HashMap::new();
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut allowance = 0.0;
    #[expect(clippy::cast_precision_loss, reason = "a rate of devices")]
    let per_tick = per_second as f64 * PERIOD.as_secs_f64();
    loop {
        tick.tick().await;
        let links = edge.registry.links_now();
        if links.is_empty() && edge.outbox.is_empty() {
            break;
        }
        // Without another relay there is nowhere to go; one may come.
        if links.is_empty() || !edge.has_others() {
            continue;
        }
        allowance = f64::min(allowance + per_tick, per_tick.max(1.0));
        for link in links {
            if let Some(at) = told.get(&link.epoch) {
                if at.elapsed() > PATIENCE {
                    link.close(&reason);
                }
            } else if allowance >= 1.0 {
                allowance -= 1.0;
                told.insert(link.epoch, Instant::now());
                edge.metrics.handovers.inc();
                edge.send_away(&link, &reason);
            }
        }
    }
    tracing::info!(devices = told.len(), "drained");
    edge.drain.0.send_replace(Stage::Drained);
}
