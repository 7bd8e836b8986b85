//! The one way into a chat's log.

use crate::chat::Chat;
use crate::entry::Entry;
use crate::number::{self, Mark, Standing};
use crate::{chat, message};
use godwit_wire::entry::{BlobRef, Change, ChatKind, Content, EntryBody, Member, Title};
use godwit_wire::frame::{Request, Stamp};
use godwit_wire::{Code, DeviceId, MessageId, Refusal, Seq, UnixMillis, UserId};

/// Who acts: a device as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sender {
    pub device: DeviceId,
    pub enrolment: u32,
}

/// A numbered request of one device in one chat.
#[derive(Clone, Debug)]
pub struct Command {
    pub sender: Sender,
    pub stamp: Stamp,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub enum Action {
    Create { kind: ChatKind, title: Title, participants: Vec<Member> },
    Update(Change),
    Send { content: Content, blobs: Vec<BlobRef> },
    Redact { of: Seq },
}

impl Command {
    /// The command in a request, if it is a numbered one.
    pub fn from_request(sender: &Sender, request: Request) -> Result<Self, Box<Request>> {
        let (stamp, action) = match request {
            Request::CreateChat(r) => {
                (r.stamp, Action::Create { kind: r.kind, title: r.title, participants: r.participants })
            }
            Request::UpdateChat(r) => (r.stamp, Action::Update(r.change)),
            Request::SendMessage(r) => (r.stamp, Action::Send { content: r.content, blobs: r.blobs }),
            Request::Redact(r) => (r.stamp, Action::Redact { of: r.of }),
            other => return Err(Box::new(other)),
        };
        Ok(Self { sender: sender.clone(), stamp, action })
    }

    /// Memory that this command holds while it waits.
    pub fn cost_bytes(&self) -> usize {
        let body = match &self.action {
            Action::Send { content, blobs } => content.0.len() + blobs.len() * size_of::<BlobRef>(),
            Action::Create { participants, .. } => participants.len() * size_of::<Member>(),
            Action::Update(Change::Add(users)) => users.len() * size_of::<Member>(),
            Action::Update(_) | Action::Redact { .. } => 0,
        };
        size_of::<Self>() + body
    }
}

/// What a rule may read. One view serves one command.
pub trait View {
    /// The world failed while reading; nothing was decided.
    type Fault;
    fn chat(&self) -> Option<&Chat>;
    fn mark(&self) -> &Mark;
    /// What a number up to the mark was decided to be. None if its trace is gone.
    fn decided(&self, n: u64) -> Result<Option<Decided>, Self::Fault>;
    fn entry(&self, seq: Seq) -> Result<Option<Entry>, Self::Fault>;
    /// Whether the user was ever enrolled, as far as this relay can know.
    fn user_exists(&self, user: &UserId) -> Result<bool, Self::Fault>;
}

/// A number's outcome, as it was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub id: MessageId,
    pub outcome: Outcome,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Sent { seq: Seq, at: UnixMillis },
    Refused(Refusal),
}

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Appended to the log; the answer is `Sent`.
    Append(Box<Entry>),
    /// The number is decided to be nothing; durable before the answer.
    Void(Refusal),
    /// Nothing changes.
    Answer(Outcome),
}

/// Decides a command. Pure: the same view, time and command give the same decision.
///
/// # Errors
/// The view's fault. Nothing is decided then.
pub fn decide<V: View>(command: &Command, view: &V, now: UnixMillis) -> Result<Decision, V::Fault> {
    let user = command.sender.device.user();
    let ever = view.chat().is_some_and(|chat| chat.participant(&user).is_some());
    let creating = view.chat().is_none() && matches!(command.action, Action::Create { .. });
    if !ever && !creating {
        // Leaves no trace, so that a stranger cannot fill the store. Nor does it tell whether the chat exists.
        return Ok(Decision::Answer(Outcome::Refused(Code::NotParticipant.into())));
    }
    match number::standing(view.mark(), &command.stamp) {
        Standing::Refused(refusal) => return Ok(Decision::Answer(Outcome::Refused(refusal))),
        Standing::Old => {
            let answer = match view.decided(command.stamp.n)? {
                Some(decided) if decided.id == command.stamp.id => decided.outcome,
                _ => Outcome::Refused(Refusal::with_next(Code::NumberTaken, view.mark().next())),
            };
            return Ok(Decision::Answer(answer));
        }
        Standing::New => {}
    }
    let body = match &command.action {
        Action::Create { kind, title, participants } => chat::create(command, *kind, title, participants, view)?,
        Action::Update(change) => chat::update(&user, change, view)?,
        Action::Send { content, blobs } => message::send(&user, content, blobs, view),
        Action::Redact { of } => message::redact(&user, *of, view)?,
    };
    match body {
        Ok(body) => Ok(Decision::Append(Box::new(entry(command, body, view, now)))),
        // Without a chat there is nowhere to keep a void.
        Err(refusal) if creating || refusal.code.is_passing() => Ok(Decision::Answer(Outcome::Refused(refusal))),
        Err(refusal) => Ok(Decision::Void(refusal)),
    }
}

fn entry<V: View>(command: &Command, body: EntryBody, view: &V, now: UnixMillis) -> Entry {
    let (seq, at, total_bytes) = match view.chat() {
        Some(chat) => (chat.head.next(), now.max(chat.last_at), chat.total_bytes),
        None => (Seq::FIRST, now, 0),
    };
    Entry {
        seq,
        at,
        from: command.sender.device.clone(),
        enrolment: command.sender.enrolment,
        n: command.stamp.n,
        id: command.stamp.id,
        previous: view.mark().last,
        total_bytes: total_bytes + Entry::content_bytes(&body),
        body,
    }
}
