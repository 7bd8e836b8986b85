//! Enrolment: a token and a certificate signing request in, a certificate out, and nothing else.

use super::Edge;
use super::lane::Lane;
use super::quic::Connection;
use crate::store::Issued;
use bytes::Bytes;
use godwit_certs::Issuer;
use godwit_certs::authority::AuthorityError;
use godwit_certs::identity::fingerprint;
use godwit_wire::codec::Decoded;
use godwit_wire::frame::{Credential, EnrolRequest, Reply};
use godwit_wire::{Code, DeviceId, Refusal, UnixMillis};
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
    let reply = match enrol(edge, &token, csr).await {
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

async fn enrol(edge: &Edge, token: &str, csr: Bytes) -> Result<Vec<Credential>, Refusal> {
    let now = edge.clock.now();
    let identity = edge.identity.load_full();
    let grant = identity.tokens.verify(token, now)?;
    if grant.device.home() != edge.region {
        let why = format!("the token is for {}, this relay enrols for region {}", grant.device, edge.region);
        return Err(Refusal::because(Code::WrongDevice, why));
    }
    let device = grant.device.clone();
    let issue = move |enrolment| issue(&identity.issuer, &csr, &device, enrolment, now);
    let issued = edge.store.enrol(grant.device.clone(), grant.jti, grant.forget_at, issue).await?;
    tracing::info!(device = %grant.device, "enrolled");
    Ok(issued.chain.into_iter().map(Credential).collect())
}

/// A certificate for `device`, as the store notes it.
pub(super) fn issue(
    issuer: &Issuer,
    csr: &[u8],
    device: &DeviceId,
    enrolment: u32,
    now: UnixMillis,
) -> Result<Issued, Refusal> {
    let chain = issuer.device(csr, device, enrolment, now).map_err(|error| match error {
        AuthorityError::OtherName(_) | AuthorityError::OtherRegion { .. } => {
            Refusal::because(Code::WrongDevice, error.to_string())
        }
        AuthorityError::BadRequest(_) => Refusal::because(Code::Invalid, error.to_string()),
        AuthorityError::Make(_) => {
            tracing::error!(%error, "a certificate could not be made");
            Code::Internal.into()
        }
    })?;
    let fingerprint = chain.first().map(fingerprint).unwrap_or_default();
    Ok(Issued { chain: chain.iter().map(|der| Bytes::copy_from_slice(der)).collect(), fingerprint })
}
