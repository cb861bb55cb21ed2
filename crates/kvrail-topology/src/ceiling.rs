//! What the rails of a GPU, or of host memory, can carry: the smaller of the NICs' line rates and of the PCIe links
//! between them and the memory.
//!
//! A link counts only where data crosses it: a NIC behind the same switch as the GPU does not use the switch's uplink.
//! The ways from several NICs to one memory form a tree that only narrows, so the most that arrives is found from its
//! leaves on: what enters a link is the sum of what leaves those before it, and what leaves it is at most its capacity.
//!
//! Links are counted without packet headers, so a ceiling that a link sets is 5–20 % above what can be reached. They are
//! what the source shows; on a virtual machine bridges may show less than the hardware has.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::distance::shared_bridges;
use crate::model::{Gpu, Nic, NicId, Topology};
use crate::pci::PciAddress;
use crate::rails::Rail;

/// What sets a ceiling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// There is no rail.
    NoRail,
    /// The NICs' line rates.
    LineRate,
    /// PCIe link of a NIC.
    NicLink(PciAddress),
    /// PCIe link of a bridge that the data has to cross.
    BridgeLink(PciAddress),
    /// PCIe link of the GPU.
    GpuLink(PciAddress),
}

/// The most that can be carried in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ceiling {
    /// Bit/s.
    pub bps: u64,
    /// Sum of the NICs' line rates (their shares of it, where they are divided), bit/s.
    pub line_rate_bps: u64,
    /// What sets it; the link that takes most where several do, of equal ones the first in PCI order.
    pub bound: Bound,
    /// How many links take something.
    pub links: u32,
    /// Whether all line rates are known. Where not, the ceiling is that of the known ones.
    pub complete: bool,
}

impl Ceiling {
    /// 10^9 bytes per second.
    pub fn gbytes_per_second(&self) -> f64 {
        self.bps as f64 / 8e9
    }
}

/// The ways of one memory's rails: for each the links from the NIC to the memory.
type Ways<'a> = Vec<(&'a Nic, Vec<PciAddress>)>;

/// Ceilings of all GPUs: alone, and while all are active.
pub(crate) fn of_gpus(topology: &Topology, rails: &[Vec<Rail>]) -> Vec<[Ceiling; 2]> {
    let gpus: Vec<(&Gpu, Ways<'_>)> = topology
        .gpus()
        .iter()
        .zip(rails)
        .map(|(gpu, rails)| {
            let nics = rails.iter().filter_map(|rail| topology.nic(rail.nic));
            (gpu, nics.map(|nic| (nic, way_to_gpu(gpu, nic))).collect())
        })
        .collect();
    let mut nic_users: BTreeMap<NicId, u64> = BTreeMap::new();
    let mut link_users: BTreeMap<PciAddress, u64> = BTreeMap::new();
    for (_, ways) in &gpus {
        ways.iter().for_each(|(nic, _)| *nic_users.entry(nic.id).or_default() += 1);
        let mut links: Vec<PciAddress> = ways.iter().flat_map(|(_, way)| way).copied().collect();
        links.sort_unstable();
        links.dedup();
        links.into_iter().for_each(|link| *link_users.entry(link).or_default() += 1);
    }
    let both = |(gpu, ways): &(&Gpu, Ways<'_>)| {
        let whole = |_: &Nic| 1;
        let shared = |nic: &Nic| nic_users.get(&nic.id).copied().unwrap_or(1);
        let link_shared = |link: PciAddress| link_users.get(&link).copied().unwrap_or(1);
        [flow(topology, Some(gpu), ways, whole, |_| 1), flow(topology, Some(gpu), ways, shared, link_shared)]
    };
    gpus.iter().map(both).collect()
}

/// What `nics` can carry between the network and host memory: each crosses all bridges above it.
pub fn host_memory_ceiling(topology: &Topology, nics: &[NicId]) -> Ceiling {
    let way = |nic: &Nic| nic.pci.into_iter().chain(nic_bridges(nic, 0)).collect::<Vec<_>>();
    let nics = nics.iter().filter_map(|nic| topology.nic(*nic));
    let ways: Ways<'_> = nics.map(|nic| (nic, way(nic))).collect();
    flow(topology, None, &ways, |_| 1, |_| 1)
}

/// The bridges above `nic`, innermost first, down to those that `shared` leaves.
fn nic_bridges(nic: &Nic, shared: usize) -> impl Iterator<Item = PciAddress> + '_ {
    nic.path.iter().flat_map(move |path| path.bridges.iter().skip(shared).rev().copied())
}

/// The links between `nic` and the memory of `gpu`.
fn way_to_gpu(gpu: &Gpu, nic: &Nic) -> Vec<PciAddress> {
    let (Some(gpu_path), Some(nic_path)) = (&gpu.path, &nic.path) else {
        // Where the tree is not known, both ends' links are.
        return nic.pci.into_iter().chain((!gpu.coherent).then_some(gpu.address)).collect();
    };
    let shared = shared_bridges(gpu_path, nic_path);
    let up = nic.pci.into_iter().chain(nic_bridges(nic, shared));
    if gpu.coherent && shared == 0 {
        return up.collect();
    }
    let down = gpu_path.bridges.iter().skip(shared).copied().chain([gpu.address]);
    up.chain(down).collect()
}

fn flow(
    topology: &Topology,
    gpu: Option<&Gpu>,
    ways: &Ways<'_>,
    nic_users: impl Fn(&Nic) -> u64,
    link_users: impl Fn(PciAddress) -> u64,
) -> Ceiling {
    // Links by how many follow on the way to the memory; that number is the same on every way that a link is on.
    let mut entering: BTreeMap<(Reverse<usize>, PciAddress), (u64, Option<PciAddress>)> = BTreeMap::new();
    let (mut arrived, mut line_rate_bps, mut complete) = (0u64, 0u64, true);
    for (nic, way) in ways {
        let rate = nic.rate_bps.unwrap_or(0) / nic_users(nic).max(1);
        complete &= nic.rate_bps.is_some();
        line_rate_bps = line_rate_bps.saturating_add(rate);
        match way.first() {
            None => arrived = arrived.saturating_add(rate),
            Some(first) => {
                for (place, link) in way.iter().enumerate() {
                    let key = (Reverse(way.len() - place), *link);
                    entering.entry(key).or_insert((0, way.get(place + 1).copied()));
                }
                let (bps, _) = entering.entry((Reverse(way.len()), *first)).or_default();
                *bps = bps.saturating_add(rate);
            }
        }
    }
    let capacity = |link: PciAddress| {
        let of_gpu = gpu.filter(|gpu| gpu.address == link).map(|gpu| gpu.link);
        let of_nic = || topology.nics().iter().find(|nic| nic.pci == Some(link)).map(|nic| nic.link);
        let of_bridge = || topology.bridge(link).map(|bridge| bridge.link);
        of_gpu.or_else(of_nic).or_else(of_bridge).flatten().map(|it| it.bps / link_users(link).max(1))
    };
    let mut bound = (0u64, if ways.is_empty() { Bound::NoRail } else { Bound::LineRate });
    let mut links = 0;
    while let Some(((Reverse(left), link), (bps, next))) = entering.pop_first() {
        let leaving = capacity(link).map_or(bps, |capacity| bps.min(capacity));
        if bps > leaving {
            links += 1;
        }
        if bps - leaving > bound.0 {
            bound = (bps - leaving, name_bound(gpu, ways, link));
        }
        match next.and_then(|next| entering.get_mut(&(Reverse(left - 1), next))) {
            Some((bps, _)) => *bps = bps.saturating_add(leaving),
            None => arrived = arrived.saturating_add(leaving),
        }
    }
    Ceiling { bps: arrived, line_rate_bps, bound: bound.1, links, complete }
}

fn name_bound(gpu: Option<&Gpu>, ways: &Ways<'_>, link: PciAddress) -> Bound {
    // The port above the GPU is the other end of the GPU's link.
    let port_of = |gpu: &Gpu| gpu.path.as_ref().and_then(|path| path.bridges.last().copied());
    if let Some(gpu) = gpu.filter(|gpu| gpu.address == link || port_of(gpu) == Some(link)) {
        Bound::GpuLink(gpu.address)
    } else if ways.iter().any(|(nic, _)| nic.pci == Some(link)) {
        Bound::NicLink(link)
    } else {
        Bound::BridgeLink(link)
    }
}
