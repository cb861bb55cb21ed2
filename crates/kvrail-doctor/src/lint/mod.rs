//! Files that deploy and configure such systems (Kubernetes, vLLM, SGLang, Ray, Slurm), read for the mistakes that cost others weeks.
//!
//! A file becomes a tree or a list of commands whose every part knows its place ([`read`]), these become facts that are the same whatever
//! they were written in ([`facts`]), and rules look at the facts of all files together ([`rules`]): the prefill engine may be in one
//! file and the decode engine in another. Nothing in a file is ever run or expanded.

pub mod extract;
pub mod facts;
pub mod read;
pub mod rules;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

pub use facts::Kind;

use self::extract::{Extractor, recognise};
use self::read::Text;
use self::rules::Look;
use crate::examine::Verdict;
use crate::finding::{Finding, Location};
use crate::rule::{Rule, Severity};

/// What is looked for.
pub const RULES: &[&Rule] = &{
    const GROUPS: [&[&Rule]; 11] = [
        rules::placement::RULES,
        rules::resources::RULES,
        rules::security::RULES,
        rules::images::RULES,
        rules::connector::RULES,
        rules::pairs::RULES,
        rules::variables::RULES,
        rules::libraries::RULES,
        rules::etcd::RULES,
        rules::slurm::RULES,
        rules::ray::RULES,
    ];
    const COUNT: usize = {
        let (mut count, mut group) = (0, 0);
        while group < GROUPS.len() {
            count += GROUPS[group].len();
            group += 1;
        }
        count
    };
    let mut all: [&Rule; COUNT] = [GROUPS[0][0]; COUNT];
    let (mut index, mut group) = (0, 0);
    while group < GROUPS.len() {
        let mut own = 0;
        while own < GROUPS[group].len() {
            all[index] = GROUPS[group][own];
            index += 1;
            own += 1;
        }
        group += 1;
    }
    all
};

/// The largest file that is read. Manifests are kilobytes; what is larger is a log or an archive.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Findings of one rule in one run. What is beyond is counted with the last of them.
const FINDINGS_OF_A_RULE_MAX: usize = 200;

/// A file to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// As it was named on the command line.
    pub name: String,
    /// What stands in it.
    pub text: String,
}

/// Why a file was not looked at, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LintError {
    /// It cannot be read.
    #[error("{name}: {source}")]
    Unreadable {
        /// As it was named.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It is a directory.
    #[error("{name} is a directory: name the files in it, as in `kvrail doctor lint {name}/*.yaml`")]
    Directory {
        /// As it was named.
        name: String,
    },
    /// It is too large to be what it should be.
    #[error("{name} has more than {} MiB: lint reads manifests, scripts and settings (for logs: `kvrail doctor log`)", FILE_BYTES_MAX >> 20)]
    TooLarge {
        /// As it was named.
        name: String,
    },
    /// It is not text.
    #[error("{name}: byte {offset} is not UTF-8: this is no text file")]
    NotText {
        /// As it was named.
        name: String,
        /// From 0.
        offset: usize,
    },
    /// It is empty, or like none of the kinds.
    #[error(
        "{name} looks like none of kubernetes, ray, slurm, shell, dockerfile, env and settings: say which with --kind"
    )]
    Unrecognised {
        /// As it was named.
        name: String,
    },
    /// It is not what its kind is written in.
    #[error("{}:{}:{}: {what}{hint}", at.file, at.line, at.column.unwrap_or(1))]
    Malformed {
        /// Where.
        at: Location,
        /// What is wrong there.
        what: String,
        /// What that often means; empty, or begins with a separator.
        hint: &'static str,
    },
}

/// What was looked at and found.
#[derive(Debug, Default)]
pub struct Report {
    /// The files, each with what it was taken for.
    pub files: Vec<(String, Kind)>,
    /// What is wrong, in the order of the files and of the places in them.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub errors: Vec<LintError>,
}

impl Report {
    /// How it ended: what was found counts before what could not be read.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.findings.iter().any(|finding| finding.severity > Severity::Note) {
            Verdict::Findings
        } else if !self.errors.is_empty() {
            Verdict::CouldNotTell
        } else {
            Verdict::Healthy
        }
    }
}

/// Reads a file; `-` is the standard input.
///
/// # Errors
/// What it is instead of a text file of a reasonable size.
pub fn read_file(name: &str) -> Result<Source, LintError> {
    let unreadable = |source| LintError::Unreadable { name: name.to_owned(), source };
    let mut bytes = Vec::new();
    if name == "-" {
        io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        let path = Path::new(name);
        let metadata = path.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(LintError::Directory { name: name.to_owned() });
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(LintError::TooLarge { name: name.to_owned() });
        }
        if !metadata.is_file() && !is_pipe(&metadata) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a pipe");
            return Err(unreadable(source));
        }
        let file = File::open(path).map_err(unreadable)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    from_bytes(if name == "-" { "stdin" } else { name }, bytes)
}

fn is_pipe(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    metadata.file_type().is_fifo()
}

/// A source of bytes that were read from somewhere.
///
/// # Errors
/// What they are instead of text of a reasonable size.
pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Source, LintError> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(LintError::TooLarge { name: name.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|error| LintError::NotText {
        name: name.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    match text.find('\0') {
        Some(offset) => Err(LintError::NotText { name: name.to_owned(), offset }),
        None => Ok(Source { name: name.to_owned(), text }),
    }
}

/// Looks at files as one deployment.
#[must_use]
pub fn lint(sources: &[Source], forced: Option<Kind>) -> Report {
    let mut report = Report::default();
    let mut extractor = Extractor::default();
    for source in sources {
        let Some(kind) = forced.or_else(|| recognise(&source.text)) else {
            report.errors.push(LintError::Unrecognised { name: source.name.clone() });
            continue;
        };
        report.files.push((source.name.clone(), kind));
        if let Err(error) = extractor.add(&source.name, &Text::of_file(&source.text), kind) {
            let at = Location {
                file: source.name.clone(),
                line: u64::from(error.at.line),
                column: Some(u64::from(error.at.column)),
            };
            let hint = if source.text.contains("{{") {
                "; a template has to be rendered first, as with `helm template`"
            } else {
                ""
            };
            report.errors.push(LintError::Malformed { at, what: error.what, hint });
        }
    }
    let mut look = Look { facts: &extractor.facts, broken: &extractor.broken, findings: Vec::new() };
    for rule in rules::ALL {
        rule(&mut look);
    }
    let order = |finding: &Finding| {
        let file = finding.location.as_ref().map(|at| at.file.as_str()).unwrap_or_default();
        let file = report.files.iter().position(|(name, _)| name == file);
        (file, finding.location.as_ref().map(|at| (at.line, at.column)))
    };
    look.findings.sort_by_key(order);
    report.findings = bounded(look.findings);
    report
}

/// At most so many findings of a rule: a generated file repeats one mistake ten thousand times.
fn bounded(findings: Vec<Finding>) -> Vec<Finding> {
    let mut kept: Vec<Finding> = Vec::new();
    let mut counts: std::collections::HashMap<&'static str, (usize, usize)> =
        std::collections::HashMap::new();
    for finding in findings {
        let (count, last) = counts.entry(finding.rule.id).or_default();
        if *count < FINDINGS_OF_A_RULE_MAX {
            *count += 1;
            *last = kept.len();
            kept.push(finding);
        } else if let Some(last) = kept.get_mut(*last) {
            last.count += 1;
        }
    }
    kept
}
