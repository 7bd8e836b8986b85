//! A chat's state, who may do what in it, and how it changes.
//!
//! | right | owner | admin | member | direct chat |
//! | --- | --- | --- | --- | --- |
//! | send, read, redact one's own, leave | yes | yes | yes | send, read, redact only |
//! | title | yes | yes | no | no |
//! | add a member | yes | yes | no | no |
//! | remove a member | yes | yes | no | no |
//! | remove an admin | yes | no | no | no |
//! | give or take a role, add with one | yes | no | no | no |
//! | redact what others wrote | yes | yes | no | no |
//!
//! Nobody removes an owner: owners leave. The last owner leaves only an otherwise empty chat, or after making somebody
//! else owner.

use crate::command::{Command, View};
use crate::entry::Entry;
use crate::message::present;
use crate::participant::Participant;
use godwit_wire::entry::{Change, ChatKind, EntryBody, Member, Role, Title};
use godwit_wire::{ChatId, Code, Refusal, Seq, UnixMillis, UserId, limits};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a role may or may not do. What every participant may do has no name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Title,
    AddMember,
    RemoveMember,
    RemoveAdmin,
    GiveRole,
    RedactAny,
}

/// The table above.
pub fn may(kind: ChatKind, role: Role, right: Right) -> bool {
    match (kind, role) {
        (ChatKind::Direct, _) | (ChatKind::Group, Role::Member) => false,
        (ChatKind::Group, Role::Admin) => !matches!(right, Right::RemoveAdmin | Right::GiveRole),
        (ChatKind::Group, Role::Owner) => true,
    }
}

/// A chat as its log up to `head` makes it.
#[derive(Clone, Debug)]
pub struct Chat {
    pub id: ChatId,
    pub kind: ChatKind,
    pub title: Title,
    pub created_at: UnixMillis,
    pub head: Seq,
    pub last_at: UnixMillis,
    pub total_bytes: u64,
    participants: BTreeMap<UserId, Participant>,
    /// Who belongs now; shared with every message's recipients.
    present: Arc<[UserId]>,
}

/// What follows from an entry.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Who gets the entry: the participants at it, and those it removes.
    pub recipients: Arc<[UserId]>,
    /// The records that changed.
    pub projections: Vec<Projection>,
}

/// A record that an entry changes. Writing it twice is writing it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projection {
    /// The chat's row: kind, title.
    Chat,
    Participant(UserId),
    /// The content at `of` is erased.
    Erase {
        of: Seq,
        by: Seq,
    },
}

impl Chat {
    /// A chat from its records. `last` is the newest entry of its log.
    pub fn from_records(
        id: ChatId,
        kind: ChatKind,
        title: Title,
        created_at: UnixMillis,
        participants: BTreeMap<UserId, Participant>,
        last: &Entry,
    ) -> Self {
        let mut chat = Self {
            id,
            kind,
            title,
            created_at,
            head: last.seq,
            last_at: last.at,
            total_bytes: last.total_bytes,
            participants,
            present: Arc::new([]),
        };
        chat.refresh_present();
        chat
    }

    /// A chat from the entry that creates it. None if the entry does not create one.
    pub fn created(id: ChatId, entry: &Entry) -> Option<(Self, Applied)> {
        let EntryBody::Created { kind, title, participants } = &entry.body else { return None };
        let rows = participants.iter().map(|m| (m.user.clone(), Participant::joined(m.role, entry.seq))).collect();
        let chat = Self::from_records(id, *kind, title.clone(), entry.at, rows, entry);
        let mut projections = vec![Projection::Chat];
        projections.extend(chat.participants.keys().cloned().map(Projection::Participant));
        let recipients = chat.present.clone();
        Some((chat, Applied { recipients, projections }))
    }

    /// Anyone who ever belonged.
    pub fn participant(&self, user: &UserId) -> Option<&Participant> {
        self.participants.get(user)
    }

    /// Everyone who ever belonged.
    pub fn participants(&self) -> &BTreeMap<UserId, Participant> {
        &self.participants
    }

    /// Who belongs now.
    pub fn present(&self) -> &Arc<[UserId]> {
        &self.present
    }

    /// Memory this state takes, roughly.
    pub fn cost_bytes(&self) -> usize {
        size_of::<Self>() + self.participants.len() * (size_of::<(UserId, Participant)>() + 64)
    }

    /// The participants at `seq`: those who get its entry.
    pub fn recipients_at(&self, seq: Seq) -> Arc<[UserId]> {
        self.participants.iter().filter(|(_, p)| p.sees(seq)).map(|(user, _)| user.clone()).collect()
    }

    /// Takes the next entry of the log.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        debug_assert_eq!(entry.seq, self.head.next());
        self.head = entry.seq;
        self.last_at = entry.at;
        self.total_bytes = entry.total_bytes;
        match &entry.body {
            EntryBody::Message { .. } | EntryBody::Erased { .. } | EntryBody::Created { .. } => {
                Applied { recipients: self.present.clone(), projections: Vec::new() }
            }
            EntryBody::Redaction { of } => Applied {
                recipients: self.present.clone(),
                projections: vec![Projection::Erase { of: *of, by: entry.seq }],
            },
            EntryBody::Updated(change) => self.change(change, entry),
        }
    }

    fn change(&mut self, change: &Change, entry: &Entry) -> Applied {
        let before = self.present.clone();
        let at = entry.seq;
        let projections = match change {
            Change::Title(title) => {
                self.title = title.clone();
                vec![Projection::Chat]
            }
            Change::Add(members) => {
                for member in members {
                    match self.participants.get_mut(&member.user) {
                        Some(row) => row.join_again(member.role, at),
                        None => {
                            self.participants.insert(member.user.clone(), Participant::joined(member.role, at));
                        }
                    }
                }
                members.iter().map(|m| Projection::Participant(m.user.clone())).collect()
            }
            Change::Remove(user) => self.end(user, at),
            Change::Leave => self.end(&entry.from.user(), at),
            Change::Role(member) => {
                if let Some(row) = self.participants.get_mut(&member.user) {
                    row.role = member.role;
                    row.as_of = at;
                }
                vec![Projection::Participant(member.user.clone())]
            }
        };
        self.refresh_present();
        // Those it removes see the entry that does so; nobody else can be in one list and not in the other.
        let recipients = if before.len() > self.present.len() { before } else { self.present.clone() };
        Applied { recipients, projections }
    }

    fn end(&mut self, user: &UserId, at: Seq) -> Vec<Projection> {
        if let Some(row) = self.participants.get_mut(user) {
            row.leave(at);
        }
        vec![Projection::Participant(user.clone())]
    }

    fn refresh_present(&mut self) {
        self.present = self.participants.iter().filter(|(_, p)| p.is_present()).map(|(u, _)| u.clone()).collect();
    }
}

type Verdict<V> = Result<Result<EntryBody, Refusal>, <V as View>::Fault>;

fn too_many(what: &str, count: usize) -> Refusal {
    let why = format!("{what}: {count}, at most {} are allowed", limits::PARTICIPANTS);
    Refusal::because(Code::TooLarge, why)
}

pub(crate) fn create<V: View>(
    command: &Command,
    kind: ChatKind,
    title: &Title,
    others: &[Member],
    view: &V,
) -> Verdict<V> {
    let creator = command.sender.device.user();
    let id = &command.stamp.chat;
    if view.chat().is_some() {
        return Ok(Err(Code::AlreadyExists.into()));
    }
    let invalid = |why: &str| Ok(Err(Refusal::because(Code::Invalid, why)));
    if others.len() + 1 > limits::PARTICIPANTS {
        return Ok(Err(too_many("participants", others.len() + 1)));
    }
    let own_role = match kind {
        ChatKind::Group if id.is_direct() => return invalid("chat: a group's id must be a UUID of version 7"),
        ChatKind::Group => Role::Owner,
        ChatKind::Direct => {
            let [other] = others else { return invalid("participants: a direct chat has exactly one other") };
            if other.role != Role::Member || !title.as_str().is_empty() {
                return invalid("a direct chat has no title and no roles");
            }
            if ChatId::direct(&creator, &other.user) != *id {
                return invalid("chat: the id of a direct chat must be derived from its two users");
            }
            Role::Member
        }
    };
    let mut participants = vec![Member { user: creator.clone(), role: own_role }];
    participants.extend(others.iter().cloned());
    if participants.iter().map(|m| &m.user).collect::<BTreeSet<_>>().len() < participants.len() {
        return invalid("participants: a user is named twice, or is the creator");
    }
    for member in others {
        if !view.user_exists(&member.user)? {
            return Ok(Err(Refusal::because(Code::NoSuchUser, member.user.as_str())));
        }
    }
    Ok(Ok(EntryBody::Created { kind, title: title.clone(), participants }))
}

pub(crate) fn update<V: View>(user: &UserId, change: &Change, view: &V) -> Verdict<V> {
    let role = match present(user, view) {
        Ok(role) => role,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let chat = view.chat().expect("a present participant has a chat");
    let verdict = match change {
        _ if chat.kind == ChatKind::Direct => {
            Err(Refusal::because(Code::Conflict, "a direct chat keeps its two participants and has no title"))
        }
        Change::Title(_) => require(chat, role, Right::Title),
        Change::Add(members) => add(chat, role, members, view)?,
        Change::Remove(whom) => remove(chat, user, role, whom),
        Change::Role(member) => give_role(chat, user, role, member),
        Change::Leave => leave(chat, user, role),
    };
    Ok(verdict.map(|()| EntryBody::Updated(change.clone())))
}

fn require(chat: &Chat, role: Role, right: Right) -> Result<(), Refusal> {
    if may(chat.kind, role, right) { Ok(()) } else { Err(Code::NotAllowed.into()) }
}

fn conflict<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::because(Code::Conflict, why))
}

fn add<V: View>(chat: &Chat, role: Role, members: &[Member], view: &V) -> Result<Result<(), Refusal>, V::Fault> {
    if let Err(refusal) = require(chat, role, Right::AddMember) {
        return Ok(Err(refusal));
    }
    let total = chat.present.len() + members.len();
    if total > limits::PARTICIPANTS {
        return Ok(Err(too_many("participants", total)));
    }
    if members.is_empty() {
        return Ok(Err(Refusal::because(Code::Invalid, "add: names nobody")));
    }
    let mut seen = BTreeSet::new();
    for member in members {
        if member.role != Role::Member
            && let Err(refusal) = require(chat, role, Right::GiveRole)
        {
            return Ok(Err(refusal));
        }
        let row = chat.participant(&member.user);
        if !seen.insert(&member.user) || row.is_some_and(Participant::is_present) {
            return Ok(conflict(format!("{} is a participant already", member.user)));
        }
        if row.is_some_and(|row| !row.can_join_again()) {
            return Ok(conflict(format!("{} has joined and left too often", member.user)));
        }
        if !view.user_exists(&member.user)? {
            return Ok(Err(Refusal::because(Code::NoSuchUser, member.user.as_str())));
        }
    }
    Ok(Ok(()))
}

fn present_role(chat: &Chat, user: &UserId) -> Result<Role, Refusal> {
    match chat.participant(user).and_then(Participant::present_role) {
        Some(role) => Ok(role),
        None => conflict(format!("{user} is not a participant")),
    }
}

fn remove(chat: &Chat, user: &UserId, role: Role, whom: &UserId) -> Result<(), Refusal> {
    if user == whom {
        return conflict("you leave a chat, you do not remove yourself");
    }
    require(chat, role, Right::RemoveMember)?;
    match present_role(chat, whom)? {
        Role::Member => Ok(()),
        Role::Admin => require(chat, role, Right::RemoveAdmin),
        Role::Owner => Err(Code::NotAllowed.into()),
    }
}

fn owners(chat: &Chat) -> usize {
    chat.participants.values().filter(|p| p.present_role() == Some(Role::Owner)).count()
}

fn give_role(chat: &Chat, user: &UserId, role: Role, member: &Member) -> Result<(), Refusal> {
    require(chat, role, Right::GiveRole)?;
    let current = present_role(chat, &member.user)?;
    if current == member.role {
        return conflict(format!("{} has this role already", member.user));
    }
    if current == Role::Owner && member.user != *user {
        return Err(Code::NotAllowed.into());
    }
    if current == Role::Owner && owners(chat) == 1 {
        return conflict("a chat keeps at least one owner: make somebody else owner first");
    }
    Ok(())
}

fn leave(chat: &Chat, _user: &UserId, role: Role) -> Result<(), Refusal> {
    if role == Role::Owner && owners(chat) == 1 && chat.present.len() > 1 {
        return conflict("the last owner cannot leave: make somebody else owner first");
    }
    Ok(())
}
