//! What sessions and links tell fan-out.

use super::chat::Floors;
use crate::edge::Link;
use crate::store::{Floor, Watermark};
use godwit_wire::frame::Ack;
use godwit_wire::{ChatId, DeviceId, RegionId, Seq, UserId};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Messages that wait, at most; whoever has one more waits then.
const QUEUED: usize = 4096;

/// What sessions tell fan-out.
#[derive(Debug)]
pub(super) enum Input {
    Attached(Arc<Link>),
    Detached(Arc<Link>),
    Acks {
        link: Arc<Link>,
        acks: Vec<Ack>,
    },
    Read {
        user: UserId,
        chat: ChatId,
        up_to: Seq,
    },
    /// A region has a chat only up to `have`.
    Lacks {
        region: RegionId,
        chat: ChatId,
        have: Option<Seq>,
    },
    /// How far users of another region got.
    Reached {
        region: RegionId,
        chat: ChatId,
        marks: Vec<(UserId, Watermark)>,
    },
    /// Devices are to compare what they have.
    Restored,
    /// Which relays share the store changed, and so which chats are this one's.
    Owners,
    /// The store of a region and this one agree.
    Met(RegionId),
    /// Another relay that shares the store enrolled a device.
    Enrolled {
        device: DeviceId,
        enrolment: u32,
        taken_up: oneshot::Sender<()>,
    },
    /// How far everybody got in a chat whose home is another region.
    Floors {
        chat: ChatId,
        floors: Floors,
    },
}

/// A handle for sessions. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Fanout {
    inputs: mpsc::Sender<Input>,
}

impl Fanout {
    /// With what it tells.
    pub(super) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, told) = mpsc::channel(QUEUED);
        (Self { inputs }, told)
    }

    // A failed send means that the relay is stopping; the store has everything for the next start.
    pub(crate) async fn attached(&self, link: Arc<Link>) {
        let _ = self.inputs.send(Input::Attached(link)).await;
    }

    pub(crate) async fn detached(&self, link: Arc<Link>) {
        let _ = self.inputs.send(Input::Detached(link)).await;
    }

    pub(crate) async fn acknowledged(&self, link: Arc<Link>, acks: Vec<Ack>) {
        let _ = self.inputs.send(Input::Acks { link, acks }).await;
    }

    pub(crate) async fn lacks(&self, region: RegionId, chat: ChatId, have: Option<Seq>) {
        let _ = self.inputs.send(Input::Lacks { region, chat, have }).await;
    }

    pub(crate) async fn restored(&self) {
        let _ = self.inputs.send(Input::Restored).await;
    }

    pub(crate) async fn owners_changed(&self) {
        let _ = self.inputs.send(Input::Owners).await;
    }

    pub(crate) async fn met(&self, region: RegionId) {
        let _ = self.inputs.send(Input::Met(region)).await;
    }

    /// Returns once what is fanned out is for the device as well.
    pub(crate) async fn enrolled(&self, device: DeviceId, enrolment: u32) {
        let (taken_up, wait) = oneshot::channel();
        let _ = self.inputs.send(Input::Enrolled { device, enrolment, taken_up }).await;
        let _ = wait.await;
    }

    pub(crate) async fn reached(&self, region: RegionId, chat: ChatId, marks: Vec<(UserId, Watermark)>) {
        let _ = self.inputs.send(Input::Reached { region, chat, marks }).await;
    }

    pub(crate) async fn floors(&self, chat: ChatId, delivered: Option<Floor>, read: Option<Floor>) {
        let _ = self.inputs.send(Input::Floors { chat, floors: (delivered, read) }).await;
    }

    pub(crate) async fn read(&self, user: UserId, chat: ChatId, up_to: Seq) {
        let _ = self.inputs.send(Input::Read { user, chat, up_to }).await;
    }
}
