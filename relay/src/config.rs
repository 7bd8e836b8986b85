//! A relay's configuration: defaults, a TOML file, the environment, flags; each overrides the one before.
//!
//! A key of the environment is `GODWIT_`, the section, two underscores and the key, in capitals:
//! `GODWIT_LIMITS__SENDS_PER_SECOND=100`; a key outside the sections has no underscores before it: `GODWIT_LISTEN`.
//! Unknown keys are refused, and a bad value is named with where it stands, before any port is opened.

mod layers;
mod values;

pub use layers::{ConfigError, Layers, Origin};
pub use values::{Count, Size, Time};

#[cfg(feature = "s3")]
use crate::blobs::s3::Bucket;
use crate::edge::{AdmissionConfig, Rate, UserRates};
use crate::fanout::FanoutConfig;
use crate::outbox::OutboxLimits;
use crate::store::StoreLimits;
#[cfg(feature = "dynamodb")]
use crate::store::shared::dynamo::Tables;
use godwit_core::blob::BlobLimits;
#[cfg(feature = "dynamodb")]
use godwit_wire::RegionId;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where devices connect, UDP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Health, metrics and commands, TCP. A loopback address.
    #[serde(deserialize_with = "values::loopback")]
    pub admin: SocketAddr,
    /// The relay's folder with its certificates, made by `godwit certs relay`.
    #[serde(deserialize_with = "values::path")]
    pub certs: PathBuf,
    /// Where the store lies.
    #[serde(deserialize_with = "values::path")]
    pub data: PathBuf,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`.
    #[serde(deserialize_with = "values::log_filter")]
    pub log: String,
    pub store: StoreSection,
    pub dynamodb: DynamodbSection,
    pub attachments: AttachmentsSection,
    pub s3: S3Section,
    pub delivery: DeliverySection,
    pub limits: LimitsSection,
    pub admission: AdmissionSection,
    pub cluster: ClusterSection,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// `store`: holds its region's store and decides for its users and chats; one relay a region. `edge`: carries
    /// connections for the region's store.
    pub role: Role,
    /// Where other relays find this one; the address it listens on if it is not given.
    pub advertise: Option<SocketAddr>,
    /// Some of the other relays, `host:port`; the rest is learned from them.
    #[serde(deserialize_with = "values::addresses")]
    pub join: Vec<String>,
    /// Time-outs for a cluster in one place (`lan`) or over several (`wan`).
    pub network: Network,
    /// Who hears which users are connected here: all relays, or those of the region, for very large clusters.
    pub presence: PresenceScope,
    /// How long SIGTERM waits until the devices are with other relays and the outbox is empty.
    pub drain_time: Time<0, 3_600_000>,
    /// Devices handed over in a second.
    pub drain_per_second: Count<1, 1_000_000>,
    /// Requests that wait for a home out of reach.
    pub outbox: Size<{ 1 << 20 }>,
    /// Of these, one user's.
    pub outbox_per_user: Size<{ 64 << 10 }>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Store,
    Edge,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    Lan,
    #[default]
    Wan,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PresenceScope {
    #[default]
    Cluster,
    Region,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// `redb`: a file in `data`; one relay of the region holds it. `dynamodb`: tables that the region's relays share, see
    /// `[dynamodb]`.
    pub engine: StoreEngine,
    /// Memory for pages of the store's file.
    pub cache: Size<{ 1 << 20 }>,
    /// Memory of requests between their arrival and fan-out.
    pub in_flight: Size<{ 1 << 20 }>,
    /// Chats whose state is kept in memory.
    pub cached_chats: Count<1, 100_000_000>,
    /// Free disk space below which sends are refused, so that acknowledging and deleting go on.
    pub reserve: Size<0>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreEngine {
    #[default]
    Redb,
    Dynamodb,
}

/// Where the region's store is, if it is shared. Credentials come from the standard chain of AWS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamodbSection {
    /// Before each table's name, which goes on with the region's and a hyphen: `godwit-eu-log`.
    pub prefix: String,
    /// `us-east-1` and so on.
    pub region: Option<String>,
    /// Of a server other than AWS's, such as `http://127.0.0.1:8000`.
    #[serde(deserialize_with = "values::url")]
    pub endpoint: Option<String>,
    /// Chats that are written at a time.
    pub writers: Count<1, 1024>,
}

impl Default for DynamodbSection {
    fn default() -> Self {
        let writers = Count::of(StoreLimits::default().workers as u64);
        Self { prefix: "godwit-".to_owned(), region: None, endpoint: None, writers }
    }
}

#[cfg(feature = "dynamodb")]
impl DynamodbSection {
    /// The tables of a region.
    pub fn tables(&self, of: &RegionId) -> Tables {
        let Self { prefix, region, endpoint, .. } = self.clone();
        Tables { prefix: format!("{prefix}{of}-"), region, endpoint }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttachmentsSection {
    /// `files`: in a folder of the relay that holds the store. `s3`: in a bucket, see `[s3]`. `off`: the region stores none.
    pub store: BlobStoreKind,
    /// The folder, also for parts that come in; `blobs` in `data` if it is not given.
    pub folder: Option<PathBuf>,
    /// Of one file, before encryption.
    pub file_size: Size<1>,
    /// Of all attachments together, encrypted; 0 is no limit.
    pub space: Size<0>,
    /// Of one user's, encrypted.
    pub per_user: Size<1>,
    /// Uploaded by one user in a day (UTC).
    pub per_user_daily: Size<1>,
    /// Uploads and downloads of one device at a time.
    pub per_device: Count<1, 100>,
    /// How long an attachment that no message refers to is kept, and an upload that does not go on.
    pub grace: Time<1_000, 31_536_000_000>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BlobStoreKind {
    #[default]
    Files,
    S3,
    Off,
}

/// Where attachments are kept, if that is S3. Credentials come from the standard chain of AWS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Section {
    pub bucket: String,
    /// Before each object's name; each region of relays has one of its own, or a bucket of its own.
    pub prefix: String,
    /// `us-east-1` and so on.
    pub region: Option<String>,
    /// Of a server other than AWS's, such as `http://127.0.0.1:8333`.
    #[serde(deserialize_with = "values::url")]
    pub endpoint: Option<String>,
    /// The bucket in the host's name (`virtual`), or in the path (`path`), as most other servers need it.
    pub addressing_style: AddressingStyle,
    /// Devices move large files to and from the bucket themselves, under addresses that hold for five minutes: the bucket
    /// must be reachable for them, and sees where they are.
    #[serde(deserialize_with = "values::switch")]
    pub urls: bool,
}

#[cfg(feature = "s3")]
impl S3Section {
    pub fn bucket(&self) -> Bucket {
        let Self { bucket, prefix, region, endpoint, addressing_style, .. } = self.clone();
        Bucket { name: bucket, prefix, region, endpoint, path_style: addressing_style == AddressingStyle::Path }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressingStyle {
    #[default]
    Virtual,
    Path,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeliverySection {
    /// How long a device may take to acknowledge before it gets an inbox row.
    pub ack_timeout: Time<100, 600_000>,
    /// Entries on their way to one device.
    pub window: Count<16, 1_000_000>,
    /// Events that wait for one device.
    pub lane_bytes: Size<{ 1 << 20 }>,
    /// Backlogs older than this are not pushed; the device hears of a gap.
    pub inbox_max_age: Time<1_000, { u64::MAX }>,
    /// Content of one chat's backlog above which its older part is not pushed.
    pub inbox_max_bytes: Size<1>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Messages and changes of chats, per user.
    pub sends_per_second: Count<1, 1_000_000_000>,
    pub sends_burst: Count<1, 1_000_000_000>,
    /// Content, per user.
    pub bytes_per_second: Size<1>,
    pub bytes_burst: Size<{ 256 << 10 }>,
    /// All other requests, per user.
    pub requests_per_second: Count<1, 1_000_000_000>,
    pub requests_burst: Count<512, 1_000_000_000>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionSection {
    pub handshakes_per_second: Count<1, 1_000_000>,
    pub handshakes_burst: Count<1, 1_000_000>,
    /// Of one address.
    pub address_per_second: Count<1, 1_000_000>,
    pub address_burst: Count<1, 1_000_000>,
    pub concurrent_handshakes: Count<1, 100_000>,
    pub connections: Count<1, 10_000_000>,
    pub handshake_timeout: Time<100, 600_000>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4433)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9443)),
            certs: PathBuf::from("certs"),
            data: PathBuf::from("data"),
            log: "info".to_owned(),
            store: StoreSection::default(),
            dynamodb: DynamodbSection::default(),
            attachments: AttachmentsSection::default(),
            s3: S3Section::default(),
            delivery: DeliverySection::default(),
            limits: LimitsSection::default(),
            admission: AdmissionSection::default(),
            cluster: ClusterSection::default(),
        }
    }
}

impl Default for ClusterSection {
    fn default() -> Self {
        let parts = OutboxLimits::default();
        Self {
            role: Role::default(),
            advertise: None,
            join: Vec::new(),
            network: Network::default(),
            presence: PresenceScope::default(),
            drain_time: Time::of(Duration::from_secs(20)),
            drain_per_second: Count::of(500),
            outbox: Size::of(parts.bytes as u64),
            outbox_per_user: Size::of(parts.user_bytes as u64),
        }
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        let parts = StoreLimits::default();
        Self {
            engine: StoreEngine::default(),
            cache: Size::of(256 << 20),
            in_flight: Size::of(parts.in_flight_bytes as u64),
            cached_chats: Count::of(parts.cached_chats as u64),
            reserve: Size::of(parts.reserve_bytes),
        }
    }
}

impl Default for AttachmentsSection {
    fn default() -> Self {
        let parts = BlobLimits::default();
        Self {
            store: BlobStoreKind::default(),
            folder: None,
            file_size: Size::of(parts.file_bytes),
            space: Size::of(0),
            per_user: Size::of(parts.user_bytes),
            per_user_daily: Size::of(parts.user_daily_bytes),
            per_device: Count::of(4),
            grace: Time::of(parts.grace),
        }
    }
}

impl Default for DeliverySection {
    fn default() -> Self {
        let parts = FanoutConfig::default();
        Self {
            ack_timeout: Time::of(parts.ack_timeout),
            window: Count::of(parts.window),
            lane_bytes: Size::of(2 << 20),
            inbox_max_age: Time::of(parts.inbox_max_age),
            inbox_max_bytes: Size::of(parts.inbox_max_bytes),
        }
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        let UserRates { sends, bytes, requests } = UserRates::default();
        Self {
            sends_per_second: Count::of(sends.per_second.get().into()),
            sends_burst: Count::of(sends.burst.get().into()),
            bytes_per_second: Size::of(bytes.per_second.get().into()),
            bytes_burst: Size::of(bytes.burst.get().into()),
            requests_per_second: Count::of(requests.per_second.get().into()),
            requests_burst: Count::of(requests.burst.get().into()),
        }
    }
}

impl Default for AdmissionSection {
    fn default() -> Self {
        let parts = AdmissionConfig::default();
        Self {
            handshakes_per_second: Count::of(parts.handshakes.per_second.get().into()),
            handshakes_burst: Count::of(parts.handshakes.burst.get().into()),
            address_per_second: Count::of(parts.handshakes_per_address.per_second.get().into()),
            address_burst: Count::of(parts.handshakes_per_address.burst.get().into()),
            concurrent_handshakes: Count::of(parts.concurrent_handshakes as u64),
            connections: Count::of(parts.connections as u64),
            handshake_timeout: Time::of(parts.handshake_timeout),
        }
    }
}

impl Config {
    pub(crate) fn gossip(&self) -> godwit_gossip::Config {
        let mut config = match self.cluster.network {
            Network::Lan => godwit_gossip::Config::lan(),
            Network::Wan => godwit_gossip::Config::wan(),
        };
        config.scope = match self.cluster.presence {
            PresenceScope::Cluster => godwit_gossip::PresenceScope::Cluster,
            PresenceScope::Region => godwit_gossip::PresenceScope::Region,
        };
        config
    }

    pub(crate) fn outbox(&self) -> OutboxLimits {
        OutboxLimits { bytes: self.cluster.outbox.bytes(), user_bytes: self.cluster.outbox_per_user.bytes() }
    }

    pub(crate) fn store_limits(&self) -> StoreLimits {
        StoreLimits {
            in_flight_bytes: self.store.in_flight.bytes(),
            cached_chats: self.store.cached_chats.count(),
            reserve_bytes: self.store.reserve.bytes() as u64,
            workers: self.dynamodb.writers.count(),
        }
    }

    /// Where attachments lie, and parts of them that come in.
    pub fn blobs_folder(&self) -> PathBuf {
        self.attachments.folder.clone().unwrap_or_else(|| self.data.join("blobs"))
    }

    pub(crate) fn blobs(&self) -> BlobLimits {
        let attachments = &self.attachments;
        let space = attachments.space.bytes() as u64;
        BlobLimits {
            file_bytes: attachments.file_size.bytes() as u64,
            total_bytes: if space == 0 { u64::MAX } else { space },
            user_bytes: attachments.per_user.bytes() as u64,
            user_daily_bytes: attachments.per_user_daily.bytes() as u64,
            grace: attachments.grace.duration(),
        }
    }

    pub(crate) fn fanout(&self) -> FanoutConfig {
        FanoutConfig {
            ack_timeout: self.delivery.ack_timeout.duration(),
            window: self.delivery.window.count() as u64,
            inbox_max_age: self.delivery.inbox_max_age.duration(),
            inbox_max_bytes: self.delivery.inbox_max_bytes.bytes() as u64,
        }
    }

    pub(crate) fn rates(&self) -> UserRates {
        let limits = &self.limits;
        UserRates {
            sends: Rate::new(limits.sends_per_second.small(), limits.sends_burst.small()),
            bytes: Rate::new(limits.bytes_per_second.small(), limits.bytes_burst.small()),
            requests: Rate::new(limits.requests_per_second.small(), limits.requests_burst.small()),
        }
    }

    pub(crate) fn admission(&self) -> AdmissionConfig {
        let admission = &self.admission;
        AdmissionConfig {
            handshakes: Rate::new(admission.handshakes_per_second.small(), admission.handshakes_burst.small()),
            handshakes_per_address: Rate::new(admission.address_per_second.small(), admission.address_burst.small()),
            concurrent_handshakes: admission.concurrent_handshakes.count(),
            connections: admission.connections.count(),
            handshake_timeout: admission.handshake_timeout.duration(),
        }
    }
}
