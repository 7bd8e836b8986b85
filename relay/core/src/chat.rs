//! A chat's state, as its log makes it, and what follows from each entry.

use crate::entry::Entry;
use crate::participant::Participant;
use godwit_wire::entry::{Change, ChatKind, EntryBody, Title};
use godwit_wire::{ChatId, Seq, UnixMillis, UserId};
use std::collections::BTreeMap;
use std::sync::Arc;

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

    /// Takes the next entry of a log whose participants and title are known as of a later one.
    pub fn pass(&mut self, entry: &Entry) -> Applied {
        self.head = entry.seq;
        self.last_at = entry.at;
        self.total_bytes = entry.total_bytes;
        let projections = match entry.body {
            EntryBody::Redaction { of } => vec![Projection::Erase { of, by: entry.seq }],
            _ => Vec::new(),
        };
        Applied { recipients: self.recipients_at(entry.seq), projections }
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
