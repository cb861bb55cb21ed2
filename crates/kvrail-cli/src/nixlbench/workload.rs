//! The sweep, and how many transfers each size gets: nixlbench's rules.

use super::plan::Size;

/// Above this, sizes get fewer transfers.
const LARGE_BLOCK_BYTES: u64 = 1 << 20;

/// Sizes and iterations of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sweep {
    pub(crate) block_bytes_min: u64,
    pub(crate) block_bytes_max: u64,
    pub(crate) batch_min: u64,
    pub(crate) batch_max: u64,
    /// Timed transfers of all threads of an initiator; a multiple of threads times `large_factor`.
    pub(crate) timed: u32,
    /// Untimed ones, likewise.
    pub(crate) warmup: u32,
    pub(crate) large_factor: u32,
    pub(crate) threads: u32,
    /// Transfers of a thread in flight.
    pub(crate) depth: u32,
}

/// What one thread does for one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Turns {
    /// Transfers before the timed part.
    pub(crate) warmup: u32,
    /// Transfers of the timed part, at least one.
    pub(crate) timed: u32,
    /// How many of them are in flight at a time, at least one.
    pub(crate) depth: u32,
}

impl Sweep {
    /// Every size: blocks double, and for each block size batches do.
    pub(crate) fn sizes(&self) -> Vec<Size> {
        let blocks = doubling(self.block_bytes_min, self.block_bytes_max);
        blocks
            .flat_map(|block_bytes| {
                doubling(self.batch_min, self.batch_max).map(move |batch| Size { block_bytes, batch })
            })
            .collect()
    }

    /// The transfers of one thread for blocks of one size.
    pub(crate) fn turns(&self, block_bytes: u64) -> Turns {
        let factor = if block_bytes > LARGE_BLOCK_BYTES { self.large_factor } else { 1 };
        let timed = (self.timed / self.threads / factor).max(1);
        Turns { warmup: self.warmup / self.threads / factor, timed, depth: self.depth.min(timed) }
    }
}

/// `first`, twice that, and so on up to `last`. `first` is at least 1.
fn doubling(first: u64, last: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(first.max(1)), |n| n.checked_mul(2)).take_while(move |n| *n <= last)
}

/// `count`, up to a multiple of `partition`; none when that is no `i32`, which is what nixlbench counts in.
pub(crate) fn round_up(count: i32, partition: i32) -> Option<i32> {
    match count.checked_rem(partition)? {
        0 => Some(count),
        rest => count.checked_add(partition - rest),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sweep() -> Sweep {
        Sweep {
            block_bytes_min: 4096,
            block_bytes_max: 64 << 20,
            batch_min: 1,
            batch_max: 1,
            timed: 1008,
            warmup: 112,
            large_factor: 16,
            threads: 1,
            depth: 1,
        }
    }

    #[test]
    fn blocks_double_and_batches_double_within_each() {
        let sizes = Sweep { block_bytes_max: 8192, batch_max: 5, ..sweep() }.sizes();
        let sizes: Vec<_> = sizes.into_iter().map(|size| (size.block_bytes, size.batch)).collect();
        assert_eq!(sizes, [(4096, 1), (4096, 2), (4096, 4), (8192, 1), (8192, 2), (8192, 4)]);
        assert_eq!(sweep().sizes().len(), 15);
    }

    #[test]
    fn blocks_above_one_mebibyte_get_fewer_transfers_and_one_of_exactly_that_does_not() {
        assert_eq!(sweep().turns(1 << 20), Turns { warmup: 112, timed: 1008, depth: 1 });
        assert_eq!(sweep().turns((1 << 20) + 1), Turns { warmup: 7, timed: 63, depth: 1 });
        let threads = Sweep { threads: 2, timed: 1024, warmup: 128, depth: 4, ..sweep() };
        assert_eq!(threads.turns(4096), Turns { warmup: 64, timed: 512, depth: 4 });
    }

    #[test]
    fn no_more_is_in_flight_than_there_are_transfers() {
        let few = Sweep { timed: 16, depth: 8, ..sweep() };
        assert_eq!(few.turns(2 << 20), Turns { warmup: 7, timed: 1, depth: 1 });
    }

    #[test]
    fn iterations_are_rounded_up_as_nixlbench_does() {
        assert_eq!(round_up(1000, 16), Some(1008));
        assert_eq!(round_up(100, 16), Some(112));
        assert_eq!(round_up(1008, 16), Some(1008));
        assert_eq!(round_up(i32::MAX, 16), None);
        assert_eq!(round_up(1, 0), None);
    }

    proptest! {
        #[test]
        fn rounding_up_adds_less_than_one_partition(count in 0..i32::MAX / 2, partition in 1..i32::MAX / 2) {
            let rounded = round_up(count, partition).unwrap();
            prop_assert!(rounded >= count && rounded - count < partition && rounded % partition == 0);
        }

        #[test]
        fn sizes_of_any_bounds_are_few_and_within_them(first in 1u64.., last in 1u64..) {
            let sizes = Sweep { block_bytes_min: first, block_bytes_max: last, ..sweep() }.sizes();
            prop_assert!(sizes.len() <= 64);
            prop_assert!(sizes.iter().all(|size| (first..=last).contains(&size.block_bytes)));
        }
    }
}
