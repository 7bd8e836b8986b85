//! Chats on their way through a commit: their states in memory, and commands applied to them.

use super::blobs;
use super::keys::{self, Key};
use super::tables::{ChatRow, CursorRow, NumberRow, Read, Tables, decode, put};
use super::writer::{Batch, Write};
use super::{Committed, InFlight, StoreError};
use godwit_core::blob::Blob;
use godwit_core::number::Void;
use godwit_core::{
    Applied, Chat, Command, Decided, Decision, Device, Entry, Link, Mark, Outcome, Participant, Projection, Sender,
    View, decide,
};
use godwit_wire::blob::BlobRef;
use godwit_wire::{ChatId, DeviceId, MessageId, Refusal, RegionId, Seq, UnixMillis, UserId};
use redb::ReadableTable;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Marks are saved when they are this many entries behind, so a restart folds at most so many.
pub(super) const MARK_LAG: u64 = 256;
/// Of a device that was enrolled anew, so many of its first requests may be among as many of its latest entries: what was on
/// its way when it was lost.
const FORMER: usize = 1024;

/// A chat in the writer's memory. Changed while a batch runs; dropped if the batch fails.
#[derive(Debug)]
pub(super) struct ChatState {
    pub(super) chat: Chat,
    senders: HashMap<Sender, SenderState>,
    /// Of devices that were enrolled anew lately: where their latest entries stand.
    former: HashMap<DeviceId, HashMap<MessageId, (Seq, UnixMillis)>>,
    /// Every entry up to here has its number saved; 0 before the first.
    marked: u64,
    /// On the dirty list.
    pub(super) dirty: bool,
    /// Of a copy: entries up to here change nothing but its head. 0 where that is none.
    pub(super) base: u64,
    /// The batch that used it last.
    used: u64,
}

impl ChatState {
    fn new(chat: Chat) -> Self {
        let (senders, former) = (HashMap::new(), HashMap::new());
        Self { chat, senders, former, marked: 0, dirty: false, base: 0, used: 0 }
    }

    /// The copy of a chat whose home is another region: its numbers are no business of this one.
    pub(super) fn replica(chat: Chat, base: Option<Seq>) -> Self {
        Self { base: base.map_or(0, Seq::get), ..Self::new(chat) }
    }
}

#[derive(Debug, Default)]
struct SenderState {
    mark: Mark,
    /// Void rows may exist.
    voids: bool,
    /// The id of the mark's last entry, if that is not saved yet.
    unsaved: Option<MessageId>,
}

/// The states of chats in use. A state can be dropped at any time: the store has all of it.
#[derive(Debug)]
pub(super) struct ChatCache {
    region: RegionId,
    states: HashMap<ChatId, ChatState>,
    batch: u64,
}

impl ChatCache {
    pub(super) fn new(region: RegionId) -> Self {
        Self { region, states: HashMap::new(), batch: 0 }
    }

    /// The state of `chat`, if it is in memory.
    pub(super) fn cached(&mut self, chat: &ChatId) -> Option<&mut ChatState> {
        self.states.get_mut(chat)
    }

    pub(super) fn enter(&mut self, state: ChatState) {
        self.states.insert(state.chat.id.clone(), ChatState { used: self.batch, ..state });
    }

    pub(super) fn forget(&mut self, chat: &ChatId) {
        self.states.remove(chat);
    }

    pub(super) fn clear(&mut self) {
        self.states.clear();
    }

    /// Ends a batch. Drops those that were not used for longest once there are more than `most`.
    pub(super) fn end_batch(&mut self, most: usize) {
        self.batch += 1;
        if self.states.len() <= most + most / 4 {
            return;
        }
        let mut used: Vec<u64> = self.states.values().map(|state| state.used).collect();
        let surplus = used.len() - most;
        let (_, &mut oldest_kept, _) = used.select_nth_unstable(surplus);
        self.states.retain(|_, state| state.used >= oldest_kept);
    }

    /// The state of `chat`, read if need be; none if there is no such chat.
    pub(super) fn get(&mut self, tables: &Tables<'_>, chat: &ChatId) -> Result<Option<&mut ChatState>, StoreError> {
        if !self.states.contains_key(chat) {
            match load(tables, chat, &self.region)? {
                Some(state) => self.states.insert(chat.clone(), state),
                None => return Ok(None),
            };
        }
        let mut state = self.states.get_mut(chat);
        if let Some(state) = &mut state {
            state.used = self.batch;
        }
        Ok(state)
    }
}

pub(super) fn last_entry(
    log: &impl ReadableTable<&'static [u8], &'static [u8]>,
    chat: &ChatId,
) -> Result<Option<Entry>, StoreError> {
    let (start, end) = Key::new().chat(chat).prefix();
    let last = log.range::<&[u8]>(start.as_slice()..end.as_slice())?.next_back().transpose()?;
    last.map(|(_, value)| decode(value.value())).transpose()
}

pub(super) fn participants(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    chat: &ChatId,
) -> Result<BTreeMap<UserId, Participant>, StoreError> {
    let (start, end) = Key::new().chat(chat).prefix();
    let mut rows = BTreeMap::new();
    for row in table.range::<&[u8]>(start.as_slice()..end.as_slice())? {
        let (key, value) = row?;
        rows.insert(keys::Parts(&key.value()[start.len()..]).user()?, decode(value.value())?);
    }
    Ok(rows)
}

fn load(tables: &Tables<'_>, id: &ChatId, region: &RegionId) -> Result<Option<ChatState>, StoreError> {
    let key = Key::new().chat(id).bytes();
    let Some(row) = Read::record::<ChatRow>(&tables.chats, &key)? else { return Ok(None) };
    let last = last_entry(&tables.log, id)?.ok_or(StoreError::Inconsistent("a chat without a log"))?;
    let rows = participants(&tables.participants, id)?;
    let cursor: CursorRow = tables.cursors.record(&key)?.unwrap_or_default();
    let chat = Chat::from_records(id.clone(), row.kind, row.title, row.created_at, rows, &last);
    let dirty = tables.dirty.record::<()>(&key)?.is_some();
    if id.home() != region {
        return Ok(Some(ChatState { dirty, ..ChatState::replica(chat, tables.bases.record(&key)?) }));
    }
    let marked = cursor.marked.map_or(0, Seq::get);
    let mut state = ChatState { marked, dirty, ..ChatState::new(chat) };
    if last.seq.get() > marked {
        let first = Seq::new(marked + 1).map_err(|_| StoreError::BadKey)?;
        let (start, end) = (keys::log(id, first), keys::log(id, last.seq));
        for row in tables.log.range::<&[u8]>(start.as_slice()..=end.as_slice())? {
            let entry: Entry = decode(row?.1.value())?;
            let sender = Sender { device: entry.from.clone(), enrolment: entry.enrolment };
            if !state.senders.contains_key(&sender) {
                let saved = load_sender(tables, id, &sender)?;
                state.senders.insert(sender.clone(), saved);
            }
            if let Some(known) = state.senders.get_mut(&sender) {
                known.mark.last = Some(Link { n: entry.n, seq: entry.seq });
                if entry.n >= known.mark.n {
                    known.mark.n = entry.n;
                    known.mark.id = Some(entry.id);
                }
                known.unsaved = Some(entry.id);
            }
        }
    }
    Ok(Some(state))
}

fn load_sender(tables: &Tables<'_>, chat: &ChatId, sender: &Sender) -> Result<SenderState, StoreError> {
    let (start, end) = Key::new().chat(chat).sender(sender).prefix();
    let last = tables.numbers.range::<&[u8]>(start.as_slice()..end.as_slice())?.next_back().transpose()?;
    let Some((key, value)) = last else { return Ok(SenderState::default()) };
    let n = keys::Parts(&key.value()[start.len()..]).number()?;
    let (id, last) = match decode(value.value())? {
        NumberRow::Entry { id, seq } => (id, Some(Link { n, seq })),
        NumberRow::Void { void, last } => (void.id, last),
    };
    Ok(SenderState { mark: Mark { n, id: Some(id), last }, voids: true, unsaved: None })
}

struct CommandView<'a, 't> {
    region: &'a RegionId,
    missing: &'a [UserId],
    tables: &'a Tables<'t>,
    command: &'a Command,
    chat: Option<&'a Chat>,
    mark: Mark,
    former: Option<&'a HashMap<MessageId, (Seq, UnixMillis)>>,
    now: UnixMillis,
}

impl CommandView<'_, '_> {
    fn sent(entry: &Entry) -> Decided {
        Decided { id: entry.id, outcome: Outcome::Sent { seq: entry.seq, at: entry.at } }
    }
}

impl View for CommandView<'_, '_> {
    type Fault = StoreError;

    fn chat(&self) -> Option<&Chat> {
        self.chat
    }

    fn mark(&self) -> &Mark {
        &self.mark
    }

    fn decided(&self, n: u64) -> Result<Option<Decided>, StoreError> {
        let chat = &self.command.stamp.chat;
        let prefix = || Key::new().chat(chat).sender(&self.command.sender);
        let (_, end) = prefix().prefix();
        let start = prefix().number(n).bytes();
        let next = self.tables.numbers.range::<&[u8]>(start.as_slice()..end.as_slice())?.next().transpose()?;
        let mut link = self.mark.last;
        if let Some((key, value)) = next {
            let at = keys::Parts(&key.value()[start.len() - 8..]).number()?;
            match decode(value.value())? {
                NumberRow::Void { void, .. } if at == n => {
                    return Ok(Some(Decided { id: void.id, outcome: Outcome::Refused(void.refusal) }));
                }
                NumberRow::Void { last, .. } => link = last,
                NumberRow::Entry { seq, .. } => link = Some(Link { n: at, seq }),
            }
        }
        // At most as many steps as entries lie between two saved numbers.
        while let Some(Link { n: at, seq }) = link.filter(|link| link.n >= n) {
            let entry = self.entry(seq)?.ok_or(StoreError::Inconsistent("a link to an entry that is not there"))?;
            if at == n {
                return Ok(Some(Self::sent(&entry)));
            }
            link = entry.previous;
        }
        Ok(None)
    }

    fn sent_before(&self, id: MessageId) -> Result<Option<(Seq, UnixMillis)>, StoreError> {
        Ok(self.former.and_then(|former| former.get(&id)).copied())
    }

    fn entry(&self, seq: Seq) -> Result<Option<Entry>, StoreError> {
        self.tables.log.record(&keys::log(&self.command.stamp.chat, seq))
    }

    fn blob(&self, named: &BlobRef) -> Result<(Option<Blob>, bool), StoreError> {
        blobs::may_refer(self.tables, named, &self.command.sender.device.user(), self.now)
    }

    fn user_exists(&self, user: &UserId) -> Result<bool, StoreError> {
        if !user.is_home(self.region) {
            // Whoever asked the user's home before says so.
            return Ok(!self.missing.contains(user));
        }
        let (start, end) = Key::new().user(user).prefix();
        Ok(self.tables.devices.range::<&[u8]>(start.as_slice()..end.as_slice())?.next().transpose()?.is_some())
    }
}

/// Commands of one lane, answered together.
#[derive(Debug)]
pub(super) struct Commands {
    pub(super) batch: Vec<Command>,
    /// Users of other homes who do not exist.
    pub(super) missing: Vec<UserId>,
    pub(super) in_flight: Arc<InFlight>,
}

impl Write for Commands {
    type Output = Vec<Outcome>;

    fn commands(&self) -> usize {
        self.batch.len()
    }

    fn apply(&self, batch: &mut Batch<'_, '_>) -> Result<Vec<Outcome>, StoreError> {
        self.batch.iter().map(|command| run(command, &self.missing, batch, &self.in_flight)).collect()
    }
}

fn run(
    command: &Command,
    missing: &[UserId],
    batch: &mut Batch<'_, '_>,
    in_flight: &Arc<InFlight>,
) -> Result<Outcome, StoreError> {
    let id = &command.stamp.chat;
    let mut state = batch.chats.get(&batch.tables, id)?;
    let mark = match &mut state {
        None => Mark::default(),
        Some(state) => {
            if !state.senders.contains_key(&command.sender) {
                // A stranger leaves no trace in memory either.
                if state.chat.participant(&command.sender.device.user()).is_some() {
                    let sender = load_sender(&batch.tables, id, &command.sender)?;
                    state.senders.insert(command.sender.clone(), sender);
                }
            }
            look_back(state, &batch.tables, command)?;
            state.senders.get(&command.sender).map(|s| s.mark).unwrap_or_default()
        }
    };
    let view = CommandView {
        region: batch.region,
        missing,
        tables: &batch.tables,
        command,
        chat: state.as_deref().map(|s| &s.chat),
        mark,
        former: state.as_deref().filter(|s| !s.former.is_empty()).and_then(|s| s.former.get(&command.sender.device)),
        now: batch.now,
    };
    match decide(command, &view, batch.now)? {
        Decision::Answer(outcome) => Ok(outcome),
        Decision::Known { seq, at } => known(command, seq, at, batch),
        Decision::Void(refusal) => void(command, refusal, batch),
        Decision::Append(entry) => append(command, *entry, batch, in_flight),
    }
}

/// Reads where the latest entries of a device stand that was enrolled anew: what it does not know to be sent comes first.
fn look_back(state: &mut ChatState, tables: &Tables<'_>, command: &Command) -> Result<(), StoreError> {
    let Sender { device, enrolment } = &command.sender;
    if *enrolment <= 1 {
        return Ok(());
    }
    if command.stamp.n > FORMER as u64 {
        state.former.remove(device);
        return Ok(());
    }
    if state.former.contains_key(device) || state.chat.participant(&device.user()).is_none() {
        return Ok(());
    }
    let mut former = HashMap::new();
    for enrolment in (1..=*enrolment).rev() {
        let sender = Sender { device: device.clone(), enrolment };
        let mut link = match state.senders.get(&sender) {
            Some(known) => known.mark.last,
            None => load_sender(tables, &state.chat.id, &sender)?.mark.last,
        };
        while let Some(Link { seq, .. }) = link.filter(|_| former.len() < FORMER) {
            let entry: Option<Entry> = tables.log.record(&keys::log(&state.chat.id, seq))?;
            let entry = entry.ok_or(StoreError::Inconsistent("a link to an entry that is not there"))?;
            former.insert(entry.id, (entry.seq, entry.at));
            link = entry.previous;
        }
    }
    state.former.insert(device.clone(), former);
    Ok(())
}

/// A number is that of an entry which its device sent under another enrolment.
fn known(command: &Command, seq: Seq, at: UnixMillis, batch: &mut Batch<'_, '_>) -> Result<Outcome, StoreError> {
    let stamp = &command.stamp;
    let state = batch.chats.get(&batch.tables, &stamp.chat)?;
    let state = state.ok_or(StoreError::Inconsistent("an entry without a chat"))?;
    let sender = state.senders.entry(command.sender.clone()).or_default();
    // The index must lead to the entries before it too.
    save_mark(&stamp.chat, &command.sender, sender, &mut batch.tables)?;
    sender.mark = Mark { n: stamp.n, id: Some(stamp.id), last: Some(Link { n: stamp.n, seq }) };
    sender.unsaved = Some(stamp.id);
    save_mark(&stamp.chat, &command.sender, sender, &mut batch.tables)?;
    Ok(Outcome::Sent { seq, at })
}

fn void(command: &Command, refusal: Refusal, batch: &mut Batch<'_, '_>) -> Result<Outcome, StoreError> {
    let id = &command.stamp.chat;
    let state = batch.chats.get(&batch.tables, id)?.ok_or(StoreError::Inconsistent("a void without a chat"))?;
    let sender = state.senders.entry(command.sender.clone()).or_default();
    let row = NumberRow::Void { void: Void { id: command.stamp.id, refusal: refusal.clone() }, last: sender.mark.last };
    sender.mark.n = command.stamp.n;
    sender.mark.id = Some(command.stamp.id);
    prune_voids(command, sender, &mut batch.tables)?;
    sender.voids = true;
    let key = Key::new().chat(id).sender(&command.sender).number(command.stamp.n).bytes();
    put(&mut batch.tables.numbers, &key, &row)?;
    Ok(Outcome::Refused(refusal))
}

/// Forgets the voids that the device has heard of. Entries' numbers stay: they are the index of its entries.
fn prune_voids(command: &Command, sender: &mut SenderState, tables: &mut Tables<'_>) -> Result<(), StoreError> {
    if !std::mem::take(&mut sender.voids) {
        return Ok(());
    }
    let prefix = || Key::new().chat(&command.stamp.chat).sender(&command.sender);
    let (start, end) = prefix().prefix();
    let mut heard = Vec::new();
    for row in tables.numbers.range::<&[u8]>(start.as_slice()..end.as_slice())? {
        let (key, value) = row?;
        if let NumberRow::Void { .. } = decode(value.value())? {
            if keys::Parts(&key.value()[start.len()..]).number()? < command.stamp.oldest {
                heard.push(key.value().to_vec());
            } else {
                sender.voids = true;
            }
        }
    }
    for key in heard {
        tables.numbers.remove(key.as_slice())?;
    }
    Ok(())
}

fn append(
    command: &Command,
    entry: Entry,
    batch: &mut Batch<'_, '_>,
    in_flight: &Arc<InFlight>,
) -> Result<Outcome, StoreError> {
    let id = &command.stamp.chat;
    let tables = &mut batch.tables;
    put(&mut tables.log, &keys::log(id, entry.seq), &entry)?;
    blobs::refer(tables, id, &entry)?;
    let applied = if let Some(state) = batch.chats.states.get_mut(id) {
        state.chat.apply(&entry)
    } else {
        let (chat, applied) =
            Chat::created(id.clone(), &entry).ok_or(StoreError::Inconsistent("an entry without a chat"))?;
        batch.chats.enter(ChatState::new(chat));
        applied
    };
    let Applied { recipients, projections } = applied;
    let state = batch.chats.states.get_mut(id).expect("it was found or made above");
    for projection in projections {
        project(&projection, &state.chat, tables, batch.region)?;
    }
    if let Some(former) = state.former.get_mut(&entry.from) {
        former.insert(entry.id, (entry.seq, entry.at));
    }
    let sender = state.senders.entry(command.sender.clone()).or_default();
    sender.mark = Mark { n: entry.n, id: Some(entry.id), last: Some(Link { n: entry.n, seq: entry.seq }) };
    sender.unsaved = Some(entry.id);
    prune_voids(command, sender, tables)?;
    if !std::mem::replace(&mut state.dirty, true) {
        put(&mut tables.dirty, &Key::new().chat(id).bytes(), &())?;
    }
    if entry.seq.get() - state.marked >= MARK_LAG {
        save_marks(state, tables)?;
    }
    let outcome = Outcome::Sent { seq: entry.seq, at: entry.at };
    batch.committed.push(Committed::Entry {
        chat: id.clone(),
        entry: Arc::new(entry),
        recipients,
        in_flight: in_flight.clone(),
    });
    Ok(outcome)
}

pub(super) fn project(
    projection: &Projection,
    chat: &Chat,
    tables: &mut Tables<'_>,
    region: &RegionId,
) -> Result<(), StoreError> {
    let key = Key::new().chat(&chat.id);
    match projection {
        Projection::Chat => {
            let row = ChatRow { kind: chat.kind, title: chat.title.clone(), created_at: chat.created_at };
            put(&mut tables.chats, &key.bytes(), &row)
        }
        Projection::Participant(user) => {
            let row = chat.participant(user).ok_or(StoreError::Inconsistent("a participant without a row"))?;
            put(&mut tables.participants, &key.user(user).bytes(), row)?;
            // The list of a user's chats is at the user's home.
            if user.is_home(region) {
                put(&mut tables.user_chats, &Key::new().user(user).chat(&chat.id).bytes(), &())?;
            }
            Ok(())
        }
        Projection::Erase { of, by } => {
            let key = keys::log(&chat.id, *of);
            if let Some(entry) = tables.log.record::<Entry>(&key)? {
                blobs::release(tables, &chat.id, &entry)?;
                put(&mut tables.log, &key, &entry.erased(*by))?;
            }
            Ok(())
        }
    }
}

/// Saves the number of a sender's last entry, if it is not saved yet.
fn save_mark(
    chat: &ChatId,
    sender: &Sender,
    known: &mut SenderState,
    tables: &mut Tables<'_>,
) -> Result<(), StoreError> {
    if let (Some(id), Some(last)) = (known.unsaved.take(), known.mark.last) {
        let key = Key::new().chat(chat).sender(sender).number(last.n).bytes();
        put(&mut tables.numbers, &key, &NumberRow::Entry { id, seq: last.seq })?;
    }
    Ok(())
}

/// Saves the numbers of all entries up to the head.
fn save_marks(state: &mut ChatState, tables: &mut Tables<'_>) -> Result<(), StoreError> {
    let chat = &state.chat.id;
    for (sender, known) in &mut state.senders {
        save_mark(chat, sender, known, tables)?;
    }
    state.marked = state.chat.head.get();
    let key = Key::new().chat(chat).bytes();
    let mut cursor: CursorRow = tables.cursors.record(&key)?.unwrap_or_default();
    cursor.marked = Some(state.chat.head);
    put(&mut tables.cursors, &key, &cursor)
}

/// The record of a device, if it was ever enrolled.
pub(super) fn device(tables: &Tables<'_>, key: &[u8]) -> Result<Option<Device>, StoreError> {
    tables.devices.record(key)
}
