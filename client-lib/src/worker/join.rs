//! From a list of relays to a session with one of them, following where they send the device.

use crate::client::Inner;
use crate::dial::{Dialed, Dialer, Sockets};
use crate::error::Error;
use crate::session::{FromRelay, Session, Started};
use godwit_certs::DeviceKey;
use godwit_wire::frame::{Address, Options, Welcome};
use godwit_wire::{ALPN_DEVICE, Refusal, RelayId};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a device lets itself be sent on before it waits.
const HOPS: usize = 3;

/// A session that has begun.
pub(super) struct Joined {
    pub(super) session: Session,
    pub(super) welcome: Welcome,
    pub(super) incoming: mpsc::Receiver<FromRelay>,
    /// Of the relay, as it was given or named.
    pub(super) address: String,
}

/// What it takes to begin a session. Cloning shares it.
#[derive(Clone)]
pub(super) struct Joiner {
    pub(super) inner: Arc<Inner>,
    pub(super) sockets: Sockets,
}

pub(super) fn addresses(relays: &[Address]) -> Vec<String> {
    relays.iter().map(|address| address.0.clone()).collect()
}

impl Joiner {
    fn dialer(&self) -> Result<(Dialer, DeviceKey, Vec<CertificateDer<'static>>), Error> {
        let row = self.inner.store().device()?.ok_or_else(|| Error::NotEnrolled(self.inner.home.clone()))?;
        let key = DeviceKey::from_der(&row.key).map_err(|error| Error::Certificates(error.to_string()))?;
        let chain: Vec<_> = row.chain.into_iter().map(CertificateDer::from).collect();
        let authority = CertificateDer::from(row.authority);
        let dialer =
            Dialer::new(&self.inner.host.crypto, &authority, Some(key.credential(chain.clone())), ALPN_DEVICE)?;
        Ok((dialer, key, chain))
    }

    /// Begins a session with the first of `relays` that takes the device, but for the one that it is `leaving`.
    ///
    /// Cancel safety: what was begun is given up.
    pub(super) async fn join(&self, relays: Vec<String>, leaving: Option<RelayId>) -> Result<Joined, Error> {
        let (dialer, key, chain) = self.dialer()?;
        let mut avoid = Vec::from_iter(leaving);
        let mut relays = relays;
        let mut sent_by: Option<Refusal> = None;
        for _ in 0..HOPS {
            let dialed = dialer.connect(&self.sockets, &relays, &avoid).await;
            let Dialed { connection, relay, address } = match (dialed, &sent_by) {
                (Ok(dialed), _) => dialed,
                // The relay that sent the device on is there; it said when to come back.
                (Err(_), Some(refusal)) => return Err(refusal.clone().into()),
                (Err(error), None) => return Err(error),
            };
            let ticket = key.ticket_for(&relay, &chain).map_err(|error| Error::Certificates(error.to_string()))?;
            let mut options = Options::with_ticket(&ticket);
            if sent_by.is_some() {
                options = options.sent_here();
            }
            let generation = self.inner.store().generation()?;
            if let Some(generation) = generation {
                options = options.with_generation(generation);
            }
            match Session::start(connection, options).await? {
                Started::Here { session, welcome, incoming } => {
                    return Ok(Joined { session, welcome, incoming, address });
                }
                Started::Elsewhere { reason, relays: others } => {
                    tracing::info!(%relay, %reason, "sent to another relay");
                    relays = addresses(&others);
                    avoid.push(relay);
                    sent_by = Some(reason);
                    if relays.is_empty() {
                        break;
                    }
                }
            }
        }
        Err(sent_by.map_or_else(|| Error::Unreachable("no relay takes the device".to_owned()), Error::from))
    }

    /// The round trip to a relay, by a handshake with it.
    pub(super) async fn measure(&self, address: String) -> Option<(String, Duration)> {
        let (dialer, ..) = self.dialer().ok()?;
        let Dialed { connection, .. } =
            dialer.connect(&self.sockets, std::slice::from_ref(&address), &[]).await.ok()?;
        let round_trip = connection.rtt();
        connection.close(0u32.into(), b"");
        Some((address, round_trip))
    }
}
