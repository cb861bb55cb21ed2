//! `cargo xtask softefa soak`: thousands of random fault schedules, each a `kvrail softefa run`, none of which may leave anything behind,
//! lose a completion or get a byte wrong; and canaries, defects planted to see that they would be found.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use softefa_soak::fleet::{self, Done, Orders, Programs};
use softefa_soak::{Plant, Schedule};

/// How often a fleet that is not watched says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many schedules
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    schedules: u64,
    /// Seed of the first schedule; the others follow
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// End after so many violations
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    violations: u16,
    /// Say what the schedules are instead of carrying them out
    #[arg(long)]
    list: bool,
    /// Plant this defect, or `all` one after the other, and see whether it is found
    #[arg(long, value_name = "DEFECT")]
    canary: Option<String>,
    /// This kvrail instead of the one that is built now
    #[arg(long)]
    kvrail: Option<PathBuf>,
}

/// Runs as the exerciser: what nodes of the soak's fabrics run.
#[derive(Debug, clap::Args)]
pub(super) struct Exercise {
    #[arg(allow_hyphen_values = true)]
    words: Vec<std::ffi::OsString>,
}

pub(super) fn exercise(_: &Exercise) -> ExitCode {
    softefa_soak::exercise::main()
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    if args.list {
        for seed in args.seed..args.seed.saturating_add(args.schedules) {
            println!("{seed}: {}", Schedule::of(seed).summary());
        }
        return Ok(0);
    }
    let programs = Programs {
        kvrail: super::kvrail(args.kvrail.as_deref())?,
        exerciser: std::env::current_exe().map_err(|error| format!("where is this program? {error}"))?,
        exerciser_words: vec!["softefa".into()],
    };
    match args.canary.as_deref() {
        None => soak(args, &programs),
        Some("all") => canaries(args, &programs, &Plant::ALL),
        Some(name) => canaries(args, &programs, &[name.parse()?]),
    }
}

fn soak(args: &Args, programs: &Programs) -> Result<u8, String> {
    let orders = Orders {
        seed: args.seed,
        schedules: args.schedules,
        jobs: args.jobs.into(),
        violations_max: args.violations.into(),
    };
    let watched = std::io::stderr().is_terminal();
    let said = std::sync::Mutex::new(Instant::now());
    let progress = |done: &Done<'_>| {
        let Ok(mut said) = said.lock() else { return };
        if let Some(violation) = done.violation {
            println!("VIOLATION {violation}");
            println!("  again: cargo xtask softefa soak --schedules 1 --seed {}", violation.seed);
        }
        let done = done.schedules;
        if watched {
            eprint!("\r{done} of {} schedules", args.schedules);
            let _ = std::io::stderr().flush();
        } else if said.elapsed() >= SAY_EVERY {
            eprintln!("{done} of {} schedules", args.schedules);
            *said = Instant::now();
        }
    };
    let report =
        fleet::run(programs, &orders, &progress).map_err(|error| format!("no place for files: {error}"))?;
    if watched {
        eprintln!();
    }
    let seen = report.seen;
    println!(
        "{} schedules in {:.0} s ({:.2} s each): {} operations, {} ended well, {} with an error that a fault explains; {} violations",
        report.schedules,
        report.took.as_secs_f64(),
        report.took.as_secs_f64() / report.schedules.max(1) as f64,
        seen.posted,
        seen.well,
        seen.badly,
        report.violations.len(),
    );
    Ok(u8::from(!report.violations.is_empty()))
}

fn canaries(args: &Args, programs: &Programs, plants: &[Plant]) -> Result<u8, String> {
    let mut missed = 0;
    for plant in plants {
        let found = fleet::canary(programs, args.seed, *plant)
            .map_err(|error| format!("no place for files: {error}"))?;
        match found {
            Some(violation) => println!("{}: found: {}", plant.name(), violation.what),
            None => {
                missed += 1;
                println!("{}: NOT FOUND", plant.name());
            }
        }
    }
    Ok(u8::from(missed > 0))
}
