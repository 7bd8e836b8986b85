//! Lanes: frames for the other end, on a few streams. A chat always uses the same lane, so a lost packet delays few
//! chats and its order stands.
//!
//! Capacity: so many bytes as were given, over all lanes. A frame that does not fit is not taken. For a device, fan-out
//! then turns its entries into an inbox row, and they are read from the log once there is room; a peer's request fails
//! at once, and its client is told when to try again.

use super::{Connection, Gone, LaneOut};
use bytes::Bytes;
use godwit_wire::ChatId;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

/// Lanes of one connection.
const LANES: usize = 4;
/// Frames written at a time, at most.
const WRITE_FRAMES: usize = 512;

#[derive(Debug)]
pub(crate) struct Lanes {
    connection: Connection,
    /// Opened with their first frame: most devices are idle.
    senders: [OnceLock<mpsc::UnboundedSender<Bytes>>; LANES],
    queued: Arc<AtomicUsize>,
    limit_bytes: usize,
}

impl Lanes {
    pub(crate) fn new(connection: Connection, limit_bytes: usize) -> Self {
        Self { connection, senders: std::array::from_fn(|_| OnceLock::new()), queued: Arc::default(), limit_bytes }
    }

    /// Bytes that wait to be handed to the transport.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Queues `frame` on the lane of `chat`. False if it does not fit.
    pub(crate) fn push(&self, chat: &ChatId, frame: Bytes) -> bool {
        let [.., byte] = chat.uuid().into_bytes();
        self.push_on(usize::from(byte) % LANES, frame)
    }

    /// Queues a frame that belongs to no chat.
    pub(crate) fn push_control(&self, frame: Bytes) -> bool {
        self.push_on(0, frame)
    }

    fn push_on(&self, lane: usize, frame: Bytes) -> bool {
        let len = frame.len();
        if self.queued.fetch_add(len, Ordering::Relaxed) + len > self.limit_bytes {
            self.queued.fetch_sub(len, Ordering::Relaxed);
            return false;
        }
        let lane = self.senders[lane].get_or_init(|| {
            let (frames, queue) = mpsc::unbounded_channel();
            tokio::spawn(run(self.connection.clone(), queue, self.queued.clone()));
            frames
        });
        // The lane's task ends with the connection; what it did not take is not acknowledged and comes again.
        lane.send(frame).is_ok()
    }
}

/// Writes everything that queued up at once. Ends with the connection, or when the last [`Lanes`] is dropped.
async fn run(connection: Connection, mut queue: mpsc::UnboundedReceiver<Bytes>, queued: Arc<AtomicUsize>) {
    let Ok(mut lane) = connection.open_lane().await else { return };
    lane.prioritize();
    let mut frames = Vec::new();
    while queue.recv_many(&mut frames, WRITE_FRAMES).await > 0 {
        if write(&mut lane, &mut frames, &queued).await.is_err() {
            return;
        }
    }
    lane.finish();
}

async fn write(lane: &mut LaneOut, frames: &mut Vec<Bytes>, queued: &AtomicUsize) -> Result<(), Gone> {
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let written = lane.write(frames).await;
    queued.fetch_sub(bytes, Ordering::Relaxed);
    frames.clear();
    written
}
