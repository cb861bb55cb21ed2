//! Logs of the engines and libraries, read for the lines that name a known failure.
//!
//! What is known is data ([`signatures`]): texts that must stand in a line, a pattern with what to keep of it, what makes it innocent,
//! and the rule that explains it. All texts are looked for at once, in one pass over the bytes ([`scan`]), in constant memory, whatever the
//! lines are. Each failure is one [`Finding`](crate::Finding) with its first line, how often, from when to when; what only several lines
//! say together (a backend that was asked for and never came up, packets that leave and never arrive) is judged at the end.

use std::io::Read;

use crate::examine::{Examination, Looked};
use crate::finding::{Finding, Outcome};
use crate::rule::Rule;

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
    buffer_bytes: usize,
    begin: std::time::Instant,
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
        Self {
            engine: Engine::get(),
            files: Vec::new(),
            buffer_bytes: scan::BUFFER,
            begin: std::time::Instant::now(),
        }
    }

    /// Reads one to its end. What stood before an error of reading counts.
    ///
    /// # Errors
    /// It is no text, or cannot be read to its end.
    pub fn read(&mut self, name: &str, from: impl Read) -> Result<Extent, NotRead> {
        let mut text = input::text(Box::new(from))?;
        let mut counted = scan::read(self.engine, &mut *text, self.buffer_bytes);
        let broke = counted.broke.take();
        let read = Extent { bytes: counted.bytes, lines: counted.lines };
        self.files.push(File { name: name.into(), counted });
        broke.map_or(Ok(read), |error| Err(error.into()))
    }

    /// What they say.
    #[must_use]
    pub fn conclude(self) -> Examination {
        let mut told: Vec<Finding> = Vec::new();
        for (index, signature) in signatures::all().enumerate() {
            let files = self.files.iter().filter_map(|file| {
                let tally = file.counted.tallies.get(index)?;
                (tally.count > 0).then_some((file.name.as_str(), tally))
            });
            let seen = Seen { signature, logs: &self, told: &told, files: files.collect() };
            if seen.count() >= signature.least
                && let Some(finding) = (signature.judge)(&seen, seen.finding())
            {
                told.push(finding);
            }
        }
        let looked = told.into_iter().map(|finding| Looked {
            rule: finding.rule,
            outcome: Outcome::Findings(vec![finding]),
            took: std::time::Duration::ZERO,
        });
        Examination { looked: looked.collect(), took: self.begin.elapsed() }
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
