//! Links to other relays: one QUIC connection a pair, opened by whoever needs it first, with mutual TLS.
//!
//! A relay proves itself with a certificate of its region's issuer, and says in its hello which run of which relay it
//! is, and which versions of the protocol it speaks. Of two links to one relay the better is kept, and both ends choose
//! the same: the later run's, then the one that the relay with the smaller id opened, then the one opened later.
//!
//! - [`frame`]: what travels on links
//! - [`link`]: one link: requests, notes, bounded queues
//! - [`reunion`]: copies are compared after a store was restored
//! - [`serve`]: what a peer asks of this relay

pub(crate) mod frame;
pub(crate) mod link;
mod reunion;
mod serve;
#[cfg(test)]
mod tests;

pub(crate) use link::{DeviceCredential, LinkError, PeerLink};
pub(crate) use serve::serve;

use crate::quic::{Connection, LaneIn, Unread};
use frame::{PeerAsk, PeerHello, PeerWelcome, VERSIONS};
use godwit_certs::Identity as Certified;
use godwit_certs::identity::peer;
use godwit_gossip::{Identity, Kind};
use godwit_wire::codec::{self, Decoded, FrameReader};
use godwit_wire::{Clock, Code, RELAY_SERVER_NAME, Refusal, RelayId};
use quinn::{ClientConfig, Endpoint, VarInt};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// The ALPN of links between relays.
pub(crate) const ALPN_PEER: &[u8] = b"godwit-peer/1";
/// How long dialling and the hello may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Lanes that a peer may open; those of frames and room to spare.
const PEER_LANES: u32 = 16;

#[derive(Debug)]
pub(crate) struct Peers {
    /// Changes only if the cluster declared this run down by mistake.
    me: RwLock<Identity>,
    generation: Option<u64>,
    clock: Clock,
    endpoint: Endpoint,
    /// Replaced by a reload.
    dialling: RwLock<ClientConfig>,
    links: RwLock<HashMap<RelayId, Arc<PeerLink>>>,
    changed: watch::Sender<()>,
    attempts: AtomicU64,
}

fn refused(why: impl Into<String>) -> Refusal {
    Refusal::because(Code::Unauthenticated, why.into())
}

impl Peers {
    pub(crate) fn new(
        me: Identity,
        generation: Option<u64>,
        clock: Clock,
        endpoint: Endpoint,
        dialling: ClientConfig,
    ) -> Self {
        let (changed, _) = watch::channel(());
        Self {
            me: RwLock::new(me),
            generation,
            clock,
            endpoint,
            dialling: RwLock::new(dialling),
            links: RwLock::default(),
            changed,
            attempts: AtomicU64::new(0),
        }
    }

    pub(crate) fn me(&self) -> Identity {
        self.me.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn renewed(&self, me: Identity) {
        *self.me.write().unwrap_or_else(PoisonError::into_inner) = me;
    }

    pub(crate) fn dial_with(&self, config: ClientConfig) {
        *self.dialling.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    pub(crate) fn get(&self, relay: &RelayId) -> Option<Arc<PeerLink>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(relay).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<PeerLink>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The relay at an address, if there is a link to it.
    pub(crate) fn linked_to(&self, address: SocketAddr) -> Option<RelayId> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.values().find(|link| link.peer.addr() == address).map(|link| link.relay().clone())
    }

    /// Hears whenever a link came or went.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Who is a member changed: routes may have.
    pub(crate) fn touch(&self) {
        self.changed.send_replace(());
    }

    /// Enters a link, to be served from now on; one that is not as good as what is there is closed.
    pub(crate) fn enter(&self, link: &Arc<PeerLink>) -> bool {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let preferred = self.me.read().unwrap_or_else(PoisonError::into_inner).relay() < link.relay();
        let rank = |link: &PeerLink| (link.peer.epoch(), link.dialled == preferred, link.attempt);
        if let Some(other) = links.get(link.relay()) {
            if rank(link) < rank(other) {
                link.close(&Code::Replaced.into());
                return false;
            }
            other.close(&Code::Replaced.into());
        }
        links.insert(link.relay().clone(), link.clone());
        drop(links);
        self.changed.send_replace(());
        true
    }

    fn leave(&self, link: &Arc<PeerLink>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if links.get(link.relay()).is_some_and(|current| Arc::ptr_eq(current, link)) {
            links.remove(link.relay());
        }
        drop(links);
        link.ended();
        self.changed.send_replace(());
    }

    fn hello(&self) -> PeerHello {
        PeerHello { identity: self.me(), generation: self.generation, attempt: 0 }
    }

    /// Which relay the other end of a connection is, by its certificate.
    fn certified(&self, connection: &Connection) -> Result<RelayId, Refusal> {
        match peer(&connection.certificates(), self.clock.now()).map_err(|error| error.refusal())?.identity {
            Certified::Relay(relay) if relay == *self.me().relay() => Err(refused("a relay has no link to itself")),
            Certified::Relay(relay) => Ok(relay),
            _ => Err(refused("the certificate does not name a relay")),
        }
    }

    fn link(
        &self,
        connection: &Connection,
        relay: &RelayId,
        hello: PeerHello,
        dialled: Option<u64>,
    ) -> Result<Arc<PeerLink>, Refusal> {
        if hello.identity.relay() != relay {
            return Err(refused(format!("the certificate names {relay}, the hello {}", hello.identity.relay())));
        }
        let me = self.me();
        let share = |identity: &Identity| identity.kind() == Kind::Share;
        if share(&me)
            && share(&hello.identity)
            && relay.region() == me.relay().region()
            && self.generation != hello.generation
        {
            tracing::error!(%relay, "a relay of this region has another store: see its dynamodb.prefix and endpoint");
            let why = format!("{relay} and {} are of one region and have different stores", me.relay());
            return Err(Refusal::because(Code::Invalid, why));
        }
        let (ours, theirs) = (me.versions(), hello.identity.versions());
        let version = ours.common(theirs).ok_or_else(|| {
            let why =
                format!("no common version: {}..{} here, {}..{} there", ours.min, ours.max, theirs.min, theirs.max);
            Refusal::because(Code::Invalid, why)
        })?;
        // A client may open streams of neither kind before it is known to be a relay.
        connection.0.set_max_concurrent_uni_streams(VarInt::from_u32(PEER_LANES));
        Ok(PeerLink::new(connection.clone(), hello, version, dialled))
    }

    /// Connects to whichever relay answers at `address`.
    pub(crate) async fn dial(&self, address: SocketAddr) -> Result<Arc<PeerLink>, Refusal> {
        let unreachable = |why: String| Refusal::because(Code::Unavailable, format!("{address}: {why}"));
        let config = self.dialling.read().unwrap_or_else(PoisonError::into_inner).clone();
        let dialling = async {
            let connecting = self.endpoint.connect_with(config, address, RELAY_SERVER_NAME);
            let connection = connecting.map_err(|error| unreachable(error.to_string()))?;
            let connection = Connection(connection.await.map_err(|error| unreachable(error.to_string()))?);
            let greeted = self.greet(&connection).await;
            if let Err(refusal) = &greeted {
                connection.close(refusal);
            }
            greeted
        };
        tokio::time::timeout(PATIENCE, dialling).await.map_err(|_| unreachable("no answer".to_owned()))?
    }

    async fn greet(&self, connection: &Connection) -> Result<Arc<PeerLink>, Refusal> {
        let gone = |_| refused("the relay ended the connection");
        let relay = self.certified(connection)?;
        let (mut send, receive) = connection.0.open_bi().await.map_err(gone)?;
        let mut frame = Vec::new();
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let hello = PeerHello { attempt, ..self.hello() };
        codec::encode_numbered(1, &PeerAsk::Hello(hello), &mut frame).map_err(|_| refused("our hello is too large"))?;
        send.write_all(&frame).await.map_err(|_| refused("the relay ended the connection"))?;
        // It fails only if the stream has ended.
        let _ = send.finish();
        let frame = LaneIn(receive).frame(&mut FrameReader::default()).await;
        match frame {
            Ok(Some(frame)) => match codec::decode_numbered(&frame) {
                Ok((_, Decoded::Frame(PeerWelcome::Hello(hello)))) => {
                    self.link(connection, &relay, hello, Some(attempt))
                }
                Ok((_, Decoded::Frame(PeerWelcome::Refused(refusal)))) => Err(refusal),
                _ => Err(refused("the relay's hello cannot be read")),
            },
            Ok(None) => Err(refused("the relay ended the stream")),
            Err(Unread::Malformed(error)) => Err(refused(error.to_string())),
            // The connection's reason says more.
            Err(Unread::Gone) => Err(refused(connection.0.closed().await.to_string())),
        }
    }

    /// Takes the hello of a peer that connected.
    pub(crate) async fn accept(&self, connection: &Connection) -> Result<Arc<PeerLink>, Refusal> {
        let relay = self.certified(connection)?;
        let greeting = async {
            let gone = |_| refused("no hello came");
            let (mut receive, mut send) = connection.accept_lane().await.map_err(gone)?;
            let frame = receive.frame(&mut FrameReader::default()).await;
            let frame = frame.map_err(|error| refused(error.to_string()))?.ok_or_else(|| refused("no hello came"))?;
            let Ok((_, Decoded::Frame(PeerAsk::Hello(hello)))) = codec::decode_numbered(&frame) else {
                return Err(Refusal::because(Code::Malformed, "the first request must be a hello"));
            };
            let link = self.link(connection, &relay, hello, None);
            let answer = match &link {
                Ok(_) => PeerWelcome::Hello(self.hello()),
                Err(refusal) => PeerWelcome::Refused(refusal.clone()),
            };
            let mut frame = Vec::new();
            codec::encode_numbered(1, &answer, &mut frame).map_err(|_| refused("our hello is too large"))?;
            send.write(&mut [frame.into()]).await.map_err(gone)?;
            send.finish();
            link
        };
        tokio::time::timeout(PATIENCE, greeting).await.map_err(|_| refused("no hello came"))?
    }
}

/// This build's identity of a relay.
pub(crate) fn identity(relay: RelayId, address: SocketAddr, epoch: u64, kind: godwit_gossip::Kind) -> Identity {
    Identity::new(relay, address, epoch, VERSIONS, kind)
}
