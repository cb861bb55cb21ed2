//! PCI functions: GPUs, what all devices have in common, the bridges above them.

use std::collections::BTreeSet;

use super::Reader;
use crate::model::{Bridge, Gpu, GpuId};
use crate::pci::{self, PciAddress, PciLink, PciPath};

const PCI_DEVICES: &str = "bus/pci/devices";
/// PCI classes of GPUs (class and subclass): VGA controller, 3D controller.
const GPU_CLASSES: [u32; 2] = [0x0300, 0x0302];
const VENDOR_NVIDIA: u32 = 0x10de;

/// PCI device ids of NVIDIA's datacentre GPUs, with their names in the PCI id database, and whether NVLink-C2C ties
/// them to their processor.
const GPU_MODELS: [(u16, &str, bool); 17] = [
    (0x1db1, "V100 SXM2 16GB", false),
    (0x1db5, "V100 SXM2 32GB", false),
    (0x1eb8, "T4", false),
    (0x20b0, "A100 SXM4 40GB", false),
    (0x20b2, "A100 SXM4 80GB", false),
    (0x20b5, "A100 PCIe 80GB", false),
    (0x2237, "A10G", false),
    (0x2330, "H100 SXM5 80GB", false),
    (0x2331, "H100 PCIe", false),
    (0x2335, "H200 SXM 141GB", false),
    (0x2342, "GH200 120GB", true),
    (0x2348, "GH200 144G HBM3e", true),
    (0x26b9, "L40S", false),
    (0x27b8, "L4", false),
    (0x2901, "B200", false),
    (0x2941, "GB200", true),
    (0x3182, "B300 SXM6 AC", false),
];

/// What is known of a GPU's PCI id.
pub(crate) fn gpu_model(device_id: Option<u16>) -> Option<(&'static str, bool)> {
    let (_, name, coherent) = GPU_MODELS.into_iter().find(|(id, ..)| Some(*id) == device_id)?;
    Some((name, coherent))
}

/// Whether a function of that class (24 bits) and vendor is a GPU here.
pub(crate) fn is_gpu(class: u32, vendor: u32) -> bool {
    GPU_CLASSES.contains(&(class >> 8)) && vendor == VENDOR_NVIDIA
}

/// `0x030200`.
fn prefixed_hex(text: &str) -> Option<u32> {
    pci::hex(text.strip_prefix("0x")?, 8)
}

impl Reader<'_> {
    pub(super) fn gpus(&mut self) {
        for name in self.names(PCI_DEVICES) {
            let device = format!("{PCI_DEVICES}/{name}");
            let Ok(address) = name.parse::<PciAddress>() else {
                self.warn(&device, "not a PCI address; the device is left out");
                continue;
            };
            let Some(at) = self.place_of(&device) else { continue };
            let class = self.parsed(&format!("{at}/class"), "the device is left out", prefixed_hex);
            let Some(class) = class.filter(|class| GPU_CLASSES.contains(&(class >> 8))) else { continue };
            let vendor = self.parsed(&format!("{at}/vendor"), "the device is left out", prefixed_hex);
            if !vendor.is_some_and(|vendor| is_gpu(class, vendor)) {
                continue;
            }
            self.gpu(address, &at);
        }
    }

    /// The plain path of a device that a directory lists; a warning where it leads nowhere.
    pub(super) fn place_of(&mut self, device: &str) -> Option<String> {
        match self.tree.resolve(device) {
            Ok(Some((at, _))) => Some(at),
            Ok(None) => {
                self.warn(device, "leads nowhere; the device is left out");
                None
            }
            Err(fault) => {
                self.warn(&fault.place, format!("{}; the device is left out", fault.what));
                None
            }
        }
    }

    fn gpu(&mut self, address: PciAddress, at: &str) {
        let id = self.parsed(&format!("{at}/device"), "the GPU's model is not known", prefixed_hex);
        let device_id = id.and_then(|id| u16::try_from(id).ok());
        let known = gpu_model(device_id);
        let path = self.path(address, at);
        let numa = self.numa(at);
        let link = self.reachable_link(at);
        self.facts.gpus.push(Gpu {
            id: GpuId(0),
            address,
            model: known.map(|(name, _)| name.to_string()),
            device_id,
            numa,
            path,
            link,
            coherent: known.is_some_and(|(_, coherent)| coherent),
        });
    }

    /// The way to the function at the plain path `at`.
    pub(super) fn path(&mut self, address: PciAddress, at: &str) -> Option<PciPath> {
        match PciPath::parse(at) {
            Some((found, path)) if found == address => Some(path),
            _ => {
                self.warn(
                    at,
                    format!("the path shows no root complex above {address}; its place is not known"),
                );
                None
            }
        }
    }

    /// NUMA node of the function at `at`: what it says, else what the nearest bridge above it says.
    pub(super) fn numa(&mut self, at: &str) -> Option<u32> {
        let mut above = Some(at);
        while let Some(at) = above.filter(|at| PciPath::parse(at).is_some()) {
            let file = format!("{at}/numa_node");
            let node = self.parsed(&file, "its NUMA node is not known", |text| text.parse::<i64>().ok());
            match node.map(u32::try_from) {
                Some(Ok(node)) if self.facts.numa_nodes.is_empty() => return Some(node),
                Some(Ok(node)) if self.facts.numa_nodes.iter().any(|it| it.id == node) => return Some(node),
                Some(Ok(node)) => self.warn(&file, format!("there is no NUMA node {node}")),
                // -1: the firmware does not say.
                Some(Err(_)) | None => {}
            }
            above = at.rsplit_once('/').map(|(above, _)| above);
        }
        if self.facts.numa_nodes.len() > 1 {
            self.without_numa.insert(at.to_string());
        }
        None
    }

    /// One warning for all devices whose node is not known: firmware that is silent on one is silent on all.
    pub(super) fn report_missing_nodes(&mut self) {
        let devices = self.without_numa.len();
        if let Some(first) = self.without_numa.pop_first() {
            let others = if devices > 1 { format!(" and {} others", devices - 1) } else { String::new() };
            let what = format!(
                "names no NUMA node, nor does a bridge above{others}; distances across root complexes are not known"
            );
            self.warn(&format!("{first}/numa_node"), what);
        }
    }

    /// The link of the function at `at` as it is now.
    pub(super) fn link(&mut self, at: &str) -> Option<PciLink> {
        self.link_of(at, "current_link_speed")
    }

    /// The link of the function at `at` at the highest speed that both its ends have. A GPU and the bridges above it
    /// lower the speed while idle, but keep the width.
    pub(super) fn reachable_link(&mut self, at: &str) -> Option<PciLink> {
        let now = self.link_of(at, "current_link_speed");
        let own = self.link_of(at, "max_link_speed");
        let above = at.rsplit_once('/').map_or("", |(above, _)| above);
        let above = if PciPath::parse(above).is_some() { self.max_speed(above) } else { None };
        let slower = |link: PciLink| match (above, link.lanes) {
            (Some(speed), Some((own, width))) if speed < own => PciLink::new(speed, width),
            _ => Some(link),
        };
        let reachable = own.and_then(slower);
        [now, reachable].into_iter().flatten().max_by_key(|link| link.bps)
    }

    fn max_speed(&mut self, at: &str) -> Option<u32> {
        let text = self.text(&format!("{at}/max_link_speed"))?;
        pci::parse_speed(&text)
    }

    fn link_of(&mut self, at: &str, speed: &str) -> Option<PciLink> {
        let speed = self.text(&format!("{at}/{speed}"))?;
        let width = self.text(&format!("{at}/current_link_width"))?;
        // Virtual functions and root complex devices have no link: the kernel says `Unknown` and 0.
        PciLink::parse(&speed, &width)
    }

    /// The bridges above the GPUs and NICs found.
    pub(super) fn bridges(&mut self) {
        let paths =
            self.facts.gpus.iter().map(|gpu| &gpu.path).chain(self.facts.nics.iter().map(|nic| &nic.path));
        let addresses: BTreeSet<PciAddress> =
            paths.flatten().flat_map(|path| &path.bridges).copied().collect();
        for address in addresses {
            let device = format!("{PCI_DEVICES}/{address}");
            let resolved = self.tree.resolve(&device);
            let found = self.or_warn(resolved);
            let (numa, link) = match found {
                Some((at, _)) => (self.numa(&at), self.reachable_link(&at)),
                None => (None, None),
            };
            self.facts.bridges.insert(address, Bridge { address, numa, link });
        }
    }
}
