//! `cargo xtask softefa kvrail-soak`: random transfers of kvrail's own agents over libfabric's efa provider, under random faults, kills and
//! restarts, for as long as is wanted; and canaries, defects planted to see that each checker finds its own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvrail_soak::fleet::{self, Ground, Programs, Schedule, Seen};
use kvrail_soak::{Plant, worker};

use super::{Bench, Common};

pub(super) use kvrail_soak::worker::WORD;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// How long: 20s, 10m, 1h
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    lasts: Duration,
    /// Seed of the first round; the others follow
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only so many rounds
    #[arg(long)]
    rounds: Option<u64>,
    /// Providers, in turn
    #[arg(long, value_delimiter = ',', default_values_t = ["efa-direct".to_owned(), "efa".to_owned()])]
    provider: Vec<String>,
    /// Most rails of a node
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=32))]
    rails: u16,
    /// On loopback over TCP instead, where processes are killed and nothing else happens
    #[arg(long)]
    tcp: bool,
    /// End after so many violations
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    violations: u16,
    /// Say what the rounds are instead of carrying them out
    #[arg(long)]
    list: bool,
    /// Plant this defect, or `all` one after the other, and see whether it is found
    #[arg(long, value_name = "DEFECT")]
    canary: Option<String>,
}

/// Runs as a worker of the lanes that move bytes between kvrail's own agents.
#[derive(Debug, clap::Args)]
pub(super) struct Worker {
    #[arg(allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub(super) fn work(args: &Worker) -> ExitCode {
    worker::main(args.words.iter().map(|word| word.to_string_lossy().into_owned()))
}

/// The programs of a lane whose workers are this program.
pub(super) fn programs(common: &Common, loopback: bool) -> Result<Programs, String> {
    let (kvrail, libfabric) = if loopback {
        (PathBuf::from("kvrail"), None)
    } else {
        let bench = Bench::prepare(common)?;
        (bench.kvrail, Some(bench.libfabric))
    };
    Ok(Programs {
        kvrail,
        worker: std::env::current_exe().map_err(|error| format!("where is this program? {error}"))?,
        worker_words: vec!["softefa".into()],
        libfabric,
    })
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let grounds: Vec<Ground> = if args.tcp {
        vec![Ground::Loopback]
    } else {
        let ground =
            |provider: &String| Ground::Emulated { provider: provider.clone(), rails_max: args.rails };
        args.provider.iter().map(ground).collect()
    };
    if grounds.is_empty() {
        return Err("name a provider".into());
    }
    // A seed has its provider, whichever round it is.
    let ground_of = |seed: u64| &grounds[(seed % grounds.len() as u64) as usize];
    if args.list {
        for seed in args.seed..args.seed.saturating_add(args.rounds.unwrap_or(20)) {
            println!("{seed}: {}", Schedule::of(seed, ground_of(seed)).summary());
        }
        return Ok(0);
    }
    let programs = programs(&args.common, args.tcp)?;
    match args.canary.as_deref() {
        None => soak(args, &programs, ground_of),
        Some("all") => canaries(args, &programs, ground_of(args.seed), &Plant::ALL),
        Some(name) => canaries(args, &programs, ground_of(args.seed), &[name.parse()?]),
    }
}

fn soak<'a>(args: &Args, programs: &Programs, ground_of: impl Fn(u64) -> &'a Ground) -> Result<u8, String> {
    let began = Instant::now();
    let mut total = Seen::default();
    let (mut rounds, mut violations) = (0, 0);
    while began.elapsed() < args.lasts && args.rounds.is_none_or(|most| rounds < most) {
        let seed = args.seed.wrapping_add(rounds);
        let schedule = Schedule::of(seed, ground_of(seed));
        let verdict = fleet::run(programs, &schedule, None)?;
        rounds += 1;
        total.add(&verdict.seen);
        let took = verdict.took.as_secs_f64();
        if verdict.violation.is_some() {
            violations += 1;
            println!("VIOLATION {verdict}");
            println!("  again: {}", again(args, seed));
            if violations >= args.violations {
                break;
            }
        } else {
            println!(
                "round {rounds}, seed {seed}, {took:.1} s, rails {:?}: {}",
                schedule.rails, verdict.seen
            );
        }
    }
    println!("{rounds} rounds in {:.0} s: {total}; {violations} violations", began.elapsed().as_secs_f64());
    Ok(u8::from(violations > 0))
}

fn again(args: &Args, seed: u64) -> String {
    let ground = if args.tcp {
        " --tcp".to_owned()
    } else {
        format!(" --provider {} --rails {}", args.provider.join(","), args.rails)
    };
    format!("cargo xtask softefa kvrail-soak --rounds 1 --seed {seed}{ground}")
}

fn canaries(args: &Args, programs: &Programs, ground: &Ground, plants: &[Plant]) -> Result<u8, String> {
    let mut missed = 0;
    for plant in plants {
        let (found, verdict) = fleet::canary(programs, ground, args.seed, *plant)?;
        let what = verdict.violation.as_ref().map_or_else(|| "nothing".into(), ToString::to_string);
        if found {
            println!("{}: found: {what}", plant.name());
        } else {
            missed += 1;
            let wanted = fleet::names(plant.checkers());
            println!("{}: NOT FOUND by {wanted}, but: {verdict}", plant.name());
        }
    }
    Ok(u8::from(missed > 0))
}

/// A number with `s`, `m` or `h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| format!("\"{text}\" is no duration: 20s, 10m, 1h"))?;
    let unit = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("\"{text}\" is no duration: 20s, 10m, 1h")),
    };
    Ok(Duration::from_secs(number * unit))
}
