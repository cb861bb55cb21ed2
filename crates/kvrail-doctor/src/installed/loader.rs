//! What the dynamic loader would do, worked out from the libraries' own tables and without loading anything.
//!
//! A [`Process`] takes libraries in the order in which a program would load them, and knows afterwards which file each name led to,
//! what is missing, and which symbol versions are. The rules are glibc's: a name that is already in the process is not searched for
//! again; else `DT_RPATH` of the library and of those that brought it in (unless it has a `DT_RUNPATH`), `LD_LIBRARY_PATH`,
//! `DT_RUNPATH`, the directories of `ld.so.conf`, the default ones. The loader's cache is not read: it is made from those directories.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use crate::host::{ElfFacts, Host, Lack};

/// Most libraries of one process: far more than any has, so that no bundle keeps this busy.
const LIBRARIES_MAX: usize = 2048;
/// Deepest chain of `include` in `ld.so.conf`.
const INCLUDES_MAX: usize = 4;

/// Where libraries are looked for on a host.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    host: &'a Host,
    /// `LD_LIBRARY_PATH`.
    pub(crate) path: Vec<String>,
    /// Directories of `ld.so.conf`, then the default ones.
    pub(crate) system: Vec<String>,
}

/// A library in a process.
#[derive(Clone, Debug)]
pub(crate) struct Mapped {
    /// Under which path it was found.
    pub(crate) path: String,
    /// The file that it really is.
    pub(crate) real: String,
    /// What it says of itself.
    pub(crate) facts: ElfFacts,
    /// The library that brought it in; none for what was loaded by name.
    pub(crate) parent: Option<usize>,
    /// Names under which it is known.
    names: BTreeSet<String>,
}

/// Something that keeps a library from being loaded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Obstacle {
    /// A library that is nowhere.
    Missing {
        /// Its name.
        name: String,
        /// The file that needs it.
        by: String,
    },
    /// A version of symbols that the library which was found does not define.
    Version {
        /// The name by which the library was asked for.
        name: String,
        /// The version.
        version: String,
        /// The file that lacks it.
        found: String,
        /// The file that needs it.
        by: String,
    },
    /// A file that is there and is no library for this machine.
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
}

/// The libraries of one process.
#[derive(Clone, Debug)]
pub(crate) struct Process<'a> {
    loader: &'a Loader<'a>,
    /// In the order in which they were mapped.
    pub(crate) libraries: Vec<Mapped>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        let path = host.variable("LD_LIBRARY_PATH").unwrap_or_default();
        let path = path.split([':', ';']).filter(|part| part.starts_with('/')).map(trimmed).collect();
        let mut system = Vec::new();
        configured(host, "/etc/ld.so.conf", INCLUDES_MAX, &mut system);
        for default in [
            "/lib/x86_64-linux-gnu",
            "/usr/lib/x86_64-linux-gnu",
            "/lib/aarch64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/lib64",
            "/usr/lib64",
            "/lib",
            "/usr/lib",
        ] {
            if !system.iter().any(|known| known == default) {
                system.push(default.into());
            }
        }
        Self { host, path, system }
    }

    /// A process without libraries.
    pub(crate) fn process(&self) -> Process<'_> {
        Process { loader: self, libraries: Vec::new() }
    }

    /// The file that a program without search paths of its own would get for a name.
    pub(crate) fn find(&self, name: &str) -> Option<(String, ElfFacts)> {
        self.search(self.path.iter().chain(&self.system).map(String::as_str), name, 0)
    }

    /// The first file of a name that is a library of a machine (0: of any).
    fn search<'d>(
        &self,
        directories: impl Iterator<Item = &'d str>,
        name: &str,
        machine: u16,
    ) -> Option<(String, ElfFacts)> {
        directories
            .filter_map(|directory| {
                let path = format!("{directory}/{name}");
                let facts = self.host.elf(&path).ok()?;
                is_for(&facts, machine).then_some((path, facts))
            })
            .next()
    }

    /// The file of a name that the loader's configuration leads to, whatever the environment says.
    pub(crate) fn configured(&self, name: &str, machine: u16) -> Option<String> {
        self.search(self.system.iter().map(String::as_str), name, machine).map(|(path, _)| path)
    }

    /// The file of a name that `LD_LIBRARY_PATH` leads to before all others.
    pub(crate) fn forced(&self, name: &str, machine: u16) -> Option<String> {
        self.search(self.path.iter().map(String::as_str), name, machine).map(|(path, _)| path)
    }

    fn real(&self, path: &str) -> String {
        self.host.entry(path).map_or_else(|_| path.to_owned(), |entry| entry.real)
    }
}

impl Process<'_> {
    /// Loads a file with what it needs: what keeps it from being loaded, empty when nothing does. What could be mapped stays.
    pub(crate) fn load(&mut self, path: &str) -> Vec<Obstacle> {
        let facts = match self.loader.host.elf(path) {
            Ok(facts) => facts,
            Err(Lack::Absent) => return vec![Obstacle::Missing { name: path.into(), by: path.into() }],
            Err(why) => return vec![Obstacle::Unreadable { path: path.into(), why: why.to_string() }],
        };
        let begin = self.libraries.len();
        let root = self.add(path.to_owned(), facts, None, base(path));
        let mut obstacles = BTreeSet::new();
        let mut waiting = VecDeque::from([root]);
        while let Some(at) = waiting.pop_front() {
            for needed in self.libraries[at].facts.needed.clone() {
                if self.known(&needed.name).is_some() || is_part_of_loader(&needed.name) {
                    continue;
                }
                match self.find(at, &needed.name) {
                    Some(_) if self.libraries.len() >= LIBRARIES_MAX => {}
                    Some((path, facts)) => {
                        let before = self.libraries.len();
                        let new = self.add(path, facts, Some(at), &needed.name);
                        if self.libraries.len() > before {
                            waiting.push_back(new);
                        }
                    }
                    None => {
                        let by = self.libraries[at].path.clone();
                        obstacles.insert(Obstacle::Missing { name: needed.name, by });
                    }
                }
            }
        }
        // Versions are compared once everything is mapped, as the loader does it; also those of a library that was there before.
        let new = (begin..self.libraries.len()).chain((root < begin).then_some(root));
        for at in new.collect::<Vec<_>>() {
            obstacles.extend(self.missing_versions(at));
        }
        obstacles.into_iter().collect()
    }

    /// The library that is known by a name.
    pub(crate) fn known(&self, name: &str) -> Option<&Mapped> {
        self.libraries.iter().find(|library| library.names.contains(name))
    }

    /// How a library came into the process: its path, then what brought it in, up to what was loaded by name.
    pub(crate) fn chain(&self, mut at: usize) -> Vec<&str> {
        let mut chain = vec![self.libraries[at].path.as_str()];
        while let Some(parent) = self.libraries[at].parent {
            chain.push(&self.libraries[parent].path);
            at = parent;
        }
        chain
    }

    /// Libraries of one name in more than one file, by that name, as indices.
    pub(crate) fn duplicates(&self) -> BTreeMap<String, Vec<usize>> {
        let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, library) in self.libraries.iter().enumerate() {
            by_name.entry(plain_name(base(&library.real)).to_owned()).or_default().push(index);
        }
        by_name.retain(|_, indices| indices.len() > 1);
        by_name
    }

    fn add(&mut self, path: String, facts: ElfFacts, parent: Option<usize>, name: &str) -> usize {
        let real = self.loader.real(&path);
        if let Some(known) = self.libraries.iter().position(|library| library.real == real) {
            self.libraries[known].names.insert(name.into());
            return known;
        }
        let names = facts.soname.iter().cloned().chain([name.to_owned()]).collect();
        self.libraries.push(Mapped { path, real, facts, parent, names });
        self.libraries.len() - 1
    }

    fn find(&self, by: usize, name: &str) -> Option<(String, ElfFacts)> {
        let library = &self.libraries[by];
        let machine = library.facts.machine;
        if name.contains('/') {
            let facts = self.loader.host.elf(name).ok()?;
            return is_for(&facts, machine).then(|| (name.to_owned(), facts));
        }
        let mut directories = Vec::new();
        if library.facts.runpath.is_none() {
            let mut at = Some(by);
            while let Some(index) = at {
                let ancestor = &self.libraries[index];
                if ancestor.facts.runpath.is_none() {
                    directories.extend(own(ancestor.facts.rpath.as_deref(), &ancestor.path));
                }
                at = ancestor.parent;
            }
        }
        directories.extend(self.loader.path.iter().cloned());
        directories.extend(own(library.facts.runpath.as_deref(), &library.path));
        directories.extend(self.loader.system.iter().cloned());
        self.loader.search(directories.iter().map(String::as_str), name, machine)
    }

    fn missing_versions(&self, at: usize) -> Vec<Obstacle> {
        let library = &self.libraries[at];
        let mut missing = Vec::new();
        for needed in library.facts.needed.iter().filter(|needed| !needed.versions.is_empty()) {
            // A library that defines no versions at all is taken, with a warning.
            let Some(found) = self.known(&needed.name).filter(|found| !found.facts.versions.is_empty())
            else {
                continue;
            };
            missing.extend(needed.versions.difference(&found.facts.versions).map(|version| {
                Obstacle::Version {
                    name: needed.name.clone(),
                    version: version.clone(),
                    found: found.real.clone(),
                    by: library.path.clone(),
                }
            }));
        }
        missing
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, .. } => write!(f, "{name} => not found"),
            Self::Version { version, found, .. } => write!(f, "{found}: version {version} not found"),
            Self::Unreadable { path, why } => write!(f, "{path}: {why}"),
        }
    }
}

/// The last part of a path.
pub(crate) fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The directory of a path.
pub(crate) fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// `libnl-3` of `libnl-3-47cd035c.so.200.26.0`: a library's name without its version and without what a wheel adds to it.
pub(crate) fn plain_name(file: &str) -> &str {
    let stem = file.find(".so").map_or(file, |at| &file[..at]);
    match stem.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => name,
        _ => stem,
    }
}

/// Whether a library is one of a machine; what a bundle says nothing of fits any.
fn is_for(facts: &ElfFacts, machine: u16) -> bool {
    machine == 0 || facts.machine == 0 || facts.machine == machine
}

/// Whether a library is of the C or C++ runtime, which no wheel and no network's software brings.
pub(crate) fn is_runtime(name: &str) -> bool {
    let plain = plain_name(name);
    is_part_of_loader(name)
        || ["libc", "libm", "libdl", "librt", "libpthread", "libgcc_s", "libstdc++"].contains(&plain)
}

/// The loader itself and the kernel's page are always there.
fn is_part_of_loader(name: &str) -> bool {
    name.starts_with("ld-linux") || name.starts_with("linux-vdso")
}

fn trimmed(directory: &str) -> String {
    directory.trim_end_matches('/').to_owned()
}

/// The directories that a library itself names.
pub(crate) fn own(list: Option<&str>, library: &str) -> Vec<String> {
    let origin = directory(library);
    let parts = list.unwrap_or_default().split(':').filter(|part| !part.is_empty());
    let expanded = parts.map(|part| part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin));
    expanded.filter(|part| part.starts_with('/')).map(|part| normal(&part)).collect()
}

/// A path without `.` and `..`; where a directory is a link, `..` may lead elsewhere, which wheels do not do.
pub(crate) fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn configured(host: &Host, file: &str, depth: usize, into: &mut Vec<String>) {
    let Ok(text) = host.read(file) else { return };
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if let Some(pattern) =
            line.strip_prefix("include").filter(|rest| rest.starts_with(char::is_whitespace))
        {
            // Amazon Linux has `include ld.so.conf.d/*.conf`: it means beside the file itself.
            let pattern = match pattern.trim() {
                pattern if pattern.starts_with('/') => pattern.to_owned(),
                pattern => format!("{}/{pattern}", directory(file)),
            };
            let pattern = pattern.as_str();
            let (at, end) = (directory(pattern), base(pattern).trim_start_matches('*'));
            let names = if pattern.contains('*') {
                host.names(at).unwrap_or_default()
            } else {
                vec![base(pattern).into()]
            };
            for name in names.iter().filter(|name| name.ends_with(end)).take(256) {
                if depth > 0 {
                    configured(host, &format!("{at}/{name}"), depth - 1, into);
                }
            }
        } else if line.starts_with('/') && into.len() < 256 {
            let directory = trimmed(line);
            if !into.contains(&directory) {
                into.push(directory);
            }
        }
    }
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
