//! `kvrail doctor`: why transfers fail, hang or crawl here. What is known and how it is looked at is in the crate `kvrail-doctor`.

pub(crate) mod probe;
mod telling;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use kvrail_doctor::host::{Live, Scope};
use kvrail_doctor::render::Report;
use kvrail_doctor::{Host, catalogue, examine};

use crate::failure::Failure;
use telling::Telling;

/// What is looked at, and how it is told.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Doctor {
    #[command(subcommand)]
    part: Option<Part>,
    /// Run only these checks, comma-separated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    check: Vec<String>,
    /// Also look at this Python environment; may be given again
    #[arg(long, value_name = "DIR")]
    python: Vec<PathBuf>,
    /// Also ask this etcd; may be given again
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    #[command(flatten)]
    telling: Telling,
}

/// What else than this host can be looked at. Each part flattens [`Telling`] and ends with [`Telling::tell`].
#[derive(Subcommand, Debug)]
enum Part {
    /// Small verified transfers with another host over every rail, and what is wrong between the two
    Probe(Box<probe::Probe>),
}

const EXAMPLES: &str = "\
Examples:
  kvrail doctor                         this host
  kvrail doctor --check memlock         one check
  kvrail doctor probe node-2            every rail between this host and another

Exit codes: 0 healthy; 1 something was found; 2 could not tell.";

/// Examines this host.
pub(crate) fn main(arguments: &Doctor) -> Result<ExitCode, Failure> {
    if let Some(part) = &arguments.part {
        return match part {
            Part::Probe(probe) => probe::main(probe),
        };
    }
    let checks = catalogue::select(&arguments.check).map_err(Failure::usage)?;
    let mut live = Live::new();
    if let Ok(program) = std::env::current_exe() {
        live = live.with_program(&program);
    }
    let scope = Scope {
        python: arguments.python.iter().map(|path| path.display().to_string()).collect(),
        etcd: arguments.etcd.clone(),
        instance: None,
    };
    let host = Host::live(live, scope);
    let examination = examine(&host, &checks);
    arguments.telling.tell(&Report::of_host("this host", &examination))
}
