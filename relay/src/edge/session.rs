//! One device's connection, from its certificate to its end.

use super::lane::{self, Lane};
use super::remote::Remote;
use super::{Edge, Session};
use crate::owner::Owner;
use crate::peers::DeviceCredential;
use crate::quic::Connection;
use crate::router::{Route, away};
use bytes::Bytes;
use godwit_certs::Identity;
use godwit_certs::identity::peer;
use godwit_core::Sender;
use godwit_wire::frame::Credential;
use godwit_wire::{Code, Refusal};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

/// How long a client may take to say hello.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that is sent elsewhere may take to go.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves a connection until it ends; one that should be elsewhere, or finds no room if this relay is `full`, is told
/// where to go.
///
/// # Errors
/// Why the device is not let in.
pub(super) async fn serve(edge: &Arc<Edge>, connection: &Connection, full: bool) -> Result<(), Refusal> {
    let certificate = connection.certificates();
    // A resumed session brings its certificate from the ticket, past the verifier: dates are checked here.
    let peer = peer(&certificate, edge.clock.now()).map_err(|error| error.refusal())?;
    let Identity::Device { device, enrolment } = peer.identity else { return Err(Code::NotADevice.into()) };
    let sender = Sender { device, enrolment };
    edge.revocations.check(&sender)?;
    let owner = edge.router.local(&sender.device.home());
    if let Some(owner) = owner {
        owner.admit(&sender).await?;
    } else if let Route::Nowhere = edge.router.route(&sender.device.home()) {
        // It is of this authority, so its region exists: this relay has not met it, or not since it started.
        return Err(away(&sender.device.home()));
    }
    let (lane, number, hello) = tokio::time::timeout(PATIENCE, Lane::hello(connection))
        .await
        .map_err(|_| Refusal::because(Code::Malformed, "no hello came"))??;
    if let Some(elsewhere) = edge.elsewhere(full, hello.options.is_sent_here()) {
        lane.answer_once(number, &elsewhere).await.map_err(|_| Refusal::from(Code::Malformed))?;
        // The client closes once it has the answer.
        let _ = tokio::time::timeout(FAREWELL, connection.closed()).await;
        return Ok(());
    }
    let link = edge.registry.attach(sender.device.clone(), enrolment, connection.clone()).await;
    edge.metrics.connections.set(i64::try_from(edge.registry.len()).unwrap_or(i64::MAX));
    let session = Arc::new(Session {
        user: sender.device.user(),
        sender,
        link: link.clone(),
        certificate_expires: peer.not_after,
        credential: hello.options.ticket().map(|ticket| DeviceCredential {
            certificate: certificate.iter().map(|der| Credential(Bytes::copy_from_slice(der))).collect(),
            ticket,
        }),
        remote: Remote::default(),
        blob_lanes: Arc::new(Semaphore::new(edge.blob_lanes)),
        generation: OnceLock::new(),
        seen_generation: hello.options.generation(),
    });
    edge.router.cluster.claim(&session.user);
    // Once more: a revocation between the first look and the registry would find nobody to shut out.
    let result = match (edge.revocations.check(&session.sender), owner) {
        (Err(refusal), _) => Err(refusal),
        (Ok(()), Some(owner)) => attached(edge, owner, connection, &session, lane, number).await,
        (Ok(()), None) => remote(edge, connection, &session, lane, number).await,
    };
    edge.router.cluster.withdraw(&session.user);
    if let Some(owner) = owner {
        owner.fanout.detached(link.clone()).await;
        // Also waits for what this connection still had in the writer's queue.
        if let Err(refusal) = owner.store.seen(session.sender.device.clone()).await {
            tracing::debug!(%refusal, device = %session.sender.device, "last seen was not noted");
        }
    }
    session.remote.end(&session);
    edge.registry.detach(&link);
    edge.metrics.connections.set(i64::try_from(edge.registry.len()).unwrap_or(i64::MAX));
    result
}

async fn attached(
    edge: &Arc<Edge>,
    owner: &Owner,
    connection: &Connection,
    session: &Arc<Session>,
    first: Lane,
    hello: u32,
) -> Result<(), Refusal> {
    // As above, by what the store knows.
    owner.admit(&session.sender).await?;
    owner.fanout.attached(session.link.clone()).await;
    tracing::info!(device = %session.sender.device, "connected");
    // A session begins once.
    let _ = session.generation.set(owner.store.client_generation());
    let serving = serve_lanes(edge, connection, session, first, hello);
    if !owner.store.is_shared() {
        return serving.await;
    }
    tokio::select! {
        biased;
        refused = session.remote.keep(edge, session, None) => refused,
        served = serving => served,
    }
}

/// A device whose user's home is another relay.
async fn remote(
    edge: &Arc<Edge>,
    connection: &Connection,
    session: &Arc<Session>,
    first: Lane,
    hello: u32,
) -> Result<(), Refusal> {
    let (told, generation) = oneshot::channel::<Option<u64>>();
    let serving = async {
        // Refused, it is dropped, and the other branch says why.
        let Ok(generation) = generation.await else { return std::future::pending().await };
        tracing::info!(device = %session.sender.device, home = generation.is_some(), "connected, at home elsewhere");
        if let Some(generation) = generation {
            let _ = session.generation.set(generation);
        }
        serve_lanes(edge, connection, session, first, hello).await
    };
    tokio::select! {
        biased;
        refused = session.remote.keep(edge, session, Some(told)) => refused,
        served = serving => served,
    }
}

async fn serve_lanes(
    edge: &Arc<Edge>,
    connection: &Connection,
    session: &Arc<Session>,
    first: Lane,
    hello: u32,
) -> Result<(), Refusal> {
    let mut lanes = JoinSet::new();
    lanes.spawn(lane::serve(edge.clone(), session.clone(), first, Some(hello)));
    let result = accept_lanes(edge, connection, session, &mut lanes).await;
    lanes.shutdown().await;
    result
}

async fn accept_lanes(
    edge: &Arc<Edge>,
    connection: &Connection,
    session: &Arc<Session>,
    lanes: &mut JoinSet<Result<(), Refusal>>,
) -> Result<(), Refusal> {
    let expiry = tokio::time::sleep(session.certificate_expires.since(edge.clock.now()));
    tokio::pin!(expiry);
    loop {
        tokio::select! {
            biased;
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
