//! What the remedies look at: the host, its loader, and where the network's own libraries are.

use crate::host::{ElfFacts, Host, Needed};
use crate::installed::inventory::LIBFABRIC;
use crate::installed::loader::{Loader, Obstacle, is_runtime};

/// Where the EFA installer puts its software.
pub(super) const EFA: &str = "/opt/amazon/efa";

/// A host as remedies see it.
#[derive(Debug)]
pub(crate) struct Here<'a> {
    pub(super) host: &'a Host,
    pub(super) loader: Loader<'a>,
    /// Where the network's own libraries are (`/opt/amazon/efa/lib`).
    pub(super) efa: Option<String>,
}

impl<'a> Here<'a> {
    /// The network's libraries are below a prefix of the user's, or where the EFA installer puts them.
    pub(crate) fn new(host: &'a Host, efa: Option<&str>) -> Self {
        let prefix = efa.unwrap_or(EFA).trim_end_matches('/');
        let directories = [format!("{prefix}/lib"), format!("{prefix}/lib64"), prefix.to_owned()];
        let has = |directory: &String| host.elf(&format!("{directory}/{LIBFABRIC}")).is_ok();
        Self { host, loader: Loader::new(host), efa: directories.into_iter().find(has) }
    }

    /// The library of a name that a program gets which says nothing else.
    pub(super) fn of_system(&self, name: &str, machine: u16) -> Option<String> {
        self.loader.configured(name, machine)
    }

    /// The network's library of a name, before any other.
    pub(super) fn of_network(&self, name: &str, machine: u16) -> Option<String> {
        let own = self.efa.as_ref().map(|directory| format!("{directory}/{name}"));
        let fits = |path: &String| self.host.elf(path).is_ok_and(|facts| facts.machine == machine);
        own.filter(fits).or_else(|| self.of_system(name, machine))
    }

    /// The symbol versions that are needed of a library and that the one at a path lacks.
    pub(super) fn lacks(&self, path: &str, needed: &Needed) -> Vec<String> {
        let has = self.host.elf(path).map(|facts: ElfFacts| facts.versions).unwrap_or_default();
        needed.versions.difference(&has).cloned().collect()
    }

    /// Why the library at a path cannot be loaded, where its tables say so.
    pub(super) fn obstacle(&self, path: &str) -> Option<String> {
        let obstacles = self.loader.process().load(path);
        obstacles.iter().find(|obstacle| !is_of_runtime(obstacle)).map(told)
    }
}

/// Whether it is only that nothing is known of the C library, as in a bundle.
pub(super) fn is_of_runtime(obstacle: &Obstacle) -> bool {
    matches!(obstacle, Obstacle::Missing { name, .. } if is_runtime(name))
}

/// What is missing, as a sentence without a full stop.
pub(super) fn told(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Missing { name, by } => format!("{by} needs {name}, which the loader does not find"),
        Obstacle::Version { version, found, by, .. } => format!("{by} needs {version} of {found}"),
        Obstacle::Unreadable { path, why } => format!("{path}: {why}"),
    }
}
