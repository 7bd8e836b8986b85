//! Enrolment: a token and a certificate signing request in, a certificate out, and nothing else.

use super::Edge;
use super::lane::Lane;
use crate::quic::Connection;
use godwit_wire::codec::Decoded;
use godwit_wire::frame::{EnrolRequest, Reply};
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
    let reply = match edge.owner.enrol(&token, csr).await {
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
