//! Which parts of a region are in use.

use kvrail_sim::rng::Rng;

/// The taken parts of one region.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    bytes: u64,
    /// Offset and bytes, by offset.
    taken: Vec<(u64, u64)>,
}

impl Extents {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, taken: Vec::new() }
    }

    /// A free part, somewhere; at any byte, not at a page's beginning.
    pub(crate) fn take(&mut self, bytes: u64, rng: &mut Rng) -> Option<u64> {
        let mut gaps = Vec::new();
        let mut from = 0;
        for (offset, len) in self.taken.iter().copied().chain([(self.bytes, 0)]) {
            if offset - from >= bytes {
                gaps.push((from, offset - from));
            }
            from = offset + len;
        }
        if gaps.is_empty() {
            return None;
        }
        let (from, len) = rng.pick(&gaps);
        let offset = from + rng.below((len - bytes).min(4096) + 1);
        let at = self.taken.partition_point(|(other, _)| *other < offset);
        self.taken.insert(at, (offset, bytes));
        Some(offset)
    }

    pub(crate) fn give_back(&mut self, offset: u64) {
        self.taken.retain(|(other, _)| *other != offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_never_overlap_and_all_of_it_can_be_had_again() {
        let mut extents = Extents::new(1 << 20);
        let mut rng = Rng::new(1);
        let mut held = Vec::new();
        for _ in 0..2000 {
            let bytes = rng.within(1, 60_000);
            if let Some(offset) = extents.take(bytes, &mut rng) {
                assert!(offset + bytes <= 1 << 20);
                assert!(held.iter().all(|(o, b)| offset + bytes <= *o || o + b <= offset));
                held.push((offset, bytes));
            }
            if rng.chance(500_000) && !held.is_empty() {
                let (offset, _) = held.swap_remove(rng.index(held.len()));
                extents.give_back(offset);
            }
        }
        held.iter().for_each(|(offset, _)| extents.give_back(*offset));
        assert!(extents.taken.is_empty());
        assert_eq!(extents.take(1 << 20, &mut rng), Some(0));
    }
}
