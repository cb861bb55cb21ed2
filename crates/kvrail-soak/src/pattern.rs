//! What the bytes are: a pattern that names transfer and position, and a poison that names place and occasion.
//!
//! Both are 64-bit words of a mixing function, so that a byte from another transfer, another position or another time is wrong in all
//! but one of 256 cases, and a few of them surely.

use kvrail_sim::rng::mix;

/// A sequence of bytes that is known by its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes {
    key: u64,
}

impl Bytes {
    /// The bytes that a transfer moves, by position in the transfer.
    #[must_use]
    pub fn of_transfer(seed: u64, id: u64) -> Self {
        Self { key: mix(seed ^ mix(id)) }
    }

    /// What lies where nothing may be written, by offset in its extent. Each occasion has its own.
    #[must_use]
    pub fn poison(seed: u64, id: u64, occasion: u64) -> Self {
        Self { key: mix(!seed ^ mix(id)) ^ mix(occasion.wrapping_mul(2).wrapping_add(1)) }
    }

    fn word(self, number: u64) -> [u8; 8] {
        mix(self.key ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes()
    }

    /// Writes the bytes from position `at` on.
    pub fn fill(self, at: u64, out: &mut [u8]) {
        let mut at = at;
        let mut out = out;
        while !out.is_empty() {
            let word = self.word(at / 8);
            let skip = (at % 8) as usize;
            let n = (8 - skip).min(out.len());
            let (head, tail) = out.split_at_mut(n);
            head.copy_from_slice(&word[skip..skip + n]);
            out = tail;
            at += n as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_depend_on_transfer_position_and_occasion_and_not_on_how_they_are_cut() {
        let bytes = Bytes::of_transfer(1, 7);
        let mut whole = [0; 100];
        bytes.fill(3, &mut whole);
        for cut in 0..100 {
            let mut parts = [0; 100];
            let (a, b) = parts.split_at_mut(cut);
            bytes.fill(3, a);
            bytes.fill(3 + cut as u64, b);
            assert_eq!(parts, whole);
        }
        let differs = |other: Bytes, at| {
            let mut others = [0; 100];
            other.fill(at, &mut others);
            others.iter().zip(&whole).filter(|(a, b)| a != b).count() > 80
        };
        assert!(differs(Bytes::of_transfer(1, 8), 3));
        assert!(differs(Bytes::of_transfer(2, 7), 3));
        assert!(differs(bytes, 11));
        assert!(differs(Bytes::poison(1, 7, 0), 3));
    }
}
