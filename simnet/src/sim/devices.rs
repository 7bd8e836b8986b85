//! Devices of a simulation: the client library on a real SQLite file, and an app that takes what comes.

use super::{Sim, Skew, is_of};
use crate::world::places::Access;
use crate::world::{HostId, SimSocket};
use anyhow::{Context, Result};
use godwit_client::host::Threads;
use godwit_client::{Client, ClientOptions, DeviceId, EnrolOptions, Host};
use quinn::AsyncUdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How long an enrolment token lives.
const TOKEN_LIFE: Duration = Duration::from_hours(1);
/// What a relay did not take is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// No transaction is held up.
const NEVER: u64 = u64::MAX;

/// A device as the simulation holds it.
pub(super) struct Phone {
    pub(super) host: HostId,
    pub(super) skew: Skew,
    device: Device,
    /// The network it is on.
    access: Access,
    home: PathBuf,
    /// How many transactions may still be committed.
    commits: Arc<AtomicU64>,
    /// The last of them was.
    killed: Arc<Notify>,
    client: Option<Arc<Client>>,
    app: Option<JoinHandle<()>>,
}

/// A device's name.
pub type Device = DeviceId;

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        // SQLite makes its index of the log anew.
        let Some(name) = path.file_name().filter(|name| !name.to_string_lossy().ends_with("-shm")) else { continue };
        std::fs::copy(&path, to.join(name))?;
    }
    Ok(())
}

impl Sim {
    pub(super) fn phone<T>(&self, device: &str, act: impl FnOnce(&mut Phone) -> T) -> Result<T> {
        self.0.phones.borrow_mut().get_mut(device).map(act).with_context(|| format!("no device {device}"))
    }

    /// The devices, by id.
    pub fn devices(&self) -> Vec<Device> {
        self.0.phones.borrow().values().map(|phone| phone.device.clone()).collect()
    }

    /// A new device, in its user's region, enrolled there and open.
    pub async fn device(&self, id: &str, access: Access) -> Result<Arc<Client>> {
        let device: DeviceId = id.parse()?;
        let region = device.home();
        let host = self.0.world.add(id, region.as_str(), access, true);
        let home = self.0.folder.path().join(format!("device-{}", self.0.phones.borrow().len()));
        let commits = Arc::new(AtomicU64::new(NEVER));
        let (skew, killed) = (Skew::new(), Arc::new(Notify::new()));
        let phone = Phone { host, skew, device, access, home, commits, killed, client: None, app: None };
        self.0.phones.borrow_mut().insert(id.to_owned(), phone);
        self.enrol(id).await?;
        self.open(id)
    }

    fn device_host(&self, id: &str) -> Result<Host> {
        self.phone(id, |phone| {
            let (world, host) = (self.0.world.clone(), phone.host);
            let bind = {
                let world = world.clone();
                move |_| Ok(SimSocket::bind(&world, host, 0)? as Arc<dyn AsyncUdpSocket>)
            };
            let (commits, killed) = (phone.commits.clone(), phone.killed.clone());
            let may_commit = move || {
                let may = commits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
                    NEVER => Some(NEVER),
                    left => left.checked_sub(1),
                });
                if may.is_err() {
                    world.unplug(host);
                    killed.notify_one();
                }
                may.is_ok()
            };
            Host {
                crypto: self.crypto(&phone.skew),
                bind: Arc::new(bind),
                may_commit: Some(Arc::new(may_commit)),
                threads: Threads::Inline,
            }
        })
    }

    /// Enrols a device at its region, for the first time or anew, trying until it works.
    pub async fn enrol(&self, id: &str) -> Result<()> {
        let (device, home) = self.phone(id, |phone| (phone.device.clone(), phone.home.clone()))?;
        let region = device.home();
        let relays = self.relays();
        let relays = relays.iter().filter(|relay| is_of(relay, region.as_str()));
        let relays: Vec<String> = relays.map(|relay| self.address(relay)).collect::<Result<_>>()?;
        let authority_pem = std::fs::read_to_string(self.0.authority.root_certificate_path())?;
        loop {
            let token = self.0.authority.token(&device, TOKEN_LIFE, self.wall())?;
            let options = EnrolOptions {
                home: home.clone(),
                relays: relays.clone(),
                authority_pem: authority_pem.clone(),
                token,
                host: self.device_host(id)?,
            };
            match godwit_client::enrol(options).await {
                Ok(_) => break,
                Err(error) => {
                    self.0.world.note(&format!("{id} is not enrolled: {error}"));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        self.0.world.note(&format!("{id} is enrolled"));
        Ok(())
    }

    /// Opens a device's app, on the home that it has.
    pub fn open(&self, id: &str) -> Result<Arc<Client>> {
        let home = self.phone(id, |phone| {
            phone.commits.store(NEVER, Ordering::Relaxed);
            phone.home.clone()
        })?;
        self.0.world.note(&format!("open {id}"));
        let client = Client::open(ClientOptions { home, host: self.device_host(id)? });
        let client = Arc::new(client.with_context(|| format!("{id} does not open"))?);
        self.phone(id, |phone| phone.client = Some(client.clone()))?;
        Ok(client)
    }

    /// The client of a device whose app is open.
    pub fn client(&self, id: &str) -> Option<Arc<Client>> {
        self.0.phones.borrow().get(id).and_then(|phone| phone.client.clone())
    }

    /// Runs an app on a device, until the device's app is closed or killed.
    pub(crate) fn run_app(&self, id: &str, app: impl Future<Output = ()> + 'static) -> Result<()> {
        let app = tokio::task::spawn_local(app);
        self.phone(id, |phone| phone.app = Some(app))
    }

    /// Closes a device's app in order.
    pub async fn close(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("close {id}"));
        let (client, app) = self.phone(id, |phone| (phone.client.take(), phone.app.take()))?;
        if let Some(client) = client {
            client.close().await;
        }
        if let Some(app) = app {
            app.abort();
        }
        Ok(())
    }

    /// Kills a device's app, wherever it is.
    pub async fn kill(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("kill {id}"));
        let (client, app) = self.phone(id, |phone| {
            self.0.world.unplug(phone.host);
            (phone.client.take(), phone.app.take())
        })?;
        if let Some(app) = app {
            app.abort();
            // Its end is the one just asked for.
            let _ = app.await;
        }
        if let Some(client) = client {
            client.abort().await;
        }
        Ok(())
    }

    /// Kills a device's app after it has committed `commits` more transactions; after `within` in any case.
    pub async fn kill_at_commit(&self, id: &str, commits: u64, within: Duration) -> Result<()> {
        let killed = self.phone(id, |phone| {
            phone.commits.store(commits, Ordering::Relaxed);
            phone.killed.clone()
        })?;
        // In either case it is dead afterwards.
        let _ = tokio::time::timeout(within, killed.notified()).await;
        self.kill(id).await
    }

    fn backup_path(&self, id: &str) -> Result<(PathBuf, PathBuf)> {
        self.phone(id, |phone| (phone.home.clone(), phone.home.with_extension("backup")))
    }

    /// Keeps a copy of a device's home, to come back to with [`Sim::restore_device`].
    pub fn back_up_device(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("back up {id}"));
        let (home, backup) = self.backup_path(id)?;
        Ok(copy_folder(&home, &backup)?)
    }

    /// Puts the copy of a device's home back; its app must not be open.
    pub fn restore_device(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("restore {id}"));
        let (home, backup) = self.backup_path(id)?;
        Ok(copy_folder(&backup, &home)?)
    }

    /// A device's home is gone, as on a new phone; its app must not be open.
    pub fn lose_device(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("lose {id}"));
        let home = self.phone(id, |phone| phone.home.clone())?;
        Ok(std::fs::remove_dir_all(home)?)
    }

    /// Shuts a device out at the relay that holds its region's store, trying until that is up. False if that does not know
    /// the device.
    pub async fn revoke(&self, id: &str) -> Result<bool> {
        let device = self.phone(id, |phone| phone.device.clone())?;
        let relays = self.relays();
        let is_store =
            |relay: &&String| is_of(relay, device.home().as_str()) && self.holds_store(relay).unwrap_or(false);
        let store = relays.iter().find(is_store).with_context(|| format!("no relay holds the store of {id}"))?;
        loop {
            if let Some(Ok(known)) = self.revoke_at(store, &device).await? {
                self.0.world.note(&format!("{id} is revoked, known {known}"));
                return Ok(known);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Moves a device to another network, and tells its client so or not.
    pub async fn roam(&self, id: &str, access: Access, told: bool) -> Result<()> {
        self.0.world.note(&format!("{id} roams, told {told}"));
        let client = self.phone(id, |phone| {
            self.0.world.move_to(phone.host, access);
            phone.access = access;
            phone.client.clone()
        })?;
        if let Some(client) = client.filter(|_| told) {
            client.network_changed().await;
        }
        Ok(())
    }

    /// Changes how well a device is connected, where it is; none is as well as its network allows.
    pub fn set_access(&self, id: &str, access: Option<Access>) -> Result<()> {
        self.phone(id, |phone| self.0.world.set_access(phone.host, access.unwrap_or(phone.access)))
    }

    /// A device has no network, or has it again.
    pub fn set_offline(&self, id: &str, offline: bool) -> Result<()> {
        self.0.world.note(&format!("{id} {}", if offline { "offline" } else { "online" }));
        self.phone(id, |phone| self.0.world.set_offline(phone.host, offline))
    }

    /// The address translator before a device gives it another port, and nobody notices.
    pub fn rebind(&self, id: &str) -> Result<()> {
        self.0.world.note(&format!("{id}: translator forgets"));
        self.phone(id, |phone| self.0.world.rebind(phone.host))
    }
}
