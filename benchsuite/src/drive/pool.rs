//! Blocks that lie scattered in a region, and the pattern in which each word names its place.

use kvrail::{Descriptors, Region, RemoteRegion};

use crate::DriveError;

const WORD_BYTES: usize = 8;
const POISON: u8 = 0xA5;
/// Odd, so that multiplying with it visits every slot of a power of two once.
const STRIDE: u64 = 0x9E37_79B1;

/// Where the blocks lie: a power of two of slots, visited in a scattered order, another one on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) block_bytes: usize,
    pub(crate) blocks: usize,
}

/// Which side's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Initiator,
    Target,
}

impl Layout {
    fn slots(self) -> usize {
        self.blocks.next_power_of_two()
    }

    /// Bytes of each side's region.
    pub(crate) fn region_bytes(self) -> usize {
        self.slots() * self.block_bytes
    }

    /// The slot of a block.
    fn slot(self, side: Side, block: usize) -> usize {
        let mask = self.slots() as u64 - 1;
        let shift = if side == Side::Initiator { 1 } else { 5 };
        (((block as u64).wrapping_add(shift)).wrapping_mul(STRIDE) & mask) as usize
    }

    /// The blocks of an own region.
    pub(crate) fn own(self, side: Side, region: &Region) -> Result<Descriptors, DriveError> {
        let at = |block| (self.slot(side, block) * self.block_bytes) as u64;
        let slices = (0..self.blocks).map(|block| region.slice(at(block), self.block_bytes as u64));
        slices.collect::<Result<_, _>>().map_err(DriveError::in_doing("laying out the blocks here"))
    }

    /// The blocks of a peer's region.
    pub(crate) fn remote(self, side: Side, region: &RemoteRegion) -> Result<Descriptors, DriveError> {
        let at = |block| (self.slot(side, block) * self.block_bytes) as u64;
        let slices = (0..self.blocks).map(|block| region.slice(at(block), self.block_bytes as u64));
        slices.collect::<Result<_, _>>().map_err(DriveError::in_doing("laying out the blocks there"))
    }

    /// Fills a source region.
    pub(crate) fn fill(self, region: &Region, seed: u64) -> Result<(), DriveError> {
        let mut bytes = vec![0; self.block_bytes];
        for slot in 0..self.slots() {
            pattern(&mut bytes, seed, slot);
            let filled = region.write(slot * self.block_bytes, &bytes);
            filled.map_err(DriveError::in_doing("filling the memory"))?;
        }
        Ok(())
    }

    /// Poisons a destination region.
    pub(crate) fn poison(self, region: &Region) -> Result<(), DriveError> {
        let bytes = self.region_bytes();
        region.fill(0, bytes, POISON).map_err(DriveError::in_doing("poisoning the memory"))
    }

    /// Checks every byte of a destination region on `side`: the blocks, and the slots that nothing may touch.
    pub(crate) fn check(self, region: &Region, side: Side, seed: u64) -> Result<(), DriveError> {
        let other = if side == Side::Initiator { Side::Target } else { Side::Initiator };
        let mut from = vec![None; self.slots()];
        for block in 0..self.blocks {
            from[self.slot(side, block)] = Some(self.slot(other, block));
        }
        let (mut found, mut expected) = (vec![0; self.block_bytes], vec![0; self.block_bytes]);
        for (slot, source) in from.into_iter().enumerate() {
            match source {
                Some(source) => pattern(&mut expected, seed, source),
                None => expected.fill(POISON),
            }
            let read = region.read(slot * self.block_bytes, &mut found);
            read.map_err(DriveError::in_doing("reading the memory"))?;
            if let Some(at) = found.iter().zip(&expected).position(|(found, expected)| found != expected) {
                return Err(DriveError::WrongBytes(format!("slot {slot}, byte {at}")));
            }
        }
        Ok(())
    }
}

/// What a slot holds in a source filled with `seed`.
fn pattern(bytes: &mut [u8], seed: u64, slot: usize) {
    let words = bytes.len().div_ceil(WORD_BYTES);
    for (word, bytes) in bytes.chunks_mut(WORD_BYTES).enumerate() {
        let place = (slot * words + word) as u64;
        let value = place.wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_a_slot_of_its_own_on_either_side() {
        let layout = Layout { block_bytes: 64, blocks: 1000 };
        for side in [Side::Initiator, Side::Target] {
            let mut slots: Vec<usize> = (0..layout.blocks).map(|block| layout.slot(side, block)).collect();
            assert!(slots.windows(2).any(|pair| pair[1] != pair[0] + 1), "scattered");
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), layout.blocks);
            assert!(slots.iter().all(|slot| (slot + 1) * 64 <= layout.region_bytes()));
        }
        assert_ne!(layout.slot(Side::Initiator, 0), layout.slot(Side::Target, 0));
    }

    #[test]
    fn no_two_places_look_the_same() {
        let of = |seed, slot| {
            let mut bytes = [0; 16];
            pattern(&mut bytes, seed, slot);
            bytes
        };
        assert_ne!(of(1, 0), of(1, 1));
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0)[..8], of(1, 0)[8..]);
    }
}
