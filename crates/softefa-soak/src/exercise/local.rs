//! A process's own memory: where its operations take their bytes from or put them, and its receives.
//!
//! Each piece lies between guards. What is not in use is zero, or poison where a device has no business to read any more.

use std::io;

use crate::memory::GUARD_BYTES;
use crate::pattern::{self, POISON};
use crate::schedule::Traffic;
use crate::shared::Shared;

/// The memory.
pub(super) struct Local {
    shared: Shared,
    piece_bytes: usize,
    pieces: usize,
    /// Pieces that no operation uses.
    free: Vec<usize>,
    poisoned: Vec<bool>,
    receives: usize,
    scratch: Vec<u8>,
}

impl Local {
    pub(super) fn new(traffic: &Traffic, nics: usize) -> io::Result<Self> {
        let pieces = traffic.in_flight;
        let all = pieces + nics * traffic.receives;
        let stride = traffic.slot_bytes + 2 * GUARD_BYTES;
        Ok(Self {
            shared: Shared::private((all * stride).next_multiple_of(4096))?,
            piece_bytes: traffic.slot_bytes,
            pieces,
            free: (0..pieces).rev().collect(),
            poisoned: vec![false; pieces],
            receives: traffic.receives,
            scratch: Vec::new(),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.shared.as_ptr()
    }

    /// Bytes of all of it.
    pub(super) fn len(&self) -> usize {
        self.shared.len()
    }

    fn stride(&self) -> usize {
        self.piece_bytes + 2 * GUARD_BYTES
    }

    fn start(&self, piece: usize) -> usize {
        piece * self.stride() + GUARD_BYTES
    }

    pub(super) fn address(&self, piece: usize) -> u64 {
        self.shared.address() + self.start(piece) as u64
    }

    /// The piece behind receive number `index` of a rail.
    pub(super) fn receive(&self, rail: usize, index: usize) -> usize {
        self.pieces + rail * self.receives + index
    }

    /// A piece for an operation. `Err` when something was written into it after its last use.
    pub(super) fn take(&mut self) -> Option<Result<usize, String>> {
        let piece = self.free.pop()?;
        if std::mem::take(&mut self.poisoned[piece]) {
            let start = self.start(piece);
            self.shared.clear(start, self.piece_bytes);
        }
        Some(self.untouched(piece).map(|()| piece))
    }

    /// Gives it back. `sent`: its bytes are no business of the device any more.
    pub(super) fn give(&mut self, piece: usize, sent: bool) {
        let start = self.start(piece);
        if sent {
            self.shared.write(start, &vec![POISON; self.piece_bytes]);
            self.poisoned[piece] = true;
        } else {
            self.shared.clear(start, self.piece_bytes);
        }
        self.free.push(piece);
    }

    /// Fills part of a piece with a pattern.
    pub(super) fn fill(&mut self, piece: usize, at: usize, len: usize, number: u64) {
        self.scratch.resize(len, 0);
        pattern::fill(&mut self.scratch, number);
        let start = self.start(piece);
        self.shared.write(start + at, &self.scratch);
    }

    pub(super) fn clear(&self, piece: usize) {
        self.shared.clear(self.start(piece), self.piece_bytes);
    }

    /// Copies a piece with its guards, and gives what `look` says of the part and whether all around it is zero.
    pub(super) fn look<T>(
        &mut self,
        piece: usize,
        at: usize,
        len: usize,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, String> {
        let start = self.start(piece) - GUARD_BYTES;
        let mut scratch = std::mem::take(&mut self.scratch);
        let stride = self.stride();
        let bytes = self.shared.read(start, stride, &mut scratch);
        let from = GUARD_BYTES + at;
        let looked = look(&bytes[from..from + len]);
        let around = pattern::touched(&bytes[..from])
            .or_else(|| pattern::touched(&bytes[from + len..]).map(|place| place + from + len));
        self.scratch = scratch;
        match around {
            None => Ok(looked),
            Some(place) => Err(format!(
                "byte {} of a local buffer changed, outside of {at}..{}",
                place as i64 - GUARD_BYTES as i64,
                at + len
            )),
        }
    }

    /// Whether a piece and its guards are zero.
    pub(super) fn untouched(&mut self, piece: usize) -> Result<(), String> {
        self.look(piece, 0, 0, |_| ())
    }
}
