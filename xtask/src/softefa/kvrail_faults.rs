//! `cargo xtask softefa kvrail-faults`: what kvrail's own agents do under each fault, as a table beside NIXL's.
//!
//! The same faults, sizes and times as `nixl-faults`: transfers that are verified (the canary), one under the fault, then the fault is taken
//! away, and one more is tried. Every byte is looked at when the notification comes, when the transfer has ended, and a while later. The
//! agents have their default settings; a transfer has 5 s, which is when NIXL's counts as pending.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kvrail_soak::fleet::{Emulated, Place, Programs, fabric_name};
use kvrail_soak::layout::Shape;
use kvrail_soak::talk::{Class, Outcome, Part, Rails, Way, Word};
use kvrail_soak::troupe::{Errand, Finished, Troupe};

use super::faults::{called, library, machine};
use super::kvrail_soak::programs;
use super::scenario::{SCENARIOS, Scenario, When};
use super::{Common, Tally};
use crate::compare::report;

const NICS: u16 = 2;
/// When the device gives up a peer; as for NIXL.
const UNRESPONSIVE_MS: u64 = 1_000;
/// What a transfer is given: when NIXL's counts as pending.
const TIMEOUT_MS: u64 = 5_000;
/// How much later than that it may end.
const BOUND: Duration = Duration::from_secs(5);
/// Transfers that must be verified before anything is broken.
const CANARIES: usize = 3;
/// How long rails that failed may take to be used again.
const RETURN_MAX: Duration = Duration::from_secs(8);
/// Bytes of each agent's region.
const REGION: u64 = 40 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Providers
    #[arg(long, value_delimiter = ',', default_values_t = ["efa-direct".to_owned(), "efa".to_owned()])]
    provider: Vec<String>,
    /// READ, WRITE
    #[arg(long, value_delimiter = ',', default_values_t = ["WRITE".to_owned(), "READ".to_owned()])]
    op: Vec<String>,
    /// Only faults that contain one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also write the tables to this file
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A fault, on how many rails.
#[derive(Clone, Copy, Debug)]
struct Trial {
    scenario: Scenario,
    rails: u16,
}

/// With more rails than NIXL's table has.
const WIDE: &[(u16, &str, &str)] = &[
    (4, "rail-down --node 0 --nic 1", "one of the initiator's four NICs dies"),
    (4, "rail-down --node 1", "all of the target's NICs die"),
    (
        4,
        "black-hole --silent --node 0 --nic 2",
        "one of four NICs loses everything it sends, and nobody says so",
    ),
    (32, "", "nothing: the canary, on 32 rails"),
    (32, "rail-down --node 0 --nic 17", "one of the initiator's 32 NICs dies"),
    (32, "rail-down --node 1 --nic 5", "one of the target's 32 NICs dies"),
];

/// What was seen of one fault with one operation on one provider.
#[derive(Debug)]
struct Seen {
    trial: Trial,
    provider: String,
    op: String,
    during: String,
    gone: String,
    after: String,
    words: String,
    /// What must not be.
    wrong: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let programs = programs(&args.common, false)?;
    let mut tally = Tally::default();
    let mut table = Vec::new();
    let narrow = SCENARIOS.iter().map(|scenario| Trial { scenario: *scenario, rails: NICS });
    let wide = WIDE.iter().map(|(rails, fault, meaning)| Trial {
        scenario: Scenario { fault, meaning, when: When::Running },
        rails: *rails,
    });
    let wanted = |trial: &Trial| {
        args.only.is_empty() || args.only.iter().any(|part| called(&trial.scenario).contains(part.as_str()))
    };
    for trial in narrow.chain(wide).filter(wanted) {
        for provider in &args.provider {
            for op in &args.op {
                let what =
                    format!("{provider} {op} on {} rails under {}", trial.rails, called(&trial.scenario));
                match see(&programs, trial, provider, op) {
                    Ok(seen) if seen.wrong.is_empty() => {
                        tally.pass(&format!("{what}: {} | {} | {}", seen.during, seen.gone, seen.after));
                        table.push(seen);
                    }
                    Ok(seen) => {
                        tally.fail(&what, &seen.wrong.join("; "));
                        table.push(seen);
                    }
                    Err(why) => tally.fail(&what, &why),
                }
            }
        }
    }
    let nixl = nixl_rows();
    let text = document(&table, &nixl, &library_of(&programs));
    report::deliver(&text, args.out.as_deref())?;
    Ok(tally.code())
}

fn library_of(programs: &Programs) -> String {
    programs.libfabric.as_deref().map_or_else(|| "of unknown version".into(), library)
}

fn part(name: &str, provider: &str, rails: u16, programs: &Programs) -> Part {
    Part {
        name: name.to_owned(),
        rails: Rails::Ofi {
            provider: provider.to_owned(),
            libfabric: programs.libfabric.clone(),
            count: Some(rails),
            stall_ms: None,
        },
        thread: true,
        regions: vec![REGION],
        seed: 7,
        peer_timeout_ms: 10_000,
        plant: None,
    }
}

/// 16 MiB in 16 blocks, scattered; for a queue that is to overflow in 1024.
fn errand(scenario: &Scenario, op: &str, seed: u64) -> Errand {
    let count: u32 = if scenario.fault.starts_with("cq-overflow") { 1024 } else { 16 };
    let len = (16 << 20) / count;
    Errand {
        from: 0,
        to: 1,
        way: if op == "READ" { Way::Read } else { Way::Write },
        shape: Shape { seed, count, len_min: len, len_max: len, gap_max: 4096, shuffled: true },
        notify: true,
        timeout_ms: TIMEOUT_MS,
        cancel_us: None,
    }
}

fn see(programs: &Programs, trial: Trial, provider: &str, op: &str) -> Result<Seen, String> {
    let Trial { scenario, rails } = trial;
    let mut seen = Seen {
        trial,
        provider: provider.to_owned(),
        op: op.to_owned(),
        during: String::new(),
        gone: String::new(),
        after: String::new(),
        words: String::new(),
        wrong: Vec::new(),
    };
    let wanted = Emulated {
        nodes: 2,
        nics: rails.into(),
        seed: 1,
        unresponsive_ms: UNRESPONSIVE_MS,
        network: if scenario.when == When::FromTheStart {
            vec!["--fault".into(), scenario.fault.into()]
        } else {
            Vec::new()
        },
    };
    let place = Place::emulated(programs, &fabric_name("kvfaults"), &wanted)?;
    let mut troupe = Troupe::new(place, 1)?;
    let from_the_start = scenario.when == When::FromTheStart;
    for (node, name) in [(1, "target"), (0, "initiator")] {
        match troupe.add(node, part(name, provider, rails, programs)) {
            Ok(_) => {}
            Err(why) if from_the_start => {
                seen.during = format!("fails to start: {}", cell(&why));
                return Ok(seen);
            }
            Err(why) => return Err(why),
        }
    }
    // Added in that order so that the target is there first; it posts nothing.
    let (initiator, target) = (1, 0);
    let turned = |errand: Errand| Errand { from: initiator, to: target, ..errand };
    troupe.acquaint(initiator, target)?;
    if !from_the_start {
        for number in 0..CANARIES {
            let id = troupe.post(turned(errand(&scenario, op, number as u64)))?;
            let canary = troupe.finish(id, Duration::from_millis(TIMEOUT_MS) + BOUND)?;
            if !canary.is_done() {
                return Err(format!("the canary did not pass: {}", ending(&canary)));
            }
        }
    }
    strike(&mut troupe, &scenario, target)?;
    // The loss of a process takes a moment to be noticed by the kernel.
    let mut struck = turned(errand(&scenario, op, 100));
    struck.notify = scenario.when != When::TargetKilled;
    let id = troupe.post(struck)?;
    let promised;
    let limit = Duration::from_millis(TIMEOUT_MS) + BOUND;
    match troupe.finish(id, limit) {
        Ok(end) => {
            seen.during = ending(&end);
            seen.words = words(&end);
            seen.wrong.extend(end.wrong.iter().cloned());
            let done = matches!(end.outcome, Some(Outcome::Done { .. }));
            promised = (done && struck.notify).then_some(id);
        }
        Err(why) => {
            seen.during = format!("HUNG: {}", cell(&why));
            seen.wrong.push(why);
            return Ok(seen);
        }
    }
    heal(&mut troupe, &scenario, initiator, target, &mut seen)?;
    next(&mut troupe, turned(errand(&scenario, op, 200)), &mut seen)?;
    // A message that the fault held back has come by now.
    if let Some(times) = promised.map(|id| troupe.notified(id)).filter(|times| *times != 1) {
        seen.wrong.push(format!("the transfer under the fault was notified {times} times"));
    }
    if let Err(why) = troupe.end() {
        seen.wrong.push(why);
    }
    Ok(seen)
}

/// Sets the fault.
fn strike(troupe: &mut Troupe, scenario: &Scenario, target: usize) -> Result<(), String> {
    troupe.news();
    match scenario.when {
        When::Running if !scenario.fault.is_empty() => {
            let words: Vec<String> = scenario.fault.split(' ').map(str::to_owned).collect();
            troupe.place().fault(&words).map(drop)
        }
        When::TargetKilled => {
            troupe.kill(target);
            Ok(())
        }
        When::Running | When::FromTheStart => Ok(()),
    }
}

/// Takes the fault away, and waits until the rails that failed are used again.
fn heal(
    troupe: &mut Troupe,
    scenario: &Scenario,
    initiator: usize,
    target: usize,
    seen: &mut Seen,
) -> Result<(), String> {
    if scenario.when == When::TargetKilled {
        troupe.restart(target)?;
        troupe.acquaint(initiator, target)?;
        seen.gone = "it is started again, and its metadata imported".into();
        return Ok(());
    }
    if scenario.fault.is_empty() {
        return Ok(());
    }
    troupe.place().fault(&["clear".to_owned()])?;
    let cleared = Instant::now();
    let mut down = 0i64;
    let mut failed = 0;
    let mut lost = None;
    while cleared.elapsed() < RETURN_MAX {
        for (actor, word) in troupe.news() {
            match word {
                Word::Route { what, .. } if actor == initiator => {
                    if what.ends_with(" up") {
                        down -= 1;
                    } else {
                        down += 1;
                        failed += 1;
                    }
                }
                Word::Lost { cause, .. } => lost = Some(cause),
                _ => {}
            }
        }
        if down <= 0 {
            break;
        }
        troupe.listen(Duration::from_millis(20))?;
    }
    let took = cleared.elapsed().as_secs_f64();
    seen.gone = match (lost, failed, down) {
        (Some(cause), ..) => {
            troupe.acquaint(initiator, target)?;
            format!("the peer was lost ({cause}); its metadata is imported again")
        }
        (None, 0, _) => String::new(),
        (None, _, 1..) => format!("{down} routes are still down after {took:.1} s"),
        (None, n, _) => format!("{n} routes that failed are used again after {took:.1} s"),
    };
    Ok(())
}

fn next(troupe: &mut Troupe, errand: Errand, seen: &mut Seen) -> Result<(), String> {
    let limit = Duration::from_millis(TIMEOUT_MS) + BOUND;
    let id = troupe.post(errand)?;
    match troupe.finish(id, limit) {
        Ok(end) => {
            if !end.is_done() {
                seen.wrong.push(format!("the next transfer: {}: {}", ending(&end), words(&end)));
            }
            seen.wrong.extend(end.wrong.iter().cloned());
            seen.after = ending(&end);
        }
        Err(why) => {
            seen.after = format!("HUNG: {}", cell(&why));
            seen.wrong.push(why);
        }
    }
    Ok(())
}

/// How a transfer ended, for a table.
fn ending(end: &Finished) -> String {
    if !end.wrong.is_empty() {
        return format!("WRONG: {}", cell(&end.wrong.join("; ")));
    }
    let took = end.took.as_secs_f64();
    match &end.outcome {
        Some(Outcome::Done { retried: 0, .. }) => "done, every byte verified".into(),
        Some(Outcome::Done { retried, .. }) => {
            format!("done, every byte verified; {retried} ops repeated, {took:.1} s")
        }
        Some(Outcome::Failed { class, .. }) => format!("error after {took:.1} s: {}", named(*class)),
        None => "its process is gone".into(),
    }
}

fn named(class: Class) -> &'static str {
    match class {
        Class::Cancelled => "cancelled",
        Class::Deadline => "deadline exceeded",
        Class::Unconfirmed => "deadline exceeded, unconfirmed",
        Class::PeerLost => "peer lost",
        Class::BadKey => "op failed, bad key",
        Class::Op => "op failed",
        Class::StaleRegion => "stale region",
        Class::UnknownPeer => "peer not known any more",
        Class::Overshoot => "overshoot",
        Class::Other => "other",
    }
}

/// What the library said of a failure, without the peer's name.
fn words(end: &Finished) -> String {
    match &end.outcome {
        Some(Outcome::Failed { text, hints, .. }) => {
            let hint = hints.first().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            cell(&format!("{}{hint}", text.strip_prefix("transfer with target: ").unwrap_or(text)))
        }
        _ => String::new(),
    }
}

/// Text that fits a cell.
fn cell(text: &str) -> String {
    const MOST: usize = 320;
    let line: String = text.chars().map(|c| if c == '|' || c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() > MOST {
        format!("{}…", line.chars().take(MOST).collect::<String>())
    } else {
        line
    }
}

/// What NIXL did, by fault and operation, from its own table.
fn nixl_rows() -> BTreeMap<(String, String), String> {
    let path = super::root().map(|root| root.join("docs/softefa-faults.md"));
    let text = path.ok().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [fault, _, ops, during, gone, after, ..] = cells.as_slice() else { continue };
        let part = |what: &str, cell: &str| {
            if cell.is_empty() { String::new() } else { format!("; {what}: {cell}") }
        };
        let fared = format!("{during}{}{}", part("gone", gone), part("next", after));
        for op in ops.split(',').map(str::trim) {
            rows.insert((fault.trim_matches('`').to_owned(), op.to_owned()), fared.clone());
        }
    }
    rows
}

fn document(table: &[Seen], nixl: &BTreeMap<(String, String), String>, libfabric: &str) -> String {
    let mut text = String::from(HEAD);
    text.push_str(
        "| Fault | What it stands for | Rails | Provider | Op | kvrail: the transfer under it | When it is gone | The next \
         transfer | What the error says | NIXL under the same fault |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    // Providers and operations that fare the same but for figures share a row, with those of the first.
    let shape = |text: &str| -> String { text.chars().filter(|c| !c.is_ascii_digit()).collect() };
    let mut rows: Vec<(String, Vec<String>, Vec<String>, String)> = Vec::new();
    for seen in table {
        let name = called(&seen.trial.scenario);
        let head = format!("`{name}` | {} | {}", seen.trial.scenario.meaning, seen.trial.rails);
        let nixl = if seen.trial.rails == NICS {
            nixl.get(&(name, seen.op.clone())).cloned().unwrap_or_default()
        } else {
            "not in its table".into()
        };
        let tail = format!("{} | {} | {} | {} | {nixl}", seen.during, seen.gone, seen.after, seen.words);
        match rows.iter_mut().find(|(same, .., fared)| *same == head && shape(fared) == shape(&tail)) {
            Some((_, providers, ops, _)) => {
                if !providers.contains(&seen.provider) {
                    providers.push(seen.provider.clone());
                }
                if !ops.contains(&seen.op) {
                    ops.push(seen.op.clone());
                }
            }
            None => rows.push((head, vec![seen.provider.clone()], vec![seen.op.clone()], tail)),
        }
    }
    for (head, providers, ops, tail) in rows {
        let _ = writeln!(text, "| {head} | {} | {} | {tail} |", providers.join(", "), ops.join(", "));
    }
    let _ = writeln!(text, "\nlibfabric {libfabric}, {}.", machine());
    text.push_str(TAIL);
    text
}

const HEAD: &str = "\
# What kvrail does under each fault, beside NIXL

`cargo xtask softefa kvrail-faults` runs two agents of kvrail on libfabric's own efa provider between two emulated nodes, under the
faults of [softefa-faults.md](softefa-faults.md), and puts what NIXL did under the same fault beside it. For every fault: transfers of
16 MiB in 16 scattered blocks are verified (the canary), then one transfer with a timeout of 5 s runs under the fault, then the fault is taken
away and one more is tried. Every byte, and every byte beside them, is looked at when the notification comes, when the transfer has ended, and
60 ms later. The agents have their default settings; the device gives a silent peer up after 1 s.

";

const TAIL: &str = "
These are code paths, not times: on hardware the device decides after how long, and with which status, it gives a peer up.
";
