//! Files that deploy and configure such systems (Kubernetes, vLLM, Ray, Slurm), read for the mistakes that cost others weeks.

use crate::rule::Rule;

/// What is looked for.
pub const RULES: &[&Rule] = &[];
