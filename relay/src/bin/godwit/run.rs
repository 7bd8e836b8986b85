//! `godwit relay` and `godwit config`.

use crate::fault::{Fault, USAGE, print};
use crate::shown;
use godwit_relay::config::Layers;
use godwit_relay::{Config, Host, Relay};
use std::io::IsTerminal;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// TOML. Without it, defaults, the environment and flags make the configuration.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where devices connect, UDP; port 0 takes a free one.
    #[arg(long)]
    listen: Option<String>,
    /// Health, metrics and commands, TCP on loopback; port 0 takes a free one.
    #[arg(long)]
    admin: Option<String>,
    /// The relay's folder with its certificates.
    #[arg(long)]
    certs: Option<String>,
    /// Where the store lies.
    #[arg(long)]
    data: Option<String>,
}

impl Args {
    pub(crate) fn config(&self) -> Result<Config, Fault> {
        Ok(self.layers()?.config()?)
    }

    fn layers(&self) -> Result<Layers, Fault> {
        let mut layers = Layers::default();
        if let Some(path) = &self.config {
            layers.file(path)?;
        }
        layers.environment(variables()?.into_iter())?;
        for (flag, key, value) in [
            ("--listen", "listen", &self.listen),
            ("--admin", "admin", &self.admin),
            ("--certs", "certs", &self.certs),
            ("--data", "data", &self.data),
        ] {
            if let Some(value) = value {
                layers.flag(flag, key, value)?;
            }
        }
        Ok(layers)
    }
}

/// The environment.
pub(crate) fn variables() -> Result<Vec<(String, String)>, Fault> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        // A name that is not UTF-8 is none of ours.
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if name.starts_with(Layers::PREFIX) => {
                return Err(Fault::new(USAGE, anyhow::anyhow!("environment {name}: not UTF-8")));
            }
            Err(_) => {}
        }
    }
    Ok(variables)
}

pub(crate) fn describe(args: &Args) -> Result<(), Fault> {
    print(args.layers()?.describe()?.trim_end())
}

pub(crate) async fn run(args: Args) -> Result<(), Fault> {
    let config = args.layers()?.config()?;
    start_log(&config.log)?;
    serve(config, |_| Ok(()), || Ok(args.layers()?.config()?)).await
}

pub(crate) fn start_log(filter: &str) -> Result<(), Fault> {
    let filter = EnvFilter::try_new(filter).map_err(|error| Fault::new(USAGE, anyhow::anyhow!("log: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // Standard error may be gone; complaining about it there would end the relay.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Runs a relay until SIGTERM, which lets it drain first, or Ctrl-C, or until it was asked to drain and has. `ready` is
/// called once the ready line is out, `reload` for every SIGHUP.
pub(crate) async fn serve(
    config: Config,
    ready: impl FnOnce(&Relay) -> Result<(), Fault>,
    reload: impl Fn() -> Result<Config, Fault>,
) -> Result<(), Fault> {
    let signals = |kind| signal(kind).map_err(anyhow::Error::from);
    // Before the ready line, so that whoever waits for it may send one at once.
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let mut hang_up = signals(SignalKind::hangup())?;
    let drain_time = config.cluster.drain_time.duration();
    let relay = Relay::start(&config, &Host::system()).await?;
    let authority = shown(&relay.authority);
    let line = format!(
        "ready relay={} quic={} admin={} authority={}",
        relay.id.name(),
        relay.quic,
        relay.admin,
        authority.display()
    );
    print(&line)?;
    ready(&relay)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                // Asked a second time, it stops at once.
                tokio::select! {
                    () = relay.drain(drain_time) => {}
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                break;
            }
            _ = interrupt.recv() => break,
            () = relay.drained() => break,
            _ = hang_up.recv() => {
                let result = reload().and_then(|config| Ok(relay.reload(&config)?));
                if let Err(fault) = result {
                    tracing::error!(%fault, "nothing was reloaded");
                }
            }
        }
    }
    relay.stop().await;
    Ok(())
}
