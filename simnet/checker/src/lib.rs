//! The promises, checked: what each device was told, against what each sender put in.
//!
//! The checker knows nothing of relays. It is told what apps do and hear, and builds from that one log a chat:
//!
//! | promise | how it is seen |
//! | --- | --- |
//! | one order a chat, the same on all devices | two are told different entries under one seq |
//! | each once, in order, gapless | a device is told a seq that is not above its last; at the end one is missing |
//! | nothing that is `sent` is lost | at the end it is not in the log under its seq, or a device has not got it |
//! | a retry is the same message | one put is in the log twice |
//! | sends of a device keep their order | in the log they stand otherwise |
//! | nobody sees what is not theirs | an entry outside the time in which the user was in the chat |
//! | receipts go forward only | one goes back, or beyond the log |
//!
//! - [`Checker`]: what it is told, and what it says
//! - [`app`]: an app that takes what comes, and tells it
//! - [`Journal`]: where it takes the time from, and what it tells as it goes
//! - `log`, `state`: what it knows of chats, and what it makes of it; `restored`: stores that come back from a backup
//!
//! [`Checker::verdict`] is safety, at any time; [`Checker::unsettled`] is what is still to come, which ends once faults
//! have ended.

pub mod app;
mod journal;
mod log;
mod restored;
mod state;

pub use journal::{Delivery, Journal, RealTime};
pub use log::{What, text};
pub use restored::{Heads, Past};

use anyhow::{Result, bail};
use godwit_client::{ChatId, DeviceId, Event, HistoryEntry, MessageId, MessageState, Next, Seq};
use log::{Fact, entry, key};
use state::{DeviceLog, Fate, Loss, Put, State};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Broken promises that are kept; the first is what matters.
const MOST: usize = 20;

/// What was promised and what was kept. Cloning shares it.
#[derive(Clone)]
pub struct Checker {
    journal: Arc<dyn Journal>,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checker")
    }
}

fn number(seq: Option<Seq>) -> u64 {
    seq.map_or(0, Seq::get)
}

impl Checker {
    pub fn new(journal: impl Journal + 'static) -> Self {
        Self { journal: Arc::new(journal), state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a broken promise.
    pub fn broken(&self, what: String) {
        self.journal.note(&format!("BROKEN: {what}"));
        let mut state = self.state();
        if state.broken.len() < MOST {
            state.broken.push(what);
        }
    }

    fn all_broken(&self, faults: Vec<String>) {
        for fault in faults {
            self.broken(fault);
        }
    }

    /// A device was enrolled on a home without a past.
    pub fn enrolled(&self, device: &DeviceId) {
        let mut state = self.state();
        state.let_in(device);
        let log = DeviceLog { since: self.journal.now(), doubts: state.doubts.clone(), ..DeviceLog::default() };
        state.devices.insert(device.clone(), log);
    }

    /// A device has the list of its chats.
    pub fn listed(&self, device: &DeviceId) {
        if let Some(log) = self.state().devices.get_mut(device) {
            log.listed = true;
        }
    }

    /// A copy of a device's home was made.
    pub fn backed_up(&self, device: &DeviceId) {
        let mut state = self.state();
        let puts = state.order.len();
        if let Some(log) = state.devices.get(device).cloned() {
            state.backups.insert(device.clone(), (log, puts));
        }
    }

    pub fn has_backup(&self, device: &DeviceId) -> bool {
        self.state().backups.contains_key(device)
    }

    /// A device was enrolled anew on the home that it has: what waited at a relay for its old enrolment is its own again.
    pub fn renewed(&self, device: &DeviceId) {
        let (now, mut state) = (self.journal.now(), self.state());
        state.may_renumber(device);
        state.let_in(device);
        state.enrolled.insert(device.clone(), now);
        if let Some(log) = state.devices.get_mut(device) {
            log.returned(now);
        }
        // It holds a certificate that is not good any more.
        state.backups.remove(device);
    }

    /// A device was shut out: nothing is owed to it until it is enrolled anew, and what it has not sent may come through
    /// or not.
    pub fn revoked(&self, device: &DeviceId) {
        let (now, mut state) = (self.journal.now(), self.state());
        state.shut_out(device, now);
    }

    /// The devices that are shut out.
    pub fn all_revoked(&self) -> Vec<DeviceId> {
        self.state().revoked.keys().cloned().collect()
    }

    /// A device's home is gone.
    pub fn lost(&self, device: &DeviceId) {
        let mut state = self.state();
        state.backups.remove(device);
        state.forget_puts(device, 0);
        // Until it is enrolled anew nothing reaches it.
        state.devices.remove(device);
    }

    /// The last message of a device in a chat that it was told is sent.
    pub fn last_message(&self, device: &DeviceId, chat: &ChatId) -> Option<Seq> {
        let state = self.state();
        let own = state.puts.values().filter(|put| put.device == *device && put.chat == *chat);
        own.filter(|put| put.what.written().is_some())
            .filter_map(|put| if let Fate::Sent(seq) = put.fate { Some(seq) } else { None })
            .max()
    }

    /// What a device reads of a chat's past.
    pub fn history(&self, device: &DeviceId, chat: &ChatId, entries: &[HistoryEntry]) {
        let mut faults = Vec::new();
        let mut state = self.state();
        for pair in entries.windows(2).filter(|pair| pair[0].seq >= pair[1].seq) {
            faults.push(format!("order: {device} reads {chat} #{} before #{}", pair[0].seq, pair[1].seq));
        }
        let is_doubtful = state.is_doubtful(device, chat);
        for entry in entries.iter().filter(|_| !is_doubtful) {
            match Fact::of_history(entry) {
                Some(fact) => faults.extend(state.fact(chat, entry.seq, fact, device).err()),
                None => drop(state.blank.insert((chat.clone(), entry.seq.get()))),
            }
        }
        self.fault(state, faults);
    }

    /// A device's home is that of its backup again.
    pub fn restored(&self, device: &DeviceId) {
        let (now, mut state) = (self.journal.now(), self.state());
        if let Some((mut log, puts)) = state.backups.get(device).cloned() {
            log.returned(now);
            state.devices.insert(device.clone(), log);
            state.forget_puts(device, puts);
            state.may_renumber(device);
        }
    }

    /// A client took something to send.
    pub fn put(&self, device: &DeviceId, chat: &ChatId, id: MessageId, what: What) {
        let at = self.journal.now();
        self.journal.note(&format!("{device} puts {what:?} into {chat}"));
        let mut state = self.state();
        let (device, chat) = (device.clone(), chat.clone());
        let may_renumber = state.devices.get(&device).is_some_and(|log| log.may_renumber);
        let told = MessageState::Pending;
        let fate = if state.revoked.contains_key(&device) { Fate::ShutOut } else { Fate::Open };
        let put =
            Put { device: device.clone(), chat, what, at, fate, told, may_renumber, is_kept: true, loss: Loss::None };
        state.puts.insert(id, put);
        state.order.push(id);
        state.open.entry(device).or_default().push(id);
    }

    /// What a device put in that it waits for.
    pub fn open_puts(&self, device: &DeviceId) -> Vec<MessageId> {
        let mut state = self.state();
        let State { open, puts, .. } = &mut *state;
        let Some(open) = open.get_mut(device) else { return Vec::new() };
        open.retain(|put| puts.get(put).is_some_and(|put| matches!(put.fate, Fate::Open | Fate::ShutOut)));
        open.iter().filter(|put| puts.get(put).is_some_and(|put| put.loss != Loss::OnHold)).copied().collect()
    }

    /// What a client says of something that was put in.
    pub fn sent(&self, device: &DeviceId, id: MessageId, told: MessageState, seq: Option<Seq>) {
        let mut state = self.state();
        let is_out = state.revoked.contains_key(device);
        let Some(put) = state.puts.get_mut(&id) else { return };
        // Back at its device, where it was numbered anew: another message had its number.
        let renumbered = (told, put.told) == (MessageState::Pending, MessageState::Queued) && put.may_renumber;
        let back = told < put.told && !renumbered;
        let before = std::mem::replace(&mut put.told, told);
        let (chat, what) = (put.chat.clone(), put.what.clone());
        // Shut out, it does not hear that what it sent was lost.
        let is_past = is_out && put.loss != Loss::None;
        let mut faults = Vec::new();
        if back {
            faults.push(format!("states: {device} was told {before:?} of {what:?}, and then {told:?}"));
        }
        if let Some(seq) = seq.filter(|_| told >= MessageState::Sent) {
            put.fate = if is_past { Fate::Unsure } else { Fate::Sent(seq) };
            if !is_past && !state.is_doubtful(device, &chat) {
                faults.extend(state.fact(&chat, seq, Fact { from: device.clone(), what: what.clone() }, device).err());
            }
        }
        drop(state);
        if told != before {
            self.journal.note(&format!("{device} is told {told:?} of {what:?}, {seq:?}"));
        }
        self.all_broken(faults);
    }

    /// A client says that something was refused.
    pub fn refused(&self, device: &DeviceId, id: MessageId, why: &str) {
        let mut state = self.state();
        let Some(put) = state.puts.get_mut(&id) else { return };
        put.fate = Fate::Refused;
        let what = put.what.clone();
        drop(state);
        self.journal.note(&format!("{device}: {what:?} is refused: {why}"));
    }

    /// An app is told an event.
    pub fn told(&self, device: &DeviceId, next: &Next) {
        let Some(id) = next.id else { return };
        self.journal.note(&format!("{device} is told #{id}: {:?}", next.event));
        let mut faults = Vec::new();
        let mut state = self.state();
        state.told += 1;
        let Some(log) = state.devices.get_mut(device) else { return };
        if id <= log.acknowledged {
            faults.push(format!("doubled: {device} is told event {id} again, which it acknowledged"));
        }
        if let Some(before) = log.open.insert(id, next.event.clone()) {
            // After a crash it is told again what it did not acknowledge.
            if before != next.event {
                faults.push(format!("events: {device} is told {:?} for {before:?}", next.event));
            }
            return self.fault(state, faults);
        }
        if let Event::MessageReceived { message, .. } = &next.event
            && let Some(put) = state.puts.get(&message.id).map(|put| put.at)
        {
            let (from, to, told) = (message.from.to_string(), device.to_string(), self.journal.now());
            self.journal.delivered(Delivery { from, to, put, told });
        }
        let Some(log) = state.devices.get_mut(device) else { return };
        match &next.event {
            Event::ReceiptUpdated { chat, .. } if log.doubts(chat) || log.doubts_home(device) => {}
            Event::ReceiptUpdated { chat, receipt } => {
                let view = log.chats.entry(chat.clone()).or_default();
                let (delivered, read) = (number(receipt.delivered), number(receipt.read));
                if delivered < view.delivered || read < view.read {
                    faults.push(format!(
                        "receipts: {device}, {chat}: from {}/{} to {delivered}/{read}",
                        view.delivered, view.read
                    ));
                }
                view.delivered = view.delivered.max(delivered);
                view.read = view.read.max(read);
            }
            Event::HistoryGap { chat, range } => {
                let view = log.chats.entry(chat.clone()).or_default();
                view.gaps.push((range.from.get(), range.to.get()));
            }
            event => {
                if let Some((chat, seq, fact)) = entry(event) {
                    if !log.told.insert(key(chat, &fact)) && fact.what.written().is_some() {
                        faults.push(format!("doubled: {device} is told {:?} of {chat} twice", fact.what));
                    }
                    if fact.from == *device {
                        faults.push(format!("doubled: {device} is told its own {fact:?}"));
                    }
                    if log.doubts(chat) {
                        log.doubtful.push((chat.clone(), seq, fact));
                    } else {
                        let taken = log.chats.entry(chat.clone()).or_default().take(seq.get());
                        let taken = taken.map_err(|fault| format!("{fault}, {device} in {chat}: {fact:?}"));
                        faults.extend(taken.and_then(|()| state.fact(chat, seq, fact, device)).err());
                    }
                }
            }
        }
        self.fault(state, faults);
    }

    fn fault(&self, state: MutexGuard<'_, State>, faults: Vec<String>) {
        drop(state);
        self.all_broken(faults);
    }

    /// An app has acknowledged an event.
    pub fn acknowledged(&self, device: &DeviceId, id: i64) {
        if let Some(log) = self.state().devices.get_mut(device) {
            log.acknowledged = log.acknowledged.max(id);
            log.open = log.open.split_off(&(id + 1));
        }
    }

    /// What devices wait for to be sent, and how much is on its way to some.
    pub fn waiting(&self) -> (usize, usize) {
        let unsettled = self.state().unsettled();
        let unsent = unsettled.iter().filter(|what| what.contains(" waits for ")).count();
        (unsent, unsettled.len() - unsent)
    }

    /// Events that apps were told.
    pub fn count(&self) -> u64 {
        self.state().told
    }

    /// What is still to come: empty once everything has reached everyone.
    pub fn unsettled(&self) -> Vec<String> {
        self.state().unsettled()
    }

    /// Files in chats, each with a device that must be able to have it, by their captions.
    pub fn files(&self) -> Vec<(DeviceId, ChatId, Seq, String)> {
        self.state().files()
    }

    /// Judges what can be judged only when nothing is under way any more.
    pub fn settle(&self) {
        let faults = self.state().settled();
        self.all_broken(faults);
    }

    /// # Errors
    /// The promises that were broken.
    pub fn verdict(&self) -> Result<()> {
        let state = self.state();
        if state.broken.is_empty() {
            return Ok(());
        }
        bail!("{}", state.broken.join("\n"))
    }
}
