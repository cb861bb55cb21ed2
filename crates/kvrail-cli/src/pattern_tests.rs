use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

struct Memory(RefCell<Vec<u8>>);

impl Memory {
    fn new(len: usize) -> Self {
        let memory = Self(RefCell::new(vec![0; len]));
        poison(&memory, 0, len as u64);
        memory
    }

    fn copy(&self, offset: u64, from: &Memory, source_offset: u64, len: u64) {
        let from = from.0.borrow()[source_offset as usize..(source_offset + len) as usize].to_vec();
        self.write(offset, &from);
    }
}

impl Bytes for Memory {
    fn read(&self, offset: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.0.borrow()[offset as usize..][..out.len()]);
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.borrow_mut()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

const LEN: usize = 256 << 10;

fn block(offset: u64, source_offset: u64, len: u64) -> Block {
    Block { offset, source_offset, len, round: 9, region_bytes: LEN as u64 }
}

/// A source filled for rounds up to 9 and a poisoned destination.
fn pair() -> (Pattern, Memory, Memory) {
    let pattern = Pattern::new(42, Source::Initiator);
    let (source, target) = (Memory::new(LEN), Memory::new(LEN));
    pattern.fill(&source, 9, 0, LEN as u64);
    (pattern, source, target)
}

fn kind(pattern: Pattern, target: &Memory, block: &Block) -> DamageKind {
    pattern.check(target, block).unwrap_err().kind
}

/// Blocks as a case has them: 16 of 20,000 bytes, out of order and other ones on each side, none at the base. Their
/// ends lie within words, and each crosses a chunk.
struct Cache {
    pattern: Pattern,
    source: Memory,
    target: Memory,
    here: Vec<u64>,
    there: Vec<u64>,
}

const ROUND: u32 = 9;
const COUNT: u64 = 12;
const BLOCK: u64 = 20_001;

impl Cache {
    /// All blocks arrived.
    fn new() -> Self {
        let (pattern, source, target) = pair();
        // The source holds poison beside its blocks, as a pool does.
        poison(&source, 0, LEN as u64);
        let here: Vec<u64> = (0..COUNT).map(|i| (i * 5 % COUNT + 1) * BLOCK).collect();
        let there: Vec<u64> = (0..COUNT).map(|i| (i * 7 % COUNT + 1) * BLOCK).collect();
        let cache = Self { pattern, source, target, here, there };
        cache.fill(ROUND);
        (0..COUNT as usize).for_each(|i| cache.arrive(i));
        cache
    }

    fn fill(&self, round: u32) {
        self.there.iter().for_each(|&offset| self.pattern.fill(&self.source, round, offset, BLOCK));
    }

    fn arrive(&self, i: usize) {
        self.target.copy(self.here[i], &self.source, self.there[i], BLOCK);
    }

    /// What the check of a block says, in words.
    fn words(&self, i: usize) -> String {
        let block = Block {
            offset: self.here[i],
            source_offset: self.there[i],
            len: BLOCK,
            round: ROUND,
            region_bytes: LEN as u64,
        };
        let Err(mut damage) = self.pattern.check(&self.target, &block) else { return "right".into() };
        let (here, source) = (&self.here, &self.there);
        let places = Places { here, source, block_bytes: BLOCK, region_bytes: LEN as u64 };
        damage.name_blocks(self.pattern, &self.target, &places, ROUND);
        damage.kind.to_string()
    }

    fn all(&self) -> Vec<String> {
        (0..COUNT as usize).map(|i| self.words(i)).collect()
    }

    fn flip(&self, at: u64, mask: u8) {
        let mut byte = [0];
        self.target.read(at, &mut byte);
        self.target.write(at, &[byte[0] ^ mask]);
    }
}

#[test]
fn blocks_that_arrived_are_right() {
    assert_eq!(Cache::new().all(), vec!["right"; COUNT as usize]);
}

#[test]
fn swapped_blocks_are_named_with_the_block_that_their_bytes_belong_to() {
    for (one, other) in [(7, 9), (0, COUNT as usize - 1), (3, 4)] {
        let cache = Cache::new();
        cache.target.copy(cache.here[one], &cache.source, cache.there[other], BLOCK);
        cache.target.copy(cache.here[other], &cache.source, cache.there[one], BLOCK);
        let words = cache.all();
        assert_eq!(words[one], format!("swapped: the bytes belong to block {other}"));
        assert_eq!(words[other], format!("swapped: the bytes belong to block {one}"));
        assert_eq!(words.iter().filter(|w| *w == "right").count(), COUNT as usize - 2);
    }
}

#[test]
fn writes_that_all_go_to_the_base_of_the_region_are_a_wrong_offset() {
    for block in [0, 5, COUNT as usize - 1] {
        let cache = Cache::new();
        poison(&cache.target, cache.here[block], BLOCK);
        cache.target.copy(0, &cache.source, cache.there[block], BLOCK);
        assert_eq!(
            cache.words(block),
            format!(
                "never written: the poison is still there; wrong offset: offset 0 of the region, where no block is, \
                 holds bytes of block {block}"
            )
        );
    }
}

#[test]
fn reads_from_a_wrong_offset_name_the_offset_whatever_lies_there() {
    // The base, where no block is; the middle of a block; a place that is off by less than a word.
    let cache = Cache::new();
    for (block, offset) in
        [(2, 0), (6, cache.there[3] + 4096), (8, cache.there[8] - 4), (11, cache.there[11] + 1)]
    {
        cache.target.copy(cache.here[block], &cache.source, offset, BLOCK);
        let distance = offset as i64 - cache.there[block] as i64;
        assert_eq!(
            cache.words(block),
            format!(
                "wrong offset: the bytes of offset {offset} of the source, {distance:+} from the right one"
            )
        );
    }
}

#[test]
fn the_bytes_of_the_round_before_are_stale_also_in_another_block() {
    let cache = Cache::new();
    cache.fill(7);
    cache.arrive(4);
    assert_eq!(cache.words(4), "stale: the bytes of round 7");
    cache.target.copy(cache.here[5], &cache.source, cache.there[6], BLOCK);
    assert_eq!(cache.words(5), "swapped: the bytes belong to block 6, and of round 7: stale");
    poison(&cache.source, 0, LEN as u64);
    cache.arrive(2);
    assert_eq!(cache.words(2), "stale: what the source held before its first round");
}

#[test]
fn zeros_and_blocks_that_were_never_written_are_told_apart() {
    for block in [0, 6, COUNT as usize - 1] {
        let cache = Cache::new();
        cache.target.write(cache.here[block], &[0; BLOCK as usize]);
        assert_eq!(cache.words(block), "zeros");
        poison(&cache.target, cache.here[block], BLOCK);
        assert_eq!(cache.words(block), "never written: the poison is still there");
    }
}

#[test]
fn one_flipped_bit_is_named_wherever_it_is() {
    for at in [0, 1, 7, 8, 12_345, (16 << 10) - 1, 16 << 10, BLOCK - 1] {
        for bit in [0, 3, 7] {
            let cache = Cache::new();
            cache.flip(cache.here[7] + at, 1 << bit);
            assert_eq!(cache.words(7), format!("1 bit flipped: bit {bit}"), "byte {at}");
        }
    }
    let cache = Cache::new();
    cache.flip(cache.here[7] + 99, 0b0110_0000);
    assert_eq!(cache.words(7), "2 bits flipped, the first is bit 5");
    cache.flip(cache.here[7] + 99, 0b1001_1111);
    assert_eq!(cache.words(7), "corrupt: no place of the pattern explains the bytes");
}

#[test]
fn a_short_tail_is_named_with_its_length_and_with_what_is_there_instead() {
    let poisoned = "never written: the poison is still there";
    for missing in [2, 3, 8, 63, 64, 4096, BLOCK - 1] {
        let cache = Cache::new();
        let at = cache.here[3] + BLOCK - missing;
        // Behind what is missing no byte may look right by chance: the test would have to know.
        poison(&cache.target, at, missing);
        let words = cache.words(3);
        assert!(words.starts_with("short tail: right up to the last "), "{missing}: {words}");
        assert!(words.ends_with(&format!("; those are {poisoned}")), "{missing}: {words}");
        let said: u64 = words.split(' ').nth(7).unwrap().parse().unwrap();
        assert!((missing - 1..=missing).contains(&said), "{missing}: {words}");
    }
    let cache = Cache::new();
    cache.target.write(cache.here[3] + BLOCK - 64, &[0; 64]);
    assert!(cache.words(3).ends_with("bytes; those are zeros"), "{}", cache.words(3));
    cache.fill(3);
    cache.target.copy(cache.here[3] + 10_000, &cache.source, cache.there[3] + 10_000, BLOCK - 10_000);
    assert!(cache.words(3).ends_with("those are stale: the bytes of round 3"), "{}", cache.words(3));
}

#[test]
fn a_torn_block_is_named_with_all_that_it_is_made_of() {
    let cache = Cache::new();
    poison(&cache.target, cache.here[3] + 100, 5000);
    let words = cache.words(3);
    assert!(words.starts_with("torn: ") && words.contains("never written"), "{words}");
    cache.fill(5);
    cache.target.copy(cache.here[3] + 9_000, &cache.source, cache.there[3] + 9_000, 3000);
    let words = cache.words(3);
    assert!(words.contains("never written") && words.contains(", or stale: the bytes of round 5"), "{words}");
    // A byte that nothing explains makes it corrupt.
    cache.flip(cache.here[3] + 19_000, 0xFF);
    assert!(cache.words(3).starts_with("corrupt"), "{}", cache.words(3));
}

#[test]
fn blocks_smaller_than_a_word_are_named_too() {
    let (pattern, source, target) = pair();
    let block = Block { offset: 4101, source_offset: 8203, len: 5, round: ROUND, region_bytes: LEN as u64 };
    assert_eq!(kind(pattern, &target, &block), DamageKind::Unwritten { astray: None });
    target.write(4101, &[0; 5]);
    assert_eq!(kind(pattern, &target, &block), DamageKind::Zeros);
    pattern.fill(&source, ROUND - 2, 0, LEN as u64);
    target.copy(4101, &source, 8203, 5);
    assert_eq!(kind(pattern, &target, &block), DamageKind::Stale { round: ROUND - 2 });
}

#[test]
fn the_pattern_of_another_side_is_corruption() {
    let (_, source, target) = pair();
    target.copy(4096, &source, 8192, 4096);
    let other = Pattern::new(42, Source::Target);
    assert_eq!(kind(other, &target, &block(4096, 8192, 4096)), DamageKind::Corrupt);
    let other_run = Pattern::new(43, Source::Initiator);
    assert_eq!(kind(other_run, &target, &block(4096, 8192, 4096)), DamageKind::Corrupt);
}

#[test]
fn bytes_beside_the_block_stay_poison() {
    let (_, source, target) = pair();
    assert_eq!(first_unpoisoned(&target, 1, LEN as u64 - 1), None);
    target.copy(4096, &source, 8192, 4097);
    assert_eq!(first_unpoisoned(&target, 0, 4096), None);
    assert_eq!(first_unpoisoned(&target, 8192, 4096), Some(8192));
    poison(&target, 8192, 3);
    assert_eq!(first_unpoisoned(&target, 8192, 4096), None);
}

#[test]
fn generating_and_checking_keep_up_with_memory() {
    // Not a benchmark: a bound that an accidentally quadratic or byte-wise loop would break.
    let (pattern, source, _) = pair();
    let start = std::time::Instant::now();
    for round in 0..400 {
        pattern.fill(&source, round, 0, LEN as u64);
        let block = Block { round, ..block(0, 0, LEN as u64) };
        pattern.check(&source, &block).unwrap();
    }
    let gbps = 400.0 * LEN as f64 / start.elapsed().as_secs_f64() / 1e9;
    println!("fill and check: {gbps:.1} GB/s");
    assert!(gbps > 0.02, "{gbps:.3} GB/s");
}

proptest! {
    #[test]
    fn any_copy_to_any_place_verifies(offset in 0u64..60_000, source in 0u64..60_000, len in 1u64..60_000) {
        let (pattern, from, target) = pair();
        target.copy(offset, &from, source, len);
        prop_assert_eq!(pattern.check(&target, &block(offset, source, len)), Ok(()));
        prop_assert_eq!(first_unpoisoned(&target, 0, offset), None);
        prop_assert_eq!(first_unpoisoned(&target, offset + len, LEN as u64 - offset - len), None);
    }

    #[test]
    fn any_flipped_bit_is_found_where_it_is(
        offset in 0u64..9_000, source in 0u64..9_000, len in 1u64..70_000, at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let (pattern, from, target) = pair();
        target.copy(offset, &from, source, len);
        let at = at.index(len as usize) as u64;
        let mut byte = [0];
        target.read(offset + at, &mut byte);
        byte[0] ^= 1 << bit;
        target.write(offset + at, &byte);
        let damage = pattern.check(&target, &block(offset, source, len)).unwrap_err();
        prop_assert_eq!((damage.offset, damage.region_offset, damage.bad_bytes), (at, offset + at, 1));
        prop_assert_eq!(damage.expected ^ damage.found, 1 << bit);
        prop_assert_eq!(damage.kind, DamageKind::Flipped { bits: 1, bit: bit.into() });
    }

    #[test]
    fn a_word_names_its_place(key in any::<u64>(), round in 0u32..1 << 24, index in 0u64..1 << 40) {
        let pattern = Pattern { key };
        let word = pattern.in_round(round).word(index);
        prop_assert_eq!(pattern.place(word, round, u64::MAX), Some((round, index * 8)));
        prop_assert_eq!(unmix(mix(key)), key);
    }
}
