//! Who may do what in a chat, and how its membership changes.
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

use crate::chat::Chat;
use crate::command::Command;
use crate::participant::Participant;
use crate::view::View;
use godwit_wire::entry::{Change, ChatKind, EntryBody, Member, Role, Title};
use godwit_wire::{ChatId, Code, Refusal, UserId, limits};
use std::collections::BTreeSet;

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

type Verdict<V> = Result<Result<EntryBody, Refusal>, <V as View>::Fault>;

/// The role of a user who belongs to the chat now.
pub(crate) fn present<V: View>(user: &UserId, view: &V) -> Result<Role, Refusal> {
    view.chat()
        .and_then(|chat| chat.participant(user))
        .and_then(Participant::present_role)
        .ok_or_else(|| Code::NotParticipant.into())
}

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
    let total = chat.present().len() + members.len();
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
    chat.participants().values().filter(|p| p.present_role() == Some(Role::Owner)).count()
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
    if role == Role::Owner && owners(chat) == 1 && chat.present().len() > 1 {
        return conflict("the last owner cannot leave: make somebody else owner first");
    }
    Ok(())
}
