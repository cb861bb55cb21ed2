//! The initiator's end of the ring: it empties it into local memory (a read), or fills it from there (a write).

use std::sync::atomic::Ordering;
use std::time::Instant;

use kvrail_core::transport::OpError;

use super::chunk::Cursor;
use super::help::{read_slot_facts, slot_facts};
use super::job::{Chunk, Helper, Offer};
use super::layout::{JobAt, RING_SLOT_BYTES, RING_SLOTS, STATUS_BAD_KEY, STATUS_GOOD};
use super::offer::Context;

impl Offer {
    /// Empties one slot of the ring into local memory (read). Returns the bytes.
    pub(super) fn empty(&mut self, at: JobAt, context: &mut Context<'_>) -> u64 {
        let control = context.control;
        let tail = control.word(at.tail()).load(Ordering::Relaxed);
        if control.word(at.head()).load(Ordering::Acquire) == tail {
            return 0;
        }
        let (chunk, bytes) = read_slot_facts(control, at, tail);
        let sound = bytes > 0
            && bytes <= RING_SLOT_BYTES
            && self.chunks.get(chunk as usize) == Some(&Chunk::Open)
            && self.cursor.is_none_or(|c| c.chunk == chunk);
        if !sound {
            // It does not keep to the agreement: do without it.
            self.recall(at, control);
            return 0;
        }
        let (first, end) = self.bounds(chunk);
        let mut cursor = self.cursor.take().unwrap_or_else(|| Cursor::new(chunk, first, end));
        let mut emptied = 0;
        while let Some(piece) = cursor.take(bytes - emptied, |op| self.items[op as usize].op.len) {
            let from = control.memory.at((at.slot(tail) + emptied) as u64, piece.len as usize);
            let status = control.memory.atomic_u8(at.op_status(piece.op as usize)).load(Ordering::Acquire);
            if let (Some(from), STATUS_GOOD) = (from, status) {
                let into = self.items[piece.op as usize].local.wrapping_add(piece.offset as usize);
                let hint = from.wrapping_add(piece.len as usize);
                // SAFETY: the piece lies inside its op, whose local range was checked when the job was opened and
                // whose region stays registered while the op is in flight; the source lies in the ring.
                unsafe { context.tools.kernel.stream(into, from, piece.len as usize, hint) }
            }
            emptied += piece.len as usize;
        }
        // The slot was read; what was written from it is waited for at the end of the chunk.
        control.word(at.tail()).store(tail.wrapping_add(1), Ordering::Release);
        if cursor.is_at_end() {
            context.tools.kernel.fence();
            self.resolve_by_status(chunk, at, context);
        } else {
            self.cursor = Some(cursor);
        }
        emptied.max(1) as u64
    }

    /// Fills one slot of the ring from local memory (write). Returns the bytes.
    pub(super) fn fill(&mut self, at: JobAt, context: &mut Context<'_>) -> u64 {
        let control = context.control;
        let head = control.word(at.head()).load(Ordering::Relaxed);
        if head.wrapping_sub(control.word(at.tail()).load(Ordering::Acquire)) >= RING_SLOTS {
            return 0;
        }
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => {
                let Some(chunk) = self.claim(at, control) else { return 0 };
                let (first, end) = self.bounds(chunk);
                Cursor::new(chunk, first, end)
            }
        };
        let chunk = cursor.chunk;
        let len_of = |op: u32| self.items[op as usize].op.len;
        let mut filled = 0;
        while let Some(piece) = cursor.take(RING_SLOT_BYTES - filled, len_of) {
            let from = self.items[piece.op as usize].local.wrapping_add(piece.offset as usize);
            if let Some(into) = control.memory.at((at.slot(head) + filled) as u64, piece.len as usize) {
                // SAFETY: as in `empty`, with the roles exchanged; the slot is ours until `head` moves.
                unsafe { context.tools.kernel.copy(into, from, piece.len as usize) }
            }
            filled += piece.len as usize;
        }
        control.memory.write(at.slot_facts(head), &slot_facts(chunk, filled));
        control.word(at.head()).store(head.wrapping_add(1), Ordering::Release);
        if cursor.is_at_end() {
            self.streamed.push(chunk);
        } else {
            self.cursor = Some(cursor);
        }
        filled as u64
    }

    /// Resolves what the helper has taken out of the ring (write).
    pub(super) fn reap(&mut self, at: JobAt, context: &mut Context<'_>) {
        let mut done = 0;
        while let Some(chunk) = self.streamed.get(done).copied() {
            let word = context.control.word(at.chunk_done(chunk as usize));
            if word.load(Ordering::Acquire) != self.seq {
                break;
            }
            done += 1;
            self.progress = Instant::now();
            self.resolve_by_status(chunk, at, context);
        }
        self.streamed.drain(..done);
        if self.helper == Helper::Outside {
            self.streamed.clear();
        }
    }

    /// A chunk went through the ring: each op ends as the helper found it.
    pub(super) fn resolve_by_status(&mut self, chunk: u32, at: JobAt, context: &mut Context<'_>) {
        if std::mem::replace(&mut self.chunks[chunk as usize], Chunk::Resolved) == Chunk::Resolved {
            return;
        }
        let (first, end) = self.bounds(chunk);
        for op in first..end {
            let status = context.control.memory.atomic_u8(at.op_status(op as usize)).load(Ordering::Acquire);
            match status {
                STATUS_GOOD => context.ledger.completed(self.token, self.first + op, 1),
                STATUS_BAD_KEY => context.ledger.failed(self.token, self.first + op, 1, OpError::BadKey),
                _ => context.ledger.failed(self.token, self.first + op, 1, OpError::Fault(libc::ESTALE)),
            }
        }
        self.open -= 1;
    }
}
