//! How the bytes of a transfer lie at both ends: the same shape gives the same layout in every process.
//!
//! Each end gives a transfer an *extent* of its memory. The transfer's slices lie in it, in another order and with other gaps at the
//! other end, so that no offset, order or length can be mistaken for another without a byte being wrong.

use kvrail_sim::rng::Rng;
use serde::{Deserialize, Serialize};

/// From what a layout is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shape {
    /// Decides lengths, gaps and order.
    pub seed: u64,
    /// Slices.
    pub count: u32,
    /// Least bytes of a slice; at least one.
    pub len_min: u32,
    /// Most bytes of a slice.
    pub len_max: u32,
    /// Most bytes between two slices.
    pub gap_max: u32,
    /// The other end has them in another order.
    pub shuffled: bool,
}

/// One slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Offset in the initiator's extent, bytes.
    pub local: u64,
    /// Offset in the responder's extent, bytes.
    pub remote: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes of the transfer before it.
    pub position: u64,
}

/// All slices, in the transfer's order.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The slices.
    pub spans: Vec<Span>,
    /// Bytes of the initiator's extent.
    pub local_bytes: u64,
    /// Bytes of the responder's extent.
    pub remote_bytes: u64,
    /// Bytes that move.
    pub bytes: u64,
}

/// Bytes before the first and after the last slice: what runs over is seen.
const GUARD: u64 = 64;

impl Shape {
    /// One slice of that many bytes.
    #[must_use]
    pub fn block(seed: u64, bytes: u32) -> Self {
        Self { seed, count: 1, len_min: bytes, len_max: bytes, gap_max: 0, shuffled: false }
    }

    /// The layout of the shape.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let mut rng = Rng::new(self.seed);
        let count = self.count.max(1) as usize;
        let (low, high) = (u64::from(self.len_min.max(1)), u64::from(self.len_max.max(self.len_min).max(1)));
        let gap_max = u64::from(self.gap_max);
        let mut spans = Vec::with_capacity(count);
        let (mut local, mut position) = (GUARD, 0);
        for _ in 0..count {
            let len = rng.within(low, high);
            spans.push(Span { local, remote: 0, len, position });
            local += len + rng.below(gap_max + 1);
            position += len;
        }
        let mut order: Vec<usize> = (0..count).collect();
        if self.shuffled {
            for last in (1..count).rev() {
                order.swap(last, rng.index(last + 1));
            }
        }
        let mut remote = GUARD;
        for index in order {
            spans[index].remote = remote;
            remote += spans[index].len + rng.below(gap_max + 1);
        }
        Layout { spans, local_bytes: local + GUARD, remote_bytes: remote + GUARD, bytes: position }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_disjoint_lie_inside_their_extents_and_cover_the_transfer() {
        for seed in 0..200 {
            let shape = Shape {
                seed,
                count: 1 + seed as u32 % 50,
                len_min: 1,
                len_max: 300,
                gap_max: seed as u32 % 90,
                shuffled: seed % 2 == 0,
            };
            let layout = shape.layout();
            for ends in [|s: &Span| s.local, |s: &Span| s.remote] {
                let mut ranges: Vec<_> = layout.spans.iter().map(|s| (ends(s), ends(s) + s.len)).collect();
                ranges.sort_unstable();
                assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
                assert!(ranges[0].0 >= GUARD);
            }
            assert!(layout.spans.iter().all(|s| s.local + s.len + GUARD <= layout.local_bytes));
            assert!(layout.spans.iter().all(|s| s.remote + s.len + GUARD <= layout.remote_bytes));
            assert_eq!(layout.spans.iter().map(|s| s.len).sum::<u64>(), layout.bytes);
        }
    }
}
