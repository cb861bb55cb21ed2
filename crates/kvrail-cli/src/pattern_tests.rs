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

#[test]
fn a_block_that_was_never_written_is_called_so() {
    let (pattern, _, target) = pair();
    assert_eq!(kind(pattern, &target, &block(4096, 8192, 32768)), DamageKind::Unwritten);
}

#[test]
fn zeros_stale_and_swapped_bytes_are_told_apart() {
    let (pattern, source, target) = pair();
    target.write(4096, &[0; 4096]);
    assert_eq!(kind(pattern, &target, &block(4096, 0, 4096)), DamageKind::Zeros);

    target.copy(4096, &source, 20480, 4096);
    assert_eq!(kind(pattern, &target, &block(4096, 8192, 4096)), DamageKind::Swapped { distance: 12288 });

    pattern.fill(&source, 7, 0, LEN as u64);
    target.copy(4096, &source, 8192, 4096);
    assert_eq!(kind(pattern, &target, &block(4096, 8192, 4096)), DamageKind::Stale { round: 7 });
}

#[test]
fn a_block_without_its_tail_is_torn() {
    let (pattern, source, target) = pair();
    target.copy(4096, &source, 8192, 32768 - 64);
    let damage = pattern.check(&target, &block(4096, 8192, 32768)).unwrap_err();
    assert_eq!(damage.offset, 32768 - 64);
    assert_eq!(damage.bad_bytes, 64);
    assert_eq!(damage.kind, DamageKind::Torn { bad_words: 8, words: 4096, rest: "unwritten".into() });
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
        prop_assert_eq!(damage.kind, DamageKind::Corrupt);
    }

    #[test]
    fn a_word_names_its_place(key in any::<u64>(), round in 0u32..1 << 24, index in 0u64..1 << 40) {
        let pattern = Pattern { key };
        let word = pattern.word(round, index);
        prop_assert_eq!(pattern.place(word, round, u64::MAX), Some((round, index * 8)));
        prop_assert_eq!(unmix(mix(key)), key);
    }
}
