//! What must hold of a shared store: each chat's log, and that other tables know of nothing that the logs do not have.

use super::engine::Engine;
use super::live::Live;
use crate::host::Threads;
use crate::store::StoreError;
use crate::store::chats::last_entry;
use crate::store::check::{Chats, Report};
use crate::store::keys::{self, Key, Parts, Span};
use crate::store::marks;
use crate::store::rows::Records;
use crate::store::tables::{CHATS, CURSORS, DEVICES, INBOX, LOG, PARTICIPANTS};
use godwit_wire::{ChatId, RegionId, Seq};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Checks that every chat's log is gapless and in order, and that its participants are what its log says. Reads all of the
/// store, while relays may go on.
///
/// # Errors
/// The engine's; and as [`super::init`].
pub async fn examine(engine: Arc<dyn Engine>, region: &RegionId, threads: &Threads) -> Result<Report, StoreError> {
    let region = region.clone();
    let examining = threads.blocking(move || {
        let rows = Live::new(engine, None);
        super::check(&rows, &region)?;
        let mut report = Report::default();
        let mut heads = BTreeMap::new();
        for (key, _) in rows.all(CHATS, &Span::ALL)? {
            let chat = Parts(&key).chat()?;
            let mut chats = Chats::default();
            let mut head = None;
            rows.each(LOG, &keys::whole_log(&chat), |key, entry| {
                report.entries += 1;
                let seq = Seq::new(keys::number_of(key)?).map_err(|_| StoreError::BadKey)?;
                head = Some(seq);
                // A copy may begin anywhere.
                if *chat.home() == region { chats.take(&chat, seq, &entry, &rows, &mut report) } else { Ok(()) }
            })?;
            chats.finish(&rows, &mut report)?;
            if head.is_none() {
                report.fault(format!("{chat}: its log is missing"));
            }
            heads.insert(chat, head);
        }
        compare(&rows, &region, &heads, &mut report)?;
        Ok(report)
    });
    examining.await.unwrap_or(Err(StoreError::Closed))
}

/// What other tables say of chats must be in their logs: tables that were restored to different times are noticed by that.
fn compare(
    rows: &Live,
    region: &RegionId,
    heads: &BTreeMap<ChatId, Option<Seq>>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut faults = BTreeSet::new();
    let mut reaches = |table: &str, chat: ChatId, seq: Option<Seq>| -> Result<(), StoreError> {
        // Of a copy, its home says who takes part, whatever of the log is here.
        if chat.home() != region || heads.get(&chat).is_some_and(|head| *head >= seq) {
            return Ok(());
        }
        // Relays may have gone on since the logs were read.
        let head = last_entry(rows, &chat)?.map(|entry| entry.seq);
        if rows.get(CHATS, &Key::new().chat(&chat).bytes())?.is_none() {
            faults.insert(format!("{chat}: it is in {table}, and not among the chats"));
        } else if head < seq {
            faults.insert(format!("{chat}: {table} know of {}, its log ends with {}", shown(seq), shown(head)));
        }
        Ok(())
    };
    rows.each(CURSORS, &Span::ALL, |key, cursor| reaches("cursors", Parts(key).chat()?, cursor.settled))?;
    rows.each(PARTICIPANTS, &Span::ALL, |key, row| reaches("participants", Parts(key).chat()?, Some(row.as_of)))?;
    marks::each(rows, &Span::ALL, |chat, _, mark| reaches("watermarks", chat.clone(), mark.delivered.max(mark.read)))?;
    let mut strays = BTreeSet::new();
    rows.each(INBOX, &Span::ALL, |key, row| {
        report.inbox_rows += 1;
        let mut parts = Parts(key);
        let (device, chat) = (parts.device()?, parts.chat()?);
        if !device.is_region() {
            strays.insert(device);
        }
        reaches("inboxes", chat, row.from.prev())
    })?;
    rows.each(DEVICES, &Span::ALL, |key, _| {
        report.devices += 1;
        strays.remove(&Parts(key).device()?);
        Ok(())
    })?;
    let strays = strays.iter().map(|device| format!("{device}: it has an inbox, and is not among the devices"));
    for fault in faults.into_iter().chain(strays) {
        report.fault(fault);
    }
    Ok(())
}

fn shown(seq: Option<Seq>) -> String {
    seq.map_or_else(|| "nothing".to_owned(), |seq| seq.to_string())
}
