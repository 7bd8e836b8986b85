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
//! [`Checker::verdict`] is safety, at any time; [`Checker::unsettled`] is what is still to come, which ends once faults
//! have ended.

use crate::report::{Delivery, Recorder};
use crate::world::World;
use anyhow::{Result, bail};
use godwit_client::client::HistoryBody;
use godwit_client::{
    Change, ChatId, Content, DeviceId, Event, HistoryEntry, Member, MessageId, MessageState, Next, Seq, UserId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Broken promises that are kept; the first is what matters.
const MOST: usize = 20;

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Message(String),
    Created(Vec<Member>),
    Updated(Change),
    Redacted(Seq),
}

/// An entry of a chat's log, as somebody was told of it.
#[derive(Clone, Debug)]
struct Fact {
    from: DeviceId,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Its device keeps it.
    Open,
    Sent(Seq),
    Refused,
    /// Its device lost it, or came back from before it: it may be in the log or not.
    Unsure,
}

/// What an app gave to its client.
#[derive(Clone, Debug)]
struct Put {
    device: DeviceId,
    chat: ChatId,
    what: What,
    at: Duration,
    fate: Fate,
    told: MessageState,
    /// Its device came back from a backup, or was enrolled anew, before it was sent.
    may_renumber: bool,
}

/// What a device knows of a chat.
#[derive(Clone, Debug, Default)]
struct View {
    last: u64,
    seen: BTreeSet<u64>,
    gaps: Vec<(u64, u64)>,
    delivered: u64,
    read: u64,
}

#[derive(Clone, Debug)]
struct DeviceLog {
    /// When it was enrolled on a home without a past.
    since: Duration,
    /// It came back from a backup, or was enrolled anew.
    may_renumber: bool,
    /// Events that were told, until they are acknowledged.
    open: BTreeMap<i64, Event>,
    acknowledged: i64,
    chats: BTreeMap<ChatId, View>,
}

#[derive(Debug, Default)]
struct State {
    broken: Vec<String>,
    chats: BTreeMap<ChatId, BTreeMap<u64, Fact>>,
    puts: BTreeMap<MessageId, Put>,
    /// Puts in the order in which they were made.
    order: Vec<MessageId>,
    /// Those that each device waits for.
    open: BTreeMap<DeviceId, Vec<MessageId>>,
    devices: BTreeMap<DeviceId, DeviceLog>,
    backups: BTreeMap<DeviceId, (DeviceLog, usize)>,
    told: u64,
}

/// What was promised and what was kept. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Checker {
    world: World,
    recorder: Option<Recorder>,
    state: Arc<Mutex<State>>,
}

fn number(seq: Option<Seq>) -> u64 {
    seq.map_or(0, Seq::get)
}

/// The chat, seq and entry of an event that has one.
fn entry(event: &Event) -> Option<(&ChatId, Seq, Fact)> {
    let (chat, seq, from, what) = match event {
        Event::MessageReceived { chat, message } => {
            let text = message.content.as_text().unwrap_or("?").to_owned();
            (chat, message.seq, &message.from, What::Message(text))
        }
        Event::ChatCreated { chat, origin, participants, .. } => {
            (chat, origin.seq, &origin.from, What::Created(participants.clone()))
        }
        Event::ChatUpdated { chat, origin, change } => (chat, origin.seq, &origin.from, What::Updated(change.clone())),
        Event::Redacted { chat, origin, of } => (chat, origin.seq, &origin.from, What::Redacted(*of)),
        Event::ReceiptUpdated { .. } | Event::HistoryGap { .. } | Event::ConnectionChanged(_) => return None,
    };
    Some((chat, seq, Fact { from: from.clone(), what }))
}

/// From where to where each user was in a chat, as its log says; open ends reach beyond it.
#[derive(Debug, Default)]
struct Membership(BTreeMap<UserId, Vec<(u64, u64)>>);

impl Membership {
    fn of(log: &BTreeMap<u64, Fact>) -> Self {
        let mut all = Self::default();
        for (seq, fact) in log {
            match &fact.what {
                What::Created(members) => members.iter().for_each(|member| all.enter(&member.user, *seq)),
                What::Updated(Change::Add(members)) => members.iter().for_each(|member| all.enter(&member.user, *seq)),
                What::Updated(Change::Remove(user)) => all.leave(user, *seq),
                What::Updated(Change::Leave) => all.leave(&fact.from.user(), *seq),
                _ => {}
            }
        }
        all
    }

    fn enter(&mut self, user: &UserId, seq: u64) {
        let times = self.0.entry(user.clone()).or_default();
        if times.last().is_none_or(|(_, to)| *to != u64::MAX) {
            times.push((seq, u64::MAX));
        }
    }

    fn leave(&mut self, user: &UserId, seq: u64) {
        if let Some((_, to)) = self.0.get_mut(user).and_then(|times| times.last_mut()).filter(|(_, to)| *to == u64::MAX)
        {
            *to = seq;
        }
    }

    /// Whether the entry at `seq` is for the user.
    fn sees(&self, user: &UserId, seq: u64) -> bool {
        self.0.get(user).is_some_and(|times| times.iter().any(|(from, to)| (*from..=*to).contains(&seq)))
    }
}

impl State {
    fn fact(&mut self, chat: &ChatId, seq: Seq, fact: Fact, who: &DeviceId) -> Result<(), String> {
        let log = self.chats.entry(chat.clone()).or_default();
        let known = log.entry(seq.get()).or_insert_with(|| fact.clone());
        if known.what == fact.what && known.from == fact.from {
            return Ok(());
        }
        Err(format!("one order: {chat} #{seq} is {known:?}, and {who} was told {fact:?}"))
    }

    fn unsettled(&self) -> Vec<String> {
        let mut all = Vec::new();
        for put in self.puts.values().filter(|put| put.fate == Fate::Open) {
            all.push(format!("liveness: {} waits for {:?} in {} to be sent", put.device, put.what, put.chat));
        }
        for (chat, log) in &self.chats {
            let members = Membership::of(log);
            let erased = erased(log);
            for (device, own) in &self.devices {
                let view = own.chats.get(chat);
                for (seq, fact) in log {
                    let mine = fact.from == *device || !members.sees(&device.user(), *seq) || erased.contains(seq);
                    if mine || view.is_some_and(|view| view.has(*seq)) || !self.owed(own, view, chat, *seq) {
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

    /// What can be said once all is settled.
    fn settled(&self) -> Vec<String> {
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
                if let What::Message(text) = &fact.what
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
                other => {
                    all.push(format!(
                        "lost: {} was told that {:?} is #{seq}, which is {other:?}",
                        put.device, put.what
                    ));
                }
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

fn erased(log: &BTreeMap<u64, Fact>) -> BTreeSet<u64> {
    let of = |fact: &Fact| if let What::Redacted(of) = fact.what { Some(of.get()) } else { None };
    log.values().filter_map(of).collect()
}

impl View {
    fn has(&self, seq: u64) -> bool {
        self.seen.contains(&seq) || self.gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    /// An error says what is broken.
    fn take(&mut self, seq: u64) -> Result<(), String> {
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

impl Checker {
    pub(crate) fn new(world: World, recorder: Option<Recorder>) -> Self {
        Self { world, recorder, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a broken promise.
    pub fn broken(&self, what: String) {
        self.world.note(&format!("BROKEN: {what}"));
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
        let since = self.world.now();
        let log =
            DeviceLog { since, may_renumber: false, open: BTreeMap::new(), acknowledged: 0, chats: BTreeMap::new() };
        self.state().devices.insert(device.clone(), log);
    }

    /// A copy of a device's home was made.
    pub fn backed_up(&self, device: &DeviceId) {
        let mut state = self.state();
        let puts = state.order.len();
        if let Some(log) = state.devices.get(device).cloned() {
            state.backups.insert(device.clone(), (log, puts));
        }
    }

    pub(crate) fn has_backup(&self, device: &DeviceId) -> bool {
        self.state().backups.contains_key(device)
    }

    /// A device was enrolled anew on the home that it has: what waited at a relay for its old enrolment is its own again.
    pub fn renewed(&self, device: &DeviceId) {
        self.state().may_renumber(device);
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
    pub(crate) fn last_message(&self, device: &DeviceId, chat: &ChatId) -> Option<Seq> {
        let state = self.state();
        let own = state.puts.values().filter(|put| put.device == *device && put.chat == *chat);
        own.filter(|put| matches!(put.what, What::Message(_)))
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
        for entry in entries {
            let what = match &entry.what {
                HistoryBody::Message(content) => text(content),
                HistoryBody::Created { participants, .. } => What::Created(participants.clone()),
                HistoryBody::Updated(change) => What::Updated(change.clone()),
                HistoryBody::Redaction { of } => What::Redacted(*of),
                HistoryBody::Redacted | HistoryBody::Unknown => continue,
            };
            faults.extend(state.fact(chat, entry.seq, Fact { from: entry.from.clone(), what }, device).err());
        }
        self.fault(state, faults);
    }

    /// A device's home is that of its backup again.
    pub fn restored(&self, device: &DeviceId) {
        let mut state = self.state();
        if let Some((log, puts)) = state.backups.get(device).cloned() {
            state.devices.insert(device.clone(), log);
            state.forget_puts(device, puts);
            state.may_renumber(device);
        }
    }

    /// A client took something to send.
    pub fn put(&self, device: &DeviceId, chat: &ChatId, id: MessageId, what: What) {
        let at = self.world.now();
        self.world.note(&format!("{device} puts {what:?} into {chat}"));
        let mut state = self.state();
        let (device, chat) = (device.clone(), chat.clone());
        let may_renumber = state.devices.get(&device).is_some_and(|log| log.may_renumber);
        let told = MessageState::Pending;
        let put = Put { device: device.clone(), chat, what, at, fate: Fate::Open, told, may_renumber };
        state.puts.insert(id, put);
        state.order.push(id);
        state.open.entry(device).or_default().push(id);
    }

    /// What a device put in that it waits for.
    pub fn open_puts(&self, device: &DeviceId) -> Vec<MessageId> {
        let mut state = self.state();
        let State { open, puts, .. } = &mut *state;
        let Some(open) = open.get_mut(device) else { return Vec::new() };
        open.retain(|put| puts.get(put).is_some_and(|put| put.fate == Fate::Open));
        open.clone()
    }

    /// What a client says of something that was put in.
    pub fn sent(&self, device: &DeviceId, id: MessageId, told: MessageState, seq: Option<Seq>) {
        let mut state = self.state();
        let Some(put) = state.puts.get_mut(&id) else { return };
        // Back at its device, where it was numbered anew: another message had its number.
        let renumbered = (told, put.told) == (MessageState::Pending, MessageState::Queued) && put.may_renumber;
        let back = told < put.told && !renumbered;
        let before = std::mem::replace(&mut put.told, told);
        let (chat, what) = (put.chat.clone(), put.what.clone());
        let mut faults = Vec::new();
        if back {
            faults.push(format!("states: {device} was told {before:?} of {what:?}, and then {told:?}"));
        }
        if let Some(seq) = seq.filter(|_| told >= MessageState::Sent) {
            put.fate = Fate::Sent(seq);
            faults.extend(state.fact(&chat, seq, Fact { from: device.clone(), what: what.clone() }, device).err());
        }
        drop(state);
        if told != before {
            self.world.note(&format!("{device} is told {told:?} of {what:?}, {seq:?}"));
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
        self.world.note(&format!("{device}: {what:?} is refused: {why}"));
    }

    /// An app is told an event.
    pub fn told(&self, device: &DeviceId, next: &Next) {
        let Some(id) = next.id else { return };
        self.world.note(&format!("{device} is told #{id}: {:?}", next.event));
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
        if let (Some(recorder), Event::MessageReceived { message, .. }) = (&self.recorder, &next.event)
            && let Some(put) = state.puts.get(&message.id).map(|put| put.at)
        {
            let (from, to, told) = (message.from.to_string(), device.to_string(), self.world.now());
            recorder.delivered(Delivery { from, to, put, told });
        }
        let Some(log) = state.devices.get_mut(device) else { return };
        match &next.event {
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
                    let view = log.chats.entry(chat.clone()).or_default();
                    faults.extend(
                        view.take(seq.get()).map_err(|fault| format!("{fault}, {device} in {chat}: {fact:?}")).err(),
                    );
                    if fact.from == *device {
                        faults.push(format!("doubled: {device} is told its own {fact:?}"));
                    }
                    faults.extend(state.fact(chat, seq, fact, device).err());
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
    pub(crate) fn waiting(&self) -> (usize, usize) {
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

impl State {
    fn may_renumber(&mut self, device: &DeviceId) {
        if let Some(log) = self.devices.get_mut(device) {
            log.may_renumber = true;
        }
        for put in self.puts.values_mut().filter(|put| put.device == *device) {
            put.may_renumber = true;
        }
    }

    /// What a device put in from so many puts on is not in its home any more.
    fn forget_puts(&mut self, device: &DeviceId, from: usize) {
        for id in &self.order[from..] {
            if let Some(put) = self.puts.get_mut(id).filter(|put| put.device == *device)
                && put.fate == Fate::Open
            {
                put.fate = Fate::Unsure;
            }
        }
    }
}

/// The text of a content, as the checker compares it.
pub fn text(content: &Content) -> What {
    What::Message(content.as_text().unwrap_or("?").to_owned())
}
