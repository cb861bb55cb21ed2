//! The memory that peers reach: one area per process, all of them in one file that every process of the run maps.
//!
//! An area begins with bytes that peers read and that never change. Behind them each rank has a lane, its own to write to through the
//! fabric: a row of slots with a guard before, between and behind them. Because the writer sees its lane in the target's memory without the
//! fabric's help, it can check each byte of it at any time: after a write it holds the pattern there and nothing else, and is zero
//! again before the next one, so that bytes that come late or twice are seen.

use std::io;
use std::path::Path;

use crate::schedule::{RANKS, Rank, Traffic};
use crate::shared::Shared;

/// Bytes of each area that peers read.
pub(crate) const SOURCE_BYTES: usize = 64 << 10;
/// Bytes between slots.
pub(crate) const GUARD_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// The pattern of an area's first bytes.
pub(crate) fn source_number(rank: Rank) -> u64 {
    0x00f0_0000_0000_0000 + rank.index() as u64
}

/// All areas.
pub(crate) struct Memory {
    shared: Shared,
    slots: usize,
    slot_bytes: usize,
}

impl Memory {
    pub(crate) fn create(path: &Path, traffic: &Traffic) -> io::Result<Self> {
        Ok(Self::of(Shared::create(path, RANKS * area_bytes(traffic))?, traffic))
    }

    pub(crate) fn open(path: &Path, traffic: &Traffic) -> io::Result<Self> {
        Ok(Self::of(Shared::open(path, RANKS * area_bytes(traffic))?, traffic))
    }

    fn of(shared: Shared, traffic: &Traffic) -> Self {
        Self { shared, slots: traffic.slots, slot_bytes: traffic.slot_bytes }
    }

    /// Bytes of one area.
    pub(crate) fn area_bytes(&self) -> usize {
        (SOURCE_BYTES + RANKS * self.lane_bytes()).next_multiple_of(PAGE_BYTES)
    }

    fn lane_bytes(&self) -> usize {
        GUARD_BYTES + self.slots * (self.slot_bytes + GUARD_BYTES)
    }

    /// Where the area of `rank` is in this process.
    pub(crate) fn area_address(&self, rank: Rank) -> u64 {
        self.shared.address() + (rank.index() * self.area_bytes()) as u64
    }

    /// Where a slot begins, counted from its area's beginning.
    pub(crate) fn slot(&self, writer: Rank, slot: usize) -> usize {
        SOURCE_BYTES
            + writer.index() * self.lane_bytes()
            + GUARD_BYTES
            + slot * (self.slot_bytes + GUARD_BYTES)
    }

    /// Copies bytes of an area out.
    pub(crate) fn read<'a>(&self, area: Rank, at: usize, len: usize, into: &'a mut Vec<u8>) -> &'a [u8] {
        self.shared.read(area.index() * self.area_bytes() + at, len, into)
    }

    /// A slot with the guards around it.
    pub(crate) fn read_slot<'a>(
        &self,
        area: Rank,
        writer: Rank,
        slot: usize,
        into: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        self.read(area, self.slot(writer, slot) - GUARD_BYTES, self.slot_bytes + 2 * GUARD_BYTES, into)
    }

    pub(crate) fn write(&self, area: Rank, at: usize, bytes: &[u8]) {
        self.shared.write(area.index() * self.area_bytes() + at, bytes);
    }

    pub(crate) fn clear(&self, area: Rank, at: usize, len: usize) {
        self.shared.clear(area.index() * self.area_bytes() + at, len);
    }
}

fn area_bytes(traffic: &Traffic) -> usize {
    let lane = GUARD_BYTES + traffic.slots * (traffic.slot_bytes + GUARD_BYTES);
    (SOURCE_BYTES + RANKS * lane).next_multiple_of(PAGE_BYTES)
}
