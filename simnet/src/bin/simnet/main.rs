//! `simnet`: bad days for relays and clients, each from one number.
//!
//! - [`day`]: which day is played
//! - [`sweep`]: many seeds, each in a process of its own
//! - [`shrink`]: the smallest part of a day that still fails

mod day;
mod shrink;
mod sweep;

use clap::{Parser, Subcommand};
use day::Day;
use godwit_simnet::scenario::ScenarioError;
use godwit_simnet::{Ran, play};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(version, about = "Bad days for relays and clients, each from one number.")]
#[command(after_help = "Exit codes: 0 clean, 1 a promise was broken, 2 a bad scenario or wrong usage.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Plays scenarios, each with one seed.
    Run {
        #[arg(required = true)]
        scenarios: Vec<PathBuf>,
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Writes every event into a file.
        #[arg(long)]
        trace: Option<PathBuf>,
    },
    /// Plays many seeds of a scenario, or of the general workload.
    Sweep(sweep::Sweep),
    /// Plays one seed again, and says what happens in it.
    Replay {
        #[command(flatten)]
        day: Day,
        /// Writes every event into a file.
        #[arg(long)]
        trace: Option<PathBuf>,
    },
    /// Looks for the smallest part of a seed that still fails.
    Shrink {
        #[command(flatten)]
        day: Day,
    },
    /// Plays one seed for a sweep.
    #[command(hide = true)]
    Play {
        #[command(flatten)]
        day: Day,
    },
}

/// Logs carry the simulation's time.
struct Virtual;

impl tracing_subscriber::fmt::time::FormatTime for Virtual {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>11.6}", godwit_simnet::virtual_time().unwrap_or_default().as_secs_f64())
    }
}

/// Whether it was clean.
fn replay(day: &Day, trace: Option<PathBuf>, steps: bool) -> anyhow::Result<bool> {
    let plan = day.plan()?;
    if steps {
        println!("{} relays, {} devices, {:?}", plan.relays.len(), plan.devices.len(), plan.heals);
        for (number, step) in plan.steps.iter().enumerate().filter(|(_, step)| step.is_fault()) {
            println!("{number:>4} {step}");
        }
    }
    let started = Instant::now();
    match play::play(&plan, &day.options(trace)) {
        Ok(ran) => {
            let times = ran.lasted.as_secs_f64() / started.elapsed().as_secs_f64();
            let Ran { hash, events, lasted, .. } = ran;
            println!("clean: {lasted:.1?} at {times:.0} times real time, {events} events, hash {hash:016x}");
            Ok(true)
        }
        Err(error) => {
            println!("{error:#}");
            println!("simnet replay {day}");
            Ok(false)
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<bool> {
    match verb {
        Verb::Run { scenarios, seed, trace } => {
            let mut clean = true;
            for path in scenarios {
                let day = Day::of_scenario(path, seed)?;
                println!("{}", day.title());
                clean &= replay(&day, trace.clone(), false)?;
            }
            Ok(clean)
        }
        Verb::Replay { day, trace } => replay(&day, trace, true),
        Verb::Play { day } => {
            println!("{}", serde_json::to_string(&day.play()?)?);
            Ok(true)
        }
        Verb::Shrink { day } => shrink::run(&day),
        Verb::Sweep(sweep) => sweep.run(),
    }
}

fn main() -> ExitCode {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_timer(Virtual).with_ansi(false);
        log.with_writer(std::io::stderr).init();
    }
    match run(Arguments::parse().verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("simnet: {error:#}");
            ExitCode::from(if error.is::<ScenarioError>() { 2 } else { 1 })
        }
    }
}
