//! Watermarks: how far each user got in a chat, in one row of the chat.

use super::StoreError;
use super::chats::participants;
use super::keys::{Key, Parts, Span};
use super::rows::{Records, RecordsMut, Rows, RowsMut, Scan, decode};
use super::tables::{Marks, WATERMARKS, Watermark};
use godwit_core::Participant;
use godwit_wire::{ChatId, UserId, limits};
use std::ops::ControlFlow;

/// Shows how far users got in the chats of a span, as it is saved.
pub(super) fn each(
    rows: &dyn Rows,
    span: &Span,
    mut see: impl FnMut(&ChatId, UserId, Watermark) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    rows.scan(WATERMARKS.id, span, Scan::ALL, &mut |key, value| {
        let mut parts = Parts(key);
        let chat = parts.chat()?;
        if parts.0.is_empty() {
            decode::<Marks>(value)?.into_iter().try_for_each(|(user, mark)| see(&chat, user, mark))?;
        } else {
            // In the first format each user had a row.
            see(&chat, parts.user()?, decode(value)?)?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Removes the rows that the first format has of a chat. Gives what was in them.
fn take_former(rows: &mut dyn RowsMut, chat: &ChatId) -> Result<Marks, StoreError> {
    let (mut marks, span) = (Marks::new(), Key::new().chat(chat).prefix());
    each(rows, &span, |_, user, mark| {
        marks.insert(user, mark);
        Ok(())
    })?;
    if !marks.is_empty() {
        rows.clear(WATERMARKS, &span)?;
    }
    Ok(marks)
}

/// Saves how far users got; nobody goes back.
pub(super) fn save(rows: &mut dyn RowsMut, chat: &ChatId, news: &[(UserId, Watermark)]) -> Result<(), StoreError> {
    if news.is_empty() {
        return Ok(());
    }
    let key = Key::new().chat(chat).bytes();
    let mut marks = match rows.get(WATERMARKS, &key)? {
        Some(marks) => marks,
        None => take_former(rows, chat)?,
    };
    for (user, new) in news {
        marks.entry(user.clone()).or_default().rise(*new);
    }
    if marks.len() > limits::PARTICIPANTS {
        let all = participants(rows, chat)?;
        marks.retain(|user, _| all.get(user).is_some_and(Participant::is_present));
    }
    rows.put(WATERMARKS, &key, &marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Transaction;
    use godwit_core::entry::encode_record;
    use godwit_wire::Seq;

    /// On tables with nothing in them.
    fn on_empty(test: impl FnOnce(&mut dyn RowsMut, ChatId)) {
        let database = redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let txn = database.begin_write().unwrap();
        test(&mut Transaction::new(&txn), "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap());
    }

    fn all(rows: &dyn Rows) -> Vec<(String, Watermark)> {
        let mut all = Vec::new();
        let see = |_: &ChatId, user: UserId, mark: Watermark| {
            all.push((user.to_string(), mark));
            Ok(())
        };
        each(rows, &Span::ALL, see).unwrap();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    #[test]
    fn rows_of_the_first_format_become_one_and_nobody_goes_back() {
        on_empty(|rows, chat| {
            let other: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8058".parse().unwrap();
            let seq = |n| Seq::new(n).ok();
            let mark = |delivered, read| Watermark { delivered: seq(delivered), read: seq(read) };
            let user = |name: &str| -> UserId { format!("{name}@eu").parse().unwrap() };
            for (chat, name, row) in
                [(&chat, "ann", mark(5, 0)), (&chat, "bob", mark(7, 7)), (&other, "ann", mark(1, 1))]
            {
                let key = Key::new().chat(chat).user(&user(name)).bytes();
                rows.insert(WATERMARKS.id, &key, &encode_record(&row)).unwrap();
            }
            let named = |name: &str, mark| (format!("{name}@eu"), mark);
            let before = [named("ann", mark(5, 0)), named("ann", mark(1, 1)), named("bob", mark(7, 7))];
            assert_eq!(all(rows), before, "they are read");
            save(rows, &chat, &[(user("ann"), mark(6, 6)), (user("bob"), mark(6, 8))]).unwrap();
            save(rows, &chat, &[(user("cat"), mark(2, 0))]).unwrap();
            let count = rows.some(WATERMARKS, &Key::new().chat(&chat).prefix(), Scan::ALL).unwrap().len();
            assert_eq!(count, 1, "one row of the chat");
            let after = [
                named("ann", mark(6, 6)),
                named("ann", mark(1, 1)),
                named("bob", mark(7, 8)),
                named("cat", mark(2, 0)),
            ];
            assert_eq!(all(rows), after);
        });
    }

    #[test]
    fn a_row_has_no_more_users_than_a_chat() {
        on_empty(|rows, chat| {
            let mark = Watermark { delivered: Some(Seq::FIRST), read: None };
            let crowd: Vec<_> =
                (0..=limits::PARTICIPANTS).map(|i| (format!("u{i}@eu").parse().unwrap(), mark)).collect();
            save(rows, &chat, &crowd[..limits::PARTICIPANTS]).unwrap();
            assert_eq!(all(rows).len(), limits::PARTICIPANTS);
            save(rows, &chat, &crowd[limits::PARTICIPANTS..]).unwrap();
            assert_eq!(all(rows), [], "nobody takes part in this chat any more");
        });
    }
}
