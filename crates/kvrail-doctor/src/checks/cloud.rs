//! What the instance's metadata and AWS say of its network: security groups, CIDRs, interfaces.

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[];
