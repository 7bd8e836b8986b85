//! The `godwit-chat` command: one device in one folder.

mod files;
mod input;
mod print;
mod talk;
mod verbs;

use clap::{Parser, Subcommand, ValueEnum};
use godwit_client::{ChatId, Error, MessageState, Seq, UserId};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// By Ctrl-C, and by SIGTERM; what is unsent stays in the outbox.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// Talk through a Godwit relay, as one device of one user.
///
/// Without a verb, an interactive chat. Exit codes: 0 done; 1 fault; 2 usage; 3 refused; 4 unreachable or timed out (a
/// message stays pending); 5 in use; 6 corrupt or of a newer format; 130 interrupted.
#[derive(Parser)]
#[command(name = "godwit-chat", version)]
pub(crate) struct Args {
    /// The device's folder.
    #[arg(long, global = true, default_value = "godwit-home")]
    home: PathBuf,
    /// One JSON object a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Enrols this device, once, with a token.
    Enrol {
        /// host:port; may be given several times.
        #[arg(long, required = true, value_parser = address)]
        relay: Vec<String>,
        /// The root's certificate, PEM.
        #[arg(long)]
        authority: PathBuf,
        #[arg(long)]
        token: String,
    },
    /// Prints the direct chat with a user; creates it if there is none.
    Direct { user: UserId },
    /// Creates a group.
    New {
        title: String,
        #[arg(required = true)]
        users: Vec<UserId>,
    },
    /// Lists the chats.
    Chats,
    /// Sends a message; with `-`, each line of standard input.
    Send {
        chat: ChatId,
        text: String,
        /// Until when to wait.
        #[arg(long, value_enum, default_value = "sent")]
        wait: Wait,
        /// How long to wait without progress.
        #[arg(long, default_value = "30s", value_parser = timeout)]
        timeout: Duration,
    },
    /// Prints what happens, and takes it.
    Listen {
        /// End after so many messages.
        #[arg(long)]
        count: Option<u64>,
        /// End after so many seconds; with --count that is a fault if fewer came.
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<f64>,
    },
    /// Prints a chat's past, ascending.
    History {
        chat: ChatId,
        /// Only what lies below this seq.
        #[arg(long)]
        before: Option<Seq>,
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Sends a file as it is when it is read. After an interruption any command of this home goes on with it where it
    /// stopped; run again, this one waits for it, unless it is sent by then: that sends it once more.
    Attach {
        chat: ChatId,
        file: PathBuf,
        #[arg(long, default_value = "")]
        caption: String,
        /// How long to wait without progress.
        #[arg(long, default_value = "1m", value_parser = timeout)]
        timeout: Duration,
    },
    /// Gets the file of a message; run again after an interruption, it goes on where it stopped.
    Fetch {
        chat: ChatId,
        seq: Seq,
        /// A file that does not exist yet, or a folder. If it is not given, the file's own name, here; without dots at its
        /// start and what a terminal does not show.
        #[arg(long)]
        out: Option<PathBuf>,
        /// How long to wait without progress.
        #[arg(long, default_value = "1m", value_parser = timeout)]
        timeout: Duration,
    },
    /// Sends the file of a message on to another chat, without uploading it again.
    Forward {
        chat: ChatId,
        seq: Seq,
        to: ChatId,
        #[arg(long, default_value = "")]
        caption: String,
    },
    /// Erases a message for everyone.
    Redact { chat: ChatId, seq: Seq },
    /// Lists what is kept and not sent yet, by chat, and files on their way.
    Outbox {
        /// Until all of it is sent or refused; exit code 3 if there is something refused.
        #[arg(long)]
        wait: bool,
        /// Lists files that were refused for the last time.
        #[arg(long)]
        forget: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    Pending,
    Queued,
    Sent,
    Delivered,
}

impl Wait {
    fn state(self) -> MessageState {
        match self {
            Self::Pending => MessageState::Pending,
            Self::Queued => MessageState::Queued,
            Self::Sent => MessageState::Sent,
            Self::Delivered => MessageState::Delivered,
        }
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("must be longer than nothing; --wait pending does not wait".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// `host:port`, whether such a host exists or not.
fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        _ => Err("must look like relay.example:4433 (host:port)".to_owned()),
    }
}

/// Standard output was closed, as by `head`: whoever read has enough.
fn is_enough(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
}

fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Refused(_) | Error::Certificates(_) => 3,
        Error::Unreachable(_) | Error::TimedOut(_) => 4,
        Error::InUse(_) => 5,
        Error::Corrupt { .. } | Error::Newer { .. } => 6,
        Error::Invalid(_) | Error::NotEnrolled(_) | Error::AlreadyEnrolled(_) => 2,
        _ => 1,
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        // Standard error may be gone; complaining about it there would end the command.
        .log_internal_errors(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print::say(&format!("godwit-chat: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let mut terminate = match signal(SignalKind::terminate()) {
            Ok(terminate) => terminate,
            Err(source) => return Ok(Err(Error::Io { path: PathBuf::from("signals"), source })),
        };
        tokio::select! {
            result = verbs::run(args) => Ok(result),
            _ = tokio::signal::ctrl_c() => Err(INTERRUPTED),
            _ = terminate.recv() => Err(TERMINATED),
        }
    });
    // Reading a terminal cannot be interrupted; nothing else is left to wait for.
    runtime.shutdown_background();
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if is_enough(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            print::say(&format!("godwit-chat: {error}"));
            ExitCode::from(exit_code(&error))
        }
        Err(code) => ExitCode::from(code),
    }
}
