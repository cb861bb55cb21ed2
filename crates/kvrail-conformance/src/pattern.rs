//! Bytes that depend on their position, and a small generator: swapped, stale or shifted blocks cannot look right.

/// A pseudo-random sequence (splitmix64): deterministic, seeded, good enough to place blocks.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough in `0..bound`; `bound` is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// `len` bytes that no other seed gives.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&dice.roll().to_le_bytes());
    }
    out.truncate(len);
    out
}
