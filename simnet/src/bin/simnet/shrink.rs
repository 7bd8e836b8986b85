//! The smallest part of a day that still breaks the same promise: steps are left out, many at once first, then fewer
//! (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002).

use crate::day::Day;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Which promise was broken first: the word before the colon.
fn promise(broken: &str) -> &str {
    broken.split(':').next().unwrap_or_default()
}

/// Whether the day was clean.
pub(crate) fn run(day: &Day) -> Result<bool> {
    let Some(broken) = day.play_apart()?.broken else {
        println!("clean: there is nothing to shrink");
        return Ok(true);
    };
    let count = Day { without: Vec::new(), ..day.clone() }.plan()?.steps.len();
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let mut kept: Vec<usize> = (0..count).filter(|number| !day.without.contains(number)).collect();
    let without = |kept: &[usize]| (0..count).filter(|number| !kept.contains(number)).collect::<Vec<_>>();
    let mut chunk = kept.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut less = false;
        while start < kept.len() {
            let end = (start + chunk).min(kept.len());
            let rest: Vec<usize> = kept[..start].iter().chain(&kept[end..]).copied().collect();
            bar.set_message(format!("{} steps, trying without {}", kept.len(), end - start));
            let tried = Day { without: without(&rest), ..day.clone() }.play_apart()?;
            if tried.broken.is_some_and(|now| promise(&now) == promise(&broken)) {
                (kept, less) = (rest, true);
            } else {
                start = end;
            }
        }
        if chunk == 1 && !less {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    bar.finish_and_clear();
    let plan = Day { without: Vec::new(), ..day.clone() }.plan()?;
    for number in &kept {
        println!("{number:>4} {}", plan.steps[*number]);
    }
    let small = Day { without: without(&kept), ..day.clone() };
    println!("{}", small.play_apart()?.broken.unwrap_or_default());
    println!("simnet replay {small}");
    Ok(false)
}
