use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn plan(scheme: Scheme, initiators: u32, targets: u32) -> Plan {
    let total_bytes = u64::from(initiators * targets) << 20;
    Plan::new(Shape {
        scheme,
        mode: Mode::Single,
        initiators,
        targets,
        threads: 1,
        total_bytes,
        huge_pages: false,
    })
    .unwrap()
}

fn pairs_of(plan: &Plan) -> Vec<(u32, u32, u32)> {
    plan.links().iter().map(|link| (link.initiator, link.target, link.weight)).collect()
}

#[test]
fn pairs_are_of_equal_rank_and_the_smaller_side_goes_round() {
    assert_eq!(pairs_of(&plan(Scheme::Pairwise, 3, 3)), [(0, 0, 1), (1, 1, 1), (2, 2, 1)]);
    assert_eq!(pairs_of(&plan(Scheme::Pairwise, 3, 2)), [(0, 0, 1), (1, 1, 1), (2, 0, 1)]);
    assert_eq!(pairs_of(&plan(Scheme::Pairwise, 1, 3)), [(0, 0, 1), (0, 1, 1), (0, 2, 1)]);
}

#[test]
fn one_to_many_and_many_to_one_reach_everybody() {
    assert_eq!(pairs_of(&plan(Scheme::OneToMany, 1, 3)), [(0, 0, 1), (0, 1, 1), (0, 2, 1)]);
    assert_eq!(pairs_of(&plan(Scheme::ManyToOne, 3, 1)), [(0, 0, 1), (1, 0, 1), (2, 0, 1)]);
    assert_eq!(plan(Scheme::ManyToOne, 2, 3).links().len(), 6);
}

#[test]
fn tensor_parallel_ranks_meet_where_their_parts_overlap() {
    assert_eq!(pairs_of(&plan(Scheme::Tp, 2, 4)), [(0, 0, 1), (0, 1, 1), (1, 2, 1), (1, 3, 1)]);
    assert_eq!(pairs_of(&plan(Scheme::Tp, 3, 2)), [(0, 0, 2), (1, 0, 1), (1, 1, 1), (2, 1, 2)]);
    assert_eq!(pairs_of(&plan(Scheme::Tp, 2, 2)), [(0, 0, 1), (1, 1, 1)]);
}

#[test]
fn several_devices_of_one_process_go_in_one_transfer() {
    let shape = Shape {
        scheme: Scheme::Pairwise,
        mode: Mode::Multi,
        initiators: 2,
        targets: 2,
        threads: 1,
        total_bytes: 2 << 20,
        huge_pages: false,
    };
    let plan = Plan::new(shape).unwrap();
    assert_eq!((plan.participants(), plan.initiators(), plan.weight(0)), (2, 1, 2));
    let places = plan.places(plan.routes()[0], 0, 0, Size { block_bytes: 4096, batch: 2 });
    assert_eq!(places.initiator, [0, 4096, 1 << 20, (1 << 20) + 4096]);
    assert_eq!(places.initiator, places.target);
}

#[test]
fn a_share_that_is_too_small_is_named() {
    let plan = plan(Scheme::OneToMany, 1, 4);
    assert_eq!(plan.too_small_for(1 << 20), None);
    let link = plan.too_small_for((1 << 20) + 1).unwrap();
    assert_eq!((link.initiator, link.target), (0, 0));
}

#[test]
fn a_plan_has_bounds() {
    let shape = Shape {
        scheme: Scheme::ManyToOne,
        mode: Mode::Single,
        initiators: 1024,
        targets: 1024,
        threads: 1,
        total_bytes: 1 << 30,
        huge_pages: false,
    };
    assert!(Plan::new(shape).is_err());
    assert!(Plan::new(Shape { initiators: 1025, targets: 1, ..shape }).is_err());
    assert!(Plan::new(Shape { scheme: Scheme::Tp, ..shape }).is_ok());
}

fn shapes() -> impl Strategy<Value = Shape> {
    let scheme = proptest::sample::select(Scheme::ALL.to_vec());
    let mode = proptest::sample::select(vec![Mode::Single, Mode::Multi]);
    (scheme, mode, 1u32..=9, 1u32..=9, 1u32..=3, 1u64..=5000, any::<bool>()).prop_map(
        |(scheme, mode, initiators, targets, threads, unit, huge_pages)| Shape {
            scheme,
            mode,
            initiators,
            targets,
            threads,
            total_bytes: u64::from(initiators) * u64::from(targets) * u64::from(threads) * unit * 64,
            huge_pages,
        },
    )
}

/// Ranges that are in order, touch, and cover `0..whole`.
fn covers(mut ranges: Vec<Range<u64>>, whole: u64) -> bool {
    ranges.sort_by_key(|range| (range.start, range.end));
    let end =
        ranges.iter().try_fold(0, |at, range| (range.start == at && range.end >= at).then_some(range.end));
    end == Some(whole)
}

proptest! {
    #[test]
    fn the_shares_of_every_device_cover_its_buffer_exactly_and_disjointly(shape in shapes()) {
        let plan = Plan::new(shape).unwrap();
        for device in 0..shape.initiators {
            let shares = plan.links().iter().filter(|l| l.initiator == device).map(|l| l.at_initiator.clone());
            prop_assert!(covers(shares.collect(), shape.buffer_bytes(Side::Initiator)));
        }
        for device in 0..shape.targets {
            let shares = plan.links().iter().filter(|l| l.target == device).map(|l| l.at_target.clone());
            prop_assert!(covers(shares.collect(), shape.buffer_bytes(Side::Target)));
        }
    }

    #[test]
    fn every_device_has_a_partner_and_no_pair_is_listed_twice(shape in shapes()) {
        let plan = Plan::new(shape).unwrap();
        let mut pairs: Vec<_> = plan.links().iter().map(|l| (l.initiator, l.target)).collect();
        prop_assert!((0..shape.initiators).all(|i| pairs.iter().any(|p| p.0 == i)));
        prop_assert!((0..shape.targets).all(|t| pairs.iter().any(|p| p.1 == t)));
        let count = pairs.len();
        pairs.dedup();
        prop_assert_eq!(pairs.len(), count);
    }

    /// Tensor parallelism: parts of one whole, so that every initiator sends, and every target receives, the same amount.
    #[test]
    fn tensor_parallel_ranks_carry_equal_parts(initiators in 1u32..=64, targets in 1u32..=64) {
        let plan = plan(Scheme::Tp, initiators, targets);
        let (mut sent, mut received) = (BTreeMap::new(), BTreeMap::new());
        for link in plan.links() {
            *sent.entry(link.initiator).or_insert(0u64) += u64::from(link.weight);
            *received.entry(link.target).or_insert(0u64) += u64::from(link.weight);
            // They overlap as fractions of the whole.
            let (i, t) = (u64::from(link.initiator), u64::from(link.target));
            let (of_i, of_t) = (u64::from(initiators), u64::from(targets));
            prop_assert!(i * of_t < (t + 1) * of_i && t * of_i < (i + 1) * of_t);
        }
        prop_assert!(sent.values().all(|n| n * u64::from(initiators) == sent[&0] * u64::from(initiators)));
        prop_assert!(received.values().all(|n| *n == received[&0]));
        prop_assert_eq!(sent[&0] * u64::from(initiators), received[&0] * u64::from(targets));
        prop_assert_eq!(plan.links().len() as u32, initiators + targets - gcd(initiators, targets));
    }

    /// Two blocks that are moved at the same time lie apart on both sides, or are the same block on both.
    #[test]
    fn blocks_stay_in_their_process_and_apart(
        shape in shapes(), block_bytes in 1u64..=4096, batch in 1u64..=5, slots in 1u64..=3,
    ) {
        let plan = Plan::new(shape).unwrap();
        prop_assume!(plan.too_small_for(block_bytes).is_none());
        let size = Size { block_bytes, batch };
        let mut at: [BTreeMap<(u32, u64), (u32, u64)>; 2] = Default::default();
        let mut moved = 0;
        for route in plan.routes() {
            for thread in 0..shape.threads {
                for slot in 0..slots {
                    let places = plan.places(route, thread, slot, size);
                    prop_assert_eq!(places.initiator.len(), places.target.len());
                    moved += places.initiator.len() as u64;
                    for (i, t) in places.initiator.iter().zip(&places.target) {
                        prop_assert!(i + block_bytes <= plan.pool_bytes(Side::Initiator));
                        prop_assert!(t + block_bytes <= plan.pool_bytes(Side::Target));
                        let (i, t) = ((route.initiator, *i), (route.target, *t));
                        for (here, there, known) in [(i, t, 0), (t, i, 1)] {
                            let before = at[known].insert(here, there);
                            prop_assert!(before.is_none_or(|b| b == there), "{here:?} is paired twice");
                        }
                    }
                }
            }
        }
        for places in &at {
            for ((a, b), (c, d)) in places.keys().zip(places.keys().skip(1)) {
                prop_assert!(a < c || b + block_bytes <= *d, "blocks overlap");
            }
        }
        let weights: u64 = (0..plan.initiators()).map(|rank| plan.weight(rank)).sum();
        prop_assert_eq!(moved, weights * batch * slots * u64::from(shape.threads));
        let distinct = at[0].len() as u64;
        prop_assert_eq!(plan.aliases(size, slots), distinct < moved);
    }
}
