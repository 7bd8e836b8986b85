//! Starts the parts of a relay, and stops them in order.

use crate::admin;
use crate::attachments::{Attachments, Partials};
use crate::blobs::BlobStore;
use crate::blobs::files::{self, Files};
#[cfg(feature = "s3")]
use crate::blobs::s3::S3;
use crate::cluster::{self, Cluster};
use crate::config::{BlobStoreKind, Config, Role, S3Section, StoreEngine};
use crate::edge::{self, Edge, EdgeParts, Registry, UserLimits, drain};
use crate::fanout::Worker;
use crate::host::{Host, Thread};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::owner::Owner;
use crate::peers::{self, ALPN_PEER, Peers};
use crate::quic::endpoint;
use crate::revocations::{self, Revocations};
use crate::router::Router;
#[cfg(feature = "dynamodb")]
use crate::store::shared::dynamo::Dynamo;
use crate::store::shared::engine::Engine;
use crate::store::{Committed, OpenStore, Store, StoreError, file};
use arc_swap::ArcSwap;
use godwit_certs::authority::Credential;
use godwit_certs::chain::ChainVerifier;
use godwit_certs::folder::{FolderError, RelayDir, RelayFiles};
use godwit_certs::tls::{self, Crypto, ServedCertificate, Tickets, TlsError};
use godwit_gossip::{Gossip, Kind};
use godwit_wire::{ALPN_DEVICE, ALPN_ENROL, ChatId, Code, DeviceId, Refusal, RegionId, RelayId, Seq};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig, VarInt};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a stop may take: what was accepted is finished within it.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long devices get to hear that the relay stops.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long a relay that shares its store looks for the others before it takes what it finds for its own.
const MEETING: Duration = Duration::from_secs(2);

/// Why a relay did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("certificates: {0}")]
    Certificates(#[from] FolderError),
    #[error("certificates: {0}")]
    Tls(#[from] TlsError),
    #[error("certificates: {0}")]
    Suite(#[from] NoInitialCipherSuite),
    #[error("certificates: they name relay {found}, this is {expected}")]
    OtherRelay { found: RelayId, expected: RelayId },
    #[error("{what} {address}: {source}")]
    Bind { what: &'static str, address: SocketAddr, source: io::Error },
    #[error("{}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("attachments: {0}")]
    Attachments(&'static str),
    #[error("store: {0}")]
    Engine(&'static str),
}

/// A relay that runs.
#[derive(Debug)]
pub struct Relay {
    pub id: RelayId,
    pub quic: SocketAddr,
    pub admin: SocketAddr,
    /// Where the root's certificate lies, which clients need.
    pub authority: PathBuf,
    certs: RelayDir,
    config: Config,
    host: Host,
    served: Arc<ServedCertificate>,
    edge: Arc<Edge>,
    endpoint: Endpoint,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
    /// None at an edge.
    fanning: Option<JoinHandle<()>>,
    administering: Option<JoinHandle<()>>,
    store_threads: Vec<Thread>,
    identity: Arc<ArcSwap<RelayFiles>>,
}

/// The parts of a relay that holds its region's store.
struct Home {
    owner: Owner,
    worker: (Worker, mpsc::UnboundedReceiver<Committed>),
    threads: Vec<Thread>,
}

impl Home {
    /// Opens the store, and takes up what an earlier run left.
    async fn open(
        config: &Config,
        host: &Host,
        id: &RelayId,
        identity: &Arc<ArcSwap<RelayFiles>>,
        registry: &Arc<Registry>,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let OpenStore { store, committed, threads } = match config.store.engine {
            StoreEngine::Redb => file(config, host, id.region(), metrics)?,
            StoreEngine::Dynamodb => shared(config, host, id.region(), metrics).await?,
        };
        let clock = host.crypto.clock.clone();
        let attachments = attachments(config, host, id.region(), &store, metrics).await?;
        let (registry, metrics) = (registry.clone(), metrics.clone());
        let (mut worker, fanout) =
            Worker::new(config.fanout(), id.region(), store.clone(), registry, clock.clone(), metrics);
        // Others may own chats of a store that is shared: who does is known once they are met.
        if !store.is_shared() || config.cluster.join.is_empty() {
            worker.recover().await?;
        }
        let (region, identity) = (id.region(), identity.clone());
        let owner = Owner { region, store, fanout, attachments, identity, clock, meeting: Arc::default() };
        Ok(Self { owner, worker: (worker, committed), threads })
    }
}

/// The store of a region that one relay holds.
fn file(config: &Config, host: &Host, region: RegionId, metrics: &Metrics) -> Result<OpenStore, StartError> {
    let path = config.data.join(file::NAME);
    let opener = file::opener(host.disk.clone(), path, region, config.store.cache.bytes());
    file::begin_run(&*host.disk, &opener()?, &config.data, host.crypto.random_number())?;
    let (disk, data) = (host.disk.clone(), config.data.clone());
    let free = Box::new(move || disk.free_bytes(&data));
    Ok(Store::open(opener, Some(free), &config.store_limits(), host, metrics.clone())?)
}

/// The store that a region's relays share.
async fn shared(config: &Config, host: &Host, region: RegionId, metrics: &Metrics) -> Result<OpenStore, StartError> {
    let file = config.data.join(file::NAME);
    if host.disk.len(&file).is_some() {
        tracing::warn!(file = %file.display(), "this store is not used: it was copied into the tables, or `godwit store copy` has yet to");
    }
    let engine = match host.shared.clone() {
        Some(engine) => engine,
        None => dynamo(config, &region).await?,
    };
    Ok(Store::share(engine, &region, &config.store_limits(), host, metrics).await?)
}

#[cfg(feature = "dynamodb")]
async fn dynamo(config: &Config, region: &RegionId) -> Result<Arc<dyn Engine>, StartError> {
    // Large, and done once.
    let tables = Box::pin(Dynamo::new(config.dynamodb.tables(region))).await;
    Ok(Arc::new(tables.map_err(StoreError::from)?))
}

#[cfg(not(feature = "dynamodb"))]
fn dynamo(_: &Config, _: &RegionId) -> std::future::Ready<Result<Arc<dyn Engine>, StartError>> {
    std::future::ready(Err(StartError::Engine("store.engine is dynamodb, and this build has no DynamoDB")))
}

#[cfg(feature = "s3")]
async fn s3(config: &S3Section) -> Result<Arc<dyn BlobStore>, StartError> {
    if config.bucket.is_empty() {
        return Err(StartError::Attachments("attachments.store is s3, and s3.bucket is not given"));
    }
    // Large, and done once.
    Ok(Arc::new(Box::pin(S3::new(config.bucket())).await))
}

#[cfg(not(feature = "s3"))]
fn s3(_: &S3Section) -> std::future::Ready<Result<Arc<dyn BlobStore>, StartError>> {
    std::future::ready(Err(StartError::Attachments("attachments.store is s3, and this build has no S3")))
}

/// Where the region's attachments are kept; none if it keeps none.
async fn attachments(
    config: &Config,
    host: &Host,
    region: RegionId,
    store: &Store,
    metrics: &Metrics,
) -> Result<Option<Attachments>, StartError> {
    let folder = config.blobs_folder();
    let unusable = |source| StartError::Folder { path: folder.clone(), source };
    let blobs: Arc<dyn BlobStore> = match config.attachments.store {
        BlobStoreKind::Off => return Ok(None),
        BlobStoreKind::Files => Arc::new(Files::open(folder.clone(), &host.threads).map_err(unusable)?),
        BlobStoreKind::S3 => s3(&config.s3).await?,
    };
    Ok(Some(Attachments {
        region,
        store: store.clone(),
        blobs,
        spool: files::make_spool(&folder).map_err(unusable)?,
        partials: Partials::default(),
        urls: config.attachments.store == BlobStoreKind::S3 && config.s3.urls,
        limits: config.blobs(),
        threads: host.threads.clone(),
        clock: host.crypto.clock.clone(),
        metrics: metrics.clone(),
    }))
}

/// Tells fan-out whenever other relays share the store than before. One that joins others begins only once it has met them,
/// or nobody was there.
async fn watch_owners(router: Router, joins: bool) {
    let Some(owner) = &router.owner else { return };
    let mut changes = router.changes();
    let mut known = BTreeMap::new();
    if joins {
        let _ = tokio::time::timeout(MEETING, changes.changed()).await;
    } else {
        known = router.cluster.owners(&router.region);
    }
    loop {
        changes.mark_unchanged();
        let owners = router.cluster.owners(&router.region);
        if owners != known {
            known = owners;
            owner.fanout.owners_changed().await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// How this relay connects to others.
fn dialling(crypto: &Crypto, root: &CertificateDer<'_>, credential: Credential) -> Result<ClientConfig, StartError> {
    let tls = tls::client(crypto, root, Some(credential), ALPN_PEER)?;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(endpoint::peer_transport()));
    Ok(config)
}

impl Relay {
    /// Opens the store, takes up what an earlier run left, and only then opens the ports.
    pub async fn start(config: &Config, host: &Host) -> Result<Self, StartError> {
        let crypto = &host.crypto;
        let certs = RelayDir::new(&config.certs);
        let files = certs.read()?;
        files.check(crypto)?;
        let id = files.relay.clone();
        let served = ServedCertificate::new(crypto, files.credential.clone())?;
        let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(TlsError::from)?;
        let alpn: &[&[u8]] = &[ALPN_DEVICE, ALPN_ENROL, ALPN_PEER];
        let tls = tls::relay(crypto, &files.root, served.clone(), Tickets::Stateless(ticketer), alpn)?;

        let metrics = Metrics::default();
        host.disk
            .create_dir(&config.data)
            .map_err(|source| StartError::Folder { path: config.data.clone(), source })?;
        let secret = endpoint::secret(host, &config.data)
            .map_err(|source| StartError::Folder { path: config.data.join("endpoint.key"), source })?;
        // Taken first, since somebody else may have them, and served last.
        let bind_error = |what, address| move |source| StartError::Bind { what, address, source };
        let socket = host.network.udp(config.listen).map_err(bind_error("listen", config.listen))?;
        let listener = host.network.tcp(config.admin).and_then(|tcp| tcp.map(TcpListener::from_std).transpose());
        let listener = listener.map_err(bind_error("admin", config.admin))?;
        let outbox = Outbox::open(host, &config.data, config.outbox(), metrics.clone())?;
        let outbox = Arc::new(outbox);
        let registry = Arc::new(Registry::new(config.delivery.lane_bytes.bytes()));
        let chains = ChainVerifier::new(crypto, &files.root)?;
        let (root, credential) = (files.root.clone(), files.credential.clone());
        let identity = Arc::new(ArcSwap::from_pointee(files));
        let home = match config.cluster.role {
            Role::Store => Some(Box::pin(Home::open(config, host, &id, &identity, &registry, &metrics)).await?),
            Role::Edge => None,
        };

        let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        server
            .transport_config(Arc::new(endpoint::transport()))
            .max_incoming(4096)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(16 << 20);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = endpoint::config(&secret, crypto);
        let endpoint = Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, runtime)
            .map_err(bind_error("listen", config.listen))?;
        let quic = endpoint.local_addr().map_err(bind_error("listen", config.listen))?;
        let admin = listener.as_ref().map_or(Ok(config.admin), TcpListener::local_addr);
        let admin = admin.map_err(bind_error("admin", config.admin))?;

        let kind = match (&home, config.store.engine) {
            (None, _) => Kind::Edge,
            (Some(_), StoreEngine::Redb) => Kind::Store,
            (Some(_), StoreEngine::Dynamodb) => Kind::Share,
        };
        let me = peers::identity(id.clone(), config.cluster.advertise.unwrap_or(quic), crypto.clock.now().0, kind);
        let (owner, worker, store_threads) = match home {
            Some(Home { owner, worker, threads }) => (Some(owner), Some(worker), threads),
            None => (None, None, Vec::new()),
        };
        let (known, has_met) = match &owner {
            Some(owner) => {
                let since = revocations::forgotten_before(crypto.clock.now());
                owner.store.read(move |store| Ok((store.revocations(since)?, !store.all_met()?.is_empty()))).await?
            }
            None => (Vec::new(), false),
        };
        let generation = owner.as_ref().map(|owner| owner.store.generation());
        let dialling = dialling(crypto, &root, credential)?;
        let peers = Arc::new(Peers::new(me.clone(), generation, crypto.clock.clone(), endpoint.clone(), dialling));
        let gossip = Gossip::new(me, &config.gossip(), crypto.random_number());
        let cluster = Cluster::new(gossip, peers);
        if has_met {
            cluster.remember();
        }
        let edge = Arc::new(Edge::new(EdgeParts {
            relay: id.clone(),
            router: Router { region: id.region(), owner, cluster },
            registry,
            outbox: outbox.clone(),
            revocations: Arc::new(Revocations::new(crypto.clock.clone(), known)),
            chains,
            clock: crypto.clock.clone(),
            rates: config.rates(),
            admission: config.admission(),
            blob_lanes: config.attachments.per_device.count(),
            metrics: metrics.clone(),
        }));
        if let Some(attachments) = edge.router.owner.as_ref().and_then(|owner| owner.attachments.clone()) {
            edge.router.cluster.spawn(attachments.run());
        }
        edge.router.cluster.spawn(outbox.run(edge.router.clone()));
        edge.router.cluster.join(&edge, &config.cluster.join, &host.threads);
        let stop = CancellationToken::new();
        let cluster = edge.router.cluster.clone();
        if edge.router.owner.as_ref().is_some_and(|owner| owner.store.is_shared()) {
            cluster.spawn(watch_owners(edge.router.clone(), !config.cluster.join.is_empty()));
        }
        let fanning = worker.map(|(mut worker, committed)| {
            worker.join(cluster);
            tokio::spawn(worker.run(committed))
        });
        let accepting = tokio::spawn(edge::run(edge.clone(), endpoint.clone(), stop.clone()));
        let admin_state = admin::Admin::new(edge.clone(), served.clone(), stop.clone(), config, host.disk.clone());
        let router = admin::router(admin_state);
        let administering = listener.map(|listener| {
            tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "the admin port ended");
                }
            })
        });
        let authority = certs.root_certificate_path();
        tracing::info!(relay = %id, %quic, %admin, "ready");
        Ok(Self {
            id,
            quic,
            admin,
            authority,
            certs,
            config: config.clone(),
            host: host.clone(),
            served,
            edge,
            endpoint,
            stop,
            accepting,
            fanning,
            administering,
            store_threads,
            identity,
        })
    }

    pub fn metrics(&self) -> &Metrics {
        &self.edge.metrics
    }

    /// The region's store, where it is held.
    fn store(&self) -> Option<Store> {
        self.edge.router.owner.as_ref().map(|owner| owner.store.clone())
    }

    /// What waits for devices here, and for other regions, at most `limit` of it: who has not taken which chat, from where
    /// on. Empty at an edge.
    ///
    /// # Errors
    /// A fault of the store.
    pub fn inbox(
        &self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(DeviceId, ChatId, Seq)>, StoreError>> + Send + use<> {
        let store = self.store();
        async move {
            match store {
                Some(store) => store.read(move |store| store.inbox(limit)).await,
                None => Ok(Vec::new()),
            }
        }
    }

    /// Copies the store to a new file, as `godwit store backup` does.
    ///
    /// # Errors
    /// If there is such a file, or it cannot be written; at an edge, that there is no store.
    pub fn back_up(&self, to: PathBuf) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let store = self.store();
        async move {
            match store {
                Some(store) => store.backup(to).await,
                None => Err(StoreError::Missing(to)),
            }
        }
    }

    /// Shuts a device of this region out for good, as `godwit revoke` does. False if it is not enrolled here, as at an
    /// edge.
    ///
    /// # Errors
    /// That the store cannot write now; the device is not shut out.
    pub fn revoke(&self, device: DeviceId) -> impl Future<Output = Result<bool, Refusal>> + Send + use<> {
        let store = self.store();
        async move {
            match store {
                Some(store) => store.revoke(device).await,
                None => Ok(false),
            }
        }
    }

    /// Requests that wait in the outbox for other homes.
    pub fn outbox_depth(&self) -> usize {
        self.edge.outbox.depth().0
    }

    /// The cluster as this relay knows it.
    pub fn cluster(&self) -> cluster::report::Report {
        self.edge.router.cluster.report(self.edge.outbox.depth().0)
    }

    /// Reads certificates and limits anew. Connections stay as they are.
    ///
    /// # Errors
    /// The first thing that cannot be read; nothing was changed then.
    pub fn reload(&self, config: &Config) -> Result<(), StartError> {
        let files = self.certs.read()?;
        files.check(&self.host.crypto)?;
        if files.relay != self.id {
            return Err(StartError::OtherRelay { found: files.relay, expected: self.id.clone() });
        }
        self.served.replace(files.credential.clone())?;
        self.edge.router.cluster.peers.dial_with(dialling(&self.host.crypto, &files.root, files.credential.clone())?);
        self.identity.store(Arc::new(files));
        self.edge.limits.store(Arc::new(UserLimits::new(&config.rates())));
        if (Config { limits: self.config.limits.clone(), ..config.clone() }) != self.config {
            tracing::warn!("of what changed, only certificates and limits have an effect before the next start");
        }
        tracing::info!("certificates and limits were read anew");
        Ok(())
    }

    /// Hands the devices over to other relays, which they join before they leave this one, and waits until nothing waits
    /// in the outbox, at most `within`; a relay without others around it has nowhere to send them. Then it is time to
    /// [stop](Self::stop). Cancel safe: it goes on draining.
    pub async fn drain(&self, within: Duration) {
        if !self.edge.has_others() {
            return;
        }
        drain::begin(&self.edge, self.config.cluster.drain_per_second.count());
        let _ = tokio::time::timeout(within, self.drained()).await;
    }

    /// Waits until this relay was asked to drain, at its admin port or here, and has done so. Cancel safe.
    pub async fn drained(&self) {
        self.edge.drain.drained().await;
    }

    /// Takes no more connections, finishes what was accepted, tells the devices, and closes the store. Takes at most
    /// about ten seconds.
    pub async fn stop(self) {
        let Self { edge, endpoint, stop, accepting, fanning, administering, store_threads, .. } = self;
        let deadline = Instant::now() + STOP_WITHIN;
        stop.cancel();
        let reason = Refusal::from(Code::ShuttingDown);
        for link in edge.registry.links_now() {
            edge.send_away(&link, &reason);
        }
        tokio::time::sleep(FAREWELL).await;
        let quiet = || edge.router.owner.as_ref().is_none_or(|owner| owner.store.is_quiet());
        while !quiet() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        edge.router.cluster.leave().await;
        let reason_bytes = godwit_wire::codec::encode_reason(&reason);
        endpoint.close(VarInt::from_u32(reason.code.number().into()), &reason_bytes);
        end(accepting, deadline, "accepting").await;
        edge.outbox.close().await;
        if let Some(administering) = administering {
            administering.abort();
            // Its end is the cancellation just asked for.
            let _ = administering.await;
        }
        drop(edge);
        if let Some(fanning) = fanning {
            end(fanning, deadline + Duration::from_secs(1), "fan-out").await;
        }
        let ended = async {
            let mut all = true;
            for thread in store_threads {
                all &= thread.ended().await;
            }
            all
        };
        if !matches!(tokio::time::timeout(Duration::from_secs(2), ended).await, Ok(true)) {
            tracing::error!("the store's thread did not end in time");
        }
        let _ = tokio::time::timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
        tracing::info!("stopped");
    }

    /// Ends at once, with nothing finished and nobody told, as in a crash. For simulations, which take the network and the
    /// disk from it first: what its tasks do until they have ended is seen by nobody.
    pub fn abort(self) {
        let Self { edge, endpoint, accepting, fanning, administering, store_threads, .. } = self;
        accepting.abort();
        store_threads.iter().for_each(Thread::abort);
        for task in [fanning, administering].into_iter().flatten() {
            task.abort();
        }
        edge.router.cluster.abort();
        endpoint.close(VarInt::from_u32(0), b"");
    }
}

async fn end(task: JoinHandle<()>, deadline: Instant, what: &str) {
    let abort = task.abort_handle();
    match tokio::time::timeout_at(deadline, task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, what, "a part of the relay ended badly"),
        Err(_) => {
            tracing::error!(what, "a part of the relay did not end in time");
            abort.abort();
        }
    }
}
