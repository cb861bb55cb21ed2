//! The EC2 instance types, and a generic node.
//!
//! Sources, each a published record of the real machine: `[dump]` the hwloc topologies that aws-ofi-nccl keeps for
//! its unit tests (`tests/unit/fixtures/topology/`: p4d, p5en, p6-b200, p6e-gb200); `[nccl]` its NCCL topology files
//! (`topology/p4de-24xl-topo.xml`); `[list]` device and GPU listings that users of p5.48xlarge published (an example
//! program that prints all GPU–NIC pairs with their NUMA node, lstopo and NCCL graph excerpts). `[assumed]` marks what
//! no record shows. ENA devices, NVMe drives and empty hot-plug ports are left out everywhere.

use super::build::Builder;
use super::{
    CLASS_3D, CLASS_OTHER_BRIDGE, CacheKind, CacheShape, CpuModel, CpuShape, EfaGeneration, NumaShape,
    PciIds, PciLink, Shape,
};

const GEN4_X1: PciLink = PciLink::new(4, 1);
const GEN4_X8: PciLink = PciLink::new(4, 8);
const GEN4_X16: PciLink = PciLink::new(4, 16);
const GEN5_X8: PciLink = PciLink::new(5, 8);
const GEN5_X16: PciLink = PciLink::new(5, 16);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The shape of that short name or instance type.
pub(super) fn named(name: &str) -> Option<Shape> {
    match name {
        "p4d" | "p4d.24xlarge" => Some(p4d()),
        "p4de" | "p4de.24xlarge" => Some(p4de()),
        "p5" | "p5.48xlarge" => Some(p5()),
        "p5en" | "p5en.48xlarge" => Some(p5en()),
        "p6-b200" | "p6-b200.48xlarge" => Some(p6_b200()),
        "gb200" | "p6e-gb200" | "p6e-gb200.36xlarge" => Some(gb200()),
        _ => None,
    }
}

/// `nics` EFA devices of 100 Gb/s behind one switch, on one NUMA node; nothing of it is an EC2 type's.
pub(super) fn generic(nics: usize) -> Shape {
    let cpu = CpuShape {
        model: x86("GenuineIntel", "Intel(R) Xeon(R) Platinum 8488C", 6, 143, 8),
        packages: vec![0],
        cores_per_package: 16,
        threads_per_core: 1,
        caches: caches([(48 * KIB, 12), (32 * KIB, 8), (2 * MIB, 16)], (105 * MIB, 15, 16)),
    };
    let mut build = Builder::new(start("generic", "softefa.generic", cpu, &[64 << 30], 10));
    let first = 0x13;
    let last = first + nics as u8 - 1;
    build.switched_root(0x10, last, 0, GEN5_X16);
    for bus in first..=last {
        build.nic(bus, EfaGeneration::V2, 100, Some(GEN4_X8));
    }
    build.done()
}

/// Four groups of two A100 40 GB and one EFA, each group flat on its own root bus `[dump]`.
fn p4d() -> Shape {
    p4("p4d", "p4d.24xlarge", "NVIDIA A100-SXM4-40GB", PciIds::nvidia(0x20b0, 0x134f, CLASS_3D))
}

/// P4d with A100 80 GB: same addresses `[nccl]`.
fn p4de() -> Shape {
    p4("p4de", "p4de.24xlarge", "NVIDIA A100-SXM4-80GB", PciIds::nvidia(0x20b2, 0x1463, CLASS_3D))
}

fn p4(name: &str, instance_type: &str, gpu: &str, gpu_ids: PciIds) -> Shape {
    let cpu = CpuShape {
        model: x86("GenuineIntel", "Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz", 6, 85, 7),
        packages: vec![0, 1],
        cores_per_package: 24,
        threads_per_core: 2,
        // 11 ways of 35.75 MiB `[dump]`.
        caches: caches([(32 * KIB, 8), (32 * KIB, 8), (MIB, 16)], (37_486_592, 11, 24)),
    };
    let memory = [602_206_875_648, 602_313_527_296];
    let mut build = Builder::new(start(name, instance_type, cpu, &memory, 21));
    for (bus, numa_node) in [(0x10, 0), (0x20, 0), (0x80, 1), (0x90, 1), (0xa0, 1)] {
        build.flat_root(bus, numa_node);
        if bus == 0x80 {
            let nvswitch = PciIds::nvidia(0x1af1, 0x13b8, CLASS_OTHER_BRIDGE);
            (0x1a..=0x1f).for_each(|slot| build.other(slot, nvswitch, "nvidia-nvswitch", GEN4_X1));
            continue;
        }
        // The EFA function shows no PCIe capability there: hwloc reports link speed 0.
        build.nic(0x1b, EfaGeneration::V1, 100, None);
        build.gpu(0x1c, gpu, gpu_ids, GEN4_X16);
        build.gpu(0x1d, gpu, gpu_ids, GEN4_X16);
    }
    build.done()
}

/// Eight switches, each with four EFA and one H100 `[list]`. Uplinks are Gen4 x8 `[list]`.
fn p5() -> Shape {
    let cpu = CpuShape {
        model: x86("AuthenticAMD", "AMD EPYC 7R13 Processor", 25, 1, 1),
        packages: vec![0, 1],
        cores_per_package: 48,
        threads_per_core: 2,
        // Zen 3: 32 MiB of L3 for each complex of eight cores.
        caches: caches([(32 * KIB, 8), (32 * KIB, 8), (512 * KIB, 8)], (32 * MIB, 16, 8)),
    };
    let mut build = Builder::new(start("p5", "p5.48xlarge", cpu, &[1 << 40, 1 << 40], 32));
    for group in 0..8 {
        let bus = 0x44 + 0x11 * group;
        build.switched_root(bus, bus + 0x10, u32::from(group / 4), GEN4_X8);
        for nic in 0..4 {
            build.nic(bus + 0x0b + nic, EfaGeneration::V2, 100, Some(GEN4_X8));
        }
        let ids = PciIds::nvidia(0x2330, 0x16c1, CLASS_3D);
        build.gpu(bus + 0x0f, "NVIDIA H100 80GB HBM3", ids, GEN5_X16);
    }
    // NVSwitches' addresses `[list]`; their bridges, link and ids `[assumed]`.
    build.switched_root(0xcc, 0xd2, 1, GEN4_X8);
    let nvswitch = PciIds::nvidia(0x22a3, 0x1796, CLASS_OTHER_BRIDGE);
    (0xcf..=0xd2).for_each(|bus| build.other(bus, nvswitch, "nvidia-nvswitch", GEN4_X1));
    build.done()
}

/// Four switches, each with four EFA and two H200 `[dump]`.
fn p5en() -> Shape {
    let cpu = CpuShape {
        model: x86("GenuineIntel", "Intel(R) Xeon(R) Platinum 8488C", 6, 143, 8),
        packages: vec![0, 1],
        cores_per_package: 48,
        threads_per_core: 2,
        caches: caches([(48 * KIB, 12), (32 * KIB, 8), (2 * MIB, 16)], (105 * MIB, 15, 48)),
    };
    let memory = [1_073_701_388_288, 1_073_701_388_288];
    let mut build = Builder::new(start("p5en", "p5en.48xlarge", cpu, &memory, 21));
    for group in 0..4 {
        let bus = 0x44 + 0x19 * group;
        build.switched_root(bus, bus + 0x18, u32::from(group / 2), GEN5_X16);
        // 31.5 GB/s in the dump: Gen5 x8 or Gen4 x16, the former `[assumed]`.
        (0x11..=0x14).for_each(|nic| build.nic(bus + nic, EfaGeneration::V3, 200, Some(GEN5_X8)));
        let ids = PciIds::nvidia(0x2335, 0x18be, CLASS_3D);
        (0x15..=0x16).for_each(|gpu| build.gpu(bus + gpu, "NVIDIA H200", ids, GEN5_X16));
    }
    build.done()
}

/// Four switches, each with two EFA and two B200 `[dump]`. The third one's GPUs come two buses later: two management
/// NICs of the machine's vendor lie between (left out).
fn p6_b200() -> Shape {
    let cpu = CpuShape {
        model: x86("GenuineIntel", "Intel(R) Xeon(R) Platinum 8559C", 6, 207, 2),
        packages: vec![0, 1],
        cores_per_package: 48,
        threads_per_core: 2,
        caches: caches([(48 * KIB, 12), (32 * KIB, 8), (2 * MIB, 16)], (320 * MIB, 20, 48)),
    };
    let memory = [1_071_588_651_008, 1_071_608_815_616];
    let mut build = Builder::new(start("p6-b200", "p6-b200.48xlarge", cpu, &memory, 21));
    for (bus, last, numa_node, gpus) in
        [(0x44, 0x54, 0, 0x51), (0x55, 0x65, 0, 0x62), (0x66, 0x78, 1, 0x75), (0x79, 0x89, 1, 0x86)]
    {
        build.switched_root(bus, last, numa_node, GEN5_X16);
        (0x0b..=0x0c).for_each(|nic| build.nic(bus + nic, EfaGeneration::V4, 400, Some(GEN5_X16)));
        let ids = PciIds::nvidia(0x2901, 0x1999, CLASS_3D);
        (gpus..=gpus + 1).for_each(|gpu| build.gpu(gpu, "NVIDIA B200", ids, GEN5_X16));
    }
    build.done()
}

/// p6e-gb200.36xlarge: two Grace processors, each with two root complexes of one GB200 GPU and two EFA, and two of two
/// EFA alone `[dump]`. The sixteen EFA devices share eight 400 Gb/s network cards of the instance's 3,200 Gb/s (AWS's
/// table of network cards); 200 Gb/s for each is that total, evenly split `[assumed]`. The GPUs' memory, which Linux
/// shows as NUMA nodes of their own, is left out.
fn gb200() -> Shape {
    let cpu = CpuShape {
        // Neoverse V2.
        model: CpuModel::Arm { implementer: 0x41, variant: 0, part: 0xd4f, revision: 0 },
        packages: vec![60, 84],
        cores_per_package: 72,
        threads_per_core: 1,
        caches: caches([(64 * KIB, 4), (64 * KIB, 4), (MIB, 8)], (114 * MIB, 76, 72)),
    };
    let memory = [498_685_243_392, 496_814_342_144];
    let mut build = Builder::new(start("gb200", "p6e-gb200.36xlarge", cpu, &memory, 20));
    for (bus, numa_node) in
        [(0x24, 0), (0x2f, 0), (0x3a, 0), (0x45, 0), (0x97, 1), (0xa2, 1), (0xad, 1), (0xb8, 1)]
    {
        let with_gpu = matches!(bus, 0x24 | 0x3a | 0x97 | 0xad);
        if with_gpu {
            // Traffic between GPU and CPU goes over NVLink-C2C, so the uplink is a formality: 1.97 GB/s in the dump.
            build.switched_root(bus, bus + 5, numa_node, GEN4_X1);
            (3..=4).for_each(|nic| build.nic(bus + nic, EfaGeneration::V4, 200, Some(GEN5_X16)));
            build.gpu(bus + 5, "NVIDIA GB200", PciIds::nvidia(0x2941, 0x2046, CLASS_3D), GEN5_X16);
        } else {
            build.switched_root(bus, bus + 8, numa_node, GEN5_X16);
            (7..=8).for_each(|nic| build.nic(bus + nic, EfaGeneration::V4, 200, Some(GEN5_X8)));
        }
    }
    build.done()
}

/// A shape without PCI devices: one NUMA node for each package, all others at distance `far`.
fn start(name: &str, instance_type: &str, cpu: CpuShape, memory_bytes: &[u64], far: u32) -> Shape {
    let nodes = memory_bytes.len() as u32;
    let numa = |(node, memory_bytes): (u32, &u64)| NumaShape {
        packages: vec![node],
        memory_bytes: *memory_bytes,
        distances: (0..nodes).map(|other| if other == node { 10 } else { far }).collect(),
    };
    Shape {
        name: name.to_string(),
        instance_type: instance_type.to_string(),
        cpu,
        numa_nodes: (0..nodes).zip(memory_bytes).map(numa).collect(),
        roots: Vec::new(),
        bridges: Vec::new(),
        nics: Vec::new(),
        gpus: Vec::new(),
        others: Vec::new(),
    }
}

fn x86(vendor: &str, name: &str, family: u32, model: u32, stepping: u32) -> CpuModel {
    CpuModel::X86 { vendor: vendor.to_string(), name: name.to_string(), family, model, stepping }
}

/// L1 data, L1 instruction and L2 of each core as (bytes, ways); L3 as (bytes, ways, cores that share it).
fn caches(core: [(u64, u32); 3], (size_bytes, ways, cores): (u64, u32, u32)) -> Vec<CacheShape> {
    let kinds = [(1, CacheKind::Data), (1, CacheKind::Instruction), (2, CacheKind::Unified)];
    let own = kinds.into_iter().zip(core).map(|((level, kind), (size_bytes, ways))| CacheShape {
        level,
        kind,
        size_bytes,
        ways,
        cores: 1,
    });
    own.chain([CacheShape { level: 3, kind: CacheKind::Unified, size_bytes, ways, cores }]).collect()
}
