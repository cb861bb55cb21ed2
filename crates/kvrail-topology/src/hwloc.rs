//! Reads a topology from hwloc's XML: versions 2.x (`lstopo --of xml`) and 1.x, which nests NUMA nodes around what is
//! theirs.
//!
//! The document is a nest of objects. Read here are the machine's product name, NUMA nodes, bridges, PCI devices and
//! OS devices; an I/O object's NUMA node is that of the innermost object around it whose node set has one member. hwloc
//! records no line rates: those of EFA devices are taken from the instance type, others are not known.

mod matrix;

use std::collections::BTreeSet;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::model::{Bridge, Facts, Gpu, GpuId, LinkState, Nic, NicId, NicKind, NumaNode, RateSource};
use crate::pci::{self, PciAddress, PciLink, PciPath, RootComplex};
use crate::sysfs::devices::{gpu_model, is_gpu};
use crate::{rate, sets};

use matrix::Matrix;

/// Deepest nest of objects: machine, package, caches, core and PU, or a dozen bridges, are about 20.
const DEPTH_MAX: usize = 512;
/// Most elements; a host of 1,000 logical CPUs has about 10,000.
const ELEMENTS_MAX: usize = 1 << 22;
/// Fastest link that is believed, bytes per second.
const LINK_BYTES_MAX: f64 = 1e13;
const VENDOR_AMAZON: u32 = 0x1d0f;

/// Bad XML: where (byte) and what.
type Bad = (u64, String);

/// An element that is open.
#[derive(Default)]
struct Open {
    /// The NUMA node of what lies in it.
    numa: Option<u32>,
    /// The way to what lies in it.
    path: Option<PciPath>,
    what: What,
}

/// What an open element can be told by its `<info>` elements.
#[derive(Clone, Copy, Default)]
enum What {
    #[default]
    Other,
    Machine,
    Pci(usize),
    Os(usize),
}

/// A PCI device, before it is known what it is.
struct Function {
    address: PciAddress,
    class: u32,
    vendor: u32,
    device: u32,
    numa: Option<u32>,
    path: Option<PciPath>,
    link: Option<PciLink>,
    name: Option<String>,
}

/// An OS device on a PCI device: network interface or RDMA device.
struct OsDevice {
    name: String,
    kind: NicKind,
    function: Option<usize>,
    /// `Port1State`: 4 is active.
    state: Option<String>,
    guid: Option<String>,
    gids: Vec<(u16, String)>,
}

#[derive(Default)]
struct Collected {
    facts: Facts,
    open: Vec<Open>,
    functions: Vec<Function>,
    devices: Vec<OsDevice>,
    matrix: Matrix,
}

/// Attributes of one element.
struct Attributes(Vec<(String, String)>);

impl Attributes {
    fn of(element: &BytesStart<'_>) -> Result<Self, String> {
        let pair = |attribute: Result<quick_xml::events::attributes::Attribute<'_>, _>| {
            let attribute = attribute.map_err(|error| format!("{error}"))?;
            let name = String::from_utf8_lossy(attribute.key.as_ref()).into_owned();
            let value = attribute.unescape_value().map_err(|error| format!("{error}"))?;
            Ok((name, value.into_owned()))
        };
        element.attributes().map(pair).collect::<Result<_, String>>().map(Self)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }
}

/// Reads a document.
///
/// # Errors
/// What is no XML, or XML of something else: the byte and what is wrong. What is missing in a topology is a warning.
pub(crate) fn read(text: &str) -> Result<Facts, Bad> {
    let mut reader = Reader::from_str(text);
    let mut collected = Collected::default();
    let mut elements = 0usize;
    let mut topology = false;
    loop {
        let event = reader.read_event().map_err(|error| (reader.error_position(), error.to_string()))?;
        let at = reader.buffer_position();
        let bad = |what: String| (at, what);
        match &event {
            Event::Start(element) | Event::Empty(element) => {
                elements += 1;
                topology |= element.name().as_ref() == b"topology";
                if !topology {
                    return Err(bad("not hwloc's: the outermost element is not `topology`".into()));
                }
                if elements > ELEMENTS_MAX || collected.open.len() >= DEPTH_MAX {
                    return Err(bad("more or deeper nested elements than a host can have".into()));
                }
                collected.begin(element).map_err(bad)?;
                if matches!(event, Event::Empty(_)) {
                    collected.open.pop();
                }
            }
            Event::End(element) => {
                collected.matrix.end(element.name().as_ref());
                collected.open.pop();
            }
            Event::Text(text) => collected.matrix.text(&String::from_utf8_lossy(text)),
            Event::Eof => break,
            _ => {}
        }
    }
    if !topology || !collected.open.is_empty() {
        return Err((text.len() as u64, "not hwloc's, or cut off: no complete element `topology`".into()));
    }
    Ok(collected.finish())
}

impl Collected {
    fn begin(&mut self, element: &BytesStart<'_>) -> Result<(), String> {
        let attributes = Attributes::of(element)?;
        let around = self.open.last();
        let mut open = Open {
            numa: around.and_then(|it| it.numa),
            path: around.and_then(|it| it.path.clone()),
            what: around.map_or(What::Other, |it| it.what),
        };
        match element.name().as_ref() {
            b"object" => {
                open.what = What::Other;
                self.object(&attributes, &mut open);
            }
            b"info" => self.info(&attributes, open.what),
            name => self.matrix.begin(name, |name| attributes.get(name).map(str::to_string)),
        }
        self.open.push(open);
        Ok(())
    }

    fn object(&mut self, attributes: &Attributes, open: &mut Open) {
        if let Some(nodes) = attributes.get("nodeset").and_then(sets::parse_bitmap) {
            let mut nodes = nodes.into_iter();
            open.numa = nodes.next().filter(|_| nodes.next().is_none());
        }
        match attributes.get("type").unwrap_or_default() {
            "Machine" => open.what = What::Machine,
            "NUMANode" => self.numa_node(attributes, open),
            "Bridge" => self.bridge(attributes, open),
            "PCIDev" => self.function(attributes, open),
            "OSDev" => self.os_device(attributes, open),
            _ => {}
        }
    }

    fn numa_node(&mut self, attributes: &Attributes, open: &mut Open) {
        let Some(id) = attributes.number("os_index").or(open.numa) else {
            self.facts.warn("NUMANode", "without `os_index`; the node is left out");
            return;
        };
        open.numa = Some(id);
        let cpus = attributes.get("cpuset").and_then(sets::parse_bitmap).unwrap_or_default();
        let memory_bytes = attributes.number("local_memory");
        self.facts.numa_nodes.push(NumaNode { id, cpus, memory_bytes, distances: Default::default() });
    }

    fn bridge(&mut self, attributes: &Attributes, open: &mut Open) {
        let Some(address) = attributes.get("pci_busid") else {
            // `0000:[44-5c]`: the buses below a host bridge.
            let root = attributes.get("bridge_pci").and_then(|text| {
                let (domain, buses) = text.split_once(":[")?;
                let (first, _) = buses.split_once('-')?;
                let bus = u8::try_from(pci::hex(first, 2)?).ok()?;
                Some(RootComplex { domain: pci::hex(domain, 8)?, bus })
            });
            if root.is_none() {
                self.facts
                    .warn("Bridge", "neither `pci_busid` nor buses; the place of what is below is not known");
            }
            open.path = root.map(|root| PciPath { root, bridges: Vec::new() });
            return;
        };
        let Ok(address) = address.parse::<PciAddress>() else {
            self.facts
                .warn(format!("Bridge {address}"), "no PCI address; the place of what is below is not known");
            open.path = None;
            return;
        };
        if let Some(path) = &mut open.path {
            path.bridges.push(address);
        }
        let bridge = Bridge { address, numa: open.numa, link: link(attributes) };
        self.facts.bridges.insert(address, bridge);
    }

    fn function(&mut self, attributes: &Attributes, open: &mut Open) {
        let address = attributes.get("pci_busid").unwrap_or_default();
        let Ok(address) = address.parse::<PciAddress>() else {
            self.facts.warn(format!("PCIDev {address}"), "no PCI address; the device is left out");
            return;
        };
        let ids = attributes.get("pci_type").and_then(parse_ids);
        if ids.is_none() {
            self.facts.warn(format!("PCIDev {address}"), "`pci_type` makes no sense; taken for no GPU");
        }
        let (class, vendor, device) = ids.unwrap_or_default();
        open.what = What::Pci(self.functions.len());
        self.functions.push(Function {
            address,
            class,
            vendor,
            device,
            numa: open.numa,
            path: open.path.clone(),
            link: link(attributes),
            name: attributes.get("name").map(str::to_string),
        });
    }

    fn os_device(&mut self, attributes: &Attributes, open: &mut Open) {
        // HWLOC_OBJ_OSDEV_NETWORK and HWLOC_OBJ_OSDEV_OPENFABRICS.
        let kind = match attributes.get("osdev_type") {
            Some("2") => NicKind::Ethernet,
            Some("3") => NicKind::Rdma,
            _ => return,
        };
        let Some(name) = attributes.get("name").filter(|name| !name.is_empty()) else {
            self.facts.warn("OSDev", "without a name; the NIC is left out");
            return;
        };
        let above = self.open.last().map(|open| open.what);
        let function = match above {
            Some(What::Pci(function)) => Some(function),
            _ => None,
        };
        open.what = What::Os(self.devices.len());
        self.devices.push(OsDevice {
            name: name.to_string(),
            kind,
            function,
            state: None,
            guid: None,
            gids: Vec::new(),
        });
    }

    fn info(&mut self, attributes: &Attributes, what: What) {
        let (Some(name), Some(value)) = (attributes.get("name"), attributes.get("value")) else { return };
        let value = value.to_string();
        match what {
            What::Machine if name == "DMIProductName" && !value.is_empty() => {
                self.facts.machine = Some(value)
            }
            What::Pci(function) if name == "PCIDevice" => self.functions[function].name = Some(value),
            What::Os(device) => {
                let device = &mut self.devices[device];
                match (name, name.strip_prefix("Port1GID").and_then(|slot| slot.parse().ok())) {
                    ("Port1State", _) => device.state = Some(value),
                    ("NodeGUID", _) => device.guid = Some(value),
                    (_, Some(slot)) => device.gids.push((slot, value)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn finish(mut self) -> Facts {
        let mut facts = std::mem::take(&mut self.facts);
        if facts.numa_nodes.is_empty() {
            facts.warn(
                "topology",
                "no NUMA node is shown; devices of different root complexes cannot be compared",
            );
        }
        for node in &mut facts.numa_nodes {
            node.distances = self.matrix.row(node.id);
        }
        for function in self.functions.iter().filter(|it| is_gpu(it.class << 8, it.vendor)) {
            let device_id = u16::try_from(function.device).ok();
            let known = gpu_model(device_id);
            facts.gpus.push(Gpu {
                id: GpuId(0),
                address: function.address,
                model: known.map(|(name, _)| name.to_string()).or_else(|| function.name.clone()),
                device_id,
                numa: function.numa,
                path: function.path.clone(),
                link: function.link,
                coherent: known.is_some_and(|(_, coherent)| coherent),
            });
        }
        let with_rdma: BTreeSet<usize> =
            self.devices.iter().filter(|it| it.kind == NicKind::Rdma).filter_map(|it| it.function).collect();
        for device in &self.devices {
            // Interfaces without a PCI function are virtual; those of a function with an RDMA device are that NIC's.
            let Some(function) = device.function else { continue };
            if device.kind == NicKind::Rdma || !with_rdma.contains(&function) {
                let nic = self.nic(device, &self.functions[function], &mut facts);
                facts.nics.push(nic);
            }
        }
        let used: BTreeSet<PciAddress> = {
            let gpus = facts.gpus.iter().map(|gpu| &gpu.path);
            let paths = gpus.chain(facts.nics.iter().map(|nic| &nic.path)).flatten();
            paths.flat_map(|path| &path.bridges).copied().collect()
        };
        facts.bridges.retain(|address, _| used.contains(address));
        facts
    }

    fn nic(&self, device: &OsDevice, function: &Function, facts: &mut Facts) -> Nic {
        let interfaces = self.devices.iter().filter(|it| {
            let same = it.function.is_some_and(|it| self.functions[it].address == function.address);
            it.kind == NicKind::Ethernet && same
        });
        let amazon = device.kind == NicKind::Rdma && function.vendor == VENDOR_AMAZON;
        let of_type = facts.machine.as_deref().and_then(rate::of_instance_type).filter(|_| amazon);
        if of_type.is_none() && device.kind == NicKind::Rdma {
            facts.warn(&device.name, "hwloc records no line rate; without one it counts as 0 in ceilings");
        }
        let state = match (device.kind, device.state.as_deref()) {
            (NicKind::Rdma, Some("4")) => LinkState::Up,
            (NicKind::Rdma, Some(other)) => {
                LinkState::Down(format!("state {}", other.chars().take(8).collect::<String>()))
            }
            _ => LinkState::Unknown,
        };
        Nic {
            id: NicId(0),
            name: device.name.clone(),
            kind: device.kind,
            pci: Some(function.address),
            path: function.path.clone(),
            numa: function.numa,
            link: function.link,
            driver: None,
            rate_bps: of_type,
            rate_source: of_type.map(|_| RateSource::InstanceType),
            state,
            port: (device.kind == NicKind::Rdma).then_some(1),
            link_layer: None,
            node_guid: device.guid.clone(),
            gids: device.gids.clone(),
            interfaces: interfaces.map(|it| it.name.clone()).collect(),
        }
    }
}

/// `pci_link_speed`, 10^9 bytes per second; 0 where hwloc does not know.
fn link(attributes: &Attributes) -> Option<PciLink> {
    let bytes = attributes.number::<f64>("pci_link_speed")? * 1e9;
    (1e6..LINK_BYTES_MAX).contains(&bytes).then_some(PciLink { bps: (bytes * 8.0) as u64, lanes: None })
}

/// `0302 [10de:2330] [10de:16c1] a1` → class and subclass, vendor, device.
fn parse_ids(text: &str) -> Option<(u32, u32, u32)> {
    let (class, rest) = text.split_once(" [")?;
    let (vendor, rest) = rest.split_once(':')?;
    let (device, _) = rest.split_once(']')?;
    Some((pci::hex(class, 4)?, pci::hex(vendor, 4)?, pci::hex(device, 4)?))
}
