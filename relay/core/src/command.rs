//! A numbered request, as the rules see it.

use godwit_wire::blob::BlobRef;
use godwit_wire::entry::{Change, ChatKind, Content, Member, Title};
use godwit_wire::frame::{CreateChat, Options, Redact, Request, SendMessage, Stamp, UpdateChat};
use godwit_wire::{DeviceId, Seq, UserId};

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

    /// The request that makes this command, for the relay that decides it.
    pub fn into_request(self) -> Request {
        let (stamp, options) = (self.stamp, Options::default());
        match self.action {
            Action::Create { kind, title, participants } => {
                Request::CreateChat(CreateChat { stamp, kind, title, participants, options })
            }
            Action::Update(change) => Request::UpdateChat(UpdateChat { stamp, change, options }),
            Action::Send { content, blobs } => Request::SendMessage(SendMessage { stamp, content, blobs, options }),
            Action::Redact { of } => Request::Redact(Redact { stamp, of, options }),
        }
    }

    /// Users whom this command adds to the chat.
    pub fn added(&self) -> impl Iterator<Item = &UserId> {
        let members = match &self.action {
            Action::Create { participants, .. } => participants.as_slice(),
            Action::Update(Change::Add(members)) => members.as_slice(),
            _ => &[],
        };
        members.iter().map(|member| &member.user)
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
