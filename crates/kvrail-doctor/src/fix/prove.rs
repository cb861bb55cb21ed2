//! Whether an environment's NIXL works, before a change and after it: seen with the eyes of the checks that found what is wrong.
//!
//! Not everything can be tried everywhere (a plugin needs the driver of a GPU), so that what counts is whether anything that worked has
//! stopped working, or that what was asked for does not.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checks::install::audit::{Loadable, audit};
use crate::checks::install::python::trial_of;
use crate::host::{Host, Live, Reached, Scope};
use crate::installed::inventory::{Environment, Nixl};

/// Longest wait for one trial: an interpreter imports over a network file system that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// How things went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trial {
    /// By what was tried.
    by_what: BTreeMap<String, Result<(), String>>,
    /// The module that Python took, and what an agent gets that names no backends.
    default: Option<(String, Vec<String>)>,
}

impl Trial {
    /// Tries the copies of NIXL of an environment.
    #[must_use]
    pub fn of(live: &Live, scope: &Scope, environment: &Environment) -> Self {
        // A host remembers its answers, and a trial is for what has changed.
        let host = Host::live(live.clone().with_patience(PATIENCE), scope.clone());
        let audit = audit(&host);
        let all = &audit.installed;
        let mut trial = Self::default();
        let Some(at) = all.environments.iter().position(|known| known.root == environment.root) else {
            return trial;
        };
        for (nixl, of) in all.nixl.iter().zip(&audit.nixl).filter(|(nixl, _)| nixl.environment == Some(at)) {
            for plugin in of.plugins.iter().filter(|plugin| plugin.is_network()) {
                let how = match plugin.loadable(&host) {
                    Loadable::Yes => Ok(()),
                    Loadable::Lacks(_, Some(said)) | Loadable::Refused(said) => Err(said),
                    Loadable::Lacks(obstacles, None) => {
                        Err(obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
                    }
                    Loadable::Crashed(signal) => Err(by_signal(signal)),
                    Loadable::Late => Err(late()),
                };
                trial.by_what.insert(format!("the plugin {} of {}", plugin.backend, nixl.release()), how);
            }
            let twice: Vec<&str> = of.duplicates.iter().map(|duplicate| duplicate.name.as_str()).collect();
            if !twice.is_empty() {
                let how = Err(format!("a process has two copies of {}", twice.join(", ")));
                trial.by_what.insert(format!("the libraries for the network of {}", nixl.release()), how);
            }
        }
        trial.python(&host, at);
        trial
    }

    fn python(&mut self, host: &Host, at: usize) {
        let Some((nixl, trial)) = trial_of(host, at) else { return };
        let module = nixl.module.clone();
        let trial = match trial {
            Ok(trial) => trial,
            Err(why) => {
                self.by_what.insert(format!("import of {module}"), Err(why.to_string()));
                return;
            }
        };
        let ended = match (trial.signal, &trial.error) {
            (Some(signal), _) => Err(by_signal(signal)),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(()),
        };
        for (reached, what) in [
            (Reached::Imported, format!("import of {module}")),
            (Reached::Made, format!("an agent of {module}")),
        ] {
            let how = if trial.reached >= reached { Ok(()) } else { ended.clone() };
            self.by_what.insert(what, how);
        }
        if trial.plugins.iter().any(|plugin| plugin == "UCX") {
            let how = if trial.reached >= Reached::Ucx { Ok(()) } else { ended.clone() };
            self.by_what.insert(format!("an agent of {module} with UCX"), how);
        }
        self.by_what.insert(format!("the end of a Python with {module}"), ended);
        if trial.reached >= Reached::Imported {
            self.default = Some((module, trial.backends));
        }
    }

    /// What worked before and does not any more.
    ///
    /// # Errors
    /// The first such thing.
    pub fn is_no_worse_than(&self, before: &Self) -> Result<(), String> {
        for (what, how) in &self.by_what {
            match (how, before.by_what.get(what)) {
                (Err(now), Some(Ok(()))) => {
                    return Err(format!("{what} worked before, and now: {now}"));
                }
                // A failure of another kind is a new one: a library that was missing must not have become one that crashes.
                (Err(now), Some(Err(then))) if is_crash(now) && !is_crash(then) => {
                    return Err(format!("{what}: {now} (before: {then})"));
                }
                _ => {}
            }
        }
        let worked = before.by_what.iter().filter(|(_, how)| how.is_ok());
        match worked.map(|(what, _)| what).find(|what| !self.by_what.contains_key(*what)) {
            Some(what) => Err(format!("{what} worked before, and could not be tried now")),
            None => Ok(()),
        }
    }

    /// What failed, each with why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_what.iter().filter_map(|(what, how)| Some((what.as_str(), how.as_ref().err()?.as_str())))
    }

    /// What an agent gets that names no backends, where Python takes this copy.
    pub(super) fn default_of(&self, nixl: &Nixl) -> Option<&[String]> {
        let (module, default) = self.default.as_ref()?;
        (*module == nixl.module).then_some(default)
    }
}

const CRASH: &str = "killed by signal ";

fn by_signal(signal: i32) -> String {
    format!("{CRASH}{signal}")
}

fn is_crash(how: &str) -> bool {
    how.starts_with(CRASH)
}

fn late() -> String {
    format!("no end within {} s", PATIENCE.as_secs())
}
