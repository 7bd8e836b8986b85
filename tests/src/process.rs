//! The real commands as child processes. They are built once, by the cargo that builds the tests.

use crate::lab::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

static BUILT: OnceLock<PathBuf> = OnceLock::new();

/// The folder of the commands, which are built if need be.
pub fn commands() -> &'static Path {
    BUILT.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = std::process::Command::new(cargo);
        build.args(["build", "--quiet", "--package", "godwit-relay", "--package", "godwit-client", "--bins"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
        assert!(status.success(), "the commands cannot be built");
        // …/target/debug/deps/it-… → …/target/debug
        let test = std::env::current_exe().expect("this program's path");
        test.ancestors().nth(2).expect("a target folder").to_owned()
    })
}

/// A relay in a process of its own, run by `godwit dev`.
#[derive(Debug)]
pub struct RelayProcess {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub ready: String,
    pub quic: String,
    pub admin: String,
    pub authority: String,
}

impl RelayProcess {
    pub async fn dev(data: &Path, listen: &str) -> Result<Self> {
        let mut command = Command::new(commands().join("godwit"));
        command.args(["dev", "--listen", listen, "--admin", "127.0.0.1:0", "--region", "eu", "--data"]).arg(data);
        Self::spawn(command).await
    }

    /// Starts a command that prints a ready line.
    pub async fn spawn(mut command: Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("standard output")?;
        let mut lines = BufReader::new(out).lines();
        let ready = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("not ready")??;
        let ready = ready.context("ended before it was ready")?;
        let word = |name: &str| -> Result<String> {
            let value = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            Ok(value.with_context(|| format!("no {name} in {ready:?}"))?.to_owned())
        };
        let (quic, admin, authority) = (word("quic")?, word("admin")?, word("authority")?);
        Ok(Self { child, lines, ready, quic, admin, authority })
    }

    /// The next line of its standard output.
    pub async fn line(&mut self) -> Result<Option<String>> {
        Ok(tokio::time::timeout(PATIENCE, self.lines.next_line()).await.context("no line")??)
    }

    /// kill -9.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> Result<std::process::ExitStatus> {
        Ok(tokio::time::timeout(PATIENCE, self.child.wait()).await.context("it does not end")??)
    }
}

/// What a relay's admin port answers to a GET: status line, headers and body.
pub fn get(admin: &str, path: &str) -> Result<String> {
    let mut stream = std::net::TcpStream::connect(admin)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Runs a command to its end.
pub fn run(name: &str, args: &[&str]) -> Result<Output> {
    run_with_input(name, args, "")
}

/// Runs a command to its end, with `input` on its standard input.
pub fn run_with_input(name: &str, args: &[&str], input: &str) -> Result<Output> {
    let mut command = std::process::Command::new(commands().join(name));
    let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("standard input")?;
    let input = input.to_owned();
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // A command that ended early did not read everything.
    let _ = feeding.join();
    Ok(output)
}

/// Runs a command that must succeed. Gives its standard output.
pub fn succeed(name: &str, args: &[&str]) -> Result<String> {
    let output = run(name, args)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {args:?}: {}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command that must end with `code`. Gives its standard error.
pub fn fail(name: &str, args: &[&str], code: i32) -> Result<String> {
    let output = run(name, args)?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(code) {
        Ok(errors)
    } else {
        bail!("{name} {args:?}: {} instead of {code}: {errors}", output.status)
    }
}
