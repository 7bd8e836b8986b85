//! `simnet`: bad days for relays and clients, each from one number.
//!
//! - [`day`]: which day is played
//! - [`sweep`]: many seeds, each in a process of its own
//! - [`shrink`]: the smallest part of a day that still fails

mod day;
mod shrink;
mod sweep;

use anyhow::Context;
use clap::{Parser, Subcommand};
use day::Day;
use godwit_simnet::report::Recorder;
use godwit_simnet::scenario::ScenarioError;
use godwit_simnet::{Options, Ran, play};
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
        #[command(flatten)]
        output: Output,
    },
    /// Plays many seeds of a scenario, or of the general workload.
    Sweep(sweep::Sweep),
    /// Plays one seed again, and says what happens in it.
    Replay {
        #[command(flatten)]
        day: Day,
        #[command(flatten)]
        output: Output,
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

#[derive(Clone, clap::Args)]
struct Output {
    /// Writes every event into a file.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Writes a page that shows the run, for a browser.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// What was asked for cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(&'static str);

/// Logs carry the simulation's time.
struct Virtual;

impl tracing_subscriber::fmt::time::FormatTime for Virtual {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>11.6}", godwit_simnet::virtual_time().unwrap_or_default().as_secs_f64())
    }
}

/// Whether it was clean.
fn replay(day: &Day, output: &Output, steps: bool) -> anyhow::Result<bool> {
    let plan = day.plan()?;
    if steps {
        println!("{} relays, {} devices, {:?}", plan.relays.len(), plan.devices.len(), plan.heals);
        for (number, step) in plan.steps.iter().enumerate().filter(|(_, step)| step.is_fault()) {
            println!("{number:>4} {step}");
        }
    }
    // Found before the run, not after it.
    for path in output.trace.iter().chain(&output.report) {
        std::fs::File::create(path)
            .with_context(|| path.display().to_string())
            .context(Usage("it cannot be written"))?;
    }
    let started = Instant::now();
    let recorder = output.report.as_ref().map(|_| Recorder::default());
    let options = Options { trace: output.trace.clone(), recorder: recorder.clone(), ..day.options() };
    let result = play::play(&plan, &options);
    let verdict = match &result {
        Ok(Ran { hash, events, lasted, .. }) => {
            let times = lasted.as_secs_f64() / started.elapsed().as_secs_f64();
            format!("clean: {lasted:.1?} at {times:.0} times real time, {events} events, hash {hash:016x}")
        }
        Err(error) => format!("{error:#}\nsimnet replay {day}"),
    };
    println!("{verdict}");
    if let (Some(path), Some(recorder)) = (&output.report, recorder) {
        let page = recorder.page(&format!("{} Seed {}.", day.title(), day.seed), &plan, &verdict);
        std::fs::write(path, page).with_context(|| path.display().to_string())?;
    }
    Ok(result.is_ok())
}

fn run(verb: Verb) -> anyhow::Result<bool> {
    match verb {
        Verb::Run { scenarios, seed, output } => {
            let days: Vec<Day> =
                scenarios.into_iter().map(|path| Day::of_scenario(path, seed)).collect::<Result<_, _>>()?;
            if let [day] = days.as_slice() {
                println!("{}", day.title());
                return replay(day, &output, false);
            }
            if output.trace.is_some() || output.report.is_some() {
                return Err(Usage("--trace and --report are for one scenario").into());
            }
            let mut clean = true;
            for day in days {
                // Each in a process of its own, as a replay is.
                let mut command = std::process::Command::new(std::env::current_exe()?);
                command.arg("run").args(day.scenario).arg("--seed").arg(seed.to_string());
                clean &= command.status()?.success();
            }
            Ok(clean)
        }
        Verb::Replay { day, output } => replay(&day, &output, true),
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
            ExitCode::from(if error.is::<ScenarioError>() || error.is::<Usage>() { 2 } else { 1 })
        }
    }
}
