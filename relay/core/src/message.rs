//! Sending and redacting.

use crate::blob::may_refer;
use crate::membership::{Right, may, present};
use crate::view::View;
use godwit_wire::blob::BlobRef;
use godwit_wire::entry::{Content, EntryBody};
use godwit_wire::{Code, Refusal, Seq, UserId, limits};

pub(crate) fn send<V: View>(
    user: &UserId,
    content: &Content,
    blobs: &[BlobRef],
    view: &V,
) -> Result<Result<EntryBody, Refusal>, V::Fault> {
    if let Err(refusal) = present(user, view).and_then(|_| fits(content)) {
        return Ok(Err(refusal));
    }
    for named in blobs {
        let (has, is_held) = view.blob(named)?;
        if let Err(refusal) = may_refer(named, has.as_ref(), is_held) {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(EntryBody::Message { content: content.clone(), blobs: blobs.to_vec() }))
}

fn fits(content: &Content) -> Result<(), Refusal> {
    if content.0.len() > limits::CONTENT_BYTES {
        let why = format!("content has {} bytes, at most {} are allowed", content.0.len(), limits::CONTENT_BYTES);
        return Err(Refusal::because(Code::TooLarge, why));
    }
    Ok(())
}

/// The author may redact, and whoever holds [`Right::RedactAny`].
pub(crate) fn redact<V: View>(user: &UserId, of: Seq, view: &V) -> Result<Result<EntryBody, Refusal>, V::Fault> {
    let role = match present(user, view) {
        Ok(role) => role,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let chat = view.chat().expect("a present participant has a chat");
    let visible = chat.participant(user).is_some_and(|p| p.sees(of));
    let target = if visible { view.entry(of)? } else { None };
    Ok(match target {
        Some(target) if matches!(target.body, EntryBody::Message { .. }) => {
            if target.from.user() == *user || may(chat.kind, role, Right::RedactAny) {
                Ok(EntryBody::Redaction { of })
            } else {
                Err(Code::NotAllowed.into())
            }
        }
        _ => Err(Refusal::because(Code::NoSuchMessage, format!("seq {of} is no message that you can redact"))),
    })
}
