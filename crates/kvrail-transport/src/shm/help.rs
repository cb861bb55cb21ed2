//! The target's share of a cooperative copy: it fills the ring from its own regions (a read by the peer), or empties
//! the ring into them (a write).
//!
//! The helper touches only its own memory and the ring. Everything it reads from the job is input from outside: each
//! range is checked against its own regions and their generations, each time. Every step is a visit through the
//! gate, so that the initiator can take the job back and knows when no step of it is still going on.

use std::sync::atomic::Ordering;
use std::time::Instant;

use kvrail_core::id::RegionId;
use kvrail_core::transport::Direction;

use super::chunk::{Cursor, Piece};
use super::control::Control;
use super::gate;
use super::host::take;
use super::layout::{
    CHUNKS_MAX, JOB_OPS_MAX, JobAt, OP_BYTES, RING_SLOT_BYTES, RING_SLOTS, STATUS_BAD_KEY, STATUS_GOOD,
    STATUS_TORN,
};
use super::region::Locals;
use crate::memory::copy::Kernel;

/// A peer's job that this agent helps with.
#[derive(Debug)]
pub(super) struct Help {
    pub(super) neighbour: u32,
    pub(super) job: usize,
    pub(super) seq: u32,
    /// The initiator cannot do it alone.
    pub(super) required: bool,
    direction: Direction,
    chunks: u32,
    ops: u32,
    cursor: Option<Cursor>,
    /// This agent's number at the initiator.
    me: u32,
    pub(super) progress: Instant,
}

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A ring slot was filled or emptied.
    Worked,
    /// Nothing to do until the initiator has done something.
    Idle,
    /// The job needs this agent no more.
    Over,
}

impl Help {
    /// Looks at what a peer offers in one of its job slots; `None` when that is nothing for us.
    /// `me` is this agent's number at the peer.
    pub(super) fn join(control: &Control, neighbour: u32, job: usize, me: u32) -> Option<Self> {
        let at = JobAt::new(job);
        let seq = control.word(at.active()).load(Ordering::Acquire);
        let mut facts = [0; 20];
        control.memory.read(at.facts(), &mut facts);
        let mut rest = &facts[..];
        let mut word = || u32::from_le_bytes(take(&mut rest));
        let (direction, chunks, ops, required, helper) = (word(), word(), word(), word(), word());
        let direction = match direction {
            0 => Direction::Read,
            1 => Direction::Write,
            _ => return None,
        };
        let sound = seq != 0 && helper == me && chunks as usize <= CHUNKS_MAX && ops as usize <= JOB_OPS_MAX;
        sound.then(|| Self {
            neighbour,
            job,
            seq,
            required: required != 0,
            direction,
            chunks,
            ops,
            cursor: None,
            me,
            progress: Instant::now(),
        })
    }

    /// Fills or empties one slot of the ring.
    pub(super) fn step(&mut self, control: &Control, locals: &Locals, kernel: Kernel) -> Step {
        let at = JobAt::new(self.job);
        let busy = control.helping(self.me);
        // Nobody else writes this word: one for all jobs of that initiator, as one thread works on them.
        let turn = gate::enter(busy, busy.load(Ordering::Relaxed));
        let step = if gate::permits(control.word(at.active()), self.seq) {
            control.word(at.joined()).store(self.seq, Ordering::Release);
            match self.direction {
                Direction::Read => self.fill(at, control, locals, kernel),
                Direction::Write => self.empty(at, control, locals, kernel),
            }
        } else {
            Step::Over
        };
        gate::leave(busy, turn);
        step
    }

    fn fill(&mut self, at: JobAt, control: &Control, locals: &Locals, kernel: Kernel) -> Step {
        let head = control.word(at.head()).load(Ordering::Relaxed);
        if head.wrapping_sub(control.word(at.tail()).load(Ordering::Acquire)) >= RING_SLOTS {
            return Step::Idle;
        }
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => {
                let chunk = control.word(at.next()).fetch_add(1, Ordering::Relaxed);
                match self.start(at, control, chunk) {
                    Some(cursor) => cursor,
                    None => return Step::Over,
                }
            }
        };
        let slot = at.slot(head);
        // Through the cache, where the other side's core finds it: written past it, each slot would have to be waited
        // for before it is published, which costs a third of the bandwidth.
        let filled = walk(&mut cursor, RING_SLOT_BYTES, at, control, locals, |place, filled, len| {
            let into = control.memory.at((slot + filled) as u64, len);
            if let (Some(from), Some(into)) = (place, into) {
                // SAFETY: `walk` checked that the piece lies in one of our registered regions; the slot lies in the
                // control segment, and `filled + len` within the slot. Inside the gate it is ours to write.
                unsafe { kernel.copy(into, from, len) }
            }
        });
        control.memory.write(at.slot_facts(head), &slot_facts(cursor.chunk, filled));
        control.word(at.head()).store(head.wrapping_add(1), Ordering::Release);
        if !cursor.is_at_end() {
            self.cursor = Some(cursor);
        }
        Step::Worked
    }

    fn empty(&mut self, at: JobAt, control: &Control, locals: &Locals, kernel: Kernel) -> Step {
        let tail = control.word(at.tail()).load(Ordering::Relaxed);
        if control.word(at.head()).load(Ordering::Acquire) == tail {
            return Step::Idle;
        }
        let (chunk, bytes) = read_slot_facts(control, at, tail);
        let cursor = match self.cursor.take() {
            Some(cursor) if cursor.chunk == chunk => Some(cursor),
            Some(_) => None,
            None => self.start(at, control, chunk),
        };
        let Some(mut cursor) = cursor.filter(|_| bytes <= RING_SLOT_BYTES) else { return Step::Over };
        let slot = at.slot(tail);
        walk(&mut cursor, bytes, at, control, locals, |place, emptied, len| {
            let from = control.memory.at((slot + emptied) as u64, len);
            if let (Some(into), Some(from)) = (place, from) {
                let hint = from.wrapping_add(len);
                // SAFETY: as in `fill`, with the roles exchanged.
                unsafe { kernel.stream(into, from, len, hint) }
            }
        });
        kernel.fence();
        control.word(at.tail()).store(tail.wrapping_add(1), Ordering::Release);
        if cursor.is_at_end() {
            control.word(at.chunk_done(chunk as usize)).store(self.seq, Ordering::Release);
        } else {
            self.cursor = Some(cursor);
        }
        Step::Worked
    }

    /// The start of a chunk, if the job has it and says something sound about it.
    fn start(&self, at: JobAt, control: &Control, chunk: u32) -> Option<Cursor> {
        if chunk >= self.chunks {
            return None;
        }
        let mut bounds = [0; 8];
        control.memory.read(at.chunk_first(chunk as usize), &mut bounds);
        let mut rest = &bounds[..];
        let first = u32::from_le_bytes(take(&mut rest));
        let end = u32::from_le_bytes(take(&mut rest));
        (first < end && end <= self.ops).then(|| Cursor::new(chunk, first, end))
    }
}

/// Walks pieces of up to `bytes` in all: gives each with its address here (`None`: not ours, and the job is told),
/// its offset in the slot and its length. Returns how many bytes were walked.
fn walk(
    cursor: &mut Cursor,
    bytes: usize,
    at: JobAt,
    control: &Control,
    locals: &Locals,
    mut each: impl FnMut(Option<*mut u8>, usize, usize),
) -> usize {
    let mut walked = 0;
    while let Some((here, piece)) = resolve(cursor, bytes - walked, at, control, locals) {
        if here.is_none() {
            let status = control.memory.atomic_u8(at.op_status(piece.op as usize));
            // What is refused from its first byte on leaves none behind; the rest of it changes nothing in that.
            if piece.offset == 0 {
                status.store(STATUS_BAD_KEY, Ordering::Release);
            } else if status.load(Ordering::Relaxed) == STATUS_GOOD {
                status.store(STATUS_TORN, Ordering::Release);
            }
        }
        each(here, walked, piece.len as usize);
        walked += piece.len as usize;
    }
    walked
}

/// The next piece and its address here, `None` when it is not ours.
fn resolve(
    cursor: &mut Cursor,
    room: usize,
    at: JobAt,
    control: &Control,
    locals: &Locals,
) -> Option<(Option<*mut u8>, Piece)> {
    let piece = cursor.take(room, |op| op_of(control, at, op).3)?;
    let (region, generation, offset, len) = op_of(control, at, piece.op);
    let here = locals
        .find(RegionId(region))
        .filter(|local| local.generation == generation)
        .and_then(|local| local.at(offset, len))
        // The length is read twice; a peer that changes it in between gains nothing.
        .filter(|_| piece.offset.checked_add(piece.len).is_some_and(|end| end <= len))
        .map(|base| base.wrapping_add(piece.offset as usize));
    Some((here, piece))
}

/// Region, generation, offset, length.
fn op_of(control: &Control, at: JobAt, op: u32) -> (u32, u32, u64, u32) {
    let mut bytes = [0; OP_BYTES];
    control.memory.read(at.op(op as usize), &mut bytes);
    let mut rest = &bytes[..];
    let region = u32::from_le_bytes(take(&mut rest));
    let generation = u32::from_le_bytes(take(&mut rest));
    let offset = u64::from_le_bytes(take(&mut rest));
    (region, generation, offset, u32::from_le_bytes(take(&mut rest)))
}

pub(super) fn slot_facts(chunk: u32, bytes: usize) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (chunk.to_le_bytes(), (bytes as u32).to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

/// Chunk and bytes of a slot.
pub(super) fn read_slot_facts(control: &Control, at: JobAt, slot: u32) -> (u32, usize) {
    let mut facts = [0; 8];
    control.memory.read(at.slot_facts(slot), &mut facts);
    let mut rest = &facts[..];
    (u32::from_le_bytes(take(&mut rest)), u32::from_le_bytes(take(&mut rest)) as usize)
}

#[cfg(test)]
mod tests {
    use super::super::host::Nonce;
    use super::super::layout::JOBS_MAX;
    use super::*;
    use crate::memory::{Options, PrivateMemory};
    use kvrail_core::id::Generation;
    use kvrail_core::transport::{Device, RegionInfo};
    use proptest::prelude::*;

    const REGION: usize = 128 << 10;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A job full of nonsense is answered by at most writing into registered regions.
        #[test]
        fn any_job_is_survived_and_touches_registered_memory_only(
            direction in 0u32..3,
            chunks in 0u32..600,
            ops in 0u32..5000,
            firsts in proptest::collection::vec(0u32..5000, 8),
            entries in proptest::collection::vec((0u32..3, 0u32..3, any::<u64>(), any::<u32>(), any::<bool>()), 1..60),
            slots in proptest::collection::vec((0u32..9, 0u32..80_000), 16),
            head in 0u32..40,
        ) {
            let (control, _fd) = Control::create(Nonce([7; 16])).unwrap();
            let memory = PrivateMemory::allocate(3 * REGION, Options::default()).unwrap();
            memory.fill(0, 3 * REGION, 0x11);
            let mut locals = Locals::default();
            // The middle third is registered.
            let base = memory.as_ptr() as u64 + REGION as u64;
            let info = RegionInfo {
                id: RegionId(1), generation: Generation(1), base, len: REGION as u64, device: Device::Host,
            };
            locals.insert(&info).unwrap();
            let job = JOBS_MAX - 1;
            let at = JobAt::new(job);
            for (i, fact) in [direction, chunks, ops, 0, 4].into_iter().enumerate() {
                control.memory.write(at.facts() + 4 * i, &fact.to_le_bytes());
            }
            for (i, first) in firsts.iter().enumerate() {
                control.memory.write(at.chunk_first(i), &first.to_le_bytes());
            }
            for (i, (region, generation, offset, len, small)) in entries.iter().enumerate() {
                let (offset, len) = if *small { (offset % REGION as u64, len % 70_000) } else { (*offset, *len) };
                let mut entry = [0; OP_BYTES];
                entry[..4].copy_from_slice(&region.to_le_bytes());
                entry[4..8].copy_from_slice(&generation.to_le_bytes());
                entry[8..16].copy_from_slice(&offset.to_le_bytes());
                entry[16..20].copy_from_slice(&len.to_le_bytes());
                control.memory.write(at.op(i), &entry);
            }
            for (i, (chunk, bytes)) in slots.iter().enumerate() {
                control.memory.write(at.slot_facts(i as u32), &slot_facts(*chunk, *bytes as usize));
            }
            control.word(at.head()).store(head, Ordering::Relaxed);
            control.word(at.active()).store(3, Ordering::Relaxed);
            if let Some(mut help) = Help::join(&control, 0, job, 4) {
                for _ in 0..200 {
                    if help.step(&control, &locals, Kernel::detect()) == Step::Over {
                        break;
                    }
                    if direction == 0 {
                        control.word(at.tail()).store(control.word(at.head()).load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                }
            }
            let mut out = vec![0; REGION];
            for third in [0, 2] {
                memory.read(third * REGION, &mut out);
                prop_assert!(out.iter().all(|b| *b == 0x11), "memory that is not registered was touched");
            }
        }
    }

    #[test]
    fn a_job_that_was_taken_back_is_left_alone() {
        let (control, _fd) = Control::create(Nonce([7; 16])).unwrap();
        let at = JobAt::new(0);
        for (i, fact) in [0u32, 1, 1, 0, 4].into_iter().enumerate() {
            control.memory.write(at.facts() + 4 * i, &fact.to_le_bytes());
        }
        control.word(at.active()).store(3, Ordering::Relaxed);
        assert!(Help::join(&control, 0, 0, 5).is_none(), "another's job");
        let mut help = Help::join(&control, 0, 0, 4).unwrap();
        gate::revoke(control.word(at.active()), 0);
        assert_eq!(help.step(&control, &Locals::default(), Kernel::detect()), Step::Over);
        assert_eq!(control.word(at.next()).load(Ordering::Relaxed), 0);
        assert_eq!(gate::inside(control.helping(4)), None);
    }
}
