//! What each copy of NIXL would be as a process: what its module and each of its plugins lack, which files they get, and which
//! libraries are there twice. Worked out once, for all checks.

use std::sync::Arc;

use crate::checks::device::seen::has_efa;
use crate::host::{ElfFacts, Host, Lack, Loaded};
use crate::installed::inventory::{Installations, installations};
use crate::installed::loader::{Loader, Obstacle, Process, base, directory, plain_name};

/// Plugins that move data between hosts; the others read and write storage.
pub(crate) const NETWORK: [&str; 2] = ["LIBFABRIC", "UCX"];
/// Libraries that must not be in a process twice: each keeps state of its own about the same devices.
pub(crate) const SINGLE: [&str; 5] = ["libibverbs", "libnl-3", "libnl-route-3", "libefa", "libfabric"];
/// Most modules of a UCX that are looked at.
const MODULES_MAX: usize = 64;

/// What was worked out.
#[derive(Debug)]
pub(crate) struct Audit {
    /// What is installed.
    pub(crate) installed: Arc<Installations>,
    /// For each copy of NIXL, in the order of [`Installations::nixl`].
    pub(crate) nixl: Vec<NixlAudit>,
    /// Whether an EFA device is there.
    pub(crate) has_efa: bool,
}

/// What a copy of NIXL would be as a process.
#[derive(Debug)]
pub(crate) struct NixlAudit {
    /// What keeps the module, or NIXL's own library, from being loaded.
    pub(crate) core: Vec<Obstacle>,
    /// Its plugins, in the order of the files.
    pub(crate) plugins: Vec<PluginAudit>,
    /// Libraries that would be there twice once the plugins for networks are loaded.
    pub(crate) duplicates: Vec<Duplicate>,
}

/// What a plugin would get.
#[derive(Debug)]
pub(crate) struct PluginAudit {
    /// As in `LIBFABRIC`.
    pub(crate) backend: String,
    /// Its file.
    pub(crate) path: String,
    /// What its tables say keeps it from being loaded into a process that has the module.
    pub(crate) obstacles: Vec<Obstacle>,
    /// The libraries that it would use, as paths and the files that those really are.
    pub(crate) libraries: Vec<(String, String, ElfFacts)>,
    /// What to load to see it: NIXL's own library, then the plugin.
    trial: Vec<String>,
}

/// A library that is there twice.
#[derive(Debug)]
pub(crate) struct Duplicate {
    /// As in `libibverbs`.
    pub(crate) name: String,
    /// Each copy with what brought it in.
    pub(crate) copies: Vec<Vec<String>>,
}

/// Whether a plugin can be loaded.
#[derive(Debug)]
pub(crate) enum Loadable {
    /// It was loaded, or its tables say that nothing is missing and no trial could be made.
    Yes,
    /// Its tables say what is missing; the loader's words, where it was asked.
    Lacks(Vec<Obstacle>, Option<String>),
    /// The loader refuses it for another reason, in its words.
    Refused(String),
    /// Loading it ended the process, by this signal.
    Crashed(i32),
    /// It did not end in time.
    Late,
}

/// What there is to say of this host; worked out once.
pub(crate) fn audit(host: &Host) -> Arc<Audit> {
    host.once(|host| {
        let installed = installations(host);
        let loader = Loader::new(host);
        let nixl = (0..installed.nixl.len()).map(|index| nixl(host, &loader, &installed, index)).collect();
        Audit { nixl, has_efa: has_efa(host), installed }
    })
}

impl PluginAudit {
    /// Whether it moves data between hosts.
    pub(crate) fn is_network(&self) -> bool {
        NETWORK.contains(&self.backend.as_str())
    }

    /// Whether it can be loaded: plugins for networks are tried.
    pub(crate) fn loadable(&self, host: &Host) -> Loadable {
        let of_tables = |said| match self.obstacles.is_empty() {
            true => Loadable::Yes,
            false => Loadable::Lacks(self.obstacles.clone(), said),
        };
        if !self.is_network() {
            return of_tables(None);
        }
        let libraries: Vec<&str> = self.trial.iter().map(String::as_str).collect();
        match host.load(&libraries) {
            Ok(Loaded { finished: false, signal, .. }) => Loadable::Crashed(signal.unwrap_or_default()),
            Ok(Loaded { refused: Some((_, said)), .. }) if self.obstacles.is_empty() => {
                Loadable::Refused(said)
            }
            Ok(Loaded { refused: Some((_, said)), .. }) => {
                Loadable::Lacks(self.obstacles.clone(), Some(said))
            }
            // What the loader does is right, whatever the tables say.
            Ok(Loaded { refused: None, .. }) => Loadable::Yes,
            Err(Lack::Late) => Loadable::Late,
            Err(_) => of_tables(None),
        }
    }

    /// The library of a name that it would use: where it was found, the file that it really is, what that says.
    pub(crate) fn library(&self, plain: &str) -> Option<&(String, String, ElfFacts)> {
        self.libraries.iter().find(|(path, ..)| plain_name(base(path)) == plain)
    }
}

fn nixl(host: &Host, loader: &Loader<'_>, installed: &Installations, index: usize) -> NixlAudit {
    let nixl = &installed.nixl[index];
    let own = format!("{}/libnixl.so", nixl.core);
    let mut base_process = loader.process();
    let core = base_process.load(nixl.bindings.as_deref().unwrap_or(&own));
    let plugins = nixl.plugins.iter().map(|plugin| {
        let mut process = base_process.clone();
        let obstacles = process.load(&plugin.path);
        // What the module lacks is told of the module.
        let obstacles = obstacles.into_iter().filter(|obstacle| !core.contains(obstacle)).collect();
        let mut trial = vec![plugin.path.clone()];
        if host.exists(&own) {
            trial.insert(0, own.clone());
        }
        PluginAudit {
            backend: plugin.backend.clone(),
            path: plugin.path.clone(),
            obstacles,
            libraries: files(&process),
            trial,
        }
    });
    NixlAudit { plugins: plugins.collect(), duplicates: duplicates(host, base_process, nixl), core }
}

fn files(process: &Process<'_>) -> Vec<(String, String, ElfFacts)> {
    let files = process.libraries.iter().filter(|library| SINGLE.contains(&plain_name(base(&library.path))));
    files.map(|library| (library.path.clone(), library.real.clone(), library.facts.clone())).collect()
}

/// What would be there twice if a program made agents with both backends for networks.
fn duplicates(
    host: &Host,
    mut process: Process<'_>,
    nixl: &crate::installed::inventory::Nixl,
) -> Vec<Duplicate> {
    let load = |process: &mut Process<'_>, path: &str| {
        let mut with = process.clone();
        // What cannot be loaded is left out by NIXL and by UCX.
        if with.load(path).is_empty() {
            *process = with;
        }
    };
    if let Some(plugin) = nixl.plugin("UCX") {
        load(&mut process, &plugin.path);
        let ucs = process.libraries.iter().find(|library| plain_name(base(&library.path)) == "libucs");
        if let Some(at) = ucs.map(|library| format!("{}/ucx", directory(&library.path))) {
            let mut modules = host.names(&at).unwrap_or_default();
            modules.retain(|name| name.starts_with("libuct_") && name.contains(".so"));
            for module in modules.iter().take(MODULES_MAX) {
                load(&mut process, &format!("{at}/{module}"));
            }
        }
    }
    if let Some(plugin) = nixl.plugin("LIBFABRIC") {
        load(&mut process, &plugin.path);
    }
    let twice = process.duplicates();
    let twice = twice.into_iter().filter(|(name, _)| SINGLE.contains(&name.as_str()));
    let chain = |index: &usize| process.chain(*index).into_iter().map(str::to_owned).collect();
    twice.map(|(name, copies)| Duplicate { copies: copies.iter().map(chain).collect(), name }).collect()
}
