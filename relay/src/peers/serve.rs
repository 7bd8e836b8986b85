//! What a peer asks of this relay, from its link's first frame to its last.
//!
//! Nothing a peer says about a device is believed without the device's ticket; the one exception is what this relay
//! itself asked for. A frame that cannot be read ends the link.

use super::frame::{FRAME_BYTES, PeerAsk, PeerFrame, PeerPage, SHARED};
use super::link::PeerLink;
use super::reunion;
use crate::attachments::lane::{self, Incoming};
use crate::edge::{Edge, Link};
use crate::owner::Owner;
use crate::quic::Unread;
use crate::revocations;
use crate::store::{Base, Replicated, Snapshot};
use bytes::Bytes;
use godwit_core::device::Revocation;
use godwit_core::entry::decode_record;
use godwit_core::{Command, Entry, Sender};
use godwit_gossip::Kind;
use godwit_wire::codec::{self, Decoded, Frame, FrameReader};
use godwit_wire::frame::{Ack, EnrolRequest, Reply};
use godwit_wire::{ChatId, Code, DeviceId, Refusal, Ticket};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::SetOnce;
use tokio::task::JoinSet;

/// Requests on streams of their own that are answered at the same time.
const ASKS: usize = 256;

/// Serves a link that was entered, to its end.
pub(crate) async fn serve(edge: &Arc<Edge>, link: Arc<PeerLink>) {
    tracing::info!(peer = %link.relay(), "linked");
    edge.router.cluster.linked(&link);
    edge.router.cluster.spawn(revocations::tell(link.clone(), told_to(edge, &link)));
    let region =
        edge.router.owner.as_ref().filter(|owner| link.peer.kind().is_owner() && link.relay().region() != owner.region);
    let region = region.map(|_| edge.registry.region(link.clone()));
    if let (Some(owner), Some(region)) = (&edge.router.owner, &region) {
        if link.peer.kind() == Kind::Store {
            owner.fanout.attached(region.clone()).await;
        } else {
            edge.router.cluster.spawn(attach_first(edge.clone(), region.clone(), link.clone()));
        }
    }
    let served =
        Served { edge: edge.clone(), link: link.clone(), attached: Mutex::default(), region, met: SetOnce::new() };
    let served = Arc::new(served);
    if served.region.is_some() {
        edge.router.cluster.spawn(served.clone().meet());
    }
    let result = served.run().await;
    if let Err(refusal) = &result {
        edge.metrics.malformed.inc();
        tracing::warn!(peer = %link.relay(), %refusal, "a link was ended");
        link.close(refusal);
    }
    edge.router.cluster.peers.leave(&link);
    let attached = std::mem::take(&mut *served.attached.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(owner) = &edge.router.owner {
        for device in attached.into_values().chain(served.region.clone()) {
            owner.fanout.detached(device).await;
        }
    }
    tracing::info!(peer = %link.relay(), "the link ended");
}

/// Of relays that share the store of another region, one gets its users' entries: the owner of what concerns the region as a
/// whole, as long as the peer is that.
async fn attach_first(edge: Arc<Edge>, region: Arc<Link>, link: Arc<PeerLink>) {
    let Some(owner) = &edge.router.owner else { return };
    let mut changes = edge.router.changes();
    let mut is_attached = false;
    loop {
        changes.mark_unchanged();
        let is_first = edge.router.cluster.owner(&link.relay().region(), &[]).as_ref() == Some(link.relay());
        if std::mem::replace(&mut is_attached, is_first) != is_first {
            if is_first {
                owner.fanout.attached(region.clone()).await;
            } else {
                owner.fanout.detached(region.clone()).await;
            }
        }
        tokio::select! {
            biased;
            () = link.connection.closed() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// The revocations that a peer is told of when it is met.
fn told_to(edge: &Edge, link: &PeerLink) -> Vec<Revocation> {
    let Some(owner) = &edge.router.owner else { return Vec::new() };
    let own_edge = link.relay().region() == owner.region;
    edge.revocations.those(|device| own_edge || device.home() == owner.region)
}

struct Served {
    edge: Arc<Edge>,
    link: Arc<PeerLink>,
    /// Devices connected to the peer that are served from here.
    attached: Mutex<HashMap<DeviceId, Arc<Link>>>,
    /// If both ends hold the store of a region: the way by which the other region gets its users' entries.
    region: Option<Arc<Link>>,
    /// The copies of the other region's chats were compared with what it has, if need be.
    met: SetOnce<()>,
}

fn malformed(error: impl ToString) -> Refusal {
    Refusal::because(Code::Malformed, error.to_string())
}

impl Served {
    async fn meet(self: Arc<Self>) {
        let Ok(owner) = self.owner() else { return };
        // It is met once.
        reunion::meet(owner, &self.link, || drop(self.met.set(()))).await;
    }

    async fn run(self: &Arc<Self>) -> Result<(), Refusal> {
        let connection = &self.link.connection;
        let (mut lanes, mut asks) = (JoinSet::new(), JoinSet::new());
        loop {
            tokio::select! {
                biased;
                () = connection.closed() => return Ok(()),
                lane = connection.0.accept_uni() => match lane {
                    Ok(lane) => drop(lanes.spawn(self.clone().lane(lane))),
                    Err(_) => return Ok(()),
                },
                ask = connection.accept_lane(), if asks.len() < ASKS => match ask {
                    Ok((receive, send)) => drop(asks.spawn(self.clone().ask(receive, send))),
                    Err(_) => return Ok(()),
                },
                Some(ended) = lanes.join_next() => ended.map_err(|_| Refusal::from(Code::Internal))??,
                Some(ended) = asks.join_next() => ended.map_err(|_| Refusal::from(Code::Internal))??,
                packet = connection.0.read_datagram() => match packet {
                    Ok(packet) => self.edge.router.cluster.packet(self.link.relay(), &packet),
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    async fn lane(self: Arc<Self>, mut receive: quinn::RecvStream) -> Result<(), Refusal> {
        let mut reader = FrameReader::with_limit(FRAME_BYTES);
        loop {
            while let Some(frame) = reader.next_frame().map_err(malformed)? {
                let (number, decoded) = codec::decode_numbered::<PeerFrame>(&frame).map_err(malformed)?;
                match decoded {
                    Decoded::Frame(frame) if frame.is_reply() => self.link.answered(number, frame),
                    Decoded::Frame(frame) => self.frame(number, frame).await,
                    // A note that is not known asks for nothing.
                    Decoded::Unknown { .. } if number == 0 => {}
                    Decoded::Unknown { .. } => self.link.reply(number, None, &PeerFrame::Unsupported),
                }
            }
            match receive.read_chunk(64 << 10, true).await {
                Ok(Some(chunk)) => reader.push(&chunk.bytes),
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }

    async fn frame(self: &Arc<Self>, number: u32, frame: PeerFrame) {
        let reply = match frame {
            PeerFrame::Authorize { certificate, ticket } => {
                self.authorize(&certificate, &ticket).map(|()| PeerFrame::Done)
            }
            PeerFrame::Attach { device, epoch, again } => {
                // Behind nothing else: it may wait for the store.
                let served = self.clone();
                tokio::spawn(async move {
                    let reply = served.attach(&device, epoch, again).await.unwrap_or_else(PeerFrame::Refused);
                    served.link.reply(number, None, &reply);
                });
                return;
            }
            PeerFrame::Commands { device, requests } => match self.commands(number, &device, requests).await {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            PeerFrame::Detach { device, epoch } => return self.detach(&device, epoch).await,
            PeerFrame::Acks { device, epoch, acks } => {
                if let (Ok(owner), Some(link)) = (self.owner(), self.attached(&device, epoch)) {
                    owner.fanout.acknowledged(link, acks).await;
                }
                return;
            }
            PeerFrame::Push { devices, chat, event } => {
                // Who may push to whom: the home of the chat, and the home of the device's user.
                let (region, any) = (self.link.relay().region(), self.is_home_of(&chat));
                for device in devices.iter().filter(|device| any || device.home() == region) {
                    self.edge.registry.push(device, &chat, event.clone());
                }
                return;
            }
            PeerFrame::Close { device, epoch, enrolment, refusal } => {
                if self.link.relay().region() == device.home() {
                    self.edge.registry.close(&device, epoch, enrolment, &refusal);
                }
                return;
            }
            PeerFrame::PushUsers { users, except, chat, event } => {
                if self.is_home_of(&chat) {
                    for user in users {
                        let metrics = &self.edge.metrics;
                        if self.edge.registry.push_user(&user, except.as_ref(), &chat, &event) {
                            metrics.direct_push_hits.inc();
                        } else {
                            metrics.direct_push_misses.inc();
                        }
                    }
                }
                return;
            }
            PeerFrame::Replicate { chat, base, entries } => return self.replicate(chat, base, &entries).await,
            PeerFrame::Replicated(acks) => {
                if let (Ok(owner), Some(link)) = (self.owner(), &self.region) {
                    owner.fanout.acknowledged(link.clone(), acks).await;
                }
                return;
            }
            PeerFrame::Lacks { chat, have } => {
                let owner = self.owner();
                if let (Ok(owner), Some(_)) = (&owner, &self.region) {
                    owner.fanout.lacks(self.link.relay().region(), chat, have).await;
                }
                owner.map(|_| PeerFrame::Done)
            }
            PeerFrame::Reached { chat, marks } => {
                let owner = self.owner();
                if let Ok(owner) = owner {
                    owner.fanout.reached(self.link.relay().region(), chat, marks).await;
                }
                owner.map(|_| PeerFrame::Done)
            }
            PeerFrame::Floors { chat, delivered, read } => {
                let owner = self.owner();
                if let Ok(owner) = owner
                    && self.is_home_of(&chat)
                {
                    owner.fanout.floors(chat, delivered, read).await;
                }
                owner.map(|_| PeerFrame::Done)
            }
            PeerFrame::Enrolled { device, enrolment } => {
                // Behind nothing else: it waits for fan-out.
                let served = self.clone();
                tokio::spawn(async move {
                    let reply = served.enrolled(device, enrolment).await;
                    served.link.reply(number, None, &reply.map_or_else(PeerFrame::Refused, |()| PeerFrame::Done));
                });
                return;
            }
            PeerFrame::Revoked(revocations) => self.revoked(revocations).await.map(|()| PeerFrame::Done),
            PeerFrame::Unsupported
            | PeerFrame::Done
            | PeerFrame::Refused(_)
            | PeerFrame::Outcomes(_)
            | PeerFrame::Attached { .. } => return,
        };
        if number != 0 {
            self.link.reply(number, None, &reply.unwrap_or_else(PeerFrame::Refused));
        }
    }

    /// Whether the peer holds the store of this region, or shares it.
    fn is_of_own_store(&self) -> bool {
        self.link.relay().region() == self.edge.router.region && self.link.peer.kind().is_owner()
    }

    async fn enrolled(&self, device: DeviceId, enrolment: u32) -> Result<(), Refusal> {
        let owner = self.owner()?;
        if self.is_of_own_store() {
            owner.fanout.enrolled(device, enrolment).await;
        }
        Ok(())
    }

    /// Shuts out what the peer may say is shut out, and passes it on.
    async fn revoked(&self, revocations: Vec<Revocation>) -> Result<(), Refusal> {
        let edge = &self.edge;
        let (peer, own_store) = (self.link.relay().region(), self.is_of_own_store());
        let believed = |device: &DeviceId| own_store || device.home() == peer;
        let mut news = revocations;
        news.retain(|revocation| believed(&revocation.device) && !edge.revocations.knows(revocation));
        if let Some(owner) = &edge.router.owner {
            // Durable before it is known: what is known is not asked for again.
            owner.store.note_revocations(news.clone()).await?;
        }
        for revocation in &news {
            edge.shut_out(revocation);
        }
        Ok(())
    }

    fn is_home_of(&self, chat: &ChatId) -> bool {
        *chat.home() == self.link.relay().region()
    }

    /// Keeps entries of a chat whose home the peer holds, and says so once they are durable.
    async fn replicate(&self, chat: ChatId, base: Option<Base>, records: &[Bytes]) {
        let Ok(owner) = self.owner() else { return };
        self.met.wait().await;
        let entries: Result<Vec<Entry>, _> = records.iter().map(|record| decode_record(record)).collect();
        let Some(entries) = entries.ok().filter(|entries| !entries.is_empty() && self.is_home_of(&chat)) else {
            tracing::warn!(peer = %self.link.relay(), %chat, "entries that cannot be taken were passed over");
            return;
        };
        // What is not taken now is sent again.
        let Ok(durable) = owner.store.replicate(chat.clone(), base, entries).await else { return };
        let link = self.link.clone();
        tokio::spawn(async move {
            let note = match durable.await {
                Ok(Replicated::UpTo(up_to)) => PeerFrame::Replicated(vec![Ack { chat: chat.clone(), up_to }]),
                Ok(Replicated::Gap { have }) => PeerFrame::Lacks { chat: chat.clone(), have },
                Err(_) => return,
            };
            link.note(Some(&chat), &note);
        });
    }

    fn owner(&self) -> Result<&Owner, Refusal> {
        self.edge.router.owner.as_ref().ok_or_else(|| Code::NotOwner.into())
    }

    /// A device for which the peer may act, as its ticket says.
    fn sender(&self, device: &DeviceId) -> Result<Sender, Refusal> {
        let enrolment = self.link.may_act(device, self.edge.clock.now())?;
        let sender = Sender { device: device.clone(), enrolment };
        self.edge.revocations.check(&sender)?;
        Ok(sender)
    }

    fn authorize(&self, certificate: &[godwit_wire::frame::Credential], ticket: &Ticket) -> Result<(), Refusal> {
        let chain: Vec<_> = certificate.iter().map(|one| one.0.to_vec().into()).collect();
        let now = self.edge.clock.now();
        let attached = self.edge.chains.ticket(&chain, self.link.relay(), ticket, now);
        let attached = attached.map_err(|error| Refusal::because(Code::Unauthenticated, error.to_string()))?;
        let sender = Sender { device: attached.device.clone(), enrolment: attached.enrolment };
        self.edge.revocations.check(&sender)?;
        self.link.authorized(attached);
        Ok(())
    }

    async fn attach(self: &Arc<Self>, device: &DeviceId, epoch: u64, again: bool) -> Result<PeerFrame, Refusal> {
        let (owner, sender) = (self.owner()?, self.sender(device)?);
        if device.home() != owner.region {
            return Err(Code::NotOwner.into());
        }
        owner.admit(&sender).await?;
        let link = self.edge.registry.remote(sender.clone(), self.link.clone(), epoch, again);
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).insert(device.clone(), link.clone());
        owner.fanout.attached(link).await;
        // Once more: a revocation between the first look and fan-out would find nobody to shut out.
        owner.admit(&sender).await?;
        Ok(PeerFrame::Attached { generation: owner.store.client_generation() })
    }

    fn attached(&self, device: &DeviceId, epoch: u64) -> Option<Arc<Link>> {
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.get(device).filter(|link| link.remote_epoch() == Some(epoch)).cloned()
    }

    async fn detach(&self, device: &DeviceId, epoch: u64) {
        let Some(link) = self.attached(device, epoch) else { return };
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).remove(device);
        self.link.forget(device);
        if let Ok(owner) = self.owner() {
            owner.fanout.detached(link).await;
        }
    }

    /// Queues a device's requests in their order, and answers once they are durable.
    async fn commands(
        self: &Arc<Self>,
        number: u32,
        device: &DeviceId,
        requests: Vec<godwit_wire::frame::Request>,
    ) -> Result<(), Refusal> {
        let (owner, sender) = (self.owner()?, self.sender(device)?);
        let mut commands = Vec::with_capacity(requests.len());
        for request in requests {
            let command = Command::from_request(&sender, request).map_err(|_| malformed("not a numbered request"))?;
            if *command.stamp.chat.home() != owner.region {
                return Err(Code::NotOwner.into());
            }
            commands.push(command);
        }
        let Some(chat) = commands.first().map(|command| command.stamp.chat.clone()) else {
            return Err(malformed("no requests"));
        };
        let missing = self.edge.router.missing(&commands).await;
        let outcomes = owner.store.submit_with(commands, missing).await?;
        let link = self.link.clone();
        tokio::spawn(async move {
            let reply = outcomes.await.map_or_else(PeerFrame::Refused, PeerFrame::Outcomes);
            link.reply(number, Some(&chat), &reply);
        });
        Ok(())
    }

    async fn ask(
        self: Arc<Self>,
        mut receive: crate::quic::LaneIn,
        mut send: crate::quic::LaneOut,
    ) -> Result<(), Refusal> {
        let mut reader = FrameReader::default();
        let frame = match receive.frame(&mut reader).await {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(Unread::Gone) => return Ok(()),
            Err(Unread::Malformed(error)) => return Err(malformed(error)),
        };
        // The stream's end says that there is no answer.
        let Decoded::Frame(ask) = codec::decode_numbered(&frame).map_err(malformed)?.1 else { return Ok(()) };
        let written = match ask {
            PeerAsk::Hello(_) => return Err(malformed("a second hello")),
            PeerAsk::Device { device, request } if lane::chat_of(&request).is_some() => {
                let sender = self.owner().and_then(|owner| Ok((owner, self.sender(&device)?)));
                match sender {
                    Ok((owner, sender)) => {
                        let incoming = Incoming::after(reader, receive);
                        lane::serve(owner.attachments.as_ref(), &sender.device, 1, request, incoming, send).await;
                        return Ok(());
                    }
                    Err(refusal) => write(&mut send, &Reply::Refused(refusal)).await,
                }
            }
            PeerAsk::Device { device, request } => {
                let answer = async { self.owner()?.answer(&self.sender(&device)?, request).await };
                write(&mut send, &answer.await.unwrap_or_else(Reply::Refused)).await
            }
            PeerAsk::Enrol(EnrolRequest::Enrol { token, csr }) => {
                let answer = async { self.edge.router.enrol(self.owner()?, &token, csr).await };
                let reply = answer.await.map_or_else(Reply::Refused, Reply::Certificate);
                write(&mut send, &reply).await
            }
            PeerAsk::Missing(users) => {
                let owner = self.owner().map(|owner| owner.store.clone());
                let page = match owner {
                    Ok(store) => match store.read(move |store| store.missing(&users)).await {
                        Ok(missing) => PeerPage::Missing(missing),
                        Err(error) => PeerPage::Refused(error.refusal()),
                    },
                    Err(refusal) => PeerPage::Refused(refusal),
                };
                write(&mut send, &page).await
            }
            PeerAsk::Shared { after } => {
                let (own, region) = (self.edge.router.region.clone(), self.link.relay().region());
                let page = async {
                    let read = move |store: &Snapshot| store.shared_with(&own, &region, after.as_ref(), SHARED);
                    self.owner()?.store.read(read).await.map_err(|error| error.refusal())
                };
                write(&mut send, &page.await.map_or_else(PeerPage::Refused, PeerPage::Shared)).await
            }
            PeerAsk::Ids(places) => {
                let ids = async {
                    let read =
                        move |store: &Snapshot| places.iter().map(|(chat, seq)| store.entry_id(chat, *seq)).collect();
                    self.owner()?.store.read(read).await.map_err(|error| error.refusal())
                };
                write(&mut send, &ids.await.map_or_else(PeerPage::Refused, PeerPage::Ids)).await
            }
            PeerAsk::Claims { epoch, since } => {
                let mut written = Ok(());
                for page in self.edge.router.cluster.claims_since(epoch, since) {
                    written = write(&mut send, &PeerPage::Claims(page)).await;
                    if written.is_err() {
                        break;
                    }
                }
                written
            }
        };
        if written.is_ok() {
            send.finish();
        }
        Ok(())
    }
}

async fn write(send: &mut crate::quic::LaneOut, frame: &impl Frame) -> Result<(), crate::quic::Gone> {
    let mut bytes = Vec::new();
    codec::encode_numbered(1, frame, &mut bytes).map_err(|error| {
        tracing::error!(%error, "an answer to a peer is too large");
        crate::quic::Gone
    })?;
    send.write(&mut [Bytes::from(bytes)]).await
}
