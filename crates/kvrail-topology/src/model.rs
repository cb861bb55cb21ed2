//! The model: what a source says of a host. Plain data, in PCI order; nothing here reads files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::OnceLock;

use crate::pci::{PciAddress, PciLink, PciPath};
use crate::rails::{Assignment, Rail, rails_of_gpus, usable_nics};

/// A NIC of one [`Topology`]: its place in [`Topology::nics`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NicId(pub u32);

/// A GPU of one [`Topology`]: its ordinal, counted from 0 in the order of PCI addresses. That is CUDA's ordinal only
/// with `CUDA_DEVICE_ORDER=PCI_BUS_ID` and no `CUDA_VISIBLE_DEVICES`; where in doubt ask by PCI address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GpuId(pub u32);

/// A NUMA node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NumaNode {
    /// The kernel's number.
    pub id: u32,
    /// Its logical CPUs; empty where the source does not say, and for nodes of memory alone.
    pub cpus: BTreeSet<u32>,
    /// Its memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Distance to each node by the firmware's table (10 = local), as far as known.
    pub distances: BTreeMap<u32, u32>,
}

impl NumaNode {
    /// Its CPUs as the kernel lists them: `0-47,96-143`.
    pub fn cpu_list(&self) -> String {
        crate::sets::list(&self.cpus)
    }
}

/// A PCI-to-PCI bridge on the way to a GPU or NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// Its address.
    pub address: PciAddress,
    /// NUMA node.
    pub numa: Option<u32>,
    /// Its link: that above a switch's upstream port, that below a root port or downstream port.
    pub link: Option<PciLink>,
}

/// An NVIDIA GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gpu {
    /// Its ordinal.
    pub id: GpuId,
    /// Its address.
    pub address: PciAddress,
    /// The model as NVIDIA names it, where its PCI id is known here or the source names it.
    pub model: Option<String>,
    /// PCI device id under vendor 10de; `None` where the source does not say.
    pub device_id: Option<u16>,
    /// NUMA node.
    pub numa: Option<u32>,
    /// The way to it; `None` where the source shows no tree.
    pub path: Option<PciPath>,
    /// Its PCIe link at the speed that it can reach: an idle GPU lowers the speed, so the current one means little.
    pub link: Option<PciLink>,
    /// Whether it is tied to its processor by NVLink-C2C (GH200, GB200, GB300): NICs of other root complexes reach its
    /// memory by that way and not through its PCIe link.
    pub coherent: bool,
}

/// What kind of device a NIC is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NicKind {
    /// A device of `class/infiniband`: EFA, InfiniBand, RoCE, iWARP.
    Rdma,
    /// A network interface of real hardware without an RDMA device.
    Ethernet,
}

/// Whether a NIC's link is up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// Port active, or interface up.
    Up,
    /// Not; with the kernel's word for it.
    Down(String),
    /// The source does not say. Taken for usable.
    Unknown,
}

impl LinkState {
    /// Whether the NIC can be a rail.
    pub fn is_usable(&self) -> bool {
        !matches!(self, Self::Down(_))
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Down(_) => f.write_str("down"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Where a line rate is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RateSource {
    /// The port says so.
    Port,
    /// The source does not record rates; the instance type is known.
    InstanceType,
}

/// A NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Its place in [`Topology::nics`].
    pub id: NicId,
    /// Name of the RDMA device (`rdmap79s0`) or network interface (`eth0`).
    pub name: String,
    /// Kind of device.
    pub kind: NicKind,
    /// Its PCI function; `None` where it has none (USB) or the source does not say.
    pub pci: Option<PciAddress>,
    /// The way to it.
    pub path: Option<PciPath>,
    /// NUMA node.
    pub numa: Option<u32>,
    /// Its PCIe link as it is now.
    pub link: Option<PciLink>,
    /// Kernel driver: `efa`, `mlx5_core`, `ena`.
    pub driver: Option<String>,
    /// Line rate in bit/s.
    pub rate_bps: Option<u64>,
    /// Where the rate is from.
    pub rate_source: Option<RateSource>,
    /// Whether its link is up. EFA's driver says up whatever the link does: only counters tell that such a rail is dead.
    pub state: LinkState,
    /// The RDMA port that rate and state are of: the first active one, else the first.
    pub port: Option<u8>,
    /// `InfiniBand`, `Ethernet`, or what else the port says.
    pub link_layer: Option<String>,
    /// Node GUID as the kernel prints it.
    pub node_guid: Option<String>,
    /// GIDs of the port that are set, by index.
    pub gids: Vec<(u16, String)>,
    /// Network interfaces of the same PCI function (its own name for Ethernet).
    pub interfaces: Vec<String>,
}

/// Something that a source lacks or says badly. The model goes on without it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Warning {
    /// The file, from the source's root, or the object.
    pub place: String,
    /// What is wrong with it, and what follows.
    pub what: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// What kind of source a topology is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A sysfs tree, live or captured.
    Sysfs,
    /// XML of hwloc.
    Hwloc,
}

/// Most warnings that are kept; a malformed source can have one for each file.
const WARNINGS_MAX: usize = 256;

/// Most GPUs, NICs and NUMA nodes that are kept: several times what any host has (Linux is built for 1,024 nodes), so that
/// a malformed source cannot make the tables between them large.
const GPUS_MAX: usize = 256;
const NICS_MAX: usize = 1024;
pub(crate) const NUMA_NODES_MAX: usize = 1024;

/// What a source says, collected. [`Topology::new`] brings it in order.
#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) machine: Option<String>,
    pub(crate) numa_nodes: Vec<NumaNode>,
    pub(crate) bridges: BTreeMap<PciAddress, Bridge>,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) warnings: Vec<Warning>,
}

impl Facts {
    /// Leaves out what is more than any host has.
    fn bound(&mut self) {
        let counts = [
            ("GPUs", self.gpus.len(), GPUS_MAX),
            ("NICs", self.nics.len(), NICS_MAX),
            ("NUMA nodes", self.numa_nodes.len(), NUMA_NODES_MAX),
        ];
        for (what, count, most) in counts.into_iter().filter(|(_, count, most)| count > most) {
            self.warn("source", format!("{count} {what}, of which only the first {most} are shown"));
        }
        self.gpus.truncate(GPUS_MAX);
        self.nics.truncate(NICS_MAX);
        self.numa_nodes.truncate(NUMA_NODES_MAX);
    }

    pub(crate) fn warn(&mut self, place: impl Into<String>, what: impl Into<String>) {
        match self.warnings.len() {
            0..WARNINGS_MAX => self.warnings.push(Warning { place: place.into(), what: what.into() }),
            WARNINGS_MAX => self.warnings.push(Warning {
                place: "source".into(),
                what: format!("more than {WARNINGS_MAX} warnings; the others are left out"),
            }),
            _ => {}
        }
    }
}

/// A host: see the crate's documentation.
#[derive(Clone, Debug)]
pub struct Topology {
    origin: Origin,
    machine: Option<String>,
    numa_nodes: Vec<NumaNode>,
    bridges: BTreeMap<PciAddress, Bridge>,
    gpus: Vec<Gpu>,
    nics: Vec<Nic>,
    warnings: Vec<Warning>,
    assignment: OnceLock<Assignment>,
}

impl Topology {
    /// Puts GPUs and NICs in PCI order (those without an address last, by name) and numbers them.
    pub(crate) fn new(origin: Origin, mut facts: Facts) -> Self {
        facts.bound();
        let Facts { mut machine, mut numa_nodes, bridges, mut gpus, mut nics, mut warnings } = facts;
        numa_nodes.sort_by_key(|node| node.id);
        numa_nodes.dedup_by_key(|node| node.id);
        gpus.sort_by_key(|gpu| gpu.address);
        gpus.dedup_by_key(|gpu| gpu.address);
        nics.sort_by(|one, other| {
            let key = |nic: &Nic| (nic.pci.is_none(), nic.pci, nic.name.clone());
            key(one).cmp(&key(other))
        });
        (0..).zip(&mut gpus).for_each(|(ordinal, gpu)| gpu.id = GpuId(ordinal));
        (0..).zip(&mut nics).for_each(|(place, nic)| nic.id = NicId(place));
        let assignment = OnceLock::new();
        let plain = |text: &mut String| {
            // A captured tree can name things as it likes; what a terminal would obey is taken out.
            if text.contains(char::is_control) {
                *text = text.replace(char::is_control, "?");
            }
        };
        machine.iter_mut().for_each(plain);
        gpus.iter_mut().filter_map(|gpu| gpu.model.as_mut()).for_each(plain);
        for nic in &mut nics {
            plain(&mut nic.name);
            nic.interfaces.iter_mut().for_each(plain);
            let texts = [&mut nic.driver, &mut nic.link_layer, &mut nic.node_guid];
            texts.into_iter().flatten().chain(nic.gids.iter_mut().map(|(_, gid)| gid)).for_each(plain);
            if let LinkState::Down(word) = &mut nic.state {
                plain(word);
            }
        }
        for Warning { place, what } in &mut warnings {
            plain(place);
            plain(what);
        }
        Self { origin, machine, numa_nodes, bridges, gpus, nics, warnings, assignment }
    }

    /// What kind of source it is from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The firmware's product name; on EC2 the instance type.
    pub fn machine(&self) -> Option<&str> {
        self.machine.as_deref()
    }

    /// NUMA nodes by number.
    pub fn numa_nodes(&self) -> &[NumaNode] {
        &self.numa_nodes
    }

    /// GPUs in PCI order.
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// NICs in PCI order, those without a PCI address last.
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// Bridges on the way to GPUs and NICs.
    pub fn bridges(&self) -> impl Iterator<Item = &Bridge> {
        self.bridges.values()
    }

    /// The bridge at `address`.
    pub fn bridge(&self, address: PciAddress) -> Option<&Bridge> {
        self.bridges.get(&address)
    }

    /// What the source lacks or says badly.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The NIC of that id; `None` for an id of another topology that has more.
    pub fn nic(&self, id: NicId) -> Option<&Nic> {
        self.nics.get(id.0 as usize)
    }

    /// The GPU of that ordinal.
    pub fn gpu(&self, id: GpuId) -> Option<&Gpu> {
        self.gpus.get(id.0 as usize)
    }

    /// The NIC of that RDMA device, or of that name.
    pub fn nic_by_name(&self, name: &str) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.name == name)
    }

    /// The NIC at that PCI address (`fi_info`'s `nic->bus_attr`). Where a function has several RDMA devices, the first.
    pub fn nic_by_pci(&self, address: PciAddress) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.pci == Some(address))
    }

    /// The NIC that network interface `name` belongs to (`fi_info`'s `domain_attr->name` of tcp).
    pub fn nic_by_interface(&self, name: &str) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.interfaces.iter().any(|it| it == name))
    }

    /// The GPU at that PCI address (`cuDeviceGetPCIBusId`).
    pub fn gpu_by_pci(&self, address: PciAddress) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.address == address)
    }

    /// The NUMA node of that number.
    pub fn numa_node(&self, id: u32) -> Option<&NumaNode> {
        self.numa_nodes.iter().find(|node| node.id == id)
    }

    /// [`rails_of_gpus`] of this topology, worked out once.
    pub fn assignment(&self) -> &Assignment {
        self.assignment.get_or_init(|| rails_of_gpus(self))
    }

    /// The NICs that serve GPU `id`, nearest first; empty for a GPU that is not there. Cheap after the first call.
    pub fn rails_of_gpu(&self, id: GpuId) -> Vec<NicId> {
        let rails = self.assignment().gpus.get(id.0 as usize).map_or(&[][..], |gpu| &gpu.rails);
        rails.iter().map(|rail: &Rail| rail.nic).collect()
    }

    /// [`Topology::rails_of_gpu`] by PCI address.
    pub fn rails_of_gpu_at(&self, address: PciAddress) -> Vec<NicId> {
        self.gpu_by_pci(address).map_or_else(Vec::new, |gpu| self.rails_of_gpu(gpu.id))
    }

    /// The NICs for host memory of NUMA node `node`: the usable ones on that node; where it has none, those of the
    /// nearest nodes that have some; where no NIC's node is known, all usable ones. In PCI order.
    pub fn rails_of_numa(&self, node: u32) -> Vec<NicId> {
        let usable = usable_nics(self);
        let far = |nic: &NicId| {
            let at = self.nic(*nic).and_then(|nic| self.numa_of(nic.numa));
            at.map(|at| self.numa_distance(node, at))
        };
        let nearest = usable.iter().filter_map(far).min();
        let near = |nic: &NicId| nearest.is_none() || far(nic) == nearest;
        usable.iter().copied().filter(near).collect()
    }

    /// The node that a device is on: the one that it states, or the only one there is.
    pub fn numa_of(&self, stated: Option<u32>) -> Option<u32> {
        match (stated, &self.numa_nodes[..]) {
            (None, [only]) => Some(only.id),
            _ => stated,
        }
    }

    /// Distance between two NUMA nodes by the firmware's table; where that is silent, 10 to itself (as ACPI has it) and
    /// more than any table can say to others.
    pub(crate) fn numa_distance(&self, from: u32, to: u32) -> u32 {
        let stated = self.numa_node(from).and_then(|node| node.distances.get(&to).copied());
        stated.unwrap_or(if from == to { 10 } else { 256 })
    }
}
