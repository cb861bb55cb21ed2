//! Which variables of the environment belong to a run's fingerprint.

use std::collections::BTreeMap;

use crate::redact;

/// Beginnings of names that libraries of this field read.
const PREFIXES: [&str; 13] = [
    "FI_", "UCX_", "NIXL_", "KVRAIL_", "RDMAV_", "IBV_", "NCCL_", "OMPI_", "MLX5_", "EFA_", "OMP_",
    "MALLOC_", "CUDA_",
];
/// Single names.
const NAMES: [&str; 12] = [
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NVIDIA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_CPU_BIND",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "KUBERNETES_SERVICE_HOST",
    "GLIBC_TUNABLES",
];
/// Characters of a value that are kept.
const VALUE_CHARS_MAX: usize = 2000;
/// Variables that are kept.
const VARIABLES_MAX: usize = 512;

/// Those that move figures, redacted.
pub(super) fn relevant(variables: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let wanted = |name: &str| NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let mut kept: BTreeMap<String, String> = variables
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, value)| {
            let value = redact::value(&name, &value);
            (name, value.chars().take(VALUE_CHARS_MAX).collect())
        })
        .collect();
    while kept.len() > VARIABLES_MAX {
        kept.pop_last();
    }
    kept
}
