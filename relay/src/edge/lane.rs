//! One lane of requests: frames in, replies out, in the order they came.
//!
//! Numbered requests that arrive together are submitted together, and the lane goes on reading while they are
//! committed. Capacity: [`PIPELINED`] batches wait for their replies; reading stops until one is written, and with it
//! the client, by flow control.

use super::enrol::issue;
use super::quic::{Connection, Gone, LaneIn, LaneOut};
use super::{Edge, Session};
use bytes::Bytes;
use godwit_core::{Command, Outcome};
use godwit_wire::codec::{self, CodecError, Decoded, Frame, FrameReader};
use godwit_wire::frame::{Credential, Reply, Request, Welcome};
use godwit_wire::{Code, Refusal, limits};
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
    pub(super) async fn hello(connection: &Connection) -> Result<(Self, u32), Refusal> {
        match Self::first(connection).await? {
            (lane, number, Decoded::Frame(Request::Hello(_))) => Ok((lane, number)),
            _ => Err(Refusal::because(Code::Malformed, "the first request must be a hello")),
        }
    }

    /// Waits for the first lane and its first request.
    pub(super) async fn first<T: Frame>(connection: &Connection) -> Result<(Self, u32, Decoded<T>), Refusal> {
        let nothing = || Refusal::because(Code::Malformed, "no request came");
        let (receive, send) = connection.accept_lane().await.map_err(|_| nothing())?;
        let mut lane = Self::new(receive, send);
        loop {
            if let Some(frame) = lane.reader.next_frame().map_err(|error| malformed(&error))? {
                let (number, request) = codec::decode_numbered(&frame).map_err(|error| malformed(&error))?;
                return Ok((lane, number, request));
            }
            match lane.receive.read().await {
                Ok(Some(bytes)) => lane.reader.push(&bytes),
                Ok(None) | Err(_) => return Err(nothing()),
            }
        }
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

type Outcomes = Pin<Box<dyn Future<Output = Result<Vec<Outcome>, Refusal>> + Send>>;

/// What the writing half does next.
enum Pending {
    Ready(u32, Reply),
    Request(u32, Request),
    Batch(Vec<u32>, Outcomes),
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
    let (read, ()) = tokio::join!(read, write(&edge, &session, queue, &mut send));
    read
}

fn malformed(error: &CodecError) -> Refusal {
    Refusal::because(Code::Malformed, error.to_string())
}

async fn read(
    edge: &Edge,
    session: &Session,
    receive: &mut LaneIn,
    reader: &mut FrameReader,
    pending: mpsc::Sender<Pending>,
) -> Result<(), Refusal> {
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
                    submit(edge, &mut numbers, &mut commands, &pending).await;
                    if pending.send(Pending::Ready(number, Reply::Refused(malformed(&error)))).await.is_err() {
                        return Ok(());
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
                    Ok(Taken::Request(request)) => Pending::Request(number, request),
                    Err(refusal) => Pending::Ready(number, Reply::Refused(refusal)),
                },
            };
            // Replies keep the order of their requests.
            submit(edge, &mut numbers, &mut commands, &pending).await;
            if pending.send(next).await.is_err() {
                return Ok(());
            }
        }
        submit(edge, &mut numbers, &mut commands, &pending).await;
        match receive.read().await {
            Ok(Some(bytes)) => reader.push(&bytes),
            Ok(None) | Err(_) => return Ok(()),
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
            if command.stamp.chat.home() != &edge.region {
                return Err(Code::NotParticipant.into());
            }
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

async fn submit(edge: &Edge, numbers: &mut Vec<u32>, commands: &mut Vec<Command>, pending: &mpsc::Sender<Pending>) {
    if commands.is_empty() {
        return;
    }
    let numbers = std::mem::take(numbers);
    let outcomes: Outcomes = match edge.store.submit(std::mem::take(commands)).await {
        Ok(outcomes) => Box::pin(outcomes),
        Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
    };
    // The writing half is gone with the connection; the commands run all the same.
    let _ = pending.send(Pending::Batch(numbers, outcomes)).await;
}

/// Writes replies; all that are ready at once.
async fn write(edge: &Edge, session: &Session, mut queue: mpsc::Receiver<Pending>, send: &mut LaneOut) {
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
                Pending::Batch(numbers, outcomes) => {
                    let outcomes = outcomes.await;
                    for (i, number) in numbers.into_iter().enumerate() {
                        let reply = match &outcomes {
                            Ok(outcomes) => match &outcomes[i] {
                                Outcome::Sent { seq, at } => Reply::Sent { seq: *seq, at: *at },
                                Outcome::Refused(refusal) => Reply::Refused(refusal.clone()),
                            },
                            Err(refusal) => Reply::Refused(refusal.clone()),
                        };
                        encode(edge, number, &reply, &mut out);
                    }
                }
            }
        }
        if send.write(&mut [Bytes::from(out)]).await.is_err() {
            return;
        }
    }
    send.finish();
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
        store_generation: edge.store.generation(),
        certificate_expires: session.certificate_expires,
        relays: Vec::new(),
    }
}

fn page_limit(limit: u16) -> Result<usize, Refusal> {
    let limit = usize::from(limit);
    if (1..=limits::PAGE_ENTRIES).contains(&limit) {
        Ok(limit)
    } else {
        let why = format!("limit must lie between 1 and {}", limits::PAGE_ENTRIES);
        Err(Refusal::because(Code::Invalid, why))
    }
}

async fn answer(edge: &Edge, session: &Session, request: Request) -> Reply {
    match try_answer(edge, session, request).await {
        Ok(reply) => reply,
        Err(refusal) => Reply::Refused(refusal),
    }
}

async fn try_answer(edge: &Edge, session: &Session, request: Request) -> Result<Reply, Refusal> {
    let fault = |error: crate::store::StoreError| {
        tracing::warn!(%error, "a read failed");
        error.refusal()
    };
    let device = session.sender.device.clone();
    Ok(match request {
        Request::Hello(_) => Reply::Welcome(welcome(edge, session)),
        Request::Ack(acks) => {
            edge.fanout.acknowledged(session.link.clone(), acks).await;
            Reply::Done
        }
        Request::MarkRead { chat, up_to } => {
            edge.fanout.read(session.user.clone(), chat, up_to).await;
            Reply::Done
        }
        Request::ListChats(list) => {
            let limit = page_limit(list.limit)?;
            let read = edge.store.read(move |store| store.list_chats(&device, list.after.as_ref(), limit));
            Reply::ChatList(read.await.map_err(fault)?)
        }
        Request::GetChat { chat } => {
            Reply::ChatInfo(edge.store.read(move |store| store.chat_info(&device, &chat)).await.map_err(fault)??)
        }
        Request::History(history) => {
            let limit = page_limit(history.limit)?;
            let user = session.user.clone();
            let read = edge.store.history(user, history.chat, history.range, limit);
            Reply::HistoryPage(read.await.map_err(fault)??)
        }
        Request::Renew { csr } => renew(edge, session, &csr).await?,
        // Taken as commands before; named so that a new request is not forgotten here.
        Request::CreateChat(_) | Request::UpdateChat(_) | Request::SendMessage(_) | Request::Redact(_) => {
            return Err(Code::Internal.into());
        }
    })
}

/// A new certificate for the same device and enrolment. This connection stays under the one it began with.
async fn renew(edge: &Edge, session: &Session, csr: &[u8]) -> Result<Reply, Refusal> {
    let sender = &session.sender;
    let identity = edge.identity.load_full();
    let issued = issue(&identity.issuer, csr, &sender.device, sender.enrolment, edge.clock.now())?;
    if !edge.store.renewed(sender.device.clone(), sender.enrolment, issued.fingerprint).await? {
        return Err(Code::Revoked.into());
    }
    tracing::info!(device = %sender.device, "certificate renewed");
    Ok(Reply::Certificate(issued.chain.into_iter().map(Credential).collect()))
}
