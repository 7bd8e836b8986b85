//! `godwit dev`: one relay with its own authority, ready to try; or a cluster of them, each a process of its own.

mod blobs;
mod cluster;

use crate::fault::{Fault, print};
use crate::shared::StoreArgs;
use crate::{run, shown};
use godwit_certs::folder::{AuthorityDir, RelayDir};
use godwit_certs::identity;
use godwit_relay::config::{BlobStoreKind, Layers};
use godwit_relay::{Config, Relay};
use godwit_wire::{Clock, RegionId, RelayId, UserId};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A relay's certificate is made anew when it would expire within this.
const RENEW_BEFORE: Duration = Duration::from_hours(30 * 24);
/// What the names of tables begin with.
const TABLES: &str = "godwit-dev-";
const TOKEN_LIFE: Duration = Duration::from_mins(10);

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    #[arg(long, default_value = "127.0.0.1:4433")]
    listen: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:9443")]
    admin: SocketAddr,
    /// The store and the authority (in `certs`). Made at the first start.
    #[arg(long, default_value = "godwit-dev")]
    data: PathBuf,
    #[arg(long, default_value = "local", conflicts_with = "regions")]
    region: RegionId,
    /// So many relays, each a process of its own: over the regions in turn, the first of each with its store, the
    /// others edges; with `--store dynamodb`, all of a region share its store. Ports count up from those given.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    relays: u16,
    /// Regions with commas between them.
    #[arg(long, value_delimiter = ',')]
    regions: Vec<RegionId>,
    #[command(flatten)]
    store: StoreArgs,
    /// Where attachments are kept. `s3`: in the bucket `godwit-dev` of the server at --s3-endpoint, which is made.
    #[arg(long, value_enum, default_value = "files")]
    blobs: BlobStoreKind,
    #[arg(long, default_value = "http://127.0.0.1:8333")]
    s3_endpoint: String,
}

/// A relay's folder with certificates that are good for a while.
fn certificates(authority: &AuthorityDir, relay: &RelayId) -> Result<RelayDir, Fault> {
    let now = Clock::system().now();
    authority.ensure(&relay.region(), now)?;
    let certs = authority.relay_dir(relay);
    if !certs.path().exists() {
        authority.relay(relay, now)?;
    }
    let chain = certs.read()?.credential.chain;
    if identity::expiry(&chain).is_ok_and(|expiry| expiry <= now.plus(RENEW_BEFORE)) {
        certs.renew(now)?;
    }
    Ok(certs)
}

pub(crate) async fn run(args: Args) -> Result<(), Fault> {
    blobs::prepare(&args).await?;
    let authority = AuthorityDir::new(args.data.join("certs"));
    if args.relays > 1 || !args.regions.is_empty() {
        let regions = if args.regions.is_empty() { std::slice::from_ref(&args.region) } else { &args.regions };
        args.store.prepare(TABLES, regions).await?;
        return cluster::run(&args, &authority).await;
    }
    let relay: RelayId = format!("{0}/{0}-1", args.region).parse().expect("a region makes a relay's id");
    let certs = certificates(&authority, &relay)?;
    let mut layers = Layers::default();
    layers.environment(run::variables()?.into_iter())?;
    args.store.prepare(TABLES, std::slice::from_ref(&args.region)).await?;
    layers.environment(args.store.environment(TABLES).into_iter())?;
    if args.blobs != BlobStoreKind::Files {
        layers.environment(blobs::environment(&args, &args.region).into_iter())?;
    }
    let config = Config {
        listen: args.listen,
        admin: args.admin,
        certs: certs.path().to_owned(),
        data: args.data.clone(),
        log: std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()),
        ..layers.config()?
    };
    run::start_log(&config.log)?;
    let again = config.clone();
    let introduce = |relay: &Relay| {
        let at = (relay.id.region(), relay.quic.to_string());
        introduce(&authority, &authority.root_certificate_path(), &at, &at)
    };
    run::serve(config, introduce, move || Ok(again.clone())).await
}

/// Commands to paste, with tokens that work once: for alice and bob, each with their region and the relay they know.
fn introduce(
    authority: &AuthorityDir,
    root: &Path,
    alice: &(RegionId, String),
    bob: &(RegionId, String),
) -> Result<(), Fault> {
    let root = shown(root);
    print("\n# Enrol two devices (each token works once, within ten minutes):")?;
    for (name, (region, relay)) in [("alice", alice), ("bob", bob)] {
        let user: UserId = format!("{name}@{region}").parse().expect("a region makes a user's id");
        let device = user.device("phone").expect("a user makes a device's id");
        let token = authority.token(&device, TOKEN_LIFE, Clock::system().now())?;
        let root = root.display();
        print(&format!("godwit-chat enrol --home {name} --relay {relay} --authority {root} --token {token}"))?;
    }
    print("\n# Let them talk:")?;
    print(&format!("CHAT=$(godwit-chat --home alice direct bob@{})", bob.0))?;
    print("godwit-chat --home alice send \"$CHAT\" 'hello bob'")?;
    print("godwit-chat --home bob listen --count 1")?;
    print("\n# More tokens:")?;
    let dir = shown(authority.path());
    print(&format!("godwit certs token --dir {} --device carol@{}/phone", dir.display(), alice.0))?;
    Ok(())
}
