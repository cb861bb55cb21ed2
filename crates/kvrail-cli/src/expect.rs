//! `--expect`: what an instance type should reach, and what the exit code makes of it.

use std::path::Path;

use kvrail_report::Document;
use kvrail_report::expect::{Expectations, Instance, Outcome};

use crate::failure::Failure;

/// Bytes of a file of expectations at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Expectations that were asked for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Expect {
    expectations: Expectations,
    /// The instance, where it was named.
    name: Option<String>,
}

impl Expect {
    /// From the word after `--expect`: a file if there is one of that name or it looks like a path, else the name of an
    /// instance.
    ///
    /// # Errors
    /// A file that cannot be read, or a name that nothing is known of.
    pub(crate) fn read(word: &str) -> Result<Self, Failure> {
        let path = Path::new(word);
        if path.is_file() || word.contains('/') || path.extension().is_some_and(|e| e == "toml") {
            let failed = |e: &dyn std::fmt::Display| Failure::usage(format!("--expect {word}: {e}"));
            let length = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
            if length > FILE_BYTES_MAX {
                return Err(failed(&"it is larger than any file of expectations"));
            }
            let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
            let expectations = Expectations::read(&text).map_err(|e| failed(&e))?;
            return Ok(Self { expectations, name: None });
        }
        let expectations = Expectations::shipped();
        expectations.instance(word).map_err(|e| {
            Failure::usage(format!("--expect {word}: {e}"))
                .hint("a file of expectations is named by its path, such as ./expect.toml")
        })?;
        Ok(Self { expectations, name: Some(word.into()) })
    }

    fn instance(&self, document: &Document) -> Result<&Instance, Failure> {
        let instance = match &self.name {
            Some(name) => self.expectations.instance(name),
            None => self.expectations.instance_of(document),
        };
        instance.map_err(|e| Failure::environment(format!("--expect: {e}")))
    }

    /// Holds documents against it; the verdicts go into their rows.
    ///
    /// # Errors
    /// What misses its expectation (exit code 1), or that nothing could be held against one (2).
    pub(crate) fn judge(&self, documents: &mut [Document]) -> Result<(), Failure> {
        let mut all = Outcome::default();
        let mut name = String::new();
        for document in documents {
            let instance = self.instance(document)?;
            let outcome = instance.judge(document);
            all.healthy += outcome.healthy;
            all.below += outcome.below;
            name.clone_from(&instance.name);
        }
        let judged = all.healthy + all.below;
        match all.exit_code() {
            0 => {
                eprintln!("expected of {name}: {judged} of {judged} rows are healthy");
                Ok(())
            }
            1 => Err(Failure::check(format!(
                "{} of {judged} rows are below what is expected of {name}; their verdicts say how far",
                all.below
            ))),
            _ => Err(Failure::environment(format!("no row of this run has an expectation for {name}"))
                .hint("expectations name engine, memory, transfer size, and whether two hosts are between")),
        }
    }
}
