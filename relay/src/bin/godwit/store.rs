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
    godwit_relay::host::{Host, Threads},
    godwit_relay::store::StoreError,
    godwit_relay::store::shared::copy::{Progress, Source, Step, copy as copy_shared},
    godwit_relay::store::shared::{dynamo::Dynamo, examine, init as init_shared, was_made},
    godwit_wire::RegionId,
    indicatif::{ProgressBar, ProgressStyle},
    std::io::IsTerminal,
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
    /// Copies a relay's store file into the tables of a shared store that `init` has just made, while no relay of the
    /// region runs, and reads all of it back. The configuration is the one that relays are to have then, with the folder of
    /// the old store as `data`. One that was interrupted goes on when it is run again.
    Copy {
        #[command(flatten)]
        args: run::Args,
        /// Copies although attachments are files, which stay where they are: nobody can fetch them any more.
        #[arg(long)]
        leave_attachments: bool,
    },
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
    let tables = Box::pin(Dynamo::new(config.dynamodb.tables(&region))).await;
    Ok((tables.map_err(StoreError::from)?, region))
}

#[cfg(feature = "dynamodb")]
fn must_be_shared(config: &Config, otherwise: &str) -> Result<(), Fault> {
    match config.store.engine {
        StoreEngine::Dynamodb => Ok(()),
        StoreEngine::Redb => Err(Fault::new(USAGE, anyhow::anyhow!("store.engine: is redb, {otherwise}"))),
    }
}

#[cfg(feature = "dynamodb")]
async fn copy(config: &Config, leave_attachments: bool) -> Result<(), Fault> {
    must_be_shared(config, "which is copied from; set it to dynamodb, as relays are to have it")?;
    let (tables, region) = shared(config).await?;
    let attachments = (!leave_attachments).then(|| config.blobs_folder());
    let source = Source { folder: config.data.clone(), attachments };
    let bar = bar();
    let told = {
        let bar = bar.clone();
        move |Progress { step, rows, of }| {
            bar.set_message(match step {
                Step::Reads => "reading",
                Step::Writes => "copying",
                Step::Verifies => "reading back",
            });
            bar.set_length(of.max(rows));
            bar.set_position(rows);
        }
    };
    let copied = copy_shared(source, Arc::new(tables), &region, &Host::system(), told).await;
    bar.finish_and_clear();
    print(&format!("copied and read back: {}", copied?))?;
    print(&format!("the store of region {region} is ready; {} stays as it is", config.data.join(file::NAME).display()))
}

#[cfg(feature = "dynamodb")]
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{msg:12} {bar:30} {human_pos}/{human_len} rows, {eta} left";
    ProgressBar::new(0).with_style(ProgressStyle::with_template(template).expect("the template is well-formed"))
}

#[cfg(feature = "dynamodb")]
async fn init(config: &Config) -> Result<(), Fault> {
    must_be_shared(config, "whose file a relay makes by itself; only dynamodb is made ready")?;
    let (tables, region) = shared(config).await?;
    let made = |table: &str| {
        // Whoever reads it may have gone; the tables are made all the same.
        let _ = print(&format!("table {table}"));
    };
    let missing = tables.missing().await.map_err(StoreError::from)?;
    if !missing.is_empty() && was_made(Arc::new(tables.clone()), &Threads::System).await? {
        return Err(StoreError::TablesLost(missing).into());
    }
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
fn copy(_: &Config, _: bool) -> std::future::Ready<Result<(), Fault>> {
    std::future::ready(Err(Fault::new(USAGE, anyhow::anyhow!("this build has no DynamoDB"))))
}

#[cfg(not(feature = "dynamodb"))]
fn examined(_: &Config) -> std::future::Ready<Result<Report, Fault>> {
    std::future::ready(Err(Fault::new(USAGE, anyhow::anyhow!("this build has no DynamoDB"))))
}

pub(crate) async fn run(verb: Verb) -> Result<(), Fault> {
    match verb {
        Verb::Init(args) => init(&args.config()?).await,
        Verb::Copy { args, leave_attachments } => Box::pin(copy(&args.config()?, leave_attachments)).await,
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
