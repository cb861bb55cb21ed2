//! `kvrail-sim`: runs seeds, replays one, hunts canaries.

use std::process::ExitCode;
use std::time::Instant;

use kvrail_sim::canary::Canary;
use kvrail_sim::driver::{Verdict, run};
use kvrail_sim::fleet::{TWICE, hunt, sail};

const HELP: &str = "\
Deterministic simulation of kvrail's engine over a fake fabric

Usage: kvrail-sim [OPTIONS]

Options:
      --seeds N         Seeds to run [default: 1000]; for canaries, seeds to try each [default: 2000]
      --start S         First seed [default: 1]
      --canary NAME     Plant a defect (`all` for each in turn) and demand that its checker sees it
      --seed X          Run one seed only
      --trace           With --seed: print everything that happened
      --list            Print the canaries and the checkers that must see them
  -h, --help            Print this

Exit status: 0 clean (or every canary caught), 1 violations (or a canary missed), 2 usage.";

struct Arguments {
    seeds: Option<u64>,
    start: u64,
    seed: Option<u64>,
    canaries: Vec<Canary>,
    trace: bool,
}

fn arguments() -> Result<Option<Arguments>, String> {
    let mut parsed = Arguments { seeds: None, start: 1, seed: None, canaries: Vec::new(), trace: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let (flag, mut inline) = match word.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let mut value = || inline.take().or_else(|| words.next()).ok_or(format!("`{flag}` needs a value"));
        let number =
            |text: String| text.parse::<u64>().map_err(|_| format!("`{flag}` needs a number, not `{text}`"));
        match flag.as_str() {
            "--seeds" => parsed.seeds = Some(value().and_then(number)?),
            "--start" => parsed.start = value().and_then(number)?,
            "--seed" => parsed.seed = Some(value().and_then(number)?),
            "--trace" => parsed.trace = true,
            "--canary" => match value()?.as_str() {
                "all" => parsed.canaries = Canary::ALL.to_vec(),
                name => {
                    parsed.canaries.push(Canary::named(name).ok_or(format!("there is no canary `{name}`"))?)
                }
            },
            "--list" => {
                for canary in Canary::ALL {
                    let checkers: Vec<&str> =
                        canary.intended().iter().map(|checker| checker.name()).collect();
                    println!("{:22} {}", canary.name(), checkers.join(", "));
                }
                return Ok(None);
            }
            "-h" | "--help" => {
                println!("{HELP}");
                return Ok(None);
            }
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    if parsed.trace && parsed.seed.is_none() {
        return Err("`--trace` prints one run: name it with `--seed`".into());
    }
    Ok(Some(parsed))
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}\n\nhint: `kvrail-sim --help` lists the options");
            return ExitCode::from(2);
        }
    };
    let clean = match (arguments.seed, arguments.canaries.is_empty()) {
        (Some(seed), _) => one(seed, arguments.canaries.first().copied(), arguments.trace),
        (None, true) => many(arguments.start, arguments.seeds.unwrap_or(1_000)),
        (None, false) => canaries(&arguments.canaries, arguments.start, arguments.seeds.unwrap_or(2_000)),
    };
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The command that runs a seed again.
fn replay(seed: u64, canary: Option<Canary>) -> String {
    let planted = canary.map(|canary| format!(" --canary {}", canary.name())).unwrap_or_default();
    format!("cargo run --release -p kvrail-sim -- --seed {seed}{planted} --trace")
}

fn print_violations(seed: u64, verdict: &Verdict, canary: Option<Canary>) {
    for violation in &verdict.violations {
        println!("seed {seed}: {violation}");
    }
    println!("    world: {}", verdict.summary);
    println!("    replay: {}", replay(seed, canary));
}

fn one(seed: u64, canary: Option<Canary>, trace: bool) -> bool {
    let verdict = run(seed, canary, trace);
    for line in &verdict.trace {
        println!("{line}");
    }
    if !verdict.violations.is_empty() {
        print_violations(seed, &verdict, canary);
    }
    let (posted, done) = verdict.transfers;
    println!(
        "seed {seed}: {} violations, {posted} transfers of which {done} done, virtual {}, trace {:016x}",
        verdict.violations.len(),
        verdict.virtual_time,
        verdict.hash
    );
    verdict.violations.is_empty()
}

fn many(start: u64, seeds: u64) -> bool {
    let began = Instant::now();
    let fleet = sail(start, seeds, |seed, verdict| {
        if !verdict.violations.is_empty() {
            print_violations(seed, verdict, None);
        }
    });
    for seed in &fleet.unstable {
        println!("seed {seed}: two runs differ: something is not decided by the seed");
    }
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    println!(
        "{} seeds, {} with violations, {} transfers of which {} done, {:.0} seeds/s, virtual {:.1} s; the first {} ran \
         twice",
        fleet.seeds,
        fleet.failures.len(),
        fleet.transfers,
        fleet.done,
        fleet.seeds as f64 / seconds,
        fleet.virtual_time.0 as f64 / 1e9,
        TWICE.min(fleet.seeds)
    );
    fleet.failures.is_empty() && fleet.unstable.is_empty()
}

fn canaries(canaries: &[Canary], start: u64, seeds: u64) -> bool {
    let mut all = true;
    for canary in canaries {
        match hunt(*canary, start, seeds) {
            Ok(found) => {
                let first = &found.verdict.violations[0];
                println!(
                    "{:22} caught after {} seeds, seed {}: {first}",
                    canary.name(),
                    found.tried,
                    found.seed
                );
                println!("    replay: {}", replay(found.seed, Some(*canary)));
            }
            Err(others) => {
                all = false;
                let intended: Vec<&str> = canary.intended().iter().map(|checker| checker.name()).collect();
                println!(
                    "{:22} MISSED in {seeds} seeds by {} ({others} seeds were stopped by another checker)",
                    canary.name(),
                    intended.join(", ")
                );
            }
        }
    }
    all
}
