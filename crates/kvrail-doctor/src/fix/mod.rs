//! Mends what can be mended in a Python environment or on a host: links, a default, a loader's configuration.
//!
//! Facts are asked of a [`Host`], remedies turn them into a [`Plan`] of [`Change`]s without touching anything, and [`carry_out`]
//! makes these: all of them, proven, or none. What is replaced is kept, and [`undo`] puts it back.

mod backend;
pub(crate) mod bundled;
mod change;
mod error;
mod folder;
mod here;
mod install;
mod journal;
pub(crate) mod missing;
mod place;
pub mod preamble;
mod prove;
mod system;
mod transaction;
#[cfg(test)]
mod transaction_tests;
mod undo;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::{Host, Live};
use crate::installed::inventory::{By, installations};
pub use crate::installed::inventory::{Environment, Nixl, Plugin};
pub use change::{Change, State, To};
pub use error::FixError;
pub(crate) use here::Here;
pub use install::{Installation, install, look as look_for_nixl};
pub use journal::{Entry, Journal, new_run};
pub use place::{LOCK_PATIENCE, Place, STORE, SYSTEM_STORE};
pub use prove::Trial;
pub use transaction::{Applied, Hook, apply, preview};
pub use undo::{Run, recover, runs, undo};

/// What can be mended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// The libraries that a wheel of NIXL brings for the network give way to those of the system.
    BundledLibraries,
    /// Plugins find the libraries that the wheel has beside them.
    LoaderPath,
    /// Plugins find a libfabric that is new enough.
    Libfabric,
    /// NIXL uses LIBFABRIC where nobody says otherwise.
    DefaultBackend,
}

impl Remedy {
    /// All, in the order in which they are applied.
    pub const ALL: [Self; 4] =
        [Self::BundledLibraries, Self::LoaderPath, Self::Libfabric, Self::DefaultBackend];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BundledLibraries => "bundled-libraries",
            Self::LoaderPath => "loader-path",
            Self::Libfabric => "libfabric",
            Self::DefaultBackend => "default-backend",
        }
    }
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What is asked for, besides what the [`Host`]'s scope says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Request {
    /// Where the network's libraries are, in place of `/opt/amazon/efa`.
    pub efa: Option<String>,
    /// Whether the user named the remedies: they are applied also where nothing asks for them.
    pub named: bool,
    /// Whether what would make every agent fail is done all the same.
    pub force: bool,
}

/// What a remedy would do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// This.
    Apply {
        /// The changes, with absolute paths.
        changes: Vec<Change>,
        /// What it cannot mend, and why.
        left: Vec<String>,
    },
    /// Nothing: all is well.
    Well(String),
    /// Nothing: there is nothing here that it could be about.
    NotHere(String),
    /// Nothing: it would not help, or do harm.
    Refused(String),
}

/// What a remedy would do to a copy of NIXL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The remedy.
    pub remedy: Remedy,
    /// The copy.
    pub nixl: Nixl,
    /// What it would do.
    pub verdict: Verdict,
}

/// What would be done to an environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The environment.
    pub environment: Environment,
    /// Where its changes are made and kept.
    pub place: Place,
    /// By copy of NIXL and remedy.
    pub proposals: Vec<Proposal>,
}

/// The environments that are meant: those that the user named, or else the active one, or else that of the first `python3` of `PATH`.
#[must_use]
pub fn environments(host: &Host) -> Vec<Environment> {
    let all = installations(host);
    let Some(by) = all.environments.iter().map(|environment| environment.by).min() else { return Vec::new() };
    let count = if by == By::Name { usize::MAX } else { 1 };
    all.environments.iter().filter(|environment| environment.by == by).take(count).cloned().collect()
}

/// What would be done to the environments of a host: nothing is touched.
///
/// # Errors
/// When an environment cannot be reached.
pub fn plan(host: &Host, remedies: &[Remedy], request: &Request) -> Result<Vec<Plan>, FixError> {
    let here = Here::new(host, request.efa.as_deref());
    let all = installations(host);
    let mut plans = Vec::new();
    for environment in environments(host) {
        let place = place_of(&environment)?;
        let mut proposals = Vec::new();
        let of_environment = |nixl: &&Nixl| nixl.home(&all).is_some_and(|home| home.root == environment.root);
        for nixl in all.nixl.iter().filter(of_environment) {
            // Libraries that a remedy before provides.
            let mut mended: Vec<String> = Vec::new();
            for remedy in Remedy::ALL.into_iter().filter(|remedy| remedies.contains(remedy)) {
                let verdict = match remedy {
                    Remedy::BundledLibraries => bundled::look(&here, nixl, request),
                    Remedy::LoaderPath | Remedy::Libfabric => {
                        missing::look(&here, &environment, nixl, remedy, request)
                    }
                    Remedy::DefaultBackend => backend::look(&here, nixl, request, &mended),
                };
                if let Verdict::Apply { changes, .. } = &verdict {
                    let names = changes.iter().filter_map(|change| change.path.rsplit('/').next());
                    mended.extend(names.map(str::to_owned));
                }
                proposals.push(Proposal { remedy, nixl: nixl.clone(), verdict });
            }
        }
        plans.push(Plan { environment, place, proposals });
    }
    // What is in no environment is the system's.
    if remedies.contains(&Remedy::Libfabric) && host.scope().python.is_empty() {
        plans.extend(system::plan(&here, request)?);
    }
    Ok(plans)
}

/// Where the changes of an environment are made and kept: in itself, or, for the system's Python, with the system's.
///
/// # Errors
/// When it cannot be reached.
pub fn place_of(environment: &Environment) -> Result<Place, FixError> {
    if environment.own {
        Place::environment(Path::new(&environment.root))
    } else {
        Place::system(Path::new("/"))
    }
}

impl Plan {
    /// All its changes, below the root of its place.
    ///
    /// # Errors
    /// The change that is not below it.
    pub fn changes(&self) -> Result<Vec<Change>, FixError> {
        let mut all: Vec<Change> = Vec::new();
        for proposal in &self.proposals {
            let Verdict::Apply { changes, .. } = &proposal.verdict else { continue };
            for change in changes {
                let outside = || FixError::Outside {
                    path: change.path.as_str().into(),
                    root: self.place.root().into(),
                };
                let inside =
                    self.environment.packages.iter().any(|site| change.path.starts_with(&format!("{site}/")));
                let path = self.place.relative(&change.path).filter(|_| inside).ok_or_else(outside)?;
                if !all.iter().any(|had| had.path == path) {
                    all.push(Change { path, ..change.clone() });
                }
            }
        }
        Ok(all)
    }

    /// The remedies that change something.
    #[must_use]
    pub fn remedies(&self) -> Vec<Remedy> {
        let applies = |remedy: &Remedy| {
            self.proposals.iter().any(|p| p.remedy == *remedy && matches!(p.verdict, Verdict::Apply { .. }))
        };
        Remedy::ALL.into_iter().filter(applies).collect()
    }
}

/// Makes the changes of a plan, tries them out, and takes them back where something has stopped working.
///
/// # Errors
/// Why nothing was changed.
pub fn carry_out(
    plan: &Plan,
    live: &Live,
    host: &Host,
    run: &str,
    hook: Hook<'_>,
) -> Result<(Applied, Trial), FixError> {
    let changes = plan.changes()?;
    let remedies = plan.remedies();
    if preview(&plan.place, &changes)?.is_empty() {
        // Still takes back what an interrupted run left.
        let applied = apply(&plan.place, run, &remedies, &changes, &mut || Ok(()), hook)?;
        return Ok((applied, Trial::default()));
    }
    let trial = || Trial::of(live, host.scope(), &plan.environment);
    let before = trial();
    let mut after = Trial::default();
    let mut prove = || {
        after = trial();
        after.is_no_worse_than(&before)?;
        if remedies.contains(&Remedy::DefaultBackend) {
            for proposal in &plan.proposals {
                let changed = proposal.remedy == Remedy::DefaultBackend
                    && matches!(proposal.verdict, Verdict::Apply { .. });
                let said = after.default_of(&proposal.nixl);
                if let Some(said) = said.filter(|said| changed && *said != ["LIBFABRIC"]) {
                    return Err(format!(
                        "the default of {} is {} all the same",
                        proposal.nixl.release(),
                        said.join(", ")
                    ));
                }
            }
        }
        Ok(())
    };
    let applied = apply(&plan.place, run, &remedies, &changes, &mut prove, hook)?;
    Ok((applied, after))
}
