//! Where a run writes: the table to stdout as it grows, or a document at the end; talk goes to stderr.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kvrail_report::Document;

use crate::args::{Bench, Format};
use crate::failure::Failure;
use crate::rails::Say;

/// Where the result goes: the table to stdout as it grows, or a document at the end.
pub(crate) struct Sink {
    format: Format,
    file: Option<(File, String)>,
    bar: ProgressBar,
}

impl Sink {
    /// Opens the output first of all: a run of minutes must not end in a file that cannot be written.
    pub(crate) fn open(bench: &Bench) -> Result<Self, Failure> {
        let file = bench.output.as_deref().map(open_output).transpose()?;
        let talk =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let bar = ProgressBar::with_draw_target(
            Some(0),
            if talk { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Ok(Self { format: bench.format, file, bar })
    }

    pub(crate) fn expect(&self, cases: usize) {
        self.bar.set_length(cases as u64);
    }

    pub(crate) fn begin(&self, what: &str) {
        self.bar.set_message(what.to_string());
        self.bar.tick();
    }

    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    /// Talk, on stderr.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// The same, from anywhere.
    pub(crate) fn speaker(&self) -> Say {
        let bar = self.bar.clone();
        Arc::new(move |line| bar.suspend(|| eprintln!("{line}")))
    }

    /// A part of the table, unless stdout is for a document.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        if self.format == Format::Table
            && let Some((file, path)) = &mut self.file
        {
            file.write_all(text.as_bytes()).map_err(|e| unwritable(path, &e))?;
        }
        if self.format == Format::Table || self.file.is_some() {
            return self.bar.suspend(|| print(text));
        }
        Ok(())
    }

    /// The document, if one was asked for.
    pub(crate) fn finish(&mut self, report: &Document) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        let document = match self.format {
            Format::Table => return Ok(()),
            Format::Json => report.json(),
            Format::Csv => kvrail_report::csv::csv(report),
        };
        match &mut self.file {
            None => print(&document),
            Some((file, path)) => {
                file.write_all(document.as_bytes())
                    .and_then(|()| file.flush())
                    .map_err(|e| unwritable(path, &e))?;
                eprintln!("written: {path}");
                Ok(())
            }
        }
    }
}

fn open_output(path: &Path) -> Result<(File, String), Failure> {
    let name = path.display().to_string();
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
    file.map(|f| (f, name.clone())).map_err(|e| unwritable(&name, &e))
}

fn unwritable(path: &str, e: &std::io::Error) -> Failure {
    Failure::environment(format!("cannot write {path}: {e}"))
        .hint("choose another place for --output, or leave it out to write to stdout")
}

/// Talk, on stderr. Nobody can be told that it cannot be written.
pub(crate) fn talk(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Data, on stdout. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(unwritable("to stdout", &e)),
        _ => Ok(()),
    }
}
