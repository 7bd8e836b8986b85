//! Going on where an earlier run, or the store before a fault, left off.

use super::{ROWS_TICKS, Worker, region};
use crate::edge::Link;
use crate::revocations::forgotten_before;
use crate::router::another_past;
use crate::store::{PageLimit, Snapshot, StoreError};
use godwit_wire::{ChatId, Seq};
use std::collections::HashSet;
use std::sync::Arc;

/// Chats and entries taken up at a time after a crash.
const RECOVER: PageLimit = PageLimit { entries: 1024, bytes: 4 << 20 };
impl Worker {
    /// Takes up what an earlier run left unsettled.
    ///
    /// # Errors
    /// A fault of the store.
    pub(crate) async fn recover(&mut self) -> Result<(), StoreError> {
        let (met, own) = (self.store.read(Snapshot::all_met).await?, self.store.generation());
        self.met = met.into_iter().filter(|(_, met)| met.own == own).map(|(region, _)| region).collect();
        let mut after = None;
        loop {
            let from = after.clone();
            let chats = self.store.read(move |store| store.dirty(from.as_ref(), RECOVER.entries)).await?;
            let Some(last) = chats.last().cloned() else { return Ok(()) };
            for chat in chats {
                if self.owns(&chat) {
                    self.recover_chat(chat).await?;
                }
            }
            after = Some(last);
        }
    }

    async fn recover_chat(&mut self, chat: ChatId) -> Result<(), StoreError> {
        let mut from = self.chats.get(&chat).and_then(|fan| fan.fanned).map(Seq::next);
        tracing::trace!(%chat, ?from, "what is not settled is taken up");
        loop {
            let start = from;
            let read = move |store: &Snapshot, chat: &ChatId| store.unsettled(chat, start, RECOVER);
            let unsettled = self.store.read_chat(chat.clone(), read).await?;
            let Some((last, _)) = unsettled.entries.last() else {
                // Settled, but still on the list: saving takes it off.
                self.chats.entry(chat).or_default().fanned = from.and_then(Seq::prev);
                return Ok(());
            };
            from = Some(last.seq.next());
            let mut users = HashSet::new();
            for (_, recipients) in &unsettled.entries {
                let abroad = region::abroad(&self.region, &unsettled.chat, recipients);
                users.extend(region::served(&self.region, recipients, &abroad).cloned());
            }
            self.load_users(users.into_iter()).await?;
            for (entry, recipients) in unsettled.entries {
                self.entry(&unsettled.chat, &entry, &recipients);
            }
            self.flush_rows();
        }
    }

    /// What is in the log of a chat may be more than was told.
    pub(super) async fn taken_up(&mut self, chat: ChatId) {
        if let Err(error) = self.recover_chat(chat.clone()).await {
            tracing::warn!(%error, %chat, "what a chat's log has cannot be read, and is read later");
            self.not_taken_up.insert(chat);
        }
    }

    pub(super) async fn take_up_the_rest(&mut self) {
        for chat in std::mem::take(&mut self.not_taken_up) {
            self.taken_up(chat).await;
        }
    }

    /// Copies of chats are gone: nothing of them is on its way to anybody.
    pub(super) fn dropped(&mut self, chats: &[ChatId]) {
        for chat in chats {
            self.chats.remove(chat);
            self.deferred.remove(chat);
            for state in self.devices.values_mut() {
                if let Some(link) = state.link.as_ref().filter(|_| state.track(chat).is_some()) {
                    link.rewind(chat);
                }
                state.set(chat, None);
            }
        }
        self.moves.retain(|(_, chat), _| !chats.contains(chat));
        self.rows.retain(|row| !chats.contains(&row.chat));
    }

    /// The store has another past by now: devices come again, a few at a time, and compare theirs with it.
    pub(super) fn ask_to_compare(&self) {
        for (device, state) in &self.devices {
            if let Some(link) = state.link.as_ref().filter(|_| !device.is_region()) {
                link.close(&another_past());
            }
        }
    }

    /// Other relays share the store than before: what others own now is left to them, and what they left is taken up.
    pub(super) async fn owners_changed(&mut self) {
        tracing::info!("other relays share the store than before; what each owns is found anew");
        self.flush_rows();
        self.flush_moves();
        self.save_progress(|_| true);
        self.store.forget();
        self.rows_due = (self.ticks + ROWS_TICKS, 2 * ROWS_TICKS);
        self.reopened().await;
    }

    /// After a fault of the store: forget, and go on as after a crash. Connected devices stay.
    pub(super) async fn reopened(&mut self) {
        let links: Vec<Arc<Link>> = self.devices.values().filter_map(|device| device.link.clone()).collect();
        self.users.clear();
        self.devices.clear();
        self.chats.clear();
        self.deferred.clear();
        self.rows.clear();
        self.begun.clear();
        self.not_taken_up.clear();
        self.moves.clear();
        self.found.clear();
        for link in links {
            self.attach(link).await;
        }
        let since = forgotten_before(self.clock.now());
        match self.store.read(move |store| store.revocations(since)).await {
            Ok(revocations) => revocations.iter().for_each(|revocation| self.shut_out(revocation)),
            Err(error) => tracing::warn!(%error, "revocations cannot be read"),
        }
        if let Err(error) = self.recover().await {
            // The store says again that it was opened anew once it was.
            tracing::warn!(%error, "fan-out cannot take up what was left");
        }
    }
}
