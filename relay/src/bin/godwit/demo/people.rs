//! The demo's devices, and what each of them must receive.

use super::{PATIENCE, home};
use anyhow::{Context, Result, bail, ensure};
use godwit_certs::folder::AuthorityDir;
use godwit_client::{ChatId, Client, ClientOptions, EnrolOptions, Event, Host, Seq, UserId};
use godwit_wire::Clock;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

type Received = BTreeMap<ChatId, Vec<Seq>>;

/// A device with its client, which notes every message it receives.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) user: UserId,
    home: PathBuf,
    client: Mutex<Option<Arc<Client>>>,
    received: Arc<Mutex<Received>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    pub(super) async fn enrol(
        folder: &Path,
        region: &str,
        user: &str,
        device: &str,
        relays: Vec<String>,
    ) -> Result<Self> {
        let authority = AuthorityDir::new(folder.join("relay").join("certs"));
        let user: UserId = format!("{user}@{region}").parse()?;
        let id = user.device(device)?;
        let token = authority.token(&id, Duration::from_mins(1), Clock::system().now())?;
        let authority_pem = std::fs::read_to_string(authority.root_certificate_path())?;
        let home = home(folder, id.as_str());
        let options = EnrolOptions { home: home.clone(), relays, authority_pem, token, host: Host::system() };
        godwit_client::enrol(options).await.with_context(|| format!("enrol {id}"))?;
        let device = Self { name: id.to_string(), user, home, client: Mutex::new(None), received: Arc::default() };
        device.go_online()?;
        device.client().wait_synced(PATIENCE).await?;
        Ok(device)
    }

    /// How many messages of `chat` came.
    pub(super) fn received(&self, chat: &ChatId) -> usize {
        held(&self.received).get(chat).map_or(0, Vec::len)
    }

    pub(super) fn go_online(&self) -> Result<()> {
        let client = Arc::new(Client::open(ClientOptions::new(&self.home))?);
        let mut events = client.events()?;
        let (received, taker) = (self.received.clone(), client.clone());
        tokio::spawn(async move {
            while let Some(Ok(next)) = events.next().await {
                if let Event::MessageReceived { chat, message } = &next.event {
                    held(&received).entry(chat.clone()).or_default().push(message.seq);
                }
                if taker.acknowledge(&next).is_err() {
                    return;
                }
            }
        });
        *held(&self.client) = Some(client);
        Ok(())
    }

    pub(super) async fn go_offline(&self) {
        let client = held(&self.client).take();
        if let Some(client) = client {
            client.close().await;
        }
    }

    /// The client of a device that is online.
    pub(super) fn client(&self) -> Arc<Client> {
        held(&self.client).clone().expect("the demo uses only devices that are online")
    }
}

/// What must arrive where.
#[derive(Default)]
pub(super) struct Tally {
    messages: u64,
    expected: BTreeMap<(String, ChatId), u64>,
    lost: u64,
    doubled: u64,
    unordered: u64,
}

impl Tally {
    /// Other devices come on, under names that may be the same.
    pub(super) fn next_act(&mut self) {
        self.expected.clear();
    }

    /// `count` messages were sent to `chat` and must arrive at `devices`.
    pub(super) fn expect(&mut self, chat: &ChatId, count: u64, devices: &[&Device]) {
        self.messages += count;
        for device in devices {
            *self.expected.entry((device.name.clone(), chat.clone())).or_default() += count;
        }
    }

    /// Waits until the devices have what they must have.
    pub(super) async fn settle(&mut self, devices: &[&Device]) -> Result<()> {
        for device in devices {
            let mut missing = 0;
            let arrived = async {
                loop {
                    missing = self.missing(device);
                    if missing == 0 {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            if tokio::time::timeout(PATIENCE, arrived).await.is_err() {
                self.lost += missing;
                bail!("{missing} messages did not reach {}", device.name);
            }
            self.check(device);
        }
        Ok(())
    }

    fn missing(&self, device: &Device) -> u64 {
        let received = held(&device.received);
        let mine = self.expected.iter().filter(|((name, _), _)| *name == device.name);
        mine.map(|((_, chat), expected)| {
            let mut seqs = received.get(chat).cloned().unwrap_or_default();
            seqs.sort_unstable();
            seqs.dedup();
            expected.saturating_sub(seqs.len() as u64)
        })
        .sum()
    }

    fn check(&mut self, device: &Device) {
        for seqs in held(&device.received).values() {
            let mut seen = std::collections::BTreeSet::new();
            self.doubled += seqs.iter().filter(|seq| !seen.insert(**seq)).count() as u64;
            self.unordered += seqs.windows(2).filter(|pair| pair[1] < pair[0]).count() as u64;
        }
    }

    pub(super) fn fault(&self) -> Option<String> {
        (self.lost + self.doubled + self.unordered > 0).then(|| self.line())
    }

    pub(super) fn line(&self) -> String {
        let Self { messages, lost, doubled, unordered, .. } = self;
        format!("{messages} messages, {lost} lost, {doubled} doubled, {unordered} out of order")
    }
}

/// Every device must show the same entries of a chat, from the first to this one.
pub(super) async fn same_history(devices: &[&Device], chat: &ChatId, limit: usize) -> Result<()> {
    let mut shown = Vec::new();
    for device in devices {
        let history = device.client().history(chat, None, limit).await?;
        ensure!(history.len() == limit, "{} sees {} of {limit} entries", device.name, history.len());
        ensure!(history.iter().zip(1..).all(|(entry, n)| entry.seq.get() == n), "{} sees gaps", device.name);
        shown.push(history.iter().map(|entry| (entry.seq, entry.from.clone())).collect::<Vec<_>>());
    }
    ensure!(shown.windows(2).all(|pair| pair[0] == pair[1]), "histories differ");
    Ok(())
}
