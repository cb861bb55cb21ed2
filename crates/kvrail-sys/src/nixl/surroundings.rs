//! What the environment of a process must be for NIXL to work in it, and to say what it does.
//!
//! The loader reads `LD_LIBRARY_PATH` when a process starts, NIXL and UCX read theirs when they are loaded. So a process that wants to
//! use a backend has to be started with what this says. What a person has set is left as it is.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::install::Installation;
use super::library::log_switch;
use super::needs::{LIBFABRIC, newest_version};
use crate::elf::Elf;
use crate::libfabric;

/// Where the wheels of CUDA's runtime put it, below a directory of packages.
const CUDA_RUNTIMES: [&str; 2] = ["nvidia/cuda_runtime/lib", "nvidia/cu13/lib"];
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
const LOADER_DIRECTORIES: [&str; 4] = ["/lib", "/usr/lib", "/lib64", "/usr/lib64"];
const LOADER_CONFIGURATION: &str = "/etc/ld.so.conf.d";

/// Variables to set for a process before it starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Surroundings {
    variables: Vec<(&'static str, OsString)>,
}

impl Surroundings {
    /// Set where this, and no person, asked NIXL for its log: it is for the program to read and to switch off.
    pub const HEARD: &str = "KVRAIL_NIXL_HEARD";

    /// What a process needs that uses this backend, in NIXL's own case, of this NIXL. `libraries` are directories that come first in
    /// the search for what its plugin needs; `variable` is the environment that the process would inherit.
    ///
    /// * `LD_LIBRARY_PATH`: for LIBFABRIC the directory of a libfabric that the plugin can use, unless the loader's own is one:
    ///   that of `KVRAIL_LIBFABRIC`, whatever it is, AWS's, the one of the wheel `mpich`; and CUDA's runtime, where its wheel is
    ///   installed beside NIXL's.
    /// * `NIXL_PLUGIN_DIR`, where NIXL would not find its plugins itself.
    /// * `NIXL_LOG_LEVEL`, so that NIXL says what it uses, if the log can be switched off again before anything is timed.
    /// * `UCX_PROTO_INFO` and `UCX_LOG_FILE`, so that UCX says it, once per peer and kind of transfer, and on standard error.
    #[must_use]
    pub fn of(
        installation: &Installation,
        backend: &str,
        libraries: &[PathBuf],
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut variables = Vec::new();
        let inherited: Vec<_> = set(LIBRARY_PATH).iter().flat_map(env::split_paths).collect();
        let mut first = libraries.to_vec();
        let mut last = Vec::new();
        if let Some(plugin) = installation.plugin(backend).and_then(|file| Elf::read(&file).ok()) {
            if plugin.needed.iter().any(|name| name == LIBFABRIC) {
                first.extend(libfabric_for(&plugin, libraries, &inherited, installation, &variable));
            }
            if plugin.needed.iter().any(|name| name.starts_with("libcudart.so")) {
                let runtimes =
                    CUDA_RUNTIMES.iter().filter_map(|part| Some(installation.packages()?.join(part)));
                last.extend(runtimes.filter(|place| place.is_dir()));
            }
        }
        first.retain(|place| inherited.first() != Some(place));
        last.retain(|place| !inherited.contains(place));
        // A directory with a colon cannot be named in that variable at all.
        if (!first.is_empty() || !last.is_empty())
            && let Ok(path) = env::join_paths(first.into_iter().chain(inherited).chain(last))
        {
            variables.push((LIBRARY_PATH, path));
        }
        let own = installation.library().with_file_name("plugins");
        if let Some(plugins) = installation.plugins()
            && plugins != own
            && set("NIXL_PLUGIN_DIR").is_none()
        {
            variables.push(("NIXL_PLUGIN_DIR", plugins.into()));
        }
        if set("NIXL_LOG_LEVEL").is_none() && log_switch(installation.library()).is_some() {
            // The devices of LIBFABRIC's rails are in no line of a higher level.
            let level = if backend == "LIBFABRIC" { "DEBUG" } else { "INFO" };
            variables.push(("NIXL_LOG_LEVEL", level.into()));
            variables.push((Self::HEARD, "1".into()));
        }
        for (name, value) in [("UCX_PROTO_INFO", "y"), ("UCX_LOG_FILE", "stderr")] {
            if backend == "UCX" && set(name).is_none() {
                variables.push((name, value.into()));
            }
        }
        Self { variables }
    }

    /// The variables with their values.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        self.variables.iter().map(|(name, value)| (*name, value.as_os_str()))
    }

    /// Gives them to a process that is to be started.
    pub fn apply(&self, command: &mut Command) {
        command.envs(self.variables());
    }

    /// The names of those that this process was not started with.
    #[must_use]
    pub fn missing_here(&self) -> Vec<&str> {
        let is_missing = |name: &str, value: &OsStr| env::var_os(name).as_deref() != Some(value);
        self.variables().filter(|(name, value)| is_missing(name, value)).map(|(name, _)| name).collect()
    }
}

/// The directory to put first so that the plugin gets a libfabric that it can use; none where the loader's own is one, or nothing is.
fn libfabric_for(
    plugin: &Elf,
    libraries: &[PathBuf],
    inherited: &[PathBuf],
    installation: &Installation,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    let needed = newest_version(&plugin.imports, LIBFABRIC).map_or(0, |(number, _)| number);
    let suits = |directory: &Path| {
        let number = |version: &String| version.strip_prefix("FABRIC_1.")?.parse::<u32>().ok();
        Elf::read(&directory.join(LIBFABRIC))
            .is_ok_and(|elf| elf.versions.iter().filter_map(number).max().is_some_and(|has| has >= needed))
    };
    let search = libfabric::Search::of(None, &variable);
    if let Some((named, _)) = search.named() {
        // Named: it is used, and if it does not do, the plugin is refused.
        return if named.is_dir() { Some(named.into()) } else { named.parent().map(Path::to_path_buf) };
    }
    // The loader takes the first that there is, whether the plugin can use it or not.
    let loaders = libraries.iter().chain(inherited).cloned().chain(loader_directories());
    if loaders.into_iter().find(|place| place.join(LIBFABRIC).is_file()).is_some_and(|place| suits(&place)) {
        return None;
    }
    // The environment that NIXL is in: packages are in lib/python3.x/site-packages below its root.
    let root = installation.packages().and_then(|packages| packages.ancestors().nth(3));
    let beside = root.map(|root| root.join("lib/mpich"));
    search.directories().into_iter().chain(beside).find(|place| suits(place))
}

/// Where the loader looks after `LD_LIBRARY_PATH`: what is configured, then its default directories.
fn loader_directories() -> Vec<PathBuf> {
    let files = Path::new(LOADER_CONFIGURATION).read_dir().into_iter().flatten().flatten();
    let mut files: Vec<_> = files.map(|entry| entry.path()).collect();
    files.sort();
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    let lines: Vec<_> = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let configured =
        lines.iter().map(|line| line.trim()).filter(|line| line.starts_with('/')).map(PathBuf::from);
    configured.chain(LOADER_DIRECTORIES.map(PathBuf::from)).collect()
}
