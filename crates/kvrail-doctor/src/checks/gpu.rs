//! GPUs: whether they answer, and whether a NIC can reach their memory.

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[];
