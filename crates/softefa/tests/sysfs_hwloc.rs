//! The real `lstopo` reads the private root and shows the shape: what NIXL's LIBFABRIC plugin sees through hwloc.
//!
//! Needs `lstopo` (Debian: `hwloc` or `hwloc-nox`). Without it these tests are skipped, by name; with `CI` set they fail.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use softefa::shape::{CpuModel, NAMES, PciAddress, Shape};
use softefa::sysfs::{CounterNames, Root};
use softefa_fabric::Gid;

/// A directory that goes away with the test, whatever happens in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One `<object>` of lstopo's XML: its attributes, its infos, and the objects around it, outermost first.
#[derive(Clone, Debug, Default)]
struct Object {
    attributes: BTreeMap<String, String>,
    infos: BTreeMap<String, String>,
    above: Vec<usize>,
}

impl Object {
    fn get(&self, attribute: &str) -> &str {
        self.attributes.get(attribute).map_or("", String::as_str)
    }
}

/// `name="value"` pairs of one tag.
fn attributes(tag: &str) -> BTreeMap<String, String> {
    let mut pairs = tag.split('"');
    let mut found = BTreeMap::new();
    while let (Some(name), Some(value)) = (pairs.next(), pairs.next()) {
        let name = name.trim().trim_end_matches('=').rsplit(' ').next().unwrap_or_default();
        found.insert(name.to_string(), value.to_string());
    }
    found
}

/// lstopo writes one tag a line.
fn parse(xml: &str) -> Vec<Object> {
    let (mut objects, mut open): (Vec<Object>, Vec<usize>) = (Vec::new(), Vec::new());
    for line in xml.lines().map(str::trim) {
        if line.starts_with("<object ") {
            objects.push(Object { attributes: attributes(line), above: open.clone(), ..Object::default() });
            if !line.ends_with("/>") {
                open.push(objects.len() - 1);
            }
        } else if line == "</object>" {
            open.pop();
        } else if let (true, Some(object)) = (line.starts_with("<info "), open.last()) {
            let mut info = attributes(line);
            let name = info.remove("name").unwrap_or_default();
            objects[*object].infos.insert(name, info.remove("value").unwrap_or_default());
        }
    }
    objects
}

/// What lstopo sees of `shape`; `None` where there is no lstopo and that is meant.
fn lstopo(shape: &Shape, test: &str) -> Option<Vec<Object>> {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let scratch = Scratch(base.join(format!("softefa-hwloc-{}-{test}-{}", std::process::id(), shape.name)));
    let gid = |nic| Gid::of(1, nic as u32).0;
    let root = Root::create(&scratch.0, shape, 1, shape.nics.len(), gid, CounterNames::EFA).unwrap();
    let output = Command::new("lstopo-no-graphics")
        .args(["--of", "xml", "--filter", "io:all", "-"])
        .env_remove("HWLOC_XMLFILE")
        .env_remove("HWLOC_SYNTHETIC")
        .envs(root.environment())
        .output();
    match output {
        Ok(output) if output.status.success() => Some(parse(&String::from_utf8(output.stdout).unwrap())),
        Ok(output) => panic!("lstopo failed: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "lstopo: {error}; install hwloc-nox");
            // Past the test harness, which keeps to itself what a passing test prints.
            let _ = writeln!(std::io::stderr(), "skipped: lstopo of {test}: {error}");
            None
        }
    }
}

fn pci(objects: &[Object]) -> BTreeMap<PciAddress, &Object> {
    let with_address = objects.iter().filter(|object| !object.get("pci_busid").is_empty());
    with_address.map(|object| (object.get("pci_busid").parse().unwrap(), object)).collect()
}

fn all_shapes() -> impl Iterator<Item = Shape> {
    let named = NAMES.into_iter().map(|name| Shape::named(name).unwrap());
    named.chain([Shape::generic(5).unwrap(), Shape::named("p5").unwrap().folded_to_numa_nodes(1).unwrap()])
}

#[test]
fn lstopo_shows_every_device_below_its_bridges_and_numa_node() {
    for shape in all_shapes() {
        let Some(objects) = lstopo(&shape, "tree") else { return };
        let seen = pci(&objects);
        let bridges = shape.bridges.iter().map(|bridge| bridge.address);
        let expected: Vec<_> = shape.endpoints().chain(bridges).collect();
        assert_eq!(seen.len(), expected.len(), "{}", shape.name);
        let nics = shape.nics.iter().map(|it| (it.address, it.numa_node, it.ids(), it.link));
        let gpus = shape.gpus.iter().map(|it| (it.address, it.numa_node, it.ids, it.link));
        for (address, numa_node, ids, link) in nics.chain(gpus) {
            let object = seen[&address];
            let above: Vec<PciAddress> = object
                .above
                .iter()
                .filter_map(|index| objects[*index].attributes.get("pci_busid"))
                .map(|address| address.parse().unwrap())
                .collect();
            let bridges: Vec<_> = shape.bridges_above(address).iter().map(|bridge| bridge.address).collect();
            assert_eq!(above, bridges, "{} {address}", shape.name);

            // The normal object that the root complex hangs below has the NUMA node's CPUs.
            let mut around = object.above.iter().map(|index| &objects[*index]);
            let around = around.rfind(|object| !object.get("cpuset").is_empty()).unwrap();
            let numa = objects.iter().find(|object| {
                object.get("type") == "NUMANode" && object.get("os_index") == numa_node.to_string()
            });
            assert_eq!(around.get("cpuset"), numa.unwrap().get("cpuset"), "{} {address}", shape.name);

            let kind = format!(
                "{:04x} [{:04x}:{:04x}] [{:04x}:{:04x}] {:02x}",
                ids.class >> 8,
                ids.vendor,
                ids.device,
                ids.subsystem_vendor,
                ids.subsystem_device,
                ids.revision
            );
            assert_eq!(object.get("pci_type"), kind, "{} {address}", shape.name);
            let speed: f64 = object.get("pci_link_speed").parse().unwrap();
            let expected = link.map_or(0.0, |link| link.bits_per_second() as f64 / 8e9);
            assert!(
                (speed - expected).abs() < 0.001,
                "{} {address}: {speed} GB/s, not {expected}",
                shape.name
            );
        }
    }
}

#[test]
fn lstopo_shows_the_rdma_devices_with_their_gids() {
    for shape in all_shapes() {
        let Some(objects) = lstopo(&shape, "rdma") else { return };
        for (index, nic) in shape.nics.iter().enumerate() {
            let device = objects
                .iter()
                .find(|object| object.get("osdev_type") == "3" && object.get("name") == nic.name)
                .unwrap_or_else(|| panic!("{}: no {}", shape.name, nic.name));
            let below = &objects[*device.above.last().unwrap()];
            assert_eq!(below.get("pci_busid"), nic.address.to_string());
            assert_eq!(device.infos["Port1GID0"], Gid::of(1, index as u32).to_string());
            assert_eq!(device.infos["Port1State"], "4");
            assert_eq!(device.infos["SysImageGUID"], "0000:0000:0000:0000");
        }
    }
}

#[test]
fn lstopo_shows_the_machine_not_the_host() {
    for shape in all_shapes() {
        let Some(objects) = lstopo(&shape, "machine") else { return };
        let machine = &objects[0];
        assert_eq!(machine.infos["DMIProductName"], shape.instance_type);
        assert_eq!(machine.infos["Architecture"], shape.cpu.model.architecture());
        let count = |kind: &str| objects.iter().filter(|object| object.get("type") == kind).count() as u32;
        let packages = shape.cpu.packages.len() as u32;
        assert_eq!(count("PU"), shape.cpu.count());
        assert_eq!(count("Core"), packages * shape.cpu.cores_per_package);
        assert_eq!(count("NUMANode"), shape.numa_nodes.len() as u32);
        assert_eq!(count("L2Cache"), packages * shape.cpu.cores_per_package);
        for (index, id) in shape.cpu.packages.iter().enumerate() {
            let package = objects.iter().filter(|object| object.get("type") == "Package").nth(index).unwrap();
            assert_eq!(package.get("os_index"), id.to_string());
            let model = package.infos.get("CPUModel").map(String::as_str);
            match &shape.cpu.model {
                CpuModel::X86 { name, .. } => assert_eq!(model, Some(name.as_str())),
                // hwloc names Arm processors only where it runs on one.
                CpuModel::Arm { .. } => assert_eq!(model, None),
            }
        }
        for (node, numa) in shape.numa_nodes.iter().enumerate() {
            let seen = objects.iter().filter(|object| object.get("type") == "NUMANode").nth(node).unwrap();
            assert_eq!(seen.get("local_memory"), (numa.memory_bytes / 1024 * 1024).to_string());
        }
    }
}
