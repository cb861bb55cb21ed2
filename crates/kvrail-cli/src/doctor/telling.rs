//! How what was found is told: the options of every part of `kvrail doctor`, and what they do.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kvrail_doctor::render::{self, Manner, Report};

use crate::failure::Failure;

/// Columns where there is no terminal to ask.
const COLUMNS: usize = 100;

/// How what was found is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct Telling {
    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Write to this file instead of stdout
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Tell every check, every consequence and all evidence
    #[arg(long, short)]
    pub(super) verbose: bool,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people at a terminal
    #[default]
    Text,
    /// For programs: schema kvrail.doctor.v1, docs/doctor.md
    Json,
    /// To paste into an issue
    Markdown,
    /// SARIF 2.1.0, for code scanning and editors
    Sarif,
}

impl Telling {
    /// Tells a report, and the exit code that belongs to it.
    pub(super) fn tell(&self, report: &Report) -> Result<ExitCode, Failure> {
        let text = match self.format {
            Format::Text => render::terminal(report, self.manner()),
            Format::Json => render::json(report),
            Format::Markdown => render::markdown(report),
            Format::Sarif => render::sarif(report),
        };
        self.write(&text)?;
        Ok(ExitCode::from(report.verdict().exit_code()))
    }

    /// How text for people is written where it goes.
    pub(super) fn manner(&self) -> Manner {
        let terminal = self.output.is_none() && std::io::stdout().is_terminal();
        let width = terminal.then(terminal_size::terminal_size).flatten();
        Manner {
            colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            verbose: self.verbose,
            // Files and pipes are UTF-8, whatever this terminal shows.
            ascii: terminal && !is_utf8(),
            width: width.map_or(COLUMNS, |(width, _)| usize::from(width.0)),
        }
    }

    /// Writes data where it goes.
    pub(super) fn write(&self, text: &str) -> Result<(), Failure> {
        match &self.output {
            None => crate::sink::print(text),
            Some(path) => write_whole(path, text.as_bytes(), 0o644),
        }
    }
}

/// Whether the locale's characters are UTF-8: the first of these variables that is set decides.
fn is_utf8() -> bool {
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    locale.is_some_and(|locale| {
        let locale = locale.to_string_lossy().to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Writes a file whole or not at all: beside its place first, then into it. `mode` is the file's, also where there was another
/// one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| {
        Failure::environment(format!("cannot write {}: {error}", path.display()))
            .hint("name a file in a directory that you may write to")
    };
    // What a link leads to is replaced, and not the link: /dev/stdout is one.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if target.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        // A pipe, a device: there is nothing to put in its place.
        let opened = std::fs::OpenOptions::new().write(true).open(&target);
        return opened.and_then(|mut file| file.write_all(bytes)).map_err(failed);
    }
    let name = target.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidFilename.into()))?;
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}", std::process::id()));
    let draft = target.with_file_name(draft);
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft);
    let mut file = made.map_err(failed)?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&draft, &target));
    written.inspect_err(|_| drop(std::fs::remove_file(&draft))).map_err(failed)
}
