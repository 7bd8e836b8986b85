//! What a cluster costs and how fast it learns, in simulated time. One table at the end; a target that is missed says so.
//!
//! ```text
//! cargo bench --package godwit-gossip --bench cluster                      # all, with 1,000 relays
//! cargo bench --package godwit-gossip --bench cluster -- storm --storm-relays 100
//! ```
#![allow(clippy::disallowed_methods, reason = "it tells how long it ran")]
#![allow(clippy::cast_precision_loss, reason = "numbers are printed with one digit")]

#[path = "../tests/sim/mod.rs"]
mod sim;

use clap::{Parser, ValueEnum};
use godwit_gossip::{Config, Stats};
use sim::{OVERHEAD_BYTES, Seen, Sim, user};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How fast a death is known, and what rest costs.
    Death,
    /// False deaths under loss.
    Loss,
    /// Memory of the claims table.
    Memory,
    /// A hundred thousand claims at one relay.
    Storm,
    /// A few claims a second at every relay.
    Churn,
}

#[derive(Parser)]
struct Args {
    /// Cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// All if none is named.
    parts: Vec<Part>,
    /// With the settings and the latencies of a LAN.
    #[arg(long)]
    lan: bool,
    #[arg(long, default_value_t = 1000)]
    relays: usize,
    #[arg(long, default_value_t = 20)]
    deaths: usize,
    #[arg(long, default_value_t = 60)]
    loss_minutes: u64,
    #[arg(long, default_value_t = 0.05)]
    loss: f64,
    /// For the storm; for the churn, half as many.
    #[arg(long, default_value_t = 200)]
    storm_relays: usize,
    #[arg(long, default_value_t = 100_000)]
    storm_claims: usize,
    /// Changes a second at each relay.
    #[arg(long, default_value_t = 10)]
    churn: usize,
    #[arg(long, default_value_t = 1_000_000)]
    claims: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Args {
    fn config(&self) -> Config {
        if self.lan { Config::lan() } else { Config::wan() }
    }

    /// What a relay may send in one second: its rounds of gossip, a probe, and up to seven answers to probes of others,
    /// all in full packets.
    fn budget(&self) -> (f64, String) {
        let config = self.config();
        let rounds = config.gossip_fanout as f64 / config.gossip_period.as_secs_f64();
        let budget = (rounds + 8.0) * (config.packet_bytes as u64 + OVERHEAD_BYTES) as f64;
        (budget, format!("< {:.1} kB/s", budget / 1e3))
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Table(Vec<[String; 4]>);

impl Table {
    fn row(&mut self, what: &str, measured: String, target: &str, holds: bool) {
        let verdict = if holds { "ok" } else { "MISSED" };
        eprintln!("  {what}: {measured} (target {target}): {verdict}");
        self.0.push([what.to_owned(), measured, target.to_owned(), verdict.to_owned()]);
    }

    fn print(&self) {
        println!("{:<58} {:>16} {:>14}", "what", "measured", "target");
        for [what, measured, target, verdict] in &self.0 {
            println!("{what:<58} {measured:>16} {target:>14} {verdict}");
        }
    }
}

fn main() {
    let args = Args::parse();
    let wants = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut table = Table::default();
    if wants(Part::Memory) {
        memory(&args, &mut table);
    }
    if wants(Part::Storm) {
        storm(&args, &mut table);
    }
    if wants(Part::Churn) {
        churn(&args, &mut table);
    }
    if wants(Part::Death) || wants(Part::Loss) {
        cluster(&args, &mut table, wants(Part::Death), wants(Part::Loss));
    }
    table.print();
}

/// Runs until all know each other, and the news of it has died down.
fn start(args: &Args, relays: usize) -> Sim {
    let began = Instant::now();
    let mut sim = Sim::new(relays, args.config(), args.seed);
    if args.lan {
        sim.latency = (Duration::from_micros(100), Duration::from_millis(3));
    }
    sim.seen = None;
    sim.meet_first();
    let almost = |sim: &Sim| {
        let pairs: usize = sim.nodes.iter().map(|n| n.gossip.members().len()).sum();
        pairs * 1000 >= relays * (relays - 1) * 999
    };
    let most = sim.run_until(SECOND * 3600, almost).expect("all find each other");
    let rest = sim.run_until(SECOND * 3600, Sim::full).expect("all find each other");
    eprintln!("{relays} relays: 99.9 % of pairs know each other after {most:.1?} simulated, all after {rest:.1?} more");
    eprintln!("  {:.1?} real", began.elapsed());
    sim.run(SECOND * 120);
    sim.seen = Some(Vec::new());
    sim
}

fn cluster(args: &Args, table: &mut Table, death: bool, loss: bool) {
    let mut sim = start(args, args.relays);
    if death {
        rest(&mut sim, table);
        deaths(args, &mut sim, table);
    }
    if loss {
        false_deaths(args, &mut sim, table);
    }
}

fn rest(sim: &mut Sim, table: &mut Table) {
    let time = SECOND * 120;
    let before: Vec<(u64, u64)> = sim.nodes.iter().map(|n| (n.bytes_out, n.packets_out)).collect();
    sim.run(time);
    let sent = sim.nodes.iter().zip(&before).map(|(node, before)| node.bytes_out - before.0);
    let packets: u64 = sim.nodes.iter().zip(&before).map(|(node, before)| node.packets_out - before.1).sum();
    let (sum, max) = sent.fold((0, 0), |(sum, max), bytes| (sum + bytes, max.max(bytes)));
    let each = sum as f64 / sim.nodes.len() as f64 / time.as_secs_f64();
    let max = max as f64 / time.as_secs_f64();
    let what = format!("rest, {} relays: sent by each, mean", sim.nodes.len());
    table.row(&what, format!("{:.2} kB/s", each / 1e3), "< 20 kB/s", each < 20e3);
    table.row("rest: sent by the busiest", format!("{:.2} kB/s", max / 1e3), "< 20 kB/s", max < 20e3);
    let rate = packets as f64 / sim.nodes.len() as f64 / time.as_secs_f64();
    eprintln!("  {rate:.1} packets/s from each");
}

/// One after the other; each is known when 99 % of those alive saw it.
fn deaths(args: &Args, sim: &mut Sim, table: &mut Table) {
    let began = Instant::now();
    let mut times = Vec::new();
    for n in 0..args.deaths {
        let victim = sim.nodes.len() - 1 - n;
        sim.seen = Some(Vec::new());
        sim.kill(victim);
        let need = (sim.alive().count() * 99).div_ceil(100);
        let took = sim.run_until(SECOND * 120, |sim| sim.downs(victim) >= need).expect("known in the end");
        times.push(took);
        sim.run(SECOND * 20);
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let what = format!("death known to 99 % ({} deaths): median", times.len());
    table.row(&what, format!("{:.1} s", median.as_secs_f64()), "< 15 s", median < SECOND * 15);
    table.row("death known to 99 %: worst", format!("{:.1} s", worst.as_secs_f64()), "< 15 s", worst < SECOND * 15);
    eprintln!("  {times:.1?} in {:.1?} real", began.elapsed());
}

fn false_deaths(args: &Args, sim: &mut Sim, table: &mut Table) {
    let began = Instant::now();
    sim.seen = Some(Vec::new());
    sim.loss = args.loss;
    let renewed: u64 = sim.nodes.iter().map(|n| n.gossip.stats().renewals).sum();
    let before: u64 = sim.nodes.iter().map(|n| n.bytes_out).sum();
    for minute in 1..=args.loss_minutes {
        sim.run(SECOND * 60);
        if minute % 10 == 0 {
            eprintln!("  minute {minute}, {:.0?} real", began.elapsed());
        }
    }
    let downs = sim.seen.as_ref().unwrap().iter().filter(|(_, _, seen)| matches!(seen, Seen::Down(_))).count();
    let renewals = sim.nodes.iter().map(|n| n.gossip.stats().renewals).sum::<u64>() - renewed;
    let bytes = sim.nodes.iter().map(|n| n.bytes_out).sum::<u64>() - before;
    let what = format!(
        "false deaths, {} relays, {} % loss, {} min",
        sim.alive().count(),
        args.loss * 100.0,
        args.loss_minutes
    );
    table.row(&what, format!("{renewals} ({downs} seen)"), "0", renewals == 0 && downs == 0);
    let each = bytes as f64 / sim.alive().count() as f64 / (args.loss_minutes * 60) as f64;
    table.row("sent by each under loss, mean", format!("{:.2} kB/s", each / 1e3), "< 20 kB/s", each < 20e3);
    eprintln!("  {:.0?} real", began.elapsed());
}

/// A receiver pulls a million claims of one relay, and of several that know each other's too.
fn memory(args: &Args, table: &mut Table) {
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").ok();
        pages.and_then(|text| text.split(' ').nth(1)?.parse::<usize>().ok()).unwrap_or(0) * 4096
    };
    for relays in [1, 4] {
        let mut sim = Sim::new(relays + 1, Config::wan(), args.seed);
        sim.latency = (Duration::ZERO, Duration::ZERO);
        sim.meet_first();
        sim.run_until(SECOND * 600, Sim::full).expect("all find each other");
        sim.run(SECOND * 10);
        for n in 0..args.claims {
            sim.with(1 + n % relays, |gossip| gossip.claim(&user(n)));
        }
        // The snapshots that owners make are no part of the table.
        for node in &mut sim.nodes[1..] {
            drop(node.gossip.claims_since(0, 0));
        }
        let before = resident();
        let began = Instant::now();
        let enough = |sim: &Sim| sim.nodes[0].gossip.stats().claims_known + 5 > args.claims;
        sim.run_until(SECOND * 60, enough).expect("all are pulled");
        let (took, after) = (began.elapsed(), resident());
        let Stats { claims_known, claims_bytes, .. } = sim.nodes[0].gossip.stats();
        let looked = Instant::now();
        let found: usize = (0..args.claims).map(|n| sim.nodes[0].gossip.holders(&user(n)).count()).sum();
        assert!(claims_known + 5 > args.claims && found >= args.claims, "{claims_known} {found}");
        let what = format!("table of {claims_known} claims of {relays} relays");
        let size = claims_bytes as f64 / 1e6;
        table.row(&what, format!("{size:.1} MB"), "< 48 MB", claims_bytes < 48_000_000);
        let pullers = if relays == 1 { 1 } else { relays + 1 };
        let lookup = looked.elapsed().as_nanos() as f64 / args.claims as f64;
        let grown = after.saturating_sub(before) as f64 / 1e6;
        eprintln!(
            "  pulled in {took:.1?}; RSS grew by {grown:.1} MB for {pullers} tables, pages on their way included; a lookup takes {lookup:.0} ns"
        );
    }
}

fn storm(args: &Args, table: &mut Table) {
    let mut sim = start(args, args.storm_relays);
    let began = Instant::now();
    for node in &mut sim.nodes {
        node.bytes_max = 0;
    }
    let pulled: u64 = sim.nodes.iter().map(|n| n.pages_bytes_in).sum();
    let steps = 1000;
    for step in 0..steps {
        let range = args.storm_claims * step / steps..args.storm_claims * (step + 1) / steps;
        sim.with(1, |gossip| range.for_each(|n| gossip.claim(&user(n))));
        sim.run(SECOND / 100);
    }
    let want = args.storm_claims;
    let all = |sim: &Sim| sim.alive().all(|n| n == 1 || sim.nodes[n].gossip.stats().claims_known + 5 > want);
    let took = sim.run_until(SECOND * 300, all).expect("all learn them in the end");
    let what = format!("storm, {want} claims, {} relays: all know after its end", args.storm_relays);
    table.row(&what, format!("{:.1} s", took.as_secs_f64()), "< 10 s", took < SECOND * 10);
    let max = sim.nodes.iter().map(|n| n.bytes_max).max().unwrap_or(0) as f64;
    let (budget, target) = args.budget();
    table.row(
        "storm: gossip sent by the busiest, worst second",
        format!("{:.1} kB/s", max / 1e3),
        &target,
        max < budget,
    );
    let pulled = sim.nodes.iter().map(|n| n.pages_bytes_in).sum::<u64>() - pulled;
    let pulls: u64 = sim.nodes.iter().map(|n| n.gossip.stats().pulls_asked).sum();
    eprintln!(
        "  {:.1} kB pulled by each in {:.1} pulls (those of the start included); {:.1?} real",
        pulled as f64 / 1e3 / args.storm_relays as f64,
        pulls as f64 / args.storm_relays as f64,
        began.elapsed()
    );
}

/// All relays gain and lose users at a steady rate for two minutes, more than gossip can carry: items give way to heads
/// and pulls.
fn churn(args: &Args, table: &mut Table) {
    let relays = args.storm_relays / 2;
    let mut sim = start(args, relays);
    let began = Instant::now();
    let seconds = 120;
    let before: Vec<(u64, Stats)> = sim.nodes.iter().map(|n| (n.pages_bytes_in, n.gossip.stats())).collect();
    sim.nodes.iter_mut().for_each(|node| node.bytes_max = 0);
    let mut lags = Vec::new();
    for second in 0..seconds {
        for n in 0..sim.nodes.len() {
            for k in 0..args.churn {
                let next = user((second * args.churn + k) * 1000 + n);
                sim.with(n, |gossip| gossip.claim(&next));
            }
        }
        sim.run(SECOND);
        // How far behind one receiver is, in seconds of changes.
        let known = sim.nodes[0].gossip.stats().claims_known;
        let all = (second + 1) * args.churn * (sim.nodes.len() - 1);
        lags.push((all - known.min(all)) as f64 / (args.churn * (sim.nodes.len() - 1)) as f64);
    }
    let want = seconds * args.churn * (sim.nodes.len() - 1);
    let all = |sim: &Sim| sim.nodes.iter().all(|n| n.gossip.stats().claims_known + 5 > want);
    let took = sim.run_until(SECOND * 300, all).expect("all learn them in the end");
    let lag = lags[seconds / 2..].iter().sum::<f64>() / (seconds / 2) as f64;
    let what = format!("churn, {relays} relays, {} changes/s each: mean lag", args.churn);
    table.row(&what, format!("{lag:.1} s"), "< 10 s", lag < 10.0);
    table.row("churn: all know after its end", format!("{:.1} s", took.as_secs_f64()), "< 10 s", took < SECOND * 10);
    let max = sim.nodes.iter().map(|n| n.bytes_max).max().unwrap_or(0) as f64;
    let (budget, target) = args.budget();
    table.row(
        "churn: gossip sent by the busiest, worst second",
        format!("{:.1} kB/s", max / 1e3),
        &target,
        max < budget,
    );
    let each = |of: fn(&Stats) -> u64| {
        let sum: u64 = sim.nodes.iter().zip(&before).map(|(n, b)| of(&n.gossip.stats()) - of(&b.1)).sum();
        sum as f64 / sim.nodes.len() as f64 / seconds as f64
    };
    let pages: u64 = sim.nodes.iter().zip(&before).map(|(n, b)| n.pages_bytes_in - b.0).sum();
    eprintln!(
        "  each: {:.1} kB/s gossip, {:.1} pulls/s of {:.1} kB/s; {:.1?} real",
        each(|s| s.bytes_out) / 1e3,
        each(|s| s.pulls_asked),
        pages as f64 / 1e3 / sim.nodes.len() as f64 / seconds as f64,
        began.elapsed()
    );
}
