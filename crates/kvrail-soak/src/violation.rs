//! What must not be, and which checker saw it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A question that is asked of every run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Checker {
    /// Every byte of a transfer that is done is at its place.
    Bytes,
    /// No byte beside it has changed.
    Surroundings,
    /// A notification comes when every byte of its transfer is visible, and not before.
    Notification,
    /// One terminal event per transfer, one notification per transfer that is done.
    ExactlyOnce,
    /// Every transfer ends within its timeout and a bound.
    Deadline,
    /// Nothing moves after a transfer's end (KR-7).
    Quiet,
    /// An error is typed, and something that happened explains it.
    Explained,
    /// When all faults are gone, everybody reaches everybody.
    Progress,
    /// The memory of a process does not grow.
    Growth,
    /// No region, transfer or debt is left.
    Leaks,
    /// Processes live until they are told to end, and end then.
    Ending,
}

impl Checker {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Surroundings => "surroundings",
            Self::Notification => "notification",
            Self::ExactlyOnce => "exactly once",
            Self::Deadline => "deadline",
            Self::Quiet => "quiet after the end",
            Self::Explained => "explained",
            Self::Progress => "progress",
            Self::Growth => "growth",
            Self::Leaks => "leaks",
            Self::Ending => "ending",
        }
    }
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Violation {
    /// Who saw it.
    pub checker: Checker,
    /// What it was.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(checker: Checker, what: impl Into<String>) -> Self {
        Self { checker, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker, self.what)
    }
}
