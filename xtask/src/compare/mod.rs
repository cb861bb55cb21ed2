//! `cargo xtask compare`: kvrail, the real NIXL and the plain loops on the same workloads, in turns.
//!
//! In every run of a row each engine takes one turn (A B C, A B C, …), as a program of its own, so that a change
//! of the machine's mood touches all of them. The verdict is on the median of the ratios within the runs.
//!
//! Exit code: 0 all bounds met, 1 a bound missed, 2 something could not be measured. An optional component that
//! this machine cannot run is skipped, by name, and changes no exit code.

pub(crate) mod engines;
pub(crate) mod quiet;
pub(crate) mod reading;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod turns;
pub(crate) mod venv;
pub(crate) mod verdict;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use self::engines::Engines;
use self::report::Circumstances;
use self::rows::Row;
use self::turns::Pace;

/// Both pools of a row on huge pages.
const HUGE_PAGES_NEEDED: u64 = 2 * 512;
const COULD_NOT_TELL: u8 = 2;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only rows whose name contains one of these [default: all]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How often each engine takes its turn on a row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Also write the report to this file
    #[arg(long)]
    out: Option<PathBuf>,
    /// This kvrail instead of the one that is built now
    #[arg(long)]
    kvrail: Option<PathBuf>,
    /// Longest wait for a quiet machine before a turn, in seconds
    #[arg(long, default_value_t = 30)]
    patience_s: u64,
    /// Name the rows and end
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match compare(args) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error}");
            COULD_NOT_TELL.into()
        }
    }
}

fn compare(args: &Args) -> Result<u8, String> {
    let wanted = |row: &Row| args.rows.is_empty() || args.rows.iter().any(|part| row.name.contains(part));
    let rows: Vec<Row> = rows::all().into_iter().filter(wanted).collect();
    if rows.is_empty() {
        return Err(format!("no row's name contains {}; --list names them", args.rows.join(" or ")));
    }
    if args.list {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(0);
    }
    let (root, target) = places()?;
    let root = root.as_path();
    let mut programs = vec!["kvrail-benchsuite"];
    programs.extend(args.kvrail.is_none().then_some("kvrail-cli"));
    build(root, &programs)?;
    let kvrail = args.kvrail.clone().unwrap_or_else(|| target.join("release/kvrail"));
    let engines = Engines::prepare(root, &target, kvrail, &rows);

    let mut about = Circumstances {
        title: "kvrail beside NIXL and the plain loops",
        setting: "two processes on this host, DRAM to DRAM, NIXL without progress thread".into(),
        runs: args.runs.into(),
        nixl_version: None,
        turns: 0,
        noisy_turns: 0,
        skipped_rows: Vec::new(),
    };
    let pace = Pace { runs: args.runs, patience: Duration::from_secs(args.patience_s) };
    let mut judged = Vec::new();
    for row in &rows {
        if row.work.needs_huge_pages() && huge_pages_free() < HUGE_PAGES_NEEDED {
            let reason = format!("it needs {HUGE_PAGES_NEEDED} free huge pages (/proc/sys/vm/nr_hugepages)");
            eprintln!("skipping {}: {reason}", row.name);
            about.skipped_rows.push((row.name.clone(), reason));
            continue;
        }
        let taken = turns::take(row, pace, &engines.skipped, |engine| engines.turn(engine, row));
        about.count(&taken);
        judged.extend(verdict::judge(row, &taken, &engines.skipped));
    }
    report::deliver(&report::markdown(&judged, &about), args.out.as_deref())?;
    Ok(verdict::exit_code(&judged))
}

/// The repository, and where it is built.
pub(crate) fn places() -> Result<(PathBuf, PathBuf), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask stands in no repository")?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    Ok((root.into(), target))
}

/// Builds programs for release.
pub(crate) fn build(root: &Path, packages: &[&str]) -> Result<(), String> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["build", "--release", "--quiet"]);
    for package in packages {
        command.args(["-p", package]);
    }
    let built = command.status().map_err(|error| format!("cargo does not start: {error}"))?;
    if built.success() { Ok(()) } else { Err("the programs do not build".into()) }
}

fn huge_pages_free() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
