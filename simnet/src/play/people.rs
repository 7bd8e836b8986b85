//! What people do on their devices.

use super::Player;
use crate::plan::Action;
use anyhow::{Context, Result};
use godwit_checker::What as Said;
use godwit_client::{Change, ChatId, Client, Content, Member, Role, Title, UserId};

impl Player {
    pub(super) fn chat(&self, name: &str) -> Result<ChatId> {
        self.chats.borrow().get(name).cloned().with_context(|| format!("chat {name} does not exist"))
    }

    pub(super) async fn act(&self, id: &str, client: &Client, action: &Action) -> Result<()> {
        let (device, checker) = (client.device(), self.sim.checker());
        let member = |user: &str, role| Ok::<_, anyhow::Error>(Member { user: user.parse::<UserId>()?, role });
        let update = |name: &str, change: Change| {
            let chat = self.chat(name)?;
            let put = client.update_chat(&chat, change.clone())?;
            checker.put(device, &chat, put, Said::Updated(change));
            Ok(())
        };
        match action {
            Action::Direct { chat: name, with } => {
                let (chat, put) = client.direct(with.parse()?)?;
                self.chats.borrow_mut().insert(name.clone(), chat.clone());
                if let Some(put) = put {
                    let both = vec![Member { user: device.user(), role: Role::Member }, member(with, Role::Member)?];
                    checker.put(device, &chat, put, Said::Created(both));
                }
                Ok(())
            }
            Action::Group { chat: name, members } => {
                let members: Vec<Member> =
                    members.iter().map(|user| member(user, Role::Admin)).collect::<Result<_>>()?;
                let (chat, put) = client.create_group(Title::parse(name)?, members.clone())?;
                let mut all = vec![Member { user: device.user(), role: Role::Owner }];
                all.extend(members);
                checker.put(device, &chat, put, Said::Created(all));
                self.chats.borrow_mut().insert(name.clone(), chat);
                Ok(())
            }
            Action::Send { chat: name, count } => {
                let chat = self.chat(name)?;
                let first = self.messages.get();
                self.messages.set(first + *count as u64);
                let texts: Vec<String> = (first..first + *count as u64).map(|n| format!("{id} {name} {n}")).collect();
                let puts = client.send_many(&chat, texts.iter().map(Content::text).collect())?;
                for (put, text) in puts.into_iter().zip(texts) {
                    checker.put(device, &chat, put, Said::Message(text));
                }
                Ok(())
            }
            Action::Add { chat, user } => update(chat, Change::Add(vec![member(user, Role::Member)?])),
            Action::Remove { chat, user } => update(chat, Change::Remove(user.parse()?)),
            Action::Leave { chat } => update(chat, Change::Leave),
            Action::Title { chat } => {
                let number = self.messages.get();
                self.messages.set(number + 1);
                update(chat, Change::Title(Title::parse(format!("{chat} {number}"))?))
            }
            Action::Redact { chat: name } => {
                let chat = self.chat(name)?;
                let Some(seq) = checker.last_message(device, &chat) else { return Ok(()) };
                let put = client.redact(&chat, seq)?;
                checker.put(device, &chat, put, Said::Redacted(seq));
                Ok(())
            }
            Action::Read { chat: name } => {
                let chat = self.chat(name)?;
                if let Some(position) = client.chat(&chat)?.and_then(|chat| chat.position) {
                    client.mark_read(&chat, position)?;
                }
                Ok(())
            }
            Action::History { chat: name } => {
                let chat = self.chat(name)?;
                let entries = client.history(&chat, None, 50).await?;
                checker.history(device, &chat, &entries);
                Ok(())
            }
            Action::Attach { chat: name, bytes } => self.attach(client, name, *bytes),
            Action::Fetch { chat: name } => {
                let chat = self.chat(name)?;
                self.fetch_latest(client, &chat).await
            }
        }
    }
}
