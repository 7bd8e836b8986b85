//! The `godwit` command: runs relays, makes certificates, looks after stores, and shows what it all does.

mod certs;
mod child;
mod demo;
mod dev;
mod fault;
mod run;
mod shared;
mod status;
mod store;

use clap::{Parser, Subcommand};
use fault::Fault;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A messaging backend: relays that take devices over QUIC and lose nothing.
///
/// Exit codes: 0 done; 1 fault; 2 usage or configuration; 3 refused; 4 unreachable or timed out; 5 in use; 6 corrupt or
/// of a newer format; 130 interrupted.
#[derive(Parser)]
#[command(name = "godwit", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Shows relays and their clients at work, crashes included, in a temporary folder: first one relay, then three in
    /// two regions; or, with a shared store, three in one region.
    Demo(shared::StoreArgs),
    /// Runs one relay for development, with its own authority, until Ctrl-C.
    Dev(dev::Args),
    /// Runs a relay.
    Relay(run::Args),
    /// Prints the effective configuration with where each value came from.
    Config(run::Args),
    /// Makes the authority, relays' certificates and enrolment tokens.
    #[command(subcommand)]
    Certs(certs::Verb),
    /// Makes ready, checks and copies stores.
    #[command(subcommand)]
    Store(store::Verb),
    /// Prints the cluster as one relay knows it: members, links, load, claims, outbox.
    Status {
        /// The relay's admin address.
        #[arg(long, default_value = "127.0.0.1:9443")]
        admin: String,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Hands a relay's devices over to other relays, waits until its outbox is empty, and stops it. If that takes longer
    /// than is waited for, it goes on, and the exit code is 4.
    Drain {
        /// The relay's admin address.
        #[arg(long, default_value = "127.0.0.1:9443")]
        admin: String,
        /// How long to wait.
        #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
        within: Duration,
    },
    /// Shuts a device out, at once and for good, until it is enrolled anew.
    Revoke {
        /// The relay's admin address.
        #[arg(long, default_value = "127.0.0.1:9443")]
        admin: String,
        /// For example alice@eu/phone
        device: godwit_wire::DeviceId,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Fault::from(anyhow::Error::from(error)).report(),
    };
    let result = runtime.block_on(async {
        match args.verb {
            Verb::Demo(store) => demo::run(&store).await,
            Verb::Dev(args) => dev::run(args).await,
            Verb::Relay(args) => run::run(args).await,
            Verb::Config(args) => run::describe(&args),
            Verb::Certs(verb) => certs::run(verb),
            Verb::Store(verb) => store::run(verb).await,
            Verb::Status { admin, json } => status::run(&admin, json),
            Verb::Drain { admin, within } => {
                let millis = within.as_millis().to_string();
                store::post(&admin, "drain", &[("within_millis", &millis)])
            }
            Verb::Revoke { admin, device } => store::post(&admin, "devices/revoke", &[("device", device.as_str())]),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fault.report(),
    }
}

/// A path as it is shown, absolute where that can be found out.
fn shown(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
