//! Several relays in this process, with one authority.

use crate::counted::Counts;
use crate::lab::{self, PATIENCE, Regions};
use crate::wire::{self, Wire};
use anyhow::{Context, Result};
use godwit_certs::DeviceKey;
use godwit_certs::authority::Credential;
use godwit_certs::folder::AuthorityDir;
use godwit_client::{Client, ClientOptions};
use godwit_relay::cluster::report::MemberReport;
use godwit_relay::{Config, Relay, StartError};
use godwit_wire::{Clock, DeviceId, RelayId};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Relays by their ids.
#[derive(Debug)]
pub struct Cluster {
    folder: tempfile::TempDir,
    pub authority: AuthorityDir,
    members: BTreeMap<String, Member>,
    stores: Regions,
}

#[derive(Debug)]
struct Member {
    config: Config,
    relay: Option<Relay>,
}

impl Cluster {
    /// Starts relays, each given as its id and role, and waits until they know each other.
    pub async fn start(relays: &[(&str, &str)]) -> Result<Self> {
        Self::with(relays, Regions::default()).await
    }

    /// As [`Cluster::start`], with the relays of a region sharing its store.
    pub async fn sharing(relays: &[&str]) -> Result<Self> {
        let relays: Vec<(&str, &str)> = relays.iter().map(|id| (*id, "store")).collect();
        Self::with(&relays, Regions::shared()).await
    }

    async fn with(relays: &[(&str, &str)], stores: Regions) -> Result<Self> {
        if let Ok(filter) = std::env::var("RUST_LOG") {
            // Of several tests in one process, the first is enough.
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        }
        let folder = tempfile::tempdir()?;
        let authority = AuthorityDir::new(folder.path().join("certs"));
        let mut cluster = Self { folder, authority, members: BTreeMap::new(), stores };
        for (id, role) in relays {
            cluster.add(id, role, &[]).await?;
        }
        cluster.meet().await?;
        Ok(cluster)
    }

    /// Starts one more relay, with settings over the defaults.
    pub async fn add(&mut self, id: &str, role: &str, settings: &[(&'static str, &str)]) -> Result<()> {
        let relay: RelayId = id.parse()?;
        let now = Clock::system().now();
        self.authority.ensure(&relay.region(), now)?;
        let certs = self.authority.relay(&relay, now)?;
        let join: Vec<String> = self.members.values().map(|member| member.config.listen.to_string()).collect();
        let mut layers = lab::layers(certs.path(), &self.data(id))?;
        self.stores.tell(&mut layers)?;
        layers.flag("test", "cluster.role", role)?;
        layers.flag("test", "cluster.network", "lan")?;
        layers.flag("test", "cluster.join", &join.join(","))?;
        for (key, value) in settings {
            layers.flag("test", key, value)?;
        }
        self.members.insert(id.to_owned(), Member { config: layers.config()?, relay: None });
        self.up(id).await
    }

    /// Starts a relay, on the address it had before.
    pub async fn up(&mut self, id: &str) -> Result<()> {
        let region = id.split('/').next().unwrap_or_default().parse()?;
        let host = self.stores.host(&region).await?;
        let member = self.members.get_mut(id).context("a relay of this cluster")?;
        // The address is free once the connections of the former self have ended.
        let starting = async {
            loop {
                match Relay::start(&member.config, &host).await {
                    Err(StartError::Bind { .. }) => tokio::time::sleep(LOOK).await,
                    other => break other,
                }
            }
        };
        let relay = tokio::time::timeout(PATIENCE, starting).await.context("the address stays in use")??;
        member.config.listen = relay.quic;
        member.relay = Some(relay);
        Ok(())
    }

    /// Stops a relay in order.
    pub async fn down(&mut self, id: &str) {
        if let Some(relay) = self.members.get_mut(id).and_then(|member| member.relay.take()) {
            relay.stop().await;
        }
    }

    pub fn relay(&self, id: &str) -> &Relay {
        self.members.get(id).and_then(|member| member.relay.as_ref()).expect("the relay is up")
    }

    pub fn address(&self, id: &str) -> SocketAddr {
        self.members[id].config.listen
    }

    /// Waits until every relay that is up knows exactly those, and has links to them.
    pub async fn meet(&self) -> Result<()> {
        let up: Vec<&Relay> = self.members.values().filter_map(|member| member.relay.as_ref()).collect();
        let met = || {
            up.iter().all(|relay| {
                let members: Vec<_> = relay.cluster().members.into_iter().filter(MemberReport::is_up).collect();
                let linked = members.iter().filter(|member| member.link.is_some()).count();
                members.len() == up.len() && linked == up.len() - 1
            })
        };
        until("the relays to know each other", met).await
    }

    pub fn stores(&mut self) -> &mut Regions {
        &mut self.stores
    }

    /// What was asked of shared stores so far.
    pub fn counts(&self) -> &Counts {
        &self.stores.counts
    }

    pub fn root(&self) -> Result<CertificateDer<'static>> {
        Ok(godwit_certs::folder::read_certificate(&self.authority.root_certificate_path())?)
    }

    pub fn token(&self, device: &DeviceId) -> Result<String> {
        Ok(self.authority.token(device, Duration::from_mins(10), Clock::system().now())?)
    }

    /// Enrols a device for raw sessions, at the relay `at`.
    pub async fn enrol(&self, device: &str, at: &str) -> Result<Credential> {
        let device: DeviceId = device.parse()?;
        let key = DeviceKey::generate()?;
        let csr = key.request(&device)?;
        let chain = wire::ask_certificate(self.address(at), &self.root()?, self.token(&device)?, csr).await?;
        Ok(key.credential(chain?))
    }

    /// A raw session of a device at the relay `at`.
    pub async fn connect(&self, credential: Credential, at: &str) -> Result<Wire> {
        Wire::connect(self.address(at), &self.root()?, credential).await
    }

    /// A relay's data folder.
    pub fn data(&self, id: &str) -> PathBuf {
        self.folder.path().join(id)
    }

    pub fn home(&self, device: &str) -> PathBuf {
        self.folder.path().join(device.replace(['@', '/'], "-"))
    }

    /// A newly enrolled device with the client library, that knows the relays `at`.
    pub async fn client(&self, device: &str, at: &[&str]) -> Result<Client> {
        let id: DeviceId = device.parse()?;
        let relays = at.iter().map(|id| self.address(id).to_string()).collect();
        lab::enrol(&self.authority, self.token(&id)?, relays, self.home(device)).await?;
        let client = Client::open(ClientOptions::new(self.home(device)))?;
        client.wait_synced(PATIENCE).await?;
        Ok(client)
    }

    /// The value of a relay's metric.
    pub fn metric(&self, id: &str, name: &str) -> f64 {
        let text = self.relay(id).metrics().render();
        wire::metric(&text, name).unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.with_context(|| format!("waited in vain for {what}"))
}
