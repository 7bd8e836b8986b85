//! A session on the wire: frames out, frames in.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use godwit_certs::DeviceKey;
use godwit_certs::authority::Credential;
use godwit_certs::identity::{self, Identity};
use godwit_certs::tls::{self, Crypto};
use godwit_wire::blob::BlobRef;
use godwit_wire::codec::{self, Decoded, Frame, FrameReader};
use godwit_wire::entry::{ChatKind, Content, Member, Title};
use godwit_wire::frame::{
    CreateChat, EnrolRequest, Event, Hello, Options, Reply, Request, SendMessage, Stamp, Welcome,
};
use godwit_wire::{ALPN_DEVICE, ALPN_ENROL, ChatId, MessageId, RELAY_SERVER_NAME, Refusal, Ticket};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::lab::PATIENCE;

/// Connects with a TLS configuration.
pub async fn dial(address: SocketAddr, config: rustls::ClientConfig) -> Result<Connection> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(5)));
    config.transport_config(Arc::new(transport));
    Ok(endpoint.connect_with(config, address, RELAY_SERVER_NAME)?.await?)
}

/// Asks for a certificate as an enrolling device does: leaf and issuer, or why not.
pub async fn ask_certificate(
    address: SocketAddr,
    root: &CertificateDer<'_>,
    token: String,
    csr: Vec<u8>,
) -> Result<Result<Vec<CertificateDer<'static>>, Refusal>> {
    let config = tls::client(&Crypto::system(), root, None, ALPN_ENROL)?;
    let connection = dial(address, config).await?;
    let reply = ask(&connection, &EnrolRequest::Enrol { token, csr: csr.into() }).await?;
    connection.close(0u32.into(), b"");
    match reply {
        Reply::Certificate(chain) => Ok(Ok(chain.into_iter().map(|one| one.0.to_vec().into()).collect())),
        Reply::Refused(refusal) => Ok(Err(refusal)),
        other => bail!("enrolment was answered with {other:?}"),
    }
}

/// The value of a metric in the text of `/metrics`.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Sends one request on a stream of its own.
pub async fn ask(connection: &Connection, request: &impl Frame) -> Result<Reply> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let mut frame = Vec::new();
    codec::encode_numbered(1, request, &mut frame)?;
    send.write_all(&frame).await?;
    send.finish()?;
    let mut reader = FrameReader::default();
    let reply = next_frame(&mut receive, &mut reader).await?.context("the stream ended")?;
    match codec::decode_numbered(&reply)? {
        (1, Decoded::Frame(reply)) => Ok(reply),
        other => bail!("answered with {other:?}"),
    }
}

async fn next_frame(receive: &mut RecvStream, reader: &mut FrameReader) -> Result<Option<Bytes>> {
    loop {
        if let Some(frame) = reader.next_frame()? {
            return Ok(Some(frame));
        }
        match receive.read_chunk(64 * 1024, true).await? {
            Some(chunk) => reader.push(&chunk.bytes),
            None => return Ok(None),
        }
    }
}

/// Why a connection was closed by the relay.
pub async fn close_reason(connection: &Connection) -> Result<Refusal> {
    match tokio::time::timeout(PATIENCE, connection.closed()).await.context("not closed")? {
        ConnectionError::ApplicationClosed(close) => {
            Ok(codec::decode_reason(close.error_code.into_inner(), &close.reason))
        }
        other => bail!("closed by {other}"),
    }
}

/// The device's ticket for the relay at the other end.
pub fn ticket(connection: &Connection, credential: &Credential) -> Result<Ticket> {
    let chain = connection.peer_identity().context("a certificate")?;
    let chain = chain.downcast_ref::<Vec<CertificateDer<'static>>>().context("a chain")?;
    let Identity::Relay(relay) = identity::identity(chain)? else { bail!("not a relay") };
    Ok(DeviceKey::from_der(credential.key.secret_der())?.ticket_for(&relay, &credential.chain)?)
}

/// A session of one device.
#[derive(Debug)]
pub struct Wire {
    pub connection: Connection,
    pub welcome: Welcome,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Wire {
    pub async fn connect(address: SocketAddr, root: &CertificateDer<'_>, credential: Credential) -> Result<Self> {
        let config = tls::client(&Crypto::system(), root, Some(credential.clone()), ALPN_DEVICE)?;
        let connection = dial(address, config).await?;
        let ticket = ticket(&connection, &credential)?;
        Self::hello_with(connection, Options::with_ticket(&ticket)).await
    }

    /// Says hello without a ticket, and reads events.
    pub async fn hello(connection: Connection) -> Result<Self> {
        Self::hello_with(connection, Options::default()).await
    }

    /// Says hello, and reads events.
    pub async fn hello_with(connection: Connection, options: Options) -> Result<Self> {
        let mut session = Self::ask_hello(connection, options).await?;
        let (events, queue) = mpsc::unbounded_channel();
        let lanes = session.connection.clone();
        tokio::spawn(async move {
            while let Ok(lane) = lanes.accept_uni().await {
                tokio::spawn(read_events(lane, events.clone()));
            }
        });
        session.events = queue;
        Ok(session)
    }

    /// Says hello, and leaves the event lanes to the caller.
    pub async fn hello_only(connection: Connection) -> Result<Self> {
        Self::ask_hello(connection, Options::default()).await
    }

    async fn ask_hello(connection: Connection, options: Options) -> Result<Self> {
        let hello = Request::Hello(Hello { client: "test".into(), options });
        let welcome = match ask(&connection, &hello).await? {
            Reply::Welcome(welcome) => welcome,
            other => bail!("hello was answered with {other:?}"),
        };
        let (_, events) = mpsc::unbounded_channel();
        Ok(Self { connection, welcome, events })
    }

    pub async fn ask(&self, request: &Request) -> Result<Reply> {
        tokio::time::timeout(PATIENCE, ask(&self.connection, request)).await.context("no answer")?
    }

    /// The next event.
    pub async fn event(&mut self) -> Result<Event> {
        let next = tokio::time::timeout(PATIENCE, self.events.recv()).await.context("no event")?;
        next.context("the connection ended")
    }

    /// The next event within `time`, if one comes.
    pub async fn event_within(&mut self, time: Duration) -> Option<Event> {
        tokio::time::timeout(time, self.events.recv()).await.ok().flatten()
    }

    /// Several events at once, as many as there are.
    pub async fn events(&mut self, into: &mut Vec<Event>) -> usize {
        self.events.recv_many(into, 1024).await
    }

    /// Opens a lane for pipelined requests.
    pub async fn lane(&self) -> Result<Lane> {
        let (send, receive) = self.connection.open_bi().await?;
        Ok(Lane { send, receive, reader: FrameReader::default(), next: 1 })
    }
}

async fn read_events(mut lane: RecvStream, events: mpsc::UnboundedSender<Event>) {
    let mut reader = FrameReader::default();
    while let Ok(Some(frame)) = next_frame(&mut lane, &mut reader).await {
        match codec::decode_event(&frame) {
            Ok(Decoded::Frame(event)) => {
                if events.send(event).is_err() {
                    return;
                }
            }
            other => panic!("an event that cannot be read: {other:?}"),
        }
    }
}

/// A lane of requests.
#[derive(Debug)]
pub struct Lane {
    pub send: SendStream,
    pub receive: RecvStream,
    reader: FrameReader,
    next: u32,
}

impl Lane {
    /// Writes requests in one go. Gives the number of the first.
    pub async fn write(&mut self, requests: &[Request]) -> Result<u32> {
        let first = self.next;
        let mut frames = Vec::new();
        for request in requests {
            codec::encode_numbered(self.next, request, &mut frames)?;
            self.next += 1;
        }
        self.send.write_all(&frames).await?;
        Ok(first)
    }

    /// The next reply with its number.
    pub async fn reply(&mut self) -> Result<(u32, Reply)> {
        let frame = tokio::time::timeout(PATIENCE, next_frame(&mut self.receive, &mut self.reader)).await;
        let frame = frame.context("no reply")??.context("the lane ended")?;
        match codec::decode_numbered(&frame)? {
            (number, Decoded::Frame(reply)) => Ok((number, reply)),
            other => bail!("answered with {other:?}"),
        }
    }
}

/// A stamp whose id follows from its number, so that a retry is the same.
pub fn stamp(chat: &ChatId, n: u64) -> Stamp {
    Stamp {
        chat: chat.clone(),
        n,
        oldest: 1,
        id: MessageId(Uuid::from_u128(n.into())),
        previous: (n > 1).then(|| MessageId(Uuid::from_u128((n - 1).into()))),
    }
}

pub fn message(stamp: Stamp, content: impl Into<Bytes>) -> Request {
    message_with(stamp, content, Vec::new())
}

/// The same, with blobs that it refers to.
pub fn message_with(stamp: Stamp, content: impl Into<Bytes>, blobs: Vec<BlobRef>) -> Request {
    let content = Content(content.into());
    Request::SendMessage(SendMessage { stamp, content, blobs, options: Options::default() })
}

pub fn create_direct(stamp: Stamp, other: &str) -> Request {
    let participants = vec![Member { user: other.parse().expect("a user id"), role: godwit_wire::entry::Role::Member }];
    let title = Title::default();
    Request::CreateChat(CreateChat { stamp, kind: ChatKind::Direct, title, participants, options: Options::default() })
}

/// A new group's id.
pub fn group() -> ChatId {
    ChatId::group(crate::lab::REGION.parse().expect("a region"), Uuid::now_v7()).expect("a version 7 UUID")
}
