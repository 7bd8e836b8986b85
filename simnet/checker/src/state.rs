//! Everything the checker knows, and what it makes of it.

use super::log::{Fact, Membership, What, erased, key};
use godwit_client::{ChatId, DeviceId, Event, MessageId, MessageState, Seq};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its device keeps it.
    Open,
    /// Its device keeps it, and is shut out.
    ShutOut,
    Sent(Seq),
    Refused,
    /// Its device lost it, or came back from before it: it may be in the log or not.
    Unsure,
}

/// What an app gave to its client.
#[derive(Clone, Debug)]
pub(super) struct Put {
    pub(super) device: DeviceId,
    pub(super) chat: ChatId,
    pub(super) what: What,
    pub(super) at: Duration,
    pub(super) fate: Fate,
    pub(super) told: MessageState,
    /// Its device came back from a backup, or was enrolled anew, before it was sent.
    pub(super) may_renumber: bool,
    /// Its device has it still, or would have.
    pub(super) is_kept: bool,
    pub(super) loss: Loss,
}

/// Whether a store that had it, or may have, was restored to before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    None,
    /// What its device says counts once that has compared.
    OnHold,
    /// It may stand behind what its device sent later.
    Again,
}

/// What a device knows of a chat.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) last: u64,
    pub(super) seen: BTreeSet<u64>,
    pub(super) gaps: Vec<(u64, u64)>,
    pub(super) delivered: u64,
    pub(super) read: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct DeviceLog {
    /// When it was enrolled on a home without a past.
    pub(super) since: Duration,
    /// It has, or had, the list of its chats.
    pub(super) listed: bool,
    /// It came back from a backup, or was enrolled anew.
    pub(super) may_renumber: bool,
    /// Events that were told, until they are acknowledged.
    pub(super) open: BTreeMap<i64, Event>,
    pub(super) acknowledged: i64,
    pub(super) chats: BTreeMap<ChatId, View>,
    /// Everything that the app was told, wherever it stood.
    pub(super) told: BTreeSet<String>,
    /// Regions whose store was restored since this device compared what it has.
    pub(super) doubts: BTreeSet<String>,
    /// What it was told meanwhile of chats of theirs: some of it may be of the past that is no more.
    pub(super) doubtful: Vec<(ChatId, Seq, Fact)>,
}

impl DeviceLog {
    /// It came back from a backup, or was enrolled anew. If it never had the list of its chats, it begins them where they
    /// are, as a new device does.
    pub(super) fn returned(&mut self, now: Duration) {
        if !self.listed {
            self.since = now;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) broken: Vec<String>,
    pub(super) chats: BTreeMap<ChatId, BTreeMap<u64, Fact>>,
    pub(super) puts: BTreeMap<MessageId, Put>,
    /// Puts in the order in which they were made.
    pub(super) order: Vec<MessageId>,
    /// Those that each device waits for.
    pub(super) open: BTreeMap<DeviceId, Vec<MessageId>>,
    pub(super) devices: BTreeMap<DeviceId, DeviceLog>,
    /// When each was enrolled anew, on the home that it had.
    pub(super) enrolled: BTreeMap<DeviceId, Duration>,
    pub(super) backups: BTreeMap<DeviceId, (DeviceLog, usize)>,
    /// Those that were shut out, and when.
    pub(super) revoked: BTreeMap<DeviceId, Duration>,
    /// Regions whose store was restored since devices compared what they have.
    pub(super) doubts: BTreeSet<String>,
    /// Entries of which only their place is left.
    pub(super) blank: BTreeSet<(ChatId, u64)>,
    pub(super) told: u64,
}

impl State {
    pub(super) fn fact(&mut self, chat: &ChatId, seq: Seq, fact: Fact, who: &DeviceId) -> Result<(), String> {
        let log = self.chats.entry(chat.clone()).or_default();
        let known = log.entry(seq.get()).or_insert_with(|| fact.clone());
        if *known == fact {
            return Ok(());
        }
        Err(format!("one order: {chat} #{seq} is {known:?}, and {who} was told {fact:?}"))
    }

    pub(super) fn unsettled(&self) -> Vec<String> {
        let mut all = Vec::new();
        for put in self.puts.values().filter(|put| put.fate == Fate::Open) {
            all.push(format!("liveness: {} waits for {:?} in {} to be sent", put.device, put.what, put.chat));
        }
        for (chat, log) in &self.chats {
            let members = Membership::of(log);
            let erased = erased(log);
            for (device, own) in self.devices.iter().filter(|(device, _)| !self.revoked.contains_key(device)) {
                let view = own.chats.get(chat);
                for (seq, fact) in log {
                    let mine = fact.from == *device || !members.sees(&device.user(), *seq) || erased.contains(seq);
                    if mine
                        || view.is_some_and(|view| view.has(*seq))
                        || own.told.contains(&key(chat, fact))
                        || !self.owed(own, view, chat, *seq)
                    {
                        continue;
                    }
                    all.push(format!("liveness: {device} has not got {chat} #{seq}, {fact:?}"));
                }
            }
        }
        all
    }

    /// Whether a device must get an entry: of a chat that it began before, or that was put in after it was enrolled.
    fn owed(&self, device: &DeviceLog, view: Option<&View>, chat: &ChatId, seq: u64) -> bool {
        let begun = view.and_then(|view| view.seen.first()).is_some_and(|first| seq > *first);
        let is_it = |put: &&Put| put.chat == *chat && matches!(put.fate, Fate::Sent(sent) if sent.get() == seq);
        begun || self.puts.values().find(is_it).is_some_and(|put| put.at > device.since)
    }

    pub(super) fn files(&self) -> Vec<(DeviceId, ChatId, Seq, String)> {
        let mut all = Vec::new();
        for (chat, log) in &self.chats {
            let (members, erased) = (Membership::of(log), erased(log));
            for (seq, fact) in log.iter().filter(|(seq, _)| !erased.contains(seq)) {
                let (What::File(caption), Ok(at)) = (&fact.what, Seq::new(*seq)) else { continue };
                for device in self.devices.keys().filter(|device| !self.revoked.contains_key(device)) {
                    if members.sees(&device.user(), *seq) && members.is_in(&device.user()) {
                        all.push((device.clone(), chat.clone(), at, caption.clone()));
                    }
                }
            }
        }
        all
    }

    /// What can be said once all is settled.
    pub(super) fn settled(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (chat, log) in &self.chats {
            let members = Membership::of(log);
            for (device, own) in &self.devices {
                let Some(view) = own.chats.get(chat) else { continue };
                for seq in view.seen.iter().filter(|seq| !members.sees(&device.user(), **seq)) {
                    all.push(format!("rights: {device} was told {chat} #{seq}, when its user was not in it"));
                }
                let head = log.last_key_value().map_or(0, |(seq, _)| *seq);
                if view.delivered.max(view.read) > head {
                    let View { delivered, read, .. } = view;
                    all.push(format!("receipts: {device}, {chat}: {delivered}/{read}, the log ends at {head}"));
                }
            }
            let mut places: BTreeMap<&str, u64> = BTreeMap::new();
            for (seq, fact) in log {
                if let Some(text) = fact.what.written()
                    && let Some(before) = places.insert(text, *seq)
                {
                    all.push(format!("doubled: {text:?} is {chat} #{before} and #{seq}"));
                }
            }
        }
        let mut last: BTreeMap<(&DeviceId, &ChatId), (Seq, &What)> = BTreeMap::new();
        for put in self.order.iter().filter_map(|id| self.puts.get(id)) {
            let Fate::Sent(seq) = put.fate else { continue };
            match self.chats.get(&put.chat).and_then(|log| log.get(&seq.get())) {
                Some(fact) if fact.from == put.device => {}
                None if self.blank.contains(&(put.chat.clone(), seq.get())) => {}
                other => {
                    all.push(format!(
                        "lost: {} was told that {:?} is #{seq}, which is {other:?}",
                        put.device, put.what
                    ));
                }
            }
            if put.loss != Loss::None || matches!(put.what, What::File(_)) {
                continue;
            }
            if let Some((before, what)) = last.insert((&put.device, &put.chat), (seq, &put.what))
                && before > seq
            {
                all.push(format!(
                    "order: {} sent {:?} after {what:?}, and they are #{seq}, #{before}",
                    put.device, put.what
                ));
            }
        }
        all
    }
}

impl State {
    /// Whether a device may speak of a past that a restore took from the chat.
    pub(super) fn is_doubtful(&self, device: &DeviceId, chat: &ChatId) -> bool {
        self.devices.get(device).is_some_and(|log| log.doubts(chat))
    }
}

impl DeviceLog {
    /// Whether the device may speak of a past that a restore took from the chat.
    pub(super) fn doubts(&self, chat: &ChatId) -> bool {
        self.doubts.contains(chat.home().as_str())
    }

    /// Whether the store of its own region was restored: it may know less of any chat for a while.
    pub(super) fn doubts_home(&self, own: &DeviceId) -> bool {
        self.doubts.contains(own.home().as_str())
    }
}

impl View {
    fn has(&self, seq: u64) -> bool {
        self.seen.contains(&seq) || self.gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    /// What was beyond `kept` is no more.
    pub(super) fn cut_back(&mut self, kept: u64) {
        self.seen.retain(|seq| *seq <= kept);
        self.gaps.retain(|(from, _)| *from <= kept);
        self.last = self.last.min(kept);
    }

    /// An error says what is broken.
    pub(super) fn take(&mut self, seq: u64) -> Result<(), String> {
        if self.seen.contains(&seq) {
            return Err(format!("doubled: #{seq} is told twice"));
        }
        if seq <= self.last {
            return Err(format!("order: #{seq} is told after #{}", self.last));
        }
        self.last = seq;
        self.seen.insert(seq);
        Ok(())
    }
}

impl State {
    pub(super) fn may_renumber(&mut self, device: &DeviceId) {
        if let Some(log) = self.devices.get_mut(device) {
            log.may_renumber = true;
        }
        for put in self.puts.values_mut().filter(|put| put.device == *device) {
            put.may_renumber = true;
        }
    }

    /// A device is shut out, and sends nothing more.
    pub(super) fn shut_out(&mut self, device: &DeviceId, now: Duration) {
        self.revoked.insert(device.clone(), now);
        self.set_fate(device, &Fate::Open, &Fate::ShutOut);
    }

    /// A device was enrolled, and sends what it has.
    pub(super) fn let_in(&mut self, device: &DeviceId) {
        self.revoked.remove(device);
        self.set_fate(device, &Fate::ShutOut, &Fate::Open);
    }

    fn set_fate(&mut self, device: &DeviceId, from: &Fate, to: &Fate) {
        for put in self.puts.values_mut().filter(|put| put.device == *device && put.fate == *from) {
            put.fate = to.clone();
        }
    }

    /// What a device put in from so many puts on is not in its home any more.
    pub(super) fn forget_puts(&mut self, device: &DeviceId, from: usize) {
        for id in &self.order[from..] {
            let Some(put) = self.puts.get_mut(id).filter(|put| put.device == *device) else { continue };
            put.is_kept = false;
            if matches!(put.fate, Fate::Open | Fate::ShutOut) {
                put.fate = Fate::Unsure;
            }
        }
    }
}
