//! Where the dynamic loader finds a library, from what libraries' tables and the loader's configuration say.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::{ElfFacts, Host, Needed};

/// Where the loader looks last.
const DEFAULT: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
/// Where the EFA installer puts libfabric.
pub(super) const EFA: &str = "/opt/amazon/efa";
/// Libraries that are looked at from one on: a wheel has some 150.
const CLOSURE_MAX: usize = 1024;

/// The loader of a host.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    host: &'a Host,
    /// `LD_LIBRARY_PATH`.
    first: Vec<String>,
    /// What `ldconfig -p` says, by name, in its order.
    cache: Vec<(String, String)>,
    /// Directories of its configuration, and its own.
    last: Vec<String>,
    /// Where the network's own libraries are (`/opt/amazon/efa/lib`).
    pub(super) efa: Option<String>,
}

impl<'a> Loader<'a> {
    /// The loader of a host; the network's libraries are below a prefix of the user's, or where the EFA installer puts them.
    pub(super) fn new(host: &'a Host, efa: Option<&str>) -> Self {
        let split =
            |path: &str| path.split(':').filter(|part| part.starts_with('/')).map(str::to_owned).collect();
        let first = host.variable("LD_LIBRARY_PATH").map(split).unwrap_or_default();
        let said = ["ldconfig", "/sbin/ldconfig"].iter().find_map(|program| host.run(&[program, "-p"]).ok());
        let cache = said.map(|said| said.stdout).unwrap_or_default();
        let cache = cache.lines().filter_map(|line| {
            let (name, path) = line.split_once(" => ")?;
            Some((name.split_whitespace().next()?.to_owned(), path.trim().to_owned()))
        });
        let mut last = Vec::new();
        configured(host, "/etc/ld.so.conf", &mut last, 0);
        last.extend(DEFAULT.map(str::to_owned));
        let prefix = efa.unwrap_or(EFA).trim_end_matches('/');
        let directories = [format!("{prefix}/lib"), format!("{prefix}/lib64"), prefix.to_owned()];
        let has = |directory: &String| {
            host.names(directory).is_ok_and(|names| names.iter().any(|name| name == "libfabric.so.1"))
        };
        Self { host, first, cache: cache.collect(), last, efa: directories.into_iter().find(has) }
    }

    /// The library of a name that a program gets which says nothing else.
    pub(super) fn of_system(&self, name: &str, machine: u16) -> Option<String> {
        let cached = self.cache.iter().filter(|(cached, _)| cached == name).map(|(_, path)| path.clone());
        let listed = self.last.iter().map(|directory| format!("{directory}/{name}"));
        cached.chain(listed).find(|path| self.fits(path, machine))
    }

    /// The network's library of a name, before any other.
    pub(super) fn of_network(&self, name: &str, machine: u16) -> Option<String> {
        let own = self.efa.as_ref().map(|directory| format!("{directory}/{name}"));
        own.filter(|path| self.fits(path, machine)).or_else(|| self.of_system(name, machine))
    }

    fn fits(&self, path: &str, machine: u16) -> bool {
        self.host.elf(path).is_ok_and(|facts| facts.machine == machine)
    }

    /// What a library that is loaded first of all finds for a name that it needs.
    pub(super) fn resolve(&self, path: &str, facts: &ElfFacts, name: &str) -> Option<String> {
        let all = |directories: &[String]| {
            let mut paths = directories.iter().map(|directory| format!("{directory}/{name}"));
            paths.find(|path| self.fits(path, facts.machine))
        };
        // With a RUNPATH, an RPATH means nothing.
        let rpath = if facts.runpath.is_none() { search(path, facts.rpath.as_deref()) } else { Vec::new() };
        all(&rpath)
            .or_else(|| all(&self.first))
            .or_else(|| all(&search(path, facts.runpath.as_deref())))
            .or_else(|| self.of_system(name, facts.machine))
    }

    /// Whether the library at a path has all symbol versions that are needed of it; those that it lacks.
    pub(super) fn lacks(&self, path: &str, needed: &Needed) -> Vec<String> {
        let has = self.host.elf(path).map(|facts| facts.versions).unwrap_or_default();
        needed.versions.difference(&has).cloned().collect()
    }

    /// All libraries that come with one, by name.
    pub(super) fn closure(&self, path: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut next = vec![path.to_owned()];
        while let Some(path) = next.pop() {
            let Ok(facts) = self.host.elf(&path) else { continue };
            for needed in &facts.needed {
                if found.len() < CLOSURE_MAX
                    && !found.contains_key(&needed.name)
                    && let Some(at) = self.resolve(&path, &facts, &needed.name)
                {
                    found.insert(needed.name.clone(), at.clone());
                    next.push(at);
                }
            }
        }
        found
    }

    /// Why a library of the system cannot be loaded, where its tables say so.
    pub(super) fn obstacle(&self, path: &str) -> Option<String> {
        let facts = match self.host.elf(path) {
            Ok(facts) => facts,
            Err(why) => return Some(format!("{path}: {why}")),
        };
        facts.needed.iter().find_map(|needed| match self.resolve(path, &facts, &needed.name) {
            None if is_libc(&needed.name) => None,
            None => Some(format!("{path} needs {}, which the loader does not find", needed.name)),
            Some(at) => {
                let lacks = self.lacks(&at, needed);
                (!lacks.is_empty()).then(|| format!("{path} needs {} of {at}", lacks.join(", ")))
            }
        })
    }

    /// Whether `LD_LIBRARY_PATH` has a library of this name.
    pub(super) fn forced(&self, name: &str, machine: u16) -> Option<String> {
        let mut paths = self.first.iter().map(|directory| format!("{directory}/{name}"));
        paths.find(|path| self.fits(path, machine))
    }
}

/// What comes with every system, under whatever name.
pub(super) fn is_libc(name: &str) -> bool {
    let names = [
        "libc.so",
        "libm.so",
        "libdl.so",
        "librt.so",
        "libpthread.so",
        "ld-linux",
        "libgcc_s.so",
        "libstdc++.so",
    ];
    names.iter().any(|begin| name.starts_with(begin))
}

/// Directories of a search path of a library, with `$ORIGIN` put in and `..` taken out.
pub(super) fn search(path: &str, list: Option<&str>) -> Vec<String> {
    let origin = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
    let put_in = |part: &str| normal(&part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin));
    let parts =
        list.unwrap_or_default().split(':').filter(|part| part.starts_with('/') || part.starts_with('$'));
    let mut seen = BTreeSet::new();
    parts.map(put_in).filter(|directory| seen.insert(directory.clone())).collect()
}

/// An absolute path without `.` and `..`. Wheels have no links among their directories, so that this does not change what it means.
fn normal(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// The directories of the loader's configuration.
fn configured(host: &Host, path: &str, directories: &mut Vec<String>, depth: u32) {
    let Ok(text) = host.read(path) else { return };
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        match line.strip_prefix("include").map(str::trim) {
            Some(pattern) if depth < 4 => {
                let (directory, name) = pattern.rsplit_once('/').unwrap_or(("/etc", pattern));
                let directory =
                    if directory.starts_with('/') { directory.into() } else { format!("/etc/{directory}") };
                let Some(end) = name.strip_prefix('*') else {
                    configured(host, &format!("{directory}/{name}"), directories, depth + 1);
                    continue;
                };
                for name in host.names(&directory).unwrap_or_default() {
                    if name.ends_with(end) {
                        configured(host, &format!("{directory}/{name}"), directories, depth + 1);
                    }
                }
            }
            None if line.starts_with('/') => directories.push(line.into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_paths_are_seen_as_the_loader_sees_them() {
        let path = "/v/site/nixl_cu12.libs/nixl/libplugin_UCX.so";
        assert_eq!(
            search(path, Some("$ORIGIN/..:$ORIGIN:${ORIGIN}/..:/usr/local/lib:relative")),
            ["/v/site/nixl_cu12.libs", "/v/site/nixl_cu12.libs/nixl", "/usr/local/lib"]
        );
        assert_eq!(search(path, None), [""; 0]);
    }
}
