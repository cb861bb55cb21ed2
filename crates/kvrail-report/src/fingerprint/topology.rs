//! The machine's topology in short, and what its PCIe links let through between rails and memory.

use std::collections::BTreeMap;
use std::fmt;

use kvrail_topology::{Bound, Source, Topology, host_memory_ceiling};
use serde::{Deserialize, Serialize};

use crate::carriage::Path;

/// NUMA nodes, GPUs and NICs in short.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TopologySummary {
    /// NUMA nodes.
    pub numa_nodes: usize,
    /// GPUs by model.
    pub gpus: BTreeMap<String, usize>,
    /// RDMA NICs of one driver and rate each.
    pub nics: Vec<Nics>,
}

/// NICs that are alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Nics {
    /// Driver: `efa`, `mlx5_core`.
    pub kind: String,
    /// Line rate, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// How many.
    pub count: usize,
}

/// The topology below a root; nothing where it cannot be read.
pub(super) fn read(root: &std::path::Path) -> Option<Topology> {
    let source =
        if root == std::path::Path::new("/") { Source::default() } else { Source::Sysfs(root.join("sys")) };
    Topology::read(&source).ok()
}

impl TopologySummary {
    pub(super) fn new(topology: &Topology) -> Self {
        let mut gpus = BTreeMap::new();
        for gpu in topology.gpus() {
            *gpus.entry(gpu.model.clone().unwrap_or_else(|| "unknown GPU".into())).or_default() += 1;
        }
        let mut nics: BTreeMap<(String, u64), usize> = BTreeMap::new();
        for nic in topology.nics() {
            let kind = nic.driver.clone().unwrap_or_else(|| "NIC of unknown driver".into());
            *nics.entry((kind, nic.rate_bps.unwrap_or(0))).or_default() += 1;
        }
        let nics = nics.into_iter().map(|((kind, rate_bps), count)| Nics { kind, rate_bps, count }).collect();
        Self { numa_nodes: topology.numa_nodes().len(), gpus, nics }
    }
}

impl fmt::Display for TopologySummary {
    /// `2 NUMA nodes, 8 x H100, 32 x efa of 100 Gb/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} NUMA node{}", self.numa_nodes, if self.numa_nodes == 1 { "" } else { "s" })?;
        for (model, count) in &self.gpus {
            write!(f, ", {count} x {model}")?;
        }
        for nics in &self.nics {
            write!(f, ", {} x {}", nics.count, nics.kind)?;
            if nics.rate_bps > 0 {
                write!(f, " of {} Gb/s", nics.rate_bps as f64 / 1e9)?;
            }
        }
        Ok(())
    }
}

/// What PCIe lets through between host memory and the NICs of these names, where it takes something off their line
/// rates or the links are known.
#[must_use]
pub fn path_ceiling<'a>(topology: &Topology, names: impl IntoIterator<Item = &'a str>) -> Option<Path> {
    let nics: Option<Vec<_>> =
        names.into_iter().map(|name| topology.nic_by_name(name).map(|nic| nic.id)).collect();
    let nics = nics.filter(|nics| !nics.is_empty())?;
    let ceiling = host_memory_ceiling(topology, &nics);
    let bound = match ceiling.bound {
        Bound::NicLink(at) => format!("PCIe link of the NIC at {at}"),
        Bound::BridgeLink(at) => format!("PCIe link of the bridge at {at}"),
        Bound::GpuLink(at) => format!("PCIe link of the GPU at {at}"),
        // The line rate is a ceiling of its own.
        _ => return None,
    };
    let others = if ceiling.links > 1 { format!(" and {} more", ceiling.links - 1) } else { String::new() };
    Some(Path { bps: ceiling.bps, bound: bound + &others })
}
