//! What must hold of a store's chats: every log is gapless and in order, and the participants are what it says.

use super::StoreError;
use super::chats::participants;
use super::rows::Rows;
use godwit_core::{Chat, Entry};
use godwit_wire::{ChatId, Seq};

/// What a check of a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub chats: u64,
    pub entries: u64,
    pub devices: u64,
    pub inbox_rows: u64,
    /// What is wrong, at most 100 of it.
    pub faults: Vec<String>,
}

impl Report {
    pub(super) fn fault(&mut self, what: impl Into<String>) {
        if self.faults.len() < 100 {
            self.faults.push(what.into());
        }
    }
}

/// Chats whose logs are read one after the other.
#[derive(Default)]
pub(super) struct Chats {
    current: Option<Replay>,
}

impl Chats {
    /// Takes the next entry: that of the same chat as before, or the first of another.
    pub(super) fn take(
        &mut self,
        chat: &ChatId,
        seq: Seq,
        entry: &Entry,
        rows: &dyn Rows,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        if self.current.as_ref().is_none_or(|replay| replay.id != *chat) {
            self.finish(rows, report)?;
            report.chats += 1;
            self.current = Some(Replay { id: chat.clone(), last: None, state: None });
        }
        if let Some(replay) = &mut self.current {
            replay.take(seq, entry, report);
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, rows: &dyn Rows, report: &mut Report) -> Result<(), StoreError> {
        if let Some(Replay { id, state: Some(state), .. }) = self.current.take()
            && participants(rows, &id)? != *state.participants()
        {
            report.fault(format!("{id}: participants differ from what the log says"));
        }
        Ok(())
    }
}

/// A chat rebuilt from its log alone.
struct Replay {
    id: ChatId,
    last: Option<Entry>,
    state: Option<Chat>,
}

impl Replay {
    fn take(&mut self, seq: Seq, entry: &Entry, report: &mut Report) {
        let expected = self.last.as_ref().map_or(Seq::FIRST, |last| last.seq.next());
        if seq != expected || entry.seq != seq {
            report.fault(format!("{}: entry {seq} stands where {expected} belongs", self.id));
        }
        if self.last.as_ref().is_some_and(|last| entry.at < last.at) {
            report.fault(format!("{}: entry {seq} is older than the one before it", self.id));
        }
        match &mut self.state {
            Some(state) if seq == state.head.next() => {
                state.apply(entry);
            }
            Some(_) => {}
            None => match Chat::created(self.id.clone(), entry) {
                Some((state, _)) => self.state = Some(state),
                None => report.fault(format!("{}: the first entry does not create the chat", self.id)),
            },
        }
        self.last = Some(entry.clone());
    }
}
