//! The mapping's rule on made-up hosts: what it promises for all of them.

mod hosts;

use hosts::{Device, capture};
use kvrail_topology::{Bound, Exclusion, LinkState, Nearness, Topology, nearness, usable_nics};
use proptest::prelude::*;

fn device() -> impl Strategy<Value = Device> {
    let switch = prop::option::of((0u8..3, any::<bool>()));
    let gbps = prop::sample::select(vec![100u32, 200, 400]);
    (any::<bool>(), 0u8..4, switch, prop::bool::weighted(0.85), gbps)
        .prop_map(|(gpu, root, switch, up, gbps)| Device { gpu, root, switch, up, gbps })
}

fn hosts() -> impl Strategy<Value = Vec<Device>> {
    prop::collection::vec(device(), 0..40)
}

proptest! {
    #[test]
    fn every_usable_nic_serves_a_gpu_and_every_gpu_has_a_rail(devices in hosts()) {
        let topology = Topology::read_capture(&capture(&devices)).unwrap();
        prop_assert_eq!(topology.warnings(), &[]);
        prop_assert_eq!(topology.gpus().len(), devices.iter().filter(|it| it.gpu).count());
        let (assignment, usable) = (topology.assignment(), usable_nics(&topology));
        if topology.gpus().is_empty() || usable.is_empty() {
            prop_assert!(assignment.gpus.iter().all(|gpu| gpu.rails.is_empty() && gpu.alone.bound == Bound::NoRail));
            return Ok(());
        }
        for nic in topology.nics() {
            let users = assignment.gpus.iter().filter(|gpu| gpu.rails.iter().any(|rail| rail.nic == nic.id)).count();
            match nic.state {
                LinkState::Down(_) => {
                    prop_assert_eq!(users, 0);
                    prop_assert!(assignment.excluded.contains(&(nic.id, Exclusion::Down("DOWN".into()))));
                }
                _ => prop_assert!(users > 0, "{} serves nobody", nic.name),
            }
        }
        prop_assert!(assignment.gpus.iter().all(|gpu| !gpu.rails.is_empty()));
    }

    #[test]
    fn a_rail_is_the_gpus_nearest_or_the_gpu_is_nearest_to_it(devices in hosts()) {
        let topology = Topology::read_capture(&capture(&devices)).unwrap();
        let near = |gpu, nic| nearness(&topology, gpu, topology.nic(nic).unwrap());
        let usable = usable_nics(&topology);
        for (gpu, rails) in topology.gpus().iter().zip(&topology.assignment().gpus) {
            let best = usable.iter().map(|nic| near(gpu, *nic)).min();
            let mut before: Option<Nearness> = None;
            for rail in &rails.rails {
                let here = near(gpu, rail.nic);
                let for_nic = topology.gpus().iter().map(|gpu| near(gpu, rail.nic)).min();
                prop_assert!(Some(here) == best || Some(here) == for_nic);
                prop_assert_eq!(rail.distance, here.distance);
                prop_assert!(before <= Some(here), "nearest first");
                before = Some(here);
            }
        }
    }

    #[test]
    fn gpus_in_equal_places_have_equally_many_rails(devices in hosts()) {
        let topology = Topology::read_capture(&capture(&devices)).unwrap();
        let usable = usable_nics(&topology);
        let place = |gpu| -> Vec<Nearness> {
            usable.iter().map(|nic| nearness(&topology, gpu, topology.nic(*nic).unwrap())).collect()
        };
        let gpus: Vec<_> = topology.gpus().iter().zip(&topology.assignment().gpus).collect();
        for (one, rails) in &gpus {
            for (other, others) in &gpus {
                if place(one) == place(other) {
                    prop_assert_eq!(rails.rails.len(), others.rails.len());
                }
            }
        }
    }

    #[test]
    fn a_ceiling_is_at_most_the_line_rates_and_sharing_never_raises_it(devices in hosts()) {
        let topology = Topology::read_capture(&capture(&devices)).unwrap();
        for gpu in &topology.assignment().gpus {
            let sum: u64 = gpu.rails.iter().map(|rail| topology.nic(rail.nic).unwrap().rate_bps.unwrap()).sum();
            prop_assert_eq!(gpu.alone.line_rate_bps, sum);
            prop_assert!(gpu.alone.bps <= sum && gpu.all_active.bps <= gpu.alone.bps);
            let alone = gpu.rails.iter().all(|rail| rail.gpus == 1);
            // No link is known here, so only NICs are shared.
            prop_assert_eq!(gpu.alone.bps == gpu.all_active.bps, alone || sum == 0);
        }
        let all: u64 = topology.assignment().gpus.iter().map(|gpu| gpu.all_active.bps).sum();
        let usable: u64 = usable_nics(&topology).iter().map(|nic| topology.nic(*nic).unwrap().rate_bps.unwrap()).sum();
        prop_assert!(all <= usable, "together no more than there is");
    }

    #[test]
    fn the_order_in_which_a_source_lists_things_decides_nothing(devices in hosts()) {
        let text = capture(&devices);
        let (head, rest) = text.split_once('\n').unwrap();
        let reversed: Vec<&str> = rest.lines().rev().collect();
        let other = Topology::read_capture(&format!("{head}\n{}\n", reversed.join("\n"))).unwrap();
        let topology = Topology::read_capture(&text).unwrap();
        prop_assert_eq!(topology.assignment(), other.assignment());
    }
}
