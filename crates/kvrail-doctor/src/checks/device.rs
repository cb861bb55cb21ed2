//! RDMA devices: whether they are there, up, of one driver, and visible to this process.

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[];
