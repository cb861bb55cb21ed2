//! `limits`: what this machine allows when nothing stands between the loop and the copy.
//!
//! Each case is two processes on one host and the loop that a careful C programmer would write: `memcpy`
//! between mapped pools, `process_vm_readv`/`writev`, `send`/`recv` over loopback, `fi_write`/`fi_read` on a
//! libfabric provider. kvrail's figures are set beside these. A figure is printed only after every byte was checked, here as everywhere.
//!
//! One JSON object a case on stdout. Exit 0 when all were measured, 1 when bytes were wrong, 2 when a case
//! could not be measured.

mod error;
mod fabric;
mod line;
mod memcpy;
mod memory;
mod pair;
mod process_vm;
mod report;
mod tcp;
mod workload;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::error::LimitError;
use crate::memory::Memory;
use crate::report::Row;
use crate::workload::{Case, Kind, Layout, Op, Wait, parse_bytes};

/// Measures the plain-loop limits of this machine; without --kind, a standard set of cases.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The loop to measure
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Who the data moves towards: read = to the process that drives the loop
    #[arg(long, value_enum, default_value = "read")]
    op: Op,
    /// Memory of the pools; all but memcpy always use private memory
    #[arg(long, value_enum, default_value = "shared")]
    memory: Memory,
    /// Where the blocks lie in their pools
    #[arg(long, value_enum, default_value = "scattered")]
    layout: Layout,
    /// Bytes of one block, a multiple of 8
    #[arg(long, value_parser = parse_bytes, default_value = "32KiB")]
    block: usize,
    /// Blocks of one request
    #[arg(long, default_value_t = 12_800)]
    batch: usize,
    /// Bytes of each side's pool
    #[arg(long, value_parser = parse_bytes, default_value = "1GiB")]
    pool: usize,
    /// process-vm: blocks of one call
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    slices: u16,
    /// tcp: how the two sides wait for bytes; fabric: how the target does (the initiator always polls)
    #[arg(long, value_enum, default_value = "block")]
    wait: Wait,
    /// fabric: the provider: efa-direct, efa, tcp, shm, or another by libfabric's name
    #[arg(long, default_value = "tcp")]
    provider: String,
    /// fabric: endpoints, each on a domain of its own; on efa each on a NIC of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=RAILS_MAX))]
    rails: u16,
    /// fabric: operations in flight on a rail [default: as many as the provider takes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    depth: Option<u32>,
    /// fabric: libfabric.so.1 or its directory [default: KVRAIL_LIBFABRIC, else where the loader and wheels have it]
    #[arg(long)]
    libfabric: Option<PathBuf>,
    /// fabric: this process is one side only; without it the target is forked
    #[arg(long, value_enum, requires = "meet")]
    role: Option<Role>,
    /// fabric: where the two sides meet: the target listens there
    #[arg(long, value_name = "HOST:PORT", requires = "role")]
    meet: Option<String>,
    /// Requests timed in one repetition
    #[arg(long, default_value_t = 5)]
    iterations: usize,
    /// Requests before each repetition, not timed
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Repetitions of every case; the median is reported
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Put the initiator on the first processor and the target on the second
    #[arg(long)]
    pin: bool,
}

/// One side of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Drives and times the loop, and prints the row
    Initiator,
    /// Owns the other pool; takes the case from the initiator
    Target,
}

/// More NICs than any host has.
const RAILS_MAX: i64 = 64;

impl Args {
    /// What clap cannot tell.
    fn check(&self) -> Result<(), String> {
        if self.role.is_some() && self.kind != Some(Kind::Fabric) {
            return Err("--role is for --kind fabric: the other loops are two processes of one host".into());
        }
        Ok(())
    }

    fn cases(&self) -> Vec<Case> {
        let base = Case {
            kind: Kind::Memcpy,
            op: self.op,
            memory: self.memory,
            layout: self.layout,
            block_bytes: self.block,
            batch: self.batch,
            pool_bytes: self.pool,
            slices_per_call: usize::from(self.slices),
            wait: self.wait,
            provider: self.provider.clone(),
            rails: self.rails,
            depth: self.depth,
            library: self.libfabric.clone(),
            iterations: self.iterations,
            warmup: self.warmup,
            repetitions: self.repetitions,
            pin: self.pin,
        };
        match self.kind {
            Some(kind) => vec![Case { kind, ..base }],
            None => workload::standard_cases(&base),
        }
    }
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build; its figures mean nothing");
    }
    if let Err(error) = args.check() {
        eprintln!("error: {error}");
        return 2.into();
    }
    let exit = match (args.role, &args.meet) {
        (Some(Role::Target), Some(place)) => {
            code(pair::be_target(place, args.libfabric.clone()).map_err(|e| ("the target".into(), e)))
        }
        (Some(Role::Initiator), Some(place)) => {
            args.cases().iter().map(|case| print(case, pair::initiate(case, place))).max().unwrap_or(0)
        }
        _ => args.cases().iter().map(|case| print(case, pair::measure(case))).max().unwrap_or(0),
    };
    exit.into()
}

/// Prints a case's row; the exit code of it.
fn print(case: &Case, measured: Result<Row, LimitError>) -> u8 {
    code(measured.map_err(|error| (case.to_string(), error)).and_then(|row| {
        let line = serde_json::to_string(&row);
        let line = line.map_err(|error| (case.to_string(), LimitError::os("writing JSON")(error.into())))?;
        println!("{line}");
        Ok(())
    }))
}

/// Says what went wrong; the exit code of it.
fn code(outcome: Result<(), (String, LimitError)>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err((what, error)) => {
            eprintln!("error: {what}: {error}");
            if matches!(error, LimitError::WrongBytes { .. }) { 1 } else { 2 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        let args = Args::try_parse_from([&["limits"], words].concat()).map_err(|error| error.to_string())?;
        args.check().map(|()| args)
    }

    #[test]
    fn a_role_needs_a_meeting_place_and_the_fabric() {
        let role = ["--role", "target", "--meet", "127.0.0.1:7000"];
        assert!(parse(&["--kind", "fabric", "--role", "target"]).is_err());
        assert!(parse(&["--kind", "fabric", "--meet", "127.0.0.1:7000"]).is_err());
        assert!(parse(&role).is_err());
        assert!(parse(&[&["--kind", "tcp"], &role[..]].concat()).is_err());
        assert!(parse(&[&["--kind", "fabric"], &role[..]].concat()).is_ok());
    }

    #[test]
    fn there_is_at_least_one_rail_and_one_operation_in_flight() {
        for words in [["--rails", "0"], ["--rails", "65"], ["--depth", "0"], ["--rails", "many"]] {
            assert!(parse(&words).is_err(), "{words:?}");
        }
        let args = parse(&["--kind", "fabric", "--provider", "efa-direct", "--rails", "32", "--depth", "64"])
            .unwrap();
        let case = &args.cases()[0];
        assert_eq!((case.provider.as_str(), case.rails, case.depth), ("efa-direct", 32, Some(64)));
    }

    #[test]
    fn without_a_kind_no_case_asks_for_a_libfabric() {
        assert!(parse(&[]).unwrap().cases().iter().all(|case| case.kind != Kind::Fabric));
    }
}
