//! Enrolment: a token and a certificate signing request in, a certificate out, and nothing else.

use super::Edge;
use super::lane::Lane;
use crate::peers::LinkError;
use crate::peers::frame::PeerAsk;
use crate::quic::Connection;
use crate::router::{Route, away, nowhere};
use bytes::Bytes;
use godwit_certs::token::subject;
use godwit_wire::codec::Decoded;
use godwit_wire::frame::{Credential, EnrolRequest, Reply};
use godwit_wire::{Code, Refusal};
use std::time::Duration;

/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn serve(edge: &Edge, connection: &Connection) -> Result<(), Refusal> {
    let malformed = |why: &str| Refusal::because(Code::Malformed, why);
    let first = tokio::time::timeout(PATIENCE, Lane::first(connection));
    let (lane, number, request) = first.await.map_err(|_| malformed("no request came"))??;
    let Decoded::Frame(EnrolRequest::Enrol { token, csr }) = request else {
        return Err(malformed("not a request of enrolment"));
    };
    let reply = match enrol(edge, token, csr).await {
        Ok(chain) => Reply::Certificate(chain),
        Err(refusal) => {
            edge.metrics.refusals.inc();
            tracing::info!(%refusal, "an enrolment was refused");
            Reply::Refused(refusal)
        }
    };
    lane.answer_once(number, &reply).await.map_err(|_| malformed("the connection ended early"))?;
    // The client closes once it has the answer.
    let _ = tokio::time::timeout(PATIENCE, connection.closed()).await;
    Ok(())
}

/// At the device's home, where the token is used up.
async fn enrol(edge: &Edge, token: String, csr: Bytes) -> Result<Vec<Credential>, Refusal> {
    let device = subject(&token).ok_or(Code::TokenInvalid)?;
    let home = device.home();
    match edge.router.route(&home) {
        Route::Here(owner) => edge.router.enrol(owner, &token, csr).await,
        Route::There(peer) => {
            let ask = PeerAsk::Enrol(EnrolRequest::Enrol { token, csr });
            match peer.ask_one(&ask).await.map_err(LinkError::refusal)? {
                Reply::Certificate(chain) => Ok(chain),
                Reply::Refused(refusal) => Err(refusal),
                _ => Err(LinkError::Confused.refusal()),
            }
        }
        Route::Away => Err(away(&home)),
        Route::Nowhere => Err(nowhere(&device)),
    }
}
