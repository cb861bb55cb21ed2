//! Hosts that lack something, and sources that are wrong: what is known stays known, and the rest is said.

mod hosts;

use std::os::unix::fs::symlink;

use hosts::{host, path, rails};
use kvrail_topology::{
    Distance, Exclusion, GpuId, LinkState, Source, Topology, TopologyError, capture, distance,
};

#[test]
fn a_nic_that_is_down_is_left_out_and_named() {
    let topology = host("nic-down.capture");
    let down = topology.nic_by_name("rdmap32s27").unwrap();
    assert_eq!(down.state, LinkState::Down("DOWN".into()));
    assert_eq!(topology.assignment().excluded, [(down.id, Exclusion::Down("DOWN".into()))]);
    let rails = rails(&topology);
    assert!(rails.iter().all(|rails| rails.len() == 1));
    assert_eq!(rails[2], ["rdmap16s27"], "the nearest that is left");
    assert_eq!(topology.assignment().gpus[0].rails[0].gpus, 4);
    assert!(!topology.rails_of_numa(0).contains(&down.id));
}

#[test]
fn without_numa_nodes_the_pci_tree_still_decides() {
    let topology = host("no-numa.capture");
    assert_eq!(rails(&topology), rails(&host("p4d.capture")));
    let (gpu, far) = (topology.gpu(GpuId(0)).unwrap(), topology.nic_by_name("rdmap32s27").unwrap());
    assert_eq!(distance(&topology, gpu, far), Distance::Unknown);
    assert_eq!(topology.warnings().len(), 1, "one for all devices: {:?}", topology.warnings());
    assert!(topology.warnings()[0].what.contains("11 others"));
    assert_eq!(topology.rails_of_numa(0).len(), 4);
}

#[test]
fn gpus_without_a_nic_on_their_switch_divide_the_nearest() {
    let topology = host("gpus-without-nic.capture");
    let rails = rails(&topology);
    assert_eq!(rails[..4], [["rdmap96s0"], ["rdmap97s0"], ["rdmap96s0"], ["rdmap97s0"]]);
    assert_eq!(topology.assignment().gpus[0].rails[0].distance, Distance::Node);
    let (alone, all) = (&topology.assignment().gpus[2].alone, &topology.assignment().gpus[2].all_active);
    assert_eq!((alone.gbytes_per_second(), all.gbytes_per_second()), (50.0, 25.0));
}

#[test]
fn values_that_make_no_sense_are_warnings_that_name_the_file() {
    let topology = host("bad-values.capture");
    let places: Vec<&str> =
        topology.warnings().iter().map(|it| it.place.rsplit('/').next().unwrap()).collect();
    assert_eq!(places, ["state", "state", "rate"]);
    let nic = topology.nic_by_name("rdmap32s27").unwrap();
    assert_eq!(nic.rate_bps, None);
    let ceiling = topology.assignment().gpus[2].alone;
    assert!(!ceiling.complete && ceiling.bps == 0);
    assert_eq!(topology.nic_by_name("rdmap144s27").unwrap().state, LinkState::Unknown);
    assert_eq!(
        rails(&topology),
        rails(&host("p4d.capture")),
        "a state that is not known is no reason to leave out"
    );
}

#[test]
fn links_in_a_circle_out_of_the_tree_or_to_nothing_cost_only_their_device() {
    let topology = host("bad-links.capture");
    assert_eq!((topology.gpus().len(), topology.nics().len()), (3, 4));
    let said: Vec<&str> = topology.warnings().iter().map(|warning| warning.what.as_str()).collect();
    assert_eq!(said.iter().filter(|it| it.contains("circle")).count(), 2);
    assert_eq!(said.iter().filter(|it| it.contains("outside")).count(), 2);
    assert_eq!(said.iter().filter(|it| it.contains("nowhere")).count(), 1);
}

#[test]
fn a_directory_behaves_as_its_capture_does() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let device = root.join("devices/pci0000:00/0000:00:01.0");
    std::fs::create_dir_all(device.join("infiniband/nic0/ports/1")).unwrap();
    for name in ["class/infiniband", "bus/pci/devices"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::write(device.join("infiniband/nic0/ports/1/rate"), "100 Gb/sec (4X EDR)\n").unwrap();
    std::fs::write(device.join("infiniband/nic0/node_guid"), "1234:5678:9abc:def0\n").unwrap();
    // A file that must not be followed, one that is no text, one that is too large.
    symlink("/etc/hostname", device.join("infiniband/nic0/ports/1/state")).unwrap();
    std::fs::write(device.join("infiniband/nic0/ports/1/link_layer"), [0xff, 0xfe]).unwrap();
    std::fs::write(device.join("numa_node"), vec![b'1'; 1 << 20]).unwrap();
    symlink("../../devices/pci0000:00/0000:00:01.0/infiniband/nic0", root.join("class/infiniband/nic0"))
        .unwrap();
    symlink("loop", root.join("bus/pci/devices/loop")).unwrap();
    let topology = Topology::read(&Source::Sysfs(root.into())).unwrap();
    let nic = topology.nic_by_name("nic0").unwrap();
    assert_eq!(nic.pci, Some("00:01.0".parse().unwrap()));
    assert_eq!((nic.rate_bps, &nic.state), (Some(100_000_000_000), &LinkState::Unknown));
    assert_eq!(nic.node_guid.as_deref(), Some("1234:5678:9abc:def0"));
    let said = format!("{:?}", topology.warnings());
    for what in ["outside of the tree", "not text", "larger than 64 KiB", "not a PCI address"] {
        assert!(said.contains(what), "{what}: {said}");
    }

    let text = capture(root, &[]).unwrap();
    assert!(!text.contains("9abc"), "no GUID is written down:\n{text}");
    let again = Topology::read_capture(&text).unwrap();
    assert_eq!(again.nics()[0].rate_bps, nic.rate_bps);
}

#[test]
fn a_source_that_cannot_be_read_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let read = |source| Topology::read(&source).unwrap_err();
    let missing = read(Source::Sysfs(folder.path().join("missing")));
    assert!(matches!(missing, TopologyError::Unreadable { .. }), "{missing}");
    std::fs::create_dir(folder.path().join("sys")).unwrap();
    let wrong = read(Source::Sysfs(folder.path().into()));
    assert!(matches!(wrong, TopologyError::NotSysfs { has_sys: true, .. }), "{wrong}");
    assert!(wrong.hints()[0].contains("did you mean"), "{:?}", wrong.hints());
    let swapped = read(Source::Sysfs(path("p5en.hwloc2.xml")));
    assert!(matches!(swapped, TopologyError::Capture { line: 1, .. }), "{swapped}");
    let swapped = read(Source::Hwloc(path("p5en.capture")));
    assert!(matches!(swapped, TopologyError::Hwloc { .. }), "{swapped}");
    for error in [missing, wrong, swapped] {
        assert!(!error.hints().is_empty(), "{error}");
    }
}

#[test]
fn names_from_a_capture_cannot_steer_a_terminal() {
    let text = "# kvrail sysfs capture v1\nclass/infiniband/\u{1b}[2Jx -> nowhere\nclass/dmi/id/product_name\ta\u{7}b\n";
    let topology = Topology::read_capture(text).unwrap();
    assert_eq!(topology.machine(), Some("a?b"));
    assert!(topology.warnings().iter().all(|warning| !warning.to_string().contains('\u{1b}')));
}
