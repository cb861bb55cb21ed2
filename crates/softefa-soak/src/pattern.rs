//! Bytes that tell whose they are and where they belong.
//!
//! Every operation has a number; its bytes are a function of that number and of their place, and never zero. Memory that nobody has
//! written to is zero, so that each byte says whether it is untouched, right, or wrong.

use crate::random::mix;

/// Eight bytes at place `8 * index` of the pattern `number`.
fn word(number: u64, index: u64) -> [u8; 8] {
    (mix(number.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ index) | 0x0101_0101_0101_0101).to_le_bytes()
}

/// The pattern from place `from` on.
fn bytes_from(number: u64, from: usize) -> impl Iterator<Item = u8> {
    ((from / 8) as u64..).flat_map(move |index| word(number, index)).skip(from % 8)
}

/// Fills with the pattern.
pub fn fill(bytes: &mut [u8], number: u64) {
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = word(number, index as u64);
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// The first place that does not hold the pattern.
#[must_use]
pub fn wrong(bytes: &[u8], number: u64) -> Option<usize> {
    wrong_from(bytes, number, 0)
}

/// As [`wrong`], for bytes that are the pattern's from place `from` on.
#[must_use]
pub fn wrong_from(bytes: &[u8], number: u64, from: usize) -> Option<usize> {
    let skip = from % 8;
    let mut at = 0;
    let mut index = (from / 8) as u64;
    let mut start = skip;
    while at < bytes.len() {
        let word = word(number, index);
        let take = (8 - start).min(bytes.len() - at);
        if bytes[at..at + take] != word[start..start + take] {
            let off = (0..take).find(|i| bytes[at + i] != word[start + i]).unwrap_or(0);
            return Some(at + off);
        }
        at += take;
        start = 0;
        index += 1;
    }
    None
}

/// The first place that holds neither the pattern nor zero.
#[must_use]
pub fn foreign(bytes: &[u8], number: u64) -> Option<usize> {
    foreign_from(bytes, number, 0)
}

/// As [`foreign`], for bytes that are the pattern's from place `from` on.
#[must_use]
pub fn foreign_from(bytes: &[u8], number: u64, from: usize) -> Option<usize> {
    bytes.iter().zip(bytes_from(number, from)).position(|(byte, wanted)| *byte != 0 && *byte != wanted)
}

/// A byte that no pattern has: memory that a device must not read any more is filled with it.
pub const POISON: u8 = 0xee;

/// The first place that is not zero.
#[must_use]
pub fn touched(bytes: &[u8]) -> Option<usize> {
    // Eight at a time: most memory that is looked at is untouched.
    let (head, words, tail) = {
        // SAFETY: every bit pattern is a u64.
        unsafe { bytes.align_to::<u64>() }
    };
    if head.iter().all(|b| *b == 0) && words.iter().all(|w| *w == 0) && tail.iter().all(|b| *b == 0) {
        return None;
    }
    bytes.iter().position(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_byte_is_found_wherever_it_is() {
        for len in [1, 7, 8, 9, 4097] {
            let mut bytes = vec![0; len];
            fill(&mut bytes, 42);
            assert_eq!((wrong(&bytes, 42), foreign(&bytes, 42)), (None, None));
            assert_eq!(touched(&bytes), Some(0));
            for at in [0, len / 2, len - 1] {
                bytes[at] ^= 1;
                assert_eq!(wrong(&bytes, 42), Some(at));
                bytes[at] ^= 1;
                let right = std::mem::replace(&mut bytes[at], 0);
                assert_eq!((wrong(&bytes, 42), foreign(&bytes, 42)), (Some(at), None));
                bytes[at] = right;
            }
        }
        assert_eq!(touched(&[0; 1001]), None);
    }

    #[test]
    fn a_pattern_moved_by_one_byte_is_wrong() {
        let mut bytes = vec![0; 1000];
        fill(&mut bytes, 7);
        assert_eq!(wrong(&bytes[1..], 7), Some(0));
        assert_eq!(wrong_from(&bytes[13..200], 7, 13), None);
        assert_eq!(wrong_from(&bytes[16..], 7, 16), None);
        assert_eq!(wrong(&bytes, 8), Some(0));
    }
}
