//! What a container has of its host: devices, libraries, capabilities, shared memory.

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[];
