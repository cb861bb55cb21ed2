//! What is installed of NIXL, UCX and libfabric, and whether it can be loaded.
//!
//! First from files alone: [`inventory`] finds the installations, [`loader`] works out what the dynamic loader would do with them, and
//! [`audit`] keeps what that means for each copy of NIXL. Then by trial, in processes of their own: plugins are loaded, and a
//! Python with NIXL is let begin and end. Listed and loadable are two things, and are told as two.

mod audit;
mod inventory;
mod loader;
mod plugins;

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = plugins::CHECKS;

/// Whether a library is one of NIXL's own.
fn is_core(name: &str) -> bool {
    let plain = loader::plain_name(name);
    plain.starts_with("libnixl") || matches!(plain, "libserdes" | "libstream" | "libfile_utils" | "libobj_utils" | "libucx_utils")
}
