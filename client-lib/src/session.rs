//! One live connection: requests out, replies and events in.
//!
//! Numbered requests are pipelined on a few lanes, a chat always on the same one; other requests take a stream each.
//! Replies and events come through one bounded channel: an app that is slow slows the relay, by flow control.

use crate::dial::ended;
use crate::error::Error;
use bytes::Bytes;
use godwit_wire::codec::{self, Decoded, Frame, FrameReader};
use godwit_wire::frame::{Address, Event, Hello, Options, Reply, Request, Welcome};
use godwit_wire::{ChatId, Code, Refusal};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Lanes for numbered requests.
const LANES: usize = 4;
/// What came and was not taken yet, at most.
const INCOMING: usize = 1024;
/// How long the relay may take to answer a request.
const ANSWER: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 64 * 1024;

/// What comes from the relay.
#[derive(Debug)]
pub(crate) enum FromRelay {
    /// To the numbered request with this number.
    Reply(u32, Reply),
    Event(Event),
    /// The connection is gone. The last that comes.
    Ended(Error),
}

#[derive(Debug)]
pub(crate) struct Session {
    connection: Connection,
    incoming: mpsc::Sender<FromRelay>,
    lanes: [Option<SendStream>; LANES],
    tasks: JoinSet<()>,
    next_number: u32,
}

pub(crate) fn unreachable(what: impl ToString) -> Error {
    Error::Unreachable(what.to_string())
}

/// Sends one request on a stream of its own and waits for its reply.
pub(crate) async fn one_shot(connection: &Connection, request: &impl Frame) -> Result<Reply, Error> {
    one_shot_within(connection, request, ANSWER).await
}

/// The same, for a request that takes its time.
pub(crate) async fn one_shot_within(
    connection: &Connection,
    request: &impl Frame,
    time: Duration,
) -> Result<Reply, Error> {
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(unreachable)?;
        let mut frame = Vec::new();
        codec::encode_numbered(0, request, &mut frame).map_err(|error| Error::Invalid(error.to_string()))?;
        send.write_all(&frame).await.map_err(unreachable)?;
        // It fails only if the stream has ended.
        let _ = send.finish();
        let mut reader = FrameReader::default();
        read_reply(&mut receive, &mut reader).await
    };
    tokio::time::timeout(time, exchange).await.map_err(|_| unreachable("the relay does not answer"))?
}

pub(crate) async fn read_reply(receive: &mut RecvStream, reader: &mut FrameReader) -> Result<Reply, Error> {
    loop {
        if let Some(frame) = reader.next_frame().map_err(unreachable)? {
            return match codec::decode_numbered(&frame).map_err(unreachable)? {
                (_, Decoded::Frame(reply)) => Ok(reply),
                (_, Decoded::Unknown { .. }) => Err(unreachable("the relay's answer is of a newer kind")),
            };
        }
        match receive.read_chunk(READ_BYTES, true).await.map_err(unreachable)? {
            Some(chunk) => reader.push(&chunk.bytes),
            None => return Err(unreachable("the relay ended the stream")),
        }
    }
}

/// How a hello was answered.
#[derive(Debug)]
pub(crate) enum Started {
    Here {
        session: Session,
        welcome: Welcome,
        incoming: mpsc::Receiver<FromRelay>,
    },
    /// The relay has no room, or leaves.
    Elsewhere {
        reason: Refusal,
        relays: Vec<Address>,
    },
}

impl Session {
    /// Says hello on a fresh connection.
    ///
    /// # Errors
    /// [`Error::Refused`] with the relay's reason if the device is not let in.
    pub(crate) async fn start(connection: Connection, options: Options) -> Result<Started, Error> {
        let client = concat!("godwit-client ", env!("CARGO_PKG_VERSION")).to_owned();
        let hello = Request::Hello(Hello { client, options });
        let address = connection.remote_address();
        let reply = one_shot(&connection, &hello).await;
        let welcome = match reply {
            Ok(Reply::Welcome(welcome)) => welcome,
            Ok(Reply::Refused(refusal)) => return Err(refusal.into()),
            Ok(Reply::Elsewhere { reason, relays }) => {
                connection.close(VarInt::from_u32(0), b"");
                return Ok(Started::Elsewhere { reason, relays });
            }
            Ok(_) => return Err(unreachable("the relay answered the hello with something else")),
            // The reason of the close says more than the stream's end.
            Err(error) => {
                let wait = tokio::time::timeout(Duration::from_millis(500), connection.closed());
                return Err(wait.await.map_or(error, |reason| ended(&reason, address)));
            }
        };
        let (incoming, queue) = mpsc::channel(INCOMING);
        let mut session =
            Self { connection, incoming, lanes: Default::default(), tasks: JoinSet::new(), next_number: 1 };
        session.tasks.spawn(accept_events(session.connection.clone(), session.incoming.clone()));
        Ok(Started::Here { session, welcome, incoming: queue })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Writes numbered requests of one chat. Their replies come later. Gives the number of the first; they count up.
    ///
    /// Not cancel safe: a frame may be cut in two.
    pub(crate) async fn send(&mut self, chat: &ChatId, requests: &[Request]) -> Result<u32, Error> {
        let [.., byte] = chat.uuid().into_bytes();
        let lane = usize::from(byte) % LANES;
        if self.lanes[lane].is_none() {
            let (send, receive) = self.connection.open_bi().await.map_err(unreachable)?;
            self.lanes[lane] = Some(send);
            self.tasks.spawn(read_replies(receive, self.incoming.clone()));
        }
        let first = self.next_number;
        let mut frames = Vec::new();
        for request in requests {
            codec::encode_numbered(self.next_number, request, &mut frames)
                .map_err(|error| Error::Invalid(error.to_string()))?;
            self.next_number = self.next_number.wrapping_add(1);
        }
        let stream = self.lanes[lane].as_mut().expect("it was opened above");
        stream.write_chunk(Bytes::from(frames)).await.map_err(unreachable)?;
        Ok(first)
    }

    /// Ends the connection in order.
    pub(crate) fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

async fn accept_events(connection: Connection, incoming: mpsc::Sender<FromRelay>) {
    let mut lanes = JoinSet::new();
    let reason = loop {
        tokio::select! {
            biased;
            lane = connection.accept_uni() => match lane {
                Ok(lane) => drop(lanes.spawn(read_events(lane, incoming.clone()))),
                Err(reason) => break reason,
            },
            Some(_) = lanes.join_next(), if !lanes.is_empty() => {}
        }
    };
    // What arrived before the end is taken first.
    while lanes.join_next().await.is_some() {}
    // Nobody listens once the session was dropped.
    let _ = incoming.send(FromRelay::Ended(ended(&reason, connection.remote_address()))).await;
}

/// What cannot be read ends the connection: where the next frame starts is not known.
async fn read_frames(
    receive: &mut RecvStream,
    incoming: &mpsc::Sender<FromRelay>,
    decode: impl Fn(&Bytes) -> Result<Option<FromRelay>, codec::CodecError>,
) {
    let mut reader = FrameReader::default();
    loop {
        loop {
            let next = match reader.next_frame() {
                Ok(Some(frame)) => decode(&frame),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            let item = match next {
                Ok(Some(item)) => item,
                Ok(None) => continue,
                Err(error) => FromRelay::Ended(Error::Refused(Refusal::because(Code::Malformed, error.to_string()))),
            };
            let last = matches!(item, FromRelay::Ended(_));
            if incoming.send(item).await.is_err() || last {
                return;
            }
        }
        match receive.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => reader.push(&chunk.bytes),
            Ok(None) | Err(_) => return,
        }
    }
}

async fn read_events(mut receive: RecvStream, incoming: mpsc::Sender<FromRelay>) {
    let decode = |frame: &Bytes| {
        Ok(match codec::decode_event(frame)? {
            Decoded::Frame(event) => Some(FromRelay::Event(event)),
            // Of a newer relay; what matters for order comes in entries.
            Decoded::Unknown { .. } => None,
        })
    };
    read_frames(&mut receive, &incoming, decode).await;
}

async fn read_replies(mut receive: RecvStream, incoming: mpsc::Sender<FromRelay>) {
    let decode = |frame: &Bytes| {
        Ok(match codec::decode_numbered(frame)? {
            (number, Decoded::Frame(reply)) => Some(FromRelay::Reply(number, reply)),
            (number, Decoded::Unknown { variant }) => Some(FromRelay::Reply(number, Reply::Unsupported { variant })),
        })
    };
    read_frames(&mut receive, &incoming, decode).await;
}
