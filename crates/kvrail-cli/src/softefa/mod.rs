//! `kvrail softefa`: the emulated EFA fabric on the command line. What it does is in the crate `softefa`.

mod args;
mod check;
mod fault;
mod quantities;
mod run;
mod shell;
mod status;

pub(crate) use args::Softefa;

use std::process::ExitCode;

use softefa::run::{Error, Removed, remove_stale};

use crate::failure::Failure;

/// Does what one of the commands says; the exit code is that of the program.
pub(crate) fn main(command: &Softefa) -> Result<ExitCode, Failure> {
    match command {
        Softefa::Run(arguments) => run::main(arguments),
        Softefa::Shell(arguments) => shell::main(arguments),
        Softefa::Status(arguments) => status::main(arguments),
        Softefa::Fault(arguments) => fault::main(arguments),
        Softefa::Check(arguments) => check::main(arguments),
        Softefa::Keep => softefa::run::keep().map(|()| ExitCode::SUCCESS).map_err(failure),
        Softefa::Load { library } => check::load(library),
    }
}

/// The supervisor's error, with its advice.
fn failure(error: Error) -> Failure {
    let hints = error.hints();
    let usage = matches!(error, Error::Request(_) | Error::BadName(_));
    let failure =
        if usage { Failure::usage(error.to_string()) } else { Failure::environment(error.to_string()) };
    hints.into_iter().fold(failure, Failure::hint)
}

/// Removes what killed fabrics have left, and says so.
fn clear_up() -> Result<(), Failure> {
    for Removed { name, path, processes } in remove_stale().map_err(failure)? {
        let ended = match processes {
            0 => String::new(),
            1 => " and ended 1 process that still ran in it".into(),
            n => format!(" and ended {n} processes that still ran in it"),
        };
        eprintln!("note: removed {}, which the killed fabric {name} had left{ended}", path.display());
    }
    Ok(())
}
