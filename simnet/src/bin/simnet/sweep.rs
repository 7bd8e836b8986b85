//! Many seeds, each in a process of its own.

use crate::day::Day;
use anyhow::Result;
use godwit_simnet::Sabotage;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Sweep {
    /// A scenario file; the general workload, if none is given.
    scenario: Option<PathBuf>,
    /// The general workload on relays that share the stores of their regions.
    #[arg(long, conflicts_with = "scenario")]
    sharing: bool,
    /// How many seeds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Seeds at the same time; as many as there are cores, if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Goes on after a failure, and counts them.
    #[arg(long)]
    all: bool,
    /// With a deliberate fault of the relays, which must be noticed.
    #[arg(long, value_parser = crate::day::sabotage)]
    sabotage: Option<Sabotage>,
    /// Prints each seed with its hash.
    #[arg(long)]
    hashes: bool,
}

#[derive(Default)]
struct Tally {
    clean: u64,
    failed: Vec<(u64, String)>,
    simulated: Duration,
}

impl Sweep {
    fn day(&self, seed: u64) -> Day {
        let (scenario, sharing) = (self.scenario.clone(), self.sharing);
        Day { seed, scenario, sharing, without: Vec::new(), sabotage: self.sabotage }
    }

    /// Whether all seeds were clean.
    pub(crate) fn run(&self) -> Result<bool> {
        // A bad scenario is told once.
        self.day(self.first).plan()?;
        let jobs = self.jobs.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
        let style = "{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left {msg}";
        let bar = ProgressBar::new(self.seeds).with_style(ProgressStyle::with_template(style)?);
        let (next, stop) = (AtomicU64::new(self.first), AtomicBool::new(false));
        let tally = Mutex::new(Tally::default());
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.first.saturating_add(self.seeds) {
                            return;
                        }
                        let outcome = self.day(seed).play_apart();
                        let mut tally = tally.lock().expect("nobody panics with it");
                        match outcome.map(|outcome| (outcome.broken, outcome.hash, outcome.lasted)) {
                            Ok((None, hash, lasted)) => {
                                tally.clean += 1;
                                tally.simulated += lasted;
                                if self.hashes {
                                    bar.suspend(|| println!("seed {seed}: {hash:016x}"));
                                }
                            }
                            Ok((Some(broken), ..)) => self.failed(&mut tally, &bar, &stop, seed, broken),
                            Err(error) => self.failed(&mut tally, &bar, &stop, seed, format!("{error:#}")),
                        }
                        bar.inc(1);
                    }
                });
            }
        });
        bar.finish_and_clear();
        let Tally { clean, failed, simulated } = tally.into_inner().expect("nobody panics with it");
        let took = started.elapsed();
        let times = simulated.as_secs_f64() / took.as_secs_f64();
        println!("{clean} clean, {} failed; {simulated:.0?} in {took:.0?}, {times:.0} times real time", failed.len());
        if let Some((seed, _)) = failed.first() {
            println!("simnet replay {}", self.day(*seed));
        }
        Ok(failed.is_empty())
    }

    fn failed(&self, tally: &mut Tally, bar: &ProgressBar, stop: &AtomicBool, seed: u64, broken: String) {
        bar.suspend(|| println!("seed {seed}: {}", broken.lines().next().unwrap_or_default()));
        tally.failed.push((seed, broken));
        if !self.all {
            stop.store(true, Ordering::Relaxed);
        }
    }
}
