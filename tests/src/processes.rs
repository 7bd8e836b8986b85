//! A cluster of relays, each a process of its own, to be killed.

use crate::lab;
use crate::process::{RelayProcess, commands};
use crate::wire;
use anyhow::Result;
use godwit_certs::folder::AuthorityDir;
use godwit_wire::{Clock, DeviceId, RelayId};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Makes of `command`, which runs `godwit`, one that runs a relay of a cluster; `at` is where it listens and is
/// administered.
pub fn member(command: &mut Command, at: (&str, &str), certs: &Path, data: &Path, role: &str, join: &[&str]) {
    command
        .args(["relay", "--listen", at.0, "--admin", at.1, "--certs"])
        .arg(certs)
        .arg("--data")
        .arg(data)
        .env("GODWIT_CLUSTER__ROLE", role)
        .env("GODWIT_CLUSTER__NETWORK", "lan")
        .env("GODWIT_CLUSTER__JOIN", join.join(","))
        .env("GODWIT_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()));
}

/// Enrols a device with the client library, by the authority in `folder`. Gives its home there.
pub async fn enrol(folder: &Path, relays: Vec<String>, device: &str) -> Result<PathBuf> {
    let id: DeviceId = device.parse()?;
    let authority = AuthorityDir::new(folder.join("relay").join("certs"));
    let token = authority.token(&id, Duration::from_mins(5), Clock::system().now())?;
    let home = folder.join(device.replace(['@', '/'], "-"));
    lab::enrol(&authority, token, relays, home.clone()).await?;
    Ok(home)
}

#[derive(Debug)]
pub struct Processes {
    folder: PathBuf,
    members: Vec<(RelayId, String)>,
    settings: Vec<(String, String)>,
    pub relays: Vec<RelayProcess>,
}

impl Processes {
    /// Starts relays, each given as its id and role, with an authority in `relay/certs`; `settings` are variables of
    /// their environment.
    pub async fn start(folder: &Path, relays: &[(&str, &str)], settings: &[(&str, &str)]) -> Result<Self> {
        let authority = AuthorityDir::new(folder.join("relay").join("certs"));
        let now = Clock::system().now();
        let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        let settings = settings.iter().map(owned).collect();
        let mut processes = Self { folder: folder.to_owned(), members: Vec::new(), settings, relays: Vec::new() };
        for (i, (id, role)) in relays.iter().enumerate() {
            let id: RelayId = id.parse()?;
            authority.ensure(&id.region(), now)?;
            authority.relay(&id, now)?;
            processes.members.push((id, (*role).to_owned()));
            let relay = processes.run(i, "127.0.0.1:0").await?;
            processes.relays.push(relay);
        }
        Ok(processes)
    }

    async fn run(&self, i: usize, listen: &str) -> Result<RelayProcess> {
        RelayProcess::spawn(self.command(i, listen)).await
    }

    fn command(&self, i: usize, listen: &str) -> tokio::process::Command {
        let (id, role) = &self.members[i];
        let join: Vec<&str> = self.relays.iter().map(|relay| relay.quic.as_str()).collect();
        let certs = self.folder.join("relay").join("certs").join(id.as_str());
        let mut command = Command::new(commands().join("godwit"));
        member(&mut command, (listen, "127.0.0.1:0"), &certs, &self.folder.join("data").join(id.as_str()), role, &join);
        command.envs(self.settings.iter().map(|(key, value)| (key, value)));
        command.into()
    }

    /// kill -9, and a start on the same address.
    pub async fn kill_and_start(&mut self, i: usize) -> Result<()> {
        self.relays[i].kill().await?;
        let listen = self.relays[i].quic.clone();
        self.relays[i] = self.run(i, &listen).await?;
        Ok(())
    }

    /// The value of a relay's metric.
    pub fn metric(&self, i: usize, name: &str) -> Result<f64> {
        let text = crate::process::get(&self.relays[i].admin, "/metrics")?;
        wire::metric(&text, name).ok_or_else(|| anyhow::anyhow!("no metric {name}"))
    }
}
