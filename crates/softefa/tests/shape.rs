//! What every shape must satisfy, and what is known of some.

use std::collections::BTreeSet;

use proptest::prelude::*;
use softefa::shape::{BridgeKind, EfaGeneration, NAMES, NICS_MAX, Shape, ShapeError};

fn any_shape() -> impl Strategy<Value = Shape> {
    let named = prop::sample::select(NAMES.to_vec()).prop_map(|name| Shape::named(name).unwrap());
    let generic = (1..=NICS_MAX).prop_map(|nics| Shape::generic(nics).unwrap());
    let whole = prop_oneof![4 => named, 1 => generic];
    let part = whole.prop_flat_map(|shape| {
        let all = shape.nics.len();
        (Just(shape), 1..=all).prop_map(|(shape, nics)| shape.with_nics(nics).unwrap())
    });
    (part, prop::option::of(1u32..4)).prop_map(|(shape, folded)| match folded {
        Some(nodes) => shape.folded_to_numa_nodes(nodes).unwrap(),
        None => shape,
    })
}

proptest! {
    // A failing shape is printed whole; there is nothing to keep in a file.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_is_consistent(shape in any_shape()) {
        prop_assert_eq!(shape.validate(), Ok(()));
    }

    #[test]
    fn addresses_and_names_are_unique(shape in any_shape()) {
        let bridges = shape.bridges.iter().map(|bridge| bridge.address);
        let all: Vec<_> = shape.endpoints().chain(bridges).collect();
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        let names: BTreeSet<_> = shape.nics.iter().map(|nic| &nic.name).collect();
        prop_assert_eq!(names.len(), shape.nics.len());
        for nic in &shape.nics {
            prop_assert_eq!(&nic.name, &nic.address.rdma_name());
        }
    }

    #[test]
    fn every_device_hangs_below_bridges_of_its_numa_node(shape in any_shape()) {
        for address in shape.endpoints() {
            let root = shape.root(address).unwrap();
            let above = shape.bridges_above(address);
            let kinds: Vec<_> = above.iter().map(|bridge| bridge.kind).collect();
            let switched = [BridgeKind::RootPort, BridgeKind::SwitchUpstream, BridgeKind::SwitchDownstream];
            prop_assert!(kinds.is_empty() || kinds == switched, "{} is below {:?}", address, kinds);
            for bridge in above {
                prop_assert_eq!(bridge.numa_node, root.numa_node);
                prop_assert!((bridge.secondary..=bridge.subordinate).contains(&address.bus));
            }
        }
        for nic in &shape.nics {
            prop_assert_eq!(nic.numa_node, shape.root(nic.address).unwrap().numa_node);
        }
    }

    #[test]
    fn numa_nodes_divide_the_processors(shape in any_shape()) {
        let mut seen = BTreeSet::new();
        for node in 0..shape.numa_nodes.len() as u32 {
            for cpu in shape.numa_cpus(node).iter() {
                prop_assert!(seen.insert(cpu), "CPU {} is on two nodes", cpu);
                prop_assert_eq!(shape.cpu.cpu(shape.cpu.place(cpu)), cpu);
            }
        }
        prop_assert_eq!(seen.len() as u32, shape.cpu.count());
    }

    #[test]
    fn a_shape_survives_json(shape in any_shape()) {
        let text = serde_json::to_string(&shape).unwrap();
        prop_assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape);
    }

    #[test]
    fn a_shape_with_a_bus_moved_is_refused_not_believed(shape in any_shape(), which in any::<prop::sample::Index>(), bus: u8) {
        let mut moved = shape.clone();
        let nic = which.index(moved.nics.len());
        moved.nics[nic].address.bus = bus;
        // Moved to where another place is, it may fit; what is accepted must have a path.
        if moved.validate().is_ok() {
            prop_assert!(moved.sysfs_path(moved.nics[nic].address).is_some());
        }
        if shape.nics[nic].address.bus != bus && shape.root(moved.nics[nic].address).is_none() {
            prop_assert!(moved.validate().is_err());
        }
    }
}

/// NICs, Gb/s of each, GPUs, NICs nearest to each GPU, generation.
#[test]
fn shapes_are_those_of_ec2() {
    let known = [
        ("p4d", 4, 100, 8, 1, EfaGeneration::V1),
        ("p4de", 4, 100, 8, 1, EfaGeneration::V1),
        ("p5", 32, 100, 8, 4, EfaGeneration::V2),
        ("p5en", 16, 200, 8, 4, EfaGeneration::V3),
        ("p6-b200", 8, 400, 8, 2, EfaGeneration::V4),
        ("gb200", 16, 200, 4, 2, EfaGeneration::V4),
    ];
    assert_eq!(known.map(|shape| shape.0), NAMES);
    for (name, nics, gbps, gpus, nearest, generation) in known {
        let shape = Shape::named(name).unwrap();
        assert_eq!(Shape::named(&shape.instance_type), Ok(shape.clone()));
        assert_eq!((shape.nics.len(), shape.gpus.len()), (nics, gpus), "{name}");
        for nic in &shape.nics {
            assert_eq!((nic.rate_bps, nic.generation), (gbps * 1_000_000_000, generation), "{name}");
        }
        for gpu in 0..gpus {
            let near = shape.nearest_nics(gpu);
            assert_eq!(near.len(), nearest, "{name} GPU {gpu}: {near:?}");
            for nic in near {
                assert_eq!(shape.nics[nic].numa_node, shape.gpus[gpu].numa_node, "{name} GPU {gpu}");
            }
        }
    }
}

#[test]
fn nics_of_p5_are_divided_among_its_gpus() {
    let shape = Shape::named("p5").unwrap();
    let near: Vec<_> = (0..8).flat_map(|gpu| shape.nearest_nics(gpu)).collect();
    assert_eq!(near, (0..32).collect::<Vec<_>>());
    let names: Vec<_> = shape.nics.iter().map(|nic| nic.name.as_str()).collect();
    assert_eq!(names[..5], ["rdmap79s0", "rdmap80s0", "rdmap81s0", "rdmap82s0", "rdmap96s0"]);
    assert_eq!(names[31], "rdmap201s0");
}

#[test]
fn names_are_those_of_ec2() {
    let names = |shape: &str| -> Vec<String> {
        Shape::named(shape).unwrap().nics.into_iter().map(|nic| nic.name).collect()
    };
    assert_eq!(names("p4d"), ["rdmap16s27", "rdmap32s27", "rdmap144s27", "rdmap160s27"]);
    let p5en = [85, 86, 87, 88, 110, 111, 112, 113, 135, 136, 137, 138, 160, 161, 162, 163];
    assert_eq!(names("p5en"), p5en.map(|bus| format!("rdmap{bus}s0")));
    let p6 = [79, 80, 96, 97, 113, 114, 132, 133];
    assert_eq!(names("p6-b200"), p6.map(|bus| format!("rdmap{bus}s0")));
    let gb200 = [39, 40, 54, 55, 61, 62, 76, 77, 154, 155, 169, 170, 176, 177, 191, 192];
    assert_eq!(names("gb200"), gb200.map(|bus| format!("rdmap{bus}s0")));
}

#[test]
fn a_subset_keeps_its_gpus_and_their_tree() {
    let shape = Shape::named("p5").unwrap().with_nics(5).unwrap();
    assert_eq!((shape.nics.len(), shape.gpus.len()), (5, 8));
    assert_eq!(shape.nearest_nics(0), [0, 1, 2, 3]);
    assert_eq!(shape.nearest_nics(1), [4]);
    // Nothing on its switch: all NICs of its NUMA node are equally near.
    assert_eq!(shape.nearest_nics(2), [0, 1, 2, 3, 4]);
}

#[test]
fn what_cannot_be_is_said() {
    assert_eq!(Shape::named("p7"), Err(ShapeError::Unknown { name: "p7".to_string() }));
    assert!(Shape::named("p7").unwrap_err().to_string().contains("p5en"));
    for nics in [0, NICS_MAX + 1] {
        assert!(matches!(Shape::generic(nics), Err(ShapeError::NicCount { .. })));
    }
    let p5 = Shape::named("p5").unwrap();
    assert!(p5.clone().with_nics(33).unwrap_err().to_string().contains("from 1 to 32"));
    assert!(p5.clone().folded_to_numa_nodes(0).is_err());

    let mut twice = p5.clone();
    twice.nics[1].address = twice.nics[0].address;
    assert!(matches!(twice.validate(), Err(ShapeError::Inconsistent { .. })));
    let mut elsewhere = p5.clone();
    elsewhere.gpus[0].numa_node = 2;
    assert!(elsewhere.validate().is_err());
    let mut path = p5;
    path.nics[0].name = "../../etc".to_string();
    assert!(path.validate().is_err());
}
