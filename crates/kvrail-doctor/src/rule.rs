//! What is known about one way in which such systems fail: data, from which help, documentation and output are made.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad it is if a rule's condition holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; nothing fails by it alone. It does not change the exit code.
    Note,
    /// Slower than it should be, or one step from failing.
    Warning,
    /// It fails, hangs or corrupts.
    Error,
}

/// How sure a finding's cause is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// One of several causes that fit.
    Possible,
    /// The cause that fits best; another one is known that would look the same.
    Likely,
    /// Nothing else explains what was seen.
    Certain,
}

/// What a rule looks at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// This host, or a bundle of another: `kvrail doctor`.
    Host,
    /// Files that deploy or configure: `kvrail doctor lint`.
    Lint,
    /// Logs of the engines and libraries: `kvrail doctor log`.
    Log,
    /// What two hosts see of each other: `kvrail doctor probe`.
    Probe,
}

/// Where something is written down that a rule builds on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Reference {
    /// What it is, as in `libfabric: fi_efa(7)`.
    pub title: &'static str,
    /// Where it is.
    pub url: &'static str,
}

/// One way in which such systems fail.
#[derive(PartialEq, Eq, Debug, Serialize)]
pub struct Rule {
    /// Stable name: lower case, words joined by `-`, as in `plugin-libfabric-too-old`.
    pub id: &'static str,
    /// What is wrong when it holds, in one line without a full stop: `the LIBFABRIC plugin needs a newer libfabric`.
    pub title: &'static str,
    /// How bad that is, where a finding does not say otherwise.
    pub severity: Severity,
    /// What it looks at.
    pub kind: Kind,
    /// What it comes from, in one or two sentences.
    pub cause: &'static str,
    /// What to do, in one or two sentences; findings give the exact commands.
    pub remedy: &'static str,
    /// The page of help: what a user sees first, why that is so, how it was found out, what mends it and what does not. Plain text,
    /// paragraphs parted by empty lines.
    pub story: &'static str,
    /// What it builds on.
    pub references: &'static [Reference],
    /// Rules whose findings explain this one's: where one of them is found, this one is told as its consequence.
    pub explained_by: &'static [&'static str],
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        })
    }
}

impl Kind {
    /// Its word: `host`, `lint`, `log`, `probe`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Lint => "lint",
            Self::Log => "log",
            Self::Probe => "probe",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
