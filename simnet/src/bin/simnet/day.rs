//! Which day is played: the general workload's or a scenario's, with a seed.

use anyhow::{Context, Result, bail};
use godwit_simnet::plan::Plan;
use godwit_simnet::scenario::{Scenario, ScenarioError};
use godwit_simnet::{Options, Ran, Sabotage, general, play};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) fn sabotage(name: &str) -> Result<Sabotage, String> {
    let names = || Sabotage::ALL.map(Sabotage::name).join(", ");
    Sabotage::ALL.into_iter().find(|one| one.name() == name).ok_or_else(|| format!("none of {}", names()))
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Day {
    pub(crate) seed: u64,
    /// A scenario file; the general workload, if none is given.
    #[arg(long)]
    pub(crate) scenario: Option<PathBuf>,
    /// The general workload on relays that share the stores of their regions.
    #[arg(long, conflicts_with = "scenario")]
    pub(crate) sharing: bool,
    /// Leaves steps out, by their numbers.
    #[arg(long, value_delimiter = ',')]
    pub(crate) without: Vec<usize>,
    /// With a deliberate fault of the relays, which must be noticed.
    #[arg(long, value_parser = sabotage)]
    pub(crate) sabotage: Option<Sabotage>,
}

/// What became of a day, as its process tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) hash: u64,
    pub(crate) lasted: Duration,
    /// Promises that were broken.
    pub(crate) broken: Option<String>,
}

impl fmt::Display for Day {
    /// As arguments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        for argument in self.options_given() {
            write!(f, " {argument}")?;
        }
        Ok(())
    }
}

impl Day {
    pub(crate) fn of_scenario(path: PathBuf, seed: u64) -> Result<Self> {
        let day = Self { seed, scenario: Some(path), sharing: false, without: Vec::new(), sabotage: None };
        day.plan()?;
        Ok(day)
    }

    fn options_given(&self) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(path) = &self.scenario {
            all.extend(["--scenario".to_owned(), path.display().to_string()]);
        }
        if self.sharing {
            all.push("--sharing".to_owned());
        }
        if !self.without.is_empty() {
            let numbers: Vec<String> = self.without.iter().map(usize::to_string).collect();
            all.extend(["--without".to_owned(), numbers.join(",")]);
        }
        if let Some(sabotage) = self.sabotage {
            all.extend(["--sabotage".to_owned(), sabotage.name().to_owned()]);
        }
        all
    }

    pub(crate) fn title(&self) -> String {
        let Some(path) = &self.scenario else { return "The general workload.".to_owned() };
        let about = Scenario::read(path).map(|scenario| scenario.about);
        format!("{}: {}", path.display(), about.unwrap_or_default())
    }

    pub(crate) fn plan(&self) -> Result<Plan, ScenarioError> {
        let mut plan = match &self.scenario {
            Some(path) => Scenario::read(path)?.plan(self.seed),
            None if self.sharing => general::sharing(self.seed),
            None => general::plan(self.seed),
        };
        if let Some(number) = self.without.iter().find(|number| **number >= plan.steps.len()) {
            return Err(ScenarioError::NoStep { number: *number, count: plan.steps.len() });
        }
        let mut number = 0;
        plan.steps.retain(|_| {
            number += 1;
            !self.without.contains(&(number - 1))
        });
        Ok(plan)
    }

    pub(crate) fn options(&self) -> Options {
        Options { sabotage: self.sabotage, ..Options::seed(self.seed) }
    }

    pub(crate) fn play(&self) -> Result<Outcome> {
        Ok(match play::play(&self.plan()?, &self.options()) {
            Ok(Ran { hash, lasted, .. }) => Outcome { hash, lasted, broken: None },
            Err(error) => Outcome { hash: 0, lasted: Duration::ZERO, broken: Some(format!("{error:#}")) },
        })
    }

    /// Plays it in a process of its own: what a process did before may show in a run (tokio counts the runtimes that it
    /// makes), and a run that dies takes no other with it.
    pub(crate) fn play_apart(&self) -> Result<Outcome> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("play").arg(self.seed.to_string()).args(self.options_given());
        let output = command.stderr(Stdio::piped()).output()?;
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).context("the run said something else");
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("the run ended with {}: {}", output.status, said.lines().next().unwrap_or_default())
    }
}
