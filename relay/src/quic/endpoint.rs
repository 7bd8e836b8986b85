//! The relay's one UDP port: its socket, its limits, and the secret that outlives a crash.

use crate::host::Host;
use aws_lc_rs::hmac;
use godwit_certs::tls::Crypto;
use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A connection that is silent for longer is dead. Clients send keep-alives well within it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Lanes that a client may have open at once.
const CLIENT_LANES: u32 = 32;
/// Bytes in flight on one connection, each way.
const CONNECTION_WINDOW: u32 = 2 << 20;
const LANE_WINDOW: u32 = 1 << 20;
/// The kernel's buffers for the one UDP socket; what it grants may be less.
const SOCKET_BUFFER: usize = 8 << 20;

/// Datagrams that wait on one connection, each way.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Assumed before it is measured: how soon a lost first packet is sent again.
const PEER_ROUND_TRIP: Duration = Duration::from_millis(100);
const PEER_KEEP_ALIVE: Duration = Duration::from_secs(3);
const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests on streams of their own that a peer may have open.
const PEER_ASKS: u32 = 256;

pub(crate) type Secret = [u8; 32];

pub(crate) fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(CLIENT_LANES))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("30 s fit a QUIC time-out")))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .stream_receive_window(VarInt::from_u32(LANE_WINDOW))
        .send_window(CONNECTION_WINDOW.into())
        // Gossip between relays; what nobody reads is dropped.
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES);
    transport
}

/// For connections that this relay opens to others: they end sooner when the other is gone, and never for silence.
pub(crate) fn peer_transport() -> TransportConfig {
    let mut transport = transport();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(CLIENT_LANES))
        .max_concurrent_bidi_streams(VarInt::from_u32(PEER_ASKS))
        .initial_rtt(PEER_ROUND_TRIP)
        .keep_alive_interval(Some(PEER_KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(PEER_IDLE_TIMEOUT).expect("10 s fit a QUIC time-out")));
    transport
}

/// Stateless resets (RFC 9000, section 10.3) and connection ids are keyed by a secret that the relay keeps: after a crash
/// it knows the ids of its former self, and tells devices to connect anew instead of letting them wait for a time-out.
pub(crate) fn config(secret: &Secret, crypto: &Crypto) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let derive = |label: &[u8]| hmac::sign(&secret, label);
    let reset = derive(b"godwit stateless reset 1");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref())));
    let ids = derive(b"godwit connection ids 1");
    let key = ids.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    config.rng_seed(Some(crypto.random()));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
    config
}

/// The relay's own secret, made at its first start. It outlives the relay's certificates: devices with a connection to a
/// former self must understand its resets.
pub(crate) fn secret(host: &Host, data: &Path) -> io::Result<Secret> {
    let path = data.join("endpoint.key");
    match host.disk.read(&path) {
        Ok(bytes) => {
            let bad = |_| io::Error::new(io::ErrorKind::InvalidData, "holds no key: remove it, and a new one is made");
            bytes.try_into().map_err(bad)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret: Secret = host.crypto.random();
            host.disk.write(&path, &secret)?;
            Ok(secret)
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // Best effort: the kernel's limit may be lower.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
