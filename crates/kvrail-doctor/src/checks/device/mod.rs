//! RDMA devices: whether they are there, up, of one driver, and visible to this process.

mod driver;
mod files;
mod missing;
mod offered;
mod port;
pub(crate) mod seen;

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[
    Check { rule: &missing::MISSING, look: missing::look },
    Check { rule: &driver::DRIVER, look: driver::look },
    Check { rule: &files::HIDDEN, look: files::hidden },
    Check { rule: &files::PERMISSION, look: files::permission },
    Check { rule: &port::DOWN, look: port::look },
    Check { rule: &offered::OFFERED, look: offered::look },
];
