//! What is printed: a line for a person, or one JSON object.

use godwit_client::client::HistoryBody;
use godwit_client::{
    Change, Chat, ChatId, ChatKind, ConnectionState, Content, DeviceId, Error, Event, HistoryEntry, Member, Seq,
    UnixMillis,
};
use indicatif::DecimalBytes;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;

/// RFC 3339, UTC, with milliseconds.
pub(crate) fn time(at: UnixMillis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| "?".to_owned(), |time| format!("{time:.3}"))
}

/// Writes a line at once: whoever reads it may act on it.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints a line.
///
/// # Errors
/// [`Error::Io`]; of kind `BrokenPipe` if nobody reads any more, which ends the command in peace.
pub(crate) fn out(text: &str) -> Result<(), Error> {
    line(text).map_err(|source| Error::Io { path: PathBuf::from("standard output"), source })
}

/// Says something on standard error, if anybody listens.
pub(crate) fn say(text: &str) {
    // There is nowhere left to complain.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// What others wrote, without what a terminal would obey.
fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

fn members(members: &[Member]) -> Value {
    members.iter().map(|m| json!({"user": m.user.as_str(), "role": m.role.as_str()})).collect()
}

fn kind(kind: ChatKind) -> &'static str {
    match kind {
        ChatKind::Group => "group",
        ChatKind::Direct => "direct",
    }
}

struct Head<'a> {
    event: &'static str,
    chat: &'a ChatId,
    seq: Seq,
    from: &'a DeviceId,
    at: UnixMillis,
}

impl Head<'_> {
    fn with(&self, more: Value) -> Value {
        let Self { event, chat, seq, from, at } = self;
        let mut value = json!({
            "event": event, "chat": chat.to_string(), "seq": seq.get(), "from": from.as_str(), "at": time(*at),
        });
        if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
            value.extend(more);
        }
        value
    }
}

fn content(content: &Content) -> Value {
    match content {
        Content::Text { text } => json!({"text": text}),
        Content::Reply { to, text } => json!({"text": text, "replyTo": to.get()}),
        Content::Reaction { to, emoji } => json!({"text": emoji, "reactionTo": to.get()}),
        Content::Edit { of, text } => json!({"text": text, "editOf": of.get()}),
        Content::Attachment(file) => json!({
            "text": file.caption, "file": file.file_name(), "mediaType": file.media_type, "bytes": file.size_bytes,
        }),
        Content::Unknown(bytes) => json!({"text": Value::Null, "unknownBytes": bytes.len()}),
    }
}

fn change(change: &Change) -> Value {
    match change {
        Change::Title(title) => json!({"change": "title", "title": title.as_str()}),
        Change::Add(added) => json!({"change": "add", "users": members(added)}),
        Change::Remove(user) => json!({"change": "remove", "users": [{"user": user.as_str()}]}),
        Change::Role(member) => json!({"change": "role", "users": members(std::slice::from_ref(member))}),
        Change::Leave => json!({"change": "leave"}),
    }
}

pub(crate) fn event_json(event: &Event) -> Value {
    match event {
        Event::MessageReceived { chat, message } => {
            let head = Head { event: "messageReceived", chat, seq: message.seq, from: &message.from, at: message.at };
            head.with(content(&message.content))
        }
        Event::ChatCreated { chat, origin, kind: chat_kind, title, participants } => {
            let head = Head { event: "chatCreated", chat, seq: origin.seq, from: &origin.from, at: origin.at };
            let participants = members(participants);
            head.with(json!({"kind": kind(*chat_kind), "title": title.as_str(), "participants": participants}))
        }
        Event::ChatUpdated { chat, origin, change: what } => {
            let head = Head { event: "chatUpdated", chat, seq: origin.seq, from: &origin.from, at: origin.at };
            head.with(change(what))
        }
        Event::Redacted { chat, origin, of } => {
            let head = Head { event: "redacted", chat, seq: origin.seq, from: &origin.from, at: origin.at };
            head.with(json!({"of": of.get()}))
        }
        Event::ReceiptUpdated { chat, receipt } => json!({
            "event": "receiptUpdated", "chat": chat.to_string(),
            "delivered": receipt.delivered.map(Seq::get), "read": receipt.read.map(Seq::get),
        }),
        Event::HistoryGap { chat, range } => json!({
            "event": "historyGap", "chat": chat.to_string(), "from": range.from.get(), "to": range.to.get(),
        }),
        Event::ConnectionChanged(state) => match state {
            ConnectionState::Connecting => json!({"event": "connectionChanged", "state": "connecting"}),
            ConnectionState::Connected(relay) => {
                json!({"event": "connectionChanged", "state": "connected", "relay": relay})
            }
            ConnectionState::Offline(reason) => {
                json!({"event": "connectionChanged", "state": "offline", "reason": reason})
            }
            ConnectionState::Refused(refusal) => {
                json!({"event": "connectionChanged", "state": "refused", "reason": refusal.to_string()})
            }
        },
    }
}

fn text(content: &Content) -> String {
    let said = safe(content.as_text().unwrap_or("(needs a newer version)"));
    match content {
        Content::Attachment(file) => {
            let (name, size) = (safe(&file.file_name()), DecimalBytes(file.size_bytes));
            format!("[{name}, {size}] {said}").trim_end().to_owned()
        }
        _ => said,
    }
}

fn change_text(change: &Change) -> String {
    let names = |members: &[Member]| members.iter().map(|m| m.user.to_string()).collect::<Vec<_>>().join(", ");
    match change {
        Change::Title(title) => format!("title: {}", title.as_str()),
        Change::Add(added) => format!("added {}", names(added)),
        Change::Remove(user) => format!("removed {user}"),
        Change::Role(member) => format!("{} is {} now", member.user, member.role.as_str()),
        Change::Leave => "left".to_owned(),
    }
}

/// A line for a person; none for what only a program wants to know.
pub(crate) fn event_text(event: &Event) -> Option<String> {
    Some(match event {
        Event::MessageReceived { chat, message } => {
            format!("{chat} #{} {} {}: {}", message.seq, time(message.at), message.from, text(&message.content))
        }
        Event::ChatCreated { chat, origin, title, .. } => {
            format!("{chat} #{} {} {}: chat {:?}", origin.seq, time(origin.at), origin.from, title.as_str())
        }
        Event::ChatUpdated { chat, origin, change } => {
            format!("{chat} #{} {} {}: {}", origin.seq, time(origin.at), origin.from, change_text(change))
        }
        Event::Redacted { chat, origin, of } => {
            format!("{chat} #{} {} {}: erased #{of}", origin.seq, time(origin.at), origin.from)
        }
        Event::HistoryGap { chat, range } => {
            format!("{chat}: #{} to #{} are in the history only", range.from, range.to)
        }
        Event::ReceiptUpdated { .. } | Event::ConnectionChanged(_) => return None,
    })
}

pub(crate) fn history_json(chat: &ChatId, entry: &HistoryEntry) -> Value {
    let head = |event| Head { event, chat, seq: entry.seq, from: &entry.from, at: entry.at };
    match &entry.what {
        HistoryBody::Message(what) => head("messageReceived").with(content(what)),
        HistoryBody::Created { kind: chat_kind, title, participants } => {
            let participants = members(participants);
            let more = json!({"kind": kind(*chat_kind), "title": title.as_str(), "participants": participants});
            head("chatCreated").with(more)
        }
        HistoryBody::Updated(what) => head("chatUpdated").with(change(what)),
        HistoryBody::Redaction { of } => head("redacted").with(json!({"of": of.get()})),
        HistoryBody::Redacted => head("redacted").with(json!({"of": entry.seq.get()})),
        HistoryBody::Unknown => head("unknown").with(json!({})),
    }
}

pub(crate) fn history_text(entry: &HistoryEntry) -> String {
    let what = match &entry.what {
        HistoryBody::Message(content) => text(content),
        HistoryBody::Created { title, .. } => format!("created the chat {:?}", title.as_str()),
        HistoryBody::Updated(change) => change_text(change),
        HistoryBody::Redaction { of } => format!("erased #{of}"),
        HistoryBody::Redacted => "(erased)".to_owned(),
        HistoryBody::Unknown => "(needs a newer version)".to_owned(),
    };
    format!("#{} {} {}: {what}", entry.seq, time(entry.at), entry.from)
}

pub(crate) fn chat_json(chat: &Chat, participants: &[Member]) -> Value {
    json!({
        "chat": chat.id.to_string(), "kind": kind(chat.kind), "title": chat.title.as_str(),
        "role": chat.role.map(godwit_client::Role::as_str), "position": chat.position.map(Seq::get),
        "delivered": chat.receipt.delivered.map(Seq::get), "read": chat.receipt.read.map(Seq::get),
        "participants": members(participants),
    })
}

pub(crate) fn chat_text(chat: &Chat, participants: &[Member]) -> String {
    let names: Vec<&str> = participants.iter().map(|m| m.user.as_str()).collect();
    let role = chat.role.map_or("left", godwit_client::Role::as_str);
    format!("{}  {}  {role}  {:?}  {}", chat.id, kind(chat.kind), chat.title.as_str(), names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_told_what_to_do() {
        let content = Content::text("a\u{1b}[31mred\u{7}\u{9b}2J\r\n\u{e4}");
        assert_eq!(text(&content), "a\\u{1b}[31mred\\u{7}\\u{9b}2J\\r\\n\u{e4}");
    }
}
