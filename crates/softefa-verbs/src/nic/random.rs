//! Randomness that a seed repeats.

/// A small generator (splitmix64): one for each process of a fabric, seeded from the fabric's seed and the process's place, so that
/// the same sequence of operations meets the same choices.
#[derive(Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, node: u32, slot: usize) -> Random {
        let mut random = Random(seed ^ u64::from(node) << 32 ^ (slot as u64) << 48);
        random.next();
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number less than `n`; 0 when `n` is 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// True `ppm` times of a million.
    pub(super) fn chance(&mut self, ppm: u64) -> bool {
        ppm != 0 && (ppm >= 1_000_000 || self.below(1_000_000) < ppm)
    }

    /// Exponentially distributed with this mean.
    pub(super) fn exponential(&mut self, mean: u64) -> u64 {
        if mean == 0 {
            return 0;
        }
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - uniform).ln() * mean as f64) as u64
    }

    /// Puts `items` into any order, each as likely as another.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_choices_and_another_place_others() {
        let draw = |seed, node, slot| {
            let mut random = Random::new(seed, node, slot);
            (0..8).map(|_| random.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, 0, 1), draw(7, 0, 1));
        assert_ne!(draw(7, 0, 1), draw(7, 1, 1));
        assert_ne!(draw(7, 0, 1), draw(7, 0, 2));
    }

    #[test]
    fn the_mean_of_exponential_numbers_is_what_was_asked_for() {
        let mut random = Random::new(1, 0, 0);
        let sum: u64 = (0..100_000).map(|_| random.exponential(4_000)).sum();
        assert!((3_900..4_100).contains(&(sum / 100_000)), "{}", sum / 100_000);
        assert_eq!(random.exponential(0), 0);
    }
}
