//! Length prefix, limits, postcard.
//!
//! A frame is a length (4 bytes, little-endian, at most [`limits::FRAME_BYTES`]) and that many bytes of postcard. A
//! request or reply starts with the request's number, so that even one of an unknown kind can be answered.

use crate::frame::{EnrolRequest, Event, Reply, Request};
use crate::limits;
use bytes::{Buf, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("a frame of {len} bytes, at most {max} are allowed")]
    TooLarge { len: usize, max: usize },
    #[error("a field is missing, over its limit, or holds a value that is not allowed")]
    Malformed { request: Option<u32> },
}

/// What a frame turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    Frame(T),
    /// Well-formed, of a kind that this build does not know.
    Unknown {
        variant: u32,
    },
}

/// A frame's value: an enum that grows at its end only.
pub trait Frame: Serialize + DeserializeOwned {
    /// How many variants this build knows.
    const KINDS: u32;
    /// Bytes of one encoded frame without its length prefix. What is read by [`FrameReader`] has the reader's limit.
    const LIMIT: usize = limits::FRAME_BYTES;
}

impl Frame for Request {
    const KINDS: u32 = Self::VARIANTS;
}
impl Frame for Reply {
    const KINDS: u32 = Self::VARIANTS;
}
impl Frame for Event {
    const KINDS: u32 = Self::VARIANTS;
}
impl Frame for EnrolRequest {
    const KINDS: u32 = Self::VARIANTS;
}

struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn encode(value: &impl Serialize, max: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    let written = postcard::serialize_with_flavor(value, Append(out));
    let len = out.len() - start - PREFIX_BYTES;
    if written.is_err() || len > max {
        out.truncate(start);
        return Err(CodecError::TooLarge { len, max });
    }
    let prefix = u32::try_from(len).expect("a frame's limit is far below 4 GiB").to_le_bytes();
    out[start..start + PREFIX_BYTES].copy_from_slice(&prefix);
    Ok(())
}

/// Appends a request or reply with its request number. On an error `out` is as before.
pub fn encode_numbered<T: Frame>(request: u32, frame: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    encode(&(request, frame), T::LIMIT, out)
}

/// Appends an event. On an error `out` is as before.
pub fn encode_event(event: &Event, out: &mut Vec<u8>) -> Result<(), CodecError> {
    encode(event, Event::LIMIT, out)
}

/// The position of the enum variant that `bytes` start with.
pub(crate) fn variant(bytes: &[u8]) -> Option<u32> {
    postcard::take_from_bytes::<u32>(bytes).ok().map(|(variant, _)| variant)
}

/// Decodes all of `bytes`; anything left over is an error.
pub(crate) fn decode_all<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(postcard::Error::DeserializeBadEncoding) }
}

fn decode<T: Frame>(bytes: &[u8], request: Option<u32>) -> Result<Decoded<T>, CodecError> {
    match variant(bytes) {
        Some(variant) if variant >= T::KINDS => Ok(Decoded::Unknown { variant }),
        _ => decode_all(bytes).map(Decoded::Frame).map_err(|_| CodecError::Malformed { request }),
    }
}

/// Reads a request or reply from a frame's bytes, without the prefix.
pub fn decode_numbered<T: Frame>(bytes: &[u8]) -> Result<(u32, Decoded<T>), CodecError> {
    let (request, rest) =
        postcard::take_from_bytes::<u32>(bytes).map_err(|_| CodecError::Malformed { request: None })?;
    Ok((request, decode(rest, Some(request))?))
}

/// Reads an event from a frame's bytes, without the prefix.
pub fn decode_event(bytes: &[u8]) -> Result<Decoded<Event>, CodecError> {
    decode(bytes, None)
}

/// A refusal as the reason of a closed connection.
pub fn encode_reason(refusal: &crate::Refusal) -> Vec<u8> {
    postcard::to_stdvec(refusal).unwrap_or_default()
}

/// Reads why a connection was closed: the close's code, and its reason if that can be read.
pub fn decode_reason(code: u64, reason: &[u8]) -> crate::Refusal {
    let code = crate::Code::from_number(u16::try_from(code).unwrap_or(u16::MAX));
    decode_all::<crate::Refusal>(reason).ok().filter(|r| r.code == code).unwrap_or_else(|| code.into())
}

/// Cuts a stream of bytes into frames. Holds at most one frame and what was pushed with it.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    max: usize,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self::with_limit(limits::FRAME_BYTES)
    }
}

impl FrameReader {
    /// For frames of up to `max` bytes.
    pub fn with_limit(max: usize) -> Self {
        Self { buffer: BytesMut::new(), max }
    }

    /// What was pushed and is no part of a frame that was taken: the lane goes on as bytes.
    pub fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame without its prefix; none until more bytes come.
    ///
    /// An error is final for the stream: where the next frame starts is not known.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, CodecError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let len = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > self.max {
            return Err(CodecError::TooLarge { len, max: self.max });
        }
        if self.buffer.len() < PREFIX_BYTES + len {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Whether bytes of an unfinished frame are held.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}
