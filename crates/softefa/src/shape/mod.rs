//! Shapes of nodes: what an EC2 instance of some type is made of, as data.
//!
//! A [`Shape`] says which processors, NUMA nodes, PCI root complexes, bridges, GPUs and EFA devices a node has
//! and where each sits; it decides nothing else. [`crate::sysfs`] writes it down as the kernel would, the emulated
//! device takes names and rates from it, and whoever plans rails can ask which NICs are nearest to a GPU.
//!
//! The tree is held as PCI holds it: by bus numbers. A bridge leads to the buses from `secondary` to
//! `subordinate`, a device's parent is the bridge whose secondary bus it sits on, and a device on the first bus of
//! a root complex has none. Nothing can point to a parent that does not exist without [`Shape::validate`] seeing it.

mod build;
mod cpu;
mod ec2;
mod pci;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use cpu::{CACHE_LINE_BYTES, CacheKind, CacheShape, CpuModel, CpuPlace, CpuSet, CpuShape};
pub use pci::{
    BadPciAddress, CLASS_3D, CLASS_BRIDGE, CLASS_ETHERNET, CLASS_OTHER_BRIDGE, PciAddress, PciIds, PciLink,
    VENDOR_AMAZON, VENDOR_NVIDIA,
};

/// Most NICs a node can have.
pub const NICS_MAX: usize = softefa_fabric::NICS_PER_NODE_MAX as usize;

/// Names that [`Shape::named`] knows besides `generic`.
pub const NAMES: [&str; 6] = ["p4d", "p4de", "p5", "p5en", "p6-b200", "gb200"];

/// Generation of an EFA device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EfaGeneration {
    /// PCI id 1d0f:efa0 (P4d): RDMA read only.
    V1,
    /// PCI id 1d0f:efa1 (P5): RDMA write added.
    V2,
    /// PCI id 1d0f:efa2 (P5en).
    V3,
    /// PCI id 1d0f:efa3 (P6).
    V4,
}

impl EfaGeneration {
    /// PCI device id under [`VENDOR_AMAZON`].
    pub const fn device_id(self) -> u16 {
        match self {
            EfaGeneration::V1 => 0xefa0,
            EfaGeneration::V2 => 0xefa1,
            EfaGeneration::V3 => 0xefa2,
            EfaGeneration::V4 => 0xefa3,
        }
    }

    /// Whether its devices offer RDMA write.
    pub const fn has_rdma_write(self) -> bool {
        !matches!(self, EfaGeneration::V1)
    }
}

/// An EFA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicShape {
    /// RDMA device name, e.g. `rdmap79s0`.
    pub name: String,
    /// PCI address.
    pub address: PciAddress,
    /// Generation; decides PCI ids.
    pub generation: EfaGeneration,
    /// Rate of its port in bit/s.
    pub rate_bps: u64,
    /// PCIe link; `None` where the device shows no PCIe capability (P4d).
    pub link: Option<PciLink>,
    /// NUMA node.
    pub numa_node: u32,
}

impl NicShape {
    /// PCI ids.
    pub fn ids(&self) -> PciIds {
        PciIds::amazon(self.generation.device_id(), CLASS_ETHERNET)
    }
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuShape {
    /// Model as NVIDIA's driver names it.
    pub model: String,
    /// PCI address.
    pub address: PciAddress,
    /// PCI ids.
    pub ids: PciIds,
    /// PCIe link.
    pub link: Option<PciLink>,
    /// NUMA node.
    pub numa_node: u32,
}

/// A PCI function that is there but plays no part here, e.g. an NVSwitch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherShape {
    /// PCI address.
    pub address: PciAddress,
    /// PCI ids.
    pub ids: PciIds,
    /// Name of the kernel driver bound to it.
    pub driver: String,
    /// PCIe link.
    pub link: Option<PciLink>,
    /// NUMA node.
    pub numa_node: u32,
}

/// What a bridge is in PCI Express.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BridgeKind {
    /// Port of a root complex.
    RootPort,
    /// A switch's port towards the root.
    SwitchUpstream,
    /// A switch's port towards a device.
    SwitchDownstream,
}

/// A PCI-to-PCI bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeShape {
    /// PCI address; its bus is the primary bus.
    pub address: PciAddress,
    /// What it is.
    pub kind: BridgeKind,
    /// Bus right below.
    pub secondary: u8,
    /// Last bus below.
    pub subordinate: u8,
    /// PCIe link.
    pub link: PciLink,
    /// NUMA node.
    pub numa_node: u32,
}

/// A PCI root complex: the first bus of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootShape {
    /// PCI segment.
    pub domain: u16,
    /// First bus.
    pub bus: u8,
    /// Last bus.
    pub last_bus: u8,
    /// NUMA node.
    pub numa_node: u32,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaShape {
    /// Indices into [`CpuShape::packages`] of the packages it holds.
    pub packages: Vec<u32>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Distance to each node, itself included, as the firmware's table gives it (10 = local).
    pub distances: Vec<u32>,
}

/// What a node is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Short name: `p5`.
    pub name: String,
    /// EC2 instance type, as the firmware's product name gives it: `p5.48xlarge`.
    pub instance_type: String,
    /// Processors.
    pub cpu: CpuShape,
    /// NUMA nodes; a node's number is its place here.
    pub numa_nodes: Vec<NumaShape>,
    /// PCI root complexes.
    pub roots: Vec<RootShape>,
    /// PCI bridges. Empty hot-plug ports of the real machines are left out.
    pub bridges: Vec<BridgeShape>,
    /// EFA devices in PCI order: the order in which drivers list them.
    pub nics: Vec<NicShape>,
    /// GPUs in PCI order.
    pub gpus: Vec<GpuShape>,
    /// Other functions.
    pub others: Vec<OtherShape>,
}

/// A shape that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// No shape has that name.
    #[error("unknown shape '{name}': known are generic, {}", NAMES.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// More NICs than there are, or none.
    #[error("shape {shape} cannot have {asked} NICs: give a number from 1 to {max}")]
    NicCount {
        /// The shape's name.
        shape: String,
        /// The number asked for.
        asked: usize,
        /// The most it can have.
        max: usize,
    },
    /// No NUMA node asked for.
    #[error("shape {shape} needs at least one NUMA node")]
    NoNumaNode {
        /// The shape's name.
        shape: String,
    },
    /// A shape that came from outside contradicts itself.
    #[error("shape {shape} contradicts itself: {what}")]
    Inconsistent {
        /// The shape's name.
        shape: String,
        /// What does not fit.
        what: String,
    },
}

impl Shape {
    /// The shape of that name: one of [`NAMES`], a full instance type (`p5.48xlarge`), or `generic` (one NIC).
    pub fn named(name: &str) -> Result<Shape, ShapeError> {
        match name {
            "generic" => Shape::generic(1),
            _ => ec2::named(name).ok_or_else(|| ShapeError::Unknown { name: name.to_string() }),
        }
    }

    /// A node of one NUMA node without GPUs, with `nics` 100 Gb/s EFA devices behind one switch. Its NUMA tree is
    /// the one a laptop or CI machine has too, so that what reads libnuma and what reads this root agree.
    pub fn generic(nics: usize) -> Result<Shape, ShapeError> {
        if nics == 0 || nics > NICS_MAX {
            return Err(ShapeError::NicCount { shape: "generic".to_string(), asked: nics, max: NICS_MAX });
        }
        Ok(ec2::generic(nics))
    }

    /// This shape with its first `nics` NICs only; bridges that then lead nowhere go too.
    pub fn with_nics(mut self, nics: usize) -> Result<Shape, ShapeError> {
        if nics == 0 || nics > self.nics.len() {
            return Err(ShapeError::NicCount { shape: self.name, asked: nics, max: self.nics.len() });
        }
        self.nics.truncate(nics);
        let ends: BTreeSet<(u16, u8)> = self.endpoints().map(|end| (end.domain, end.bus)).collect();
        let in_use = |domain, first, last| ends.range((domain, first)..=(domain, last)).next().is_some();
        self.bridges.retain(|bridge| in_use(bridge.address.domain, bridge.secondary, bridge.subordinate));
        self.roots.retain(|root| in_use(root.domain, root.bus, root.last_bus));
        Ok(self)
    }

    /// This shape on at most `nodes` NUMA nodes: the others fold onto these, devices with them.
    ///
    /// hwloc can be pointed to another root, libnuma cannot. A program that uses both (NIXL's LIBFABRIC plugin does)
    /// rejects NICs on a NUMA node that the host lacks; on such a host the shape has to be folded to its size.
    pub fn folded_to_numa_nodes(mut self, nodes: u32) -> Result<Shape, ShapeError> {
        if nodes == 0 {
            return Err(ShapeError::NoNumaNode { shape: self.name });
        }
        let kept = (nodes as usize).min(self.numa_nodes.len()).max(1);
        for (index, gone) in
            self.numa_nodes.split_off(kept.min(self.numa_nodes.len())).into_iter().enumerate()
        {
            let onto = &mut self.numa_nodes[index % kept];
            onto.packages.extend(gone.packages);
            onto.memory_bytes = onto.memory_bytes.saturating_add(gone.memory_bytes);
        }
        self.numa_nodes.iter_mut().for_each(|node| node.distances.truncate(kept));
        let fold = |node: &mut u32| *node %= kept as u32;
        self.roots.iter_mut().for_each(|it| fold(&mut it.numa_node));
        self.bridges.iter_mut().for_each(|it| fold(&mut it.numa_node));
        self.nics.iter_mut().for_each(|it| fold(&mut it.numa_node));
        self.gpus.iter_mut().for_each(|it| fold(&mut it.numa_node));
        self.others.iter_mut().for_each(|it| fold(&mut it.numa_node));
        Ok(self)
    }

    /// Addresses of all functions that are no bridges.
    pub fn endpoints(&self) -> impl Iterator<Item = PciAddress> + '_ {
        let nics = self.nics.iter().map(|nic| nic.address);
        let gpus = self.gpus.iter().map(|gpu| gpu.address);
        nics.chain(gpus).chain(self.others.iter().map(|other| other.address))
    }

    /// The bridge right above `address`; `None` on a root complex's first bus.
    pub fn parent(&self, address: PciAddress) -> Option<&BridgeShape> {
        self.bridges
            .iter()
            .find(|bridge| bridge.address.domain == address.domain && bridge.secondary == address.bus)
    }

    /// The root complex above `address`.
    pub fn root(&self, address: PciAddress) -> Option<&RootShape> {
        self.roots
            .iter()
            .find(|root| root.domain == address.domain && (root.bus..=root.last_bus).contains(&address.bus))
    }

    /// The bridges above `address`, outermost first.
    pub fn bridges_above(&self, address: PciAddress) -> Vec<&BridgeShape> {
        let mut above = Vec::new();
        let mut at = address;
        // Bounded, so that bridges in a circle (a shape from outside) end too.
        while let (Some(bridge), true) = (self.parent(at), above.len() <= self.bridges.len()) {
            above.push(bridge);
            at = bridge.address;
        }
        above.reverse();
        above
    }

    /// Path of a function below `/sys`: `devices/pci0000:44/0000:44:00.0/…/0000:4f:00.0`.
    pub fn sysfs_path(&self, address: PciAddress) -> Option<String> {
        let root = self.root(address)?;
        let mut path = format!("devices/pci{:04x}:{:02x}", root.domain, root.bus);
        for bridge in self.bridges_above(address) {
            path.push('/');
            path.push_str(&bridge.address.to_string());
        }
        path.push('/');
        path.push_str(&address.to_string());
        Some(path)
    }

    /// Indices of the NICs that share most of their way to the processor with the GPU at index `gpu`.
    pub fn nearest_nics(&self, gpu: usize) -> Vec<usize> {
        let Some(gpu) = self.gpus.get(gpu) else { return Vec::new() };
        let way = |address: PciAddress| {
            let root = self.root(address).map(|root| (root.domain, root.bus));
            let bridges = self.bridges_above(address).into_iter().map(|bridge| bridge.address);
            (root, bridges.collect::<Vec<_>>())
        };
        let (root, bridges) = way(gpu.address);
        let shared = |nic: &NicShape| {
            let (nic_root, nic_bridges) = way(nic.address);
            let same_node = usize::from(nic.numa_node == gpu.numa_node);
            if nic_root != root {
                return same_node;
            }
            2 + bridges.iter().zip(&nic_bridges).take_while(|(one, other)| one == other).count()
        };
        let most = self.nics.iter().map(shared).max();
        (0..self.nics.len()).filter(|nic| Some(shared(&self.nics[*nic])) == most).collect()
    }

    /// The logical CPUs of NUMA node `node`.
    pub fn numa_cpus(&self, node: u32) -> CpuSet {
        let mut cpus = CpuSet::empty(self.cpu.count());
        for package in self.numa_nodes.get(node as usize).map_or(&[][..], |node| &node.packages) {
            cpus.extend(&self.cpu.package(*package));
        }
        cpus
    }

    /// Whether all parts fit together; what Root::create relies on for a shape that was read from a file.
    pub fn validate(&self) -> Result<(), ShapeError> {
        build::validate(self).map_err(|what| ShapeError::Inconsistent { shape: self.name.clone(), what })
    }
}
