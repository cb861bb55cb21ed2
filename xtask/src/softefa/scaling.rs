//! `cargo xtask softefa scaling`: whether twice the rails carry twice the bytes.
//!
//! The emulated NICs are given a rate so low that the host's copies are not the limit, and each rail a fixed share of work:
//! a transfer over `n` rails moves `n` times the bytes in the same time, if nothing that is shared stands in the way. What
//! counts is the bandwidth per rail against that over one rail of the same run. The host's own limit (the bare loop without
//! a rate) is printed beside; where the rails together could carry more than most of that, nothing is required.

use std::time::Duration;

use super::compare::Op;
use super::engines::{Engines, Scene};
use super::{Bench, Common};
use crate::compare::engines::Engine;
use crate::compare::quiet;
use crate::compare::reading::Metric;
use crate::compare::report;
use crate::compare::rows::{Peer, Shape};
use crate::compare::verdict::Spread;

/// Of one rail's bandwidth.
const PER_RAIL_MIN: f64 = 0.9;
/// Of the host's limit: above this share the host is the limit as much as the rails are.
const HOST_SHARE_MAX: f64 = 0.7;
const BLOCK_BYTES: u64 = 32 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Rails of each node; the first is what the others are held against
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32])]
    rails: Vec<u32>,
    /// Rate of an emulated NIC
    #[arg(long, default_value = "300Mbps")]
    rate: String,
    /// Blocks of 32 KiB that each rail carries
    #[arg(long, default_value_t = 400)]
    blocks: u64,
    /// efa-direct or efa
    #[arg(long, default_value = "efa-direct")]
    provider: String,
    /// read, write
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["read", "write"])]
    op: Vec<Op>,
    /// How often everything is measured, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Longest wait for a quiet machine before a measurement, in seconds
    #[arg(long, default_value_t = 30)]
    patience_s: u64,
}

/// What was measured of one number of rails: one figure a run, GB/s.
#[derive(Clone, Debug, Default)]
struct Step {
    kvrail: Vec<f64>,
    bare: Vec<f64>,
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let bench = Bench::prepare(&args.common)?;
    let engines = Engines::prepare(&bench, None)?;
    let mut code = 0;
    println!("# kvrail over emulated rails of {}\n\n- {}", args.rate, report::machine());
    println!("- median [lowest..highest] of {} runs in turns; every byte verified\n", args.runs);
    for op in args.op.iter().map(|op| op.name()) {
        let measured = measure(args, &engines, op)?;
        code = code.max(print(args, op, &measured));
    }
    Ok(code)
}

struct Measured {
    /// As in `Args::rails`.
    steps: Vec<Step>,
    /// The bare loop over the most rails without a rate.
    host: Vec<f64>,
}

fn measure(args: &Args, engines: &Engines<'_>, op: &'static str) -> Result<Measured, String> {
    let scene = |rails: u32, model: &[&str]| {
        let batch = args.blocks * u64::from(rails);
        let pool_bytes = batch * BLOCK_BYTES * 5 / 4;
        Scene {
            rails,
            model: model.iter().map(|&word| word.to_owned()).collect(),
            provider: args.provider.clone(),
            op,
            shape: Shape { block_bytes: BLOCK_BYTES, batch, pool_bytes, scattered: true, iterations: 3 },
        }
    };
    let turn = |engine: Engine, scene: &Scene| -> Result<f64, String> {
        quiet::wait(Duration::from_secs(args.patience_s));
        let what = || format!("{} {op} over {} rails", engine.name(), scene.rails);
        let sample = engines.turn(engine, scene).map_err(|error| format!("{}: {error}", what()))?;
        let gbps = sample.figure(Metric::Bandwidth).ok_or_else(|| format!("{}: no bandwidth", what()))?;
        eprintln!("{} ({}): {gbps:.3} GB/s", what(), scene.model.join(" "));
        Ok(gbps)
    };
    let bare = Engine::Peer(Peer::FabricLoop);
    let most = args.rails.iter().copied().max().unwrap_or(1);
    let mut steps = vec![Step::default(); args.rails.len()];
    let mut host = Vec::new();
    for _ in 0..args.runs {
        for (&rails, step) in args.rails.iter().zip(&mut steps) {
            let scene = scene(rails, &["--rate", &args.rate]);
            step.kvrail.push(turn(Engine::Kvrail, &scene)?);
            step.bare.push(turn(bare, &scene)?);
        }
        host.push(turn(bare, &scene(most, &["--instant"]))?);
    }
    Ok(Measured { steps, host })
}

/// One line of the table.
#[derive(Debug)]
struct Line {
    rails: u32,
    kvrail: Spread,
    bare: Spread,
    /// Per rail, against the first step of the same run.
    per_rail: Spread,
    verdict: &'static str,
}

fn judge(rails: &[u32], measured: &Measured) -> Vec<Line> {
    let of = |figures: &[f64]| Spread::of(figures);
    let host = of(&measured.host).map_or(f64::INFINITY, |host| host.median);
    let (Some(&first_rails), Some(first)) = (rails.first(), measured.steps.first()) else {
        return Vec::new();
    };
    let one_rail = of(&first.kvrail).map_or(0.0, |first| first.median / f64::from(first_rails));
    let line = |(&rails, step): (&u32, &Step)| {
        let share =
            |(figure, first): (&f64, &f64)| figure / f64::from(rails) / (first / f64::from(first_rails));
        let per_rail: Vec<f64> = step.kvrail.iter().zip(&first.kvrail).map(share).collect();
        let per_rail = of(&per_rail)?;
        let verdict = if one_rail * f64::from(rails) > host * HOST_SHARE_MAX {
            "beyond the host"
        } else if per_rail.median >= PER_RAIL_MIN {
            "met"
        } else {
            "**missed**"
        };
        Some(Line { rails, kvrail: of(&step.kvrail)?, bare: of(&step.bare)?, per_rail, verdict })
    };
    rails.iter().zip(&measured.steps).filter_map(line).collect()
}

fn print(args: &Args, op: &str, measured: &Measured) -> u8 {
    println!(
        "| {op}, rails | kvrail, GB/s | bare loop, GB/s | kvrail per rail, against {} | required | |",
        args.rails[0]
    );
    println!("|---|---|---|---|---|---|");
    let lines = judge(&args.rails, measured);
    for line in &lines {
        let [kvrail, bare, per_rail] = [line.kvrail, line.bare, line.per_rail].map(report::show);
        println!("| {} | {kvrail} | {bare} | {per_rail} | ≥ {PER_RAIL_MIN} | {} |", line.rails, line.verdict);
    }
    let host = Spread::of(&measured.host).map_or_else(|| "?".into(), report::show);
    let most = args.rails.iter().max().unwrap_or(&1);
    println!("\nThe host's limit, {op}: {host} GB/s (bare loop, {most} rails, no rate, no latency).\n");
    u8::from(lines.iter().any(|line| line.verdict.contains("missed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(of: &[&[f64]]) -> Vec<Step> {
        of.iter().map(|kvrail| Step { kvrail: kvrail.to_vec(), bare: kvrail.to_vec() }).collect()
    }

    #[test]
    fn rails_are_held_against_the_first_of_their_run_until_the_host_is_the_limit() {
        // The machine halves its speed in the second run: only shares within a run compare.
        let steps = steps(&[&[0.1, 0.05], &[0.38, 0.19], &[0.64, 0.32], &[3.2, 1.6]]);
        let lines = judge(&[1, 4, 8, 40], &Measured { steps, host: vec![2.0, 2.0] });
        let verdicts: Vec<_> = lines.iter().map(|line| line.verdict).collect();
        assert_eq!(verdicts, ["met", "met", "**missed**", "beyond the host"]);
        assert!((lines[1].per_rail.median - 0.95).abs() < 1e-9);
        assert!((lines[2].per_rail.median - 0.8).abs() < 1e-9);
    }
}
