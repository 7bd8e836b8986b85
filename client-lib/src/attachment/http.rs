//! Bytes of files straight from the store of a region and to it, by HTTP, at addresses that its relays give.
//!
//! An address is a secret: no error says it.

use crate::host::{Host, Threads};
use bytes::Bytes;
use godwit_wire::frame::BlobUrl;
use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;
use tokio::sync::mpsc;
use ureq::http::StatusCode;
use ureq::tls::TlsConfig;
use ureq::{Agent, Body, RequestBuilder, SendBody};

/// How long a connection may take to be made, and an answer to begin.
const ANSWER: Duration = Duration::from_secs(10);
/// How long all of it may take: nobody waits so long, and then its thread ends.
const ALL: Duration = Duration::from_mins(30);
const READ_BYTES: usize = 64 << 10;
/// Pieces that were read and not yet taken.
const AHEAD: usize = 16;

/// Bytes that come.
pub(crate) type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// Whether a host can do so at all: a simulation has no HTTP.
pub(crate) fn is_possible(host: &Host) -> bool {
    host.threads == Threads::System
}

fn agent(host: &Host) -> Agent {
    let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(host.crypto.provider.clone());
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .max_redirects(0)
        .timeout_connect(Some(ANSWER))
        .timeout_recv_response(Some(ANSWER))
        .timeout_global(Some(ALL));
    config.build().into()
}

fn failed(error: ureq::Error) -> io::Error {
    match error {
        ureq::Error::Io(error) => error,
        ureq::Error::StatusCode(status) => io::Error::other(format!("the store of attachments answers {status}")),
        ureq::Error::Timeout(what) => io::Error::other(format!("the store of attachments: {what} timed out")),
        // Others may say the address.
        _ => io::Error::other("the store of attachments cannot be asked"),
    }
}

/// A request with what its address asks for; its length is its own.
fn saying<B>(request: RequestBuilder<B>, address: &BlobUrl) -> RequestBuilder<B> {
    let asked = address.headers.iter().filter(|header| !header.name.eq_ignore_ascii_case("content-length"));
    asked.fold(request, |request, header| request.header(&header.name, &header.value))
}

/// Gets a stretch of a blob.
pub(crate) fn get(host: &Host, from: BlobUrl, range: Range<u64>) -> Pieces {
    let (give, pieces) = mpsc::channel(AHEAD);
    let agent = agent(host);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read(&agent, &from, &range, &give) {
            // Nobody may want it any more.
            let _ = give.blocking_send(Err(error));
        }
    });
    pieces
}

fn read(agent: &Agent, from: &BlobUrl, range: &Range<u64>, give: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let get = agent.get(&from.url).header("range", format!("bytes={}-{}", range.start, range.end - 1));
    let answer = saying(get, from).call().map_err(failed)?;
    let mut left = range.end - range.start;
    if answer.status() != StatusCode::PARTIAL_CONTENT || answer.body().content_length() != Some(left) {
        return Err(io::Error::other("the store of attachments answers with something else"));
    }
    let mut body = answer.into_body().into_reader();
    while left > 0 {
        let mut piece = vec![0; READ_BYTES];
        let len = body.read(&mut piece)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        piece.truncate(len);
        left = left.saturating_sub(len as u64);
        if give.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Brings a part; says how much of it is written as it goes.
pub(crate) async fn put(
    host: &Host,
    to: BlobUrl,
    bytes: Bytes,
    written: impl Fn(u64) + Send + Sync + 'static,
) -> io::Result<()> {
    let agent = agent(host);
    let bring = move || {
        let put = saying(agent.put(&to.url).header("content-length", bytes.len().to_string()), &to);
        let counted = Counted { bytes: io::Cursor::new(bytes), written };
        put.send(SendBody::from_owned_reader(counted)).map(drop::<ureq::http::Response<Body>>).map_err(failed)
    };
    host.blocking(bring).await
}

struct Counted<F> {
    bytes: io::Cursor<Bytes>,
    written: F,
}

impl<F: Fn(u64)> Read for Counted<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.bytes.read(buffer)?;
        (self.written)(len as u64);
        Ok(len)
    }
}
