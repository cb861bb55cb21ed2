//! Logs of the engines and libraries, read for the lines that name a known failure.
//!
//! What is known is data (`signatures`): texts that must stand in a line, a pattern with what to keep of it, what makes it innocent,
//! and the rule that explains it. All texts are looked for at once, in one pass over the bytes (`scan`), in constant memory, whatever the
//! lines are. Each failure is one [`Finding`] with its first line, how often, from when to when; what only several lines
//! say together (a backend that was asked for and never came up, packets that leave and never arrive) is judged at the end.

use std::fmt;
use std::io::Read;
use std::time::Instant;

use crate::finding::Finding;
use crate::render::Report;
use crate::rule::{Kind, Rule};

mod codes;
mod input;
mod scan;
mod seen;
mod signature;
mod signatures;
mod tally;
mod text;

pub use input::NotRead;

use seen::Seen;
use signature::Engine;
use signatures::Mark;

/// What is looked for.
pub const RULES: &[&Rule] = &signatures::RULES;

/// Logs that were read together: what one says may explain another.
pub struct Logs {
    engine: &'static Engine,
    files: Vec<File>,
    unread: Vec<(String, String)>,
    begin: Instant,
}

struct File {
    name: String,
    counted: scan::Counted,
}

/// How much a log was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes, after decompression.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
}

impl Default for Logs {
    fn default() -> Self {
        Self::new()
    }
}

impl Logs {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self { engine: Engine::get(), files: Vec::new(), unread: Vec::new(), begin: Instant::now() }
    }

    /// Reads one to its end. What stood before an error of reading counts.
    ///
    /// # Errors
    /// It is no text, or cannot be read to its end: the report says so, too.
    pub fn read(&mut self, name: &str, from: impl Read) -> Result<Extent, NotRead> {
        self.scan(name, Box::new(from)).inspect_err(|why| self.unread(name, why))
    }

    /// Notes a log that could not be read.
    pub fn unread(&mut self, name: &str, why: &dyn fmt::Display) {
        self.unread.push((name.into(), why.to_string()));
    }

    fn scan<'r>(&mut self, name: &str, from: Box<dyn Read + 'r>) -> Result<Extent, NotRead> {
        let mut text = input::text(from)?;
        let mut counted = scan::read(self.engine, &mut *text, scan::BUFFER);
        let broke = counted.broke.take();
        let extent = Extent { bytes: counted.bytes, lines: counted.lines };
        self.files.push(File { name: name.into(), counted });
        broke.map_or(Ok(extent), |error| Err(error.into()))
    }

    /// What they say.
    #[must_use]
    pub fn conclude(self) -> Report {
        let files = self.files.iter().map(|file| {
            let scan::Counted { bytes, lines, .. } = file.counted;
            serde_json::json!({ "file": file.name, "bytes": bytes, "lines": lines })
        });
        let data = serde_json::json!({ "logs": files.collect::<Vec<_>>() });
        let report = Report::of_findings(Kind::Log, self.subject(), RULES, self.findings())
            .took(self.begin.elapsed())
            .data(data);
        self.unread.iter().fold(report, |report, (what, why)| report.unread(what, why))
    }

    fn findings(&self) -> Vec<Finding> {
        let mut told: Vec<Finding> = Vec::new();
        for (index, signature) in signatures::all().enumerate() {
            let files = self.files.iter().filter_map(|file| {
                let tally = file.counted.tallies.get(index)?;
                (tally.count > 0).then_some((file.name.as_str(), tally))
            });
            let seen = Seen { signature, logs: self, told: &told, files: files.collect() };
            if seen.count() >= signature.least
                && let Some(finding) = (signature.judge)(&seen, seen.finding())
            {
                told.push(finding);
            }
        }
        told
    }

    /// What was read, in a few words.
    fn subject(&self) -> String {
        let bytes: u64 = self.files.iter().map(|file| file.counted.bytes).sum();
        let lines = kvrail_report::units::grouped(self.lines());
        let size = kvrail_report::units::about(bytes);
        match self.files.as_slice() {
            [one] => format!("{}, {lines} lines, {size}", one.name),
            files => format!("{} logs, {lines} lines, {size}", files.len()),
        }
    }

    /// Lines of all.
    fn lines(&self) -> u64 {
        self.files.iter().map(|file| file.counted.lines).sum()
    }

    /// Lines of a mark.
    fn marked(&self, mark: Mark) -> u64 {
        let index = RULES.len() + mark as usize;
        self.files.iter().filter_map(|file| Some(file.counted.tallies.get(index)?.count)).sum()
    }
}
