//! Chats on their way through a commit: their states in memory, and commands applied to them.

use super::blobs;
use super::keys::{self, Key};
use super::rows::{Records, RecordsMut, Rows, RowsMut};
use super::shared::Topic;
use super::tables::{
    BASES, CHATS, CURSORS, ChatRow, CursorRow, DEVICES, DIRTY, LOG, NUMBERS, NumberRow, PARTICIPANTS, USER_CHATS,
};
use super::writer::{Batch, Write};
use super::{Committed, InFlight, StoreError};
use godwit_core::blob::Blob;
use godwit_core::number::Void;
use godwit_core::{
    Applied, Chat, Command, Decided, Decision, Entry, Link, Mark, Outcome, Participant, Projection, Sender, View,
    decide,
};
use godwit_wire::blob::BlobRef;
use godwit_wire::frame::SeqRange;
use godwit_wire::{ChatId, DeviceId, MessageId, Refusal, RegionId, Seq, UnixMillis, UserId};
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

    /// Gives the state of `chat` away.
    pub(super) fn take(&mut self, chat: &ChatId) -> Option<ChatState> {
        self.states.remove(chat)
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
    pub(super) fn get(&mut self, rows: &dyn Rows, chat: &ChatId) -> Result<Option<&mut ChatState>, StoreError> {
        if !self.states.contains_key(chat) {
            match load(rows, chat, &self.region)? {
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

pub(super) fn last_entry(rows: &dyn Rows, chat: &ChatId) -> Result<Option<Entry>, StoreError> {
    Ok(rows.last(LOG, &keys::whole_log(chat))?.map(|(_, entry)| entry))
}

pub(super) fn participants(rows: &dyn Rows, chat: &ChatId) -> Result<BTreeMap<UserId, Participant>, StoreError> {
    let span = Key::new().chat(chat).prefix();
    let mut all = BTreeMap::new();
    rows.each(PARTICIPANTS, &span, |key, row| {
        all.insert(keys::Parts(&key[span.start.len()..]).user()?, row);
        Ok(())
    })?;
    Ok(all)
}

fn load(rows: &dyn Rows, id: &ChatId, region: &RegionId) -> Result<Option<ChatState>, StoreError> {
    let key = Key::new().chat(id).bytes();
    let Some(row) = rows.get(CHATS, &key)? else { return Ok(None) };
    let last = last_entry(rows, id)?.ok_or(StoreError::Inconsistent("a chat without a log"))?;
    let participants = participants(rows, id)?;
    let cursor = rows.get(CURSORS, &key)?.unwrap_or_default();
    let chat = Chat::from_records(id.clone(), row.kind, row.title, row.created_at, participants, &last);
    let dirty = rows.has(DIRTY, &key)?;
    if id.home() != region {
        return Ok(Some(ChatState { dirty, ..ChatState::replica(chat, rows.get(BASES, &key)?) }));
    }
    let marked = cursor.marked.map_or(0, Seq::get);
    let mut state = ChatState { marked, dirty, ..ChatState::new(chat) };
    if last.seq.get() > marked {
        let first = Seq::new(marked + 1).map_err(|_| StoreError::BadKey)?;
        for (_, entry) in rows.all(LOG, &keys::log_span(id, SeqRange { from: first, to: last.seq }))? {
            let sender = Sender { device: entry.from.clone(), enrolment: entry.enrolment };
            if !state.senders.contains_key(&sender) {
                let saved = load_sender(rows, id, &sender)?;
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

fn load_sender(rows: &dyn Rows, chat: &ChatId, sender: &Sender) -> Result<SenderState, StoreError> {
    let Some((key, row)) = rows.last(NUMBERS, &keys::numbers(chat, sender))? else {
        return Ok(SenderState::default());
    };
    let n = keys::number_of(&key)?;
    let (id, last) = match row {
        NumberRow::Entry { id, seq } => (id, Some(Link { n, seq })),
        NumberRow::Void { void, last } => (void.id, last),
    };
    Ok(SenderState { mark: Mark { n, id: Some(id), last }, voids: true, unsaved: None })
}

struct CommandView<'a> {
    region: &'a RegionId,
    missing: &'a [UserId],
    rows: &'a dyn Rows,
    command: &'a Command,
    chat: Option<&'a Chat>,
    mark: Mark,
    former: Option<&'a HashMap<MessageId, (Seq, UnixMillis)>>,
    now: UnixMillis,
}

impl CommandView<'_> {
    fn sent(entry: &Entry) -> Decided {
        Decided { id: entry.id, outcome: Outcome::Sent { seq: entry.seq, at: entry.at } }
    }
}

impl View for CommandView<'_> {
    type Fault = StoreError;

    fn chat(&self) -> Option<&Chat> {
        self.chat
    }

    fn mark(&self) -> &Mark {
        &self.mark
    }

    fn decided(&self, n: u64) -> Result<Option<Decided>, StoreError> {
        let chat = &self.command.stamp.chat;
        let span = keys::numbers_from(chat, &self.command.sender, n);
        let mut link = self.mark.last;
        if let Some((key, row)) = self.rows.first(NUMBERS, &span, 1)?.pop() {
            let at = keys::number_of(&key)?;
            match row {
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
        self.rows.get(LOG, &keys::log(&self.command.stamp.chat, seq))
    }

    fn blob(&self, named: &BlobRef) -> Result<(Option<Blob>, bool), StoreError> {
        blobs::may_refer(self.rows, named, &self.command.sender.device.user(), self.now)
    }

    fn user_exists(&self, user: &UserId) -> Result<bool, StoreError> {
        if !user.is_home(self.region) {
            // Whoever asked the user's home before says so.
            return Ok(!self.missing.contains(user));
        }
        Ok(!self.rows.is_empty(DEVICES, &Key::new().user(user).prefix())?)
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

    fn topic(&self) -> Topic {
        self.batch.first().map_or(Topic::Region, |command| Topic::Chat(command.stamp.chat.clone()))
    }

    fn bytes(&self) -> usize {
        self.batch.iter().map(Command::cost_bytes).sum()
    }

    fn commands(&self) -> usize {
        self.batch.len()
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<Vec<Outcome>, StoreError> {
        self.batch.iter().map(|command| run(command, &self.missing, batch, &self.in_flight)).collect()
    }
}

fn run(
    command: &Command,
    missing: &[UserId],
    batch: &mut Batch<'_>,
    in_flight: &Arc<InFlight>,
) -> Result<Outcome, StoreError> {
    let id = &command.stamp.chat;
    let mut state = batch.chats.get(batch.rows, id)?;
    let mark = match &mut state {
        None => Mark::default(),
        Some(state) => {
            if !state.senders.contains_key(&command.sender) {
                // A stranger leaves no trace in memory either.
                if state.chat.participant(&command.sender.device.user()).is_some() {
                    let sender = load_sender(batch.rows, id, &command.sender)?;
                    state.senders.insert(command.sender.clone(), sender);
                }
            }
            look_back(state, batch.rows, command)?;
            state.senders.get(&command.sender).map(|s| s.mark).unwrap_or_default()
        }
    };
    let view = CommandView {
        region: batch.region,
        missing,
        rows: batch.rows,
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
fn look_back(state: &mut ChatState, rows: &dyn Rows, command: &Command) -> Result<(), StoreError> {
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
            None => load_sender(rows, &state.chat.id, &sender)?.mark.last,
        };
        while let Some(Link { seq, .. }) = link.filter(|_| former.len() < FORMER) {
            let entry = rows.get(LOG, &keys::log(&state.chat.id, seq))?;
            let entry = entry.ok_or(StoreError::Inconsistent("a link to an entry that is not there"))?;
            former.insert(entry.id, (entry.seq, entry.at));
            link = entry.previous;
        }
    }
    state.former.insert(device.clone(), former);
    Ok(())
}

/// A number is that of an entry which its device sent under another enrolment.
fn known(command: &Command, seq: Seq, at: UnixMillis, batch: &mut Batch<'_>) -> Result<Outcome, StoreError> {
    let stamp = &command.stamp;
    let state = batch.chats.get(batch.rows, &stamp.chat)?;
    let state = state.ok_or(StoreError::Inconsistent("an entry without a chat"))?;
    let sender = state.senders.entry(command.sender.clone()).or_default();
    // The index must lead to the entries before it too.
    save_mark(&stamp.chat, &command.sender, sender, batch.rows)?;
    sender.mark = Mark { n: stamp.n, id: Some(stamp.id), last: Some(Link { n: stamp.n, seq }) };
    sender.unsaved = Some(stamp.id);
    save_mark(&stamp.chat, &command.sender, sender, batch.rows)?;
    Ok(Outcome::Sent { seq, at })
}

fn void(command: &Command, refusal: Refusal, batch: &mut Batch<'_>) -> Result<Outcome, StoreError> {
    let id = &command.stamp.chat;
    let state = batch.chats.get(batch.rows, id)?.ok_or(StoreError::Inconsistent("a void without a chat"))?;
    let sender = state.senders.entry(command.sender.clone()).or_default();
    let row = NumberRow::Void { void: Void { id: command.stamp.id, refusal: refusal.clone() }, last: sender.mark.last };
    sender.mark.n = command.stamp.n;
    sender.mark.id = Some(command.stamp.id);
    prune_voids(command, sender, batch.rows)?;
    sender.voids = true;
    let key = Key::new().chat(id).sender(&command.sender).number(command.stamp.n).bytes();
    batch.rows.put(NUMBERS, &key, &row)?;
    Ok(Outcome::Refused(refusal))
}

/// Forgets the voids that the device has heard of. Entries' numbers stay: they are the index of its entries.
fn prune_voids(command: &Command, sender: &mut SenderState, rows: &mut dyn RowsMut) -> Result<(), StoreError> {
    if !std::mem::take(&mut sender.voids) {
        return Ok(());
    }
    let mut heard = Vec::new();
    rows.each(NUMBERS, &keys::numbers(&command.stamp.chat, &command.sender), |key, row| {
        if let NumberRow::Void { .. } = row {
            if keys::number_of(key)? < command.stamp.oldest {
                heard.push(key.to_vec());
            } else {
                sender.voids = true;
            }
        }
        Ok(())
    })?;
    heard.iter().try_for_each(|key| rows.delete(NUMBERS, key))
}

fn append(
    command: &Command,
    entry: Entry,
    batch: &mut Batch<'_>,
    in_flight: &Arc<InFlight>,
) -> Result<Outcome, StoreError> {
    let id = &command.stamp.chat;
    let rows = &mut *batch.rows;
    rows.put(LOG, &keys::log(id, entry.seq), &entry)?;
    blobs::refer(rows, id, &entry)?;
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
        project(&projection, &state.chat, rows, batch.region)?;
    }
    if let Some(former) = state.former.get_mut(&entry.from) {
        former.insert(entry.id, (entry.seq, entry.at));
    }
    let sender = state.senders.entry(command.sender.clone()).or_default();
    sender.mark = Mark { n: entry.n, id: Some(entry.id), last: Some(Link { n: entry.n, seq: entry.seq }) };
    sender.unsaved = Some(entry.id);
    prune_voids(command, sender, rows)?;
    if !std::mem::replace(&mut state.dirty, true) {
        rows.put(DIRTY, &Key::new().chat(id).bytes(), &())?;
    }
    if entry.seq.get() - state.marked >= MARK_LAG {
        save_marks(state, rows)?;
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
    rows: &mut dyn RowsMut,
    region: &RegionId,
) -> Result<(), StoreError> {
    let key = Key::new().chat(&chat.id);
    match projection {
        Projection::Chat => {
            let row = ChatRow { kind: chat.kind, title: chat.title.clone(), created_at: chat.created_at };
            rows.put(CHATS, &key.bytes(), &row)
        }
        Projection::Participant(user) => {
            let row = chat.participant(user).ok_or(StoreError::Inconsistent("a participant without a row"))?;
            rows.put(PARTICIPANTS, &key.user(user).bytes(), row)?;
            // The list of a user's chats is at the user's home.
            if user.is_home(region) {
                rows.put(USER_CHATS, &Key::new().user(user).chat(&chat.id).bytes(), &())?;
            }
            Ok(())
        }
        Projection::Erase { of, by } => {
            let key = keys::log(&chat.id, *of);
            if let Some(entry) = rows.get(LOG, &key)? {
                blobs::release(rows, &chat.id, &entry)?;
                rows.put(LOG, &key, &entry.erased(*by))?;
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
    rows: &mut dyn RowsMut,
) -> Result<(), StoreError> {
    if let (Some(id), Some(last)) = (known.unsaved.take(), known.mark.last) {
        let key = Key::new().chat(chat).sender(sender).number(last.n).bytes();
        rows.put(NUMBERS, &key, &NumberRow::Entry { id, seq: last.seq })?;
    }
    Ok(())
}

/// Saves the numbers of all entries up to the head.
fn save_marks(state: &mut ChatState, rows: &mut dyn RowsMut) -> Result<(), StoreError> {
    let chat = &state.chat.id;
    for (sender, known) in &mut state.senders {
        save_mark(chat, sender, known, rows)?;
    }
    state.marked = state.chat.head.get();
    let key = Key::new().chat(chat).bytes();
    let mut cursor: CursorRow = rows.get(CURSORS, &key)?.unwrap_or_default();
    cursor.marked = Some(state.chat.head);
    rows.put(CURSORS, &key, &cursor)
}
