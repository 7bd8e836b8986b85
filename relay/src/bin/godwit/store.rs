//! `godwit store`, and asking a running relay.

use crate::fault::{Fault, REFUSED, UNREACHABLE, USAGE, print};
use crate::{run, shown};
use godwit_relay::Config;
use godwit_relay::config::StoreEngine;
use godwit_relay::store::check::Report;
use godwit_relay::store::file;
use std::path::PathBuf;
use std::time::Duration;
#[cfg(feature = "dynamodb")]
use {
    godwit_certs::folder::RelayDir,
    godwit_relay::StartError,
    godwit_relay::host::Threads,
    godwit_relay::store::StoreError,
    godwit_relay::store::shared::{dynamo::Dynamo, examine, init as init_shared},
    godwit_wire::RegionId,
    std::sync::Arc,
};

#[derive(clap::Subcommand, Clone, Debug)]
pub(crate) enum Verb {
    /// Makes the tables of a region's shared store, those that are not there, with on-demand capacity and point-in-time
    /// recovery, and notes whose they are. The region is that of the relay's certificates.
    Init(run::Args),
    /// Checks a store: that every chat's log is gapless, and that what follows from it is there. A file may not be in use
    /// by a relay; a shared store may.
    Check(run::Args),
    /// Copies the store of a running relay, as it is at one moment. To restore, start a relay whose data folder holds
    /// the copy as `store.redb`.
    Backup {
        /// The relay's admin address.
        #[arg(long, default_value = "127.0.0.1:9443")]
        admin: String,
        /// A file that does not exist yet, on the relay's machine.
        #[arg(long)]
        to: PathBuf,
    },
}

/// The shared store of a configuration, and whose it is.
#[cfg(feature = "dynamodb")]
async fn shared(config: &Config) -> Result<(Dynamo, RegionId), Fault> {
    let region = RelayDir::new(&config.certs).read().map_err(StartError::from)?.relay.region();
    Ok((Box::pin(Dynamo::new(config.dynamodb.tables(&region))).await, region))
}

#[cfg(feature = "dynamodb")]
async fn init(config: &Config) -> Result<(), Fault> {
    if config.store.engine != StoreEngine::Dynamodb {
        let why =
            anyhow::anyhow!("store.engine: is redb, whose file a relay makes by itself; only dynamodb is made ready");
        return Err(Fault::new(USAGE, why));
    }
    let (tables, region) = shared(config).await?;
    let made = |table: &str| {
        // Whoever reads it may have gone; the tables are made all the same.
        let _ = print(&format!("table {table}"));
    };
    tables.make_tables(made).await.map_err(StoreError::from)?;
    init_shared(Arc::new(tables), &region, &Threads::System).await?;
    print(&format!("the store of region {region} is ready"))
}

#[cfg(feature = "dynamodb")]
async fn examined(config: &Config) -> Result<Report, Fault> {
    let (tables, region) = shared(config).await?;
    Ok(examine(Arc::new(tables), &region, &Threads::System).await?)
}

#[cfg(not(feature = "dynamodb"))]
fn init(_: &Config) -> std::future::Ready<Result<(), Fault>> {
    std::future::ready(Err(Fault::new(USAGE, anyhow::anyhow!("this build has no DynamoDB"))))
}

#[cfg(not(feature = "dynamodb"))]
fn examined(_: &Config) -> std::future::Ready<Result<Report, Fault>> {
    std::future::ready(Err(Fault::new(USAGE, anyhow::anyhow!("this build has no DynamoDB"))))
}

pub(crate) async fn run(verb: Verb) -> Result<(), Fault> {
    match verb {
        Verb::Init(args) => init(&args.config()?).await,
        Verb::Check(args) => {
            let config = args.config()?;
            let data = config.data.clone();
            let report = match config.store.engine {
                StoreEngine::Redb => file::check(&data.join(file::NAME))?,
                StoreEngine::Dynamodb => examined(&config).await?,
            };
            let Report { chats, entries, devices, inbox_rows, faults } = &report;
            print(&format!("{chats} chats, {entries} entries, {devices} devices, {inbox_rows} inbox rows"))?;
            for fault in faults {
                print(&format!("fault: {fault}"))?;
            }
            if report.faults.is_empty() {
                Ok(())
            } else {
                let what = format!("{} faults", report.faults.len());
                Err(godwit_relay::store::StoreError::Corrupt { path: data, what }.into())
            }
        }
        Verb::Backup { admin, to } => {
            let to = shown(&to).into_os_string().into_string();
            let to = to.map_err(|_| anyhow::anyhow!("--to: not UTF-8"))?;
            post(&admin, "store/backup", &[("to", &to)])
        }
    }
}

/// Posts to a relay's admin port and prints what it answers.
pub(crate) fn post(admin: &str, path: &str, query: &[(&str, &str)]) -> Result<(), Fault> {
    print(&ask(admin, path, query)?)
}

/// Posts to a relay's admin port. Gives its answer.
pub(crate) fn ask(admin: &str, path: &str, query: &[(&str, &str)]) -> Result<String, Fault> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(5)))
        .build()
        .into();
    let request = agent.post(format!("http://{admin}/{path}")).query_pairs(query.iter().copied());
    let unreachable = |error: ureq::Error| Fault::new(UNREACHABLE, anyhow::anyhow!("admin {admin}: {error}"));
    let mut response = request.send_empty().map_err(unreachable)?;
    let text = response.body_mut().read_to_string().map_err(unreachable)?;
    if response.status().is_success() {
        Ok(text.trim_end().to_owned())
    } else {
        let code = if response.status() == 408 { UNREACHABLE } else { REFUSED };
        let said = if text.trim().is_empty() { "no reason was given" } else { text.trim() };
        Err(Fault::new(code, anyhow::anyhow!("admin {admin}: {}: {said}", response.status())))
    }
}
