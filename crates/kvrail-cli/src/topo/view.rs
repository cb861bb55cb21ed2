//! What is drawn: devices below switches below root complexes on NUMA nodes, bridges that lead to one thing left out.

use std::collections::BTreeMap;

use kvrail_topology::{
    Bound, Ceiling, Exclusion, Gpu, GpuId, LinkState, Nic, NicId, NicKind, PciAddress, PciLink, PciPath,
    RootComplex, Topology,
};

/// One thing below a root complex or switch.
pub(super) enum Part {
    Switch(Switch),
    Gpu(GpuId),
    Nic(NicId),
}

/// A bridge, or a chain of them, that leads to several things: a PCIe switch.
pub(super) struct Switch {
    /// The innermost bridge of the chain: the switch's upstream port.
    pub(super) address: PciAddress,
    /// The slowest link of the chain.
    pub(super) uplink: Option<PciLink>,
    pub(super) parts: Vec<Part>,
}

/// A root complex and what is below it; `None` for devices whose place is not known.
pub(super) struct Root {
    pub(super) root: Option<RootComplex>,
    pub(super) parts: Vec<Part>,
}

/// A NUMA node and the root complexes on it; `None` for those whose node is not known.
pub(super) struct Node {
    pub(super) id: Option<u32>,
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, Copy)]
enum Device<'a> {
    Gpu(&'a Gpu),
    Nic(&'a Nic),
}

impl Device<'_> {
    fn path(&self) -> Option<&PciPath> {
        match self {
            Self::Gpu(gpu) => gpu.path.as_ref(),
            Self::Nic(nic) => nic.path.as_ref(),
        }
    }

    fn address(&self) -> Option<PciAddress> {
        match self {
            Self::Gpu(gpu) => Some(gpu.address),
            Self::Nic(nic) => nic.pci,
        }
    }

    fn numa(&self) -> Option<u32> {
        match self {
            Self::Gpu(gpu) => gpu.numa,
            Self::Nic(nic) => nic.numa,
        }
    }

    fn part(&self) -> Part {
        match self {
            Self::Gpu(gpu) => Part::Gpu(gpu.id),
            Self::Nic(nic) => Part::Nic(nic.id),
        }
    }
}

/// All NUMA nodes, those without devices too, then what is on none.
pub(super) fn nodes(topology: &Topology) -> Vec<Node> {
    let gpus = topology.gpus().iter().map(Device::Gpu);
    let mut devices: Vec<Device<'_>> = gpus.chain(topology.nics().iter().map(Device::Nic)).collect();
    // Stable, so that devices without an address stay in the order of their names, after the others.
    devices.sort_by_key(|device| (device.address().is_none(), device.address()));
    let mut roots: BTreeMap<(Option<u32>, Option<RootComplex>), Vec<Device<'_>>> = BTreeMap::new();
    for device in devices {
        let root = device.path().map(|path| path.root);
        roots.entry((topology.numa_of(device.numa()), root)).or_default().push(device);
    }
    let mut nodes: BTreeMap<(bool, Option<u32>), Vec<Root>> = BTreeMap::new();
    topology.numa_nodes().iter().for_each(|node| drop(nodes.insert((false, Some(node.id)), Vec::new())));
    for ((numa, root), devices) in roots {
        let parts = parts(topology, &devices, 0);
        nodes.entry((numa.is_none(), numa)).or_default().push(Root { root, parts });
    }
    nodes.into_iter().map(|((_, id), roots)| Node { id, roots }).collect()
}

/// The devices that share their first `depth` bridges, grouped by the next one. In PCI order.
fn parts(topology: &Topology, devices: &[Device<'_>], depth: usize) -> Vec<Part> {
    let bridge_of = |device: &Device<'_>| device.path().and_then(|path| path.bridges.get(depth).copied());
    let mut groups: Vec<(Option<PciAddress>, Vec<Device<'_>>)> = Vec::new();
    for device in devices {
        let bridge = bridge_of(device);
        match groups.iter_mut().find(|(it, _)| bridge.is_some() && *it == bridge) {
            Some((_, group)) => group.push(*device),
            None => groups.push((bridge, vec![*device])),
        }
    }
    let part = |(bridge, group): (Option<PciAddress>, Vec<Device<'_>>)| {
        let (Some(address), [_, _, ..]) = (bridge, &group[..]) else { return group[0].part() };
        let link = topology.bridge(address).and_then(|bridge| bridge.link);
        let mut below = parts(topology, &group, depth + 1);
        match (below.len(), below.pop()) {
            (1, Some(Part::Switch(inner))) => {
                let uplink = [link, inner.uplink].into_iter().flatten().min_by_key(|link| link.bps);
                Part::Switch(Switch { uplink, ..inner })
            }
            (_, last) => {
                below.extend(last);
                Part::Switch(Switch { address, uplink: link, parts: below })
            }
        }
    };
    groups.into_iter().map(part).collect()
}

/// `100 Gb/s`; `rate unknown`.
pub(super) fn rate(nic: &Nic) -> String {
    nic.rate_bps.map_or_else(|| "rate unknown".into(), gbits)
}

/// `100 Gb/s`, `2.5 Gb/s`.
pub(super) fn gbits(bps: u64) -> String {
    let gbps = bps as f64 / 1e9;
    if (gbps - gbps.round()).abs() < 0.05 { format!("{gbps:.0} Gb/s") } else { format!("{gbps:.1} Gb/s") }
}

/// `50.0 GB/s` of bits per second.
pub(super) fn gbytes(bps: u64) -> String {
    format!("{} GB/s", gbytes_number(bps))
}

/// `50.0`, `6.25`: 10^9 bytes per second of bits per second.
pub(super) fn gbytes_number(bps: u64) -> String {
    let gbytes = bps as f64 / 8e9;
    if gbytes < 10.0 && bps > 0 { format!("{gbytes:.2}") } else { format!("{gbytes:.1}") }
}

/// `Gen5 x16 (63.0 GB/s)`.
pub(super) fn link(link: PciLink) -> String {
    match link.lanes {
        Some(_) => format!("{link} ({})", gbytes(link.bps)),
        None => link.to_string(),
    }
}

/// `up`, `down (INIT)`, `state unknown`.
pub(super) fn state(nic: &Nic) -> String {
    match &nic.state {
        LinkState::Up => "up".into(),
        LinkState::Down(word) if word.is_empty() || word.eq_ignore_ascii_case("down") => "DOWN".into(),
        LinkState::Down(word) => format!("DOWN ({word})"),
        LinkState::Unknown => "state unknown".into(),
    }
}

/// What sets a ceiling, short.
pub(super) fn bound(ceiling: &Ceiling) -> String {
    match ceiling.bound {
        Bound::NoRail => "no rail".into(),
        Bound::LineRate if !ceiling.complete => "line rate not known".into(),
        Bound::LineRate => "line rate".into(),
        Bound::NicLink(address) => format!("NIC link {address}"),
        Bound::BridgeLink(address) => format!("uplink {address}"),
        Bound::GpuLink(_) => "GPU link".into(),
    }
}

/// Ordinals of the GPUs that each NIC serves.
pub(super) fn gpus_of_nics(topology: &Topology) -> BTreeMap<NicId, Vec<GpuId>> {
    let mut served: BTreeMap<NicId, Vec<GpuId>> = BTreeMap::new();
    for gpu in &topology.assignment().gpus {
        gpu.rails.iter().for_each(|rail| served.entry(rail.nic).or_default().push(gpu.gpu));
    }
    served
}

/// Why a NIC is no rail; `None` if it is one.
pub(super) fn exclusion(topology: &Topology, nic: NicId) -> Option<&Exclusion> {
    topology.assignment().excluded.iter().find(|(it, _)| *it == nic).map(|(_, why)| why)
}

/// A NIC's driver, or what kind of device it is.
pub(super) fn kind(nic: &Nic) -> &str {
    let kind = match nic.kind {
        NicKind::Rdma => "rdma",
        NicKind::Ethernet => "ethernet",
    };
    nic.driver.as_deref().unwrap_or(kind)
}

/// `8 GPUs`, `1 GPU`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The host in one line.
pub(super) fn summary(topology: &Topology) -> String {
    let rdma: Vec<&Nic> = topology.nics().iter().filter(|nic| nic.kind == NicKind::Rdma).collect();
    let others = topology.nics().len() - rdma.len();
    let mut said = vec![count(topology.numa_nodes().len(), "NUMA node"), count(topology.gpus().len(), "GPU")];
    if !rdma.is_empty() {
        let rails = kvrail_topology::usable_nics(topology);
        let bps: u64 = rails.iter().filter_map(|nic| topology.nic(*nic)?.rate_bps).sum();
        said.push(format!("{} ({} up)", count(rdma.len(), "RDMA NIC"), gbits(bps)));
    }
    if others > 0 || rdma.is_empty() {
        said.push(count(others, "other network interface"));
    }
    format!("{}: {}", topology.machine().unwrap_or("this host"), said.join(", "))
}

/// What a reader may miss: no GPU, no RDMA device.
pub(super) fn remarks(topology: &Topology) -> Vec<String> {
    let mut remarks = Vec::new();
    if topology.gpus().is_empty() {
        remarks.push("No NVIDIA GPU: only host memory has rails here.".to_string());
    }
    if topology.nics().iter().all(|nic| nic.kind != NicKind::Rdma) {
        remarks.push(
            "No RDMA device (EFA, InfiniBand, RoCE): rails are network interfaces, over tcp.".to_string(),
        );
    }
    let name = |nic: &NicId| topology.nic(*nic).map_or_else(String::new, |nic| nic.name.clone());
    for (nic, why) in &topology.assignment().excluded {
        match why {
            Exclusion::Down(_) => {
                let state = topology.nic(*nic).map(state).unwrap_or_default();
                remarks.push(format!("{} is {state}: it is left out.", name(nic)));
            }
            Exclusion::NotRdma => {}
        }
    }
    for (nic, gpus) in gpus_of_nics(topology).iter().filter(|(_, gpus)| gpus.len() > 1) {
        let gpus: Vec<String> = gpus.iter().map(|gpu| gpu.0.to_string()).collect();
        let (name, share) = (name(nic), gpus.len());
        let gpus = gpus.join(", ");
        remarks
            .push(format!("{name} is shared by GPUs {gpus}: 1/{share} of it for each while all transfer."));
    }
    remarks
}
