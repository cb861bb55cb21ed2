//! What is installed of NIXL, UCX and libfabric, and whether it can be loaded.

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[];
