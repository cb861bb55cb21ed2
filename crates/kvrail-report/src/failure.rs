//! What ends a run early, with the advice and the exit code that belong to it.
//!
//! Exit codes are a contract with scripts: 0 every figure stands, 1 a check said no, 2 could not tell.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The class of a failure: decides the exit code, and is named in the JSON report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The command line asks for something contradictory or impossible.
    Usage,
    /// This host lacks what the run needs: memory, a port, a permission, a file.
    Environment,
    /// The other side is absent, of another version, gone or silent.
    Peer,
    /// Bytes arrived wrong, or a promised notification did not come.
    Check,
    /// An engine cannot be loaded, refuses the work, died or went silent; the others went on.
    Engine,
    /// Ctrl-C or SIGTERM, on either side.
    Interrupted,
}

impl Kind {
    /// The exit code of the process.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Check => 1,
            Self::Usage | Self::Environment | Self::Peer | Self::Engine | Self::Interrupted => 2,
        }
    }
}

/// One failure: what, where, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Its class.
    pub kind: Kind,
    /// What failed and where, one sentence without a full stop.
    pub what: String,
    /// What to do, one line each.
    pub hints: Vec<String>,
}

impl Failure {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hints: Vec::new() }
    }

    /// The command line contradicts itself, or asks for what cannot be.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    /// This host lacks something.
    pub fn environment(what: impl Into<String>) -> Self {
        Self::new(Kind::Environment, what)
    }

    /// The other side is absent, gone or silent.
    pub fn peer(what: impl Into<String>) -> Self {
        Self::new(Kind::Peer, what)
    }

    /// A check said no.
    pub fn check(what: impl Into<String>) -> Self {
        Self::new(Kind::Check, what)
    }

    /// An engine failed.
    pub fn engine(what: impl Into<String>) -> Self {
        Self::new(Kind::Engine, what)
    }

    /// Someone ended the run.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted; what was measured until then is printed")
    }

    /// Adds a line of advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Takes secrets out of it: an error may quote what it was given.
    pub(crate) fn redact(&mut self) {
        let texts = std::iter::once(&mut self.what).chain(&mut self.hints);
        texts.for_each(|text| *text = crate::redact::text(text));
    }

    /// The same failure, told from the other end of the control link.
    #[must_use]
    pub fn told_by(mut self, peer: &str) -> Self {
        if self.kind == Kind::Interrupted {
            self.what = format!("interrupted at the {peer}; what was measured until then is printed");
        } else {
            self.what = format!("the {peer} says: {}", self.what);
        }
        self
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.hints.is_empty() {
            f.write_str("\n")?;
        }
        for hint in &self.hints {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_prints_its_advice_below_itself() {
        let failure = Failure::environment("the port is taken").hint("choose another");
        assert_eq!(failure.to_string(), "error: the port is taken\n\nhint: choose another");
        assert_eq!(Failure::check("x").to_string(), "error: x");
    }

    #[test]
    fn only_a_failed_check_says_no() {
        assert_eq!(Kind::Check.exit_code(), 1);
        for kind in [Kind::Usage, Kind::Environment, Kind::Peer, Kind::Engine, Kind::Interrupted] {
            assert_eq!(kind.exit_code(), 2);
        }
    }
}
