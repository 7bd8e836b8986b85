//! A cluster on this machine: relays as child processes, with one authority.

use super::{Args, certificates, introduce};
use crate::fault::{Fault, print, say};
use anyhow::{Context, anyhow};
use godwit_certs::folder::AuthorityDir;
use godwit_wire::{RegionId, RelayId};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// How long a relay may take to be ready, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);

struct Member {
    id: RelayId,
    quic: String,
    child: Child,
}

/// The address for the relay with this place in the order.
fn address(first: SocketAddr, place: u16) -> Result<SocketAddr, Fault> {
    let mut address = first;
    if first.port() != 0 {
        let port = first.port().checked_add(place);
        address.set_port(port.with_context(|| format!("no port is left after {first}"))?);
    }
    Ok(address)
}

/// Which relays there are: over the regions in turn, named by their place within each.
fn names(regions: &[RegionId], relays: u16) -> Vec<(RelayId, &'static str)> {
    let place = |i: usize| (&regions[i % regions.len()], i / regions.len() + 1);
    let name = |(region, n): (&RegionId, usize)| {
        let id = format!("{region}/{region}-{n}").parse().expect("a region makes a relay's id");
        (id, if n == 1 { "store" } else { "edge" })
    };
    (0..usize::from(relays)).map(place).map(name).collect()
}

pub(super) async fn run(args: &Args, authority: &AuthorityDir) -> Result<(), Fault> {
    let regions = if args.regions.is_empty() { vec![args.region.clone()] } else { args.regions.clone() };
    if usize::from(args.relays) < regions.len() {
        let why = anyhow!("--relays {}: every region of --regions needs one", args.relays);
        return Err(Fault::new(crate::fault::USAGE, why));
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut members: Vec<Member> = Vec::new();
    for (place, (id, role)) in (0..).zip(names(&regions, args.relays)) {
        let certs = certificates(authority, &id)?;
        let join: Vec<&str> = members.iter().map(|member| member.quic.as_str()).collect();
        let mut command = Command::new(std::env::current_exe().map_err(anyhow::Error::from)?);
        command
            .arg("relay")
            .args(["--listen", &address(args.listen, place)?.to_string()])
            .args(["--admin", &address(args.admin, place)?.to_string()])
            .arg("--certs")
            .arg(certs.path())
            .arg("--data")
            .arg(args.data.join(id.name()))
            .env("GODWIT_CLUSTER__ROLE", role)
            .env("GODWIT_CLUSTER__NETWORK", "lan")
            .env("GODWIT_CLUSTER__JOIN", join.join(","))
            .env("GODWIT_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()))
            // Ctrl-C is for this process, which ends the relays in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(anyhow::Error::from)?;
        let out = child.stdout.take().context("a relay's standard output")?;
        let mut lines = BufReader::new(out).lines();
        let ready = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let ready = ready.with_context(|| format!("{id} is not ready"))?.map_err(anyhow::Error::from)?;
        let ready = ready.with_context(|| format!("{id} ended before it was ready"))?;
        let quic = ready.split(' ').find_map(|word| word.strip_prefix("quic="));
        let quic = quic.with_context(|| format!("{id} is ready without an address: {ready}"))?.to_owned();
        print(&ready)?;
        members.push(Member { id, quic, child });
    }
    let at = |member: &Member| (member.id.region(), member.quic.clone());
    let (first, last) = (members.first().context("a relay")?, members.last().context("a relay")?);
    let bob = members.iter().find(|member| member.id.region() != first.id.region()).unwrap_or(last);
    introduce(authority, &authority.root_certificate_path(), &at(first), &at(bob))?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        () = all_ended(&mut members) => return Err(anyhow!("every relay has ended").into()),
    }
    stop(members).await;
    Ok(())
}

/// One that was killed is missed by the others only.
async fn all_ended(members: &mut [Member]) {
    for member in members {
        match member.child.wait().await {
            Ok(status) => say(&format!("{} ended: {status}", member.id)),
            Err(error) => say(&format!("{}: {error}", member.id)),
        }
    }
}

async fn stop(members: Vec<Member>) {
    let mut members = members;
    for member in &members {
        // All go: there is nobody to hand devices over to, as SIGTERM would.
        if let Some(pid) =
            member.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw)
        {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
    }
    for member in &mut members {
        if tokio::time::timeout(PATIENCE, member.child.wait()).await.is_err() {
            say(&format!("{} does not stop, and is killed", member.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_relay_of_each_region_holds_its_store() {
        let regions: Vec<RegionId> = vec!["eu".parse().unwrap(), "us".parse().unwrap()];
        let names: Vec<_> = names(&regions, 3).into_iter().map(|(id, role)| (id.to_string(), role)).collect();
        let expected = [("eu/eu-1", "store"), ("us/us-1", "store"), ("eu/eu-2", "edge")];
        assert!(names.iter().map(|(id, role)| (id.as_str(), *role)).eq(expected), "{names:?}");
    }
}
