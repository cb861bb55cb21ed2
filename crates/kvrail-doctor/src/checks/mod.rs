//! The checks of a host, by what they look at. Each module has its rules as data and a function for each.

pub mod cloud;
pub mod container;
pub mod device;
pub mod etcd;
pub mod gpu;
pub mod install;
pub mod limits;
pub mod logging;
pub mod transport;

use crate::examine::Check;

/// All areas, in the order in which they are told.
pub(crate) const ALL: &[&[Check]] = &[
    install::CHECKS,
    transport::CHECKS,
    device::CHECKS,
    gpu::CHECKS,
    container::CHECKS,
    limits::CHECKS,
    logging::CHECKS,
    etcd::CHECKS,
    cloud::CHECKS,
];
