//! Servers that tests need beside relays: each is installed at its first use by a script in `servers/`, and ends with this
//! process.

use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// Starts the server of that name. Gives its address; it may not answer yet.
///
/// # Errors
/// It cannot be installed, or started.
pub async fn start(name: &str) -> Result<String> {
    let folder = tempfile::Builder::new().prefix(&format!("godwit-{name}-")).tempdir()?.keep();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers").join(name);
    let parent = std::process::id().to_string();
    let output = Command::new(script).arg(&parent).arg(&folder).stderr(Stdio::inherit()).output().await?;
    ensure!(output.status.success(), "{name} cannot be started: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
