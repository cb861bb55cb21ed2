//! Chunks: runs of a job's ops that are claimed as a whole, and walked as one stream of bytes.

use super::layout::{CHUNK_BYTES, CHUNK_OPS_MAX};

/// Cuts ops into chunks: returns the first op of each, and the number of ops at the end. Each chunk but the last is
/// closed by its bytes or by its ops; together they cover all ops in order.
pub(super) fn cut(lens: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut firsts = vec![0];
    let (mut bytes, mut ops, mut at) = (0, 0, 0);
    for len in lens {
        bytes += u64::from(len);
        ops += 1;
        at += 1;
        if bytes >= CHUNK_BYTES || ops == CHUNK_OPS_MAX {
            firsts.push(at);
            (bytes, ops) = (0, 0);
        }
    }
    if ops > 0 {
        firsts.push(at);
    }
    firsts
}

/// Part of an op that goes through a ring slot in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) op: u32,
    /// Byte offset in the op.
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// A position in the stream of a chunk. Both sides walk it alike, so the ring need not say what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    pub(super) chunk: u32,
    op: u32,
    offset: u32,
    end: u32,
}

impl Cursor {
    /// The start of a chunk of the ops `first..end`.
    pub(super) fn new(chunk: u32, first: u32, end: u32) -> Self {
        Self { chunk, op: first, offset: 0, end }
    }

    /// The next piece, at most `room` bytes; `None` at the end of the chunk or without room.
    pub(super) fn take(&mut self, room: usize, len_of: impl Fn(u32) -> u32) -> Option<Piece> {
        while self.op < self.end && room > 0 {
            let left = len_of(self.op).saturating_sub(self.offset);
            let len = left.min(u32::try_from(room).unwrap_or(u32::MAX));
            let piece = Piece { op: self.op, offset: self.offset, len };
            self.offset += len;
            if len == left {
                self.op += 1;
                self.offset = 0;
            }
            if len > 0 {
                return Some(piece);
            }
        }
        None
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.op >= self.end
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{CHUNKS_MAX, JOB_BYTES_MAX, JOB_OPS_MAX};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_are_in_order_non_empty_and_cover_every_op(
            lens in proptest::collection::vec(1u32..=1 << 20, 1..300),
        ) {
            let firsts = cut(lens.iter().copied());
            prop_assert_eq!(firsts[0], 0);
            prop_assert_eq!(*firsts.last().unwrap() as usize, lens.len());
            prop_assert!(firsts.windows(2).all(|w| w[0] < w[1]));
        }

        #[test]
        fn the_pieces_of_a_chunk_are_its_bytes_in_order(
            lens in proptest::collection::vec(1u32..=200_000, 1..40),
            rooms in proptest::collection::vec(1usize..70_000, 1..20),
        ) {
            let mut cursor = Cursor::new(3, 0, lens.len() as u32);
            let mut rooms = rooms.iter().cycle();
            let (mut op, mut offset) = (0u32, 0u32);
            while let Some(piece) = cursor.take(*rooms.next().unwrap(), |op| lens[op as usize]) {
                prop_assert_eq!((piece.op, piece.offset), (op, offset));
                offset += piece.len;
                if offset == lens[op as usize] {
                    op += 1;
                    offset = 0;
                }
            }
            prop_assert!(cursor.is_at_end());
            prop_assert_eq!((op as usize, offset), (lens.len(), 0));
        }
    }

    #[test]
    fn the_worst_job_fits_the_chunk_table() {
        let small = cut(std::iter::repeat_n(1, JOB_OPS_MAX));
        let large = cut(std::iter::repeat_n(CHUNK_BYTES as u32, (JOB_BYTES_MAX / CHUNK_BYTES) as usize));
        assert!(small.len() <= CHUNKS_MAX && large.len() <= CHUNKS_MAX);
    }
}
