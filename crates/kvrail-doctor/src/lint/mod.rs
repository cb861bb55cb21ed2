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
use serde_json::json;

use self::extract::{Extractor, recognise};
use self::read::Text;
use self::rules::Look;
use crate::finding::Finding;
use crate::render::Report;
use crate::rule::{self, Rule};

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
#[error("{place}: {problem}")]
pub struct LintError {
    /// As it was named, with line and column where there are some.
    pub place: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a file that was not looked at, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is a directory.
    #[error("it is a directory: name the files in it, as in `kvrail doctor lint {0}/*.yaml`")]
    Directory(String),
    /// It is too large to be what it should be.
    #[error("it has more than {} MiB: lint reads manifests, scripts and settings (for logs: `kvrail doctor log`)", FILE_BYTES_MAX >> 20)]
    TooLarge,
    /// It is not text.
    #[error("byte {offset} is not UTF-8: this is no text file")]
    NotText {
        /// From 0.
        offset: usize,
    },
    /// It is empty, or like none of the kinds.
    #[error(
        "it looks like none of kubernetes, ray, slurm, shell, dockerfile, env, python and settings: say which with --kind"
    )]
    Unrecognised,
    /// It is not what its kind is written in.
    #[error("{what}{hint}")]
    Malformed {
        /// What is wrong there.
        what: String,
        /// What that often means; empty, or begins with a separator.
        hint: &'static str,
    },
}

impl Problem {
    fn of(self, name: &str) -> LintError {
        LintError { place: name.to_owned(), problem: self }
    }
}

/// What was looked at and found.
#[derive(Debug, Default)]
pub struct Linted {
    /// The files, each with what it was taken for.
    pub files: Vec<(String, Kind)>,
    /// What is wrong, in the order of the files and of the places in them.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub errors: Vec<LintError>,
}

impl Linted {
    /// Ready to be told. Its member `data` has what each file was taken for.
    #[must_use]
    pub fn report(&self) -> Report {
        let count = self.files.len();
        let subject = format!("{count} file{}", if count == 1 { "" } else { "s" });
        let files = self.files.iter().map(|(name, kind)| json!({ "file": name, "kind": kind.name() }));
        let files: Vec<_> = files.collect();
        let report = Report::of_findings(rule::Kind::Lint, subject, RULES, self.findings.iter().cloned())
            .data(json!({ "files": files }));
        self.errors
            .iter()
            .fold(report, |report, error| report.unread(&error.place, error.problem.to_string()))
    }
}

/// Reads a file; `-` is the standard input.
///
/// # Errors
/// What it is instead of a text file of a reasonable size.
pub fn read_file(name: &str) -> Result<Source, LintError> {
    let unreadable = |source| Problem::Unreadable(source).of(name);
    let mut bytes = Vec::new();
    if name == "-" {
        io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        let path = Path::new(name);
        let metadata = path.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(Problem::Directory(name.to_owned()).of(name));
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(Problem::TooLarge.of(name));
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
        return Err(Problem::TooLarge.of(name));
    }
    let not_text = |offset| Problem::NotText { offset }.of(name);
    let text = String::from_utf8(bytes).map_err(|error| not_text(error.utf8_error().valid_up_to()))?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    match text.find('\0') {
        Some(offset) => Err(not_text(offset)),
        None => Ok(Source { name: name.to_owned(), text }),
    }
}

/// Looks at files as one deployment.
#[must_use]
pub fn lint(sources: &[Source], forced: Option<Kind>) -> Linted {
    let mut linted = Linted::default();
    let mut extractor = Extractor::default();
    for source in sources {
        let Some(kind) = forced.or_else(|| recognise(&source.text)) else {
            linted.errors.push(Problem::Unrecognised.of(&source.name));
            continue;
        };
        linted.files.push((source.name.clone(), kind));
        if let Err(error) = extractor.add(&source.name, &Text::of_file(&source.text), kind) {
            let place = format!("{}:{}:{}", source.name, error.at.line, error.at.column);
            let hint = if source.text.contains("{{") {
                "; a template has to be rendered first, as with `helm template`"
            } else {
                ""
            };
            linted.errors.push(Problem::Malformed { what: error.what, hint }.of(&place));
        }
    }
    let mut look = Look { facts: &extractor.facts, broken: &extractor.broken, findings: Vec::new() };
    for rule in rules::ALL {
        rule(&mut look);
    }
    let order = |finding: &Finding| {
        let file = finding.location.as_ref().map(|at| at.file.as_str()).unwrap_or_default();
        let file = linted.files.iter().position(|(name, _)| name == file);
        (file, finding.location.as_ref().map(|at| (at.line, at.column)))
    };
    look.findings.sort_by_key(order);
    linted.findings = bounded(look.findings);
    linted
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
