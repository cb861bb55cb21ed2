//! The bytes of a benchmark (KR-15): every word names its run, round and place, so that a wrong one tells where it
//! comes from.
//!
//! A word of the pattern is an invertible mix of `(round, word index)` under a key made of `(run, side)`. Two
//! different places or rounds never share a word, and a word found in the wrong place can be turned back into the
//! place and round that it belongs to. That is how a bad block is called stale, swapped, torn or never written
//! instead of merely wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a target holds before a transfer: no pattern word with any likelihood, and no zero.
pub(crate) const POISON: u64 = 0xBAD0_B10C_DEAD_F00D;

const WORD: u64 = 8;
/// Bytes handled at a time: fits a first-level cache together with its source.
const CHUNK: usize = 16 << 10;
const INDEX_BITS: u32 = 40;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const ROUND_MASK: u64 = u64::MAX >> INDEX_BITS;

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

    #[inline]
    fn word(self, round: u32, index: u64) -> u64 {
        mix((((u64::from(round) & ROUND_MASK) << INDEX_BITS) | (index & INDEX_MASK)) ^ self.key)
    }

    /// The round and source offset that a word belongs to, if it is one of this pattern's.
    fn place(self, word: u64, latest_round: u32, region_bytes: u64) -> Option<(u32, u64)> {
        let plain = unmix(word) ^ self.key;
        let (round, offset) = ((plain >> INDEX_BITS) as u32, (plain & INDEX_MASK) * WORD);
        (u64::from(round) <= u64::from(latest_round) & ROUND_MASK && offset < region_bytes)
            .then_some((round, offset))
    }

    /// Fills `out` with the pattern of source offset `offset`.
    fn generate(self, round: u32, offset: u64, out: &mut Scratch, len: usize) -> std::ops::Range<usize> {
        let lead = (offset % WORD) as usize;
        let first = offset / WORD;
        let words = (lead + len).div_ceil(WORD as usize);
        for (i, word) in out.words[..words].iter_mut().enumerate() {
            *word = self.word(round, first + i as u64);
        }
        lead..lead + len
    }

    /// Writes `len` bytes of the pattern at `offset`.
    pub(crate) fn fill(self, memory: &impl Bytes, round: u32, offset: u64, len: u64) {
        let mut scratch = Scratch::new();
        for (at, n) in chunks(len) {
            let range = self.generate(round, offset + at, &mut scratch, n);
            memory.write(offset + at, &scratch.bytes()[range]);
        }
    }

    /// Checks that the block at `offset` holds what the source had at `source_offset` in that round.
    ///
    /// # Errors
    /// The first bad byte and what the block looks like.
    pub(crate) fn check(self, memory: &impl Bytes, block: &Block) -> Result<(), Box<Damage>> {
        let (mut wanted, mut found) = (Scratch::new(), Scratch::new());
        for (at, n) in chunks(block.len) {
            let range = self.generate(block.round, block.source_offset + at, &mut wanted, n);
            let found = &mut found.bytes_mut()[..n];
            memory.read(block.offset + at, found);
            if found != &wanted.bytes()[range] {
                return Err(Box::new(self.diagnose(memory, block)));
            }
        }
        Ok(())
    }

    /// The slow path: looks at the whole block again and says what it is.
    fn diagnose(self, memory: &impl Bytes, block: &Block) -> Damage {
        let mut tally = Tally::default();
        let mut first: Option<(u64, u8, u8)> = None;
        let (mut bad, mut words, mut bad_words) = (0u64, 0u64, 0u64);
        let (mut wanted, mut found) = (Scratch::new(), Scratch::new());
        for (at, n) in chunks(block.len) {
            let range = self.generate(block.round, block.source_offset + at, &mut wanted, n);
            memory.read(block.offset + at, &mut found.bytes_mut()[..n]);
            let (wanted, found) = (&wanted.bytes()[range], &found.bytes()[..n]);
            for (i, (w, f)) in wanted.iter().zip(found).enumerate() {
                if w != f {
                    bad += 1;
                    first.get_or_insert((at + i as u64, *w, *f));
                }
            }
            // Whole words of the source, wherever the block starts.
            let skip = ((block.source_offset + at).wrapping_neg() % WORD) as usize;
            for start in (skip..n.saturating_sub(WORD as usize - 1)).step_by(WORD as usize) {
                let end = start + WORD as usize;
                let mut bytes = [0; WORD as usize];
                bytes.copy_from_slice(&found[start..end]);
                words += 1;
                if bytes != wanted[start..end] {
                    bad_words += 1;
                    let source = block.source_offset + at + start as u64;
                    let word = u64::from_le_bytes(bytes);
                    let poison = memory_poison(block.offset + at + start as u64);
                    tally.add(self.look(word, poison, source, block));
                }
            }
        }
        let (offset, expected, found) = first.unwrap_or((0, 0, 0));
        let kind = tally.verdict(words, bad_words);
        Damage { offset, region_offset: block.offset + offset, expected, found, bad_bytes: bad, kind }
    }

    fn look(self, word: u64, poison: u64, source_offset: u64, block: &Block) -> Look {
        if word == 0 {
            return Look::Zero;
        }
        if word == poison {
            return Look::Poison;
        }
        match self.place(word, block.round, block.region_bytes) {
            Some((round, offset)) if offset == source_offset => Look::Stale(round),
            Some((_, offset)) => Look::Moved(offset as i64 - source_offset as i64),
            None => Look::Noise,
        }
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

/// Poison as it reads from a region offset that need not be a multiple of a word.
fn memory_poison(offset: u64) -> u64 {
    POISON.rotate_right((offset % WORD) as u32 * 8)
}

/// Poisons `len` bytes at `offset`.
pub(crate) fn poison(memory: &impl Bytes, offset: u64, len: u64) {
    let mut scratch = Scratch::new();
    scratch.words.fill(POISON);
    for (at, n) in chunks(len) {
        let lead = ((offset + at) % WORD) as usize;
        memory.write(offset + at, &scratch.bytes()[lead..lead + n]);
    }
}

/// The first byte of `offset..offset + len` that is no longer poison.
pub(crate) fn first_unpoisoned(memory: &impl Bytes, offset: u64, len: u64) -> Option<u64> {
    let (mut wanted, mut found) = (Scratch::new(), Scratch::new());
    wanted.words.fill(POISON);
    for (at, n) in chunks(len) {
        let lead = ((offset + at) % WORD) as usize;
        memory.read(offset + at, &mut found.bytes_mut()[..n]);
        let (wanted, found) = (&wanted.bytes()[lead..lead + n], &found.bytes()[..n]);
        if wanted != found {
            let i = wanted.iter().zip(found).position(|(w, f)| w != f).unwrap_or(0);
            return Some(offset + at + i as u64);
        }
    }
    None
}

/// What a damaged block looks like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DamageKind {
    /// Nothing arrived: the poison is still there.
    Unwritten,
    /// All zeros: the classic silent failure.
    Zeros,
    /// The bytes of an earlier round.
    Stale {
        /// Which.
        round: u32,
    },
    /// The bytes of another place of the source.
    Swapped {
        /// Source offset that the block's first bad byte belongs to, minus the right one.
        distance: i64,
    },
    /// Partly right, partly one of the above.
    Torn {
        /// Words that are wrong.
        bad_words: u64,
        /// Words in the block.
        words: u64,
        /// What the wrong words are.
        rest: String,
    },
    /// Bytes that no place of the pattern explains.
    Corrupt,
}

/// The first bad byte of a block, and what the block looks like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Damage {
    /// Of the first bad byte, in the block.
    pub(crate) offset: u64,
    /// Of the first bad byte, in the region.
    pub(crate) region_offset: u64,
    /// The byte that belongs there.
    pub(crate) expected: u8,
    /// The byte that is there.
    pub(crate) found: u8,
    /// Bad bytes in the block.
    pub(crate) bad_bytes: u64,
    /// What it looks like.
    pub(crate) kind: DamageKind,
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwritten => f.write_str("never written: the poison is still there"),
            Self::Zeros => f.write_str("zeros"),
            Self::Stale { round } => write!(f, "stale: the bytes of round {round}"),
            Self::Swapped { distance } => write!(f, "swapped: the bytes from {distance:+} in the source"),
            Self::Torn { bad_words, words, rest } => {
                write!(f, "torn: {bad_words} of {words} words are {rest}, the rest is right")
            }
            Self::Corrupt => f.write_str("corrupt: no place of the pattern explains the bytes"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    Zero,
    Poison,
    Stale(u32),
    Moved(i64),
    Noise,
}

impl Look {
    fn kind(self) -> DamageKind {
        match self {
            Self::Zero => DamageKind::Zeros,
            Self::Poison => DamageKind::Unwritten,
            Self::Stale(round) => DamageKind::Stale { round },
            Self::Moved(distance) => DamageKind::Swapped { distance },
            Self::Noise => DamageKind::Corrupt,
        }
    }
}

/// Whether all wrong words of a block agree about what they are.
#[derive(Default)]
struct Tally {
    look: Option<Look>,
    mixed: bool,
    noise: bool,
}

impl Tally {
    fn add(&mut self, look: Look) {
        self.noise |= look == Look::Noise;
        match self.look {
            None => self.look = Some(look),
            Some(first) => self.mixed |= first != look,
        }
    }

    fn verdict(&self, words: u64, bad_words: u64) -> DamageKind {
        match self.look {
            None => DamageKind::Corrupt,
            Some(_) if self.noise => DamageKind::Corrupt,
            Some(look) if !self.mixed && bad_words == words => look.kind(),
            Some(look) => {
                let rest = if self.mixed {
                    "a mixture of unwritten, stale or swapped".into()
                } else {
                    match look {
                        Look::Zero => "zeros".into(),
                        Look::Poison => "unwritten".into(),
                        Look::Stale(round) => format!("stale (round {round})"),
                        Look::Moved(distance) => format!("swapped (from {distance:+})"),
                        Look::Noise => "corrupt".into(),
                    }
                };
                DamageKind::Torn { bad_words, words, rest }
            }
        }
    }
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
