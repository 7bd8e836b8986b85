//! A chat's log, as it is learnt from what apps are told of it.

use godwit_client::client::HistoryBody;
use godwit_client::{Change, ChatId, Content, DeviceId, Event, HistoryEntry, Member, Seq, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Message(String),
    /// A file with this caption. It is numbered once it is stored: what is put in later may stand before it.
    File(String),
    Created(Vec<Member>),
    Updated(Change),
    Redacted(Seq),
}

/// An entry of a chat's log, as somebody was told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) from: DeviceId,
    pub(super) what: What,
}

impl Fact {
    /// An entry of a chat's past; none if what it said is gone.
    pub(super) fn of_history(entry: &HistoryEntry) -> Option<Self> {
        let what = match &entry.what {
            HistoryBody::Message(content) => text(content),
            HistoryBody::Created { participants, .. } => What::Created(participants.clone()),
            HistoryBody::Updated(change) => What::Updated(change.clone()),
            HistoryBody::Redaction { of } => What::Redacted(*of),
            HistoryBody::Redacted | HistoryBody::Unknown => return None,
        };
        Some(Self { from: entry.from.clone(), what })
    }
}

/// An entry by what it says, wherever it stands.
pub(super) fn key(chat: &ChatId, fact: &Fact) -> String {
    format!("{chat} {} {:?}", fact.from, fact.what)
}

/// The chat, seq and entry of an event that has one.
pub(super) fn entry(event: &Event) -> Option<(&ChatId, Seq, Fact)> {
    let (chat, seq, from, what) = match event {
        Event::MessageReceived { chat, message } => (chat, message.seq, &message.from, text(&message.content)),
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
pub(super) struct Membership(BTreeMap<UserId, Vec<(u64, u64)>>);

impl Membership {
    pub(super) fn of(log: &BTreeMap<u64, Fact>) -> Self {
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

    /// Whether the user is in the chat at its end.
    pub(super) fn is_in(&self, user: &UserId) -> bool {
        self.0.get(user).and_then(|times| times.last()).is_some_and(|(_, to)| *to == u64::MAX)
    }

    /// Whether the entry at `seq` is for the user.
    pub(super) fn sees(&self, user: &UserId, seq: u64) -> bool {
        self.0.get(user).is_some_and(|times| times.iter().any(|(from, to)| (*from..=*to).contains(&seq)))
    }
}

pub(super) fn erased(log: &BTreeMap<u64, Fact>) -> BTreeSet<u64> {
    let of = |fact: &Fact| if let What::Redacted(of) = fact.what { Some(of.get()) } else { None };
    log.values().filter_map(of).collect()
}

impl What {
    /// What people wrote, if this is of theirs.
    pub(super) fn written(&self) -> Option<&str> {
        match self {
            Self::Message(text) | Self::File(text) => Some(text),
            _ => None,
        }
    }
}

/// The text of a content, as the checker compares it.
pub fn text(content: &Content) -> What {
    match content {
        Content::Attachment(attachment) => What::File(attachment.caption.clone()),
        content => What::Message(content.as_text().unwrap_or("?").to_owned()),
    }
}
