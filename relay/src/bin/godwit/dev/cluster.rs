//! A cluster on this machine: relays as child processes, with one authority.

use super::{Args, certificates, introduce};
use crate::child::{Place, RelayChild};
use crate::fault::{Fault, print, say};
use anyhow::{Context, anyhow};
use godwit_certs::folder::AuthorityDir;
use godwit_relay::config::BlobStoreKind;
use godwit_wire::{RegionId, RelayId};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a relay may take to stop.
const PATIENCE: Duration = Duration::from_secs(20);

struct Member {
    id: RelayId,
    relay: RelayChild,
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
    if let Some(twice) = regions.iter().enumerate().find(|(i, region)| regions[..*i].contains(region)) {
        return Err(Fault::new(crate::fault::USAGE, anyhow!("--regions: {} is named twice", twice.1)));
    }
    if usize::from(args.relays) < regions.len() {
        let why = anyhow!("--relays {}: every region of --regions needs one", args.relays);
        return Err(Fault::new(crate::fault::USAGE, why));
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut members: Vec<Member> = Vec::new();
    for (place, (id, role)) in (0..).zip(names(&regions, args.relays)) {
        let certs = certificates(authority, &id)?;
        let (listen, admin) = (address(args.listen, place)?.to_string(), address(args.admin, place)?.to_string());
        let (certs, data) = (certs.path(), args.data.as_path());
        let join: Vec<&str> = members.iter().map(|member| member.relay.quic.as_str()).collect();
        let role = if args.store.is_shared() { "store" } else { role };
        let place = Place { id: &id, role, listen: &listen, admin: &admin, certs, data, join: &join };
        let mut command = place.command()?;
        command.envs(args.store.environment(super::TABLES));
        if !args.store.is_shared() || args.blobs != BlobStoreKind::Files {
            command.envs(super::blobs::environment(args, &id.region()));
        }
        // Ctrl-C is for this process, which ends the relays in order.
        command.process_group(0);
        let relay = RelayChild::start(command).await.with_context(|| id.to_string())?;
        print(&relay.ready)?;
        members.push(Member { id, relay });
    }
    let at = |member: &Member| (member.id.region(), member.relay.quic.clone());
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
        match member.relay.child.wait().await {
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
            member.relay.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw)
        {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
    }
    for member in &mut members {
        if tokio::time::timeout(PATIENCE, member.relay.child.wait()).await.is_err() {
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
