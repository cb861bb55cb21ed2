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

/// Checks that look at the same thing, under the word that stands for them in a summary.
pub(crate) struct Area {
    pub(crate) name: &'static str,
    pub(crate) checks: &'static [Check],
}

/// All areas, in the order in which they are told.
pub(crate) const ALL: &[Area] = &[
    Area { name: "install", checks: install::CHECKS },
    Area { name: "transport", checks: transport::CHECKS },
    Area { name: "device", checks: device::CHECKS },
    Area { name: "gpu", checks: gpu::CHECKS },
    Area { name: "container", checks: container::CHECKS },
    Area { name: "limits", checks: limits::CHECKS },
    Area { name: "logging", checks: logging::CHECKS },
    Area { name: "etcd", checks: etcd::CHECKS },
    Area { name: "cloud", checks: cloud::CHECKS },
];
