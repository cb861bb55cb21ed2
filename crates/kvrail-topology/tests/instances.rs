//! The captured EC2 instances and servers: what is in them, which rails their GPUs have, and what those carry.

mod hosts;

use hosts::{host, names, rails};
use kvrail_topology::{Bound, Distance, GpuId, LinkState, NicKind, Topology, distance, host_memory_ceiling};

/// Rails of each GPU, distance of the nearest and farthest, GB/s alone and while all are active.
fn check(name: &str, nics: usize, gpus: usize, rails: usize, far: [Distance; 2], gbytes: [f64; 2]) {
    let topology = host(name);
    assert_eq!((topology.nics().len(), topology.gpus().len()), (nics, gpus), "{name}");
    assert_eq!(topology.numa_nodes().len(), 2, "{name}");
    assert_eq!(topology.warnings(), [], "{name}");
    let assignment = topology.assignment();
    for gpu in &assignment.gpus {
        assert_eq!(gpu.rails.len(), rails, "{name} GPU {}", gpu.gpu.0);
        let seen = [gpu.rails[0].distance, gpu.rails[rails - 1].distance];
        assert_eq!(seen, far, "{name} GPU {}", gpu.gpu.0);
        let ceilings = [gpu.alone.gbytes_per_second(), gpu.all_active.gbytes_per_second()];
        assert_eq!(ceilings, gbytes, "{name} GPU {}", gpu.gpu.0);
        assert_eq!(gpu.alone.bound, Bound::LineRate, "{name} GPU {}", gpu.gpu.0);
    }
    let mut served: Vec<_> = assignment.gpus.iter().flat_map(|gpu| &gpu.rails).map(|rail| rail.nic).collect();
    served.sort_unstable();
    served.dedup();
    assert_eq!(served.len(), nics, "{name}: a NIC serves nobody");
}

#[test]
fn a_p4d_has_one_rail_for_each_pair_of_gpus() {
    check("p4d.capture", 4, 8, 1, [Distance::Phb; 2], [12.5, 6.25]);
    let topology = host("p4d.capture");
    assert_eq!(topology.machine(), Some("p4d.24xlarge"));
    let rails = rails(&topology);
    assert_eq!(rails[0], ["rdmap16s27"]);
    assert_eq!(rails[1], rails[0]);
    assert_eq!(rails[7], ["rdmap160s27"]);
    assert_eq!(topology.assignment().gpus[0].rails[0].gpus, 2);
}

#[test]
fn a_p5_has_four_rails_for_each_gpu() {
    check("p5.capture", 32, 8, 4, [Distance::Pix; 2], [50.0, 50.0]);
    let rails = rails(&host("p5.capture"));
    assert_eq!(rails[0], ["rdmap79s0", "rdmap80s0", "rdmap81s0", "rdmap82s0"]);
    assert_eq!(rails[7], ["rdmap198s0", "rdmap199s0", "rdmap200s0", "rdmap201s0"]);
}

#[test]
fn newer_instances_have_the_rails_that_their_switches_show() {
    check("p5en.capture", 16, 8, 2, [Distance::Pix; 2], [50.0, 50.0]);
    check("p6-b200.capture", 8, 8, 1, [Distance::Pix; 2], [50.0, 50.0]);
    check("p6-b300.capture", 16, 8, 2, [Distance::Pix; 2], [100.0, 100.0]);
}

#[test]
fn a_gb200_has_two_rails_on_its_switch_and_two_on_its_processor() {
    check("gb200.capture", 16, 4, 4, [Distance::Pix, Distance::Node], [100.0, 100.0]);
    let topology = host("gb200.capture");
    assert!(topology.gpus().iter().all(|gpu| gpu.coherent));
    let far: Vec<Distance> = topology.assignment().gpus[0].rails.iter().map(|rail| rail.distance).collect();
    assert_eq!(far, [Distance::Pix, Distance::Pix, Distance::Node, Distance::Node]);
}

#[test]
fn host_memory_has_the_rails_of_its_node_and_they_cross_the_uplinks() {
    let topology = host("p5.capture");
    for node in 0..2 {
        let rails = topology.rails_of_numa(node);
        assert_eq!(rails.len(), 16);
        assert!(rails.iter().all(|nic| topology.nic(*nic).unwrap().numa == Some(node)));
        let ceiling = host_memory_ceiling(&topology, &rails);
        assert_eq!(ceiling.line_rate_bps, 16 * 100_000_000_000);
        // Four uplinks of Gen4 x8.
        assert_eq!(ceiling.bps, 4 * (8 * 16_000_000_000 * 128 / 130));
        assert!(matches!(ceiling.bound, Bound::BridgeLink(_)));
        assert_eq!(ceiling.links, 4);
    }
    let nowhere = topology.rails_of_numa(7);
    assert_eq!(nowhere.len(), 32, "a node that is not there is as far from all");
}

#[test]
fn nics_and_gpus_are_found_by_what_libraries_call_them() {
    let topology = host("roce.capture");
    let nic = topology.nic_by_name("mlx5_4").unwrap();
    assert_eq!(topology.nic_by_pci("0000:87:00.0".parse().unwrap()), Some(nic));
    assert_eq!(topology.nic_by_interface("ens4np0"), Some(nic));
    assert_eq!(topology.nic(nic.id), Some(nic));
    assert_eq!((nic.numa, nic.rate_bps, &nic.state), (Some(1), Some(400_000_000_000), &LinkState::Up));
    assert_eq!((nic.driver.as_deref(), nic.link_layer.as_deref()), (Some("mlx5_core"), Some("Ethernet")));
    assert_eq!(topology.nics().iter().filter(|nic| nic.kind == NicKind::Ethernet).count(), 0);
    let gpu = topology.gpu_by_pci("00000000:18:00.0".parse().unwrap()).unwrap();
    assert_eq!(gpu.id, GpuId(1));
    assert_eq!(topology.rails_of_gpu_at(gpu.address), topology.rails_of_gpu(GpuId(1)));
    assert!(topology.nic_by_name("mlx5_9").is_none() && topology.rails_of_gpu(GpuId(9)).is_empty());
}

#[test]
fn a_switch_below_a_switch_is_farther_than_the_same_switch() {
    let topology = host("roce.capture");
    let far = |gpu: u32, nic: &str| {
        let (gpu, nic) = (topology.gpu(GpuId(gpu)).unwrap(), topology.nic_by_name(nic).unwrap());
        distance(&topology, gpu, nic)
    };
    assert_eq!(far(0, "mlx5_0"), Distance::Pix);
    assert_eq!(far(0, "mlx5_1"), Distance::Pxb);
    assert_eq!(far(0, "mlx5_3"), Distance::Sys);
    assert_eq!(far(2, "mlx5_6"), Distance::Node);
}

#[test]
fn a_ceiling_is_set_by_the_slowest_link_that_is_crossed() {
    let topology = host("roce.capture");
    assert_eq!(
        rails(&topology),
        [vec!["mlx5_0"], vec!["mlx5_1"], vec!["mlx5_3", "mlx5_6"], vec!["mlx5_4", "mlx5_6"]]
    );
    let gpus = &topology.assignment().gpus;
    // mlx5_1 has 8 lanes of Gen5.
    assert_eq!(gpus[1].alone.bound, Bound::NicLink("17:00.0".parse().unwrap()));
    assert_eq!(gpus[1].alone.bps, 8 * 32_000_000_000 * 128 / 130);
    // 400 + 200 Gb/s into one GPU of Gen5 x16. It is idle and shows 2.5 GT/s, which does not count.
    assert_eq!(gpus[2].alone.bound, Bound::GpuLink("84:00.0".parse().unwrap()));
    assert_eq!(gpus[2].alone.bps, 16 * 32_000_000_000 * 128 / 130);
    // mlx5_6 halved: 400 + 100 Gb/s.
    assert_eq!(gpus[2].all_active.gbytes_per_second(), 62.5);
}

/// What both readers must agree on.
fn essence(topology: &Topology) -> String {
    let mut said = format!("{:?}\n", topology.machine());
    for node in topology.numa_nodes() {
        said += &format!(
            "{} {} {:?} {:?}\n",
            node.id,
            node.cpu_list(),
            node.memory_bytes,
            names(topology, &topology.rails_of_numa(node.id))
        );
    }
    for nic in topology.nics() {
        said += &format!(
            "{} {:?} {:?} {:?} {:?} {}\n",
            nic.name, nic.pci, nic.path, nic.numa, nic.rate_bps, nic.state
        );
    }
    for (gpu, rails) in topology.gpus().iter().zip(&topology.assignment().gpus) {
        said += &format!("{} {:?} {:?} {:?} {:?}\n", gpu.address, gpu.model, gpu.path, gpu.numa, rails.rails);
        said += &format!("{:.1} {:?}\n", rails.alone.gbytes_per_second(), rails.alone.bound);
    }
    said
}

#[test]
fn hwloc_and_sysfs_show_the_same_host() {
    for (sysfs, hwloc) in [
        ("p5en.capture", "p5en.hwloc2.xml"),
        ("gb200.capture", "gb200.hwloc2.xml"),
        ("p4d.capture", "p4d.hwloc1.xml"),
    ] {
        assert_eq!(essence(&host(sysfs)), essence(&host(hwloc)), "{hwloc}");
    }
    assert_eq!(host("p5en.hwloc2.xml").numa_node(0).unwrap().distances[&1], 21);
}

#[test]
fn a_laptop_has_interfaces_for_rails() {
    let topology = host("laptop.capture");
    assert_eq!((topology.gpus().len(), topology.numa_nodes().len()), (0, 1));
    let nics: Vec<&str> = topology.nics().iter().map(|nic| nic.name.as_str()).collect();
    assert_eq!(nics, ["enx001122", "enp0s31f6", "wlp1s0"], "`lo` is none");
    assert!(topology.nics().iter().all(|nic| nic.kind == NicKind::Ethernet));
    assert_eq!(topology.nic_by_name("enx001122").unwrap().rate_bps, Some(1_000_000_000));
    // Without a NUMA node of their own they are on the only one.
    assert_eq!(names(&topology, &topology.rails_of_numa(0)), ["enx001122", "wlp1s0"]);
    assert_eq!(topology.warnings(), []);
    assert!(topology.assignment().gpus.is_empty());
}
