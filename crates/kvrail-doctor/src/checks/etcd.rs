//! etcd: reachable, healthy, and without what killed runs left behind.

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[];
