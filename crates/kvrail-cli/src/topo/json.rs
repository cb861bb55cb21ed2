//! Schema `kvrail.topo.v1`: described in docs/topology.md. No GUIDs, GIDs or MAC addresses are in it.

use std::collections::BTreeMap;

use kvrail_topology::{
    Bound, Ceiling, Exclusion, Gpu, LinkState, Nic, NicId, NicKind, Origin, PciAddress, PciLink, PciPath,
    RateSource, Source, Topology, distance, host_memory_ceiling,
};
use serde::Serialize;

use super::view;
use crate::failure::Failure;

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    kvrail: &'static str,
    source: SourceJson,
    machine: Option<&'a str>,
    numa_nodes: Vec<NumaJson>,
    bridges: Vec<BridgeJson>,
    gpus: Vec<GpuJson<'a>>,
    nics: Vec<NicJson<'a>>,
    warnings: Vec<WarningJson<'a>>,
}

#[derive(Serialize)]
struct SourceJson {
    kind: &'static str,
    path: String,
}

#[derive(Serialize)]
struct NumaJson {
    id: u32,
    cpus: String,
    memory_bytes: Option<u64>,
    distances: BTreeMap<u32, u32>,
    rails: Vec<String>,
    ceiling: CeilingJson,
}

#[derive(Serialize)]
struct BridgeJson {
    address: String,
    numa_node: Option<u32>,
    link: Option<LinkJson>,
}

#[derive(Serialize)]
struct PathJson {
    root_complex: String,
    bridges: Vec<String>,
}

#[derive(Serialize)]
struct LinkJson {
    bps: u64,
    generation: Option<u8>,
    width: Option<u8>,
}

#[derive(Serialize)]
struct GpuJson<'a> {
    ordinal: u32,
    address: String,
    model: Option<&'a str>,
    device_id: Option<String>,
    numa_node: Option<u32>,
    path: Option<PathJson>,
    link: Option<LinkJson>,
    coherent: bool,
    rails: Vec<RailJson<'a>>,
    ceiling_alone: CeilingJson,
    ceiling_all_active: CeilingJson,
    distances: BTreeMap<&'a str, &'static str>,
}

#[derive(Serialize)]
struct RailJson<'a> {
    nic: &'a str,
    distance: &'static str,
    gpus_sharing: u32,
}

#[derive(Serialize)]
struct CeilingJson {
    bps: u64,
    line_rate_bps: u64,
    bound: &'static str,
    bound_address: Option<String>,
    bounding_links: u32,
    complete: bool,
}

#[derive(Serialize)]
struct NicJson<'a> {
    name: &'a str,
    kind: &'static str,
    address: Option<String>,
    numa_node: Option<u32>,
    path: Option<PathJson>,
    link: Option<LinkJson>,
    driver: Option<&'a str>,
    rate_bps: Option<u64>,
    rate_source: Option<&'static str>,
    state: &'static str,
    state_detail: Option<&'a str>,
    port: Option<u8>,
    link_layer: Option<&'a str>,
    interfaces: &'a [String],
    gpus: Vec<u32>,
    excluded: Option<&'static str>,
}

#[derive(Serialize)]
struct WarningJson<'a> {
    place: &'a str,
    what: &'a str,
}

/// The document, with a newline at its end.
pub(super) fn write(topology: &Topology, source: &Source) -> Result<String, Failure> {
    let served = view::gpus_of_nics(topology);
    let serves = |nic: NicId| served.get(&nic).into_iter().flatten().map(|gpu| gpu.0).collect();
    let document = Document {
        schema: "kvrail.topo.v1",
        kvrail: crate::environment::VERSION,
        source: SourceJson {
            kind: match topology.origin() {
                Origin::Sysfs => "sysfs",
                Origin::Hwloc => "hwloc",
            },
            path: source.path().display().to_string(),
        },
        machine: topology.machine(),
        numa_nodes: topology.numa_nodes().iter().map(|node| numa(topology, node)).collect(),
        bridges: topology
            .bridges()
            .map(|bridge| BridgeJson {
                address: bridge.address.to_string(),
                numa_node: bridge.numa,
                link: bridge.link.map(link),
            })
            .collect(),
        gpus: topology.gpus().iter().map(|it| gpu(topology, it)).collect(),
        nics: topology.nics().iter().map(|it| nic(topology, it, serves(it.id))).collect(),
        warnings: topology
            .warnings()
            .iter()
            .map(|warning| WarningJson { place: &warning.place, what: &warning.what })
            .collect(),
    };
    let text = serde_json::to_string_pretty(&document).map_err(|e| Failure::environment(e.to_string()))?;
    Ok(text + "\n")
}

fn numa(topology: &Topology, node: &kvrail_topology::NumaNode) -> NumaJson {
    let rails = topology.rails_of_numa(node.id);
    NumaJson {
        id: node.id,
        cpus: node.cpu_list(),
        memory_bytes: node.memory_bytes,
        distances: node.distances.clone(),
        rails: rails.iter().filter_map(|nic| Some(topology.nic(*nic)?.name.clone())).collect(),
        ceiling: ceiling(&host_memory_ceiling(topology, &rails)),
    }
}

fn gpu<'a>(topology: &'a Topology, gpu: &'a Gpu) -> GpuJson<'a> {
    let rails = &topology.assignment().gpus[gpu.id.0 as usize];
    let rail = |rail: &kvrail_topology::Rail| {
        Some(RailJson {
            nic: &topology.nic(rail.nic)?.name,
            distance: rail.distance.name(),
            gpus_sharing: rail.gpus,
        })
    };
    GpuJson {
        ordinal: gpu.id.0,
        address: gpu.address.to_string(),
        model: gpu.model.as_deref(),
        device_id: gpu.device_id.map(|id| format!("10de:{id:04x}")),
        numa_node: gpu.numa,
        path: gpu.path.as_ref().map(path),
        link: gpu.link.map(link),
        coherent: gpu.coherent,
        rails: rails.rails.iter().filter_map(rail).collect(),
        ceiling_alone: ceiling(&rails.alone),
        ceiling_all_active: ceiling(&rails.all_active),
        distances: topology
            .nics()
            .iter()
            .map(|nic| (nic.name.as_str(), distance(topology, gpu, nic).name()))
            .collect(),
    }
}

fn nic<'a>(topology: &'a Topology, nic: &'a Nic, gpus: Vec<u32>) -> NicJson<'a> {
    let (state, state_detail) = match &nic.state {
        LinkState::Up => ("up", None),
        LinkState::Down(word) => ("down", Some(word.as_str())),
        LinkState::Unknown => ("unknown", None),
    };
    NicJson {
        name: &nic.name,
        kind: match nic.kind {
            NicKind::Rdma => "rdma",
            NicKind::Ethernet => "ethernet",
        },
        address: nic.pci.map(|address| address.to_string()),
        numa_node: nic.numa,
        path: nic.path.as_ref().map(path),
        link: nic.link.map(link),
        driver: nic.driver.as_deref(),
        rate_bps: nic.rate_bps,
        rate_source: nic.rate_source.map(|source| match source {
            RateSource::Port => "port",
            RateSource::InstanceType => "instance_type",
        }),
        state,
        state_detail,
        port: nic.port,
        link_layer: nic.link_layer.as_deref(),
        interfaces: &nic.interfaces,
        gpus,
        excluded: view::exclusion(topology, nic.id).map(|why| match why {
            Exclusion::Down(_) => "down",
            Exclusion::NotRdma => "not_rdma",
        }),
    }
}

fn path(path: &PciPath) -> PathJson {
    PathJson {
        root_complex: path.root.to_string(),
        bridges: path.bridges.iter().map(PciAddress::to_string).collect(),
    }
}

fn link(link: PciLink) -> LinkJson {
    LinkJson { bps: link.bps, generation: link.generation(), width: link.lanes.map(|(_, width)| width) }
}

fn ceiling(ceiling: &Ceiling) -> CeilingJson {
    let (bound, address) = match ceiling.bound {
        Bound::NoRail => ("no_rail", None),
        Bound::LineRate => ("line_rate", None),
        Bound::NicLink(address) => ("nic_link", Some(address)),
        Bound::BridgeLink(address) => ("bridge_link", Some(address)),
        Bound::GpuLink(address) => ("gpu_link", Some(address)),
    };
    CeilingJson {
        bps: ceiling.bps,
        line_rate_bps: ceiling.line_rate_bps,
        bound,
        bound_address: address.map(|address| address.to_string()),
        bounding_links: ceiling.links,
        complete: ceiling.complete,
    }
}
