//! Relays as child processes of this one.

use anyhow::{Context, Result};
use godwit_wire::RelayId;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long a relay may take to be ready.
const PATIENCE: Duration = Duration::from_mins(1);

/// A relay that is ready. Dropping it kills it.
pub(crate) struct RelayChild {
    pub(crate) child: Child,
    /// The line that it printed once it was ready.
    pub(crate) ready: String,
    pub(crate) quic: String,
    pub(crate) admin: String,
}

/// This program, to be run again.
pub(crate) fn again() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("this program's path")?))
}

/// A relay of a cluster on this machine.
pub(crate) struct Place<'a> {
    pub(crate) id: &'a RelayId,
    /// `store` or `edge`.
    pub(crate) role: &'a str,
    pub(crate) listen: &'a str,
    pub(crate) admin: &'a str,
    pub(crate) certs: &'a Path,
    pub(crate) data: &'a Path,
    /// Addresses of others.
    pub(crate) join: &'a [&'a str],
}

impl Place<'_> {
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = again()?;
        command
            .args(["relay", "--listen", self.listen, "--admin", self.admin, "--certs"])
            .arg(self.certs)
            .arg("--data")
            .arg(self.data.join(self.id.name()))
            .env("GODWIT_CLUSTER__ROLE", self.role)
            .env("GODWIT_CLUSTER__NETWORK", "lan")
            .env("GODWIT_CLUSTER__JOIN", self.join.join(","))
            .env("GODWIT_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()));
        Ok(command)
    }
}

impl RelayChild {
    /// Runs a command that prints a relay's ready line, and waits for that.
    pub(crate) async fn start(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().context("start a relay")?;
        let out = child.stdout.take().context("the relay's output")?;
        let mut lines = BufReader::new(out).lines();
        let ready = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("the relay is not ready")??;
        let ready = ready.context("the relay ended before it was ready")?;
        // The rest of what it prints is read too, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let word = |name: &str| {
            let value = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            Ok::<_, anyhow::Error>(value.with_context(|| format!("no {name} in the ready line {ready}"))?.to_owned())
        };
        let (quic, admin) = (word("quic")?, word("admin")?);
        Ok(Self { child, ready, quic, admin })
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill the relay")
    }
}
