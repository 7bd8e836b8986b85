//! Stores that come back from a backup.
//!
//! What was told of their chats since the copy was made may be of a past that is no more, and devices may speak of it until
//! they have compared what they have. It must come again all the same, from the devices that have it, and no app may be told
//! of it twice.

use super::Checker;
use super::log::{Fact, key};
use super::state::{Fate, Loss, State};
use godwit_client::{ChatId, DeviceId, HistoryEntry, MessageState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A chat's whole past, as a device reads it.
pub type Past = (DeviceId, ChatId, Vec<HistoryEntry>);

/// How far chats go at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    at: Duration,
    chats: BTreeMap<ChatId, u64>,
}

/// When a device was enrolled that a restored store does not know: it gets what is new once it has compared.
const NOT_YET: Duration = Duration::MAX;

impl Checker {
    /// How far the chats of `region` are known to go, which a copy of its store that is made from now on has.
    pub fn heads(&self, region: &str) -> Heads {
        let state = self.state();
        let logs = state.chats.iter().filter(|(chat, _)| chat.home().as_str() == region);
        let chats = logs.map(|(chat, log)| (chat.clone(), log.last_key_value().map_or(0, |(seq, _)| *seq))).collect();
        Heads { at: self.journal.now(), chats }
    }

    /// The devices of `region` that were enrolled since a copy had these, and those that were shut out: a restored store
    /// knows nothing of either.
    pub fn changed_since(&self, region: &str, heads: &Heads) -> (Vec<DeviceId>, Vec<DeviceId>) {
        let state = self.state();
        let is_here = |device: &&DeviceId| device.home().as_str() == region;
        let enrolled = state.devices.iter().filter(|(device, log)| {
            let anew = state.enrolled.get(*device).copied().unwrap_or_default();
            log.since.max(anew) > heads.at && !state.revoked.contains_key(*device)
        });
        let revoked = state.revoked.iter().filter(|(_, at)| **at > heads.at);
        let enrolled = enrolled.map(|(device, _)| device).filter(is_here).cloned().collect();
        (enrolled, revoked.map(|(device, _)| device).filter(is_here).cloned().collect())
    }

    /// The store of `region` is the copy again that had these.
    pub fn store_restored(&self, region: &str, Heads { at, chats: heads }: &Heads) {
        let mut state = self.state();
        let is_here = |chat: &ChatId| chat.home().as_str() == region;
        let kept = |chat: &ChatId| heads.get(chat).copied().unwrap_or(0);
        for (chat, log) in state.chats.iter_mut().filter(|(chat, _)| is_here(chat)) {
            log.retain(|seq, _| *seq <= kept(chat));
        }
        state.blank.retain(|(chat, seq)| !is_here(chat) || *seq <= kept(chat));
        state.doubts.insert(region.to_owned());
        let State { devices, backups, .. } = &mut *state;
        let logs = devices.iter_mut().chain(backups.iter_mut().map(|(device, (log, _))| (device, log)));
        for (device, log) in logs {
            log.doubts.insert(region.to_owned());
            if log.since > *at {
                log.since = NOT_YET;
            }
            for (chat, view) in &mut log.chats {
                if is_here(chat) {
                    view.cut_back(kept(chat));
                }
                if is_here(chat) || device.home().as_str() == region {
                    (view.delivered, view.read) = (0, 0);
                }
            }
        }
        let mut again = Vec::new();
        let State { puts, enrolled, revoked, .. } = &mut *state;
        for (id, put) in puts.iter_mut().filter(|(_, put)| is_here(&put.chat)) {
            put.may_renumber = true;
            let was_open = matches!(put.fate, Fate::Open | Fate::ShutOut);
            let was_lost = match put.fate {
                Fate::Sent(seq) => seq.get() > kept(&put.chat),
                // Its device may have been told what nobody saw.
                Fate::Open | Fate::ShutOut => true,
                Fate::Refused | Fate::Unsure => false,
            };
            if !was_lost {
                continue;
            }
            // Under an earlier enrolment; of which a home that only has a copy cannot tell whether it was lost.
            let is_old = enrolled.get(&put.device).is_some_and(|enrolled| put.at < *enrolled);
            if !was_open && (!put.is_kept || is_old && put.device.home().as_str() != region) {
                put.fate = Fate::Unsure;
                continue;
            }
            (put.told, put.loss) = (MessageState::Pending, Loss::OnHold);
            put.fate = if revoked.contains_key(&put.device) { Fate::ShutOut } else { Fate::Open };
            if !was_open {
                again.push((put.device.clone(), *id));
            }
        }
        for (device, id) in again {
            state.open.entry(device).or_default().push(id);
        }
    }

    /// Chats of which some may speak as they were before a restore.
    pub fn doubtful_chats(&self) -> Vec<ChatId> {
        let state = self.state();
        let all: BTreeSet<&ChatId> = state.puts.values().map(|put| &put.chat).collect();
        all.into_iter().filter(|chat| state.doubts.contains(chat.home().as_str())).cloned().collect()
    }

    /// All devices have compared what they have with restored stores, and say what doubtful chats are.
    pub fn compared(&self, pasts: &[Past]) {
        let (now, mut state) = (self.journal.now(), self.state());
        state.doubts.clear();
        for put in state.puts.values_mut().filter(|put| put.loss == Loss::OnHold) {
            put.loss = Loss::Again;
        }
        let State { devices, backups, .. } = &mut *state;
        let logs = devices.values_mut().chain(backups.values_mut().map(|(log, _)| log));
        let mut told = Vec::new();
        for log in logs {
            log.doubts.clear();
            if log.since == NOT_YET {
                log.since = now;
            }
            told.push(std::mem::take(&mut log.doubtful));
        }
        drop(state);
        for (device, chat, entries) in pasts {
            self.history(device, chat, entries);
        }
        let mut faults = Vec::new();
        let mut state = self.state();
        let State { devices, backups, chats, .. } = &mut *state;
        let logs = devices.iter_mut().chain(backups.iter_mut().map(|(device, (log, _))| (device, log)));
        for ((device, log), told) in logs.zip(told) {
            // Of what was told meanwhile that counts which is so still.
            let is_so =
                |chat: &ChatId, seq: u64, fact: &Fact| chats.get(chat).and_then(|log| log.get(&seq)) == Some(fact);
            for (chat, seq, fact) in told.iter().filter(|(chat, seq, fact)| is_so(chat, seq.get(), fact)) {
                let taken = log.chats.entry(chat.clone()).or_default().take(seq.get());
                faults.extend(taken.map_err(|fault| format!("{fault}, {device}: {}", key(chat, fact))).err());
            }
        }
        self.fault(state, faults);
    }
}
