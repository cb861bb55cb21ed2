//! `kvrail doctor`: why transfers fail, hang or crawl here. What is known and how it is looked at is in the crate `kvrail-doctor`.

mod lint;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use kvrail_doctor::host::{Live, Scope};
use kvrail_doctor::render::{self, Manner};
use kvrail_doctor::{Host, catalogue, examine};

use crate::failure::Failure;

/// What is looked at, and how it is told.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Doctor {
    #[command(subcommand)]
    command: Option<Command>,
    /// Run only these checks, comma-separated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    check: Vec<String>,
    /// Also look at this Python environment; may be given again
    #[arg(long, value_name = "DIR")]
    python: Vec<PathBuf>,
    /// Also ask this etcd; may be given again
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// Tell every check and all evidence
    #[arg(long, short)]
    verbose: bool,
}

/// What else is looked at than this host.
#[derive(Subcommand, Debug)]
enum Command {
    /// Find the mistakes in manifests, job scripts and engine settings, each with its line and the corrected text
    Lint(lint::Lint),
}

const EXAMPLES: &str = "\
Examples:
  kvrail doctor                         this host
  kvrail doctor --check memlock         one check
  kvrail doctor lint pods.yaml run.sh   mistakes in what deploys it

Exit codes: 0 healthy; 1 something was found; 2 could not tell.";

/// Examines this host.
pub(crate) fn main(arguments: &Doctor) -> Result<ExitCode, Failure> {
    match &arguments.command {
        Some(Command::Lint(arguments)) => return lint::main(arguments),
        None => {}
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
    let colours =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    crate::sink::print(&render::terminal(&examination, Manner { colours, verbose: arguments.verbose }))?;
    Ok(ExitCode::from(examination.verdict().exit_code()))
}
