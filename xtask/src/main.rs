//! The repository's own tasks: `cargo xtask --help`.

mod compare;
mod engines;
mod process;
mod softefa;
mod venv;
mod wheels;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "The repository's own tasks")]
struct Xtask {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Set kvrail beside NIXL and the plain loops on this host: medians, ratios, verdicts
    Compare(compare::Args),
    /// Run every engine on this machine, one table and one report, with NIXL and UCX fetched from PyPI
    Engines(engines::Args),
    /// Run programs of others on emulated EFA nodes: fi_pingpong, fabtests, the real NIXL
    Softefa(softefa::Args),
    /// Build the wheels of the Python packages, kvrail and kvrail-nixl
    Wheels(wheels::Args),
}

fn main() -> ExitCode {
    match Xtask::parse().task {
        Task::Compare(args) => compare::run(&args),
        Task::Engines(args) => engines::run(&args),
        Task::Softefa(args) => softefa::run(&args),
        Task::Wheels(args) => wheels::run(&args),
    }
}
