//! One lane of requests: frames in, replies out, in the order they came.
//!
//! Numbered requests that arrive together are submitted together, and the lane goes on reading while they are
//! committed. Capacity: [`PIPELINED`] batches wait for their replies; reading stops until one is written, and with it
//! the client, by flow control.

use super::blobs;
use super::forward::forward;
use super::{Edge, Session};
use crate::attachments::lane::{Incoming, chat_of};
use crate::outbox::Tell;
use crate::peers::frame::PeerAsk;
use crate::peers::{LinkError, PeerLink};
use crate::quic::{Connection, Gone, LaneIn, LaneOut, Unread};
use crate::router::{Route, away};
use bytes::Bytes;
use godwit_core::{Command, Outcome};
use godwit_wire::codec::{self, CodecError, Decoded, Frame, FrameReader};
use godwit_wire::frame::{Ack, Hello, History, Reply, Request, Welcome};
use godwit_wire::{ChatId, Code, Refusal};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Requests of one lane that cannot be read, above which the connection is ended.
const BAD_REQUESTS: u32 = 64;
/// Batches of one lane that wait for their replies.
const PIPELINED: usize = 64;

#[derive(Debug)]
pub(super) struct Lane {
    receive: LaneIn,
    send: LaneOut,
    reader: FrameReader,
}

impl Lane {
    pub(super) fn new(receive: LaneIn, send: LaneOut) -> Self {
        Self { receive, send, reader: FrameReader::default() }
    }

    /// Waits for the first lane and its hello, which must come before anything else. Gives its request number.
    pub(super) async fn hello(connection: &Connection) -> Result<(Self, u32, Hello), Refusal> {
        match Self::first(connection).await? {
            (lane, number, Decoded::Frame(Request::Hello(hello))) => Ok((lane, number, hello)),
            _ => Err(Refusal::because(Code::Malformed, "the first request must be a hello")),
        }
    }

    /// Waits for the first lane and its first request.
    pub(super) async fn first<T: Frame>(connection: &Connection) -> Result<(Self, u32, Decoded<T>), Refusal> {
        let nothing = || Refusal::because(Code::Malformed, "no request came");
        let (receive, send) = connection.accept_lane().await.map_err(|_| nothing())?;
        let mut lane = Self::new(receive, send);
        let frame = match lane.receive.frame(&mut lane.reader).await {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(Unread::Gone) => return Err(nothing()),
            Err(Unread::Malformed(error)) => return Err(malformed(&error)),
        };
        let (number, request) = codec::decode_numbered(&frame).map_err(|error| malformed(&error))?;
        Ok((lane, number, request))
    }

    /// Writes the only reply of a lane, and ends it.
    pub(super) async fn answer_once(mut self, number: u32, reply: &Reply) -> Result<(), Gone> {
        let mut frame = Vec::new();
        codec::encode_numbered(number, reply, &mut frame).map_err(|_| Gone)?;
        self.send.write(&mut [Bytes::from(frame)]).await?;
        self.send.finish();
        Ok(())
    }
}

type Replies = Pin<Box<dyn Future<Output = Result<Vec<Reply>, Refusal>> + Send>>;

/// What the writing half does next.
enum Pending {
    Ready(u32, Reply),
    Request(u32, Request),
    Batch(Vec<u32>, Replies),
}

/// Serves a lane to its end.
///
/// # Errors
/// What the client did that ends its connection.
pub(super) async fn serve(
    edge: Arc<Edge>,
    session: Arc<Session>,
    lane: Lane,
    hello: Option<u32>,
) -> Result<(), Refusal> {
    let (pending, queue) = mpsc::channel(PIPELINED);
    if let Some(number) = hello {
        let welcome = Reply::Welcome(welcome(&edge, &session));
        // The queue is empty and its receiver is held here.
        let _ = pending.try_send(Pending::Ready(number, welcome));
    }
    let Lane { mut receive, mut send, mut reader } = lane;
    let read = async {
        let result = read(&edge, &session, &mut receive, &mut reader, pending).await;
        if result.is_err() {
            edge.metrics.malformed.inc();
            receive.stop(Code::Malformed);
        }
        result
    };
    let (read, written) = tokio::join!(read, write(&edge, &session, queue, &mut send));
    match (read?, written) {
        (Some((number, request)), Ok(())) => {
            blobs::serve(&edge, &session, number, request, Incoming::after(reader, receive), send).await;
        }
        (None, Ok(())) => send.finish(),
        (_, Err(Gone)) => {}
    }
    Ok(())
}

fn malformed(error: &CodecError) -> Refusal {
    Refusal::because(Code::Malformed, error.to_string())
}

/// Takes requests to the end of the lane, or to the one after which the lane carries bytes.
async fn read(
    edge: &Arc<Edge>,
    session: &Arc<Session>,
    receive: &mut LaneIn,
    reader: &mut FrameReader,
    pending: mpsc::Sender<Pending>,
) -> Result<Option<(u32, Request)>, Refusal> {
    let (mut numbers, mut commands, mut bad) = (Vec::new(), Vec::new(), 0);
    loop {
        while let Some(frame) = reader.next_frame().map_err(|error| malformed(&error))? {
            let (number, decoded) = match codec::decode_numbered(&frame) {
                Ok(decoded) => decoded,
                // The frame's bounds are known, and whose it is: the request is refused, and the connection lives on. A
                // client that makes one such request may have it in its outbox, and must get past it.
                Err(error @ CodecError::Malformed { request: Some(number) }) if bad < BAD_REQUESTS => {
                    bad += 1;
                    edge.metrics.malformed.inc();
                    submit(edge, session, &mut numbers, &mut commands, &pending).await;
                    if pending.send(Pending::Ready(number, Reply::Refused(malformed(&error)))).await.is_err() {
                        return Ok(None);
                    }
                    continue;
                }
                Err(error) => return Err(malformed(&error)),
            };
            let next = match decoded {
                Decoded::Unknown { variant } => Pending::Ready(number, Reply::Unsupported { variant }),
                Decoded::Frame(request) => match take(edge, session, request) {
                    Ok(Taken::Command(command)) => {
                        numbers.push(number);
                        commands.push(command);
                        continue;
                    }
                    Ok(Taken::Request(request)) if chat_of(&request).is_some() => {
                        submit(edge, session, &mut numbers, &mut commands, &pending).await;
                        return Ok(Some((number, request)));
                    }
                    Ok(Taken::Request(request)) => Pending::Request(number, request),
                    Err(refusal) => Pending::Ready(number, Reply::Refused(refusal)),
                },
            };
            // Replies keep the order of their requests.
            submit(edge, session, &mut numbers, &mut commands, &pending).await;
            if pending.send(next).await.is_err() {
                return Ok(None);
            }
        }
        submit(edge, session, &mut numbers, &mut commands, &pending).await;
        match receive.read().await {
            Ok(Some(bytes)) => reader.push(&bytes),
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

enum Taken {
    Command(Command),
    Request(Request),
}

/// The sender of a command is who the certificate says, never who the frame says.
fn take(edge: &Edge, session: &Session, request: Request) -> Result<Taken, Refusal> {
    let limits = edge.limits.load();
    let limited = |refusal| {
        edge.metrics.rate_limited.inc();
        refusal
    };
    match Command::from_request(&session.sender, request) {
        Ok(command) => {
            limits.send(&session.user, command.cost_bytes()).map_err(limited)?;
            Ok(Taken::Command(command))
        }
        Err(request) => {
            let count = if let Request::Ack(acks) = &*request { acks.len().max(1) } else { 1 };
            limits.requests(&session.user, count).map_err(limited)?;
            Ok(Taken::Request(*request))
        }
    }
}

/// Hands on what was gathered, in its order: all for chats of this region together, for others by chat.
async fn submit(
    edge: &Arc<Edge>,
    session: &Arc<Session>,
    numbers: &mut Vec<u32>,
    commands: &mut Vec<Command>,
    pending: &mpsc::Sender<Pending>,
) {
    let mut numbers = std::mem::take(numbers);
    let mut commands = std::mem::take(commands);
    while let Some(first) = commands.first() {
        let chat = first.stamp.chat.clone();
        let here = edge.router.owns(&chat).is_some();
        let together = |command: &Command| {
            let other = &command.stamp.chat;
            *other == chat || here && edge.router.owns(other).is_some()
        };
        let count = commands.iter().take_while(|command| together(command)).count();
        let (later_numbers, later_commands) = (numbers.split_off(count), commands.split_off(count));
        let later = || Later { numbers: numbers.clone(), lane: pending.downgrade() };
        let replies = match decide(edge, session, &chat, commands, later).await {
            Ok(replies) => replies,
            Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
        };
        // The writing half is gone with the connection; the commands run all the same.
        let _ = pending.send(Pending::Batch(numbers, replies)).await;
        (numbers, commands) = (later_numbers, later_commands);
    }
}

/// By which a request that was queued is answered once more, with its outcome.
struct Later {
    numbers: Vec<u32>,
    lane: mpsc::WeakSender<Pending>,
}

impl Later {
    fn tell(&self, i: usize) -> Option<Tell> {
        let (number, lane) = (*self.numbers.get(i)?, self.lane.clone());
        let tell = move |reply| {
            // Without the lane the device hears of it when it sends the request again, on its next connection.
            let Some(lane) = lane.upgrade() else { return };
            tokio::spawn(async move { lane.send(Pending::Ready(number, reply)).await });
        };
        Some(Box::new(tell))
    }
}

async fn decide(
    edge: &Arc<Edge>,
    session: &Arc<Session>,
    chat: &ChatId,
    commands: Vec<Command>,
    later: impl Fn() -> Later,
) -> Result<Replies, Refusal> {
    match edge.router.route_chat(chat) {
        // What it sent while nobody owned the chat comes first.
        Route::Here(owner) if !owner.store.is_shared() || !edge.outbox.holds(chat, &session.sender) => {
            let missing = edge.router.missing(&commands).await;
            let outcomes = owner.store.submit_with(commands, missing).await?;
            Ok(Box::pin(async move { Ok(outcomes.await?.into_iter().map(outcome).collect()) }))
        }
        Route::There(home) if !edge.outbox.holds(chat, &session.sender) => {
            session.show(&home).await?;
            let sent = forward(&home, &session.sender.device, chat, commands.clone());
            let (edge, session, later) = (edge.clone(), session.clone(), later());
            edge.metrics.forwards.inc_by(commands.len() as u64);
            Ok(Box::pin(async move {
                let outcomes = match sent {
                    Ok(sent) => sent.await,
                    Err(refusal) => Err(refusal),
                };
                match outcomes {
                    Ok(outcomes) => Ok(outcomes.into_iter().map(outcome).collect()),
                    // Executed or not: sent again, each is the same request.
                    Err(_) => queue(&edge, &session, commands, &later).await,
                }
            }))
        }
        Route::Here(_) | Route::There(_) | Route::Away => {
            tracing::debug!(%chat, count = commands.len(), "queueing");
            // Now, not when its reply's turn comes: what follows must find it.
            let replies = queue(edge, session, commands, &later()).await;
            Ok(Box::pin(std::future::ready(replies)))
        }
        // As for any chat that is not there.
        Route::Nowhere => Err(Code::NotParticipant.into()),
    }
}

fn outcome(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Sent { seq, at } => Reply::Sent { seq, at },
        Outcome::Refused(refusal) => Reply::Refused(refusal),
    }
}

async fn queue(edge: &Edge, session: &Session, commands: Vec<Command>, later: &Later) -> Result<Vec<Reply>, Refusal> {
    let Some(credential) = &session.credential else {
        return Err(Refusal::because(Code::Unauthenticated, "the device gave this relay no ticket"));
    };
    edge.outbox.keep(&session.sender, credential, commands, |i| later.tell(i)).await
}

/// Writes replies; all that are ready at once.
async fn write(
    edge: &Edge,
    session: &Session,
    mut queue: mpsc::Receiver<Pending>,
    send: &mut LaneOut,
) -> Result<(), Gone> {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, PIPELINED).await > 0 {
        let mut out = Vec::new();
        for pending in waiting.drain(..) {
            match pending {
                Pending::Ready(number, reply) => encode(edge, number, &reply, &mut out),
                Pending::Request(number, request) => {
                    let reply = answer(edge, session, request).await;
                    encode(edge, number, &reply, &mut out);
                }
                Pending::Batch(numbers, replies) => {
                    let replies = replies.await;
                    for (i, number) in numbers.into_iter().enumerate() {
                        match &replies {
                            Ok(replies) => encode(edge, number, &replies[i], &mut out),
                            Err(refusal) => encode(edge, number, &Reply::Refused(refusal.clone()), &mut out),
                        }
                    }
                }
            }
        }
        send.write(&mut [Bytes::from(out)]).await?;
    }
    Ok(())
}

fn encode(edge: &Edge, number: u32, reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Sent { .. } => {
            edge.metrics.sends.inc();
        }
        Reply::Refused(_) => {
            edge.metrics.refusals.inc();
        }
        _ => {}
    }
    if codec::encode_numbered(number, reply, out).is_err() {
        tracing::error!("a reply is larger than a frame");
        let refusal = Reply::Refused(Code::Internal.into());
        codec::encode_numbered(number, &refusal, out).expect("a refusal fits a frame");
    }
}

fn welcome(edge: &Edge, session: &Session) -> Welcome {
    Welcome {
        relay: edge.relay.clone(),
        now: edge.clock.now(),
        store_generation: session.generation.get().copied().unwrap_or(Welcome::UNKNOWN_GENERATION),
        certificate_expires: session.certificate_expires,
        relays: edge.others(),
    }
}

async fn answer(edge: &Edge, session: &Session, request: Request) -> Reply {
    try_answer(edge, session, request).await.unwrap_or_else(Reply::Refused)
}

async fn try_answer(edge: &Edge, session: &Session, request: Request) -> Result<Reply, Refusal> {
    let home = session.sender.device.home();
    let mut route = match (concerns(&request), edge.router.local(&home)) {
        (Some(chat), _) => edge.router.route_copy(&home, chat),
        (None, Some(owner)) => Route::Here(owner),
        (None, None) => edge.router.route(&home),
    };
    if let (Route::Away, Some(chat)) = (&route, reads(&request)) {
        route = edge.router.route_chat(chat);
    }
    match (request, route) {
        (
            request @ (Request::BeginBlob { .. }
            | Request::GetManifest { .. }
            | Request::PartUrl { .. }
            | Request::CopyBlob { .. }),
            _,
        ) => blobs::answer(edge, session, request).await,
        (Request::Hello(_), _) => Ok(Reply::Welcome(welcome(edge, session))),
        (Request::Ack(acks), _) => {
            acknowledged(edge, session, acks).await;
            Ok(Reply::Done)
        }
        (request, Route::Here(owner)) => owner.answer(&session.sender, request).await,
        (request, Route::There(peer)) => ask(session, &peer, request).await,
        (_, Route::Away | Route::Nowhere) => Err(away(&home)),
    }
}

/// Tells the owners of chats what the device took of them.
async fn acknowledged(edge: &Edge, session: &Session, acks: Vec<Ack>) {
    let home = session.sender.device.home();
    let owned = |ack: &Ack| matches!(edge.router.route_copy(&home, &ack.chat), Route::Here(_));
    let (here, there): (Vec<Ack>, Vec<Ack>) = acks.into_iter().partition(owned);
    if let Some(owner) = edge.router.local(&home).filter(|_| !here.is_empty()) {
        owner.fanout.acknowledged(session.link.clone(), here).await;
    }
    session.remote.acknowledged(edge, session, there);
}

/// The chat whose owner answers a request.
fn concerns(request: &Request) -> Option<&ChatId> {
    match request {
        Request::MarkRead { chat, .. } => Some(chat),
        request => reads(request),
    }
}

/// The chat that a request reads, which can be read at the chat's own home too.
fn reads(request: &Request) -> Option<&ChatId> {
    match request {
        Request::History(History { chat, .. }) | Request::GetChat { chat } => Some(chat),
        _ => None,
    }
}

/// At the relay that decides, which is shown the device's ticket.
pub(super) async fn ask(session: &Session, peer: &Arc<PeerLink>, request: Request) -> Result<Reply, Refusal> {
    session.show(peer).await?;
    let ask = PeerAsk::Device { device: session.sender.device.clone(), request };
    peer.ask_one(&ask).await.map_err(LinkError::refusal)
}
