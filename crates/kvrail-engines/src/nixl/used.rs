//! What NIXL really uses: its own words, and what this process has mapped.

use std::collections::BTreeSet;

use kvrail_topology::{Source, Topology};

use super::options::Options;
use super::{Requests, Shared};
use crate::used::{Fact, Rail, Used};

const UNKNOWN: &str = "unknown";

/// Each request of NIXL's UCX ends with a flush of the endpoint.
pub(super) const FLUSHED: &str = "flushed";

/// What proves that a write over a backend is visible at its target. LIBFABRIC asks for no delivery: there a write has ended when the
/// provider says that it is complete.
pub(super) fn evidence(backend: &str) -> &'static str {
    match backend {
        "UCX" => FLUSHED,
        "LIBFABRIC" => "completed",
        _ => UNKNOWN,
    }
}

pub(super) fn used(shared: &Shared, options: &Options) -> Used {
    let said = shared.said();
    let installation = shared.library.installation();
    let version = said.version.clone().or_else(|| installation.version().map(str::to_owned));
    let mut facts = vec![Fact::new("library", installation.library().display().to_string())];
    let mut fact = |name: &str, value: Option<String>| {
        facts.push(Fact::new(name, value.unwrap_or_else(|| UNKNOWN.into())));
    };
    let mapped = mapped();
    let file = |prefix: &str| {
        mapped
            .iter()
            .find(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with(prefix)))
            .cloned()
    };
    let mut devices = Vec::new();
    match shared.name.as_str() {
        "UCX" => {
            fact("ucx", said.ucx.clone());
            fact("libucp", file("libucp"));
            // Known after the first posting of that direction.
            for verb in ["read", "write"] {
                if let Some(route) = said.route(verb) {
                    fact(verb, Some(route));
                }
            }
            if said.routes.is_empty() {
                fact("transports", None);
            }
            devices = said.ucx_devices();
        }
        "LIBFABRIC" => {
            fact("provider", said.provider.clone());
            fact("libfabric", file("libfabric"));
            let of_memory =
                |number: &&u32| said.memory_rails.is_empty() || said.memory_rails.contains(*number);
            devices.extend(
                said.devices.keys().filter(of_memory).filter_map(|number| said.devices.get(number)).cloned(),
            );
            if !said.devices.is_empty() {
                fact("rails opened", Some(said.devices.len().to_string()));
            }
        }
        _ => {}
    }
    fact("progress", Some(if options.progress_thread { "thread" } else { "caller" }.into()));
    fact(
        "requests",
        Some(if options.requests == Requests::Recreate { "recreated" } else { "reposted" }.into()),
    );
    if options.prepared_lists {
        fact("lists", Some("prepared".into()));
    }
    if let Ok(backend) = shared.backend.facts() {
        for (key, value) in backend.parameters.iter().filter(|(_, value)| !value.is_empty()) {
            fact(&format!("parameter {key}"), Some(value.clone()));
        }
        // NIXL ignores what it does not know in silence.
        for (key, value) in
            options.parameters.iter().filter(|(key, _)| backend.parameters.iter().all(|(has, _)| has != key))
        {
            fact(&format!("parameter {key}"), Some(format!("{value} (asked for; not confirmed by NIXL)")));
        }
    }
    let rails = rails(&devices);
    Used {
        version: version.unwrap_or_else(|| UNKNOWN.into()),
        transport: shared.name.clone(),
        evidence: evidence(&shared.name).into(),
        rails,
        facts,
        ofi: None,
    }
}

/// The devices as rails, with what the kernel says about them.
fn rails(devices: &[String]) -> Vec<Rail> {
    let topology = (!devices.is_empty()).then(|| Topology::read(&Source::default()).ok()).flatten();
    let rail = |device: &String| {
        // `rdmap79s0-rdm` is a domain of the device `rdmap79s0`.
        let own = device.strip_suffix("-rdm").unwrap_or(device);
        let nic =
            topology.as_ref().and_then(|all| all.nic_by_name(own).or_else(|| all.nic_by_interface(own)));
        Rail {
            name: own.to_owned(),
            rate_bps: nic.and_then(|nic| nic.rate_bps).unwrap_or(0),
            pci: nic.and_then(|nic| nic.pci).map(|pci| pci.to_string()),
            numa: nic.and_then(|nic| nic.numa).and_then(|numa| numa.try_into().ok()),
        }
    };
    devices.iter().map(rail).collect()
}

/// The files that this process has mapped.
fn mapped() -> BTreeSet<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.find('/').map(|at| line[at..].to_owned()));
    files.filter(|path| path.contains(".so")).collect()
}
