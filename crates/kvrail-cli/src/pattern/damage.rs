//! What a bad block looks like, named: the slow path, taken once, when a byte is wrong.
//!
//! The bad bytes are sampled for words that still tell where they come from. Each such origin, and a few that need no
//! word to be guessed (zeros, poison, the rounds before), is then held against every bad byte of the block. A name is
//! given only where it explains all of them; what nothing explains is called corrupt.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Block, Bytes, Pattern, Scratch, WORD, Words, chunks, poison_place, stray};

/// Bits that differ at most for a block to be called one with flipped bits, where nothing else explains it.
const FLIPPED_BITS_MAX: u64 = 4;
/// Places of a block that are looked at for words.
const SAMPLES: u64 = 64;
/// Different origins that are told apart in one block.
const ORIGINS_MAX: usize = 8;
/// Earlier rounds that are tried where the block is too small to have a word. A round has two numbers.
const ROUNDS_BACK: u32 = 4;
/// Bad bytes without which a guess proves nothing.
const GUESS_BYTES_MIN: u64 = 2;

/// What a damaged block looks like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DamageKind {
    /// Nothing arrived: the poison is still there.
    Unwritten {
        /// Where bytes of a block went instead, as far as that is known.
        astray: Option<Astray>,
    },
    /// Zeros: the classic silent failure.
    Zeros,
    /// The bytes of an earlier round.
    Stale {
        /// Which.
        round: u32,
    },
    /// What the source held before it was filled for the first time.
    Unfilled,
    /// The bytes of another block.
    Swapped {
        /// Which.
        block: u64,
        /// The round they are of, where that is not this one either.
        stale: Option<u32>,
    },
    /// The bytes of another place of the source, where no block begins.
    WrongOffset {
        /// Source offset that the block's first byte is of.
        source_offset: u64,
        /// The same, minus the right one.
        distance: i64,
        /// The round they are of, where that is not this one either.
        stale: Option<u32>,
    },
    /// Single bits.
    Flipped {
        /// How many.
        bits: u64,
        /// The first of them, 0 the lowest, in the first bad byte.
        bit: u32,
    },
    /// Right up to a byte from which on nothing is.
    ShortTail {
        /// Bytes that are missing.
        bytes: u64,
        /// What is there instead.
        rest: Box<DamageKind>,
    },
    /// Partly right, partly something else.
    Torn {
        /// Bytes that are wrong.
        bytes: u64,
        /// What they are.
        rest: Vec<DamageKind>,
    },
    /// Bytes that no place of the pattern explains.
    Corrupt,
}

/// Bytes of a block that lie where no block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Astray {
    /// Where, in the region.
    pub(crate) at: u64,
    /// What block they are of; none = of no block's.
    pub(crate) block: Option<u64>,
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

/// Where all the blocks of a case lie, so that damage can be said in blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    /// In the region that is checked.
    pub(crate) here: &'a [u64],
    /// In their source.
    pub(crate) source: &'a [u64],
    /// Bytes of each.
    pub(crate) block_bytes: u64,
    /// Bytes of either region.
    pub(crate) region_bytes: u64,
}

impl Places<'_> {
    /// The block that a source offset lies in.
    fn block_of(&self, source_offset: u64) -> Option<u64> {
        let holds = |&begin: &u64| (begin..begin + self.block_bytes).contains(&source_offset);
        self.source.iter().position(holds).map(|at| at as u64)
    }

    /// The block that begins at a source offset.
    fn block_at(&self, source_offset: u64) -> Option<u64> {
        self.source.iter().position(|&begin| begin == source_offset).map(|at| at as u64)
    }
}

impl Damage {
    /// Looks at the whole of a block that is known to be bad.
    pub(super) fn diagnose(pattern: Pattern, memory: &impl Bytes, block: &Block) -> Self {
        let survey = Survey::of(pattern, memory, block);
        let kind = survey.kind(pattern, memory, block);
        Self {
            offset: survey.bad.start,
            region_offset: block.offset + survey.bad.start,
            expected: survey.first.0,
            found: survey.first.1,
            bad_bytes: survey.bad_bytes,
            kind,
        }
    }

    /// Says it in blocks: which one the bytes belong to, and where those went that did not arrive.
    pub(crate) fn name_blocks(
        &mut self,
        pattern: Pattern,
        memory: &impl Bytes,
        places: &Places<'_>,
        round: u32,
    ) {
        name_blocks(&mut self.kind, places);
        let unwritten = match &mut self.kind {
            DamageKind::ShortTail { rest, .. } => &mut **rest,
            kind => kind,
        };
        if let DamageKind::Unwritten { astray } = unwritten {
            *astray = Astray::find(pattern, memory, places, round);
        }
    }
}

fn name_blocks(kind: &mut DamageKind, places: &Places<'_>) {
    match kind {
        DamageKind::WrongOffset { source_offset, stale, .. } => {
            if let Some(block) = places.block_at(*source_offset) {
                *kind = DamageKind::Swapped { block, stale: *stale };
            }
        }
        DamageKind::ShortTail { rest, .. } => name_blocks(rest, places),
        DamageKind::Torn { rest, .. } => rest.iter_mut().for_each(|kind| name_blocks(kind, places)),
        _ => {}
    }
}

impl Astray {
    fn find(pattern: Pattern, memory: &impl Bytes, places: &Places<'_>, round: u32) -> Option<Self> {
        let at = stray(memory, places.here, places.block_bytes, places.region_bytes)?;
        let mut bytes = [0; 2 * WORD as usize];
        let len = (places.region_bytes - at).min(bytes.len() as u64) as usize;
        memory.read(at, &mut bytes[..len]);
        let block = words(&bytes[..len]).find_map(|(lead, word)| {
            let (_, source_offset) = pattern.place(word, round, places.region_bytes)?;
            places.block_of(source_offset.saturating_sub(lead))
        });
        Some(Self { at, block })
    }
}

/// Every window of a word, wherever it begins.
fn words(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    bytes.windows(WORD as usize).enumerate().map(|(lead, window)| {
        let mut word = [0; WORD as usize];
        word.copy_from_slice(window);
        (lead as u64, u64::from_le_bytes(word))
    })
}

/// Where the bytes of a block may come from, if all come from one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// The poison of the block's own place.
    Poison,
    Zeros,
    /// What the source holds from an offset on that its first byte would be of: the pattern of a round or, beside the
    /// blocks, poison. Below zero where the block is a piece of something larger.
    Source {
        round: u32,
        base: i64,
    },
}

impl Origin {
    fn kind(self, block: &Block) -> DamageKind {
        match self {
            Self::Poison => DamageKind::Unwritten { astray: None },
            Self::Zeros => DamageKind::Zeros,
            Self::Source { round, base } if base == block.source_offset as i64 => {
                // Of this round only the poison of the same place is wrong.
                if round == block.round { DamageKind::Unfilled } else { DamageKind::Stale { round } }
            }
            Self::Source { round, base } => DamageKind::WrongOffset {
                source_offset: base.max(0).unsigned_abs(),
                distance: base - block.source_offset as i64,
                stale: (round != block.round).then_some(round),
            },
        }
    }

    /// Whether it explains each of the `found` bytes from `at` on.
    fn explain(self, pattern: Pattern, block: &Block, at: u64, found: &[u8], explained: &mut [bool]) {
        let mut scratch = Scratch::new();
        let mut equal = |words: Words, offset: u64| {
            let bytes = words.generate(offset, &mut scratch, found.len());
            for ((found, byte), explained) in found.iter().zip(bytes).zip(&mut *explained) {
                *explained |= found == byte;
            }
        };
        match self {
            Self::Poison => equal(Words::POISON, block.offset + at),
            Self::Zeros => {
                for (found, explained) in found.iter().zip(explained) {
                    *explained |= *found == 0;
                }
            }
            Self::Source { round, base } => {
                let Some(offset) = at.checked_add_signed(base) else { return };
                equal(pattern.in_round(round), offset);
                equal(Words::POISON, offset);
            }
        }
    }
}

/// What a first pass over a bad block finds.
struct Survey {
    /// From the first bad byte to behind the last.
    bad: Range<u64>,
    /// The first bad byte: what belongs there and what is there.
    first: (u8, u8),
    bad_bytes: u64,
    flipped_bits: u64,
}

/// How far an origin, or several together, reach.
#[derive(Clone, Copy)]
struct Reach {
    bad_bytes: bool,
    tail: bool,
    block: bool,
}

impl Survey {
    fn of(pattern: Pattern, memory: &impl Bytes, block: &Block) -> Self {
        let mut this = Self { bad: 0..0, first: (0, 0), bad_bytes: 0, flipped_bits: 0 };
        each_chunk(pattern, memory, block, |at, wanted, found| {
            for (i, (w, f)) in (at..).zip(wanted.iter().zip(found)).filter(|(_, (w, f))| w != f) {
                if this.bad_bytes == 0 {
                    this.bad.start = i;
                    this.first = (*w, *f);
                }
                this.bad.end = i + 1;
                this.bad_bytes += 1;
                this.flipped_bits += u64::from((w ^ f).count_ones());
            }
        });
        this
    }

    fn kind(&self, pattern: Pattern, memory: &impl Bytes, block: &Block) -> DamageKind {
        let flipped = DamageKind::Flipped {
            bits: self.flipped_bits,
            bit: (self.first.0 ^ self.first.1).trailing_zeros(),
        };
        if self.flipped_bits == 1 {
            return flipped;
        }
        let reach = |origins: &[Origin]| self.reach(pattern, memory, block, origins);
        let guesses = [Origin::Poison, Origin::Zeros];
        let rounds = (1..=ROUNDS_BACK).filter_map(|back| block.round.checked_sub(back));
        let base = block.source_offset as i64;
        let stale = rounds.map(|round| Origin::Source { round, base });
        let found = self.origins(pattern, memory, block);
        let guesses = guesses.into_iter().chain(stale).filter(|origin| !found.contains(origin));
        let guesses = guesses.filter(|origin| {
            self.bad_bytes >= GUESS_BYTES_MIN || block.len < GUESS_BYTES_MIN || *origin == Origin::Poison
        });
        let candidates: Vec<Origin> = found.iter().copied().chain(guesses).collect();
        // The one that explains most comes first: a stale block whose last word is right is no short tail.
        let reaches: Vec<(Origin, Reach)> = candidates.iter().map(|&o| (o, reach(&[o]))).collect();
        let first = |is: fn(&Reach) -> bool| reaches.iter().find(|(_, r)| is(r)).map(|(o, _)| o.kind(block));
        if let Some(kind) = first(|r| r.block) {
            return kind;
        }
        if let Some(rest) = first(|r| r.tail) {
            return DamageKind::ShortTail { bytes: block.len - self.bad.start, rest: Box::new(rest) };
        }
        if let Some(rest) = first(|r| r.bad_bytes) {
            return DamageKind::Torn { bytes: self.bad_bytes, rest: vec![rest] };
        }
        if found.len() > 1 && reach(&found).bad_bytes {
            let rest = found.iter().map(|origin| origin.kind(block)).collect();
            return DamageKind::Torn { bytes: self.bad_bytes, rest };
        }
        if self.flipped_bits <= FLIPPED_BITS_MAX { flipped } else { DamageKind::Corrupt }
    }

    /// How much of the block these explain together.
    fn reach(&self, pattern: Pattern, memory: &impl Bytes, block: &Block, origins: &[Origin]) -> Reach {
        let mut reach = Reach { bad_bytes: true, tail: true, block: true };
        let mut explained = Vec::new();
        each_chunk(pattern, memory, block, |at, wanted, found| {
            if !reach.bad_bytes {
                return;
            }
            explained.clear();
            explained.resize(found.len(), false);
            for origin in origins {
                origin.explain(pattern, block, at, found, &mut explained);
            }
            for (i, ((w, f), explained)) in (at..).zip(wanted.iter().zip(found).zip(&explained)) {
                reach.block &= explained;
                reach.tail &= *explained || i < self.bad.start;
                reach.bad_bytes &= *explained || w == f;
            }
        });
        reach
    }

    /// Where sampled bad words say that they come from.
    fn origins(&self, pattern: Pattern, memory: &impl Bytes, block: &Block) -> Vec<Origin> {
        let mut origins = Vec::new();
        let span = self.bad.end - self.bad.start;
        let step = span.div_ceil(SAMPLES).max(1);
        // The last bad bytes are a sample, too.
        let last = self.bad.end.saturating_sub(2 * WORD).max(self.bad.start);
        let samples = (self.bad.start..self.bad.end).step_by(step as usize).chain([last]);
        for at in samples {
            let mut bytes = [0; 2 * WORD as usize];
            let len = (block.len - at).min(bytes.len() as u64) as usize;
            memory.read(block.offset + at, &mut bytes[..len]);
            for (lead, word) in words(&bytes[..len]) {
                let origin = origin(pattern, block, at + lead, word);
                let Some(origin) = origin.filter(|origin| !origins.contains(origin)) else { continue };
                if origins.len() < ORIGINS_MAX {
                    origins.push(origin);
                }
            }
        }
        origins
    }
}

/// Where the word at `at` of a block comes from; none when it is the right one, or tells nothing.
fn origin(pattern: Pattern, block: &Block, at: u64, word: u64) -> Option<Origin> {
    if word == 0 {
        return Some(Origin::Zeros);
    }
    if let Some(place) = poison_place(word, block.region_bytes) {
        let base = place as i64 - at as i64;
        let own = base == block.offset as i64;
        return Some(if own { Origin::Poison } else { Origin::Source { round: block.round, base } });
    }
    let (round, place) = pattern.place(word, block.round, block.region_bytes)?;
    let base = place as i64 - at as i64;
    let right = round == block.round && base == block.source_offset as i64;
    (!right).then_some(Origin::Source { round, base })
}

/// Goes over a block: where in it, what belongs there, what is there.
fn each_chunk(pattern: Pattern, memory: &impl Bytes, block: &Block, mut look: impl FnMut(u64, &[u8], &[u8])) {
    let (mut wanted, mut found) = (Scratch::new(), Scratch::new());
    let words = pattern.in_round(block.round);
    for (at, n) in chunks(block.len) {
        let wanted = words.generate(block.source_offset + at, &mut wanted, n);
        let found = &mut found.bytes_mut()[..n];
        memory.read(block.offset + at, found);
        look(at, wanted, found);
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_round =
            |stale: &Option<u32>| stale.map_or(String::new(), |r| format!(", and of round {r}: stale"));
        match self {
            Self::Unwritten { astray } => {
                f.write_str("never written: the poison is still there")?;
                astray.map_or(Ok(()), |astray| write!(f, "; {astray}"))
            }
            Self::Zeros => f.write_str("zeros"),
            Self::Stale { round } => write!(f, "stale: the bytes of round {round}"),
            Self::Unfilled => f.write_str("stale: what the source held before its first round"),
            Self::Swapped { block, stale } => {
                write!(f, "swapped: the bytes belong to block {block}{}", of_round(stale))
            }
            Self::WrongOffset { source_offset, distance, stale } => write!(
                f,
                "wrong offset: the bytes of offset {source_offset} of the source, {distance:+} from the right \
                 one{}",
                of_round(stale)
            ),
            Self::Flipped { bits: 1, bit } => write!(f, "1 bit flipped: bit {bit}"),
            Self::Flipped { bits, bit } => write!(f, "{bits} bits flipped, the first is bit {bit}"),
            Self::ShortTail { bytes, rest } => {
                write!(f, "short tail: right up to the last {bytes} bytes; those are {rest}")
            }
            Self::Torn { bytes, rest } => {
                let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
                write!(f, "torn: {bytes} bytes are {}; the rest is right", rest.join(", or "))
            }
            Self::Corrupt => f.write_str("corrupt: no place of the pattern explains the bytes"),
        }
    }
}

impl fmt::Display for Astray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, block } = self;
        match block {
            Some(block) => write!(
                f,
                "wrong offset: offset {at} of the region, where no block is, holds bytes of block {block}"
            ),
            None => write!(f, "offset {at} of the region, where no block is, was written"),
        }
    }
}
