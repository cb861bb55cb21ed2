//! PCI functions and bridges: `devices/pci…`, `bus/pci`, `class/pci_bus`, the drivers' modules.

use std::collections::{BTreeMap, BTreeSet};

use super::SysfsError;
use super::config_space::{self, BridgeHeader};
use super::tree::Tree;
use crate::shape::{CLASS_BRIDGE, PciAddress, PciIds, PciLink, Shape};

/// Device id of the bridges of an EC2 instance, under Amazon's vendor id.
const BRIDGE_DEVICE: u16 = 0x0200;

/// Kernel modules that the devices need: name, version (as AWS's and NVIDIA's drivers of 2025 give it; modules of
/// the kernel itself have none).
const MODULES: [(&str, Option<&str>); 3] = [("efa", Some("2.17.3g")), ("ib_uverbs", None), ("ib_core", None)];
const GPU_DRIVER_VERSION: &str = "570.172.08";

/// A function of any kind, as this file needs it.
struct Function<'a> {
    address: PciAddress,
    ids: PciIds,
    link: Option<PciLink>,
    numa_node: u32,
    driver: &'a str,
    bridge: Option<BridgeHeader>,
}

/// Every function of `shape`.
fn functions(shape: &Shape) -> Vec<Function<'_>> {
    let bridges = shape.bridges.iter().map(|it| Function {
        address: it.address,
        ids: PciIds::amazon(BRIDGE_DEVICE, CLASS_BRIDGE),
        link: Some(it.link),
        numa_node: it.numa_node,
        driver: "pcieport",
        bridge: Some(BridgeHeader {
            kind: it.kind,
            primary: it.address.bus,
            secondary: it.secondary,
            subordinate: it.subordinate,
        }),
    });
    let endpoint = |address, ids, link, numa_node, driver| Function {
        address,
        ids,
        link,
        numa_node,
        driver,
        bridge: None,
    };
    let nics = shape.nics.iter().map(|it| endpoint(it.address, it.ids(), it.link, it.numa_node, "efa"));
    let gpus = shape.gpus.iter().map(|it| endpoint(it.address, it.ids, it.link, it.numa_node, "nvidia"));
    let others =
        shape.others.iter().map(|it| endpoint(it.address, it.ids, it.link, it.numa_node, &it.driver));
    bridges.chain(nics).chain(gpus).chain(others).collect()
}

/// Path of `address` from the node's root. The shape is valid, so a function has a root complex.
pub(super) fn path(shape: &Shape, address: PciAddress) -> String {
    let below_sys = shape.sysfs_path(address).unwrap_or_else(|| format!("devices/pci/{address}"));
    format!("sys/{below_sys}")
}

pub(super) fn write(tree: &mut Tree, shape: &Shape, node: u32) -> Result<(), SysfsError> {
    let functions = functions(shape);
    let mut slots: BTreeMap<(u16, u8, u8), usize> = BTreeMap::new();
    for function in &functions {
        let PciAddress { domain, bus, device, .. } = function.address;
        *slots.entry((domain, bus, device)).or_default() += 1;
    }
    for (irq, function) in functions.iter().enumerate() {
        let PciAddress { domain, bus, device, .. } = function.address;
        write_function(tree, shape, function, irq, slots[&(domain, bus, device)] > 1)?;
    }
    for root in &shape.roots {
        let path = format!("sys/devices/pci{:04x}:{:02x}", root.domain, root.bus);
        write_bus(tree, shape, &path, (root.domain, root.bus), root.numa_node)?;
    }
    for bridge in &shape.bridges {
        let path = path(shape, bridge.address);
        write_bus(tree, shape, &path, (bridge.address.domain, bridge.secondary), bridge.numa_node)?;
    }
    for driver in functions.iter().map(|function| function.driver).collect::<BTreeSet<_>>() {
        // pcieport is built in and has no module.
        if driver != "pcieport" {
            let module = format!("sys/module/{}", driver.split('-').next().unwrap_or(driver));
            tree.link(&format!("sys/bus/pci/drivers/{driver}/module"), &module)?;
            tree.link(&format!("{module}/drivers/pci:{driver}"), &format!("sys/bus/pci/drivers/{driver}"))?;
        }
    }
    write_modules(tree, shape)?;
    write_gpu_driver(tree, shape, node)
}

fn write_function(
    tree: &mut Tree,
    shape: &Shape,
    function: &Function<'_>,
    irq: usize,
    multifunction: bool,
) -> Result<(), SysfsError> {
    let Function { address, ids, link, numa_node, driver, bridge } = function;
    let path = path(shape, *address);
    let hex16 = |value: u16| format!("0x{value:04x}");
    tree.line(&format!("{path}/vendor"), hex16(ids.vendor))?;
    tree.line(&format!("{path}/device"), hex16(ids.device))?;
    tree.line(&format!("{path}/subsystem_vendor"), hex16(ids.subsystem_vendor))?;
    tree.line(&format!("{path}/subsystem_device"), hex16(ids.subsystem_device))?;
    tree.line(&format!("{path}/class"), format!("0x{:06x}", ids.class))?;
    tree.line(&format!("{path}/revision"), format!("0x{:02x}", ids.revision))?;
    tree.file(&format!("{path}/config"), config_space::bytes(ids, *link, bridge.as_ref(), multifunction))?;
    tree.file(&format!("{path}/resource"), resource(function))?;
    tree.line(&format!("{path}/irq"), if bridge.is_some() { 24 + irq } else { 0 })?;
    tree.line(&format!("{path}/enable"), 1)?;
    tree.line(&format!("{path}/numa_node"), numa_node)?;
    let cpus = shape.numa_cpus(*numa_node);
    tree.line(&format!("{path}/local_cpus"), cpus.mask())?;
    tree.line(&format!("{path}/local_cpulist"), cpus.list())?;
    if let Some(link) = link {
        for which in ["current", "max"] {
            tree.line(&format!("{path}/{which}_link_speed"), link.speed_text())?;
            tree.line(&format!("{path}/{which}_link_width"), link.width)?;
        }
    }
    if let Some(bridge) = bridge {
        tree.line(&format!("{path}/secondary_bus_number"), bridge.secondary)?;
        tree.line(&format!("{path}/subordinate_bus_number"), bridge.subordinate)?;
    }
    let modalias = modalias(ids);
    tree.line(&format!("{path}/modalias"), &modalias)?;
    tree.file(
        &format!("{path}/uevent"),
        format!(
            "DRIVER={driver}\nPCI_CLASS={:X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\n\
             PCI_SLOT_NAME={address}\nMODALIAS={modalias}\n",
            ids.class, ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem_device,
        ),
    )?;
    tree.link(&format!("{path}/subsystem"), "sys/bus/pci")?;
    tree.link(&format!("{path}/driver"), &format!("sys/bus/pci/drivers/{driver}"))?;
    tree.link(&format!("sys/bus/pci/drivers/{driver}/{address}"), &path)?;
    tree.link(&format!("sys/bus/pci/devices/{address}"), &path)
}

fn modalias(ids: &PciIds) -> String {
    let (class, subclass, interface) = (ids.class >> 16 & 0xff, ids.class >> 8 & 0xff, ids.class & 0xff);
    format!(
        "pci:v{:08X}d{:08X}sv{:08X}sd{:08X}bc{class:02X}sc{subclass:02X}i{interface:02X}",
        ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem_device,
    )
}

/// Memory regions: none behind a bridge's own registers, one 64-bit window of 1 MiB for other functions. Addresses
/// only have to be apart; there is nothing to map.
fn resource(function: &Function<'_>) -> String {
    const REGIONS: usize = 13;
    const MEMORY_64BIT: u64 = 0x14_0204;
    let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
    if function.bridge.is_some() {
        return none.repeat(REGIONS);
    }
    let PciAddress { domain, bus, device, function } = function.address;
    let place = u64::from(domain) << 16 | u64::from(bus) << 8 | u64::from(device) << 3 | u64::from(function);
    let (start, bytes) = ((1 << 44) + (place << 20), 1u64 << 20);
    format!("0x{start:016x} 0x{:016x} 0x{MEMORY_64BIT:016x}\n", start + bytes - 1) + &none.repeat(REGIONS - 1)
}

/// A bus, below the bridge or root complex that leads to it.
fn write_bus(
    tree: &mut Tree,
    shape: &Shape,
    above: &str,
    (domain, bus): (u16, u8),
    numa_node: u32,
) -> Result<(), SysfsError> {
    let name = format!("{domain:04x}:{bus:02x}");
    let path = format!("{above}/pci_bus/{name}");
    let cpus = shape.numa_cpus(numa_node);
    tree.line(&format!("{path}/cpuaffinity"), cpus.mask())?;
    tree.line(&format!("{path}/cpulistaffinity"), cpus.list())?;
    tree.link(&format!("{path}/device"), above)?;
    tree.link(&format!("{path}/subsystem"), "sys/class/pci_bus")?;
    tree.link(&format!("sys/class/pci_bus/{name}"), &path)
}

fn write_modules(tree: &mut Tree, shape: &Shape) -> Result<(), SysfsError> {
    let mut modules = MODULES.to_vec();
    if !shape.gpus.is_empty() {
        modules.push(("nvidia", Some(GPU_DRIVER_VERSION)));
    }
    let mut list = String::new();
    for (name, version) in modules {
        let path = format!("sys/module/{name}");
        tree.line(&format!("{path}/initstate"), "live")?;
        tree.line(&format!("{path}/refcnt"), 0)?;
        if let Some(version) = version {
            tree.line(&format!("{path}/version"), version)?;
        }
        list += &format!("{name} 131072 0 - Live 0x0000000000000000\n");
    }
    tree.file("proc/modules", list)
}

/// What NVIDIA's driver shows of its GPUs in `/proc`.
fn write_gpu_driver(tree: &mut Tree, shape: &Shape, node: u32) -> Result<(), SysfsError> {
    if shape.gpus.is_empty() {
        return Ok(());
    }
    let version = format!("NVRM version: NVIDIA UNIX {} Kernel Module  {GPU_DRIVER_VERSION}\n", {
        shape.cpu.model.architecture()
    });
    tree.file("proc/driver/nvidia/version", version)?;
    for (minor, gpu) in shape.gpus.iter().enumerate() {
        let information = format!(
            "Model: \t\t {}\nIRQ:   \t\t 0\nGPU UUID: \t GPU-50f7efa0-{node:04x}-4000-8000-{minor:012x}\n\
             Bus Type: \t PCIe\nBus Location: \t {}\nDevice Minor: \t {minor}\n",
            gpu.model, gpu.address,
        );
        tree.file(&format!("proc/driver/nvidia/gpus/{}/information", gpu.address), information)?;
    }
    Ok(())
}
