//! A relay in this process.

use crate::counted::{Counted, Counts};
use crate::wire::Wire;
use anyhow::{Context, Result};
use godwit_certs::DeviceKey;
use godwit_certs::authority::Credential;
use godwit_certs::folder::AuthorityDir;
use godwit_certs::tls::Crypto;
use godwit_client::{Client, ClientOptions, EnrolOptions};
use godwit_relay::config::Layers;
use godwit_relay::host::Threads;
use godwit_relay::store::shared::{self, memory::Memory};
use godwit_relay::{Config, Host, Relay};
use godwit_wire::{Clock, DeviceId, Refusal, RegionId, RelayId, UnixMillis};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The lab's region.
pub const REGION: &str = "eu";

/// What every relay of a test is told: free ports, its certificates and its data.
pub fn layers(certs: &Path, data: &Path) -> Result<Layers> {
    let mut layers = Layers::default();
    layers.flag("test", "listen", "127.0.0.1:0")?;
    layers.flag("test", "admin", "127.0.0.1:0")?;
    layers.flag("test", "certs", &certs.to_string_lossy())?;
    layers.flag("test", "data", &data.to_string_lossy())?;
    Ok(layers)
}

/// Enrols a device with the client library, into `home`.
pub async fn enrol(authority: &AuthorityDir, token: String, relays: Vec<String>, home: PathBuf) -> Result<()> {
    let authority_pem = std::fs::read_to_string(authority.root_certificate_path())?;
    godwit_client::enrol(EnrolOptions { home, relays, authority_pem, token, host: godwit_client::Host::system() })
        .await?;
    Ok(())
}

/// How old what a shared store shows is where that may be so.
const LAG: Duration = Duration::from_millis(200);

/// Stores of regions in memory, for relays that share them.
#[derive(Debug)]
pub struct Regions {
    are_shared: bool,
    stores: BTreeMap<RegionId, Memory>,
    /// What is asked of all of them.
    pub counts: Counts,
}

impl Default for Regions {
    /// With `TESTS_STORE=memory` in the environment all tests run on such; otherwise regions have files.
    fn default() -> Self {
        Self {
            are_shared: std::env::var("TESTS_STORE").is_ok_and(|store| store == "memory"),
            stores: BTreeMap::new(),
            counts: Counts::default(),
        }
    }
}

impl Regions {
    pub fn shared() -> Self {
        Self { are_shared: true, ..Self::default() }
    }

    /// What a relay is told of its store.
    pub fn tell(&self, layers: &mut Layers) -> Result<()> {
        if self.are_shared {
            layers.flag("test", "attachments.store", "off")?;
            layers.flag("test", "store.engine", "dynamodb")?;
        }
        Ok(())
    }

    /// A shared store as it is now, in tables of its own.
    pub fn back_up(&self, region: &RegionId) -> Option<Memory> {
        self.stores.get(region).map(|store| store.restored("restored"))
    }

    /// Relays that start from now on have what was backed up.
    pub fn put_back(&mut self, region: RegionId, backup: Memory) {
        self.stores.insert(region, backup);
    }

    /// This machine, with the store of `region` if that is shared.
    pub async fn host(&mut self, region: &RegionId) -> Result<Host> {
        if !self.are_shared {
            return Ok(Host::system());
        }
        let engine =
            self.stores.entry(region.clone()).or_insert_with(|| Memory::default().lagging(LAG).called("made")).clone();
        shared::init(Arc::new(engine.clone()), region, &Threads::System).await?;
        let engine = Counted { engine, counts: self.counts.clone() };
        Ok(Host { shared: Some(Arc::new(engine)), ..Host::system() })
    }
}

/// A relay with its authority, in a temporary folder that goes with it.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
    pub authority: AuthorityDir,
    pub config: Config,
    relay: Option<Relay>,
    stores: Regions,
    /// Added to the machine's clock, in milliseconds, for relay and tokens.
    skew: Arc<AtomicU64>,
}

impl Lab {
    pub async fn start() -> Result<Self> {
        Self::with(&[]).await
    }

    /// With settings over the defaults, such as `("limits.sends_per_second", "5")`.
    pub async fn with(settings: &[(&'static str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = AuthorityDir::new(folder.path().join("certs"));
        let now = Clock::system().now();
        authority.init(&REGION.parse()?, now)?;
        let id: RelayId = format!("{REGION}/{REGION}-1").parse()?;
        let certs = authority.relay(&id, now)?;
        let stores = Regions::default();
        let mut layers = layers(certs.path(), &folder.path().join("data"))?;
        stores.tell(&mut layers)?;
        for (key, value) in settings {
            layers.flag("test", key, value)?;
        }
        let config = layers.config()?;
        let mut lab = Self { folder, authority, config, relay: None, stores, skew: Arc::default() };
        lab.up().await?;
        Ok(lab)
    }

    /// The clock of the relay and of tokens.
    pub fn clock(&self) -> Clock {
        let (system, skew) = (Clock::system(), self.skew.clone());
        Clock::new(move || UnixMillis(system.now().0 + skew.load(Ordering::Relaxed)))
    }

    /// Lets the lab's clock jump ahead.
    pub fn jump(&self, by: Duration) {
        self.skew.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Starts the relay, on the address it had before.
    pub async fn up(&mut self) -> Result<()> {
        let crypto = Crypto { clock: self.clock(), ..Crypto::system() };
        let host = self.stores.host(&REGION.parse()?).await?;
        let relay = Relay::start(&self.config, &Host { crypto, ..host }).await?;
        self.config.listen = relay.quic;
        self.relay = Some(relay);
        Ok(())
    }

    /// Stops the relay in order.
    pub async fn down(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.stop().await;
        }
    }

    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("the relay is up")
    }

    pub fn address(&self) -> SocketAddr {
        self.config.listen
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn root(&self) -> Result<CertificateDer<'static>> {
        Ok(godwit_certs::folder::read_certificate(&self.authority.root_certificate_path())?)
    }

    pub fn token(&self, device: &DeviceId) -> Result<String> {
        Ok(self.authority.token(device, Duration::from_mins(10), self.clock().now())?)
    }

    /// Enrols a device for raw sessions.
    pub async fn enrol(&self, device: &str) -> Result<Credential> {
        let device: DeviceId = device.parse()?;
        let token = self.token(&device)?;
        let key = DeviceKey::generate()?;
        let csr = key.request(&device)?;
        let chain = self.ask_certificate(token, csr).await?.context("enrolment")?;
        Ok(key.credential(chain))
    }

    /// Asks for a certificate as an enrolling device does.
    pub async fn ask_certificate(
        &self,
        token: String,
        csr: Vec<u8>,
    ) -> Result<Result<Vec<CertificateDer<'static>>, Refusal>> {
        crate::wire::ask_certificate(self.address(), &self.root()?, token, csr).await
    }

    /// A raw session of a newly enrolled device.
    pub async fn session(&self, device: &str) -> Result<Wire> {
        let credential = self.enrol(device).await?;
        self.connect(credential).await
    }

    /// A raw session.
    pub async fn connect(&self, credential: Credential) -> Result<Wire> {
        Wire::connect(self.address(), &self.root()?, credential).await
    }

    pub fn home(&self, device: &str) -> PathBuf {
        self.path().join(device.replace(['@', '/'], "-"))
    }

    /// A newly enrolled device with the client library.
    pub async fn client(&self, device: &str) -> Result<Client> {
        let id: DeviceId = device.parse()?;
        enrol(&self.authority, self.token(&id)?, vec![self.address().to_string()], self.home(device)).await?;
        let client = self.open(device)?;
        client.wait_synced(PATIENCE).await?;
        Ok(client)
    }

    /// A device that was enrolled before.
    pub fn open(&self, device: &str) -> Result<Client> {
        Ok(Client::open(ClientOptions::new(self.home(device)))?)
    }

    /// The value of a metric, as `/metrics` would show it.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.relay().metrics().render();
        crate::wire::metric(&text, name).unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }
}
