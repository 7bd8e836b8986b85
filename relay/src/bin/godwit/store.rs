//! `godwit store`, and asking a running relay.

use crate::fault::{Fault, REFUSED, UNREACHABLE, print};
use crate::shown;
use godwit_relay::store::file;
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Subcommand, Clone, Debug)]
pub(crate) enum Verb {
    /// Checks a store that no relay is using.
    Check {
        /// The relay's data folder.
        #[arg(long)]
        data: PathBuf,
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

pub(crate) fn run(verb: Verb) -> Result<(), Fault> {
    match verb {
        Verb::Check { data } => {
            let report = file::check(&data.join(file::NAME))?;
            let file::Report { chats, entries, devices, inbox_rows, faults } = &report;
            print(&format!("{chats} chats, {entries} entries, {devices} devices, {inbox_rows} inbox rows"))?;
            for fault in faults {
                print(&format!("fault: {fault}"))?;
            }
            if report.faults.is_empty() {
                Ok(())
            } else {
                let what = format!("{}: {} faults", data.display(), report.faults.len());
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
