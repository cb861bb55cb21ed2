//! The command line: flags as they are typed. What they add up to is in [`crate::run`].
//!
//! Flags whose absence means something are optional here, so that a contradiction between two of them can be an error
//! and never is a silent choice (KR-13).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::case::{Cooperate, Layout, Memory, Op, Progress, THREADS_MAX, Transport, Verify};
use crate::units::{self, Size, Sweep};

/// Moves LLM KV-cache blocks between processes and hosts, and measures how well.
#[derive(Parser, Debug)]
#[command(name = "kvrail", version = crate::environment::VERSION, propagate_version = true)]
#[command(arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Measure transfers between two processes, every byte verified
    #[command(long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
    Bench(Box<Bench>),
    /// Run nixlbench's command lines, with its table, over any engine
    Nixlbench(crate::nixlbench::Nixlbench),
    /// Run commands on hosts with emulated EFA devices, and break those while they run
    #[command(subcommand)]
    Softefa(crate::softefa::Softefa),
    /// Render documents of kvrail bench anew: Markdown, HTML, CSV, JUnit, nixlbench's table
    Report(crate::report::Report),
    /// Hold one run against another: what became faster, what slower, what the noise hides
    #[command(after_help = COMPARE_EXIT_CODES)]
    Compare(crate::report::Compare),
    /// Show NUMA nodes, PCIe switches, GPUs and NICs, and which rails serve which GPU
    Topo(crate::topo::Topo),
    /// Find why transfers fail, hang or crawl here: evidence, cause and fix
    Doctor(Box<crate::doctor::Doctor>),
    /// Write the settings with which an engine's KV caches travel well here
    Config(Box<crate::config::Config>),
    /// Load libraries and say how it went: `kvrail doctor` starts this, since a library may crash the process that loads it
    #[command(name = kvrail_doctor::host::LOAD, hide = true)]
    TryToLoad {
        /// In this order
        libraries: Vec<PathBuf>,
    },
    /// Mend what can be mended: links, search paths, NIXL's default backend; everything can be taken back
    Fix(Box<crate::fix::Fix>),
    /// Run a plan of benchmarks: resumed after an interruption, one report at the end
    #[command(subcommand)]
    Suite(crate::suite::Suite),
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

const COMPARE_EXIT_CODES: &str = "\
Exit codes: 0 nothing regressed; 1 something did, or broke; 2 nothing could be compared.";

const EXIT_CODES: &str = "\
Exit codes: 0 every figure stands; 1 a check failed (wrong bytes); 2 could not tell (usage, environment, peer).";

const LONG_ABOUT: &str = "\
Measures transfers between two processes, every byte verified.

Without arguments, starts the other process on this host, picks the best transport and sweeps 4 KiB to 64 MiB, \
reading and writing, in less than a minute. Beside every figure stands its ceiling: what a plain memory copy of \
the same blocks reaches here, measured in turns with the transfers.

A figure counts only if its bytes were verified: the source holds a pattern in which every word names its round \
and place, the destination is poisoned, and outside the timed part every byte is checked. A bad byte ends the run \
with exit code 1, and its block, its offset and what it looks like (zeros, stale, swapped, torn) are named.

\
Several engines (--engine kvrail,nixl,ucx,libfabric,memcpy) do the same cases on the same memory, with the same check, in turns: \
one after the other does a share of a case while the others sleep, and the ratios are medians of those within the turns. Each has \
processes of its own on both sides. One that dies, hangs, is not there or moves a wrong byte has a row that says so; the others go \
on, and the exit code tells.";

const EXAMPLES: &str = "\
Examples:
  kvrail bench                                            this host, the standard sweep
  kvrail bench --preset kv --memory private               12,800 scattered blocks of 32 KiB, malloc memory
  kvrail bench --role target --listen 0.0.0.0:7100        there
  kvrail bench --role initiator --connect node-2:7100     here; either may start first
  kvrail bench --role auto --rendezvous node-2:7100       the same command on both hosts
  kvrail bench --transport ofi --connect node-2:7100      over every NIC of the best RDMA fabric (EFA)
  kvrail bench --format json --output run.json            table on stdout, everything in the file
  kvrail bench --engine kvrail,nixl,ucx,libfabric,memcpy  all engines in turns, with ratios
  kvrail bench --engine kvrail:tcp,nixl:LIBFABRIC --connect node-2:7100
                                                          a way of each; the target is told which engines come

GB/s are decimal (10^9 bytes), block sizes binary (1 KiB = 1,024 bytes). Latency is per transfer, that is per batch: \
from just before it is posted until its completion was seen. CPU times are of the whole process during the timed part.

Exit codes: 0 every figure stands; 1 a check failed (wrong bytes); 2 could not tell (usage, environment, peer, an \
engine that failed).";

/// Which side of the transfers this process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Role {
    /// Posts the transfers, measures and reports.
    Initiator,
    /// Offers its memory.
    Target,
    /// Whoever binds the rendezvous address first is target.
    Auto,
}

/// How the result is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// Schema kvrail.bench.v1, with full histograms.
    Json,
    /// One line per case.
    Csv,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum What {
    /// Moving bytes.
    Transfer,
    /// Creating an agent, registering 10,000 regions, metadata, import.
    Control,
}

/// A well-known workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Preset {
    /// A paged KV cache: 12,800 scattered blocks of 32 KiB out of 16,384.
    Kv,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Bench {
    /// Which side this process is; without it, both are started on this host
    #[arg(long, help_heading = "Two hosts")]
    pub(crate) role: Option<Role>,
    /// Where a target waits [default: 127.0.0.1:7100]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Two hosts")]
    pub(crate) listen: Option<String>,
    /// Where the initiator finds its target
    #[arg(long, value_name = "HOST:PORT", help_heading = "Two hosts")]
    pub(crate) connect: Option<String>,
    /// Where two --role auto meet; an address of one of the two hosts
    #[arg(long, value_name = "HOST:PORT", help_heading = "Two hosts")]
    pub(crate) rendezvous: Option<String>,
    /// A target serves one initiator after the other, until Ctrl-C
    #[arg(long, help_heading = "Two hosts")]
    pub(crate) keep: bool,
    /// Longest wait for the peer to appear, for one answer of it, and for one transfer [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration, help_heading = "Two hosts")]
    pub(crate) timeout: Option<Duration>,

    /// What is measured
    #[arg(long, value_enum, default_value_t = What::Transfer, help_heading = "Workload")]
    pub(crate) kind: What,
    /// A well-known workload, instead of --block, --batch, --layout and --pool
    #[arg(long, value_enum, help_heading = "Workload", conflicts_with_all = ["block", "batch", "layout", "pool"])]
    pub(crate) preset: Option<Preset>,
    /// Directions, comma-separated [default: write,read]
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Workload")]
    pub(crate) op: Vec<Op>,
    /// Block sizes: 32KiB, 4KiB,1MiB, 4KiB..64MiB (doubling) or 4KiB..64MiB*4 [default: 4KiB..64MiB*4]
    #[arg(long, visible_alias = "blocks", value_name = "SIZES", value_parser = units::sizes, help_heading = "Workload")]
    pub(crate) block: Option<Sweep>,
    /// Blocks per transfer: 64, 1,64 or 1..64 (doubling) [default: 1]
    #[arg(long, value_name = "COUNTS", value_parser = units::counts, help_heading = "Workload")]
    pub(crate) batch: Option<Sweep>,
    /// How the blocks of a transfer lie in memory [default: contiguous]
    #[arg(long, value_enum, help_heading = "Workload")]
    pub(crate) layout: Option<Layout>,
    /// Size of the region on each side [default: what the blocks need, a quarter more when scattered]
    #[arg(long, value_name = "SIZE", help_heading = "Workload")]
    pub(crate) pool: Option<Size>,
    /// Kinds of memory, comma-separated [default: shared]
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Workload")]
    pub(crate) memory: Vec<Memory>,
    /// Transports, comma-separated [default: auto]
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Workload")]
    pub(crate) transport: Vec<Transport>,
    #[command(flatten)]
    pub(crate) engines: crate::engines::Flags,
    #[command(flatten)]
    pub(crate) ofi: crate::ofi::Flags,
    /// Posting threads of the initiator [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=THREADS_MAX as i64), help_heading = "Workload")]
    pub(crate) threads: Option<u32>,
    /// Who makes the initiator's progress, of kvrail and nixl [default: inline]
    #[arg(long, value_enum, help_heading = "Workload")]
    pub(crate) progress: Option<Progress>,
    /// Whether the target's cores help with large batches of private memory on one host [default: on]
    #[arg(long, value_enum, help_heading = "Workload")]
    pub(crate) cooperate: Option<Cooperate>,
    /// Each transfer carries a notification, and the target counts them
    #[arg(long, help_heading = "Workload")]
    pub(crate) notify: bool,

    /// Timed transfers per case and thread
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 40), conflicts_with = "duration", help_heading = "Measurement")]
    pub(crate) iterations: Option<u64>,
    /// Timed seconds per case; ends after five times that, checking included [default: 0.4s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration, help_heading = "Measurement")]
    pub(crate) duration: Option<Duration>,
    /// Untimed transfers before each timed one, over the same blocks [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000), help_heading = "Measurement")]
    pub(crate) warmup: Option<u32>,
    /// How much of what was moved is checked [default: every]
    #[arg(long, value_enum, help_heading = "Measurement")]
    pub(crate) verify: Option<Verify>,
    /// Seed of layout and pattern [default: random, and printed]
    #[arg(long, value_name = "N", help_heading = "Measurement")]
    pub(crate) seed: Option<u64>,

    /// How the result is written: to --output if given, else to stdout
    #[arg(long, value_enum, default_value_t = Format::Table, help_heading = "Output")]
    pub(crate) format: Format,
    /// Write the result to a file; the table goes to stdout
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// Make a folder per run in DIR: results in every form, the log, what the host says of its fabric and GPUs
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Hold the figures against what an instance type should reach (p5, p4d, …, or a file); exit 1 when one misses it
    #[arg(long, value_name = "NAME|FILE", help_heading = "Output")]
    pub(crate) expect: Option<String>,

    /// This target was started by an initiator and ends with it
    #[arg(long, hide = true)]
    pub(crate) spawned: bool,
    /// A defect on the path of every engine: swapped, wrong-offset, stale, zeros, flip-bit, short-tail
    #[arg(long, hide = true, value_name = "KIND")]
    pub(crate) plant: Option<kvrail_engines::Plant>,
    /// This process was started for one of several engines
    #[arg(long, hide = true, value_enum)]
    pub(crate) conducted: Option<Conducted>,
    /// The target flips one byte: CASE:BLOCK:OFFSET
    #[arg(long, hide = true, value_name = "CASE:BLOCK:OFFSET")]
    pub(crate) inject_corruption: Option<Injection>,
}

/// What a process is that was started for one of several engines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Conducted {
    /// Does an engine's turns when it is told to.
    Initiator,
    /// Serves one link, on stdin.
    Target,
}

/// Where the target flips a byte, so that a test can see the run fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Injection {
    pub(crate) case: u32,
    pub(crate) block: u64,
    pub(crate) offset: u64,
}

impl std::str::FromStr for Injection {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not CASE:BLOCK:OFFSET");
        let mut parts = text.split(':').map(|p| p.parse::<u64>().map_err(|_| bad()));
        let mut next = || parts.next().unwrap_or_else(|| Err(bad()));
        let (case, block, offset) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self { case: u32::try_from(case).map_err(|_| bad())?, block, offset })
    }
}

impl std::fmt::Display for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.case, self.block, self.offset)
    }
}
