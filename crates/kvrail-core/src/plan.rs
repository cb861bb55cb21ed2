//! Plans: prepared, reusable pairings of local and remote slices.
//!
//! Everything that can be decided before the first byte moves is decided here: bounds against both sides' regions
//! and generations (KR-9, KR-11), coalescing of slices that are adjacent on both sides, cutting to the fabric's
//! largest op, and the division among routes. Posting a plan then does no work per descriptor but the fabric's.
//!
//! Ops are an array of 32-byte structs in the caller's order: the fabric needs all fields of an op together, so one
//! cache line serves two ops, and the division among routes is a handful of ranges ([`crate::stripe`]).
//!
//! A region is reachable on certain rails only: its keys exist nowhere else. Where a plan's regions differ in that, its
//! ops are put together by the rails of both ends (in the caller's order within that), each such part is divided
//! among routes of its own, and a failover never leaves them.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::descriptor::{Run, Slices};
use crate::id::{Generation, PeerId, RailSet, RegionId};
use crate::limits::PLAN_OPS_MAX;
use crate::region::RegionView;
use crate::stripe::{self, Segment};
use crate::transport::{Op, RegionInfo};

/// A prepared pairing of local and remote slices of one peer. Immutable; post it as often as wanted, as read or
/// write, also concurrently.
#[derive(Debug)]
pub struct Plan {
    pub(crate) peer: PeerId,
    pub(crate) ops: Vec<Op>,
    pub(crate) segments: Vec<Segment>,
    /// By the rails that the ops may use; in op order, covering all.
    pub(crate) parts: Vec<Part>,
    pub(crate) local: Side,
    pub(crate) remote: Side,
    bytes: u64,
    descriptors: u64,
}

/// Ops of a plan that may use the same rails: from the end of the part before up to `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    /// Where the local regions are registered.
    pub(crate) local: RailSet,
    /// Where the remote regions are registered.
    pub(crate) remote: RailSet,
    /// One past its last op.
    pub(crate) end: u32,
}

/// Routes between two sets of rails: where a part is divided.
pub(crate) struct Lane<'a> {
    /// Their positions in the peer's list; empty when it is the first `weights.len()` of that list.
    pub(crate) routes: &'a [u16],
    /// Their weights.
    pub(crate) weights: &'a [u64],
}

/// Gives lanes; makes the routes that are missing.
pub(crate) trait Lanes {
    /// The lane between two sets, each as [`RailSet::among`] makes it and not empty.
    fn lane(&mut self, local: RailSet, remote: RailSet) -> Lane<'_>;
}

/// The regions of one side that a plan uses, and the epoch at which they were last seen to be current.
#[derive(Debug)]
pub(crate) struct Side {
    regions: Vec<(RegionId, Generation)>,
    valid_at: AtomicU64,
}

impl Side {
    /// The first region that is gone or was replaced since the plan was made.
    pub(crate) fn stale(&self, view: &RegionView) -> Option<RegionId> {
        if self.valid_at.load(Ordering::Relaxed) == view.epoch {
            return None;
        }
        let stale = self.regions.iter().find(|(id, generation)| !view.holds(*id, *generation));
        if stale.is_none() {
            self.valid_at.store(view.epoch, Ordering::Relaxed);
        }
        stale.map(|(id, _)| *id)
    }

    /// The rails of all the regions; none where they differ.
    fn rails(&self, side: SideName, view: &RegionView) -> Result<Option<RailSet>, PlanError> {
        let sets = self.regions.iter().map(|(id, _)| (*id, view.rails(*id)));
        if let Some((region, _)) = sets.clone().find(|(_, rails)| rails.is_empty()) {
            return Err(PlanError::NoRails { side, region });
        }
        let mut sets = sets.map(|(_, rails)| rails);
        let first = sets.next().unwrap_or(RailSet::ALL);
        Ok(sets.all(|rails| rails == first).then_some(first))
    }

    pub(crate) fn uses(&self, region: RegionId) -> bool {
        self.regions.binary_search_by_key(&region, |(id, _)| *id).is_ok()
    }
}

impl Plan {
    /// Whom the plan concerns.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Bytes that one posting moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Slices per side before coalescing.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// The fabric ops of one posting.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Which ops go to which of the peer's routes.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The part that an op of the plan belongs to.
    pub(crate) fn part_of(&self, op: u32) -> Part {
        let all = Part { local: RailSet::ALL, remote: RailSet::ALL, end: self.ops.len() as u32 };
        self.parts.get(self.parts.partition_point(|part| part.end <= op)).copied().unwrap_or(all)
    }
}

/// Which side of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SideName {
    /// This agent's memory.
    Local,
    /// The peer's memory.
    Remote,
}

impl fmt::Display for SideName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Remote => "remote",
        })
    }
}

/// Why a plan was not made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PlanError {
    /// The peer is not (or no longer) known.
    UnknownPeer(PeerId),
    /// Nothing to move.
    Empty,
    /// The two sides have different numbers of slices.
    CountMismatch {
        /// Local slices.
        local: u64,
        /// Remote slices.
        remote: u64,
    },
    /// A pair's lengths differ.
    LengthMismatch {
        /// Index of the pair.
        index: u64,
        /// Bytes.
        local: u64,
        /// Bytes.
        remote: u64,
    },
    /// A slice has no bytes.
    EmptySlice {
        /// Index of the pair.
        index: u64,
    },
    /// The region is not registered, or the peer's metadata did not name it.
    UnknownRegion {
        /// Which side.
        side: SideName,
        /// Index of the pair.
        index: u64,
        /// The region.
        region: RegionId,
    },
    /// A slice ends outside its region.
    OutOfBounds {
        /// Which side.
        side: SideName,
        /// Index of the pair.
        index: u64,
        /// The region.
        region: RegionId,
        /// Offset of the slice, bytes.
        offset: u64,
        /// Bytes of the slice.
        len: u64,
        /// Bytes of the region.
        region_len: u64,
    },
    /// More than [`PLAN_OPS_MAX`] ops.
    TooManyOps,
    /// The region is registered on no rail that its owner still has: nothing can move it.
    NoRails {
        /// Which side.
        side: SideName,
        /// The region.
        region: RegionId,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPeer(peer) => write!(f, "{peer} is not known (any more)"),
            Self::Empty => f.write_str("a plan moves at least one slice"),
            Self::CountMismatch { local, remote } => {
                write!(f, "{local} local slices cannot be paired with {remote} remote ones")
            }
            Self::LengthMismatch { index, local, remote } => {
                write!(f, "slice {index} has {local} bytes here and {remote} at the peer")
            }
            Self::EmptySlice { index } => write!(f, "slice {index} has no bytes"),
            Self::UnknownRegion { side, index, region } => {
                write!(f, "slice {index}: {side} {region} is not registered")
            }
            Self::OutOfBounds { side, index, region, offset, len, region_len } => write!(
                f,
                "slice {index}: {len} bytes at offset {offset} end outside {side} {region} of {region_len} bytes"
            ),
            Self::TooManyOps => write!(f, "a plan has at most {PLAN_OPS_MAX} ops; make several plans"),
            Self::NoRails { side, region } => write!(f, "{side} {region} can be moved over no rail"),
        }
    }
}

impl core::error::Error for PlanError {}

/// What the planner needs to know beside the descriptors.
pub(crate) struct Inputs<'a> {
    pub(crate) peer: PeerId,
    pub(crate) local: &'a RegionView,
    pub(crate) remote: &'a RegionView,
    /// Route of a lane that begins.
    pub(crate) rotate: usize,
    pub(crate) op_bytes_max: u32,
    pub(crate) stripe_bytes_min: u32,
}

pub(crate) fn prepare(
    inputs: &Inputs<'_>,
    lanes: &mut dyn Lanes,
    local: &impl Slices,
    remote: &impl Slices,
) -> Result<Plan, PlanError> {
    let count = local.count();
    if count == 0 && remote.count() == 0 {
        return Err(PlanError::Empty);
    }
    if count != remote.count() {
        return Err(PlanError::CountMismatch { local: count, remote: remote.count() });
    }
    let mut here = Cursor::new(SideName::Local, local.runs(), inputs.local);
    let mut there = Cursor::new(SideName::Remote, remote.runs(), inputs.remote);
    let expected = usize::try_from(local.apart().min(remote.apart())).unwrap_or(usize::MAX).min(1 << 20);
    let mut ops: Vec<Op> = Vec::with_capacity(expected);
    let mut bytes = 0u64;
    let mut index = 0;
    while index < count {
        let (mut l, mut r) = (here.next(index)?, there.next(index)?);
        if l.len != r.len {
            return Err(PlanError::LengthMismatch { index, local: l.len, remote: r.len });
        }
        // Slices that follow each other without a gap on both sides are one.
        let more = here.dense(&l).min(there.dense(&r));
        if more > 0 {
            l.len += u64::from(more) * l.len;
            r.len = l.len;
            here.skip(more);
            there.skip(more);
        }
        index += 1 + u64::from(more);
        bytes = bytes.saturating_add(l.len);
        append(&mut ops, &l, &r, inputs.op_bytes_max)?;
    }
    let (here, there) = (here.finish(), there.finish());
    let one = here.rails(SideName::Local, inputs.local)?.zip(there.rails(SideName::Remote, inputs.remote)?);
    let Assigned { ops, segments, parts } = match one {
        Some((local, remote)) => assign(inputs, lanes, ops, local, remote),
        None => assign_by_rails(inputs, lanes, ops),
    };
    Ok(Plan {
        peer: inputs.peer,
        ops,
        segments,
        parts,
        local: here,
        remote: there,
        bytes,
        descriptors: count,
    })
}

/// Ops with their routes and rails.
#[derive(Default)]
struct Assigned {
    ops: Vec<Op>,
    segments: Vec<Segment>,
    parts: Vec<Part>,
}

/// Divides ops that may all use the same rails.
fn assign(
    inputs: &Inputs<'_>,
    lanes: &mut dyn Lanes,
    ops: Vec<Op>,
    local: RailSet,
    remote: RailSet,
) -> Assigned {
    let lane = lanes.lane(local, remote);
    let (ops, mut segments) = stripe::divide(ops, lane.weights, inputs.rotate, inputs.stripe_bytes_min);
    if !lane.routes.is_empty() {
        segments.iter_mut().for_each(|segment| segment.route = lane.routes[usize::from(segment.route)]);
    }
    let parts = alloc::vec![Part { local, remote, end: ops.len() as u32 }];
    Assigned { ops, segments, parts }
}

/// Puts together what may use the same rails, and divides each of that.
fn assign_by_rails(inputs: &Inputs<'_>, lanes: &mut dyn Lanes, mut ops: Vec<Op>) -> Assigned {
    let rails = |op: &Op| (inputs.local.rails(op.local_region), inputs.remote.rails(op.remote_region));
    ops.sort_by_key(|op| {
        let (local, remote) = rails(op);
        (local.bits(), remote.bits())
    });
    let mut all = Assigned::default();
    for alike in ops.chunk_by(|a, b| rails(a) == rails(b)) {
        let (local, remote) = rails(&alike[0]);
        let part = assign(inputs, lanes, alike.to_vec(), local, remote);
        let shift = all.ops.len() as u32;
        all.segments.extend(part.segments.iter().map(|s| Segment {
            first: s.first + shift,
            end: s.end + shift,
            ..*s
        }));
        all.parts.extend(part.parts.iter().map(|p| Part { end: p.end + shift, ..*p }));
        all.ops.extend(part.ops);
    }
    all
}

/// Adds a pair of slices: longer by extending the last op where both sides go on without a gap, else as new ops of
/// at most `op_bytes_max`.
#[inline]
fn append(ops: &mut Vec<Op>, l: &Slice, r: &Slice, op_bytes_max: u32) -> Result<(), PlanError> {
    let mut done = 0u64;
    if let Some(last) = ops.last_mut()
        && last.local_region == l.region
        && last.remote_region == r.region
        && last.local_offset + u64::from(last.len) == l.offset
        && last.remote_offset + u64::from(last.len) == r.offset
    {
        done = u64::from(op_bytes_max - last.len).min(l.len);
        last.len += done as u32;
    }
    while done < l.len {
        if ops.len() == PLAN_OPS_MAX {
            return Err(PlanError::TooManyOps);
        }
        let len = (l.len - done).min(u64::from(op_bytes_max));
        ops.push(Op {
            local_offset: l.offset + done,
            remote_offset: r.offset + done,
            local_region: l.region,
            remote_region: r.region,
            len: len as u32,
        });
        done += len;
    }
    Ok(())
}

/// One slice, checked against its region.
struct Slice {
    region: RegionId,
    offset: u64,
    len: u64,
}

/// Walks one side's runs, slice by slice, checking bounds.
struct Cursor<'a, I> {
    side: SideName,
    runs: I,
    view: &'a RegionView,
    run: Run,
    left: u32,
    region: Option<&'a RegionInfo>,
    used: Vec<(RegionId, Generation)>,
    /// The regions in `used`, a bit each: lists may go back and forth between them.
    seen: Vec<u64>,
}

impl<'a, I: Iterator<Item = Run>> Cursor<'a, I> {
    fn new(side: SideName, runs: I, view: &'a RegionView) -> Self {
        let run = Run { region: RegionId(0), offset: 0, len: 0, stride: 0, count: 0 };
        Self { side, runs, view, run, left: 0, region: None, used: Vec::new(), seen: Vec::new() }
    }

    #[inline]
    fn next(&mut self, index: u64) -> Result<Slice, PlanError> {
        if self.left == 0 {
            self.enter_run(index)?;
        }
        let Run { region, offset, len, stride, .. } = self.run;
        let region_len = self.region.map_or(0, |r| r.len);
        if len == 0 {
            return Err(PlanError::EmptySlice { index });
        }
        if offset > region_len || len > region_len - offset {
            return Err(PlanError::OutOfBounds { side: self.side, index, region, offset, len, region_len });
        }
        self.left -= 1;
        self.run.offset = offset.saturating_add(stride);
        Ok(Slice { region, offset, len })
    }

    /// How many of the slices after `slice`, which was the last one, lie in its run, inside their region, and follow it without a gap.
    #[inline]
    fn dense(&self, slice: &Slice) -> u32 {
        if self.left == 0 || self.run.stride != slice.len {
            return 0;
        }
        let room = self.region.map_or(0, |region| region.len - slice.offset - slice.len) / slice.len;
        u32::try_from(room).map_or(self.left, |room| room.min(self.left))
    }

    /// Passes over that many slices of the run.
    #[inline]
    fn skip(&mut self, slices: u32) {
        self.left -= slices;
        self.run.offset += u64::from(slices) * self.run.stride;
    }

    #[inline]
    fn enter_run(&mut self, index: u64) -> Result<(), PlanError> {
        // A list that has fewer slices than it says ends in one without bytes, which is an error.
        let nothing = Run { len: 0, count: 1, ..self.run };
        let run = self.runs.next().filter(|run| run.count > 0).unwrap_or(nothing);
        if self.region.is_none_or(|region| region.id != run.region) {
            let region = self.view.get(run.region).ok_or(PlanError::UnknownRegion {
                side: self.side,
                index,
                region: run.region,
            })?;
            self.region = Some(region);
            let (word, bit) = (run.region.index() / 64, 1 << (run.region.index() % 64));
            if word >= self.seen.len() {
                self.seen.resize(word + 1, 0);
            }
            if self.seen[word] & bit == 0 {
                self.seen[word] |= bit;
                self.used.push((region.id, region.generation));
            }
        }
        self.left = run.count;
        self.run = run;
        Ok(())
    }

    fn finish(mut self) -> Side {
        self.used.sort_unstable();
        Side { regions: self.used, valid_at: AtomicU64::new(self.view.epoch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Descriptors;
    use crate::transport::Device;
    use proptest::prelude::*;

    const KIB: u64 = 1024;

    fn view(lens: &[u64]) -> RegionView {
        let mut view = RegionView::default();
        for (id, &len) in lens.iter().enumerate() {
            view.set(info(id as u32, len), RailSet::ALL);
        }
        view
    }

    fn info(id: u32, len: u64) -> RegionInfo {
        let device = Device::Host;
        RegionInfo { id: RegionId(id), generation: Generation(1), base: 0x10_0000, len, device }
    }

    /// Two routes; or, between other sets than all rails, one per asking, with the sets that were asked for.
    #[derive(Default)]
    struct Asked(Vec<(RailSet, RailSet)>, Vec<u16>);

    impl Lanes for Asked {
        fn lane(&mut self, local: RailSet, remote: RailSet) -> Lane<'_> {
            self.0.push((local, remote));
            if (local, remote) == (RailSet::ALL, RailSet::ALL) {
                return Lane { routes: &[], weights: &[1, 1] };
            }
            self.1 = alloc::vec![1 + self.0.len() as u16];
            Lane { routes: &self.1, weights: &[7] }
        }
    }

    fn plan_of(
        lens: &[u64],
        local: &Descriptors,
        remote: &Descriptors,
        op_bytes_max: u32,
    ) -> Result<Plan, PlanError> {
        let view = view(lens);
        let inputs = Inputs {
            peer: PeerId { slot: 0, generation: Generation(1) },
            local: &view,
            remote: &view,
            rotate: 0,
            op_bytes_max,
            stripe_bytes_min: 128 << 10,
        };
        prepare(&inputs, &mut Asked::default(), local, remote)
    }

    fn list(slices: &[(u32, u64, u64)]) -> Descriptors {
        slices.iter().map(|&(region, offset, len)| (RegionId(region), offset, len)).collect()
    }

    #[test]
    fn slices_adjacent_on_both_sides_become_one_op() {
        let local = list(&[(0, 0, KIB), (0, KIB, KIB), (0, 2 * KIB, KIB)]);
        let remote = list(&[(0, 8 * KIB, KIB), (0, 9 * KIB, KIB), (0, 11 * KIB, KIB)]);
        let plan = plan_of(&[64 * KIB], &local, &remote, 1 << 20).unwrap();
        assert_eq!(plan.ops().iter().map(|op| op.len).collect::<Vec<_>>(), [2048, 1024]);
        assert_eq!(plan.descriptors(), 3);
        assert_eq!(plan.bytes(), 3 * KIB);
    }

    #[test]
    fn a_slice_that_ends_outside_its_region_is_named() {
        let local = list(&[(0, 0, KIB), (0, 3 * KIB, KIB)]);
        let remote = list(&[(0, 0, KIB), (0, 3 * KIB + 1, KIB)]);
        let error = plan_of(&[4 * KIB], &local, &remote, 1 << 20).unwrap_err();
        assert_eq!(
            error,
            PlanError::OutOfBounds {
                side: SideName::Remote,
                index: 1,
                region: RegionId(0),
                offset: 3 * KIB + 1,
                len: KIB,
                region_len: 4 * KIB
            }
        );
        assert_eq!(
            alloc::string::ToString::to_string(&error),
            "slice 1: 1024 bytes at offset 3073 end outside remote region 0 of 4096 bytes"
        );
    }

    #[test]
    fn offsets_that_overflow_are_out_of_bounds_and_not_a_panic() {
        let mut local = Descriptors::new();
        local.push_strided(RegionId(0), u64::MAX - 5, KIB, u64::MAX, 3);
        let mut remote = Descriptors::new();
        remote.push_strided(RegionId(0), 0, KIB, 0, 3);
        assert!(matches!(plan_of(&[4 * KIB], &local, &remote, 4096), Err(PlanError::OutOfBounds { .. })));
    }

    #[test]
    fn pairs_must_match() {
        let one = list(&[(0, 0, KIB)]);
        assert!(matches!(plan_of(&[KIB], &one, &list(&[]), 4096), Err(PlanError::CountMismatch { .. })));
        assert!(matches!(
            plan_of(&[KIB], &one, &list(&[(0, 0, 512)]), 4096),
            Err(PlanError::LengthMismatch { .. })
        ));
        assert!(matches!(
            plan_of(&[KIB], &list(&[(0, 0, 0)]), &list(&[(0, 0, 0)]), 4096),
            Err(PlanError::EmptySlice { index: 0 })
        ));
        assert!(matches!(
            plan_of(&[KIB], &one, &list(&[(7, 0, KIB)]), 4096),
            Err(PlanError::UnknownRegion { side: SideName::Remote, .. })
        ));
        assert_eq!(plan_of(&[KIB], &list(&[]), &list(&[]), 4096).unwrap_err(), PlanError::Empty);
    }

    #[test]
    fn each_op_goes_to_a_lane_between_the_rails_of_its_own_regions() {
        let near = |bits| RailSet::from_bits(bits);
        let mut view = RegionView::default();
        view.set(info(0, 64 * KIB), near(0b0011));
        view.set(info(1, 64 * KIB), near(0b1100));
        view.set(info(2, 64 * KIB), RailSet::NONE);
        let inputs = Inputs {
            peer: PeerId { slot: 0, generation: Generation(1) },
            local: &view,
            remote: &view,
            rotate: 0,
            op_bytes_max: 4096,
            stripe_bytes_min: 128 << 10,
        };
        let local = list(&[(0, 0, KIB), (1, 0, KIB), (0, 2 * KIB, KIB), (1, 4 * KIB, KIB)]);
        let remote = list(&[(1, 0, KIB), (1, 2 * KIB, KIB), (1, 4 * KIB, KIB), (0, 0, KIB)]);
        let mut asked = Asked::default();
        let plan = prepare(&inputs, &mut asked, &local, &remote).unwrap();
        let sets = [(near(0b0011), near(0b1100)), (near(0b1100), near(0b0011)), (near(0b1100), near(0b1100))];
        assert_eq!(asked.0, sets);
        for (at, op) in plan.ops().iter().enumerate() {
            let part = plan.part_of(at as u32);
            assert_eq!(
                (part.local, part.remote),
                (view.rails(op.local_region), view.rails(op.remote_region))
            );
        }
        let routes: Vec<_> = plan.segments().iter().map(|s| (s.route, s.first, s.end)).collect();
        assert_eq!(routes, [(2, 0, 2), (3, 2, 3), (4, 3, 4)]);
        assert_eq!(plan.bytes(), 4 * KIB);
        let nowhere = prepare(&inputs, &mut Asked::default(), &list(&[(0, 0, 1)]), &list(&[(2, 0, 1)]));
        assert_eq!(nowhere.unwrap_err(), PlanError::NoRails { side: SideName::Remote, region: RegionId(2) });
    }

    proptest! {
        #[test]
        fn strided_runs_equal_their_expansion(
            here in prop::collection::vec((0u32..3, 0u64..9_000, prop::sample::select(alloc::vec![0u64, 50, 100, 100, 100, 200]), 1u32..30), 1..12),
            there in prop::collection::vec((0u32..3, 0u64..9_000, prop::sample::select(alloc::vec![0u64, 50, 100, 100, 100, 200]), 1u32..30), 1..12),
            op_bytes_max in 1u32..1_000,
        ) {
            // The last slices of some runs end outside: the error names the slice in both forms.
            let lens = [10_000u64, 12_000, 60_000];
            let both = |runs: &[(u32, u64, u64, u32)], count: u64| {
                let (mut strided, mut expanded) = (Descriptors::new(), Descriptors::new());
                let mut left = count;
                for &(region, offset, stride, count) in runs {
                    let count = left.min(u64::from(count));
                    strided.push_strided(RegionId(region), offset, 100, stride, count as u32);
                    (0..count).for_each(|i| expanded.push(RegionId(region), offset + i * stride, 100));
                    left -= count;
                }
                (strided, expanded)
            };
            let slices = |runs: &[(u32, u64, u64, u32)]| runs.iter().map(|run| u64::from(run.3)).sum::<u64>();
            let count = slices(&here).min(slices(&there));
            let (here, here_each) = both(&here, count);
            let (there, there_each) = both(&there, count);
            let plan = |l: &Descriptors, r: &Descriptors| plan_of(&lens, l, r, op_bytes_max)
                .map(|plan| (plan.ops().to_vec(), plan.bytes(), plan.descriptors()));
            let wanted = plan(&here_each, &there_each);
            prop_assert_eq!(plan(&here, &there_each), wanted.clone());
            prop_assert_eq!(plan(&here_each, &there), wanted.clone());
            prop_assert_eq!(plan(&here, &there), wanted);
        }

        #[test]
        fn a_plan_moves_exactly_the_bytes_of_its_descriptors(
            pairs in prop::collection::vec((0u32..3, 0u64..60_000, 0u32..3, 0u64..60_000, 1u64..5_000), 1..40),
            op_bytes_max in 1u32..9_000,
        ) {
            let local: Descriptors = pairs.iter().map(|p| (RegionId(p.0), p.1, p.4)).collect();
            let remote: Descriptors = pairs.iter().map(|p| (RegionId(p.2), p.3, p.4)).collect();
            let plan = plan_of(&[65_536; 3], &local, &remote, op_bytes_max).unwrap();
            let wanted: Vec<_> = pairs.iter()
                .flat_map(|p| (0..p.4).map(|i| (p.0, p.1 + i, p.2, p.3 + i))).collect();
            let planned: Vec<_> = plan.ops().iter().flat_map(|op| (0..u64::from(op.len)).map(|i| {
                (op.local_region.0, op.local_offset + i, op.remote_region.0, op.remote_offset + i)
            })).collect();
            prop_assert_eq!(wanted, planned);
            prop_assert!(plan.ops().iter().all(|op| op.len > 0 && op.len <= op_bytes_max));
        }
    }
}
