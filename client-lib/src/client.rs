//! The public API.
//!
//! - [`attachments`]: files in messages

mod attachments;

pub use attachments::{NewAttachment, Upload};

use crate::attachment::Progress;
use crate::content::Content;
use crate::error::Error;
use crate::event::{ConnectionState, MessageState, Next};
use crate::host::Host;
use crate::locked::Locked;
use crate::store::{ChatRow, Outgoing, Store, Stored, fresh_id, lock};
use crate::stream::EventStream;
use crate::worker::{Job, Worker};
use godwit_wire::entry::{Change, ChatKind, EntryBody, LogEntry, Member, Role, Title};
use godwit_wire::frame::Receipt;
use godwit_wire::{ChatId, Code, DeviceId, MessageId, Refusal, Seq, UnixMillis, UserId, limits};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// What the app asks of the connection and was not taken up, at most.
const JOBS: usize = 64;
/// How often a process without the connection looks whether it can have it, and what became of what it asked.
const POLL: Duration = Duration::from_millis(50);
/// How long history that is not here may take to come.
const FETCH: Duration = Duration::from_secs(20);
/// When it is asked for again after its connection ended.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a relay that is lost may go on to be asked, until others have noticed.
const TAKE_OVER: Duration = Duration::from_secs(8);

#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The device's folder, where it was enrolled.
    pub home: PathBuf,
    /// The machine it runs on.
    pub host: Host,
}

impl ClientOptions {
    /// On this machine.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self { home: home.into(), host: Host::system() }
    }
}

/// A chat as this device knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    pub id: ChatId,
    pub kind: ChatKind,
    pub title: Title,
    /// None after leaving.
    pub role: Option<Role>,
    /// The last entry that is here, with all before it.
    pub position: Option<Seq>,
    pub receipt: Receipt,
}

impl From<ChatRow> for Chat {
    fn from(row: ChatRow) -> Self {
        let ChatRow { chat, kind, title, role, position, receipt } = row;
        Self { id: chat, kind, title, role, position, receipt }
    }
}

/// A message of one's own that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    pub chat: ChatId,
    /// None while it is pending or queued.
    pub seq: Option<Seq>,
    pub at: Option<UnixMillis>,
    pub state: MessageState,
}

/// One entry of a chat's past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    pub seq: Seq,
    pub from: DeviceId,
    pub at: UnixMillis,
    pub what: HistoryBody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryBody {
    Message(Content),
    Created {
        kind: ChatKind,
        title: Title,
        participants: Vec<Member>,
    },
    Updated(Change),
    Redaction {
        of: Seq,
    },
    /// A message that was redacted.
    Redacted,
    /// Written by a newer version.
    Unknown,
}

impl From<LogEntry> for HistoryEntry {
    fn from(entry: LogEntry) -> Self {
        let what = match entry.body.as_known() {
            Some(EntryBody::Message { content, .. }) => HistoryBody::Message(Content::from_bytes(&content.0)),
            Some(EntryBody::Created { kind, title, participants }) => {
                HistoryBody::Created { kind: *kind, title: title.clone(), participants: participants.clone() }
            }
            Some(EntryBody::Updated(change)) => HistoryBody::Updated(change.clone()),
            Some(EntryBody::Redaction { of }) => HistoryBody::Redaction { of: *of },
            Some(EntryBody::Erased { .. }) => HistoryBody::Redacted,
            None => HistoryBody::Unknown,
        };
        Self { seq: entry.seq, from: entry.from, at: entry.at, what }
    }
}

/// What the client and its worker share.
pub(crate) struct Inner {
    pub(crate) home: PathBuf,
    pub(crate) device: DeviceId,
    pub(crate) host: Host,
    store: Mutex<Store>,
    /// Something was put into the outbox.
    pub(crate) wake: Notify,
    /// Counts changes of the store.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) state: watch::Sender<ConnectionState>,
    /// The chats were compared with the relay's since the start.
    synced: watch::Sender<bool>,
    /// How far files are on their way up.
    transfers: Mutex<HashMap<MessageId, Progress>>,
}

impl Inner {
    /// SQLite calls are short, and made where they are needed: a thread hop would cost more.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn transfers(&self) -> MutexGuard<'_, HashMap<MessageId, Progress>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn set_synced(&self) {
        self.synced.send_replace(true);
    }

    pub(crate) fn set_state(&self, state: ConnectionState) {
        self.state.send_if_modified(|before| {
            let changed = *before != state;
            *before = state;
            changed
        });
    }
}

/// A device's client. Dropping it ends the connection; what is unsent stays in the outbox.
///
/// Several processes may open the same home. The first keeps the connection; the others hand their messages over
/// through the outbox, and take over when the first ends.
pub struct Client {
    inner: Arc<Inner>,
    jobs: mpsc::Sender<Job>,
    stop: CancellationToken,
    owner: watch::Receiver<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("device", &self.inner.device).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a home and starts to connect. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::NotEnrolled`], [`Error::Corrupt`], [`Error::Newer`], or that the home cannot be read.
    pub fn open(options: ClientOptions) -> Result<Self, Error> {
        let ClientOptions { home, host } = options;
        let store = Store::open(&home, &host, false)?;
        let row = store.device()?.ok_or_else(|| Error::NotEnrolled(home.clone()))?;
        let inner = Arc::new(Inner {
            home: home.clone(),
            device: row.id,
            host,
            store: Mutex::new(store),
            wake: Notify::new(),
            changes: watch::Sender::new(0),
            state: watch::Sender::new(ConnectionState::Connecting),
            synced: watch::Sender::new(false),
            transfers: Mutex::default(),
        });
        let (jobs, queue) = mpsc::channel(JOBS);
        let stop = CancellationToken::new();
        let first = lock(&home)?;
        let (owning, owner) = watch::channel(first.is_some());
        // An app may have many.
        let span = tracing::info_span!("client", device = %inner.device);
        let task = tokio::spawn(work(inner.clone(), queue, stop.clone(), first, owning).instrument(span));
        Ok(Self { inner, jobs, stop, owner, task: Mutex::new(Some(task)) })
    }

    pub fn device(&self) -> &DeviceId {
        &self.inner.device
    }

    /// Whether this process keeps the home's connection.
    pub fn owns_connection(&self) -> bool {
        *self.owner.borrow()
    }

    pub fn connection_state(&self) -> ConnectionState {
        self.inner.state.borrow().clone()
    }

    /// What happens, from the first event that was not acknowledged on. One stream at a time.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process keeps the connection.
    pub fn events(&self) -> Result<EventStream, Error> {
        if !self.owns_connection() {
            return Err(Error::InUse(self.inner.home.clone()));
        }
        Ok(EventStream::new(self.inner.clone(), self.stop.clone()))
    }

    /// The app has this event and all before it: they are not told again.
    pub fn acknowledge(&self, next: &Next) -> Result<(), Error> {
        match next.id {
            Some(id) => self.inner.store().acknowledge(id),
            None => Ok(()),
        }
    }

    fn put(&self, chat: &ChatId, outgoing: &[Outgoing]) -> Result<Vec<MessageId>, Error> {
        let ids = self.inner.store().put(chat, outgoing)?;
        self.inner.wake.notify_one();
        Ok(ids)
    }

    fn put_one(&self, chat: &ChatId, outgoing: Outgoing) -> Result<MessageId, Error> {
        Ok(self.put(chat, &[outgoing])?[0])
    }

    /// Only chats that this device takes part in: what a stranger sends leaves no trace at the home.
    fn check_participant(&self, chat: &ChatId) -> Result<(), Error> {
        let known = self.inner.store().chat(chat)?;
        let creating = || self.inner.store().oldest_unsent(chat).map(|oldest| oldest.is_some());
        if known.is_some_and(|row| row.role.is_some()) || creating()? {
            Ok(())
        } else {
            Err(Error::Refused(Code::NotParticipant.into()))
        }
    }

    /// Keeps a message for `chat`; it is sent as soon as there is a connection. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Refused`] if this device does not know itself in the chat, or the content is over 64 KiB.
    pub fn send(&self, chat: &ChatId, content: Content) -> Result<MessageId, Error> {
        Ok(self.send_many(chat, vec![content])?[0])
    }

    /// Keeps several messages at once, in their order; all or none.
    pub fn send_many(&self, chat: &ChatId, contents: Vec<Content>) -> Result<Vec<MessageId>, Error> {
        self.check_participant(chat)?;
        let mut outgoing = Vec::with_capacity(contents.len());
        for content in contents {
            outgoing.push(Outgoing::Send(godwit_wire::entry::Content(content.checked()?)));
        }
        self.put(chat, &outgoing)
    }

    /// The direct chat with `user`, and the request that creates it if it is not known here. Its id is known at once, so
    /// this works offline. If the other side was faster the request ends in [`Code::AlreadyExists`], which is as good.
    ///
    /// # Errors
    /// [`Error::Invalid`] for oneself.
    pub fn direct(&self, user: UserId) -> Result<(ChatId, Option<MessageId>), Error> {
        let own = self.inner.device.user();
        if own == user {
            return Err(Error::Invalid("a direct chat has two different users".to_owned()));
        }
        let chat = ChatId::direct(&own, &user);
        let known = {
            let store = self.inner.store();
            store.chat(&chat)?.is_some() || store.oldest_unsent(&chat)?.is_some()
        };
        if known {
            return Ok((chat, None));
        }
        let participants = vec![Member { user, role: Role::Member }];
        let outgoing = Outgoing::Create { kind: ChatKind::Direct, title: Title::default(), participants };
        let id = self.put_one(&chat, outgoing)?;
        Ok((chat, Some(id)))
    }

    /// A new group, with this user as its owner. Works offline; [`Client::wait_for`] tells when it is created.
    pub fn create_group(&self, title: Title, members: Vec<Member>) -> Result<(ChatId, MessageId), Error> {
        let home = self.inner.device.home();
        let chat = ChatId::group(home, fresh_id(&self.inner.host.crypto))
            .map_err(|error| Error::Invalid(error.to_string()))?;
        check_members(&self.inner.device.user(), &members)?;
        let outgoing = Outgoing::Create { kind: ChatKind::Group, title, participants: members };
        let id = self.put_one(&chat, outgoing)?;
        Ok((chat, id))
    }

    /// Changes a chat's title, participants or roles. Who may, is decided at the home.
    pub fn update_chat(&self, chat: &ChatId, change: Change) -> Result<MessageId, Error> {
        if let Change::Add(members) = &change {
            check_members(&self.inner.device.user(), members)?;
        }
        self.check_participant(chat)?;
        self.put_one(chat, Outgoing::Update(change))
    }

    /// Erases a message for everyone: one's own, or anyone's for an owner or admin.
    pub fn redact(&self, chat: &ChatId, seq: Seq) -> Result<MessageId, Error> {
        self.check_participant(chat)?;
        self.put_one(chat, Outgoing::Redact(seq))
    }

    /// The user has read everything up to `up_to`; told to the relay when there is a connection.
    pub fn mark_read(&self, chat: &ChatId, up_to: Seq) -> Result<(), Error> {
        self.inner.store().set_read(chat, up_to)?;
        self.inner.wake.notify_one();
        Ok(())
    }

    /// How far a message got; none if it is not known here any more.
    pub fn message_state(&self, id: MessageId) -> Result<Option<SentMessage>, Error> {
        let store = self.inner.store();
        let Some((chat, stored)) = store.stored(id)? else {
            let Some(upload) = store.upload(id)? else { return Ok(None) };
            return match upload.refusal {
                Some(refusal) => Err(Error::Refused(refusal)),
                None => Ok(Some(SentMessage { chat: upload.chat, seq: None, at: None, state: MessageState::Pending })),
            };
        };
        let (seq, at, state) = match stored {
            Stored::Pending => (None, None, MessageState::Pending),
            Stored::Queued => (None, None, MessageState::Queued),
            Stored::Refused(refusal) => return Err(Error::Refused(refusal)),
            Stored::Sent { seq, at } => {
                let receipt = store.chat(&chat)?.map(|row| row.receipt).unwrap_or_default();
                let state = if receipt.read >= Some(seq) {
                    MessageState::Read
                } else if receipt.delivered >= Some(seq) {
                    MessageState::Delivered
                } else {
                    MessageState::Sent
                };
                (Some(seq), Some(at), state)
            }
        };
        Ok(Some(SentMessage { chat, seq, at, state }))
    }

    /// How many requests (messages, changes of chats, redactions) of each chat wait in this device's outbox.
    pub fn unsent(&self) -> Result<Vec<(ChatId, u64)>, Error> {
        self.inner.store().unsent_counts()
    }

    /// Waits until a message got at least to `state`.
    ///
    /// # Errors
    /// [`Error::Refused`] if it was refused, or the device is not let in; [`Error::TimedOut`], and the message stays
    /// pending. Cancel safe.
    pub async fn wait_for(&self, id: MessageId, state: MessageState, timeout: Duration) -> Result<SentMessage, Error> {
        let deadline = Instant::now() + timeout;
        let mut changes = self.inner.changes.subscribe();
        loop {
            changes.mark_unchanged();
            match self.message_state(id)? {
                Some(message) if message.state >= state => return Ok(message),
                Some(_) => {}
                None => return Err(Error::Invalid(format!("message {id} is not known here"))),
            }
            if let ConnectionState::Refused(refusal) = self.connection_state() {
                return Err(Error::Refused(refusal));
            }
            // Another process may be the one that writes.
            let change = tokio::time::timeout(POLL, changes.changed());
            if tokio::time::timeout_at(deadline, change).await.is_err() {
                return Err(Error::TimedOut(timeout));
            }
        }
    }

    /// Waits until there is a connection.
    ///
    /// # Errors
    /// [`Error::Refused`] if the device is not let in; [`Error::Unreachable`] with the last reason after `timeout`.
    pub async fn wait_connected(&self, timeout: Duration) -> Result<(), Error> {
        let mut states = self.inner.state.subscribe();
        let deadline = Instant::now() + timeout;
        loop {
            let state = states.borrow_and_update().clone();
            let reason = match state {
                ConnectionState::Connected(_) => return Ok(()),
                ConnectionState::Refused(refusal) => return Err(Error::Refused(refusal)),
                ConnectionState::Offline(reason) => reason,
                ConnectionState::Connecting => "no relay answers".to_owned(),
            };
            if !matches!(tokio::time::timeout_at(deadline, states.changed()).await, Ok(Ok(()))) {
                return Err(Error::Unreachable(reason));
            }
        }
    }

    /// Whether the chats here were compared with the relay's since the start: all of the user's chats are here.
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits until the chats here were compared with the relay's, once after each start.
    ///
    /// # Errors
    /// As [`Client::wait_connected`]. In a process that does not keep the connection, this does not wait.
    pub async fn wait_synced(&self, timeout: Duration) -> Result<(), Error> {
        if !self.owns_connection() {
            return Ok(());
        }
        let deadline = Instant::now() + timeout;
        self.wait_connected(timeout).await?;
        let mut synced = self.inner.synced.subscribe();
        match tokio::time::timeout_at(deadline, synced.wait_for(|synced| *synced)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::TimedOut(timeout)),
        }
    }

    /// The chats this device knows, by id.
    pub fn chats(&self) -> Result<Vec<Chat>, Error> {
        Ok(self.inner.store().chats()?.into_iter().map(Chat::from).collect())
    }

    pub fn chat(&self, chat: &ChatId) -> Result<Option<Chat>, Error> {
        Ok(self.inner.store().chat(chat)?.map(Chat::from))
    }

    /// Who takes part in a chat, as far as this device knows.
    pub fn participants(&self, chat: &ChatId) -> Result<Vec<Member>, Error> {
        self.inner.store().participants(chat)
    }

    /// Asks the relay about a chat: its summary and participants are here afterwards.
    pub async fn refresh(&self, chat: &ChatId) -> Result<(), Error> {
        self.ask(|done| Job::Info { chat: chat.clone(), done }).await
    }

    /// Asks over the connection; again over the next one, if it ends before the answer, and for a moment when the relay
    /// cannot answer now: whoever could may just have been lost, and others take over.
    async fn ask(&self, job: impl Fn(oneshot::Sender<Result<(), Error>>) -> Job) -> Result<(), Error> {
        let begun = Instant::now();
        let deadline = begun + FETCH;
        loop {
            self.wait_connected(deadline.saturating_duration_since(Instant::now())).await?;
            let (done, outcome) = oneshot::channel();
            self.jobs.send(job(done)).await.map_err(|_| Error::Closed)?;
            match tokio::time::timeout_at(deadline, outcome).await {
                // The state says a moment later that the connection ended.
                Ok(Ok(Err(Error::Unreachable(_))) | Err(_)) => tokio::time::sleep(ASK_AGAIN).await,
                Ok(Ok(Err(Error::Refused(refusal))))
                    if refusal.code == Code::Unavailable && begun.elapsed() < TAKE_OVER =>
                {
                    tokio::time::sleep(refusal.retry_after().unwrap_or_default().clamp(ASK_AGAIN, TAKE_OVER / 4)).await;
                }
                Ok(Ok(outcome)) => return outcome,
                Err(_) => return Err(Error::TimedOut(FETCH)),
            }
        }
    }

    /// The newest `limit` entries below `before` (of all, if none) that this user may see, ascending. What is not on
    /// the device is fetched from the relay and kept; what of it is new becomes an event as well.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if something is missing and cannot be fetched. Cancel safe.
    pub async fn history(&self, chat: &ChatId, before: Option<Seq>, limit: usize) -> Result<Vec<HistoryEntry>, Error> {
        let known = self.inner.store().chat(chat)?.is_some();
        if !known {
            if !self.owns_connection() {
                return Err(Error::Refused(Code::NotParticipant.into()));
            }
            self.refresh(chat).await?;
        }
        let newest = self.inner.store().newest(chat)?;
        if before.is_none_or(|before| before.prev() > newest)
            && matches!(self.connection_state(), ConnectionState::Connected(_))
        {
            // The newest may be on its way still.
            self.fetch(chat, before, limit).await?;
        }
        loop {
            let (entries, missing) = self.inner.store().history(chat, before, limit)?;
            let Some(below) = missing else { return Ok(entries.into_iter().map(HistoryEntry::from).collect()) };
            let count = limit - entries.len();
            self.fetch(chat, Some(below), count).await?;
            // A page that brought nothing new will not the next time either.
            let (after, still) = self.inner.store().history(chat, before, limit)?;
            if still == missing && after.len() == entries.len() {
                return Ok(after.into_iter().map(HistoryEntry::from).collect());
            }
        }
    }

    async fn fetch(&self, chat: &ChatId, before: Option<Seq>, count: usize) -> Result<(), Error> {
        if self.owns_connection() {
            return self.ask(|done| Job::Fetch { chat: chat.clone(), before, count, done }).await;
        }
        let id = self.inner.store().ask(chat, before, count)?;
        let deadline = Instant::now() + FETCH;
        loop {
            let answer = self.inner.store().take_answer(id)?;
            if let Some(outcome) = answer {
                return match postcard::from_bytes::<Refusal>(&outcome) {
                    Ok(refusal) => Err(refusal.into()),
                    Err(_) => Ok(()),
                };
            }
            if Instant::now() >= deadline {
                self.inner.store().withdraw(id)?;
                return Err(Error::TimedOut(FETCH));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The device's network changed: moves the connection to a new socket (QUIC path migration). If the relay does not
    /// answer there, a new connection is made.
    pub async fn network_changed(&self) {
        // A closed client has no connection to move.
        let _ = self.jobs.send(Job::NetworkChanged).await;
    }

    /// Ends the connection in order. What is unsent stays in the outbox.
    pub async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the client's worker ended badly");
        }
    }

    /// Ends at once, with nothing finished and nobody told, as if the app was killed. For simulations.
    pub async fn abort(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // Its end is the one just asked for.
            let _ = task.await;
        }
        self.stop.cancel();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What no home would take is not kept: it would stand in the way of what follows.
fn check_members(own: &UserId, members: &[Member]) -> Result<(), Error> {
    let count = members.len() + 1;
    if count > limits::PARTICIPANTS {
        let why = format!("{count} participants, at most {} are allowed", limits::PARTICIPANTS);
        return Err(Error::Refused(Refusal::because(Code::TooLarge, why)));
    }
    let mut seen = BTreeSet::from([own]);
    match members.iter().find(|member| !seen.insert(&member.user)) {
        Some(member) => Err(Error::Invalid(format!("{} is named twice, or is yourself", member.user))),
        None => Ok(()),
    }
}

/// Runs the worker once the home's lock is free.
async fn work(
    inner: Arc<Inner>,
    jobs: mpsc::Receiver<Job>,
    stop: CancellationToken,
    mut lock_held: Option<Locked>,
    owning: watch::Sender<bool>,
) {
    let lock_held = loop {
        if let Some(held) = lock_held.take() {
            break held;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL) => {}
        }
        match lock(&inner.home) {
            Ok(held) => lock_held = held,
            Err(error) => tracing::warn!(%error, "the home cannot be locked"),
        }
    };
    owning.send_replace(true);
    Worker::new(inner, jobs, stop, lock_held).run().await;
}
