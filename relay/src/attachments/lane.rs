//! Lanes on which the bytes of blobs travel: after the frame of their one request, or of its reply, they carry bytes as they
//! are. They give way to all other lanes.

use super::{Attachments, Opened, off};
use crate::blobs::BlobReader;
use crate::peers::LinkError;
use crate::quic::{Gone, LaneIn, LaneOut, Unread};
use bytes::Bytes;
use godwit_wire::codec::{self, Decoded, FrameReader};
use godwit_wire::frame::{Reply, Request};
use godwit_wire::{ChatId, Code, DeviceId, Refusal};
use std::time::Duration;

/// How long a lane may bring nothing, or take nothing: over a slow network a part waits for the one before it.
const IDLE: Duration = Duration::from_mins(10);
/// When a client whose lane broke off should try again.
const AGAIN: Duration = Duration::from_secs(1);

/// Bytes of a blob that come from somewhere.
pub(crate) enum Incoming {
    /// From a device or a peer, after what came with the frame before them.
    Lane { rest: Bytes, receive: LaneIn },
    /// From the store of blobs.
    Store(Box<dyn BlobReader>),
}

fn broke_off() -> Refusal {
    Refusal::retry(Code::Unavailable, AGAIN).explained("the lane broke off")
}

impl Incoming {
    /// What follows on a frame.
    pub(crate) fn after(reader: FrameReader, receive: LaneIn) -> Self {
        Self::Lane { rest: reader.into_rest(), receive }
    }

    /// More bytes; none at the end.
    ///
    /// # Errors
    /// The lane broke, or brought nothing for long.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        match self {
            Self::Lane { rest, .. } if !rest.is_empty() => Ok(Some(std::mem::take(rest))),
            Self::Lane { receive, .. } => {
                let idle = |_| Refusal::retry(Code::Unavailable, AGAIN).explained("nothing came for ten minutes");
                let read = tokio::time::timeout(IDLE, receive.read()).await.map_err(idle)?;
                read.map_err(|Gone| broke_off())
            }
            Self::Store(reader) => reader.next().await.map_err(|error| error.refusal()),
        }
    }

    /// Nothing more is wanted.
    pub(crate) fn stop(&mut self) {
        if let Self::Lane { receive, .. } = self {
            receive.stop(Code::Unavailable);
        }
    }
}

/// What a peer answers: a reply, and then bytes.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) LaneIn);

impl Answer {
    /// The reply, and what follows it.
    ///
    /// # Errors
    /// The peer broke off, or answers with something else.
    pub(crate) async fn read(mut self) -> Result<(Reply, Incoming), Refusal> {
        let mut reader = FrameReader::default();
        let frame = match self.0.frame(&mut reader).await {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(Unread::Gone) => return Err(broke_off()),
            Err(Unread::Malformed(_)) => return Err(LinkError::Confused.refusal()),
        };
        match codec::decode_numbered(&frame) {
            Ok((_, Decoded::Frame(reply))) => Ok((reply, Incoming::after(reader, self.0))),
            _ => Err(LinkError::Confused.refusal()),
        }
    }
}

/// Whether a request is followed by bytes, or its reply: the chat whose home serves it.
pub(crate) fn chat_of(request: &Request) -> Option<&ChatId> {
    match request {
        Request::PutPart { chat, .. } | Request::FetchBlob { chat, .. } => Some(chat),
        _ => None,
    }
}

/// Writes bytes, for as long as they are taken.
pub(crate) async fn write(send: &mut LaneOut, bytes: Bytes) -> Result<(), Gone> {
    tokio::time::timeout(IDLE, send.write(&mut [bytes])).await.map_err(|_| Gone)?
}

/// Writes the one reply.
pub(crate) async fn reply(send: &mut LaneOut, number: u32, reply: &Reply) -> Result<(), Gone> {
    let mut frame = Vec::new();
    codec::encode_numbered(number, reply, &mut frame).map_err(|_| Gone)?;
    write(send, frame.into()).await
}

/// Serves a lane of a device to its end; nobody hears of it but the device.
pub(crate) async fn serve(
    attachments: Option<&Attachments>,
    device: &DeviceId,
    number: u32,
    request: Request,
    mut incoming: Incoming,
    mut send: LaneOut,
) {
    send.give_way();
    let is_home = |attachments: &Attachments| chat_of(&request).is_some_and(|chat| *chat.home() == attachments.region);
    let served = match attachments {
        Some(attachments) if !is_home(attachments) => Ok(Err(Code::NotOwner.into())),
        Some(attachments) => attachments.serve(device, number, request, &mut incoming, &mut send).await,
        None => Ok(Err(off())),
    };
    let written = match served {
        Ok(Err(refusal)) => reply(&mut send, number, &Reply::Refused(refusal)).await,
        Ok(Ok(())) => Ok(()),
        Err(gone) => Err(gone),
    };
    incoming.stop();
    match written {
        Ok(()) => send.finish(),
        // What is missing must not look like the end.
        Err(Gone) => send.reset(Code::Unavailable),
    }
}

impl Attachments {
    /// The inner error is the reply that is still to be given.
    async fn serve(
        &self,
        device: &DeviceId,
        number: u32,
        request: Request,
        incoming: &mut Incoming,
        send: &mut LaneOut,
    ) -> Result<Result<(), Refusal>, Gone> {
        match request {
            Request::PutPart { hash, part, from, .. } => {
                match self.take_part(device, (hash, part, from), incoming).await {
                    Ok(()) => reply(send, number, &Reply::Done).await.map(Ok),
                    Err(refusal) => Ok(Err(refusal)),
                }
            }
            Request::FetchBlob { .. } => {
                let (len, mut reader) = match self.open(device.user(), request).await {
                    Ok(Opened::Bytes(len, reader)) => (len, reader),
                    Ok(Opened::Elsewhere(url)) => return reply(send, number, &url).await.map(Ok),
                    Err(refusal) => return Ok(Err(refusal)),
                };
                reply(send, number, &Reply::BlobBytes { len }).await?;
                loop {
                    match reader.next().await {
                        Ok(Some(bytes)) => {
                            self.metrics.blob_bytes_out.inc_by(bytes.len() as u64);
                            write(send, bytes).await?;
                        }
                        Ok(None) => return Ok(Ok(())),
                        Err(error) => {
                            self.fault(&error);
                            return Err(Gone);
                        }
                    }
                }
            }
            _ => Ok(Err(Code::Malformed.into())),
        }
    }
}
