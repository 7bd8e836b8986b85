//! Relays of a simulation.

use super::{Device, Sim, Skew};
use crate::disk::{SimDisk, Unsynced};
use crate::world::places::Access;
use crate::world::{HostId, SimSocket, World};
use anyhow::{Context, Result, bail};
use godwit_relay::config::{Layers, StoreEngine};
use godwit_relay::host::{Disk, Host, Network, Threads};
use godwit_relay::store::file;
use godwit_relay::store::shared::init;
use godwit_relay::store::shared::memory::{Fate, Memory};
use godwit_relay::{Config, Relay};
use godwit_wire::{Refusal, RelayId};
use quinn::AsyncUdpSocket;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

const PORT: u16 = 4433;
/// Of what waits, so much is shown.
const SHOWN: usize = 5;
/// Where a relay's data lies on its disk.
const DATA: &str = "/data";
/// How old what a shared store shows is where that may be so.
const LAG: Duration = Duration::from_secs(1);

/// A relay's machine.
pub(super) struct Node {
    pub(super) host: HostId,
    holds_store: bool,
    config: Config,
    disk: SimDisk,
    skew: Skew,
    /// Power failed in the middle of a write.
    failed: Arc<Notify>,
    relay: Option<Relay>,
}

#[derive(Debug)]
struct SimNetwork {
    world: World,
    host: HostId,
}

impl Network for SimNetwork {
    fn udp(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(SimSocket::bind(&self.world, self.host, address.port())?)
    }

    fn tcp(&self, _address: SocketAddr) -> io::Result<Option<TcpListener>> {
        Ok(None)
    }
}

fn store_path() -> PathBuf {
    Path::new(DATA).join(file::NAME)
}

impl Sim {
    /// A new relay, started: the first of a region holds its store, those after it are edges; if the settings say
    /// `store.engine = "dynamodb"`, all share it. `settings` go over the defaults, as `("limits.sends_per_second", "5")`.
    pub async fn relay(&self, id: &str, settings: &[(&str, &str)]) -> Result<()> {
        let relay: RelayId = id.parse()?;
        let region = relay.region();
        self.0.authority.ensure(&region, self.wall())?;
        let certs = self.0.authority.relay(&relay, self.wall())?;
        let shares = settings.contains(&("store.engine", "dynamodb"));
        let first = self.hosts(region.as_str()).is_empty() || shares;
        let join: Vec<String> = self.relays().iter().map(|id| self.address(id)).collect::<Result<_>>()?;
        let host = self.0.world.add(id, region.as_str(), Access::DATA_CENTRE, false);
        let failed = Arc::new(Notify::new());
        let power_failed = {
            let (world, failed) = (self.0.world.clone(), failed.clone());
            Arc::new(move || {
                world.unplug(host);
                failed.notify_one();
            })
        };
        let disk = SimDisk::new(self.rng(id).u64(..), power_failed);
        let files = self.files_of(id);
        let mut layers = Layers::default();
        let listen = format!("{}:{PORT}", self.0.world.address(host));
        let own = [
            ("listen", listen.as_str()),
            ("admin", "127.0.0.1:1"),
            ("certs", &certs.path().to_string_lossy()),
            ("data", DATA),
            ("attachments.store", "off"),
            // In real files, of which what is synced or not cannot be told: what a crash takes from the store's records is
            // taken against them.
            ("attachments.folder", &files.to_string_lossy()),
            ("cluster.role", if first { "store" } else { "edge" }),
            ("cluster.join", &join.join(",")),
        ];
        for (key, value) in own.iter().chain(settings) {
            layers.flag("simnet", key, value)?;
        }
        let node =
            Node { host, holds_store: first, config: layers.config()?, disk, skew: Skew::new(), failed, relay: None };
        self.0.relays.borrow_mut().insert(id.to_owned(), node);
        self.start(id).await
    }

    fn node<T>(&self, id: &str, act: impl FnOnce(&mut Node) -> T) -> Result<T> {
        self.0.relays.borrow_mut().get_mut(id).map(act).with_context(|| format!("no relay {id}"))
    }

    /// The relays, by id.
    pub fn relays(&self) -> Vec<String> {
        self.0.relays.borrow().keys().cloned().collect()
    }

    pub fn is_up(&self, id: &str) -> bool {
        self.0.relays.borrow().get(id).is_some_and(|node| node.relay.is_some())
    }

    /// Whether a relay holds its region's store, as the first of a region does.
    pub fn holds_store(&self, id: &str) -> Result<bool> {
        self.node(id, |node| node.holds_store)
    }

    /// Where a relay listens.
    pub fn address(&self, id: &str) -> Result<String> {
        self.node(id, |node| node.config.listen.to_string())
    }

    /// Starts a relay on the disk that it has.
    pub async fn start(&self, id: &str) -> Result<()> {
        let (config, host) = self.node(id, |node| {
            node.disk.power_on();
            let disk = node.disk.clone();
            let host = Host {
                crypto: self.crypto(&node.skew),
                network: Arc::new(SimNetwork { world: self.0.world.clone(), host: node.host }),
                disk: Arc::new(node.disk.clone()),
                threads: Threads::Inline(Arc::new(move || disk.took())),
                shared: None,
            };
            (node.config.clone(), host)
        })?;
        let host = self.shared(id, &config, host).await?;
        if self.is_up(id) {
            bail!("{id} is up already");
        }
        self.0.world.note(&format!("start {id}"));
        let relay = Relay::start(&config, &host).await.with_context(|| format!("{id} does not start"))?;
        self.node(id, |node| node.relay = Some(relay))
    }

    /// With the store of the relay's region, if that is shared: calls take a while, and some are throttled or get no answer.
    async fn shared(&self, id: &str, config: &Config, host: Host) -> Result<Host> {
        if config.store.engine != StoreEngine::Dynamodb {
            return Ok(host);
        }
        let region = id.parse::<RelayId>()?.region();
        let new = || Memory::default().lagging(LAG);
        let store = self.0.stores.borrow_mut().entry(region.to_string()).or_insert_with(new).clone();
        init(Arc::new(store.clone()), &region, &host.threads).await?;
        let random = Mutex::new(self.rng(&format!("the store as {id} reaches it, {:?}", self.now())));
        let weather = Arc::new(move || {
            let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
            let (dice, landed) = (random.u32(0..1_000), random.bool());
            let after = Duration::from_micros(random.u64(500..20_000));
            match dice {
                0..5 => Fate::Throttled,
                5..10 => Fate::NoAnswer { landed, after: 20 * after },
                10..30 => Fate::Done(20 * after),
                _ => Fate::Done(after),
            }
        });
        Ok(Host { shared: Some(Arc::new(store.seen_under(weather))), ..host })
    }

    /// Stops a relay in order.
    pub async fn stop(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("stop {id}"));
        if let Some(relay) = self.node(id, |node| node.relay.take())? {
            relay.stop().await;
        }
        self.node(id, |node| self.0.world.unplug(node.host))
    }

    /// Has a relay hand over its devices for at most `within`, and stops it.
    pub async fn drain(&self, id: &str, within: Duration) -> Result<()> {
        self.0.world.note(&format!("drain {id}"));
        let Some(relay) = self.node(id, |node| node.relay.take())? else { return Ok(()) };
        relay.drain(within).await;
        relay.stop().await;
        self.node(id, |node| self.0.world.unplug(node.host))
    }

    /// A relay loses power. Its disk keeps what was synced, and of the rest what `unsynced` says.
    pub fn crash(&self, id: &str, unsynced: Unsynced) -> Result<()> {
        self.0.world.note(&format!("crash {id}, unsynced {unsynced:?}"));
        self.node(id, |node| {
            // First the network, so that nobody hears how its tasks end.
            self.0.world.unplug(node.host);
            node.disk.crash(unsynced);
            if let Some(relay) = node.relay.take() {
                relay.abort();
            }
        })
    }

    /// A relay loses power in the middle of a write, `syncs` syncs from now; after `within` in any case.
    pub async fn crash_in_write(&self, id: &str, syncs: u64, unsynced: Unsynced, within: Duration) -> Result<()> {
        let failed = self.node(id, |node| {
            node.disk.crash_at(syncs);
            node.failed.clone()
        })?;
        // In either case it is off afterwards.
        let _ = tokio::time::timeout(within, failed.notified()).await;
        self.crash(id, unsynced)
    }

    /// A relay does nothing for a while, and does not know it: its machine was suspended.
    pub fn freeze(&self, id: &str, frozen: bool) -> Result<()> {
        self.0.world.note(&format!("{} {id}", if frozen { "freeze" } else { "thaw" }));
        self.node(id, |node| self.0.world.freeze(node.host, frozen))
    }

    pub(crate) fn disk<T>(&self, id: &str, act: impl FnOnce(&SimDisk) -> T) -> Result<T> {
        self.node(id, |node| act(&node.disk))
    }

    /// Syncing fails, or works again.
    pub fn fail_sync(&self, id: &str, fail: bool) -> Result<()> {
        self.0.world.note(&format!("{id}: syncing {}", if fail { "fails" } else { "works" }));
        self.disk(id, |disk| disk.set_fail_sync(fail))
    }

    /// The disk is full, or has room again.
    pub fn fill_disk(&self, id: &str, full: bool) -> Result<()> {
        self.0.world.note(&format!("{id}: disk {}", if full { "full" } else { "has room" }));
        self.disk(id, |disk| disk.set_full(full))
    }

    /// How long a sync takes from now on.
    pub fn slow_disk(&self, id: &str, sync: Duration) -> Result<()> {
        self.0.world.note(&format!("{id}: a sync takes {sync:?}"));
        self.disk(id, |disk| disk.set_sync_takes(sync))
    }

    /// A copy of the store, made by the relay, to be put back with [`Sim::restore`].
    ///
    /// # Errors
    /// That the relay is down, or a fault of its store.
    pub async fn back_up(&self, id: &str) -> Result<Vec<u8>> {
        self.0.world.note(&format!("back up {id}"));
        let to = Path::new(DATA).join("backup.redb");
        self.disk(id, |disk| disk.remove(&to))??;
        let copying = self.node(id, |node| node.relay.as_ref().map(|relay| relay.back_up(to.clone())))?;
        copying.with_context(|| format!("{id} is down"))?.await?;
        self.disk(id, |disk| disk.copy(&to))?.with_context(|| format!("{id} made no copy"))
    }

    /// Shuts a device out; none if the relay is down.
    pub(super) async fn revoke_at(&self, id: &str, device: &Device) -> Result<Option<Result<bool, Refusal>>> {
        let revoking = self.node(id, |node| node.relay.as_ref().map(|relay| relay.revoke(device.clone())))?;
        match revoking {
            Some(revoking) => Ok(Some(revoking.await)),
            None => Ok(None),
        }
    }

    /// Puts an older store's file in the place of the one a relay that is down has.
    pub fn restore(&self, id: &str, store: Vec<u8>) -> Result<()> {
        self.0.world.note(&format!("restore {id}"));
        self.disk(id, |disk| disk.put(&store_path(), store))
    }

    fn files_of(&self, id: &str) -> PathBuf {
        self.0.folder.path().join("files").join(id.replace('/', "-"))
    }

    /// All that was on a disk is gone.
    pub fn wipe(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("wipe {id}"));
        let files = self.files_of(id);
        if files.exists() {
            std::fs::remove_dir_all(files)?;
        }
        self.disk(id, SimDisk::wipe)
    }

    /// Sets a host's clock wrong, by so many milliseconds.
    pub fn set_clock(&self, id: &str, skew_millis: i64) -> Result<()> {
        self.0.world.note(&format!("{id}: clock {skew_millis:+} ms"));
        if self.0.relays.borrow().contains_key(id) {
            return self.node(id, |node| node.skew.set(skew_millis));
        }
        self.phone(id, |phone| phone.skew.set(skew_millis))
    }

    /// Requests that wait in a relay's outbox, if it is up.
    pub(crate) fn outbox_depth(&self, id: &str) -> usize {
        let relays = self.0.relays.borrow();
        relays.get(id).and_then(|node| node.relay.as_ref()).map_or(0, Relay::outbox_depth)
    }

    /// What waits at a relay that is up: in its inboxes and its outbox.
    ///
    /// # Errors
    /// A fault of its store.
    pub async fn waiting(&self, id: &str) -> Result<Vec<String>> {
        let inbox = self.node(id, |node| node.relay.as_ref().map(|relay| relay.inbox(SHOWN)))?;
        let inbox = inbox.with_context(|| format!("{id} is down"))?.await?;
        let outbox = self.outbox_depth(id);
        let mut all: Vec<String> = inbox
            .into_iter()
            .map(|(device, chat, from)| format!("{device} has not taken {chat} from #{from} on"))
            .collect();
        if outbox > 0 {
            all.push(format!("{outbox} requests in the outbox"));
        }
        Ok(all)
    }
}
