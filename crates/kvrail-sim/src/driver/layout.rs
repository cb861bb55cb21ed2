//! Which memory of a node is registered, who uses which part of it, and slices for the next transfer.
//!
//! Ownership is exclusive on both ends: a range is a source or a target of one transfer at a time, so that every byte
//! has one right value.

use kvrail_core::descriptor::Descriptors;
use kvrail_core::id::RegionId;

use crate::rng::Rng;

/// Granularity of ownership, bytes.
pub(crate) const UNIT: u64 = 64;

/// A piece of a node's memory that is a region most of the time.
#[derive(Clone, Debug)]
pub(crate) struct Area {
    /// Its region while it is registered.
    pub(crate) region: Option<RegionId>,
    /// Address of its first byte.
    pub(crate) base: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// The transfer that uses each unit.
    owners: Vec<Option<u64>>,
}

/// One pair of ranges of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slice {
    /// Area of the initiator.
    pub(crate) local_area: usize,
    /// Offset there.
    pub(crate) local: u64,
    /// Area of the peer.
    pub(crate) remote_area: usize,
    /// Offset there.
    pub(crate) remote: u64,
    /// Bytes.
    pub(crate) len: u64,
}

impl Area {
    fn units(&self) -> usize {
        self.owners.len()
    }

    fn is_free(&self, first: usize, count: usize) -> bool {
        self.owners[first..first + count].iter().all(Option::is_none)
    }

    /// The units that a range touches.
    fn touched(offset: u64, len: u64) -> core::ops::Range<usize> {
        (offset / UNIT) as usize..((offset + len - 1) / UNIT + 1) as usize
    }

    /// A run of `count` free units, somewhere.
    fn run(&self, count: usize, rng: &mut Rng) -> Option<usize> {
        let last = self.units().checked_sub(count)?;
        let start = rng.index(last + 1);
        (0..=last).map(|i| (start + i) % (last + 1)).find(|first| self.is_free(*first, count))
    }

    /// The longest run of free units: first and count.
    fn longest(&self) -> (usize, usize) {
        let (mut best, mut first) = ((0, 0), 0);
        for at in 0..=self.units() {
            if at == self.units() || self.owners[at].is_some() {
                if at - first > best.1 {
                    best = (first, at - first);
                }
                first = at + 1;
            }
        }
        best
    }
}

/// All areas of a node's present life.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The areas, in address order, with gaps between them.
    pub(crate) areas: Vec<Area>,
}

impl Layout {
    /// Cuts memory into areas of unequal size at odd addresses, with guard bytes between them.
    #[must_use]
    pub(crate) fn new(base: u64, len: u64, rng: &mut Rng) -> Self {
        let count = rng.within(1, 4);
        let mut areas = Vec::new();
        let mut at = base + rng.within(1, 99);
        let share = len / count;
        for i in 0..count {
            let end = base + share * (i + 1);
            let room = (end - at).saturating_sub(100);
            let units = room / UNIT;
            let len = units * UNIT - rng.below(UNIT - 1);
            areas.push(Area { region: None, base: at, len, owners: vec![None; (len / UNIT) as usize] });
            at = end + rng.within(1, 99);
        }
        Self { areas }
    }

    /// Gives ranges to a transfer.
    pub(crate) fn take(&mut self, transfer: u64, ranges: impl Iterator<Item = (usize, u64, u64)>) {
        for (area, offset, len) in ranges {
            for unit in Area::touched(offset, len) {
                debug_assert!(self.areas[area].owners[unit].is_none());
                self.areas[area].owners[unit] = Some(transfer);
            }
        }
    }

    /// Whether all ranges are free.
    #[must_use]
    pub(crate) fn all_free(&self, mut ranges: impl Iterator<Item = (usize, u64, u64)>) -> bool {
        ranges.all(|(area, offset, len)| {
            let touched = Area::touched(offset, len);
            self.areas[area].is_free(touched.start, touched.len())
        })
    }

    /// Takes everything back from a transfer.
    pub(crate) fn give_back(&mut self, transfer: u64) {
        for owner in self.areas.iter_mut().flat_map(|area| &mut area.owners) {
            if *owner == Some(transfer) {
                *owner = None;
            }
        }
    }

    /// Registered areas.
    fn live(&self) -> Vec<usize> {
        (0..self.areas.len()).filter(|area| self.areas[*area].region.is_some()).collect()
    }
}

/// Shapes of transfers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// One range.
    Contiguous,
    /// Small blocks anywhere.
    Scattered,
    /// Equal blocks, equally spaced; other spacing at the other side.
    Strided,
    /// As much as there is: cut into stripes over all rails.
    Large,
}

/// Slices for a transfer of that shape, of free memory on both sides, and the two descriptor lists.
#[must_use]
pub(crate) fn slices(
    shape: Shape,
    local: &mut Layout,
    remote: &mut Layout,
    transfer: u64,
    rng: &mut Rng,
) -> Option<(Vec<Slice>, Descriptors, Descriptors)> {
    let (here, there) = (local.live(), remote.live());
    if here.is_empty() || there.is_empty() {
        return None;
    }
    let (local_area, remote_area) = (rng.pick(&here), rng.pick(&there));
    let mut slices = Vec::new();
    match shape {
        Shape::Contiguous => {
            let count = rng.within(1, 8) as usize;
            slices.push(one(local, remote, (local_area, remote_area), count, rng)?);
        }
        Shape::Large => {
            let room = local.areas[local_area].longest().1.min(remote.areas[remote_area].longest().1);
            slices.push(one(local, remote, (local_area, remote_area), room.min(128).checked_sub(1)?, rng)?);
        }
        Shape::Scattered => {
            for _ in 0..rng.within(2, 20) {
                let areas = (rng.pick(&here), rng.pick(&there));
                let Some(slice) = one(local, remote, areas, 1, rng) else { break };
                // Taken at once, so that the next one goes elsewhere.
                local.take(transfer, [(slice.local_area, slice.local, slice.len)].into_iter());
                remote.take(transfer, [(slice.remote_area, slice.remote, slice.len)].into_iter());
                slices.push(slice);
            }
            local.give_back(transfer);
            remote.give_back(transfer);
        }
        Shape::Strided => {
            let count = rng.within(2, 12);
            let (step_here, step_there) = (rng.within(1, 3), rng.within(1, 3));
            let first_here = local.areas[local_area].run((count * step_here) as usize, rng)? as u64;
            let first_there = remote.areas[remote_area].run((count * step_there) as usize, rng)? as u64;
            let len = rng.within(1, UNIT);
            for i in 0..count {
                slices.push(Slice {
                    local_area,
                    local: (first_here + i * step_here) * UNIT,
                    remote_area,
                    remote: (first_there + i * step_there) * UNIT,
                    len,
                });
            }
        }
    }
    if slices.is_empty() {
        return None;
    }
    let (mut ours, mut theirs) = (Descriptors::new(), Descriptors::new());
    if let (Shape::Strided, true) = (shape, slices.len() > 1) {
        let (a, b) = (slices[0], slices[1]);
        let count = slices.len() as u32;
        ours.push_strided(local.areas[local_area].region?, a.local, a.len, b.local - a.local, count);
        theirs.push_strided(remote.areas[remote_area].region?, a.remote, a.len, b.remote - a.remote, count);
    } else {
        for slice in &slices {
            ours.push(local.areas[slice.local_area].region?, slice.local, slice.len);
            theirs.push(remote.areas[slice.remote_area].region?, slice.remote, slice.len);
        }
    }
    local.take(transfer, slices.iter().map(|s| (s.local_area, s.local, s.len)));
    remote.take(transfer, slices.iter().map(|s| (s.remote_area, s.remote, s.len)));
    Some((slices, ours, theirs))
}

/// One slice within `count` free units of each side, at odd offsets.
fn one(
    local: &Layout,
    remote: &Layout,
    (local_area, remote_area): (usize, usize),
    count: usize,
    rng: &mut Rng,
) -> Option<Slice> {
    if count == 0 {
        return None;
    }
    let first_here = local.areas[local_area].run(count, rng)? as u64;
    let first_there = remote.areas[remote_area].run(count, rng)? as u64;
    let (skew_here, skew_there) = (rng.below(UNIT / 2), rng.below(UNIT / 2));
    let room = count as u64 * UNIT - skew_here.max(skew_there);
    Some(Slice {
        local_area,
        local: first_here * UNIT + skew_here,
        remote_area,
        remote: first_there * UNIT + skew_there,
        len: room - rng.below(UNIT / 2),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_inside_live_areas_and_never_overlap() {
        for seed in 0..300 {
            let rng = &mut Rng::new(seed);
            let mut sides = [Layout::new(0x1000, 16 << 10, rng), Layout::new(0x9000, 16 << 10, rng)];
            for area in sides.iter_mut().flat_map(|side| &mut side.areas) {
                area.region = rng.chance(800_000).then_some(RegionId(1));
            }
            let [a, b] = &mut sides;
            let mut used: Vec<(usize, u64, u64)> = Vec::new();
            for transfer in 0..12 {
                let shape = rng.pick(&[Shape::Contiguous, Shape::Scattered, Shape::Strided, Shape::Large]);
                let Some((slices, ours, theirs)) = slices(shape, a, b, transfer, rng) else { continue };
                assert_eq!(ours.len(), slices.len() as u64);
                assert_eq!(ours.bytes(), theirs.bytes());
                for s in slices {
                    assert!(s.len > 0 && s.local + s.len <= a.areas[s.local_area].len);
                    assert!(s.remote + s.len <= b.areas[s.remote_area].len);
                    assert!(
                        a.areas[s.local_area].region.is_some() && b.areas[s.remote_area].region.is_some()
                    );
                    for (area, at, len) in &used {
                        assert!(*area != s.local_area || s.local >= at + len || s.local + s.len <= *at);
                    }
                    used.push((s.local_area, s.local, s.len));
                }
            }
        }
    }
}
