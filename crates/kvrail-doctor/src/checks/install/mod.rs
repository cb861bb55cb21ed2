//! What is installed of NIXL, UCX and libfabric, and whether it can be loaded.
//!
//! First from files alone: `installed` finds the installations and works out what the dynamic loader would do with
//! them, and `audit` keeps what that means for each copy of NIXL. Then by trial, in processes of their own: plugins are loaded, and a
//! Python with NIXL is let begin and end. Listed and loadable are two things, and are told as two.

pub(crate) mod audit;
mod core;
mod duplicates;
mod libraries;
mod plugins;
pub(crate) mod python;
mod versions;

use crate::examine::Check;
use crate::finding::Finding;
use crate::fix::{self, Here, Remedy, Request, Verdict};
use crate::host::Host;
use crate::installed::inventory::{Environment, Installations, Nixl};
use crate::installed::loader::plain_name;

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
    let plain = plain_name(name);
    plain.starts_with("libnixl")
        || matches!(plain, "libserdes" | "libstream" | "libfile_utils" | "libobj_utils" | "libucx_utils")
}

/// Adds the command of kvrail that mends it: it shows its plan first with `--dry-run`, and can undo what it did.
fn by_kvrail(
    finding: Finding,
    remedy: &str,
    efa: Option<&str>,
    environment: Option<&Environment>,
) -> Finding {
    let mut command = format!("kvrail fix {remedy}");
    for (option, value) in [("--efa", efa), ("--python", environment.map(|at| at.root.as_str()))] {
        if let Some(value) = value {
            command = format!("{command} {option} {}", quoted(value));
        }
    }
    finding.fix("mend it (--dry-run shows the plan, --undo takes it back)", command)
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// What `kvrail fix` would change in a copy of NIXL, asked for by this name.
fn remedied(host: &Host, all: &Installations, nixl: &Nixl, remedy: Remedy, efa: Option<&str>) -> Verdict {
    let Some(environment) = nixl.home(all) else {
        return Verdict::NotHere("it is in no Python environment".into());
    };
    let (here, request) = (Here::new(host, efa), Request { named: true, ..Request::default() });
    match remedy {
        Remedy::BundledLibraries => fix::bundled::look(&here, nixl, &request),
        _ => fix::missing::look(&here, environment, nixl, remedy, &request),
    }
}
