//! Processors, NUMA nodes, memory and the firmware's strings: `devices/system`, `class/dmi`, `/proc`.

use std::fmt::Write as _;

use super::SysfsError;
use super::tree::Tree;
use crate::shape::{CACHE_LINE_BYTES, CacheKind, CacheShape, CpuModel, CpuSet, Shape};

/// Kernel release shown: Ubuntu's for EC2.
const KERNEL: &str = "6.8.0-1030-aws";

pub(super) fn write(tree: &mut Tree, shape: &Shape, node: u32) -> Result<(), SysfsError> {
    let all = CpuSet::full(shape.cpu.count());
    for which in ["online", "possible", "present"] {
        tree.line(&format!("sys/devices/system/cpu/{which}"), all.list())?;
    }
    tree.line("sys/devices/system/cpu/kernel_max", shape.cpu.count() - 1)?;
    for cpu in 0..shape.cpu.count() {
        write_cpu(tree, shape, cpu)?;
    }
    for numa_node in 0..shape.numa_nodes.len() {
        write_numa_node(tree, shape, numa_node)?;
    }
    let nodes = CpuSet::full(shape.numa_nodes.len() as u32).list();
    for which in ["online", "possible", "has_cpu", "has_memory", "has_normal_memory"] {
        tree.line(&format!("sys/devices/system/node/{which}"), &nodes)?;
    }
    write_firmware(tree, shape, node)?;
    write_proc(tree, shape, node)
}

fn write_cpu(tree: &mut Tree, shape: &Shape, cpu: u32) -> Result<(), SysfsError> {
    let processors = &shape.cpu;
    let place = processors.place(cpu);
    let path = format!("sys/devices/system/cpu/cpu{cpu}");
    if cpu != 0 {
        tree.line(&format!("{path}/online"), 1)?;
    }
    let arm = matches!(processors.model, CpuModel::Arm { .. });
    // arm64 kernels number cores through all packages, x86 ones in each.
    let first = if arm { place.package * processors.cores_per_package } else { 0 };
    let topology = format!("{path}/topology");
    tree.line(&format!("{topology}/core_id"), first + place.core)?;
    tree.line(&format!("{topology}/physical_package_id"), processors.packages[place.package as usize])?;
    let core = processors.cores(place.package, place.core, 1);
    let package = processors.package(place.package);
    for (name, cpus) in [
        ("thread_siblings", &core),
        ("core_cpus", &core),
        ("core_siblings", &package),
        ("package_cpus", &package),
    ] {
        tree.line(&format!("{topology}/{name}"), cpus.mask())?;
        tree.line(&format!("{topology}/{name}_list"), cpus.list())?;
    }
    for (index, cache) in processors.caches.iter().enumerate() {
        let shared = place.core / cache.cores * cache.cores;
        let shared = processors.cores(place.package, shared, cache.cores);
        write_cache(tree, &format!("{path}/cache/index{index}"), cache, &shared)?;
    }
    for (node, numa) in shape.numa_nodes.iter().enumerate() {
        if numa.packages.contains(&place.package) {
            let numa = format!("sys/devices/system/node/node{node}");
            tree.link(&format!("{path}/node{node}"), &numa)?;
            tree.link(&format!("{numa}/cpu{cpu}"), &path)?;
        }
    }
    Ok(())
}

fn write_cache(tree: &mut Tree, path: &str, cache: &CacheShape, shared: &CpuSet) -> Result<(), SysfsError> {
    let kind = match cache.kind {
        CacheKind::Data => "Data",
        CacheKind::Instruction => "Instruction",
        CacheKind::Unified => "Unified",
    };
    tree.line(&format!("{path}/level"), cache.level)?;
    tree.line(&format!("{path}/type"), kind)?;
    tree.line(&format!("{path}/size"), format_args!("{}K", cache.size_bytes / 1024))?;
    tree.line(&format!("{path}/coherency_line_size"), CACHE_LINE_BYTES)?;
    tree.line(&format!("{path}/physical_line_partition"), 1)?;
    tree.line(&format!("{path}/ways_of_associativity"), cache.ways)?;
    tree.line(
        &format!("{path}/number_of_sets"),
        cache.size_bytes / CACHE_LINE_BYTES / u64::from(cache.ways),
    )?;
    tree.line(&format!("{path}/shared_cpu_map"), shared.mask())?;
    tree.line(&format!("{path}/shared_cpu_list"), shared.list())
}

fn write_numa_node(tree: &mut Tree, shape: &Shape, node: usize) -> Result<(), SysfsError> {
    let path = format!("sys/devices/system/node/node{node}");
    let numa = &shape.numa_nodes[node];
    let cpus = shape.numa_cpus(node as u32);
    tree.line(&format!("{path}/cpumap"), cpus.mask())?;
    tree.line(&format!("{path}/cpulist"), cpus.list())?;
    let distances = numa.distances.iter().map(u32::to_string).collect::<Vec<_>>();
    tree.line(&format!("{path}/distance"), distances.join(" "))?;
    let kib = numa.memory_bytes / 1024;
    let line = |name: &str, kib: u64| format!("Node {node} {name:<15}{kib:>11} kB\n");
    let meminfo = line("MemTotal:", kib) + &line("MemFree:", kib) + &line("MemUsed:", 0);
    let pages = ["Total", "Free", "Surp"].map(|which| format!("Node {node} HugePages_{which}:     0\n"));
    tree.file(&format!("{path}/meminfo"), meminfo + &pages.concat())?;
    write_huge_pages(tree, &format!("{path}/hugepages"))
}

fn write_huge_pages(tree: &mut Tree, path: &str) -> Result<(), SysfsError> {
    for kib in [2048, 1_048_576] {
        for which in ["nr_hugepages", "free_hugepages", "surplus_hugepages"] {
            tree.line(&format!("{path}/hugepages-{kib}kB/{which}"), 0)?;
        }
    }
    Ok(())
}

/// What the firmware of an EC2 instance says.
fn write_firmware(tree: &mut Tree, shape: &Shape, node: u32) -> Result<(), SysfsError> {
    let instance_id = format!("i-050f7efa{node:09x}");
    let strings = [
        ("product_name", shape.instance_type.as_str()),
        ("product_version", ""),
        ("sys_vendor", "Amazon EC2"),
        ("board_vendor", "Amazon EC2"),
        ("board_name", ""),
        ("board_version", ""),
        ("board_asset_tag", &instance_id),
        ("chassis_vendor", "Amazon EC2"),
        ("chassis_type", "1"),
        ("chassis_version", ""),
        ("chassis_asset_tag", "Amazon EC2"),
        ("bios_vendor", "Amazon EC2"),
        ("bios_version", "1.0"),
        ("bios_date", "10/16/2017"),
    ];
    for (name, text) in strings {
        tree.line(&format!("sys/devices/virtual/dmi/id/{name}"), text)?;
    }
    tree.link("sys/class/dmi/id", "sys/devices/virtual/dmi/id")?;
    write_huge_pages(tree, "sys/kernel/mm/hugepages")
}

fn write_proc(tree: &mut Tree, shape: &Shape, node: u32) -> Result<(), SysfsError> {
    let kib = shape.numa_nodes.iter().map(|numa| numa.memory_bytes / 1024).sum::<u64>();
    let line = |name: &str, kib: u64| format!("{name:<15}{kib:>9} kB\n");
    let lines = [("MemTotal:", kib), ("MemFree:", kib), ("MemAvailable:", kib), ("Hugepagesize:", 2048)];
    tree.file("proc/meminfo", lines.map(|(name, kib)| line(name, kib)).concat())?;
    tree.file("proc/cpuinfo", cpuinfo(shape))?;
    // hwloc takes from this file what it cannot read from files: without it, it describes the host's kernel.
    tree.file(
        "proc/hwloc-nofile-info",
        format!(
            "OSName: Linux\nOSRelease: {KERNEL}\nOSVersion: #32-Ubuntu SMP\nHostName: node{node}\nArchitecture: {}\n",
            shape.cpu.model.architecture(),
        ),
    )
}

fn cpuinfo(shape: &Shape) -> String {
    let processors = &shape.cpu;
    let mut text = String::new();
    for cpu in 0..processors.count() {
        let place = processors.place(cpu);
        // Writing to a String cannot fail.
        let _ = match &processors.model {
            CpuModel::X86 { vendor, name, family, model, stepping } => write!(
                text,
                "processor\t: {cpu}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n\
                 model name\t: {name}\nstepping\t: {stepping}\nphysical id\t: {}\nsiblings\t: {}\ncore id\t\t: {}\n\
                 cpu cores\t: {}\napicid\t\t: {cpu}\nflags\t\t: fpu sse sse2 ht syscall nx lm constant_tsc avx avx2 \
                 hypervisor\nclflush size\t: {CACHE_LINE_BYTES}\n\n",
                processors.packages[place.package as usize],
                processors.cores_per_package * processors.threads_per_core,
                place.core,
                processors.cores_per_package,
            ),
            CpuModel::Arm { implementer, variant, part, revision } => write!(
                text,
                "processor\t: {cpu}\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 \
                 atomics fphp asimdhp cpuid sve sve2 bf16 i8mm\nCPU implementer\t: {implementer:#04x}\n\
                 CPU architecture: 8\nCPU variant\t: {variant:#x}\nCPU part\t: {part:#05x}\nCPU revision\t: \
                 {revision}\n\n",
            ),
        };
    }
    text
}
