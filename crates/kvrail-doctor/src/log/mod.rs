//! Logs of the engines and libraries, read for the lines that name a known failure.

use crate::rule::Rule;

/// What is looked for.
pub const RULES: &[&Rule] = &[];
