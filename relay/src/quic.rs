//! The transport: QUIC, behind what sessions and links to peers need of it. Another transport is a file beside this one.
//!
//! - [`endpoint`]: the one UDP port
//! - [`lanes`]: frames out, in order, on a few streams

pub(crate) mod endpoint;
mod lanes;

pub(crate) use lanes::Lanes;

use bytes::Bytes;
use godwit_wire::codec::{CodecError, FrameReader};
use godwit_wire::{Code, Refusal, codec};
use quinn::{RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use std::time::Duration;

/// Bytes taken from a lane at a time, at most.
const READ_BYTES: usize = 64 * 1024;

/// A connection of a device or a peer.
#[derive(Clone, Debug)]
pub(crate) struct Connection(pub(crate) quinn::Connection);

/// The end of a connection or lane, whoever ended it. There is nothing to do about it but to stop.
#[derive(Debug)]
pub(crate) struct Gone;

impl Connection {
    /// The next lane that the client opens. Cancel safe.
    pub(crate) async fn accept_lane(&self) -> Result<(LaneIn, LaneOut), Gone> {
        let (send, recv) = self.0.accept_bi().await.map_err(|_| Gone)?;
        Ok((LaneIn(recv), LaneOut(send)))
    }

    /// Opens a lane both ways.
    pub(crate) async fn open_both(&self) -> Result<(LaneOut, LaneIn), Gone> {
        let (send, receive) = self.0.open_bi().await.map_err(|_| Gone)?;
        Ok((LaneOut(send), LaneIn(receive)))
    }

    /// Opens a lane for events.
    pub(crate) async fn open_lane(&self) -> Result<LaneOut, Gone> {
        self.0.open_uni().await.map(LaneOut).map_err(|_| Gone)
    }

    pub(crate) fn round_trip(&self) -> Duration {
        self.0.rtt()
    }

    /// Waits for the end of the connection.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.close_reason().is_some()
    }

    /// Ends the connection; the client is told why.
    pub(crate) fn close(&self, refusal: &Refusal) {
        self.0.close(VarInt::from_u32(refusal.code.number().into()), &codec::encode_reason(refusal));
    }

    /// The certificates the client proved itself with, leaf first; none if it has none.
    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let identity = self.0.peer_identity();
        identity
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
            .map_or_else(Vec::new, |chain| *chain)
    }
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("the lane is gone")]
    Gone,
    #[error(transparent)]
    Malformed(#[from] CodecError),
}

impl From<Gone> for Unread {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// The receiving half of a lane.
#[derive(Debug)]
pub(crate) struct LaneIn(pub(crate) RecvStream);

impl LaneIn {
    /// More bytes; none at the end. Cancel safe.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, Gone> {
        let chunk = self.0.read_chunk(READ_BYTES, true).await.map_err(|_| Gone)?;
        Ok(chunk.map(|chunk| chunk.bytes))
    }

    /// The next frame; none at the end.
    pub(crate) async fn frame(&mut self, reader: &mut FrameReader) -> Result<Option<Bytes>, Unread> {
        loop {
            if let Some(frame) = reader.next_frame()? {
                return Ok(Some(frame));
            }
            match self.read().await? {
                Some(bytes) => reader.push(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// Tells the client to send no more on this lane.
    pub(crate) fn stop(&mut self, code: Code) {
        // It fails only if the lane has ended.
        let _ = self.0.stop(VarInt::from_u32(code.number().into()));
    }
}

/// The sending half of a lane.
#[derive(Debug)]
pub(crate) struct LaneOut(SendStream);

impl LaneOut {
    /// Writes all of `chunks`, waiting for flow control. Not cancel safe: a frame may be cut in two.
    pub(crate) async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), Gone> {
        self.0.write_all_chunks(chunks).await.map_err(|_| Gone)
    }

    /// Ends the lane in order.
    pub(crate) fn finish(&mut self) {
        // It fails only if the lane has ended.
        let _ = self.0.finish();
    }

    /// Ends the lane in the middle.
    pub(crate) fn reset(&mut self, code: Code) {
        // It fails only if the lane has ended.
        let _ = self.0.reset(VarInt::from_u32(code.number().into()));
    }

    /// Everything else before this lane.
    pub(crate) fn give_way(&self) {
        // It fails only if the lane has ended.
        let _ = self.0.set_priority(-1);
    }

    /// Events before replies to bulk requests.
    pub(crate) fn prioritize(&self) {
        // It fails only if the lane has ended.
        let _ = self.0.set_priority(1);
    }
}
