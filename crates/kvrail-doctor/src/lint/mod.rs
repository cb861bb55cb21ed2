//! Files that deploy and configure such systems (Kubernetes, vLLM, Ray, Slurm), read for the mistakes that cost others weeks.

pub mod extract;
pub mod facts;
pub mod read;

use crate::rule::Rule;

/// What is looked for.
pub const RULES: &[&Rule] = &[];
