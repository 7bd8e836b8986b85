//! A link: the one connection to another relay.
//!
//! Capacity: [`QUEUED_BYTES`] of frames wait to be written. A request that does not fit fails at once, and so does one
//! whose answer does not come in time; a note that does not fit is dropped, which each kind of note can bear.

use super::frame::{PeerAsk, PeerFrame, PeerHello};
use crate::quic::{Connection, Gone, LaneIn, LaneOut, Lanes, Unread};
use bytes::Bytes;
use godwit_certs::ticket::Attached;
use godwit_gossip::Identity;
use godwit_wire::codec::{self, Decoded, Frame, FrameReader};
use godwit_wire::frame::Credential;
use godwit_wire::{ChatId, Code, DeviceId, Refusal, RelayId, Ticket, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes that wait to be written to one peer.
const QUEUED_BYTES: usize = 16 << 20;
/// How long a peer may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// When a client whose request a peer did not take should try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request to a peer has no answer. It may have been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the queue to the relay is full")]
    Full,
    #[error("the relay did not answer in time")]
    Late,
    #[error("the link to the relay ended")]
    Gone,
    #[error("the relay answered with something else")]
    Confused,
}

impl LinkError {
    /// How a client hears of it.
    pub(crate) fn refusal(self) -> Refusal {
        Refusal::retry(Code::Unavailable, RETRY_AFTER).explained(&self.to_string())
    }
}

#[derive(Debug, Default)]
struct Waiting {
    /// Nothing is answered any more.
    ended: bool,
    last: u32,
    replies: HashMap<u32, oneshot::Sender<PeerFrame>>,
}

#[derive(Debug)]
pub(crate) struct PeerLink {
    pub(crate) peer: Identity,
    pub(crate) generation: Option<u64>,
    /// The version of the protocol that both ends speak.
    pub(crate) version: u16,
    /// Whether this relay opened the connection.
    pub(crate) dialled: bool,
    /// Which of those that its opener opened.
    pub(crate) attempt: u64,
    pub(crate) connection: Connection,
    out: Lanes,
    waiting: Mutex<Waiting>,
    /// Devices for which the peer showed that it may act.
    tickets: Mutex<HashMap<DeviceId, Attached>>,
    /// Tickets that the peer was shown last, by which this relay may act for a device.
    shown: Mutex<HashMap<DeviceId, Ticket>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PeerLink {
    /// `dialled` is the attempt of a connection that this relay opened.
    pub(crate) fn new(connection: Connection, hello: PeerHello, version: u16, dialled: Option<u64>) -> Arc<Self> {
        let out = Lanes::new(connection.clone(), QUEUED_BYTES);
        Arc::new(Self {
            attempt: dialled.unwrap_or(hello.attempt),
            dialled: dialled.is_some(),
            peer: hello.identity,
            generation: hello.generation,
            version,
            connection,
            out,
            waiting: Mutex::default(),
            tickets: Mutex::default(),
            shown: Mutex::default(),
        })
    }

    pub(crate) fn relay(&self) -> &RelayId {
        self.peer.relay()
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.out.queued_bytes()
    }

    fn push(&self, number: u32, chat: Option<&ChatId>, frame: &PeerFrame) -> Result<(), LinkError> {
        let mut bytes = Vec::new();
        if codec::encode_numbered(number, frame, &mut bytes).is_err() {
            tracing::error!(peer = %self.relay(), "a frame for a peer is too large");
            return Err(LinkError::Full);
        }
        let bytes = Bytes::from(bytes);
        let fits = match chat {
            Some(chat) => self.out.push(chat, bytes),
            None => self.out.push_control(bytes),
        };
        if fits { Ok(()) } else { Err(LinkError::Full) }
    }

    /// Tells the peer something that it does not answer. False if it does not fit.
    pub(crate) fn note(&self, chat: Option<&ChatId>, note: &PeerFrame) -> bool {
        self.push(0, chat, note).is_ok()
    }

    pub(crate) fn reply(&self, number: u32, chat: Option<&ChatId>, reply: &PeerFrame) {
        // The peer gives up waiting if it does not fit.
        let _ = self.push(number, chat, reply);
    }

    /// Queues a request and gives the wait for its reply. What is queued later for the same chat comes after it.
    pub(crate) fn request(
        self: &Arc<Self>,
        chat: Option<&ChatId>,
        request: &PeerFrame,
    ) -> Result<impl Future<Output = Result<PeerFrame, LinkError>> + Send + use<>, LinkError> {
        let (sender, reply) = oneshot::channel();
        let number = {
            let mut waiting = locked(&self.waiting);
            if waiting.ended {
                return Err(LinkError::Gone);
            }
            // 0 is no request; one that still waits after four billion others does not exist.
            waiting.last = waiting.last.checked_add(1).unwrap_or(1);
            let number = waiting.last;
            waiting.replies.insert(number, sender);
            number
        };
        let forget = Forget { link: self.clone(), number };
        self.push(number, chat, request)?;
        Ok(async move {
            let wait = tokio::time::timeout(ANSWER, reply).await;
            drop(forget);
            wait.map_err(|_| LinkError::Late)?.map_err(|_| LinkError::Gone)
        })
    }

    /// Asks and gives the answer, if it is no refusal.
    pub(crate) async fn call(
        self: &Arc<Self>,
        chat: Option<&ChatId>,
        request: &PeerFrame,
    ) -> Result<PeerFrame, Refusal> {
        let answer = self.request(chat, request).map_err(LinkError::refusal)?.await;
        match answer.map_err(LinkError::refusal)? {
            PeerFrame::Refused(refusal) => Err(refusal),
            answer => Ok(answer),
        }
    }

    /// A reply came.
    pub(super) fn answered(&self, number: u32, reply: PeerFrame) {
        if let Some(sender) = locked(&self.waiting).replies.remove(&number) {
            // Whoever asked may have gone.
            let _ = sender.send(reply);
        }
    }

    /// The link ended: nothing more is answered.
    pub(super) fn ended(&self) {
        let mut waiting = locked(&self.waiting);
        waiting.ended = true;
        waiting.replies.clear();
    }

    /// Shows the peer that this relay may act for a device, unless that is what it was shown last: the device may have been
    /// enrolled anew since.
    pub(crate) async fn show(
        self: &Arc<Self>,
        device: &DeviceId,
        credential: &DeviceCredential,
    ) -> Result<(), Refusal> {
        if locked(&self.shown).get(device) == Some(&credential.ticket) {
            return Ok(());
        }
        let DeviceCredential { certificate, ticket } = credential.clone();
        let frame = PeerFrame::Authorize { certificate, ticket: ticket.clone() };
        match self.call(None, &frame).await? {
            PeerFrame::Done => {
                locked(&self.shown).insert(device.clone(), ticket);
                Ok(())
            }
            _ => Err(LinkError::Confused.refusal()),
        }
    }

    /// The device's connection here is gone: the next one has a ticket of its own.
    pub(crate) fn unshow(&self, device: &DeviceId) {
        locked(&self.shown).remove(device);
    }

    /// Asks on a stream of its own, which stays open both ways.
    pub(crate) async fn open(&self, ask: &PeerAsk) -> Result<(LaneOut, LaneIn), LinkError> {
        let asking = async {
            let (mut send, receive) = self.connection.open_both().await.map_err(|Gone| LinkError::Gone)?;
            let mut bytes = Vec::new();
            codec::encode_numbered(1, ask, &mut bytes).map_err(|_| LinkError::Full)?;
            send.write(&mut [Bytes::from(bytes)]).await.map_err(|Gone| LinkError::Gone)?;
            Ok((send, receive))
        };
        tokio::time::timeout(ANSWER, asking).await.map_err(|_| LinkError::Late)?
    }

    /// Asks on a stream of its own, and gives what reads the answer.
    pub(crate) async fn ask(&self, ask: &PeerAsk) -> Result<Answer, LinkError> {
        let (mut send, receive) = self.open(ask).await?;
        send.finish();
        Ok(Answer { receive, reader: FrameReader::with_limit(super::frame::FRAME_BYTES) })
    }

    /// Asks for one frame on a stream of its own.
    pub(crate) async fn ask_one<T: Frame>(&self, ask: &PeerAsk) -> Result<T, LinkError> {
        self.ask(ask).await?.next().await?.ok_or(LinkError::Gone)
    }

    /// Sends a packet that may get lost.
    pub(crate) fn datagram(&self, packet: Bytes) {
        // One that is too large for the path, or comes too late, is as good as lost.
        let _ = self.connection.0.send_datagram(packet);
    }

    pub(super) fn authorized(&self, attached: Attached) {
        locked(&self.tickets).insert(attached.device.clone(), attached);
    }

    /// The enrolment of a device for which the peer may act now.
    pub(super) fn may_act(&self, device: &DeviceId, now: UnixMillis) -> Result<u32, Refusal> {
        match locked(&self.tickets).get(device) {
            Some(attached) if now < attached.expires => Ok(attached.enrolment),
            _ => Err(Refusal::because(Code::Unauthenticated, "this relay showed no valid ticket of the device")),
        }
    }

    /// The device left the peer, or was shut out.
    pub(super) fn forget(&self, device: &DeviceId) {
        locked(&self.tickets).remove(device);
    }

    pub(crate) fn close(&self, refusal: &Refusal) {
        self.connection.close(refusal);
    }
}

/// By which another relay knows that this one may act for a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeviceCredential {
    pub(crate) certificate: Vec<Credential>,
    pub(crate) ticket: Ticket,
}

/// Nobody waits for a reply any more.
struct Forget {
    link: Arc<PeerLink>,
    number: u32,
}

impl Drop for Forget {
    fn drop(&mut self) {
        locked(&self.link.waiting).replies.remove(&self.number);
    }
}

/// An answer that comes on a stream of its own.
#[derive(Debug)]
pub(crate) struct Answer {
    receive: LaneIn,
    reader: FrameReader,
}

impl Answer {
    /// The next frame of it; none at the end.
    pub(crate) async fn next<T: Frame>(&mut self) -> Result<Option<T>, LinkError> {
        let next = async {
            match self.receive.frame(&mut self.reader).await {
                Ok(Some(frame)) => match codec::decode_numbered(&frame) {
                    Ok((_, Decoded::Frame(frame))) => Ok(Some(frame)),
                    _ => Err(LinkError::Confused),
                },
                Ok(None) => Ok(None),
                Err(Unread::Gone) => Err(LinkError::Gone),
                Err(Unread::Malformed(_)) => Err(LinkError::Confused),
            }
        };
        tokio::time::timeout(ANSWER, next).await.map_err(|_| LinkError::Late)?
    }
}
