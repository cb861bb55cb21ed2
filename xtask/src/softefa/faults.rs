//! `cargo xtask softefa nixl-faults`: what the real NIXL does under each fault, as a table.
//!
//! For each fault and operation: two peers on two rails, transfers that are verified (the canary), then a transfer
//! under the fault, then the fault is taken away: what was pending may end, and one more transfer is tried.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::nixl::{Meeting, Nixl};
use super::node;
use super::scenario::{SCENARIOS, Scenario, When};
use super::{Bench, Common, Tally};
use crate::compare::report;
use crate::process::{self, Finished};

const NICS: u32 = 2;
/// When the device gives up a peer.
const UNRESPONSIVE_AFTER: &str = "1s";
/// When a transfer counts as pending: several times that.
const PENDING_S: u64 = 5;
/// Of the peers' stages: meeting, connecting.
const STAGE: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(90);
/// What the initiator prints when the fault is on.
const MARK: &str = "nixl_nodes: the fault is on";
const TOLD_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Version of NIXL on PyPI
    #[arg(long, default_value = "1.4.0")]
    version: String,
    /// READ, WRITE
    #[arg(long, value_delimiter = ',', default_values_t = ["WRITE".to_owned(), "READ".to_owned()])]
    op: Vec<String>,
    /// Only faults that contain one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also write the table to this file
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What was seen of one fault with one operation.
#[derive(Debug)]
struct Seen {
    scenario: Scenario,
    op: String,
    during: String,
    pending: String,
    after: String,
    words: String,
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let bench = Bench::prepare(&args.common)?;
    let nixl = Nixl::prepare(&bench, &args.version)?;
    let mut tally = Tally::default();
    let mut table = Vec::new();
    for scenario in SCENARIOS {
        if !args.only.is_empty() && !args.only.iter().any(|part| called(scenario).contains(part.as_str())) {
            continue;
        }
        for op in &args.op {
            let what = format!("{op} under {}", called(scenario));
            match see(&bench, &nixl, scenario, op) {
                Ok(seen) => {
                    tally.pass(&format!("{what}: {} | {} | {}", seen.during, seen.pending, seen.after));
                    table.push(seen);
                }
                Err(why) => tally.fail(&what, &why),
            }
        }
    }
    let text = markdown(&table, &args.version, &library(&bench.libfabric));
    report::deliver(&text, args.out.as_deref())?;
    Ok(tally.code())
}

pub(super) fn called(scenario: &Scenario) -> String {
    match scenario.when {
        When::TargetKilled => "the target killed".into(),
        When::FromTheStart => format!("{} from the start", scenario.fault),
        When::Running if scenario.fault.is_empty() => "no fault".into(),
        When::Running => scenario.fault.into(),
    }
}

fn see(bench: &Bench, nixl: &Nixl, scenario: &Scenario, op: &str) -> Result<Seen, String> {
    let meeting = Meeting::new(bench, "faults")?;
    let fabric = node::name("nixl-faults");
    let (dir, pending, stage) =
        (meeting.path.display().to_string(), PENDING_S.to_string(), STAGE.as_secs().to_string());
    // A queue overflows only when there is more in flight than it holds.
    let blocks = if scenario.fault.starts_with("cq-overflow") { "1024" } else { "16" };
    let words = [
        "--blocks",
        blocks,
        "--dir",
        &dir,
        "--op",
        op,
        "--bytes",
        "16777216",
        "--fault",
        "--fault-deadline",
        &pending,
        "--deadline",
        &stage,
    ];
    let deadline = node::seconds(DEADLINE);
    let mut options = vec!["--unresponsive-after", UNRESPONSIVE_AFTER, "--deadline", &deadline];
    if scenario.when == When::FromTheStart {
        options.extend(["--fault", scenario.fault]);
    }
    let mut command = nixl.run(bench, &fabric, NICS, &options, &words).command();
    thread::scope(|scope| {
        let peers = scope.spawn(move || process::run(&mut command, DEADLINE + node::AROUND));
        let driven = drive(bench, scenario, &fabric, &meeting, || peers.is_finished());
        // Whatever happened: the target may leave.
        let stopped = meeting.put("stop");
        let finished = peers.join().map_err(|_| "the peers' thread ended")??;
        driven.and(stopped)?;
        Ok(seen(scenario, op, &meeting, &finished))
    })
}

/// Sets the fault, waits for what it does, takes it away.
fn drive(
    bench: &Bench,
    scenario: &Scenario,
    fabric: &str,
    meeting: &Meeting,
    ended: impl Fn() -> bool,
) -> Result<(), String> {
    if scenario.when == When::FromTheStart {
        await_file(meeting, "healthy", STAGE * 2, &ended);
        if !meeting.there("healthy") {
            return Ok(());
        }
    } else {
        await_file(meeting, "healthy", STAGE * 3, &ended);
        if !meeting.there("healthy") {
            let row = meeting.row("initiator");
            return Err(format!("the canary did not pass: {}", text(&row, "failed")));
        }
    }
    match scenario.when {
        When::Running if !scenario.fault.is_empty() => {
            let words: Vec<&str> = scenario.fault.split(' ').collect();
            tell(bench, fabric, &words)?;
        }
        When::TargetKilled => {
            meeting.put("die")?;
            thread::sleep(Duration::from_millis(200));
        }
        When::Running | When::FromTheStart => {}
    }
    meeting.put("go")?;
    await_file(meeting, "struck", Duration::from_secs(PENDING_S * 3), &ended);
    if scenario.when != When::TargetKilled && !scenario.fault.is_empty() && !ended() {
        tell(bench, fabric, &["clear"])?;
    }
    meeting.put("cleared")?;
    let until = Instant::now() + Duration::from_secs(PENDING_S * 4);
    while !ended() && Instant::now() < until && text(&meeting.row("initiator"), "stage") != "done" {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn await_file(meeting: &Meeting, name: &str, deadline: Duration, ended: &impl Fn() -> bool) {
    let until = Instant::now() + deadline;
    while !meeting.there(name) && !ended() && !gone(meeting) && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the initiator has said its last word.
fn gone(meeting: &Meeting) -> bool {
    meeting.row("initiator").get("failed").is_some()
}

fn tell(bench: &Bench, fabric: &str, words: &[&str]) -> Result<(), String> {
    let mut command = Command::new(&bench.kvrail);
    command.args(["softefa", "fault"]).args(words).args(["--name", fabric]);
    let said = process::run(&mut command, TOLD_DEADLINE)?;
    if said.status.success() {
        Ok(())
    } else {
        Err(format!("fault {}: {}", words.join(" "), said.last_words()))
    }
}

fn text(row: &Value, field: &str) -> String {
    row.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Puts the initiator's words and its end together.
fn seen(scenario: &Scenario, op: &str, meeting: &Meeting, finished: &Finished) -> Seen {
    let row = meeting.row("initiator");
    let died = cause_of_death(finished);
    let outcome = |field: &str| match text(&row, field).as_str() {
        "" => String::new(),
        "died" => died.clone(),
        "done" => format!("done, {}", text(&row, &format!("{field}_word"))),
        "wrong" => format!("WRONG DATA: {}", text(&row, &format!("{field}_word"))),
        "pending" => "pending".into(),
        other => format!("{other}: {}", text(&row, &format!("{field}_word"))),
    };
    let mut during = outcome("struck");
    if during.is_empty() {
        during = match row.get("failed") {
            Some(failed) => format!("fails to start: {}", failed.as_str().unwrap_or_default()),
            None => format!("{died} (in: {})", text(&row, "stage")),
        };
    } else if during == "pending" {
        during = format!("pending after {PENDING_S} s");
    }
    let lines: Vec<&str> = finished.stderr.lines().collect();
    let since = lines.iter().position(|line| line.contains(MARK)).unwrap_or(0);
    let words = lines[since..].iter().rev().find(|line| is_a_word(line));
    let words = words.map(|line| shorten(line)).unwrap_or_default();
    Seen {
        scenario: *scenario,
        op: op.to_owned(),
        during,
        pending: outcome("after_pending"),
        after: outcome("after"),
        words,
    }
}

/// A line in which NIXL or libfabric speak of an error.
fn is_a_word(line: &str) -> bool {
    let lower = line.to_lowercase();
    line.starts_with("node0")
        && !line.contains("rail selection policy")
        && ["error", "fail", "abort", "cq "].iter().any(|part| lower.contains(part))
}

fn shorten(line: &str) -> String {
    let line = line.split_once("| ").map_or(line, |(_, said)| said);
    // NIXL's log: letter and date, time, thread, file and line before the message.
    let line = match line.split_once("] ") {
        Some((place, message)) if place.contains(".cpp:") => message,
        _ => line,
    };
    let line: String = line.chars().filter(|c| !c.is_control() && *c != '|').collect();
    if line.len() > 160 { format!("{}…", line.chars().take(160).collect::<String>()) } else { line }
}

/// How the initiator's process ended, by the word of `kvrail softefa run`.
fn cause_of_death(finished: &Finished) -> String {
    let ended = finished.stderr.lines().rev().find_map(|line| {
        let how = line.split_once("node0 (")?.1.split_once(") ")?.1;
        Some(how.split(',').next().unwrap_or(how).to_owned())
    });
    match ended {
        Some(how) if how.contains("SIGABRT") => "the process aborts (SIGABRT)".into(),
        Some(how) if how.contains("SIGSEGV") => "the process crashes (SIGSEGV)".into(),
        Some(how) => format!("the process {how}"),
        None => "the process ends".into(),
    }
}

/// The release of the libfabric in a directory.
pub(super) fn library(directory: &Path) -> String {
    let mut command = Command::new("fi_info");
    command.arg("--version").env("LD_LIBRARY_PATH", directory);
    let said = process::run(&mut command, TOLD_DEADLINE).map(|said| said.stdout).unwrap_or_default();
    let version = said.lines().find_map(|line| line.strip_prefix("libfabric:")).map(str::trim);
    version.unwrap_or("of unknown version").to_owned()
}

fn markdown(table: &[Seen], nixl: &str, libfabric: &str) -> String {
    let mut text = String::from(
        "| Fault (two rails per node) | What it stands for | Op | The transfer under it | When it is gone | The next \
         transfer | Last word in the log |\n|---|---|---|---|---|---|---|\n",
    );
    let mut rows: Vec<(String, String, String)> = Vec::new();
    for seen in table {
        let word =
            if seen.words.is_empty() { String::new() } else { format!("`{}`", seen.words.replace('`', "'")) };
        let head = format!("`{}` | {}", called(&seen.scenario), seen.scenario.meaning);
        let tail = format!("{} | {} | {} | {word}", seen.during, seen.pending, seen.after);
        // Operations that fare the same share a row.
        match rows.last_mut() {
            Some((same, ops, fared)) if *same == head && *fared == tail => {
                *ops = format!("{ops}, {}", seen.op)
            }
            _ => rows.push((head, seen.op.clone(), tail)),
        }
    }
    for (head, ops, tail) in rows {
        let _ = writeln!(text, "| {head} | {ops} | {tail} |");
    }
    let _ = writeln!(text, "\nNIXL {nixl}, libfabric {libfabric}, {}.", machine());
    text
}

pub(super) fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, {} {}", std::env::consts::ARCH, kernel.trim())
}
