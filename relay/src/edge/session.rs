//! One device's connection, from its certificate to its end.

use super::lane::{self, Lane};
use super::{Edge, Session};
use crate::quic::Connection;
use godwit_certs::Identity;
use godwit_certs::identity::{Peer, peer};
use godwit_core::Sender;
use godwit_wire::{Code, Refusal};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a client may take to say hello.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a connection until it ends.
///
/// # Errors
/// Why the device is not let in.
pub(super) async fn serve(edge: &Arc<Edge>, connection: &Connection) -> Result<(), Refusal> {
    let peer = authenticate(edge, connection)?;
    let Identity::Device { device, enrolment } = peer.identity else { return Err(Code::NotADevice.into()) };
    if device.home() != edge.owner.region {
        let why = format!("{device} belongs to region {}, this relay serves {}", device.home(), edge.owner.region);
        return Err(Refusal::because(Code::WrongDevice, why));
    }
    let sender = Sender { device, enrolment };
    edge.owner.admit(&sender).await?;
    let (lane, hello) = tokio::time::timeout(PATIENCE, Lane::hello(connection))
        .await
        .map_err(|_| Refusal::because(Code::Malformed, "no hello came"))??;
    let limit = edge.lane_bytes;
    let link = edge.registry.attach(sender.device.clone(), enrolment, connection.clone(), limit).await;
    edge.metrics.connections.set(i64::try_from(edge.registry.len()).unwrap_or(i64::MAX));
    let session = Arc::new(Session {
        user: sender.device.user(),
        sender,
        link: link.clone(),
        certificate_expires: peer.not_after,
    });
    let result = attached(edge, connection, &session, lane, hello).await;
    edge.owner.fanout.detached(link.clone()).await;
    // Also waits for what this connection still had in the writer's queue.
    if let Err(refusal) = edge.owner.store.seen(session.sender.device.clone()).await {
        tracing::debug!(%refusal, device = %session.sender.device, "last seen was not noted");
    }
    edge.registry.detach(&link);
    edge.metrics.connections.set(i64::try_from(edge.registry.len()).unwrap_or(i64::MAX));
    result
}

fn authenticate(edge: &Edge, connection: &Connection) -> Result<Peer, Refusal> {
    // A resumed session brings its certificate from the ticket, past the verifier: dates are checked here.
    peer(&connection.certificates(), edge.owner.clock.now()).map_err(|error| error.refusal())
}

async fn attached(
    edge: &Arc<Edge>,
    connection: &Connection,
    session: &Arc<Session>,
    first: Lane,
    hello: u32,
) -> Result<(), Refusal> {
    // Once more: a revocation between the first look and the registry would find nobody to shut out.
    edge.owner.admit(&session.sender).await?;
    edge.owner.fanout.attached(session.link.clone()).await;
    tracing::info!(device = %session.sender.device, "connected");
    let mut lanes = JoinSet::new();
    lanes.spawn(lane::serve(edge.clone(), session.clone(), first, Some(hello)));
    let result = serve_lanes(edge, connection, session, &mut lanes).await;
    lanes.shutdown().await;
    result
}

async fn serve_lanes(
    edge: &Arc<Edge>,
    connection: &Connection,
    session: &Arc<Session>,
    lanes: &mut JoinSet<Result<(), Refusal>>,
) -> Result<(), Refusal> {
    let expiry = tokio::time::sleep(session.certificate_expires.since(edge.owner.clock.now()));
    tokio::pin!(expiry);
    loop {
        tokio::select! {
            () = connection.closed() => return Ok(()),
            () = &mut expiry => return Err(Code::CertificateExpired.into()),
            lane = connection.accept_lane() => match lane {
                Ok((receive, send)) => {
                    lanes.spawn(lane::serve(edge.clone(), session.clone(), Lane::new(receive, send), None));
                }
                Err(_) => return Ok(()),
            },
            Some(ended) = lanes.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => return Err(refusal),
                Err(error) => {
                    tracing::error!(%error, device = %session.sender.device, "a lane panicked");
                    return Err(Code::Internal.into());
                }
            },
        }
    }
}
