//! What this side is: its devices, its libfabric, its environment, its place in the cloud.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvrail::{Agent, TransportConfig};
use kvrail_doctor::Host;
use kvrail_doctor::host::{Live, Scope};
use kvrail_doctor::probe::{Libfabric, Nic, Side};
use kvrail_report::redact;
use kvrail_topology::{LinkState, NicKind};

use crate::environment::{self, PROFILE, VERSION};

/// The carrier that needs no libfabric.
pub(super) const TCP: &str = "tcp";
/// Beginnings of the variables that concern transfers.
const PREFIXES: [&str; 9] =
    ["FI_", "UCX_", "NIXL_", "NCCL_", "KVRAIL_", "RDMAV_", "IBV_", "OFI_", "NODE_NAME"];
/// Variables that are told at most, and bytes of each.
const VARIABLES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 1024;
/// Devices that are told at most.
const NICS_MAX: usize = 256;
/// Longest answer of the AWS command line that is passed on.
const GROUPS_BYTES_MAX: usize = 512 << 10;
const AWS_PATIENCE: Duration = Duration::from_secs(5);

/// This side, and what can still be asked of it.
pub(super) struct Here {
    pub(super) side: Side,
    host: Host,
}

impl Here {
    /// Looks. `over` is the provider that the user named, `library` the libfabric.
    pub(super) fn look(over: Option<&str>, library: Option<&Path>) -> Self {
        let host = Host::live(Live::new(), Scope::default());
        let emulated = host.variable("SOFTEFA_DIR").is_some();
        let mut machine = environment::boot_id();
        if emulated {
            // Emulated nodes share a kernel.
            machine += &format!("/node{}", host.variable("SOFTEFA_NODE").unwrap_or("?"));
        }
        let nics = nics(&host);
        let mut side = Side {
            host: environment::here().host,
            node_name: host.variable("NODE_NAME").map(str::to_owned),
            machine,
            kvrail: VERSION.into(),
            debug_build: PROFILE == "debug",
            emulated,
            variables: variables(&host),
            instance: host.instance().ok(),
            ..Side::default()
        };
        if emulated && let Some(node) = host.variable("SOFTEFA_NODE") {
            side.host = format!("node{node}");
        }
        if over != Some(TCP) && !nics.is_empty() {
            match libfabric(over, library) {
                Ok(found) => side.libfabric = Some(found),
                Err(why) => side.no_provider = Some(why),
            }
        }
        side.nics = nics;
        Self { side, host }
    }

    /// The security groups of its interfaces, as the AWS command line prints them.
    pub(super) fn groups(&self) -> Option<String> {
        let instance = self.side.instance.as_ref()?;
        let mut ids: Vec<&str> =
            instance.interfaces.iter().flat_map(|interface| &interface.groups).map(String::as_str).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return None;
        }
        let mut words = vec!["aws", "ec2", "describe-security-groups", "--output", "json", "--region"];
        words.push(&instance.region);
        words.push("--group-ids");
        words.extend(ids);
        let ran = self.host.run_with(&words, &[("AWS_PAGER", "")], AWS_PATIENCE).ok()?;
        (ran.is_success() && ran.stdout.len() <= GROUPS_BYTES_MAX).then_some(ran.stdout)
    }
}

fn nics(host: &Host) -> Vec<Nic> {
    let Ok(topology) = host.topology() else { return Vec::new() };
    let nics = topology.nics().iter().filter(|nic| nic.kind == NicKind::Rdma).take(NICS_MAX);
    nics.map(|nic| Nic {
        name: nic.name.clone(),
        driver: nic.driver.clone(),
        rate_bps: nic.rate_bps.unwrap_or(0),
        down: match &nic.state {
            LinkState::Down(word) => Some(word.clone()),
            LinkState::Up | LinkState::Unknown => None,
        },
    })
    .collect()
}

fn variables(host: &Host) -> BTreeMap<String, String> {
    let concern = |(name, _): &(&str, &str)| {
        *name == "LD_LIBRARY_PATH" || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    let short = |(name, value): (&str, &str)| {
        let mut value = redact::value(name, value);
        if value.len() > VALUE_BYTES_MAX {
            value = value.chars().take(VALUE_BYTES_MAX / 4).collect();
        }
        (name.to_owned(), value)
    };
    host.variables().filter(concern).take(VARIABLES_MAX).map(short).collect()
}

/// What libfabric drives the devices with: an agent on one of them says.
fn libfabric(over: Option<&str>, library: Option<&Path>) -> Result<Libfabric, String> {
    let transport = transport(over.unwrap_or("auto"), None, library)?.rails(1);
    let agent = Agent::builder(format!("kvrail-probe-look-{}", std::process::id()))
        .transports([transport])
        .close_timeout(Duration::from_millis(100))
        .ignore_environment()
        .build()
        .map_err(|error| error.to_string())?;
    let facts = agent.facts();
    let ofi = facts.transports.iter().find_map(|transport| transport.ofi.as_deref());
    let ofi = ofi.ok_or("the agent has no transport over libfabric")?;
    Ok(Libfabric {
        path: ofi.library.path.display().to_string(),
        file: ofi.library.file.clone(),
        release: ofi.library.release.clone(),
        symbols: ofi.library.symbols.clone(),
        provider: ofi.provider.clone(),
    })
}

/// The transport of a carrier over libfabric, on one device or all.
pub(super) fn transport(
    carrier: &str,
    device: Option<&str>,
    library: Option<&Path>,
) -> Result<TransportConfig, String> {
    let mut transport = TransportConfig::ofi();
    if carrier != "auto" {
        transport = transport.provider(carrier.parse().map_err(|e: kvrail::ofi::OpenError| e.to_string())?);
    }
    if let Some(device) = device {
        transport = transport.devices([device]);
    }
    // The environment is the workload's: its library is the one that matters.
    let named = || std::env::var_os("KVRAIL_LIBFABRIC").filter(|path| !path.is_empty() && path != "auto");
    let library = library.map(Path::to_path_buf).or_else(|| named().map(PathBuf::from));
    Ok(library.into_iter().fold(transport, TransportConfig::libfabric))
}
