//! `limits`: what this machine allows when nothing stands between the loop and the copy.
//!
//! Each case is two processes on one host and the loop that a careful C programmer would write: `memcpy`
//! between mapped pools, `process_vm_readv`/`writev`, `send`/`recv` over loopback. kvrail's figures are set
//! beside these. A figure is printed only after every byte was checked, here as everywhere.
//!
//! One JSON object a case on stdout. Exit 0 when all were measured, 1 when bytes were wrong, 2 when a case
//! could not be measured.

mod error;
mod memcpy;
mod memory;
mod pair;
mod process_vm;
mod report;
mod tcp;
mod workload;

use clap::Parser;

use crate::error::LimitError;
use crate::memory::Memory;
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
    /// Memory of the pools; process-vm and tcp always use private memory
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
    /// tcp: how the two sides wait for bytes
    #[arg(long, value_enum, default_value = "block")]
    wait: Wait,
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

impl Args {
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
    let mut exit = 0;
    for case in args.cases() {
        match pair::measure(&case) {
            Ok(row) => match serde_json::to_string(&row) {
                Ok(line) => println!("{line}"),
                Err(error) => {
                    eprintln!("error: a row could not be written as JSON: {error}");
                    exit = exit.max(2);
                }
            },
            Err(error) => {
                eprintln!("error: {case}: {error}");
                exit = exit.max(if matches!(error, LimitError::WrongBytes { .. }) { 1 } else { 2 });
            }
        }
    }
    std::process::ExitCode::from(exit)
}
