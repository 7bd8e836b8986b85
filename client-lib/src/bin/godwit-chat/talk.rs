//! The interactive chat.

use crate::input::input_lines;
use crate::print;
use crate::print::out as say;
use crate::verbs::{created_direct, drained};
use godwit_client::{ChatId, Client, Content, Error, Event, UserId};
use std::io::ErrorKind;
use std::path::PathBuf;

const HELP: &str = "/chats  /open CHAT  /direct USER  /history  /quit; anything else is sent to the open chat";

pub(crate) async fn run(client: &Client) -> Result<(), Error> {
    let mut events = client.events()?;
    let mut input = input_lines(16);
    say(&format!("{}: {HELP}", client.device()))?;
    let mut open = None;
    loop {
        tokio::select! {
            next = events.next() => {
                let Some(next) = next else { return Ok(()) };
                let next = next?;
                if let Event::ConnectionChanged(state) = &next.event {
                    print::say(&format!("({state})"));
                } else if let Some(text) = print::event_text(&next.event) {
                    say(&text)?;
                }
                client.acknowledge(&next)?;
            }
            line = input.recv() => {
                let Some(line) = line else { return drained(client).await };
                let line = match line {
                    Ok(line) => line,
                    Err(error) if error.kind() == ErrorKind::InvalidData => {
                        print::say(&format!("({error}: nothing was sent)"));
                        continue;
                    }
                    Err(source) => return Err(Error::Io { path: PathBuf::from("standard input"), source }),
                };
                if line.trim() == "/quit" {
                    return drained(client).await;
                }
                // A slip is told, and the chat goes on.
                if let Err(error) = command(client, line.trim(), &mut open).await {
                    print::say(&format!("({error})"));
                }
            }
        }
    }
}

async fn command(client: &Client, line: &str, open: &mut Option<ChatId>) -> Result<(), Error> {
    let invalid = |error: &dyn ToString| Error::Invalid(error.to_string());
    let opened = || open.clone().ok_or_else(|| Error::Invalid("open a chat first".to_owned()));
    match line.split_once(' ').unwrap_or((line, "")) {
        ("", _) => {}
        ("/chats", _) => {
            for chat in client.chats()? {
                say(&print::chat_text(&chat, &client.participants(&chat.id)?))?;
            }
        }
        ("/open", chat) => *open = Some(chat.parse::<ChatId>().map_err(|error| invalid(&error))?),
        ("/direct", user) => {
            let user: UserId = user.parse().map_err(|error| invalid(&error))?;
            let (chat, created) = client.direct(user)?;
            if let Some(id) = created {
                created_direct(client, &chat, id).await?;
            }
            say(&chat.to_string())?;
            *open = Some(chat);
        }
        ("/history", _) => {
            for entry in client.history(&opened()?, None, 20).await? {
                say(&print::history_text(&entry))?;
            }
        }
        (verb, _) if verb.starts_with('/') => say(HELP)?,
        _ => {
            client.send(&opened()?, Content::text(line))?;
        }
    }
    Ok(())
}
