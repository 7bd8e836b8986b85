//! How busy this relay is, measured now and then and told to the others.

use super::Cluster;
use crate::edge::Edge;
use crate::host::Threads;
use godwit_gossip::Status;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often load is measured.
const PERIOD: Duration = Duration::from_secs(1);

impl Cluster {
    /// Measures for as long as the relay runs.
    pub(super) async fn measure(self: Arc<Self>, edge: Weak<Edge>, threads: Threads) {
        let cores =
            std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        let (mut at, mut used) = (Instant::now(), threads.cpu_time());
        loop {
            tokio::time::sleep(PERIOD).await;
            let Some(edge) = edge.upgrade() else { return };
            let (now, cpu) = (Instant::now(), threads.cpu_time());
            let share =
                cpu.saturating_sub(used).as_secs_f64() / now.duration_since(at).as_secs_f64() / f64::from(cores);
            (at, used) = (now, cpu);
            self.set_status(Status {
                connections: u32::try_from(edge.registry.len()).unwrap_or(u32::MAX),
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it lies between 0 and 1000"
                )]
                cpu_permille: (share * 1000.0).clamp(0.0, 1000.0) as u16,
                commit_micros: edge.router.owner.as_ref().map_or(0, |owner| owner.store.commit_micros()),
                draining: self.status().draining,
            });
        }
    }
}
