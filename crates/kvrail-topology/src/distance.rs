//! How far two PCI devices are from each other, in the words of `nvidia-smi topo -m`.

use std::fmt;

use crate::model::{Gpu, Nic, Topology};
use crate::pci::PciPath;

/// What lies between two devices. Ordered from near to far.
///
/// A switch counts as one bridge, though the kernel shows each of its ports as one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Distance {
    /// At most one PCIe bridge: the same switch, or two functions of one device.
    Pix,
    /// Several PCIe bridges, but not the host bridge.
    Pxb,
    /// The host bridge: the same root complex.
    Phb,
    /// The interconnect between root complexes of one NUMA node.
    Node,
    /// The interconnect between NUMA nodes.
    Sys,
    /// The source does not say where one of the two is.
    Unknown,
}

impl Distance {
    /// The word of `nvidia-smi`; `?` where it is not known.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Node => "NODE",
            Self::Sys => "SYS",
            Self::Unknown => "?",
        }
    }

    /// What lies between, in words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Pix => "at most one PCIe bridge (a switch counts as one)",
            Self::Pxb => "several PCIe bridges, not the host bridge",
            Self::Phb => "the host bridge of one root complex",
            Self::Node => "root complexes of one NUMA node",
            Self::Sys => "the interconnect between NUMA nodes",
            Self::Unknown => "the source does not say",
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A distance with what decides between equal ones: fewer bridges within a tree, a lower entry of the firmware's NUMA
/// distances between nodes. Ordered from near to far.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nearness {
    /// The distance.
    pub distance: Distance,
    /// Bridges on the way (PIX, PXB), or the NUMA distance (SYS); 0 for the others.
    pub tie: u32,
}

/// How far `nic` is from `gpu`.
pub fn distance(topology: &Topology, gpu: &Gpu, nic: &Nic) -> Distance {
    nearness(topology, gpu, nic).distance
}

/// How near `nic` is to `gpu`, finer than [`distance`].
pub fn nearness(topology: &Topology, gpu: &Gpu, nic: &Nic) -> Nearness {
    let within_tree = gpu.path.as_ref().zip(nic.path.as_ref()).and_then(|(gpu, nic)| within_tree(gpu, nic));
    if let Some(near) = within_tree {
        return near;
    }
    let nodes = topology.numa_of(gpu.numa).zip(topology.numa_of(nic.numa));
    match nodes {
        Some((one, other)) if one == other => Nearness { distance: Distance::Node, tie: 0 },
        Some((one, other)) => Nearness { distance: Distance::Sys, tie: topology.numa_distance(one, other) },
        None => Nearness { distance: Distance::Unknown, tie: 0 },
    }
}

/// Nearness of two functions of one root complex; `None` for two root complexes.
fn within_tree(one: &PciPath, other: &PciPath) -> Option<Nearness> {
    if one.root != other.root {
        return None;
    }
    let shared = shared_bridges(one, other);
    if shared == 0 {
        return Some(Nearness { distance: Distance::Phb, tie: 0 });
    }
    // What is left on each side below the innermost shared bridge. Behind one switch that is its own downstream port.
    let (left, right) = (one.bridges.len() - shared, other.bridges.len() - shared);
    let distance = if left <= 1 && right <= 1 { Distance::Pix } else { Distance::Pxb };
    Some(Nearness { distance, tie: u32::try_from(left + right).unwrap_or(u32::MAX) })
}

/// How many bridges, from the root on, both ways have in common.
pub(crate) fn shared_bridges(one: &PciPath, other: &PciPath) -> usize {
    if one.root != other.root {
        return 0;
    }
    one.bridges.iter().zip(&other.bridges).take_while(|(one, other)| one == other).count()
}
