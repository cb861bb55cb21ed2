//! `drive`: kvrail's own interface, driven for the measurements that `kvrail bench` does not make.
//!
//! * `failover`: transfers while nothing is wrong, then one in whose middle a rail is struck, then one when it is back:
//!   how long each took, when the fabric reported the first error, how many operations were repeated.
//! * `cost`: very many small descriptors, in one function that a profiler can be told to look at.
//!
//! Two processes: the target fills, checks and answers by kvrail's own messages. Which transport is used says the
//! environment (`KVRAIL_TRANSPORT`), as for every program on kvrail. Every byte is checked. One JSON object on stdout; exit 1
//! when bytes were wrong, 2 when something could not be measured.

mod cost;
mod failover;
mod pool;
mod session;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Drives kvrail for measurements of failover and of cost per descriptor.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Owns the other memory; ends with the initiator
    Target(session::TargetArgs),
    /// Strikes a rail in the middle of a transfer
    Failover(failover::Args),
    /// Posts very many small descriptors
    Cost(cost::Args),
}

/// Why there is no figure.
#[derive(Debug)]
enum DriveError {
    /// The destination does not hold what was sent.
    WrongBytes(String),
    /// Something else.
    Other(String),
}

impl DriveError {
    /// For `map_err`: what was being done, and the error with its hints.
    fn in_doing<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Other(format!("{doing}: {error}"))
    }
}

impl std::fmt::Display for DriveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WrongBytes(said) => write!(f, "wrong bytes: {said}"),
            Self::Other(said) => f.write_str(said),
        }
    }
}

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build; its figures mean nothing");
    }
    let outcome = match Args::parse().role {
        Role::Target(args) => session::be_target(&args),
        Role::Failover(args) => failover::run(&args),
        Role::Cost(args) => cost::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, DriveError::WrongBytes(_)) { 1 } else { 2 })
        }
    }
}
