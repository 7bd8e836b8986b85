//! Health, metrics and commands for operators, over HTTP on a loopback address.

use crate::config::Config;
use crate::edge::{Edge, drain};
use crate::host::Disk;
use crate::metrics::Peer;
use crate::store::{Snapshot, StoreError, file};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use godwit_certs::identity;
use godwit_certs::tls::ServedCertificate;
use godwit_gossip::Status;
use godwit_wire::DeviceId;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Totals over all inboxes read every row: they are at most this old.
const TOTALS_AGE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Admin {
    edge: Arc<Edge>,
    served: Arc<ServedCertificate>,
    stop: CancellationToken,
    disk: Arc<dyn Disk>,
    store_path: PathBuf,
    drain_per_second: usize,
    totals_at: Mutex<Option<Instant>>,
}

impl Admin {
    pub(crate) fn new(
        edge: Arc<Edge>,
        served: Arc<ServedCertificate>,
        stop: CancellationToken,
        config: &Config,
        disk: Arc<dyn Disk>,
    ) -> Arc<Self> {
        let store_path = config.data.join(file::NAME);
        let drain_per_second = config.cluster.drain_per_second.count();
        Arc::new(Self { edge, served, stop, disk, store_path, drain_per_second, totals_at: Mutex::new(None) })
    }
}

type Answer = (StatusCode, String);

pub(crate) fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/cluster", get(cluster))
        .route("/devices/revoke", post(revoke))
        .route("/store/backup", post(backup))
        .route("/drain", post(leave))
        .with_state(admin)
}

/// Ready: takes connections, and its store answers.
async fn ready(State(admin): State<Arc<Admin>>) -> Answer {
    if admin.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    if admin.edge.drain.has_begun() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    let Some(owner) = &admin.edge.router.owner else { return (StatusCode::OK, "ready\n".to_owned()) };
    match owner.store.read(Snapshot::answers).await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("store: {error}\n")),
    }
}

async fn cluster(State(admin): State<Arc<Admin>>) -> Answer {
    match serde_json::to_string(&admin.edge.router.cluster.report(admin.edge.outbox.depth().0)) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Answer {
    let metrics = &admin.edge.metrics;
    let now = admin.edge.clock.now();
    let mut totals_at = admin.totals_at.lock().await;
    if let Some(owner) = &admin.edge.router.owner
        // Of a shared one, reading all rows would be dear, and each relay would.
        && !owner.store.is_shared()
        && totals_at.is_none_or(|at| at.elapsed() >= TOTALS_AGE)
    {
        match owner.store.read(Snapshot::inbox_totals).await {
            Ok(totals) => {
                metrics.inbox_rows.set(gauge(totals.rows));
                metrics.inbox_bytes.set(gauge(totals.bytes));
                metrics.inbox_oldest.set(gauge(totals.oldest.map_or(0, |oldest| now.since(oldest).as_secs())));
                *totals_at = Some(Instant::now());
            }
            Err(error) => tracing::warn!(%error, "inbox totals cannot be read"),
        }
    }
    drop(totals_at);
    let (depth, oldest) = admin.edge.outbox.depth();
    metrics.outbox_depth.set(gauge(depth as u64));
    metrics.outbox_oldest.set(gauge(oldest.map_or(0, |oldest| now.since(oldest).as_secs())));
    of_cluster(&admin.edge);
    metrics.store_size.set(admin.disk.len(&admin.store_path).map_or(0, gauge));
    let expiry = identity::expiry(&admin.served.chain()).map_or(0, |expiry| expiry.since(now).as_secs());
    metrics.certificate_expiry.set(gauge(expiry));
    (StatusCode::OK, metrics.render())
}

/// What the cluster counts by itself is shown as it stands.
fn of_cluster(edge: &Edge) {
    let (metrics, cluster) = (&edge.metrics, &edge.router.cluster);
    let members = cluster.members();
    let draining = |status: Option<Status>| status.is_some_and(|status| status.draining);
    let own = usize::from(cluster.status().draining);
    metrics.members.set(gauge(members.len() as u64 + 1));
    metrics.members_draining.set(gauge((members.iter().filter(|member| draining(member.status)).count() + own) as u64));
    metrics.members_down.set(gauge(cluster.lost().len() as u64));
    metrics.link_round_trip.clear();
    metrics.link_queue.clear();
    for link in edge.router.cluster.peers.all() {
        let peer = Peer { relay: link.relay().to_string() };
        metrics.link_round_trip.get_or_create(&peer).set(link.connection.round_trip().as_secs_f64());
        metrics.link_queue.get_or_create(&peer).set(gauge(link.queued_bytes() as u64));
    }
    let stats = cluster.stats();
    metrics.claims.set(gauge(stats.claims_known as u64));
    metrics.claims_own.set(gauge(stats.claims_own as u64));
    metrics.gossip_backlog.set(gauge(stats.backlog as u64));
    for (counter, value) in [
        (&metrics.gossip_packets_in, stats.packets_in),
        (&metrics.gossip_packets_out, stats.packets_out),
        (&metrics.gossip_packets_refused, stats.packets_refused),
        (&metrics.gossip_bytes_in, stats.bytes_in),
        (&metrics.gossip_bytes_out, stats.bytes_out),
        (&metrics.gossip_pulls, stats.pulls_asked),
        (&metrics.gossip_pulls_failed, stats.pulls_failed),
    ] {
        counter.inner().store(value, Ordering::Relaxed);
    }
}

#[derive(Deserialize)]
struct Device {
    device: String,
}

async fn revoke(State(admin): State<Arc<Admin>>, Query(query): Query<Device>) -> Answer {
    let device: DeviceId = match query.device.parse() {
        Ok(device) => device,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("device: {error}\n")),
    };
    let Some(owner) = admin.edge.router.local(&device.home()) else {
        return (StatusCode::NOT_FOUND, format!("{device}: ask the relay that holds the store of its region\n"));
    };
    match owner.store.revoke(device.clone()).await {
        Ok(true) => {
            tracing::info!(%device, "revoked");
            (StatusCode::OK, format!("{device} is revoked\n"))
        }
        Ok(false) => (StatusCode::NOT_FOUND, format!("{device} is not enrolled here\n")),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, format!("{refusal}\n")),
    }
}

#[derive(Deserialize)]
struct Backup {
    to: PathBuf,
}

async fn backup(State(admin): State<Arc<Admin>>, Query(query): Query<Backup>) -> Answer {
    let Some(owner) = &admin.edge.router.owner else {
        return (StatusCode::NOT_FOUND, "this relay is an edge and has no store\n".to_owned());
    };
    match owner.store.backup(query.to.clone()).await {
        Ok(()) => (StatusCode::OK, format!("copied to {}\n", query.to.display())),
        Err(error @ (StoreError::File { .. } | StoreError::NoBackup)) => (StatusCode::CONFLICT, format!("{error}\n")),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[derive(Deserialize)]
struct Within {
    within_millis: u64,
}

/// Answers once the relay has drained. It goes on draining if that takes longer than is waited for.
async fn leave(State(admin): State<Arc<Admin>>, Query(query): Query<Within>) -> Answer {
    let edge = &admin.edge;
    if !edge.has_others() {
        let why = "there is no other relay to take the devices; SIGTERM stops this one\n";
        return (StatusCode::CONFLICT, why.to_owned());
    }
    drain::begin(edge, admin.drain_per_second);
    let within = Duration::from_millis(query.within_millis);
    if tokio::time::timeout(within, edge.drain.drained()).await.is_ok() {
        return (
            StatusCode::OK,
            "drained: no device is connected and nothing waits in the outbox; stopping\n".to_owned(),
        );
    }
    let (devices, (waiting, _)) = (edge.registry.len(), edge.outbox.depth());
    let text = format!("still draining: {devices} devices are connected, {waiting} requests wait in the outbox\n");
    (StatusCode::REQUEST_TIMEOUT, text)
}
