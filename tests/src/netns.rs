//! A small network of this machine's own: namespaces on one bridge, whose links can be cut. Needs the right to make
//! network namespaces (`ip netns`), and touches nothing outside those that it made.

use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static MADE: AtomicU32 = AtomicU32::new(0);

/// Hosts 0, 1, 2 …, each a namespace with one address.
#[derive(Debug)]
pub struct Net {
    name: String,
    hosts: u8,
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("ip")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), error.trim());
    Ok(())
}

impl Net {
    /// # Errors
    /// Why this machine makes none.
    pub fn new(hosts: u8) -> Result<Self> {
        let name = format!("gw{}x{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        // Dropped, it takes away what was made so far.
        let net = Self { name, hosts };
        let hub = net.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for host in 0..hosts {
            let (space, port) = (net.space(host), port(host));
            ip(&["netns", "add", &space])?;
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/24", net.address(host)), "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        }
        Ok(net)
    }

    fn hub(&self) -> String {
        format!("{}hub", self.name)
    }

    fn space(&self, host: u8) -> String {
        format!("{}h{host}", self.name)
    }

    pub fn address(&self, host: u8) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// A command that runs on a host.
    pub fn command(&self, host: u8, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(host)]).arg(program);
        command
    }

    /// Nothing passes to the host or from it, or everything does again.
    pub fn cut(&self, host: u8, cut: bool) -> Result<()> {
        ip(&["-n", &self.hub(), "link", "set", &port(host), if cut { "down" } else { "up" }])
    }

    /// What `from` sends to `to` is lost, or passes again; the other way it passes all the time.
    pub fn lose(&self, from: u8, to: u8, lost: bool) -> Result<()> {
        let what = if lost { "add" } else { "del" };
        ip(&["-n", &self.space(from), "route", what, "blackhole", &format!("{}/32", self.address(to))])
    }
}

fn port(host: u8) -> String {
    format!("port{host}")
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in (0..self.hosts).map(|host| self.space(host)).chain([self.hub()]) {
            // What was not made cannot be taken away.
            let _ = ip(&["netns", "del", &space]);
        }
    }
}
