//! Hosts for tests: the captured ones, and made-up ones as text.

// Each test program uses a part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use kvrail_topology::{NicId, Source, Topology};

/// Path of a fixture.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The host of a fixture.
pub(crate) fn host(name: &str) -> Topology {
    let path = path(name);
    let source = if name.ends_with(".xml") { Source::Hwloc(path) } else { Source::Sysfs(path) };
    Topology::read(&source).unwrap()
}

pub(crate) fn names(topology: &Topology, nics: &[NicId]) -> Vec<String> {
    nics.iter().map(|nic| topology.nic(*nic).unwrap().name.clone()).collect()
}

/// Names of the rails of each GPU.
pub(crate) fn rails(topology: &Topology) -> Vec<Vec<String>> {
    topology.gpus().iter().map(|gpu| names(topology, &topology.rails_of_gpu(gpu.id))).collect()
}

/// A device of a made-up host.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) gpu: bool,
    /// Root complex; even ones are on NUMA node 0, odd ones on 1.
    pub(crate) root: u8,
    /// Which of the root complex's switches, and whether behind a second switch below that; `None` for none.
    pub(crate) switch: Option<(u8, bool)>,
    pub(crate) up: bool,
    pub(crate) gbps: u32,
}

/// The capture of a host of those devices.
pub(crate) fn capture(devices: &[Device]) -> String {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for node in 0..2 {
        files.insert(format!("devices/system/node/node{node}/cpulist"), format!("\t{node}"));
        files.insert(
            format!("devices/system/node/node{node}/distance"),
            format!("\t{}", ["10 21", "21 10"][node]),
        );
    }
    for (index, device) in devices.iter().enumerate() {
        let Device { root, .. } = device;
        // Addresses only have to be unlike; buses of devices come after those of switches.
        let mut path = format!("devices/pci{root:04x}:00");
        if let Some((switch, nested)) = device.switch {
            let _ = write!(path, "/{root:04x}:00:{switch:02x}.0/{root:04x}:{:02x}:00.0", 0x10 + switch);
            if nested {
                let _ = write!(
                    path,
                    "/{root:04x}:{:02x}:1f.0/{root:04x}:{:02x}:00.0",
                    0x20 + switch,
                    0x30 + switch
                );
            }
            let port = 0x40 + u8::from(nested) * 0x20 + switch;
            let _ = write!(path, "/{root:04x}:{port:02x}:{:02x}.{}", index / 8, index % 8);
        }
        let address = format!("{root:04x}:{:02x}:00.0", 0x80 + index);
        let _ = write!(path, "/{address}");
        let mut put =
            |name: &str, text: &str| drop(files.insert(format!("{path}/{name}"), format!("\t{text}")));
        put("class", if device.gpu { "0x030200" } else { "0x020000" });
        put("vendor", if device.gpu { "0x10de" } else { "0x1d0f" });
        put("numa_node", &(root % 2).to_string());
        if !device.gpu {
            let port = format!("infiniband/nic{index}/ports/1");
            put(&format!("{port}/state"), if device.up { "4: ACTIVE" } else { "1: DOWN" });
            put(&format!("{port}/rate"), &format!("{} Gb/sec (4X EDR)", device.gbps));
            let target = format!(" -> ../../{path}/infiniband/nic{index}");
            files.insert(format!("class/infiniband/nic{index}"), target);
        }
        files.insert(format!("bus/pci/devices/{address}"), format!(" -> ../../../{path}"));
    }
    let lines = files.iter().map(|(path, rest)| format!("{path}{rest}\n"));
    std::iter::once("# kvrail sysfs capture v1\n".to_string()).chain(lines).collect()
}
