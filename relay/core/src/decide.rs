//! The one way into a chat's log.

use crate::command::{Action, Command};
use crate::entry::Entry;
use crate::number::{self, Standing};
use crate::sabotage::{self, Sabotage};
use crate::view::{Outcome, View};
use crate::{membership, message};
use godwit_wire::entry::EntryBody;
use godwit_wire::{Code, Refusal, Seq, UnixMillis};

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Appended to the log; the answer is `Sent`.
    Append(Box<Entry>),
    /// The number is decided to be nothing; durable before the answer.
    Void(Refusal),
    /// The number is decided to be an entry that the device sent under another enrolment; durable before the answer.
    Known { seq: Seq, at: UnixMillis },
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
                Some(decided) if decided.id == command.stamp.id || sabotage::is(Sabotage::TakenNumber) => {
                    decided.outcome
                }
                _ => Outcome::Refused(Refusal::with_next(Code::NumberTaken, view.mark().next())),
            };
            return Ok(Decision::Answer(answer));
        }
        Standing::New => {}
    }
    // A device that was enrolled anew numbers anew what it does not know to be sent; the answer may have got lost.
    if let Some((seq, at)) = view.sent_before(command.stamp.id)? {
        return Ok(Decision::Known { seq, at });
    }
    let body = match &command.action {
        Action::Create { kind, title, participants } => membership::create(command, *kind, title, participants, view)?,
        Action::Update(change) => membership::update(&user, change, view)?,
        Action::Send { content, blobs } => message::send(&user, content, blobs, view)?,
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
