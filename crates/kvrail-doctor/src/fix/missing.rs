//! Plugins find what they need: links in a directory in which they look anyway.
//!
//! A wheel's plugins look for libraries in `<package>.libs` (their RUNPATH), while NIXL's own libraries are in
//! `.<package>.mesonpy.libs` and libfabric is wherever the EFA installer put it. Inside Python that is mended by luck: the
//! bindings have loaded NIXL's libraries before a plugin asks for them. A link in `<package>.libs` needs no root, no variable
//! that every launcher has to pass on, and concerns this one wheel; so it comes before the loader's configuration.

use std::collections::BTreeSet;

use super::backend;
use super::change::Change;
use super::loader::{Loader, is_libc, search};
use super::wheels::{Environment, Wheel};
use super::{Remedy, Request, Verdict};
use crate::host::{ElfFacts, EntryKind, Host, Needed};

/// Backends whose plugins carry KV caches.
pub(super) const BACKENDS: [&str; 2] = ["LIBFABRIC", "UCX"];
const LIBFABRIC: &str = "libfabric.so.1";
/// What only the driver of a GPU brings.
const DRIVER: &str = "libcuda.so.1";

/// Links for [`Remedy::LoaderPath`] or [`Remedy::Libfabric`].
pub(super) fn look(
    host: &Host,
    loader: &Loader<'_>,
    environment: &Environment,
    wheel: &Wheel,
    remedy: Remedy,
    request: &Request,
) -> Verdict {
    // On a laptop nobody misses what only LIBFABRIC over EFA needs.
    let wanted = request.named || loader.efa.is_some() || backend::has_efa(host);
    if remedy == Remedy::Libfabric && !wanted {
        return Verdict::NotHere("no EFA device and no EFA software is here".into());
    }
    let plugins = wheel.plugins(host, if wanted { &BACKENDS } else { &BACKENDS[1..] });
    if plugins.is_empty() {
        return Verdict::NotHere(format!("{} has no plugin LIBFABRIC or UCX", wheel.name()));
    }
    // What Python has loaded before it loads a plugin. Somebody who names the remedy wants it for other programs, too.
    let loaded: BTreeSet<String> = match wheel.bindings(host).filter(|_| !request.named) {
        Some(bindings) => loader.closure(&bindings).into_keys().collect(),
        None => BTreeSet::new(),
    };
    let (mut changes, mut left): (Vec<Change>, Vec<String>) = (Vec::new(), Vec::new());
    for (path, facts) in &plugins {
        let name = path.rsplit('/').next().unwrap_or_default();
        for needed in &facts.needed {
            let ours = (needed.name == LIBFABRIC) == (remedy == Remedy::Libfabric);
            if !ours || is_libc(&needed.name) || needed.name == DRIVER || loaded.contains(&needed.name) {
                continue;
            }
            let found = loader.resolve(path, facts, &needed.name);
            let lacks = found.as_ref().map(|found| loader.lacks(found, needed));
            if lacks.as_ref().is_some_and(Vec::is_empty) {
                continue;
            }
            let problem = match (&found, &lacks) {
                (Some(found), Some(lacks)) => format!(
                    "{name} needs {} of {}, and gets {found} without it",
                    lacks.join(", "),
                    needed.name
                ),
                _ => format!("{name} needs {}, which is nowhere that it looks", needed.name),
            };
            match mend(host, loader, environment, wheel, (path, facts), needed) {
                Ok(change) if changes.iter().any(|had| had.path == change.path) => {}
                Ok(mut change) => {
                    change.why = problem;
                    changes.push(change);
                }
                Err(why) => {
                    let told = format!("{problem}: {why}");
                    if !left.contains(&told) {
                        left.push(told);
                    }
                }
            }
        }
    }
    match (changes.is_empty(), left.is_empty()) {
        (false, _) => Verdict::Apply { changes, left },
        (true, false) => Verdict::Refused(left.join("; ")),
        (true, true) => Verdict::Well(match remedy {
            Remedy::Libfabric => {
                format!("the plugins of {} find a libfabric that is new enough", wheel.name())
            }
            _ => format!("the plugins of {} find their libraries", wheel.name()),
        }),
    }
}

/// The link that gives a plugin what it needs.
fn mend(
    host: &Host,
    loader: &Loader<'_>,
    environment: &Environment,
    wheel: &Wheel,
    (path, facts): (&str, &ElfFacts),
    needed: &Needed,
) -> Result<Change, String> {
    let target = candidate(host, loader, wheel, facts.machine, needed)?;
    if let Some(forced) = loader.forced(&needed.name, facts.machine)
        && facts.rpath.is_none()
    {
        return Err(format!(
            "LD_LIBRARY_PATH leads to {forced} before anything else; take its directory out, or put that of {target} before it"
        ));
    }
    let looked: Vec<String> = search(path, facts.runpath.as_deref().or(facts.rpath.as_deref()));
    let inside = |directory: &&String| {
        environment.sites.iter().any(|site| directory.starts_with(&format!("{site}/")))
            && host
                .entry(directory)
                .is_ok_and(|entry| entry.kind == EntryKind::Directory && entry.real == **directory)
    };
    let directory = looked.iter().find(inside).ok_or_else(|| {
        let at = target.rsplit_once('/').map_or("/", |(directory, _)| directory);
        format!("it has no RUNPATH into its environment in which a link could be; export LD_LIBRARY_PATH={at}:$LD_LIBRARY_PATH (`kvrail fix preamble`)")
    })?;
    let link = format!("{directory}/{}", needed.name);
    let target = match target.strip_prefix(&format!("{}/", wheel.site)) {
        // The environment may be moved or mounted elsewhere.
        Some(below) => {
            let depth = directory.strip_prefix(&wheel.site).map_or(0, |below| below.matches('/').count());
            format!("{}{below}", "../".repeat(depth))
        }
        None => target,
    };
    Ok(Change::link(link, target, ""))
}

/// A library of this host that has all that is needed.
fn candidate(
    host: &Host,
    loader: &Loader<'_>,
    wheel: &Wheel,
    machine: u16,
    needed: &Needed,
) -> Result<String, String> {
    let name = &needed.name;
    let mut paths: Vec<String> = Vec::new();
    if name == LIBFABRIC {
        paths.extend(loader.of_network(name, machine));
    } else {
        paths.extend(
            [&wheel.core, &wheel.libs].into_iter().flatten().map(|directory| format!("{directory}/{name}")),
        );
        let nvidia = format!("{}/nvidia", wheel.site);
        for part in host.names(&nvidia).unwrap_or_default() {
            paths.push(format!("{nvidia}/{part}/lib/{name}"));
        }
        paths.extend(loader.of_system(name, machine));
    }
    let mut nearest = None;
    for path in paths {
        let Ok(facts) = host.elf(&path) else { continue };
        if facts.machine != machine {
            continue;
        }
        let lacks = loader.lacks(&path, needed);
        if !lacks.is_empty() {
            nearest = Some(format!("{path} has no {} either", lacks.join(", ")));
        } else if name == LIBFABRIC
            && let Some(why) = loader.obstacle(&path)
        {
            nearest = Some(why);
        } else {
            return Ok(path);
        }
    }
    Err(nearest.unwrap_or_else(|| format!("this host has no {name}{}", package_of(name))))
}

fn package_of(name: &str) -> &'static str {
    match name {
        "libhwloc.so.15" => " (Debian and Ubuntu: libhwloc15; Amazon Linux: hwloc-libs)",
        "libcudart.so.12" => " (PyPI: nvidia-cuda-runtime-cu12)",
        "libcudart.so.13" => " (PyPI: nvidia-cuda-runtime)",
        LIBFABRIC => " (install EFA's software, or mount the host's /opt/amazon/efa)",
        _ => "",
    }
}
