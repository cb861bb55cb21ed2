//! What is installed of NIXL, UCX and libfabric, and whether it can be loaded.
//!
//! First from files alone: [`inventory`] finds the installations, [`loader`] works out what the dynamic loader would do with them, and
//! [`audit`] keeps what that means for each copy of NIXL. Then by trial, in processes of their own: plugins are loaded, and a
//! Python with NIXL is let begin and end. Listed and loadable are two things, and are told as two.

mod audit;
mod core;
mod duplicates;
mod inventory;
mod libraries;
mod loader;
mod plugins;
mod python;
mod versions;

use crate::examine::Check;

pub(crate) const CHECKS: &[Check] = &[
    Check { rule: &python::MISSING, look: python::missing },
    Check { rule: &versions::CUDA, look: versions::cuda },
    Check { rule: &plugins::TOO_OLD, look: plugins::too_old },
    Check { rule: &core::HIDDEN, look: core::hidden },
    Check { rule: &plugins::MISSING, look: plugins::missing },
    Check { rule: &plugins::NOT_LOADABLE, look: plugins::not_loadable },
    Check { rule: &duplicates::BUNDLED, look: duplicates::bundled },
    Check { rule: &duplicates::DUPLICATES, look: duplicates::duplicates },
    Check { rule: &versions::PROVIDERS, look: versions::providers },
    Check { rule: &versions::DRIVER, look: versions::driver },
    Check { rule: &python::UNUSABLE, look: python::unusable },
    Check { rule: &python::CRASH, look: python::crash },
    Check { rule: &python::DEFAULT, look: python::default_backend },
    Check { rule: &libraries::NOT_LOADABLE, look: libraries::not_loadable },
];

/// Whether a library is one of NIXL's own.
fn is_core(name: &str) -> bool {
    let plain = loader::plain_name(name);
    plain.starts_with("libnixl")
        || matches!(plain, "libserdes" | "libstream" | "libfile_utils" | "libobj_utils" | "libucx_utils")
}

/// Adds the command of kvrail that mends it: it shows its plan first with `--dry-run`, and can undo what it did.
fn by_kvrail(finding: crate::finding::Finding, remedy: &str, root: Option<&str>) -> crate::finding::Finding {
    match root {
        Some(root) => finding.fix(
            "mend it (--dry-run shows the plan, --undo takes it back)",
            format!("kvrail fix {remedy} --python {root}"),
        ),
        None => finding,
    }
}
