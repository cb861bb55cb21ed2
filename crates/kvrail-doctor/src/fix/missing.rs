//! Plugins find what they need: links in a directory in which they look anyway.
//!
//! A wheel's plugins look for libraries in `<package>.libs` (their RUNPATH), while NIXL's own libraries are in
//! `.<package>.mesonpy.libs` and libfabric is wherever the EFA installer put it. Inside Python that is mended by luck: the
//! bindings have loaded NIXL's libraries before a plugin asks for them. A link in `<package>.libs` needs no root, no variable
//! that every launcher has to pass on, and concerns this one wheel; so it comes before the loader's configuration.

use super::change::Change;
use super::here::{Here, told};
use super::{Remedy, Request, Verdict};
use crate::checks::device::seen::has_efa;
use crate::host::{EntryKind, Needed};
use crate::installed::inventory::{Environment, LIBFABRIC, Nixl, Plugin};
use crate::installed::loader::{Obstacle, directory, is_runtime, own};

/// Backends whose plugins carry KV caches.
const BACKENDS: [&str; 2] = ["LIBFABRIC", "UCX"];
/// What only the driver of a GPU brings.
const DRIVER: &str = "libcuda.so.1";

/// Links for [`Remedy::LoaderPath`] or [`Remedy::Libfabric`].
pub(crate) fn look(
    here: &Here<'_>,
    environment: &Environment,
    nixl: &Nixl,
    remedy: Remedy,
    request: &Request,
) -> Verdict {
    // On a laptop nobody misses what only LIBFABRIC over EFA needs.
    let wanted = request.named || here.efa.is_some() || has_efa(here.host);
    if remedy == Remedy::Libfabric && !wanted {
        return Verdict::NotHere("no EFA device and no EFA software is here".into());
    }
    let backends = if wanted { &BACKENDS[..] } else { &BACKENDS[1..] };
    let plugins: Vec<&Plugin> = backends.iter().filter_map(|backend| nixl.plugin(backend)).collect();
    if plugins.is_empty() {
        return Verdict::NotHere(format!("{} has no plugin LIBFABRIC or UCX", nixl.release()));
    }
    // What Python has loaded before it loads a plugin. Somebody who names the remedy wants it for other programs, too.
    let mut process = here.loader.process();
    if let Some(bindings) = nixl.bindings.as_ref().filter(|_| !request.named) {
        process.load(bindings);
    }
    let (mut changes, mut left): (Vec<Change>, Vec<String>) = (Vec::new(), Vec::new());
    for plugin in plugins {
        for obstacle in process.clone().load(&plugin.path) {
            let (Obstacle::Missing { name, by } | Obstacle::Version { name, by, .. }) = &obstacle else {
                continue;
            };
            let ours = *by == plugin.path && (name == LIBFABRIC) == (remedy == Remedy::Libfabric);
            if !ours || is_runtime(name) || name == DRIVER {
                continue;
            }
            match mend(here, environment, nixl, plugin, name) {
                Ok(change) if changes.iter().any(|had| had.path == change.path) => {}
                Ok(change) => changes.push(Change { why: told(&obstacle), ..change }),
                Err(why) => {
                    let told = format!("{}: {why}", told(&obstacle));
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
                format!("the plugins of {} find a libfabric that is new enough", nixl.release())
            }
            _ => format!("the plugins of {} find their libraries", nixl.release()),
        }),
    }
}

/// The link that gives a plugin a library that it needs.
fn mend(
    here: &Here<'_>,
    environment: &Environment,
    nixl: &Nixl,
    plugin: &Plugin,
    name: &str,
) -> Result<Change, String> {
    let facts = here.host.elf(&plugin.path).map_err(|why| format!("{}: {why}", plugin.path))?;
    let needed = facts.needs(name).cloned().unwrap_or_default();
    let target = candidate(here, nixl, facts.machine, &needed)?;
    if let Some(forced) = here.loader.forced(name, facts.machine)
        && facts.rpath.is_none()
    {
        return Err(format!(
            "LD_LIBRARY_PATH leads to {forced} before anything else; take its directory out, or put that of {target} before it"
        ));
    }
    let looked = own(facts.runpath.as_deref().or(facts.rpath.as_deref()), &plugin.path);
    let inside = |directory: &&String| {
        environment.packages.iter().any(|site| directory.starts_with(&format!("{site}/")))
            && here
                .host
                .entry(directory)
                .is_ok_and(|entry| entry.kind == EntryKind::Directory && entry.real == **directory)
    };
    let beside = looked.iter().find(inside).ok_or_else(|| {
        format!(
            "it has no RUNPATH into its environment in which a link could be; export LD_LIBRARY_PATH={}:$LD_LIBRARY_PATH (`kvrail fix preamble`)",
            directory(&target)
        )
    })?;
    let link = format!("{beside}/{name}");
    let target = match target.strip_prefix(&format!("{}/", nixl.root)) {
        // The environment may be moved or mounted elsewhere.
        Some(below) => {
            let depth = beside.strip_prefix(&nixl.root).map_or(0, |below| below.matches('/').count());
            format!("{}{below}", "../".repeat(depth))
        }
        None => target,
    };
    Ok(Change::link(link, target, ""))
}

/// A library of this host that has all that is needed.
fn candidate(here: &Here<'_>, nixl: &Nixl, machine: u16, needed: &Needed) -> Result<String, String> {
    let name = &needed.name;
    let mut paths: Vec<String> = Vec::new();
    if name == LIBFABRIC {
        paths.extend(here.of_network(name, machine));
    } else {
        let own = [Some(&nixl.core), nixl.libraries.as_ref()];
        paths.extend(own.into_iter().flatten().map(|directory| format!("{directory}/{name}")));
        let nvidia = format!("{}/nvidia", nixl.root);
        for part in here.host.names(&nvidia).unwrap_or_default() {
            paths.push(format!("{nvidia}/{part}/lib/{name}"));
        }
        paths.extend(here.of_system(name, machine));
    }
    let mut nearest = None;
    for path in paths {
        let Ok(facts) = here.host.elf(&path) else { continue };
        if facts.machine != machine {
            continue;
        }
        let lacks = here.lacks(&path, needed);
        if !lacks.is_empty() {
            nearest = Some(format!("{path} has no {} either", lacks.join(", ")));
        } else if name == LIBFABRIC
            && let Some(why) = here.obstacle(&path)
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
