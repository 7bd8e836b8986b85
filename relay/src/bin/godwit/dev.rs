//! `godwit dev`: one relay with its own authority, ready to try.

use crate::fault::{Fault, print};
use crate::{run, shown};
use godwit_certs::folder::AuthorityDir;
use godwit_certs::identity;
use godwit_relay::{Config, Relay};
use godwit_wire::{Clock, RegionId, RelayId, UserId};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A relay's certificate is made anew when it would expire within this.
const RENEW_BEFORE: Duration = Duration::from_hours(30 * 24);
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
    #[arg(long, default_value = "local")]
    region: RegionId,
}

pub(crate) async fn run(args: Args) -> Result<(), Fault> {
    let now = Clock::system().now();
    let authority = AuthorityDir::new(args.data.join("certs"));
    let relay: RelayId = format!("{0}/{0}-1", args.region).parse().expect("a region makes a relay's id");
    if !authority.path().join(args.region.as_str()).exists() {
        authority.init(&args.region, now)?;
    }
    let certs = authority.relay_dir(&relay);
    if !certs.path().exists() {
        authority.relay(&relay, now)?;
    }
    let chain = certs.read()?.credential.chain;
    if identity::expiry(&chain).is_ok_and(|expiry| expiry <= now.plus(RENEW_BEFORE)) {
        certs.renew(now)?;
    }
    let config = Config {
        listen: args.listen,
        admin: args.admin,
        certs: certs.path().to_owned(),
        data: args.data.clone(),
        log: std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()),
        ..Config::default()
    };
    run::start_log(&config.log)?;
    let again = config.clone();
    run::serve(config, |relay| introduce(relay, &authority), move || Ok(again.clone())).await
}

/// Commands to paste, with tokens that work once.
fn introduce(relay: &Relay, authority: &AuthorityDir) -> Result<(), Fault> {
    let region = relay.id.region();
    let root = shown(&authority.root_certificate_path());
    print("\n# Enrol two devices (each token works once, within ten minutes):")?;
    for name in ["alice", "bob"] {
        let user: UserId = format!("{name}@{region}").parse().expect("a region makes a user's id");
        let device = user.device("phone").expect("a user makes a device's id");
        let token = authority.token(&device, TOKEN_LIFE, Clock::system().now())?;
        let (quic, root) = (relay.quic, root.display());
        print(&format!("godwit-chat enrol --home {name} --relay {quic} --authority {root} --token {token}"))?;
    }
    print("\n# Let them talk:")?;
    print(&format!("CHAT=$(godwit-chat --home alice direct bob@{region})"))?;
    print("godwit-chat --home alice send \"$CHAT\" 'hello bob'")?;
    print("godwit-chat --home bob listen --count 1")?;
    print("\n# More tokens:")?;
    print(&format!("godwit certs token --dir {} --device carol@{region}/phone", shown(authority.path()).display()))?;
    Ok(())
}
