//! Blobs at the edge: a device's lane of bytes is served here if this relay holds the store of the chat's home, and passed
//! on to that relay if not. Nothing is kept on the way.

use super::{Edge, Session};
use crate::attachments::lane::{self, Answer, Incoming};
use crate::attachments::off;
use crate::peers::frame::PeerAsk;
use crate::peers::{LinkError, PeerLink};
use crate::quic::{Gone, LaneOut};
use crate::router::{Route, away};
use godwit_wire::blob::{BlobHash, Manifest, PART_BYTES, part_bytes};
use godwit_wire::frame::{self, MissingPart, Reply, Request};
use godwit_wire::{ChatId, Code, Refusal, RegionId, Seq};
use std::sync::Arc;
use std::time::Duration;

/// When a device that has too many lanes of blobs should try again.
const TOO_MANY: Duration = Duration::from_secs(1);

/// Serves a lane from its request to its end.
pub(super) async fn serve(
    edge: &Edge,
    session: &Session,
    number: u32,
    request: Request,
    incoming: Incoming,
    mut send: LaneOut,
) {
    let Some(home) = lane::chat_of(&request).map(|chat| chat.home().clone()) else { return };
    let Ok(_permit) = session.blob_lanes.clone().try_acquire_owned() else {
        let why = format!("at most {} attachments at a time", edge.blob_lanes);
        let refusal = Refusal::retry(Code::RateLimited, TOO_MANY).explained(&why);
        return refuse(send, number, refusal).await;
    };
    match edge.router.route(&home) {
        Route::Here(owner) => {
            lane::serve(owner.attachments.as_ref(), &session.sender.device, number, request, incoming, send).await;
        }
        Route::There(peer) => {
            send.give_way();
            match pass_on(session, &peer, number, request, incoming, &mut send).await {
                Ok(Ok(())) => send.finish(),
                Ok(Err(refusal)) => refuse(send, number, refusal).await,
                Err(Gone) => send.reset(Code::Unavailable),
            }
        }
        Route::Away | Route::Nowhere => refuse(send, number, away(&home)).await,
    }
}

async fn refuse(mut send: LaneOut, number: u32, refusal: Refusal) {
    if lane::reply(&mut send, number, &Reply::Refused(refusal)).await.is_ok() {
        send.finish();
    }
}

/// To the relay that serves it, both ways. The inner error is the reply that is still to be given.
async fn pass_on(
    session: &Session,
    peer: &Arc<PeerLink>,
    number: u32,
    request: Request,
    mut incoming: Incoming,
    send: &mut LaneOut,
) -> Result<Result<(), Refusal>, Gone> {
    let (mut there, answer) = match open(session, peer, request).await {
        Ok(opened) => opened,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let up = async {
        loop {
            match incoming.next().await {
                Ok(Some(bytes)) => {
                    if lane::write(&mut there, bytes).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return there.finish(),
                // What is missing must not look like the end.
                Err(_) => return there.reset(Code::Unavailable),
            }
        }
    };
    let down = async {
        let (first, mut answer) = match answer.read().await {
            Ok(answered) => answered,
            Err(refusal) => return Ok(Err(refusal)),
        };
        lane::reply(send, number, &first).await?;
        loop {
            match answer.next().await {
                Ok(Some(bytes)) => lane::write(send, bytes).await?,
                Ok(None) => return Ok(Ok(())),
                Err(_) => return Err(Gone),
            }
        }
    };
    tokio::pin!(down);
    tokio::select! {
        biased;
        ended = &mut down => return ended,
        () = up => {}
    }
    down.await
}

/// Asks a peer for a device on a stream of its own, which stays open both ways.
async fn open(session: &Session, peer: &Arc<PeerLink>, request: Request) -> Result<(LaneOut, Answer), Refusal> {
    session.show(peer).await?;
    let ask = PeerAsk::Device { device: session.sender.device.clone(), request };
    let (send, receive) = peer.open(&ask).await.map_err(LinkError::refusal)?;
    send.give_way();
    Ok((send, Answer(receive)))
}

/// Asks the home of a chat.
async fn ask(edge: &Edge, session: &Session, home: &RegionId, request: Request) -> Result<Reply, Refusal> {
    let reply = match edge.router.route(home) {
        Route::Here(owner) => owner.answer(&session.sender, request).await?,
        Route::There(peer) => super::lane::ask(session, &peer, request).await?,
        Route::Away | Route::Nowhere => return Err(away(home)),
    };
    if let Reply::Refused(refusal) = reply { Err(refusal) } else { Ok(reply) }
}

fn confused() -> Refusal {
    LinkError::Confused.refusal()
}

/// Answers a request about blobs that has one reply and no bytes.
pub(super) async fn answer(edge: &Edge, session: &Session, request: Request) -> Result<Reply, Refusal> {
    match request {
        Request::BeginBlob { ref chat, .. }
        | Request::GetManifest { ref chat, .. }
        | Request::PartUrl { ref chat, .. } => {
            let home = chat.home().clone();
            ask(edge, session, &home, request).await
        }
        Request::CopyBlob { chat, seq, hash, to } => {
            copy(edge, session, &chat, seq, hash, &to).await?;
            Ok(Reply::Done)
        }
        _ => Err(Code::Internal.into()),
    }
}

/// Lets the device refer to a message's blob in another chat, whose home gets it from the first one's, part by part: what is
/// there already is not copied, and a copy that was cut goes on.
async fn copy(
    edge: &Edge,
    session: &Session,
    chat: &ChatId,
    seq: Seq,
    hash: BlobHash,
    to: &ChatId,
) -> Result<(), Refusal> {
    let asked = Request::GetManifest { chat: chat.clone(), seq, hash };
    let Reply::BlobManifest(manifest) = ask(edge, session, chat.home(), asked).await? else { return Err(confused()) };
    for MissingPart { part, has } in begin(edge, session, to, &manifest).await? {
        let from = u64::from(part) * PART_BYTES + has;
        let len = part_bytes(manifest.size_bytes, part).and_then(|len| len.checked_sub(has)).ok_or_else(confused)?;
        let fetch = Request::FetchBlob { chat: chat.clone(), seq, hash, from, len, url: false };
        let bytes = fetch_part(edge, session, chat.home(), fetch).await?;
        put_part(edge, session, to, (hash, part, has), bytes).await?;
    }
    match begin(edge, session, to, &manifest).await?.as_slice() {
        [] => Ok(()),
        // Somebody else may have begun it anew.
        missing => {
            Err(Refusal::retry(Code::Unavailable, TOO_MANY).explained(&format!("{} parts are missing", missing.len())))
        }
    }
}

async fn begin(edge: &Edge, session: &Session, to: &ChatId, manifest: &Manifest) -> Result<Vec<MissingPart>, Refusal> {
    let request = Request::BeginBlob { chat: to.clone(), blob: manifest.clone() };
    match ask(edge, session, to.home(), request).await? {
        Reply::BlobState(frame::BlobState::Stored) => Ok(Vec::new()),
        Reply::BlobState(frame::BlobState::Missing(missing)) => Ok(missing),
        _ => Err(confused()),
    }
}

async fn fetch_part(edge: &Edge, session: &Session, home: &RegionId, request: Request) -> Result<Incoming, Refusal> {
    match edge.router.route(home) {
        Route::Here(owner) => {
            let attachments = owner.attachments.as_ref().ok_or_else(off)?;
            attachments.fetch(session.user.clone(), request).await
        }
        Route::There(peer) => {
            let (mut send, answer) = open(session, &peer, request).await?;
            send.finish();
            match answer.read().await? {
                (Reply::BlobBytes { .. }, bytes) => Ok(bytes),
                (Reply::Refused(refusal), _) => Err(refusal),
                _ => Err(confused()),
            }
        }
        Route::Away | Route::Nowhere => Err(away(home)),
    }
}

async fn put_part(
    edge: &Edge,
    session: &Session,
    to: &ChatId,
    (hash, part, from): (BlobHash, u32, u64),
    mut bytes: Incoming,
) -> Result<(), Refusal> {
    match edge.router.route(to.home()) {
        Route::Here(owner) => {
            let attachments = owner.attachments.as_ref().ok_or_else(off)?;
            attachments.take_part(&session.sender.device, (hash, part, from), &mut bytes).await
        }
        Route::There(peer) => {
            let request = Request::PutPart { chat: to.clone(), hash, part, from };
            let (mut send, answer) = open(session, &peer, request).await?;
            while let Some(bytes) = bytes.next().await? {
                // It may have the part already, and says so.
                if lane::write(&mut send, bytes).await.is_err() {
                    break;
                }
            }
            send.finish();
            match answer.read().await? {
                (Reply::Done, _) => Ok(()),
                (Reply::Refused(refusal), _) => Err(refusal),
                _ => Err(confused()),
            }
        }
        Route::Away | Route::Nowhere => Err(away(to.home())),
    }
}
