//! Bytes that say where they belong: every byte depends on the run, the transfer and its address (KR-15), and a poisoned
//! target differs from what it waits for in every byte.

use crate::rng::mix;

/// The pattern of one transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// For this transfer of this run.
    #[must_use]
    pub const fn new(run: u64, transfer: u64) -> Self {
        Self(mix(run ^ mix(transfer)))
    }

    /// What belongs at `address` of the source.
    pub fn fill(self, address: u64, bytes: &mut [u8]) {
        self.each(address, bytes, |byte, right| *byte = right);
    }

    /// What must not be at a target that received `address` of the source: no byte of it is right.
    pub fn poison(self, address: u64, bytes: &mut [u8]) {
        self.each(address, bytes, |byte, right| *byte = !right);
    }

    /// Index of the first byte that is not what belongs at `address` of the source.
    #[must_use]
    pub fn mismatch(self, address: u64, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let (word, skip) = self.word(address + at as u64);
            for (byte, right) in bytes[at..].iter().zip(&word[skip..]) {
                if byte != right {
                    return Some(at);
                }
                at += 1;
            }
        }
        None
    }

    fn word(self, address: u64) -> ([u8; 8], usize) {
        (mix(self.0 ^ (address >> 3)).to_le_bytes(), (address & 7) as usize)
    }

    fn each(self, address: u64, bytes: &mut [u8], mut f: impl FnMut(&mut u8, u8)) {
        let mut at = 0;
        while at < bytes.len() {
            let (word, skip) = self.word(address + at as u64);
            for (byte, right) in bytes[at..].iter_mut().zip(&word[skip..]) {
                f(byte, *right);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_knows_its_address_and_its_transfer() {
        let (a, b) = (Pattern::new(1, 1), Pattern::new(1, 2));
        let mut bytes = [0; 100];
        a.fill(0x1003, &mut bytes);
        assert_eq!(a.mismatch(0x1003, &bytes), None);
        assert_eq!(a.mismatch(0x1003 + 5, &bytes[5..]), None);
        assert!(a.mismatch(0x1004, &bytes).is_some_and(|at| at < 8));
        assert!(b.mismatch(0x1003, &bytes).is_some_and(|at| at < 8));
        bytes[77] ^= 1;
        assert_eq!(a.mismatch(0x1003, &bytes), Some(77));
    }

    #[test]
    fn poison_is_wrong_in_every_byte() {
        let pattern = Pattern::new(3, 4);
        let (mut right, mut wrong) = ([0; 64], [0; 64]);
        pattern.fill(9, &mut right);
        pattern.poison(9, &mut wrong);
        assert!(right.iter().zip(&wrong).all(|(a, b)| a != b));
    }
}
