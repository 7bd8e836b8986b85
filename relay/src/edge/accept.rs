//! Takes connections, and hands each to a session or to enrolment by its ALPN.

use super::admission::Admission;
use super::{Edge, enrol, session};
use crate::peers::{self, ALPN_PEER};
use crate::quic::Connection;
use godwit_wire::{ALPN_ENROL, Code, Refusal};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Endpoint, Incoming};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How often limits forget who did not come lately.
const FORGET_IDLE: Duration = Duration::from_mins(1);

/// Accepts until `stop`; then waits for the sessions to end. Aborting it ends them.
pub(crate) async fn run(edge: Arc<Edge>, endpoint: Endpoint, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut forget = tokio::time::interval(FORGET_IDLE);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            _ = forget.tick() => {
                edge.admissions.forget_idle();
                edge.limits.load().forget_idle();
                edge.revocations.forget_old();
            }
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => admit(&edge, incoming, &mut tasks),
                None => break,
            }
        }
    }
    // New attempts are refused from here on.
    endpoint.set_server_config(None);
    while tasks.join_next().await.is_some() {}
}

fn admit(edge: &Arc<Edge>, incoming: Incoming, tasks: &mut JoinSet<()>) {
    let (address, validated) = (incoming.remote_address().ip(), incoming.remote_address_validated());
    let (permit, door) = match edge.admissions.decide(address, validated, edge.registry.len()) {
        Admission::Accept(permit) => (permit, Door::Open),
        Admission::Full(permit) => (permit, Door::Full),
        Admission::TurnAway(permit, refusal) => (permit, Door::Shut(refusal)),
        other => {
            edge.metrics.handshakes_refused.inc();
            match other {
                // It fails only for an address that is validated, which `decide` does not ask to retry.
                Admission::Retry => drop(incoming.retry()),
                Admission::Ignore => incoming.ignore(),
                _ => incoming.refuse(),
            }
            return;
        }
    };
    let span = tracing::info_span!("connection", remote = %incoming.remote_address());
    tasks.spawn(handshake(edge.clone(), incoming, permit, door).instrument(span));
}

/// What awaits a connection behind its handshake.
enum Door {
    Open,
    Full,
    Shut(Refusal),
}

async fn handshake(edge: Arc<Edge>, incoming: Incoming, permit: OwnedSemaphorePermit, door: Door) {
    let handshake = async { incoming.accept().ok()?.await.ok() };
    let Ok(Some(connection)) = tokio::time::timeout(edge.handshake_timeout, handshake).await else {
        tracing::debug!("a handshake did not end");
        return;
    };
    edge.metrics.handshakes.inc();
    let alpn = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()?.protocol);
    let connection = Connection(connection);
    if let Door::Shut(refusal) = door {
        edge.metrics.handshakes_refused.inc();
        connection.close(&refusal);
        return;
    }
    let result = if alpn.as_deref() == Some(ALPN_ENROL) {
        // Whoever enrols has proved nothing yet, and keeps a place among the handshakes.
        let result = enrol::serve(&edge, &connection).await;
        drop(permit);
        result
    } else if alpn.as_deref() == Some(ALPN_PEER) {
        drop(permit);
        match edge.router.cluster.peers.accept(&connection).await {
            Ok(link) if edge.router.cluster.peers.enter(&link) => return peers::serve(&edge, link).await,
            Ok(_) => return,
            Err(refusal) => Err(refusal),
        }
    } else {
        // One without room here keeps its place among the handshakes: so many are sent elsewhere at a time.
        let full = matches!(door, Door::Full).then_some(permit);
        session::serve(&edge, &connection, full.is_some()).await
    };
    if let Err(refusal) = result {
        edge.metrics.refusals.inc();
        tracing::info!(%refusal, "a connection was refused");
        connection.close(&refusal);
    } else {
        connection.close(&Code::ShuttingDown.into());
    }
}
