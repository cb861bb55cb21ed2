//! `kvrail nixlbench`: nixlbench's command line, workloads and table, over any engine.
//!
//! The flags ([`flags`], [`parse`], [`help`]) add up to [`settings`]; a pure [`plan`] says who moves what to whom, and [`workload`] how
//! often; each [`participant`] meets the others ([`meet`]), runs its part ([`course`], [`bytes`]), and rank 0 records it ([`record`],
//! [`table`]).

mod bytes;
mod course;
mod engine;
mod figures;
mod flags;
mod help;
mod meet;
mod parse;
mod participant;
mod peers;
mod plan;
mod record;
mod settings;
mod table;
mod workload;

use std::ffi::OsString;

use crate::failure::Failure;

use parse::{Given, Request};
use peers::Peers;
use record::Recorder;
use settings::{Runtime, Settings};

/// nixlbench's command line, workloads and table, over any engine
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(crate) struct Nixlbench {
    /// nixlbench's flags; `kvrail nixlbench --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    words: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// What ended it early.
pub(crate) fn main(arguments: &Nixlbench) -> Result<(), Failure> {
    let words = words(arguments)?;
    match parse::request(&words)? {
        Request::Help => print!("{}", help::text()),
        Request::Version => println!("kvrail {}", crate::environment::VERSION),
        Request::Run(given) => return run(&words, &given),
    }
    Ok(())
}

fn run(words: &[String], given: &Given) -> Result<(), Failure> {
    let mut settings = Settings::new(given)?;
    let launch = meet::launched(&settings)?;
    engine::surround(&settings)?;
    for note in &settings.notes {
        settings.tell(&format!("note: {note}"));
    }
    let peers = if settings.names_a_rendezvous || launch.rank.is_some() {
        None
    } else {
        let peers = Peers::start(words, &settings.plan, &mut settings.flags)?;
        settings.runtime = Runtime::Embedded;
        Some(peers)
    };
    let mut recorder = Recorder::new(&settings);
    let ended = participant::run(&settings, &launch, &mut recorder);
    let ended = recorder.finish(ended);
    if let Some(peers) = peers {
        peers.end();
    }
    if settings.flags.quiet || engine::is_foreign(&settings) {
        let code = ended.as_ref().err().map_or(0, |failure| i32::from(failure.kind.exit_code()));
        if let Err(failure) = ended {
            settings.tell(&failure.to_string());
        }
        // Everything is written: stdout is flushed with each row.
        crate::engines::leave(code);
    }
    ended
}

/// The words, of which the parser wants text.
fn words(arguments: &Nixlbench) -> Result<Vec<String>, Failure> {
    let text = |word: &OsString| {
        word.clone().into_string().map_err(|word| Failure::usage(format!("{word:?} is not UTF-8")))
    };
    arguments.words.iter().map(text).collect()
}
