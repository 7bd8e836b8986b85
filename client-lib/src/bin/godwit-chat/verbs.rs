//! What each verb does.

use crate::input::input_lines;
use crate::print::{self, out};
use crate::{Args, Verb, Wait, files, talk};
use godwit_client::{
    ChatId, Client, ClientOptions, Code, Content, EnrolOptions, Error, Event, Host, Member, MessageId, MessageState,
    Role, Seq, Title, UserId,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::VecDeque;
use std::io::{ErrorKind, IsTerminal};
use std::time::Duration;
use tokio::time::Instant;

/// How long a command waits for the relay.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the outbox is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long `chats` waits before it shows what is on the device.
const FRESHEN: Duration = Duration::from_secs(5);
/// Lines that are read ahead, kept in one transaction, and sent.
const LINES: usize = 256;
/// Lines on their way before more are read.
const AHEAD: usize = 4 * LINES;

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let Args { home, json, verb } = args;
    if let Some(Verb::Enrol { relay, authority, token }) = verb {
        let authority_pem = std::fs::read_to_string(&authority)
            .map_err(|error| Error::Invalid(format!("--authority {}: {error}", authority.display())))?;
        let device =
            godwit_client::enrol(EnrolOptions { home, relays: relay, authority_pem, token, host: Host::system() })
                .await?;
        return out(&if json { json!({"device": device.as_str()}).to_string() } else { format!("enrolled {device}") });
    }
    let client = Client::open(ClientOptions::new(home))?;
    let result = match verb {
        None => talk::run(&client).await,
        Some(Verb::Enrol { .. }) => Ok(()),
        Some(Verb::Direct { user }) => direct(&client, user, json).await,
        Some(Verb::New { title, users }) => new(&client, title, users, json).await,
        Some(Verb::Chats) => chats(&client, json).await,
        Some(Verb::Send { chat, text, wait, timeout }) => {
            Sending { client: &client, chat, wait, timeout, json, n: 0 }.run(text).await
        }
        Some(Verb::Listen { count, seconds }) => listen(&client, count, seconds, json).await,
        Some(Verb::History { chat, before, limit }) => history(&client, &chat, before, limit, json).await,
        Some(Verb::Attach { chat, file, caption, timeout }) => {
            files::attach(&client, &chat, file, caption, timeout, json).await
        }
        Some(Verb::Fetch { chat, seq, out, timeout }) => files::fetch(&client, &chat, seq, out, timeout, json).await,
        Some(Verb::Forward { chat, seq, to, caption }) => forward(&client, &chat, seq, to, &caption, json).await,
        Some(Verb::Redact { chat, seq }) => redact(&client, chat, seq, json).await,
        Some(Verb::Outbox { wait, forget }) => outbox(&client, wait, forget, json).await,
    };
    client.close().await;
    result
}

/// What a wait that ran out leaves behind.
const KEPT: &str = "it is kept, and sent when a command of this home reaches a relay";

/// Waits as long as the outbox gets shorter, and `timeout` beyond. A wait that ran out while there is no connection says
/// why there is none.
async fn wait_for(client: &Client, id: MessageId, state: MessageState, timeout: Duration) -> Result<(), Error> {
    let mut unsent = unsent(client)?;
    let result = loop {
        let result = client.wait_for(id, state, timeout).await;
        let before = std::mem::replace(&mut unsent, self::unsent(client)?);
        if !matches!(result, Err(Error::TimedOut(_))) || unsent >= before {
            break result;
        }
    };
    match result {
        Ok(_) => Ok(()),
        Err(Error::TimedOut(timeout)) if client.message_state(id)?.is_some_and(|message| message.seq.is_some()) => {
            let timeout = humantime::format_duration(timeout);
            Err(Error::Unreachable(format!("it is sent, and not everybody has it after {timeout}")))
        }
        Err(Error::TimedOut(timeout)) if client.owns_connection() => {
            match client.wait_connected(Duration::ZERO).await {
                Err(Error::Unreachable(why)) => Err(Error::Unreachable(format!("{why}; {KEPT}"))),
                Err(error) => Err(error),
                Ok(()) => Err(Error::Unreachable(format!("{}; {KEPT}", Error::TimedOut(timeout)))),
            }
        }
        Err(error) => Err(error),
    }
}

fn unsent(client: &Client) -> Result<u64, Error> {
    Ok(client.unsent()?.iter().map(|(_, count)| count).sum())
}

fn print_chat(chat: &ChatId, json: bool) -> Result<(), Error> {
    out(&if json { json!({"chat": chat.to_string()}).to_string() } else { chat.to_string() })
}

async fn direct(client: &Client, user: UserId, json: bool) -> Result<(), Error> {
    let (chat, created) = client.direct(user)?;
    if let Some(id) = created {
        created_direct(client, &chat, id).await?;
    }
    print_chat(&chat, json)
}

pub(crate) async fn created_direct(client: &Client, chat: &ChatId, id: MessageId) -> Result<(), Error> {
    match wait_for(client, id, MessageState::Sent, PATIENCE).await {
        // The other side, or another device, was faster.
        Err(Error::Refused(refusal)) if refusal.code == Code::AlreadyExists => known(client, chat).await,
        other => other,
    }
}

async fn outbox(client: &Client, wait: bool, forget: bool, json: bool) -> Result<(), Error> {
    if wait {
        drained(client).await?;
    }
    let mut refused_first = None;
    for (chat, count) in client.unsent()? {
        let chat = chat.to_string();
        out(&if json {
            json!({"chat": chat, "unsent": count}).to_string()
        } else {
            format!("{chat}  {count} unsent")
        })?;
    }
    for upload in client.uploads()? {
        let (chat, file) = (upload.chat.to_string(), upload.path.display().to_string());
        let refused = upload.refusal.as_ref().map(ToString::to_string);
        out(&if json {
            json!({"chat": chat, "file": file, "refused": refused, "trouble": upload.trouble}).to_string()
        } else {
            format!("{chat}  {file}: {}", refused.or(upload.trouble).as_deref().unwrap_or("on its way"))
        })?;
        if let Some(refusal) = upload.refusal {
            refused_first.get_or_insert(refusal);
            if forget {
                client.cancel_upload(upload.id)?;
            }
        }
    }
    match refused_first {
        Some(refusal) if wait => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// Waits until everything is sent or refused, as long as there is progress.
pub(crate) async fn drained(client: &Client) -> Result<(), Error> {
    let (mut left, mut since) = (waits(client)?, Instant::now());
    while left.0 > 0 {
        if since.elapsed() >= PATIENCE {
            return Err(Error::Unreachable(format!("{} are unsent; {KEPT}", left.0)));
        }
        tokio::time::sleep(LOOK).await;
        let now = waits(client)?;
        if now != left {
            (left, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// How many messages and files wait, and how many bytes of these are where they should be.
fn waits(client: &Client) -> Result<(u64, u64), Error> {
    let uploads: Vec<_> = client.uploads()?.into_iter().filter(|upload| upload.refusal.is_none()).collect();
    let done = uploads.iter().map(|upload| upload.done_bytes).sum();
    Ok((unsent(client)? + uploads.len() as u64, done))
}

/// Makes sure that the device knows the chat.
async fn known(client: &Client, chat: &ChatId) -> Result<(), Error> {
    if client.chat(chat)?.is_none() && client.owns_connection() {
        client.refresh(chat).await?;
    }
    Ok(())
}

async fn new(client: &Client, title: String, users: Vec<UserId>, json: bool) -> Result<(), Error> {
    let title = Title::parse(title).map_err(|error| Error::Invalid(error.to_string()))?;
    let members = users.into_iter().map(|user| Member { user, role: Role::Member }).collect();
    let (chat, id) = client.create_group(title, members)?;
    wait_for(client, id, MessageState::Sent, PATIENCE).await?;
    print_chat(&chat, json)
}

async fn chats(client: &Client, json: bool) -> Result<(), Error> {
    if let Err(error) = client.wait_synced(FRESHEN).await {
        match error {
            Error::Refused(_) => return Err(error),
            other => print::say(&format!("godwit-chat: {other}; this is what the device has")),
        }
    }
    for chat in client.chats()? {
        let participants = client.participants(&chat.id)?;
        let text = if json {
            print::chat_json(&chat, &participants).to_string()
        } else {
            print::chat_text(&chat, &participants)
        };
        out(&text)?;
    }
    Ok(())
}

async fn history(client: &Client, chat: &ChatId, before: Option<Seq>, limit: u32, json: bool) -> Result<(), Error> {
    // Unreachable: what is on the device can be shown all the same.
    if let Err(error @ Error::Refused(_)) = client.wait_synced(FRESHEN).await {
        return Err(error);
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    for entry in client.history(chat, before, limit).await? {
        let text = if json { print::history_json(chat, &entry).to_string() } else { print::history_text(&entry) };
        out(&text)?;
    }
    Ok(())
}

async fn forward(client: &Client, chat: &ChatId, seq: Seq, to: ChatId, caption: &str, json: bool) -> Result<(), Error> {
    ready(client, &to).await?;
    let id = client.forward(chat, seq, &to, caption).await?;
    Sending { client, chat: to, wait: Wait::Sent, timeout: PATIENCE, json, n: 0 }.sent(id).await
}

async fn redact(client: &Client, chat: ChatId, seq: Seq, json: bool) -> Result<(), Error> {
    ready(client, &chat).await?;
    let id = client.redact(&chat, seq)?;
    Sending { client, chat, wait: Wait::Sent, timeout: PATIENCE, json, n: 0 }.sent(id).await
}

/// A device that is new, or was just added, may not know the chat yet.
pub(crate) async fn ready(client: &Client, chat: &ChatId) -> Result<(), Error> {
    let since = Instant::now();
    while client.chat(chat)?.is_none() && !client.owns_connection() && since.elapsed() < FRESHEN {
        // Whichever command of this home keeps the connection may hear of it.
        tokio::time::sleep(LOOK).await;
    }
    if client.chat(chat)?.is_none() && client.owns_connection() {
        client.wait_synced(PATIENCE).await?;
    }
    known(client, chat).await
}

/// A line as a message, if it can be one.
fn checked(line: std::io::Result<String>) -> Result<Content, Error> {
    let content = Content::text(line.map_err(|error| Error::Invalid(error.to_string()))?);
    content.check()?;
    Ok(content)
}

/// Sends, and tells. Whoever stops reading what is told does not stop the sending.
struct Sending<'a> {
    client: &'a Client,
    chat: ChatId,
    wait: Wait,
    timeout: Duration,
    json: bool,
    n: u64,
}

impl Sending<'_> {
    async fn run(mut self, text: String) -> Result<(), Error> {
        ready(self.client, &self.chat).await?;
        if text != "-" {
            let id = self.client.send(&self.chat, Content::text(text))?;
            return self.sent(id).await;
        }
        let mut queue = input_lines(LINES);
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{pos} sent, {per_sec}, {elapsed}").expect("a valid template");
            ProgressBar::new_spinner().with_style(style)
        } else {
            ProgressBar::hidden()
        };
        let (mut batch, mut waiting) = (Vec::new(), VecDeque::new());
        let (mut read, mut bad, mut ended) = (0u64, None, false);
        // Each line is told as soon as it is sent, while more is read; what comes before a bad line is sent.
        while !ended || !waiting.is_empty() {
            tokio::select! {
                biased;
                done = self.first(waiting.front().copied()), if !waiting.is_empty() => {
                    let id = done?;
                    waiting.pop_front();
                    self.tell(id)?;
                    bar.inc(1);
                }
                count = queue.recv_many(&mut batch, LINES), if !ended && waiting.len() < AHEAD => {
                    ended = count == 0;
                    let mut contents = Vec::with_capacity(batch.len());
                    for line in batch.drain(..) {
                        read += 1;
                        match checked(line) {
                            Ok(content) => contents.push(content),
                            Err(error) => {
                                bad = Some((read, error));
                                ended = true;
                                break;
                            }
                        }
                    }
                    if !contents.is_empty() {
                        waiting.extend(self.client.send_many(&self.chat, contents)?);
                    }
                }
            }
        }
        bar.finish_and_clear();
        match bad {
            None => Ok(()),
            Some((line, Error::Refused(refusal))) => {
                let why = format!("line {line} and what follows it was not sent: {}", refusal.explanation);
                Err(Error::Refused(refusal.explained(&why)))
            }
            Some((line, error)) => {
                Err(Error::Invalid(format!("line {line} and what follows it was not sent: {error}")))
            }
        }
    }

    /// Waits for the first of those on their way; without one, for ever.
    async fn first(&self, id: Option<MessageId>) -> Result<MessageId, Error> {
        let Some(id) = id else { return std::future::pending().await };
        wait_for(self.client, id, self.wait.state(), self.timeout).await?;
        Ok(id)
    }

    async fn sent(&mut self, id: MessageId) -> Result<(), Error> {
        wait_for(self.client, id, self.wait.state(), self.timeout).await?;
        self.tell(id)
    }

    fn tell(&mut self, id: MessageId) -> Result<(), Error> {
        match self.told(id) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn told(&mut self, id: MessageId) -> Result<(), Error> {
        self.n += 1;
        let Some(message) = self.client.message_state(id)? else { return Ok(()) };
        if self.json {
            let value = json!({
                "event": if message.seq.is_some() { "sent" } else if message.state == MessageState::Queued { "queued" } else { "pending" },
                "chat": self.chat.to_string(), "seq": message.seq.map(Seq::get), "n": self.n,
                "at": message.at.map(print::time),
            });
            return out(&value.to_string());
        }
        match (message.seq, message.at) {
            (Some(seq), Some(at)) => out(&format!("sent #{seq} {}", print::time(at))),
            _ => out("kept, to be sent"),
        }
    }
}

async fn listen(client: &Client, count: Option<u64>, seconds: Option<f64>, json: bool) -> Result<(), Error> {
    let mut events = client.events()?;
    let limit = match seconds.map(Duration::try_from_secs_f64) {
        Some(Err(error)) => return Err(Error::Invalid(format!("--for: {error}"))),
        Some(Ok(limit)) => Some(limit),
        None => None,
    };
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut came = 0;
    while count.is_none_or(|count| came < count) {
        let next = match deadline {
            Some(deadline) => match tokio::time::timeout_at(deadline, events.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
            None => events.next().await,
        };
        let Some(next) = next else { break };
        let next = next?;
        let text = if json { Some(print::event_json(&next.event).to_string()) } else { print::event_text(&next.event) };
        if let Some(text) = text {
            out(&text)?;
        }
        // Only now: what was not printed comes again.
        client.acknowledge(&next)?;
        match &next.event {
            Event::MessageReceived { .. } => came += 1,
            Event::ConnectionChanged(godwit_client::ConnectionState::Refused(refusal)) => {
                return Err(Error::Refused(refusal.clone()));
            }
            _ => {}
        }
    }
    match (count, limit) {
        (Some(count), Some(limit)) if came < count => Err(Error::TimedOut(limit)),
        _ => Ok(()),
    }
}
