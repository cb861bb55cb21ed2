//! What a check says: that all is well, what is wrong, that it does not apply, or that it could not tell.

use serde::Serialize;

use crate::rule::{Confidence, Rule, Severity};

/// What a check says.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It looked, and all is well: what it saw, in one line.
    Healthy(String),
    /// What is wrong. Never empty.
    Findings(Vec<Finding>),
    /// There is nothing here that it could be about (no GPU, no NIXL): why, in one line.
    NotApplicable(String),
    /// It could not look: why, and what would let it, in one line.
    Unknown(String),
}

impl Outcome {
    /// Findings if there are any, else that all is well.
    #[must_use]
    pub fn of(findings: Vec<Finding>, healthy: impl FnOnce() -> String) -> Self {
        if findings.is_empty() { Self::Healthy(healthy()) } else { Self::Findings(findings) }
    }
}

/// One thing that is wrong, here.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Finding {
    /// The rule whose condition holds.
    #[serde(serialize_with = "id_only")]
    pub rule: &'static Rule,
    /// How bad it is here.
    pub severity: Severity,
    /// How sure the cause is.
    pub confidence: Confidence,
    /// What is wrong here, in one line without a full stop, with the names and numbers of this host.
    pub title: String,
    /// What it comes from here, in one or two sentences.
    pub cause: String,
    /// What was seen, most telling first.
    pub evidence: Vec<Evidence>,
    /// What to do, in order.
    pub fix: Vec<Step>,
    /// Where in a file, for what is found in files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// How often, for what repeats (a line of a log).
    pub count: u64,
}

/// Something that was seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Evidence {
    /// Where: a path, a command, `$VARIABLE`, an address.
    pub source: String,
    /// What was there, short enough for one line.
    pub seen: String,
}

/// One step of a remedy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    /// What it does, in one line.
    pub text: String,
    /// What to type, exactly, where it can be typed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Location {
    /// As it was named on the command line.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
}

impl Finding {
    /// A finding of a rule, with the rule's severity and cause, and certain until it is said otherwise.
    #[must_use]
    pub fn new(rule: &'static Rule, title: impl Into<String>) -> Self {
        Self {
            rule,
            severity: rule.severity,
            confidence: Confidence::Certain,
            title: title.into(),
            cause: rule.cause.into(),
            evidence: Vec::new(),
            fix: Vec::new(),
            location: None,
            count: 1,
        }
    }

    /// What it comes from here, where that can be said more exactly than the rule does.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = cause.into();
        self
    }

    /// Something that was seen.
    #[must_use]
    pub fn evidence(mut self, source: impl Into<String>, seen: impl Into<String>) -> Self {
        self.evidence.push(Evidence { source: source.into(), seen: seen.into() });
        self
    }

    /// Something to do that cannot be typed.
    #[must_use]
    pub fn advice(mut self, text: impl Into<String>) -> Self {
        self.fix.push(Step { text: text.into(), command: None });
        self
    }

    /// Something to type.
    #[must_use]
    pub fn fix(mut self, text: impl Into<String>, command: impl Into<String>) -> Self {
        self.fix.push(Step { text: text.into(), command: Some(command.into()) });
        self
    }

    /// How bad it is here, where that differs from the rule.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// How sure the cause is.
    #[must_use]
    pub fn confidence(mut self, confidence: Confidence) -> Self {
        self.confidence = confidence;
        self
    }

    /// Where in a file.
    #[must_use]
    pub fn at(mut self, location: Location) -> Self {
        self.location = Some(location);
        self
    }
}

fn id_only<S: serde::Serializer>(rule: &&'static Rule, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(rule.id)
}
