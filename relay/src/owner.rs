//! What the relay that holds the store does for a device, at whatever relay the device is connected.
//!
//! Who asks was authenticated by the caller: by a session, or by the device's ticket that a peer showed.

use crate::attachments::{Attachments, off};
use crate::fanout::Fanout;
use crate::store::{Issued, Snapshot, Store, StoreError};
use arc_swap::ArcSwap;
use bytes::Bytes;
use godwit_certs::Issuer;
use godwit_certs::authority::AuthorityError;
use godwit_certs::folder::RelayFiles;
use godwit_certs::identity::fingerprint;
use godwit_core::{Sender, device};
use godwit_wire::frame::{Credential, Reply, Request};
use godwit_wire::{ChatId, Clock, Code, DeviceId, Refusal, RegionId, UnixMillis, UserId, limits};
use std::sync::Arc;
use std::time::Duration;

/// When a client should look again for a copy of a chat.
const NO_COPY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) region: RegionId,
    pub(crate) store: Store,
    pub(crate) fanout: Fanout,
    /// None if the region stores none.
    pub(crate) attachments: Option<Attachments>,
    /// Replaced by a reload.
    pub(crate) identity: Arc<ArcSwap<RelayFiles>>,
    pub(crate) clock: Clock,
    /// Held while copies are compared with another region.
    pub(crate) meeting: Arc<tokio::sync::Mutex<()>>,
}

fn fault(error: StoreError) -> Refusal {
    tracing::warn!(%error, "a read failed");
    error.refusal()
}

fn page_limit(limit: u16) -> Result<usize, Refusal> {
    let limit = usize::from(limit);
    if (1..=limits::PAGE_ENTRIES).contains(&limit) {
        Ok(limit)
    } else {
        let why = format!("limit must lie between 1 and {}", limits::PAGE_ENTRIES);
        Err(Refusal::because(Code::Invalid, why))
    }
}

impl Owner {
    /// Whether the device is known, not revoked, and not enrolled anew.
    pub(crate) async fn admit(&self, sender: &Sender) -> Result<(), Refusal> {
        let id = sender.device.clone();
        let record = self.store.read(move |store| store.device(&id)).await.map_err(|error| error.refusal())?;
        device::admit(record.as_ref(), sender.enrolment)
    }

    /// Answers what a device asks, if it is no numbered request and does not concern its connection.
    pub(crate) async fn answer(&self, sender: &Sender, request: Request) -> Result<Reply, Refusal> {
        let device = sender.device.clone();
        Ok(match request {
            Request::MarkRead { chat, up_to } => {
                self.fanout.read(device.user(), chat, up_to).await;
                Reply::Done
            }
            Request::ListChats(list) => {
                let limit = page_limit(list.limit)?;
                Reply::ChatList(self.store.list_chats(device, list.after, limit).await.map_err(fault)?)
            }
            Request::GetChat { chat } => {
                let read = move |store: &Snapshot, chat: &ChatId| store.chat_info(&device, chat);
                match self.store.read_chat(chat.clone(), read).await.map_err(fault)? {
                    Ok(info) => Reply::ChatInfo(info),
                    Err(refusal) => return Err(self.unless_copied(&chat, refusal).await),
                }
            }
            Request::History(history) => {
                let limit = page_limit(history.limit)?;
                let read = self.store.history(device.user(), history.chat.clone(), history.range, limit);
                match read.await.map_err(fault)? {
                    Ok(page) => Reply::HistoryPage(page),
                    Err(refusal) => return Err(self.unless_copied(&history.chat, refusal).await),
                }
            }
            Request::BeginBlob { chat, blob } => self.attachments(&chat)?.begin(&device, chat, blob).await?,
            Request::GetManifest { chat, seq, hash } => {
                self.attachments(&chat)?.manifest(device.user(), chat, seq, hash).await?
            }
            Request::PartUrl { chat, hash, part } => self.attachments(&chat)?.part_url(hash, part).await?,
            Request::Renew { csr } => self.renew(sender, &csr).await?,
            // Taken by sessions and their lanes; named so that a new request is not forgotten here.
            Request::Hello(_)
            | Request::Ack(_)
            | Request::CreateChat(_)
            | Request::UpdateChat(_)
            | Request::SendMessage(_)
            | Request::Redact(_)
            | Request::PutPart { .. }
            | Request::FetchBlob { .. }
            | Request::CopyBlob { .. } => return Err(Code::Internal.into()),
        })
    }

    fn attachments(&self, chat: &ChatId) -> Result<&Attachments, Refusal> {
        if *chat.home() != self.region {
            return Err(Code::NotOwner.into());
        }
        self.attachments.as_ref().ok_or_else(off)
    }

    /// Of a chat at home elsewhere the copy may still be on its way: that there is none here proves nothing.
    async fn unless_copied(&self, chat: &ChatId, refusal: Refusal) -> Refusal {
        if refusal.code != Code::NotParticipant || *chat.home() == self.region {
            return refusal;
        }
        let id = chat.clone();
        match self.store.read(move |store| store.head(&id)).await {
            Ok(Some(_)) => refusal,
            Ok(None) => Refusal::retry(Code::Unavailable, NO_COPY).explained("no copy of this chat is here yet"),
            Err(error) => fault(error),
        }
    }

    /// A new certificate for the same device and enrolment. A connection stays under the one it began with.
    async fn renew(&self, sender: &Sender, csr: &[u8]) -> Result<Reply, Refusal> {
        let identity = self.identity.load_full();
        let issued = issue(&identity.issuer, csr, &sender.device, sender.enrolment, self.clock.now())?;
        if !self.store.renewed(sender.device.clone(), sender.enrolment, issued.fingerprint).await? {
            return Err(Code::Revoked.into());
        }
        tracing::info!(device = %sender.device, "certificate renewed");
        Ok(Reply::Certificate(issued.chain.into_iter().map(Credential).collect()))
    }

    /// A certificate for a token, which is used up.
    pub(crate) async fn enrol(&self, token: &str, csr: Bytes) -> Result<(DeviceId, Issued), Refusal> {
        let now = self.clock.now();
        let identity = self.identity.load_full();
        let grant = identity.tokens.verify(token, now)?;
        if grant.device.home() != self.region {
            let why = format!("the token is for {}, this relay enrols for region {}", grant.device, self.region);
            return Err(Refusal::because(Code::WrongDevice, why));
        }
        if grant.device.is_region() {
            let why = format!("the name {} is reserved", UserId::RESERVED);
            return Err(Refusal::because(Code::WrongDevice, why));
        }
        let device = grant.device.clone();
        let issue = move |enrolment| issue(&identity.issuer, &csr, &device, enrolment, now);
        let issued = self.store.enrol(grant.device.clone(), grant.jti, grant.forget_at, issue).await?;
        tracing::info!(device = %grant.device, "enrolled");
        Ok((grant.device, issued))
    }
}

/// A certificate for `device`, as the store notes it.
fn issue(issuer: &Issuer, csr: &[u8], device: &DeviceId, enrolment: u32, now: UnixMillis) -> Result<Issued, Refusal> {
    let chain = issuer.device(csr, device, enrolment, now).map_err(|error| match error {
        AuthorityError::OtherName(_) | AuthorityError::OtherRegion { .. } => {
            Refusal::because(Code::WrongDevice, error.to_string())
        }
        AuthorityError::BadRequest(_) => Refusal::because(Code::Invalid, error.to_string()),
        AuthorityError::Make(_) => {
            tracing::error!(%error, "a certificate could not be made");
            Code::Internal.into()
        }
    })?;
    let fingerprint = chain.first().map(fingerprint).unwrap_or_default();
    Ok(Issued { enrolment, chain: chain.iter().map(|der| Bytes::copy_from_slice(der)).collect(), fingerprint })
}
