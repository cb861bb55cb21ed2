//! `cargo xtask softefa compare`: kvrail, the real NIXL and a bare fi_read/fi_write loop on emulated EFA, in turns.
//!
//! The figures say nothing about EFA: the fabric is bounded by memory copies on this host. What they say is how much each
//! engine adds to the same provider on the same device.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::engines::{Engines, Scene};
use super::nixl::Nixl;
use super::{Bench, Common};
use crate::compare::report::{self, Circumstances};
use crate::compare::rows::{self, Peer, Row, Work};
use crate::compare::turns::{self, Pace};
use crate::compare::verdict;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Rails of each node
    #[arg(long, value_delimiter = ',', default_values_t = [4, 32])]
    rails: Vec<u32>,
    /// What kvrail and the plain loop use: efa-direct or efa (NIXL always uses efa)
    #[arg(long, default_value = "efa-direct")]
    provider: String,
    /// The model's times: `instant` = none, `default` = as `kvrail softefa run` has them
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["instant", "default"])]
    model: Vec<Model>,
    /// read, write
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["read", "write"])]
    op: Vec<Op>,
    /// Operations that the bare loop keeps in flight on a rail; 0: as many as the provider takes
    #[arg(long, default_value_t = 16)]
    bare_depth: u32,
    /// Version of NIXL on PyPI
    #[arg(long, default_value = "1.4.0")]
    nixl: String,
    /// How often each engine takes its turn on a row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Longest wait for a quiet machine before a turn, in seconds
    #[arg(long, default_value_t = 30)]
    patience_s: u64,
    /// Also write the report to this file
    #[arg(long)]
    out: Option<PathBuf>,
    /// Name the rows and end
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Model {
    Instant,
    Default,
}

impl Model {
    const fn name(self) -> &'static str {
        match self {
            Self::Instant => "instant",
            Self::Default => "default",
        }
    }

    fn options(self) -> Vec<String> {
        match self {
            Self::Instant => vec!["--instant".into()],
            Self::Default => Vec::new(),
        }
    }
}

/// Direction, seen from node 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Op {
    Read,
    Write,
}

impl Op {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The rows that were asked for, with their scenes.
fn rows(args: &Args) -> Vec<(Row, Scene)> {
    let mut rows = Vec::new();
    for &model in &args.model {
        for &rails in &args.rails {
            for op in args.op.iter().map(|op| op.name()) {
                let row = Row {
                    name: format!("{}-{rails}-{}-kv-{op}", args.provider, model.name()),
                    work: Work::Transfer { op, transport: "ofi", memory: "private", shape: rows::KV },
                    options: &[],
                    checks: rows::fabric_checks(Peer::NixlLibfabricEfa),
                };
                let provider = args.provider.clone();
                rows.push((row, Scene { rails, model: model.options(), provider, op, shape: rows::KV }));
            }
        }
    }
    rows
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let rows = rows(args);
    if args.list {
        rows.iter().for_each(|(row, _)| println!("{}", row.name));
        return Ok(0);
    }
    let bench = Bench::prepare(&args.common)?;
    let mut skipped = BTreeMap::new();
    let nixl = Nixl::prepare(&bench, &args.nixl).map_err(|why| {
        eprintln!("skipping NIXL: {why}");
        skipped.insert(Peer::NixlLibfabricEfa, why);
    });
    let engines = Engines::prepare(&bench, nixl.ok())?.bare_depth(args.bare_depth);
    let mut about = Circumstances {
        title: "kvrail beside NIXL and the bare loop on emulated EFA",
        setting: "two emulated nodes on this host, DRAM to DRAM, NIXL without progress thread".into(),
        runs: args.runs.into(),
        nixl_version: None,
        turns: 0,
        noisy_turns: 0,
        skipped_rows: Vec::new(),
    };
    let pace = Pace { runs: args.runs, patience: Duration::from_secs(args.patience_s) };
    let mut judged = Vec::new();
    for (row, scene) in &rows {
        let taken = turns::take(row, pace, &skipped, |engine| engines.turn(engine, scene));
        about.count(&taken);
        judged.extend(verdict::judge(row, &taken, &skipped));
    }
    report::deliver(&report::markdown(&judged, &about), args.out.as_deref())?;
    Ok(verdict::exit_code(&judged))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn every_model_rail_count_and_direction_is_a_row_of_its_own() {
        let args = Words::parse_from(["compare"]).args;
        let names: Vec<String> = rows(&args).into_iter().map(|(row, _)| row.name).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(names[0], "efa-direct-4-instant-kv-read");
        assert_eq!(names[7], "efa-direct-32-default-kv-write");
        let args =
            Words::parse_from(["compare", "--rails", "32", "--model", "instant", "--op", "write"]).args;
        let rows = rows(&args);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].1.model, ["--instant"]);
    }
}
