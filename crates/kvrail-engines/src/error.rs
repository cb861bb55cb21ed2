//! What an engine says when something fails.

use std::fmt;

/// Whose fault it is: decides what a program does about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// What was asked for contradicts itself, or cannot be.
    Usage,
    /// This host lacks something: a library, memory, a permission, a device.
    Environment,
    /// The other side is absent, gone, silent, or sent what is no metadata.
    Peer,
    /// The engine itself failed on what it should be able to do; its own words are in the text.
    Engine,
}

/// What failed, where, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineError {
    /// Whose fault it is.
    pub kind: Kind,
    /// What failed and where, one sentence without a full stop.
    pub what: String,
    /// What to do, one line each.
    pub hints: Vec<String>,
}

impl EngineError {
    /// Without advice.
    #[must_use]
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hints: Vec::new() }
    }

    /// Adds a line of advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for EngineError {}
