//! `kvrail nixlbench`: nixlbench's command line, workloads and table, over any engine.
//!
//! The flags ([`flags`], [`parse`], [`help`]) add up to [`settings`]; a pure [`plan`] says who moves what to whom, and [`workload`] how
//! often; participants meet and run it; [`table`] prints it as nixlbench does.

mod flags;
mod help;
mod parse;
mod plan;
mod settings;
mod table;
mod workload;

use std::ffi::OsString;

use crate::failure::Failure;

use parse::Request;
use settings::Settings;

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
    match parse::request(&words(arguments)?)? {
        Request::Help => print!("{}", help::text()),
        Request::Version => println!("kvrail {}", crate::environment::VERSION),
        Request::Run(given) => {
            let settings = Settings::new(&given)?;
            for note in &settings.notes {
                eprintln!("note: {note}");
            }
            print!("{}{}", table::configuration(&settings), table::header(table::is_wide(&settings.plan)));
        }
    }
    Ok(())
}

/// The words, of which the parser wants text.
fn words(arguments: &Nixlbench) -> Result<Vec<String>, Failure> {
    let text = |word: &OsString| {
        word.clone().into_string().map_err(|word| Failure::usage(format!("{word:?} is not UTF-8")))
    };
    arguments.words.iter().map(text).collect()
}
