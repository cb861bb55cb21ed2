//! Dividing a transfer's bytes among routes.
//!
//! The list of ops is one sequence of bytes; each route gets one consecutive part of it, in proportion to its
//! weight. A cut that falls inside a small op moves to the op's nearer end (small ones are never split); a cut
//! inside a large one is rounded up to an aligned offset. So the plan keeps the caller's order, each route's work
//! is one range, and at most one op per cut is split.
//!
//! Contract: *the parts are in order, disjoint, and cover every byte exactly once; a split falls on a multiple of
//! [`STRIPE_ALIGN`] from its op's start, and only in ops of at least the minimum length.*

use alloc::vec::Vec;

use crate::transport::Op;

/// Stripe boundaries are multiples of this from the start of their op, bytes: a page, and a multiple of every
/// cache line and PCIe payload size.
pub const STRIPE_ALIGN: u64 = 4096;

/// Ops `first..end` go to the route with this index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Position in the peer's route list.
    pub route: u16,
    /// First op.
    pub first: u32,
    /// One past the last op.
    pub end: u32,
}

/// Divides `ops` among `weights.len()` routes, beginning with route `rotate` so that lone small transfers spread
/// over the routes. Splits ops of at least `split_bytes_min` bytes where a cut falls inside.
#[must_use]
pub fn divide(ops: Vec<Op>, weights: &[u64], rotate: usize, split_bytes_min: u32) -> (Vec<Op>, Vec<Segment>) {
    if ops.is_empty() || weights.is_empty() {
        return (ops, Vec::new());
    }
    let cuts = cuts(&ops, weights, rotate, split_bytes_min);
    if cuts.iter().all(|cut| cut.into == 0) {
        let segments = segments(cuts.iter().map(|cut| cut.op), ops.len(), weights.len(), rotate);
        return (ops, segments);
    }
    let mut parts = Vec::with_capacity(ops.len() + cuts.len());
    let mut ends = Vec::with_capacity(cuts.len());
    let mut cuts = cuts.iter().peekable();
    for (index, op) in ops.iter().enumerate() {
        let mut rest = *op;
        while let Some(cut) = cuts.next_if(|cut| cut.op == index) {
            let taken = cut.into - (op.len - rest.len);
            if taken > 0 {
                parts.push(Op { len: taken, ..rest });
                rest.local_offset += u64::from(taken);
                rest.remote_offset += u64::from(taken);
                rest.len -= taken;
            }
            ends.push(parts.len());
        }
        parts.push(rest);
    }
    ends.extend(cuts.map(|_| parts.len()));
    let segments = segments(ends.into_iter(), parts.len(), weights.len(), rotate);
    (parts, segments)
}

/// A boundary between two routes' parts: `into` bytes into op `op`; zero means before it.
struct Cut {
    op: usize,
    into: u32,
}

/// Where the part of each route but the last ends, in order.
fn cuts(ops: &[Op], weights: &[u64], rotate: usize, split_bytes_min: u32) -> Vec<Cut> {
    let weight = |part: usize| u128::from(weights[(part + rotate) % weights.len()].max(1));
    let total: u128 = ops.iter().map(|op| u128::from(op.len)).sum();
    let weight_sum: u128 = (0..weights.len()).map(weight).sum();
    let (mut index, mut start, mut weight_seen) = (0, 0, 0);
    (0..weights.len() - 1)
        .map(|part| {
            weight_seen += weight(part);
            let target = total * weight_seen / weight_sum;
            while index < ops.len() && start + u128::from(ops[index].len) <= target {
                start += u128::from(ops[index].len);
                index += 1;
            }
            let Some(op) = ops.get(index) else { return Cut { op: index, into: 0 } };
            let into = (target - start) as u64;
            let into = if op.len >= split_bytes_min {
                into.next_multiple_of(STRIPE_ALIGN)
            } else if into * 2 < u64::from(op.len) {
                0
            } else {
                u64::from(op.len)
            };
            if into >= u64::from(op.len) {
                Cut { op: index + 1, into: 0 }
            } else {
                Cut { op: index, into: into as u32 }
            }
        })
        .collect()
}

/// Turns part ends (all but the last) into segments, leaving out empty ones.
fn segments(ends: impl Iterator<Item = usize>, ops: usize, routes: usize, rotate: usize) -> Vec<Segment> {
    let mut first = 0;
    ends.chain(core::iter::once(ops))
        .enumerate()
        .filter_map(|(part, end)| {
            let segment = Segment { route: ((part + rotate) % routes) as u16, first, end: end as u32 };
            first = end as u32;
            (segment.end > segment.first).then_some(segment)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RegionId;
    use proptest::prelude::*;

    fn ops(lens: &[u32]) -> Vec<Op> {
        let mut at = 0;
        lens.iter()
            .map(|&len| {
                let op = Op {
                    local_offset: at,
                    remote_offset: at * 2,
                    local_region: RegionId(0),
                    remote_region: RegionId(1),
                    len,
                };
                at += u64::from(len);
                op
            })
            .collect()
    }

    #[test]
    fn one_large_op_is_cut_into_equal_aligned_parts() {
        let (out, segments) = divide(ops(&[64 << 20]), &[100; 4], 0, 128 << 10);
        assert_eq!(out.iter().map(|op| op.len).collect::<Vec<_>>(), [16 << 20; 4]);
        assert_eq!(segments.iter().map(|s| s.route).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_lone_small_op_goes_whole_to_the_rotated_route() {
        for rotate in 0..4 {
            let (out, segments) = divide(ops(&[4096]), &[1; 4], rotate, 128 << 10);
            assert_eq!(out.len(), 1);
            assert_eq!(segments.len(), 1);
            assert_eq!((segments[0].first, segments[0].end), (0, 1));
        }
    }

    #[test]
    fn many_blocks_follow_the_weights() {
        let (out, segments) = divide(ops(&[32 << 10; 1000]), &[300, 100], 0, 128 << 10);
        assert_eq!(out.len(), 1000);
        assert_eq!(segments[0].end, 750);
        assert_eq!(segments[1].end, 1000);
    }

    proptest! {
        #[test]
        fn parts_are_in_order_disjoint_and_cover_every_byte_exactly_once(
            lens in prop::collection::vec(prop_oneof![1u32..5000, 100_000u32..3_000_000], 1..60),
            weights in prop::collection::vec(0u64..500, 1..12),
            rotate in 0usize..20,
            split_min in 1u32..1_000_000,
        ) {
            let before = ops(&lens);
            let (after, segments) = divide(before.clone(), &weights, rotate, split_min);
            let mut rest = after.iter();
            for op in &before {
                let mut seen = 0u64;
                while seen < u64::from(op.len) {
                    let part = rest.next().expect("the parts cover the op");
                    prop_assert!(part.len > 0);
                    prop_assert_eq!(part.local_offset, op.local_offset + seen);
                    prop_assert_eq!(part.remote_offset, op.remote_offset + seen);
                    if seen > 0 {
                        prop_assert_eq!(seen % STRIPE_ALIGN, 0);
                        prop_assert!(op.len >= split_min);
                    }
                    seen += u64::from(part.len);
                }
                prop_assert_eq!(seen, u64::from(op.len));
            }
            prop_assert!(rest.next().is_none());
            let mut at = 0;
            let mut routes = alloc::collections::BTreeSet::new();
            for segment in &segments {
                prop_assert_eq!(segment.first, at);
                prop_assert!(segment.end > segment.first);
                prop_assert!(usize::from(segment.route) < weights.len());
                prop_assert!(routes.insert(segment.route));
                at = segment.end;
            }
            prop_assert_eq!(at as usize, after.len());
        }

        #[test]
        fn each_part_is_within_one_op_of_its_share(
            lens in prop::collection::vec(1u32..200_000, 1..200),
            weights in prop::collection::vec(1u64..500, 2..9),
        ) {
            let (after, segments) = divide(ops(&lens), &weights, 0, u32::MAX);
            let total: u64 = lens.iter().map(|&n| u64::from(n)).sum();
            let largest = u64::from(*lens.iter().max().unwrap());
            let sum: u64 = weights.iter().sum();
            for (route, weight) in weights.iter().enumerate() {
                let bytes: u64 = segments.iter().filter(|s| usize::from(s.route) == route)
                    .flat_map(|s| &after[s.first as usize..s.end as usize]).map(|op| u64::from(op.len)).sum();
                let share = total * weight / sum;
                prop_assert!(bytes.abs_diff(share) <= 2 * largest + 2, "route {} has {} of {}", route, bytes, share);
            }
        }
    }
}
