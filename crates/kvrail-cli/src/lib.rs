//! The program `kvrail`: benchmarks first.
//!
//! `main` reads the command line, runs one command and turns its end into an exit code; everything else is in
//! modules named after what they hold. stdout is data, stderr is talk.

mod args;
mod artifacts;
mod bench;
mod carriage;
mod case;
mod ceiling;
mod conductor;
mod config;
mod control;
mod control_path;
mod doctor;
mod endpoint;
mod engines;
mod environment;
mod expect;
mod fix;
mod initiator;
mod keeper;
mod kid;
mod link;
mod measure;
mod meet;
mod nixlbench;
mod ofi;
mod pattern;
mod player;
mod pool;
mod rails;
mod report;
mod rows;
mod run;
mod signals;
mod sink;
mod softefa;
mod spawn;
mod suite;
mod talk;
mod target;
mod topo;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use kvrail_report::{failure, units};

/// What a command line means, without doing it: the number of benchmark cases, 0 for other commands. For fuzzing.
///
/// # Errors
/// The text that the program would print.
#[doc(hidden)]
pub fn understand(words: impl IntoIterator<Item = String>) -> Result<usize, String> {
    match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
        Command::Bench(bench) => bench.resolve(1).map(|run| run.cases.len()).map_err(|e| e.to_string()),
        Command::Nixlbench(_)
        | Command::Softefa(_)
        | Command::Report(_)
        | Command::Compare(_)
        | Command::Topo(_)
        | Command::Doctor(_)
        | Command::Config(_)
        | Command::TryToLoad { .. }
        | Command::Fix(_)
        | Command::Suite(_)
        | Command::Completions { .. } => Ok(0),
    }
}

/// Runs the program on the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    talk::install();
    let ended = match &cli.command {
        Command::Bench(bench) => bench::run(bench),
        Command::Nixlbench(arguments) => nixlbench::main(arguments),
        Command::Softefa(command) => match softefa::main(command) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::Report(arguments) => report::report(arguments),
        Command::Compare(arguments) => report::compare(arguments),
        Command::Topo(arguments) => topo::main(arguments),
        Command::Doctor(arguments) => match doctor::main(arguments) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::Config(arguments) => match config::main(arguments) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::TryToLoad { libraries } => doctor::load(libraries),
        Command::Fix(arguments) => match fix::main(arguments) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::Suite(suite) => suite::main(suite),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "kvrail", &mut std::io::stdout());
            Ok(())
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            sink::talk(&failure.to_string());
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
