//! The bytes of a benchmark (KR-15): every word names its run, round and place, so that a wrong one tells where it
//! comes from.
//!
//! A word of the pattern is an invertible mix of `(round, word index)` under a key made of `(run, side)`. Two
//! different places or rounds never share a word, and a word found in the wrong place can be turned back into the
//! place and round that it belongs to. What a destination holds before a transfer, its poison, names its place in the
//! same way. That is how a bad block is called stale, swapped, torn or never written instead of merely wrong
//! ([`damage`]).

mod damage;

pub(crate) use damage::{Damage, DamageKind, Places};

const WORD: u64 = 8;
/// Bytes handled at a time: fits a first-level cache together with its source.
const CHUNK: usize = 16 << 10;
const INDEX_BITS: u32 = 40;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const ROUND_MASK: u64 = u64::MAX >> INDEX_BITS;

/// The key of poison: what a destination holds before a transfer is no word of any pattern with any likelihood.
const POISON_KEY: u64 = 0xBAD0_B10C_DEAD_F00D;
/// The round of poison, which no case reaches.
const POISON_ROUND: u64 = ROUND_MASK;

const MIX_A: u64 = 0x9E37_79B9_7F4A_7C15;
const MIX_B: u64 = 0xD6E8_FEB8_6659_FD93;
const UNMIX_A: u64 = inverse(MIX_A);
const UNMIX_B: u64 = inverse(MIX_B);

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the number of right bits.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut step = 0;
    while step < 6 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        step += 1;
    }
    x
}

const _: () = assert!(MIX_A.wrapping_mul(UNMIX_A) == 1 && MIX_B.wrapping_mul(UNMIX_B) == 1);

#[inline]
const fn mix(x: u64) -> u64 {
    let x = x.wrapping_mul(MIX_A);
    (x ^ (x >> 32)).wrapping_mul(MIX_B)
}

#[inline]
const fn unmix(x: u64) -> u64 {
    let x = x.wrapping_mul(UNMIX_B);
    (x ^ (x >> 32)).wrapping_mul(UNMIX_A)
}

/// Memory that the pattern is written to and checked in.
pub(crate) trait Bytes {
    /// Copies out. The caller keeps within bounds.
    fn read(&self, offset: u64, out: &mut [u8]);
    /// Copies in. The caller keeps within bounds.
    fn write(&self, offset: u64, bytes: &[u8]);
}

/// Whose memory the bytes come from: the source side of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// The initiator's: a write.
    Initiator,
    /// The target's: a read.
    Target,
}

/// The pattern of one source region in one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    key: u64,
}

impl Pattern {
    pub(crate) fn new(run_seed: u64, source: Source) -> Self {
        let side = match source {
            Source::Initiator => 1,
            Source::Target => 2,
        };
        Self { key: mix(mix(run_seed).wrapping_add(side)) }
    }

    /// Its bytes in a round.
    fn in_round(self, round: u32) -> Words {
        Words { key: self.key, high: (u64::from(round) & ROUND_MASK) << INDEX_BITS }
    }

    /// The round and source offset that a word belongs to, if it is one of this pattern's.
    fn place(self, word: u64, latest_round: u32, region_bytes: u64) -> Option<(u32, u64)> {
        let (round, offset) = whence(word, self.key);
        (round <= u64::from(latest_round) & ROUND_MASK && offset < region_bytes)
            .then_some((round as u32, offset))
    }

    /// Writes `len` bytes of the pattern at `offset`.
    pub(crate) fn fill(self, memory: &impl Bytes, round: u32, offset: u64, len: u64) {
        self.in_round(round).write(memory, offset, len);
    }

    /// Checks that the block at `offset` holds what the source had at `source_offset` in that round.
    ///
    /// # Errors
    /// The first bad byte and what the block looks like.
    pub(crate) fn check(self, memory: &impl Bytes, block: &Block) -> Result<(), Box<Damage>> {
        let (mut wanted, mut found) = (Scratch::new(), Scratch::new());
        let words = self.in_round(block.round);
        for (at, n) in chunks(block.len) {
            let wanted = words.generate(block.source_offset + at, &mut wanted, n);
            let found = &mut found.bytes_mut()[..n];
            memory.read(block.offset + at, found);
            if found != wanted {
                return Err(Box::new(Damage::diagnose(self, memory, block)));
            }
        }
        Ok(())
    }
}

/// One block to check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Where it is.
    pub(crate) offset: u64,
    /// Where its source was.
    pub(crate) source_offset: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// The round that its source was filled in.
    pub(crate) round: u32,
    /// Size of the source region: bounds what counts as a place.
    pub(crate) region_bytes: u64,
}

/// Words that each name their place: those of a pattern in one round, or poison.
#[derive(Clone, Copy, Debug)]
struct Words {
    key: u64,
    high: u64,
}

impl Words {
    const POISON: Self = Self { key: POISON_KEY, high: POISON_ROUND << INDEX_BITS };

    #[inline]
    fn word(self, index: u64) -> u64 {
        mix((self.high | (index & INDEX_MASK)) ^ self.key)
    }

    /// The `len` bytes that belong at `offset`.
    fn generate(self, offset: u64, out: &mut Scratch, len: usize) -> &[u8] {
        let lead = (offset % WORD) as usize;
        let first = offset / WORD;
        let words = (lead + len).div_ceil(WORD as usize);
        for (i, word) in out.words[..words].iter_mut().enumerate() {
            *word = self.word(first + i as u64);
        }
        &out.bytes()[lead..lead + len]
    }

    fn write(self, memory: &impl Bytes, offset: u64, len: u64) {
        let mut scratch = Scratch::new();
        for (at, n) in chunks(len) {
            memory.write(offset + at, self.generate(offset + at, &mut scratch, n));
        }
    }
}

/// The round and offset that a word has under a key, whether it was made with it or not.
#[inline]
fn whence(word: u64, key: u64) -> (u64, u64) {
    let plain = unmix(word) ^ key;
    (plain >> INDEX_BITS, (plain & INDEX_MASK) * WORD)
}

/// The offset in its region that a word of poison belongs to, if it is one.
fn poison_place(word: u64, region_bytes: u64) -> Option<u64> {
    let (round, offset) = whence(word, POISON_KEY);
    (round == POISON_ROUND && offset < region_bytes).then_some(offset)
}

/// Poisons `len` bytes at `offset`.
pub(crate) fn poison(memory: &impl Bytes, offset: u64, len: u64) {
    Words::POISON.write(memory, offset, len);
}

/// The first byte of `offset..offset + len` that is no longer poison.
pub(crate) fn first_unpoisoned(memory: &impl Bytes, offset: u64, len: u64) -> Option<u64> {
    let (mut wanted, mut found) = (Scratch::new(), Scratch::new());
    for (at, n) in chunks(len) {
        let wanted = Words::POISON.generate(offset + at, &mut wanted, n);
        let found = &mut found.bytes_mut()[..n];
        memory.read(offset + at, found);
        if wanted != found {
            let i = wanted.iter().zip(found).position(|(w, f)| w != f).unwrap_or(0);
            return Some(offset + at + i as u64);
        }
    }
    None
}

/// The first byte outside every block that is no longer poison: something wrote where nothing was to be written.
pub(crate) fn stray(memory: &impl Bytes, blocks: &[u64], block_bytes: u64, region_bytes: u64) -> Option<u64> {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable();
    let mut from = 0;
    for block in sorted.into_iter().chain([region_bytes]) {
        if let Some(at) = first_unpoisoned(memory, from, block.saturating_sub(from)) {
            return Some(at);
        }
        from = block + block_bytes;
    }
    None
}

/// A chunk with room for a word that straddles each end.
struct Scratch {
    words: Vec<u64>,
}

impl Scratch {
    fn new() -> Self {
        Self { words: vec![0; CHUNK / WORD as usize + 2] }
    }

    // Words are little-endian in memory on every platform that this builds for.
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words)
    }
}

const _: () = assert!(cfg!(target_endian = "little"), "the pattern is compared as little-endian words");

fn chunks(len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len.div_ceil(CHUNK as u64)).map(move |i| {
        let at = i * CHUNK as u64;
        (at, (len - at).min(CHUNK as u64) as usize)
    })
}

#[cfg(test)]
#[path = "pattern_tests.rs"]
mod tests;

#[cfg(test)]
mod planted_tests;
