//! What a relay counts, and the text that `/metrics` shows. Owned by the relay: two in one process do not mix.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// The relay at the other end of a link.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Peer {
    pub relay: String,
}

type LinkSeconds = Family<Peer, Gauge<f64, AtomicU64>>;
type LinkBytes = Family<Peer, Gauge>;

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
    blob_bytes_in: Counter, "blob_bytes_in", "Bytes of attachments that came in";
    blob_bytes_out: Counter, "blob_bytes_out", "Bytes of attachments that went out";
    blob_parts: Counter, "blob_parts", "Parts of attachments that were stored";
    blob_resumes: Counter, "blob_resumes", "Uploads that went on where they had stopped";
    blob_urls: Counter, "blob_urls", "Addresses in the store of attachments that were given to devices";
    blob_faults: Counter, "blob_faults", "Times that the store of attachments failed";
    blob_store_latency: Histogram (Seconds), "blob_store_latency", "Time that storing a part takes", exponential_buckets(0.001, 2.0, 16);
    blobs_collected: Counter, "blobs_collected", "Attachments and uploads removed because nothing referred to them";
    malformed: Counter, "malformed_frames", "Frames that could not be read";
    commit_conflicts: Counter, "commit_conflicts", "Commits of a shared store that another relay came before";
    commits: Counter, "commits", "Commits of the store";
    commit_failures: Counter, "commit_failures", "Commits that failed; the store was reopened";
    commit_batch: Histogram, "commit_batch_commands", "Numbered requests in one commit", exponential_buckets(1.0, 2.0, 14);
    commit_latency: Histogram (Seconds), "commit_latency", "From the start of a batch to its fsync", exponential_buckets(0.000_05, 2.0, 18);
    delivery_latency: Histogram (Seconds), "delivery_latency", "From the commit of an entry to a device's acknowledgement of it", exponential_buckets(0.000_1, 2.0, 18);
    fanout_backlog: Gauge, "fanout_backlog_entries", "Committed entries that fan-out has not taken up yet";
    pushes: Counter, "pushes", "Entries pushed to connected devices";
    edge_pushes: Counter, "edge_pushes", "Frames with an entry for devices at another relay, however many";
    forwards: Counter, "forwards", "Numbered requests handed to the home of their chat";
    queued: Counter, "outbox_queued", "Numbered requests that were kept for a home out of reach";
    outbox_depth: Gauge, "outbox_requests", "Requests that wait for their home";
    outbox_oldest: Gauge (Seconds), "outbox_oldest_age", "Age of the oldest request that waits for its home";
    members: Gauge, "cluster_members", "Relays that are up, this one among them";
    members_down: Gauge, "cluster_members_down", "Relays that went down within the last hour and did not come back";
    members_draining: Gauge, "cluster_members_draining", "Of these, those that hand their devices over";
    link_round_trip: LinkSeconds (Seconds), "link_round_trip", "Round trip to a relay that is linked";
    link_queue: LinkBytes (Bytes), "link_queue", "What waits to be written to a relay";
    gossip_packets_in: Counter, "gossip_packets_in", "Packets of membership and claims that came";
    gossip_packets_out: Counter, "gossip_packets_out", "Packets of membership and claims that went";
    gossip_packets_refused: Counter, "gossip_packets_refused", "Packets that came and were not taken";
    gossip_bytes_in: Counter (Bytes), "gossip_in", "Bytes of the packets that came";
    gossip_bytes_out: Counter (Bytes), "gossip_out", "Bytes of the packets that went";
    gossip_pulls: Counter, "gossip_pulls", "Pulls of another relay's claims, after a gap or for a newcomer";
    gossip_pulls_failed: Counter, "gossip_pulls_failed", "Pulls that brought nothing";
    gossip_backlog: Gauge, "gossip_backlog_items", "Items that wait to be passed on";
    claims_own: Gauge, "cluster_claims_own", "Users that this relay claims";
    claims: Gauge, "cluster_claims", "Claims of other relays that are known here";
    direct_pushes: Counter, "direct_pushes", "Entries given at once to users whose home is away, by their claims";
    direct_push_hits: Counter, "direct_push_hits", "Of those that came here, for users who were connected";
    direct_push_misses: Counter, "direct_push_misses", "Of those that came here, for users who were not: a claim was stale";
    handovers: Counter, "handovers", "Devices asked to go on at another relay";
    redirects: Counter, "redirects", "Devices that came and were sent to another relay";
    inbox_rows_written: Counter, "inbox_rows_written", "Inbox rows begun: a device did not take an entry";
    inbox_drained: Counter, "inbox_drained_entries", "Entries read from the log for devices that were behind";
    inbox_rows: Gauge, "inbox_rows", "Inbox rows: chats in which a device is behind";
    inbox_bytes: Gauge (Bytes), "inbox", "Content that devices which are behind have not taken";
    inbox_oldest: Gauge (Seconds), "inbox_oldest_age", "Age of the oldest inbox row";
    shared_reads: Counter, "shared_store_reads", "Items and pages that were read from a shared store";
    shared_writes: Counter, "shared_store_writes", "Items that were written to a shared store, or tried";
    shared_failures: Counter, "shared_store_failures", "Times that a shared store was slow, away or at its limits; mostly it is asked again";
    shared_latency: Histogram (Seconds), "shared_store_latency", "Time that a shared store takes to answer", exponential_buckets(0.000_5, 2.0, 15);
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
