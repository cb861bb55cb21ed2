//! What two hosts see of each other: small verified transfers over every rail, and what their devices counted meanwhile.

use crate::rule::Rule;

/// What is looked for.
pub const RULES: &[&Rule] = &[];
