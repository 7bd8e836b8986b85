//! What a relay counts, and the text that `/metrics` shows. Owned by the relay: two in one process do not mix.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;

macro_rules! metrics {
    ($($field:ident: $kind:ident $(($unit:ident))?, $name:literal, $help:literal $(, $buckets:expr)?;)*) => {
        /// Counters, gauges and histograms of one relay. Cloning shares them.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: Arc<Registry>,
            $(pub $field: $kind,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("godwit");
                $(
                    let $field = metrics!(@new $kind $($buckets)?);
                    metrics!(@register registry, $field, $name, $help $(, $unit)?);
                )*
                Self { registry: Arc::new(registry), $($field,)* }
            }
        }
    };
    (@new Histogram $buckets:expr) => { Histogram::new($buckets) };
    (@new $kind:ident) => { $kind::default() };
    (@register $registry:ident, $field:ident, $name:literal, $help:literal) => {
        $registry.register($name, $help, $field.clone());
    };
    (@register $registry:ident, $field:ident, $name:literal, $help:literal, $unit:ident) => {
        $registry.register_with_unit($name, $help, Unit::$unit, $field.clone());
    };
}

metrics! {
    connections: Gauge, "connections", "Devices connected now";
    handshakes: Counter, "handshakes", "Handshakes that were completed";
    handshakes_refused: Counter, "handshakes_refused", "Connection attempts that were refused, ignored or asked to retry";
    enrolments: Counter, "enrolments", "Devices enrolled";
    sends: Counter, "sends", "Numbered requests that became an entry";
    refusals: Counter, "refusals", "Requests that were refused";
    rate_limited: Counter, "rate_limited", "Requests over a user's rate";
    malformed: Counter, "malformed_frames", "Frames that could not be read";
    commits: Counter, "commits", "Commits of the store";
    commit_failures: Counter, "commit_failures", "Commits that failed; the store was reopened";
    commit_batch: Histogram, "commit_batch_commands", "Numbered requests in one commit", exponential_buckets(1.0, 2.0, 14);
    commit_latency: Histogram (Seconds), "commit_latency", "From the start of a batch to its fsync", exponential_buckets(0.000_05, 2.0, 18);
    delivery_latency: Histogram (Seconds), "delivery_latency", "From the commit of an entry to a device's acknowledgement of it", exponential_buckets(0.000_1, 2.0, 18);
    fanout_backlog: Gauge, "fanout_backlog_entries", "Committed entries that fan-out has not taken up yet";
    pushes: Counter, "pushes", "Entries pushed to connected devices";
    forwards: Counter, "forwards", "Numbered requests handed to the home of their chat";
    queued: Counter, "outbox_queued", "Numbered requests that were kept for a home out of reach";
    outbox_depth: Gauge, "outbox_requests", "Requests that wait for their home";
    outbox_oldest: Gauge (Seconds), "outbox_oldest_age", "Age of the oldest request that waits for its home";
    members: Gauge, "cluster_members", "Relays that are up, this one among them";
    claims: Gauge, "cluster_claims", "Claims of other relays that are known here";
    direct_pushes: Counter, "direct_pushes", "Entries given at once to users whose home is away, by their claims";
    handovers: Counter, "handovers", "Devices asked to go on at another relay";
    redirects: Counter, "redirects", "Devices that came and were sent to another relay";
    inbox_rows_written: Counter, "inbox_rows_written", "Inbox rows begun: a device did not take an entry";
    inbox_drained: Counter, "inbox_drained_entries", "Entries read from the log for devices that were behind";
    inbox_rows: Gauge, "inbox_rows", "Inbox rows: chats in which a device is behind";
    inbox_bytes: Gauge (Bytes), "inbox", "Content that devices which are behind have not taken";
    inbox_oldest: Gauge (Seconds), "inbox_oldest_age", "Age of the oldest inbox row";
    store_size: Gauge (Bytes), "store_file", "Size of the store's file";
    certificate_expiry: Gauge (Seconds), "certificate_expiry", "Time until the relay's certificate expires";
}

impl Metrics {
    /// OpenMetrics text, as Prometheus reads it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}
