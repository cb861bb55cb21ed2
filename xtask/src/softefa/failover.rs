//! `cargo xtask softefa failover`: what a rail's death in the middle of a transfer costs.
//!
//! The emulated NICs are given a rate so low that a transfer takes hundreds of milliseconds. After undisturbed ones, a rail
//! is killed at 30 % of a transfer by `kvrail softefa fault rail-down`, and mended after it. With
//!
//! * `T` = the median undisturbed transfer,
//! * `D` = the one that was struck,
//! * `R` = when the fabric first reported an error, from the posting of that transfer,
//! * `share` = `T` ÷ rails: the time that a rail's part of the work stands for,
//!
//! the cost once noticed is `D − max(T, R)`: what the transfer needed beyond both its usual time and the moment from which
//! kvrail could know. Required is at most `2 × share`. A transfer that needs no longer than the report costs nothing.
//! That `R` comes late is the device's doing (`--unresponsive-after`), not counted, but printed.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::compare::Op;
use super::engines::{json_of_node0, meeting_place};
use super::node::{self, Run};
use super::{Bench, Common};
use crate::compare::report;
use crate::compare::verdict::Spread;
use crate::process;

const COST_SHARES_MAX: f64 = 2.0;
const DEADLINE: Duration = Duration::from_secs(240);
const BLOCK_BYTES: u32 = 32 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Rails of each node
    #[arg(long, value_delimiter = ',', default_values_t = [4, 32])]
    rails: Vec<u32>,
    /// Rate of an emulated NIC
    #[arg(long, default_value = "300Mbps")]
    rate: String,
    /// Blocks of 32 KiB that each rail carries: with the rate they make the transfer's time
    #[arg(long, default_value_t = 800)]
    blocks: u32,
    /// When the device gives up a peer that does not answer
    #[arg(long, default_value = "200ms")]
    unresponsive_after: String,
    /// efa-direct or efa
    #[arg(long, default_value = "efa-direct")]
    provider: String,
    /// read, write
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["read", "write"])]
    op: Vec<Op>,
    /// Whose NIC dies: 0 posts the transfers, 1 is their target
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1])]
    node: Vec<u32>,
    /// How often each case is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
}

/// One run, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Parts {
    usual: f64,
    struck: f64,
    disturbed: f64,
    reported: f64,
    returned: Option<f64>,
    after: Option<f64>,
    retried: f64,
}

impl Parts {
    /// From what `drive failover` printed.
    fn read(row: &Value) -> Result<Self, String> {
        let number = |name: &str| row.get(name).and_then(Value::as_f64);
        let needed = |name: &str| number(name).ok_or_else(|| format!("the driver gave no {name}"));
        if row.get("verified").and_then(Value::as_bool) != Some(true) {
            return Err("the driver does not say that its bytes were verified".into());
        }
        let undisturbed = row.get("undisturbed_ms").and_then(Value::as_array);
        let undisturbed: Vec<f64> = undisturbed.into_iter().flatten().filter_map(Value::as_f64).collect();
        let strike = row.get("strike_ms").and_then(|ends| ends.get(1)).and_then(Value::as_f64);
        Ok(Self {
            usual: Spread::of(&undisturbed).ok_or("the driver gave no undisturbed transfer")?.median,
            struck: strike.ok_or("the driver gave no strike_ms")?,
            disturbed: needed("disturbed_ms")?,
            reported: number("reported_ms")
                .ok_or("no error was reported: the rail died after the transfer, or unseen")?,
            returned: number("returned_ms"),
            after: number("after_ms"),
            retried: needed("retried_ops")?,
        })
    }

    /// What a rail's part of the work stands for.
    fn share(self, rails: u32) -> f64 {
        self.usual / f64::from(rails)
    }

    fn cost(self) -> f64 {
        self.disturbed - self.usual.max(self.reported)
    }
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let bench = Bench::prepare(&args.common)?;
    let drive = super::build("kvrail-benchsuite", "drive")?;
    println!("# A rail dies in the middle of a transfer\n\n- {}", report::machine());
    println!(
        "- {} per NIC, {} blocks of 32 KiB per rail, errors reported after {}; milliseconds, median [lowest..highest] of \
         {} runs; every byte verified",
        args.rate, args.blocks, args.unresponsive_after, args.runs
    );
    println!("- cost = struck transfer − max(undisturbed, first report); share = undisturbed ÷ rails\n");
    println!(
        "| rails, op, whose NIC | undisturbed | killed at | first report | struck transfer | repeated ops | cost | share | cost ÷ \
         share | required | | back after | then |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut code = 0;
    for &rails in &args.rails {
        for op in args.op.iter().map(|op| op.name()) {
            for &node in &args.node {
                let what = format!("{rails}, {op}, {}", if node == 0 { "initiator" } else { "target" });
                let mut runs = Vec::new();
                for run in 1..=args.runs {
                    match once(args, &bench, &drive, rails, op, node) {
                        Ok(parts) => runs.push(parts),
                        Err(why) => eprintln!("{what}, run {run}: {why}"),
                    }
                }
                let complete = runs.len() == usize::from(args.runs);
                code = code.max(print(&what, rails, &runs, complete));
            }
        }
    }
    Ok(code)
}

fn once(
    args: &Args,
    bench: &Bench,
    drive: &std::path::Path,
    rails: u32,
    op: &str,
    node: u32,
) -> Result<Parts, String> {
    let (fabric, meet) = (node::name("failover"), meeting_place()?);
    let kvrail = bench.kvrail.display();
    let strike =
        format!("'{kvrail}' softefa fault rail-down --node {node} --nic {} --name {fabric}", rails / 2);
    let mend = format!("'{kvrail}' softefa fault clear --name {fabric}");
    let (block, blocks) = (BLOCK_BYTES.to_string(), (args.blocks * rails).to_string());
    let shape = ["--meet", &meet, "--block", &block, "--blocks", &blocks];
    let mut initiator = Command::new(drive);
    initiator.arg("failover").args(shape).args(["--op", op, "--strike", &strike, "--mend", &mend]);
    let mut target = Command::new(drive);
    target.arg("target").args(shape);
    let deadline = node::seconds(DEADLINE);
    let options =
        ["--deadline", &deadline, "--rate", &args.rate, "--unresponsive-after", &args.unresponsive_after];
    let run = Run::new(bench, &fabric, rails, &bench.libfabric).option(&options);
    let run = node::on_ofi(run, &args.provider, rails);
    let finished = process::run(&mut run.on_two_nodes(&initiator, &target), DEADLINE + node::AROUND)?;
    if !finished.status.success() {
        return Err(format!("it ended with {}: {}", finished.status, node::words(&finished.stderr)));
    }
    let row = serde_json::from_str(&json_of_node0(&finished.stdout));
    Parts::read(&row.map_err(|error| format!("the driver's output is no JSON: {error}"))?)
}

fn print(what: &str, rails: u32, runs: &[Parts], complete: bool) -> u8 {
    let of = |figure: &dyn Fn(&Parts) -> Option<f64>| {
        let figures: Vec<f64> = runs.iter().filter_map(figure).collect();
        Spread::of(&figures)
    };
    let cell = |spread: Option<Spread>| spread.map_or_else(|| "–".into(), report::show);
    let ratio = of(&|parts| Some(parts.cost() / parts.share(rails)));
    let (verdict, code) = match ratio {
        Some(ratio) if complete && ratio.median <= COST_SHARES_MAX => ("met", 0),
        Some(_) if complete => ("**missed**", 1),
        _ => ("**not measured**", 2),
    };
    let cells = [
        of(&|parts| Some(parts.usual)),
        of(&|parts| Some(parts.struck)),
        of(&|parts| Some(parts.reported)),
        of(&|parts| Some(parts.disturbed)),
        of(&|parts| Some(parts.retried)),
        of(&|parts| Some(parts.cost())),
        of(&|parts| Some(parts.share(rails))),
        ratio,
    ];
    let cells: Vec<String> = cells.into_iter().map(cell).collect();
    let (back, then) = (cell(of(&|parts| parts.returned)), cell(of(&|parts| parts.after)));
    println!("| {what} | {} | ≤ {COST_SHARES_MAX} | {verdict} | {back} | {then} |", cells.join(" | "));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(disturbed: f64, reported: &str) -> Value {
        let text = format!(
            r#"{{"undisturbed_ms":[400.0,380.0,420.0],"disturbed_ms":{disturbed},"strike_ms":[120.0,128.0],
                 "reported_ms":{reported},"retried_ops":40,"returned_ms":null,"after_ms":null,"verified":true}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_cost_is_beyond_the_usual_time_and_the_first_report() {
        let early = Parts::read(&row(460.0, "330.0")).unwrap();
        assert_eq!((early.usual, early.cost(), early.share(4)), (400.0, 60.0, 100.0));
        // The report came when everything else was long done: only what followed it counts.
        let late = Parts::read(&row(2150.0, "2128.0")).unwrap();
        assert_eq!(late.cost(), 22.0);
    }

    #[test]
    fn a_death_that_nobody_reported_is_no_figure() {
        assert!(Parts::read(&row(400.0, "null")).unwrap_err().contains("no error was reported"));
        assert!(Parts::read(&Value::Null).is_err());
    }
}
