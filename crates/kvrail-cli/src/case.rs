//! One case of a benchmark: what is moved, how, and where each block lies on both sides.
//!
//! A case travels from the initiator to the target; both sides compute the same geometry from it, so that no list of
//! blocks crosses the wire, and both check it, because it is input from outside.
//!
//! # Slots and rounds
//! A thread owns `slots` disjoint sets of `batch` blocks. One *round* posts each slot once, back to back. Because
//! no block is touched twice in a round, one look at the memory afterwards proves every single timed transfer of the
//! round (KR-15), and because a warm-up lap goes over the same slots first, the timed ones are still warm.

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use kvrail_report::{Layout, Memory, Op, Verify};

use crate::failure::Failure;
use crate::units::{self, Size};

/// Poisoned bytes before and behind contiguous blocks: no transfer starts at its region's base, and an overrun shows.
pub(crate) const GUARD_BYTES: u64 = 4096;
/// Bytes that the slots of a case cover together, unless one alone is larger.
const SLOTS_BYTES: u64 = 256 << 10;
/// Slots per thread at most.
const SLOTS_MAX: u32 = 64;
/// Blocks of a case at most, over all threads and slots.
const BLOCKS_MAX: u64 = 1 << 24;
/// Threads at most.
pub(crate) const THREADS_MAX: u32 = 256;
/// Pool at most: what the pattern's word index can address.
const POOL_BYTES_MAX: u64 = 1 << 42;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Transport {
    /// The best that both sides have; which one it is, is said.
    Auto,
    /// Same host: shared mappings, or batched process_vm calls for private memory.
    Shm,
    /// libfabric: the rails of EFA, Slingshot, InfiniBand, RoCE; other providers by --provider.
    Ofi,
    /// Any two hosts.
    Tcp,
}

/// Who makes the initiator's progress. (The target always has a progress thread.)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Progress {
    /// The posting thread, while it waits: lowest latency, no second core.
    Inline,
    /// kvrail's own thread: the caller's cores stay free.
    Thread,
}

/// Whose cores copy private memory on one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cooperate {
    /// Both sides', as far as that gains anything.
    #[default]
    On,
    /// The initiator's only.
    Off,
}

macro_rules! display_as_value {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                use clap::ValueEnum;
                self.to_possible_value().map_or(Ok(()), |v| f.write_str(v.get_name()))
            }
        }
    )*};
}
display_as_value!(Transport, Progress);

/// One case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    /// Position in the run, from 0.
    pub(crate) index: u32,
    pub(crate) op: Op,
    pub(crate) transport: Transport,
    pub(crate) memory: Memory,
    pub(crate) layout: Layout,
    /// Bytes of a block: one descriptor.
    pub(crate) block_bytes: u64,
    /// Blocks of a transfer.
    pub(crate) batch: u64,
    /// Posting threads of the initiator.
    pub(crate) threads: u32,
    /// Disjoint transfers per thread in a round.
    pub(crate) slots: u32,
    /// Size of the region on each side.
    pub(crate) pool_bytes: u64,
    /// Each transfer carries a notification, and the target counts them.
    pub(crate) notify: bool,
    pub(crate) cooperate: Cooperate,
    pub(crate) verify: Verify,
    /// The run's seed: pattern and layout follow from it.
    pub(crate) seed: u64,
    /// Deadline of one transfer.
    pub(crate) timeout_ms: u64,
}

impl Case {
    /// Bytes of one transfer.
    pub(crate) fn transfer_bytes(&self) -> u64 {
        self.block_bytes * self.batch
    }

    /// Blocks over all threads and slots.
    pub(crate) fn blocks(&self) -> u64 {
        u64::from(self.threads) * u64::from(self.slots) * self.batch
    }

    /// As many slots as stay within a second-level cache on both sides, at least one, not more than `iterations`.
    pub(crate) fn slots_for(block_bytes: u64, batch: u64, iterations: Option<u64>) -> u32 {
        let bytes = block_bytes.saturating_mul(batch).max(1);
        let slots = (SLOTS_BYTES / bytes).clamp(1, u64::from(SLOTS_MAX));
        slots.min(iterations.unwrap_or(u64::MAX)).max(1) as u32
    }

    /// The smallest pool that holds the case with its guards.
    pub(crate) fn pool_bytes_min(&self) -> Option<u64> {
        let blocks = u64::from(self.threads) * u64::from(self.slots);
        let blocks = blocks.checked_mul(self.batch)?;
        match self.layout {
            Layout::Contiguous => blocks.checked_mul(self.block_bytes)?.checked_add(2 * GUARD_BYTES),
            // One block more: the first is never used, so that no descriptor has offset 0.
            Layout::Scattered => (blocks + 1).checked_mul(self.block_bytes),
        }
    }

    /// The pool when nobody says otherwise: a quarter more than needed when scattered, as in a cache in use.
    pub(crate) fn pool_bytes_default(&self) -> Option<u64> {
        match self.layout {
            Layout::Contiguous => self.pool_bytes_min(),
            Layout::Scattered => {
                let blocks = self.blocks();
                (blocks + (blocks / 4).max(1) + 1).checked_mul(self.block_bytes)
            }
        }
    }

    /// Gives up slots until the case fits into a pool that the user chose.
    pub(crate) fn fit_slots_to_pool(&mut self) {
        while self.slots > 1 && self.pool_bytes_min().is_none_or(|n| n > self.pool_bytes) {
            self.slots -= 1;
        }
    }

    /// Checks everything that a peer could have got wrong.
    ///
    /// # Errors
    /// What is out of bounds, as a usage failure.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let blocks = u64::from(self.threads.max(1)) * u64::from(self.slots.max(1));
        if self.threads == 0 || self.slots == 0 || self.batch == 0 || self.block_bytes == 0 {
            return Err(Failure::usage("threads, slots, batch and block size are at least 1"));
        }
        if self.threads > THREADS_MAX || self.slots > SLOTS_MAX {
            return Err(Failure::usage(format!("{} threads are more than {THREADS_MAX}", self.threads)));
        }
        if blocks.checked_mul(self.batch).is_none_or(|n| n > BLOCKS_MAX) {
            return Err(Failure::usage(format!(
                "{} threads of {} blocks each are more than {} blocks",
                self.threads,
                units::grouped(self.batch),
                units::grouped(BLOCKS_MAX)
            ))
            .hint("use a smaller --batch or fewer --threads"));
        }
        let least = self.pool_bytes_min().filter(|n| *n <= POOL_BYTES_MAX);
        let Some(least) = least else {
            return Err(Failure::usage(format!(
                "a batch of {} blocks of {} is more than a pool can hold ({})",
                units::grouped(self.batch),
                Size(self.block_bytes),
                Size(POOL_BYTES_MAX)
            )));
        };
        if self.pool_bytes < least || self.pool_bytes > POOL_BYTES_MAX {
            return Err(Failure::usage(format!(
                "a pool of {} does not hold {} blocks of {} ({})",
                units::about(self.pool_bytes),
                units::grouped(self.blocks()),
                Size(self.block_bytes),
                self.layout
            ))
            .hint(format!(
                "use --pool {} or more, or leave it out",
                Size(least).to_string().replace(' ', "")
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} x {} {}", self.op, units::grouped(self.batch), Size(self.block_bytes), self.layout)
    }
}

/// Where the blocks of a case lie: block `j = (thread * slots + slot) * batch + i` on both sides.
#[derive(Debug)]
pub(crate) struct Geometry {
    /// Offsets in the initiator's region.
    pub(crate) initiator: Vec<u64>,
    /// Offsets in the target's region.
    pub(crate) target: Vec<u64>,
}

impl Geometry {
    /// For a case that was checked.
    pub(crate) fn new(case: &Case) -> Self {
        let blocks = case.blocks();
        match case.layout {
            Layout::Contiguous => {
                let offsets: Vec<u64> = (0..blocks).map(|j| GUARD_BYTES + j * case.block_bytes).collect();
                Self { target: offsets.clone(), initiator: offsets }
            }
            Layout::Scattered => {
                let places = case.pool_bytes / case.block_bytes - 1;
                let pick = |seed| {
                    let mut chosen = sample(places, blocks, seed);
                    chosen.iter_mut().for_each(|p| *p = (*p + 1) * case.block_bytes);
                    chosen
                };
                let seed = case.seed.wrapping_add(u64::from(case.index) << 32);
                Self {
                    initiator: pick(seed.wrapping_mul(2)),
                    target: pick(seed.wrapping_mul(2).wrapping_add(1)),
                }
            }
        }
    }

    /// Indices of the blocks that a thread's slot moves.
    pub(crate) fn slot(case: &Case, thread: u32, slot: u32) -> std::ops::Range<usize> {
        let first = (u64::from(thread) * u64::from(case.slots) + u64::from(slot)) * case.batch;
        first as usize..(first + case.batch) as usize
    }
}

/// `count` distinct numbers below `places`, in random order (a partial Fisher-Yates shuffle over a sparse array, so
/// that a pool of 2^34 places costs no more memory than the blocks chosen from it).
pub(crate) fn sample(places: u64, count: u64, seed: u64) -> Vec<u64> {
    let mut random = SplitMix(seed);
    let mut moved = std::collections::HashMap::with_capacity(count as usize);
    (0..count)
        .map(|i| {
            let j = i + random.below(places - i);
            let chosen = moved.get(&j).copied().unwrap_or(j);
            let displaced = moved.get(&i).copied().unwrap_or(i);
            moved.insert(j, displaced);
            chosen
        })
        .collect()
}

/// A small generator for layouts: reproducible on every platform, which the standard library does not promise.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform below `n` up to a bias of n / 2^64.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

/// A case for tests.
#[cfg(test)]
pub(crate) fn example() -> Case {
    Case {
        index: 0,
        op: Op::Write,
        transport: Transport::Auto,
        memory: Memory::Shared,
        layout: Layout::Scattered,
        block_bytes: 32 << 10,
        batch: 100,
        threads: 1,
        slots: 1,
        pool_bytes: 64 << 20,
        notify: false,
        cooperate: Cooperate::On,
        verify: Verify::Every,
        seed: 7,
        timeout_ms: 1000,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::example as case;
    use super::*;

    #[test]
    fn a_pool_that_is_too_small_is_refused_with_the_size_that_fits() {
        let failure = Case { pool_bytes: 1 << 20, ..case() }.check().unwrap_err();
        assert!(failure.what.contains("does not hold 100 blocks of 32 KiB"), "{failure}");
        assert!(failure.hints[0].contains("--pool 3232KiB"), "{failure}");
    }

    #[test]
    fn small_transfers_share_a_cache_and_large_ones_stand_alone() {
        assert_eq!(Case::slots_for(4096, 1, None), 64);
        assert_eq!(Case::slots_for(32 << 10, 1, None), 8);
        assert_eq!(Case::slots_for(64 << 20, 1, None), 1);
        assert_eq!(Case::slots_for(u64::MAX, u64::MAX, None), 1);
        assert_eq!(Case::slots_for(4096, 1, Some(3)), 3);
    }

    proptest! {
        #[test]
        fn blocks_are_distinct_inside_the_pool_and_never_at_its_base(
            batch in 1u64..200, slots in 1u32..8, threads in 1u32..4, block_bytes in 1u64..10_000,
            scattered: bool, seed: u64, spare in 0u64..500,
        ) {
            let layout = if scattered { Layout::Scattered } else { Layout::Contiguous };
            let mut case = Case { batch, slots, threads, block_bytes, layout, seed, ..case() };
            case.pool_bytes = case.pool_bytes_min().unwrap() + spare * block_bytes;
            prop_assert_eq!(case.check(), Ok(()));
            prop_assert!(case.pool_bytes_default() >= case.pool_bytes_min());
            let geometry = Geometry::new(&case);
            for side in [&geometry.initiator, &geometry.target] {
                let mut sorted = side.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted.len() as u64, case.blocks());
                prop_assert!(sorted[0] > 0);
                prop_assert!(sorted.windows(2).all(|w| w[0] + block_bytes <= w[1]));
                prop_assert!(sorted[sorted.len() - 1] + block_bytes <= case.pool_bytes);
            }
            let last = Geometry::slot(&case, threads - 1, slots - 1);
            prop_assert_eq!(last.end as u64, case.blocks());
        }

        #[test]
        fn a_hostile_case_is_refused_without_a_panic(
            block_bytes: u64, batch: u64, threads: u32, slots: u32, pool_bytes: u64,
        ) {
            let case = Case { block_bytes, batch, threads, slots, pool_bytes, ..case() };
            if case.check().is_ok() {
                prop_assert!(case.blocks() <= BLOCKS_MAX && case.pool_bytes <= POOL_BYTES_MAX);
            }
        }
    }
}
