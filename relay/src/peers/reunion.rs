//! Two regions that meet after one of their stores was restored from a backup: copies that are not what their home has
//! are dropped and asked for anew, and what a copy lacks is asked for.
//!
//! Until then nothing of the peer's chats is taken: what follows another past would not be noticed.

use super::frame::{PeerAsk, PeerFrame, PeerPage};
use super::link::{LinkError, PeerLink};
use crate::owner::Owner;
use crate::store::{Met, StoreError};
use godwit_wire::entry::EntryId;
use godwit_wire::{ChatId, Code, Refusal, Seq};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// When it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A chat of the other region.
struct Copy {
    chat: ChatId,
    /// The last entry for this region.
    head: Seq,
    /// The last entry that is here, if there is a copy.
    have: Option<Seq>,
    /// The last entry that both ends have.
    id: Option<EntryId>,
}

/// How the copies of one region's chats stand.
#[derive(Debug, Default)]
struct Compared {
    /// Of another past than their home's.
    wrong: Vec<ChatId>,
    /// What they have, if it is less than there is.
    behind: Vec<(ChatId, Option<Seq>)>,
}

/// Compares, if need be, until it is done or the link has ended. `met` is called once entries may be taken.
pub(super) async fn meet(owner: &Owner, link: &Arc<PeerLink>, met: impl Fn()) {
    // Of two links to one relay, as they are for a moment, the second finds it done.
    let _turn = owner.meeting.lock().await;
    while !have_met(owner, link).await {
        match compare(owner, link, &met).await {
            Ok(()) => break,
            Err(_) if link.connection.is_closed() => return,
            Err(refusal) => {
                tracing::warn!(peer = %link.relay(), %refusal, "copies could not be compared yet");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    met();
    owner.fanout.met(link.relay().region()).await;
}

/// The two stores as they are now.
fn now(owner: &Owner, link: &PeerLink) -> Met {
    Met { own: owner.store.generation(), theirs: link.generation.unwrap_or_default() }
}

async fn last_met(owner: &Owner, link: &PeerLink) -> Result<Option<Met>, StoreError> {
    let region = link.relay().region();
    owner.store.read(move |store| store.met(&region)).await
}

/// Whether nothing was restored since the two met last.
async fn have_met(owner: &Owner, link: &PeerLink) -> bool {
    last_met(owner, link).await.is_ok_and(|met| met == Some(now(owner, link)))
}

/// Whether the other region's store was restored since the two met last. Then devices of this region may have been told
/// that messages were sent which it does not know any more, be the copies here as they are.
async fn was_restored(owner: &Owner, link: &PeerLink) -> Result<bool, StoreError> {
    let met = last_met(owner, link).await?;
    Ok(met.is_some_and(|met| met.theirs != now(owner, link).theirs))
}

async fn compare(owner: &Owner, link: &Arc<PeerLink>, met: impl Fn()) -> Result<(), Refusal> {
    let Compared { wrong, mut behind } = all(owner, link).await?;
    let was_restored = was_restored(owner, link).await.map_err(|error| error.refusal())?;
    if was_restored || !wrong.is_empty() {
        tracing::warn!(peer = %link.relay(), was_restored, count = wrong.len(), "copies of another past are dropped");
        owner.store.drop_copies(wrong.clone()).await?;
        owner.fanout.restored().await;
        behind.extend(wrong.into_iter().map(|chat| (chat, None)));
    }
    // Answers come on the lanes that wait for it.
    met();
    for (chat, have) in behind {
        let frame = PeerFrame::Lacks { chat: chat.clone(), have };
        let PeerFrame::Done = link.call(Some(&chat), &frame).await? else {
            return Err(LinkError::Confused.refusal());
        };
    }
    owner.store.note_met(link.relay().region(), now(owner, link)).await
}

async fn all(owner: &Owner, link: &Arc<PeerLink>) -> Result<Compared, Refusal> {
    let mut compared = Compared::default();
    let mut after: Option<ChatId> = None;
    loop {
        let ask = PeerAsk::Shared { after: after.clone() };
        let page: Vec<(ChatId, Seq)> = match link.ask_one(&ask).await.map_err(LinkError::refusal)? {
            PeerPage::Shared(page) => page,
            PeerPage::Refused(refusal) => return Err(refusal),
            _ => return Err(LinkError::Confused.refusal()),
        };
        let last = page.last().map(|(chat, _)| chat.clone());
        some(owner, link, after.as_ref(), &page, &mut compared).await?;
        match last {
            Some(last) => after = Some(last),
            None => return Ok(compared),
        }
    }
}

/// Compares the chats of one page, and the copies between them of which the home knows nothing.
async fn some(
    owner: &Owner,
    link: &Arc<PeerLink>,
    after: Option<&ChatId>,
    page: &[(ChatId, Seq)],
    compared: &mut Compared,
) -> Result<(), Refusal> {
    let home = link.relay().region();
    if page.iter().any(|(chat, _)| *chat.home() != home) {
        return Err(Refusal::because(Code::Malformed, "a chat of another home"));
    }
    let (from, heads) = (after.cloned(), page.to_vec());
    let read = owner.store.read(move |store| {
        let copies = store.copies_of(&home, from.as_ref(), heads.last().map(|(chat, _)| chat))?;
        let own = heads.into_iter().map(|(chat, head)| {
            let have = store.head(&chat)?;
            let id = have.map(|have| store.entry_id(&chat, have.min(head))).transpose()?.flatten();
            Ok(Copy { chat, head, have, id })
        });
        Ok((copies, own.collect::<Result<Vec<_>, StoreError>>()?))
    });
    let (copies, own) = read.await.map_err(|error| error.refusal())?;
    let probes: Vec<_> = own.iter().filter_map(|own| Some((own.chat.clone(), own.have?.min(own.head)))).collect();
    let count = probes.len();
    let theirs = if probes.is_empty() {
        Vec::new()
    } else {
        match link.ask_one(&PeerAsk::Ids(probes)).await.map_err(LinkError::refusal)? {
            PeerPage::Ids(ids) if ids.len() == count => ids,
            PeerPage::Refused(refusal) => return Err(refusal),
            _ => return Err(LinkError::Confused.refusal()),
        }
    };
    let named: HashSet<&ChatId> = page.iter().map(|(chat, _)| chat).collect();
    compared.wrong.extend(copies.into_iter().filter(|chat| !named.contains(chat)));
    let mut theirs = theirs.into_iter();
    for Copy { chat, head, have, id } in own {
        // Of those that are here there is an answer, in their order.
        let same = have.is_none() || theirs.next() == Some(id);
        if !same || have > Some(head) {
            compared.wrong.push(chat);
        } else if have < Some(head) {
            compared.behind.push((chat, have));
        }
    }
    Ok(())
}
