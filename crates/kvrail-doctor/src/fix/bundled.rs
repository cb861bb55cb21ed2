//! A wheel's own copies of the network's libraries give way to those of the system, as links under their names.
//!
//! auditwheel puts a copy of each library that a wheel needs into `<package>.libs`, under a name with a hash, and writes that
//! name into whoever needs it. For libfabric and rdma-core that is wrong twice: the copies are upstream's, not those
//! that were made for the kernel driver of this host, and providers of the system (`libefa-rdmav34.so`) bring the system's copies into
//! the same process, whose destructors then free what is the other's. A link under the bundled name leads all of them to
//! one library. It is put there only where the system's library has every symbol version that is needed of the copy.

use std::collections::BTreeMap;

use super::change::Change;
use super::here::Here;
use super::{Request, Verdict};
use crate::host::{ElfFacts, EntryKind, Host};
use crate::installed::inventory::{LIBFABRIC, Nixl};
use crate::installed::loader::{base, is_runtime, plain_name};

/// Libraries that belong together, as the wheel's copies are called and as programs ask for them: all of a group that the system has are
/// replaced, or none.
const GROUPS: [&[(&str, &str)]; 3] = [
    &[("libfabric", LIBFABRIC)],
    &[
        ("libibverbs", "libibverbs.so.1"),
        ("libefa", "libefa.so.1"),
        ("libmlx5", "libmlx5.so.1"),
        ("librdmacm", "librdmacm.so.1"),
    ],
    &[("libnl-3", "libnl-3.so.200"), ("libnl-route-3", "libnl-route-3.so.200")],
];

/// One copy and what replaces it.
#[derive(Debug)]
struct Swap {
    /// The copy, as in `/v/site/nixl.libs/libfabric-fc70961d.so.1.29.0`.
    path: String,
    /// Its name.
    name: String,
    /// What leads there instead.
    target: String,
}

pub(crate) fn look(here: &Here<'_>, nixl: &Nixl, request: &Request) -> Verdict {
    let host = here.host;
    let Some(libs) = &nixl.libraries else {
        return Verdict::NotHere(format!("{} brings no libraries of its own", nixl.release()));
    };
    let objects = objects(host, nixl, libs);
    let Some(machine) = objects.iter().find_map(|(_, facts)| Some(facts.as_ref()?.machine)) else {
        return Verdict::NotHere(format!("{} has no library that can be read", nixl.release()));
    };
    let names = host.names(libs).unwrap_or_default();
    let (mut pending, mut well, mut refused) = (Vec::new(), 0, Vec::new());
    for group in GROUPS {
        // Without an installation of EFA there is no libfabric that were better than the wheel's.
        if group[0].0 == "libfabric" && here.efa.is_none() && !request.named {
            continue;
        }
        let mut swaps = Vec::new();
        for (family, soname) in group {
            for name in names.iter().filter(|name| copy_of(name) == Some(family)) {
                let path = format!("{libs}/{name}");
                let target = match *family {
                    "libfabric" => here.of_network(soname, machine),
                    _ => here.of_system(soname, machine).or_else(|| here.of_network(soname, machine)),
                };
                let Some(target) = target else { continue };
                // A link that leads to the same file already is as good, whatever it is called.
                if same(host, &path, &target) {
                    well += 1;
                } else {
                    swaps.push(Swap { path, name: name.clone(), target });
                }
            }
        }
        if !swaps.is_empty() {
            pending.push(swaps);
        }
    }
    // A copy that gives way itself asks nothing of the others any more: what one group forbids, the next may allow.
    let mut accepted: Vec<Swap> = Vec::new();
    loop {
        let before = accepted.len();
        refused.clear();
        for swaps in std::mem::take(&mut pending) {
            match obstacle(here, &objects, &accepted, &swaps) {
                Some(why) => {
                    refused.push(why);
                    pending.push(swaps);
                }
                None => accepted.extend(swaps),
            }
        }
        if accepted.len() == before {
            break;
        }
    }
    let changes: Vec<Change> = accepted
        .into_iter()
        .map(|swap| {
            let why =
                format!("{} of the system in place of the copy of {}", base(&swap.target), nixl.release());
            Change::link(swap.path, swap.target, why)
        })
        .collect();
    match (changes.is_empty(), refused.is_empty()) {
        (false, _) => Verdict::Apply { changes, left: refused },
        (true, false) => Verdict::Refused(refused.join("; ")),
        (true, true) if well > 0 => {
            Verdict::Well(format!("{} uses the system's network libraries", nixl.release()))
        }
        (true, true) => Verdict::NotHere(format!(
            "{} brings no copy of a network library that this host has too",
            nixl.release()
        )),
    }
}

/// Why a group cannot be replaced.
fn obstacle(
    here: &Here<'_>,
    objects: &[(String, Option<ElfFacts>)],
    accepted: &[Swap],
    swaps: &[Swap],
) -> Option<String> {
    let by_name: BTreeMap<&str, &Swap> = swaps.iter().map(|swap| (swap.name.as_str(), swap)).collect();
    let gives_way = |name: &str| by_name.contains_key(name) || accepted.iter().any(|swap| swap.name == name);
    for swap in swaps {
        if let Some(why) = here.obstacle(&swap.target) {
            return Some(format!("{} is left as it is: {why}", swap.name));
        }
    }
    for (path, facts) in objects {
        let name = base(path);
        let Some(facts) = facts.as_ref().filter(|_| !gives_way(name)) else { continue };
        for needed in facts.needed.iter().filter(|needed| !is_runtime(&needed.name)) {
            if let Some(swap) = by_name.get(needed.name.as_str()) {
                let lacks = here.lacks(&swap.target, needed);
                if !lacks.is_empty() {
                    let level = here.host.elf(&swap.target).ok().and_then(|facts| facts.level("FABRIC_1."));
                    let has = level.map(|level| format!(", which has FABRIC_1.{level}")).unwrap_or_default();
                    return Some(format!(
                        "{} is left as it is: {name} needs {} of {}{has}",
                        swap.name,
                        lacks.join(", "),
                        swap.target
                    ));
                }
            }
        }
    }
    None
}

/// The family of a bundled copy: `libfabric` of `libfabric-fc70961d.so.1.29.0`.
fn copy_of(name: &str) -> Option<&'static str> {
    let plain = plain_name(name);
    let ending = name.split_once(".so").map(|(_, version)| version);
    let is_library = ending.is_some_and(|version| version.is_empty() || version.starts_with('.'));
    let mut families = GROUPS.iter().flat_map(|group| group.iter()).map(|(family, _)| *family);
    // What has its plain name is no copy.
    families
        .find(|family| *family == plain)
        .filter(|plain| is_library && !name.starts_with(&format!("{plain}.so")))
}

/// The shared libraries of a wheel, with what their tables say; links that lead nowhere have none.
fn objects(host: &Host, nixl: &Nixl, libs: &str) -> Vec<(String, Option<ElfFacts>)> {
    let directories = [
        libs.to_owned(),
        format!("{libs}/nixl"),
        format!("{libs}/ucx"),
        nixl.core.clone(),
        format!("{}/plugins", nixl.core),
        format!("{}/{}", nixl.root, nixl.module),
    ];
    let mut objects = Vec::new();
    for directory in directories {
        for name in host.names(&directory).unwrap_or_default() {
            if name.contains(".so") {
                let path = format!("{directory}/{name}");
                objects.push((path.clone(), host.elf(&path).ok()));
            }
        }
    }
    objects
}

fn same(host: &Host, a: &str, b: &str) -> bool {
    let real = |path: &str| {
        host.entry(path).ok().filter(|entry| entry.kind == EntryKind::File).map(|entry| entry.real)
    };
    real(a).is_some_and(|a| real(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_told_from_what_only_looks_like_them() {
        for (name, family) in [
            ("libfabric-fc70961d.so.1.29.0", Some("libfabric")),
            ("libnl-3-47cd035c.so.200.26.0", Some("libnl-3")),
            ("libnl-route-3-3ad497a3.so.200.26.0", Some("libnl-route-3")),
            ("libefa-f5f6ec5c.so", Some("libefa")),
            ("libfabric.so.1", None),
            ("libfabric-fc70961.so.1", None),
            ("libefabric-fc70961d.so.1", None),
            ("libibverbs-1de1263b.solid", None),
        ] {
            assert_eq!(copy_of(name), family, "{name}");
        }
    }
}
