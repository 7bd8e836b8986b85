//! `godwit certs`: the authority's folder.

use crate::fault::{Fault, print, say};
use crate::shown;
use godwit_certs::folder::AuthorityDir;
use godwit_wire::{Clock, DeviceId, RegionId, RelayId};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Subcommand, Clone, Debug)]
pub(crate) enum Verb {
    /// Makes an issuer for a region; the root and the token keys too, if there are none yet.
    Init {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        region: RegionId,
    },
    /// Makes a relay's folder, to be copied to its machine.
    Relay {
        #[arg(long)]
        dir: PathBuf,
        /// For example eu/eu-1
        #[arg(long)]
        id: RelayId,
        /// For a relay that has a folder: a new key and certificate. Copy them over, and send the relay SIGHUP.
        #[arg(long)]
        renew: bool,
    },
    /// Prints a token that enrols a device once.
    Token {
        #[arg(long)]
        dir: PathBuf,
        /// For example alice@eu/phone
        #[arg(long)]
        device: DeviceId,
        /// At most 24 hours. Relays allow a minute more, for clocks that differ.
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
}

pub(crate) fn run(verb: Verb) -> Result<(), Fault> {
    let now = Clock::system().now();
    match verb {
        Verb::Init { dir, region } => {
            let authority = AuthorityDir::new(dir);
            authority.init(&region, now)?;
            say(&format!("made the issuer of {region} in {}", shown(authority.path()).display()));
            say("keep root.key and tokens.key off the relays' machines");
        }
        Verb::Relay { dir, id, renew: true } => {
            let folder = AuthorityDir::new(dir).relay_dir(&id);
            folder.renew(now)?;
            say(&format!("renewed relay.crt and relay.key in {}", shown(folder.path()).display()));
        }
        Verb::Relay { dir, id, renew: false } => {
            let folder = AuthorityDir::new(dir).relay(&id, now)?;
            say(&format!("made {}: set `certs` to it", shown(folder.path()).display()));
        }
        Verb::Token { dir, device, ttl } => print(&AuthorityDir::new(dir).token(&device, ttl, now)?)?,
    }
    Ok(())
}
