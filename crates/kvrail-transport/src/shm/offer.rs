//! Jobs: large batches on private memory, offered to the peer so that its core does half of the work.
//!
//! Where the kernel must do the copying, one core is the limit. With both cores, bytes go through a small ring in
//! shared memory: the side that has the source fills it, the other empties it, each touching only memory of its own
//! and the ring. That beats the kernel's copy more than twice, and needs no permission to look into each other.
//!
//! Nobody depends on the other: a job is cut into chunks, and the initiator copies through the kernel whatever the
//! helper does not take up. A chunk is resolved exactly once (KR-6). A helper that falls silent is recalled through
//! the gate ([`super::gate`]); only once it is certain that it is outside are its chunks done over. Where the kernel
//! denies the initiator, the ring is the only way and the job waits for its helper.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvrail_core::id::{PeerId, RegionId, Token};
use kvrail_core::transport::{Batch, Direction, OpError};

use super::Config;
use super::chunk::{Cursor, cut};
use super::control::Control;
use super::execute::{Ends, Tools, is_live};
use super::gate;
use super::help::{read_slot_facts, slot_facts};
use super::layout::{
    JOB_BYTES_MAX, JOB_OPS_MAX, JOBS_MAX, JobAt, OP_BYTES, RING_SLOT_BYTES, RING_SLOTS, STATUS_BAD_KEY,
    STATUS_GOOD,
};
use super::ledger::Ledger;
use super::neighbour::{Access, Neighbour};
use super::process::Slice;

/// What one call may move, bytes.
const STEP_BYTES: u64 = 4 << 20;
/// For so long a helper that has joined may let the ring rest before the initiator goes on alone beside it.
const PATIENCE: Duration = Duration::from_micros(30);
/// When nothing else is left to do, it is recalled after so long. Doing its chunks over costs about as much.
const RECALL_AFTER: Duration = Duration::from_micros(150);
/// A neighbour that made jobs slower is asked again each so many jobs.
const ASK_AGAIN: u32 = 16;
/// For so long a job that was given up waits for a helper that is in the middle of a copy.
const GRACE: Duration = Duration::from_secs(1);

/// One op of a job.
#[derive(Clone, Copy, Debug)]
struct Item {
    local: *mut u8,
    op: kvrail_core::transport::Op,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chunk {
    /// Nobody has it, or the helper has.
    Open,
    Resolved,
}

/// Where the helper stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Helper {
    /// It may come, or is there.
    Invited,
    /// The permit is taken back; it was seen inside, in this visit.
    Leaving(u32),
    /// It touches nothing of this job any more.
    Outside,
}

/// A job.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) neighbour: u32,
    pub(super) peer: PeerId,
    seq: u32,
    token: Token,
    first: u32,
    direction: Direction,
    items: Vec<Item>,
    firsts: Vec<u32>,
    chunks: Vec<Chunk>,
    open: usize,
    /// First chunk that the initiator has not claimed, in a write or alone.
    next: u32,
    cursor: Option<Cursor>,
    /// Chunks that went into the ring and are not known to have come out.
    streamed: Vec<u32>,
    helper: Helper,
    announced: bool,
    bytes: u64,
    opened: Instant,
    pub(super) progress: Instant,
    pub(super) give_up_at: Option<Instant>,
}

// SAFETY: the pointers are addresses of registered regions, which belong to no thread.
unsafe impl Send for Offer {}

/// What advancing needs of the transport, beside the ends.
pub(super) struct Context<'a> {
    pub(super) control: &'a Control,
    pub(super) tools: &'a mut Tools,
    pub(super) ledger: &'a mut Ledger,
}

/// All jobs of an agent.
#[derive(Debug)]
pub(super) struct Offers {
    pub(super) slots: [Option<Offer>; JOBS_MAX],
    seq: u32,
    pub(super) live: usize,
}

impl Offers {
    pub(super) fn new() -> Self {
        Self { slots: std::array::from_fn(|_| None), seq: 0, live: 0 }
    }

    /// Whether a peer has a job with chunks that nobody has claimed: another would gain nothing.
    pub(super) fn is_fed(&self, control: &Control, neighbour: u32) -> bool {
        let mut jobs = 0;
        for (job, offer) in self.slots.iter().enumerate() {
            let Some(offer) = offer.as_ref().filter(|o| o.neighbour == neighbour) else { continue };
            jobs += 1;
            if jobs == 2 || offer.unclaimed(control, JobAt::new(job)) {
                return true;
            }
        }
        false
    }

    /// Makes a job of the leading private ops of a batch; says how many it took. Zero: no slot is free.
    pub(super) fn open(
        &mut self,
        control: &Control,
        ends: &mut Ends<'_>,
        batch: &Batch<'_>,
        from: usize,
    ) -> usize {
        let free = |job: &usize| {
            self.slots[*job].is_none() && gate::inside(control.word(JobAt::new(*job).busy())).is_none()
        };
        let Some(job) = (0..JOBS_MAX).find(free) else { return 0 };
        let at = JobAt::new(job);
        self.seq = self.seq.wrapping_add(1).max(1);
        let seq = self.seq;
        let mut items = Vec::new();
        let mut bytes = 0;
        for op in &batch.ops[from..] {
            let remote = ends
                .peer
                .regions
                .get(op.remote_region.index())
                .filter(|r| r.memory == 0 && r.generation != 0);
            let local = ends.locals.find(op.local_region).and_then(|l| l.at(op.local_offset, op.len));
            let (Some(remote), Some(local)) = (remote, local) else { break };
            if remote.at(op.remote_offset, op.len).is_none()
                || items.len() == JOB_OPS_MAX
                || bytes + u64::from(op.len) > JOB_BYTES_MAX
            {
                break;
            }
            let mut entry = [0; OP_BYTES];
            entry[..4].copy_from_slice(&op.remote_region.0.to_le_bytes());
            entry[4..8].copy_from_slice(&remote.generation.to_le_bytes());
            entry[8..16].copy_from_slice(&op.remote_offset.to_le_bytes());
            entry[16..20].copy_from_slice(&op.len.to_le_bytes());
            control.memory.write(at.op(items.len()), &entry);
            bytes += u64::from(op.len);
            items.push(Item { local, op: *op });
        }
        if items.is_empty() {
            return 0;
        }
        let firsts = cut(items.iter().map(|i| i.op.len));
        for (chunk, first) in firsts.iter().enumerate() {
            control.memory.write(at.chunk_first(chunk), &first.to_le_bytes());
        }
        let chunks = firsts.len() - 1;
        control.memory.fill(at.op_status(0), items.len(), STATUS_GOOD);
        for word in [at.next(), at.head(), at.tail(), at.joined()] {
            control.word(word).store(0, Ordering::Relaxed);
        }
        for chunk in 0..chunks {
            control.word(at.chunk_done(chunk)).store(0, Ordering::Relaxed);
        }
        let denied = matches!(ends.neighbour.access, Access::Denied(_));
        let direction = u32::from(batch.direction == Direction::Write);
        let facts = [direction, chunks as u32, items.len() as u32, u32::from(denied), ends.peer.neighbour];
        for (i, fact) in facts.into_iter().enumerate() {
            control.memory.write(at.facts() + i * 4, &fact.to_le_bytes());
        }
        control.word(at.active()).store(seq, Ordering::Release);
        let taken = items.len();
        self.slots[job] = Some(Offer {
            neighbour: ends.peer.neighbour,
            peer: batch.peer,
            seq,
            token: batch.token,
            first: batch.first + from as u32,
            direction: batch.direction,
            items,
            firsts,
            chunks: vec![Chunk::Open; chunks],
            open: chunks,
            next: 0,
            cursor: None,
            streamed: Vec::new(),
            helper: Helper::Invited,
            announced: !denied && !ends.neighbour.pace[batch.direction as usize].is_worth_asking(),
            bytes,
            opened: Instant::now(),
            progress: Instant::now(),
            give_up_at: None,
        });
        self.live += 1;
        taken
    }

    /// Ends a job whose helper's process is gone: nothing of it writes any more.
    pub(super) fn abandon(&mut self, control: &Control, job: usize, ledger: &mut Ledger, error: OpError) {
        let at = JobAt::new(job);
        if let Some(mut offer) = self.slots[job].take() {
            gate::revoke(control.word(at.active()), 0);
            control.word(at.busy()).store(0, Ordering::Release);
            offer.fail_open(ledger, error);
            self.live -= 1;
        }
    }

    /// Ends a job early, as soon as its helper is outside.
    pub(super) fn give_up(&mut self, job: usize) {
        if let Some(offer) = &mut self.slots[job] {
            offer.give_up_at.get_or_insert_with(|| Instant::now() + GRACE);
        }
    }

    /// Works on a job and frees its slot when it has ended.
    pub(super) fn advance(&mut self, job: usize, ends: &mut Ends<'_>, context: &mut Context<'_>) -> Advance {
        let Some(offer) = &mut self.slots[job] else { return Advance::default() };
        let at = JobAt::new(job);
        let mut advance = offer.advance(at, ends, context);
        if offer.open == 0 && context.control.word(at.joined()).load(Ordering::Relaxed) == offer.seq {
            ends.neighbour.pace[offer.direction as usize].together(offer.bytes, offer.opened.elapsed());
        }
        advance.announce = offer.open > 0 && !offer.announced && offer.helper == Helper::Invited;
        self.close_ended(job, context.control);
        advance
    }

    /// Ends a job that was given up, if its helper is outside by now.
    pub(super) fn withdraw(&mut self, job: usize, context: &mut Context<'_>) {
        if let Some(offer) = &mut self.slots[job] {
            offer.withdraw(JobAt::new(job), context);
            self.close_ended(job, context.control);
        }
    }

    fn close_ended(&mut self, job: usize, control: &Control) {
        if self.slots[job].as_ref().is_some_and(|offer| offer.open == 0) {
            gate::revoke(control.word(JobAt::new(job).active()), 0);
            self.slots[job] = None;
            self.live -= 1;
        }
    }

    /// The helper was told.
    pub(super) fn announced(&mut self, job: usize) {
        if let Some(offer) = &mut self.slots[job] {
            offer.announced = true;
        }
    }
}

/// What advancing a job asks of the transport.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Advance {
    /// The helper has something to do: wake it if it sleeps.
    pub(super) nudge: bool,
    /// The helper does not know of the job yet.
    pub(super) announce: bool,
    /// The kernel says that the helper's process is gone.
    pub(super) gone: bool,
}

impl Offer {
    fn unclaimed(&self, control: &Control, at: JobAt) -> bool {
        let next = match self.direction {
            Direction::Read => control.word(at.next()).load(Ordering::Relaxed),
            Direction::Write => self.next,
        };
        (next as usize) < self.chunks.len()
    }

    fn advance(&mut self, at: JobAt, ends: &mut Ends<'_>, context: &mut Context<'_>) -> Advance {
        let mut advance = Advance::default();
        let mut bytes = 0;
        let denied = matches!(ends.neighbour.access, Access::Denied(_));
        while self.open > 0 && bytes < STEP_BYTES {
            self.reap(at, context);
            if self.open == 0 {
                break;
            }
            let joined = context.control.word(at.joined()).load(Ordering::Acquire) == self.seq;
            let streamed = match (self.helper, self.direction) {
                (Helper::Invited, Direction::Read) => self.empty(at, context),
                (Helper::Invited, Direction::Write) if joined || denied => self.fill(at, context),
                _ => 0,
            };
            if streamed > 0 {
                bytes += streamed;
                self.progress = Instant::now();
                advance.nudge = true;
                continue;
            }
            // The helper is silent, or was never there.
            let silent = self.progress.elapsed();
            if joined && silent > Duration::from_micros(4) {
                // It may be waiting for this very core.
                std::thread::yield_now();
            }
            if denied {
                match self.helper {
                    Helper::Invited if joined && silent < PATIENCE => std::hint::spin_loop(),
                    Helper::Invited => return advance,
                    Helper::Leaving(_) => {
                        self.look_after_recall(at, context.control);
                        return advance;
                    }
                    Helper::Outside => self.fail_open(context.ledger, OpError::Unresponsive),
                }
            } else if self.helper == Helper::Invited && joined && silent < PATIENCE {
                std::hint::spin_loop();
            } else if let Some(chunk) = self.claim(at, context.control) {
                match self.copy(chunk, ends, context) {
                    Some(copied) => bytes += copied,
                    None => {
                        advance.gone = true;
                        return advance;
                    }
                }
                if self.helper != Helper::Invited {
                    self.progress = Instant::now();
                }
            } else {
                match self.helper {
                    Helper::Invited if !joined || silent > RECALL_AFTER => self.recall(at, context.control),
                    Helper::Leaving(_) => {
                        self.look_after_recall(at, context.control);
                        if matches!(self.helper, Helper::Leaving(_)) {
                            return advance;
                        }
                    }
                    _ => return advance,
                }
            }
        }
        advance
    }

    /// Takes the permit back from the helper.
    fn recall(&mut self, at: JobAt, control: &Control) {
        gate::revoke(control.word(at.active()), 0);
        self.helper = match (self.direction, gate::inside(control.word(at.busy()))) {
            // It may be inside still, but writes only to the ring, which is out of use until it has left.
            (Direction::Read, _) | (_, None) => Helper::Outside,
            (Direction::Write, Some(visit)) => Helper::Leaving(visit),
        };
        self.restart();
    }

    fn look_after_recall(&mut self, at: JobAt, control: &Control) {
        if let Helper::Leaving(visit) = self.helper
            && gate::inside(control.word(at.busy())) != Some(visit)
        {
            self.helper = Helper::Outside;
            self.restart();
        }
    }

    /// From here on the initiator is alone: every open chunk is its own, from the first.
    fn restart(&mut self) {
        if self.helper == Helper::Outside {
            self.next = 0;
            self.cursor = None;
        }
    }

    /// The next chunk that is the initiator's to copy whole.
    fn claim(&mut self, at: JobAt, control: &Control) -> Option<u32> {
        let count = self.chunks.len() as u32;
        match (self.helper, self.direction) {
            (Helper::Leaving(_), _) => None,
            (Helper::Invited, Direction::Read) => {
                let next = control.word(at.next());
                let open = next.load(Ordering::Relaxed) < count;
                open.then(|| next.fetch_add(1, Ordering::Relaxed)).filter(|chunk| *chunk < count)
            }
            (Helper::Invited, Direction::Write) => {
                let chunk = (self.next < count).then_some(self.next)?;
                self.next += 1;
                Some(chunk)
            }
            (Helper::Outside, _) => {
                let open = (self.next..count).find(|c| self.chunks[*c as usize] == Chunk::Open)?;
                self.next = open + 1;
                Some(open)
            }
        }
    }

    fn bounds(&self, chunk: u32) -> (u32, u32) {
        (self.firsts[chunk as usize], self.firsts[chunk as usize + 1])
    }

    /// Copies a chunk through the kernel. `None`: the process is gone.
    fn copy(&mut self, chunk: u32, ends: &mut Ends<'_>, context: &mut Context<'_>) -> Option<u64> {
        let (first, end) = self.bounds(chunk);
        let started = Instant::now();
        let link = ends.neighbour.link.as_ref()?;
        let busy = link.control.busy(link.slot);
        let turn = gate::enter(busy, ends.neighbour.turn);
        ends.neighbour.turn = turn;
        let mut bytes = 0;
        let mut at = first;
        let mut gone = false;
        let mut denied = None;
        while at < end && !gone {
            let mut slices = Vec::with_capacity((end - at) as usize);
            for item in &self.items[at as usize..end as usize] {
                let remote = ends.peer.regions.get(item.op.remote_region.index());
                let start = remote
                    .filter(|r| r.memory == 0 && is_live(link, &item.op, r))
                    .and_then(|r| r.at(item.op.remote_offset, item.op.len));
                let Some(remote) = start else { break };
                bytes += u64::from(item.op.len);
                slices.push(Slice { local: item.local, remote, len: item.op.len as usize });
            }
            let progress = context.tools.vectors.copy(&link.process, self.direction, &slices);
            context.ledger.completed(self.token, self.first + at, progress.done as u32);
            at += progress.done as u32;
            match progress.error {
                None if at < end => {
                    context.ledger.failed(self.token, self.first + at, 1, OpError::BadKey);
                    at += 1;
                }
                None => {}
                Some(libc::ESRCH) => gone = true,
                Some(errno) => {
                    let error = if errno == libc::EPERM {
                        denied = Some(errno);
                        OpError::Denied(errno)
                    } else {
                        OpError::Fault(errno)
                    };
                    context.ledger.failed(self.token, self.first + at, 1, error);
                    at += 1;
                }
            }
        }
        gate::leave(busy, turn);
        if let Some(errno) = denied {
            ends.neighbour.access = Access::Denied(errno);
        }
        if gone {
            // What is left of this chunk ends here; the others end with the neighbour.
            context.ledger.failed(self.token, self.first + at, end - at, OpError::Unreachable);
        }
        ends.neighbour.pace[self.direction as usize].alone(bytes, started.elapsed());
        self.chunks[chunk as usize] = Chunk::Resolved;
        self.open -= 1;
        (!gone).then_some(bytes)
    }

    /// Empties one slot of the ring into local memory (read). Returns the bytes.
    fn empty(&mut self, at: JobAt, context: &mut Context<'_>) -> u64 {
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
        context.tools.kernel.fence();
        control.word(at.tail()).store(tail.wrapping_add(1), Ordering::Release);
        if cursor.is_at_end() {
            self.resolve_by_status(chunk, at, context);
        } else {
            self.cursor = Some(cursor);
        }
        emptied.max(1) as u64
    }

    /// Fills one slot of the ring from local memory (write). Returns the bytes.
    fn fill(&mut self, at: JobAt, context: &mut Context<'_>) -> u64 {
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
            let mut ahead = cursor;
            let hint = match ahead.take(1, len_of) {
                Some(next) => self.items[next.op as usize].local.wrapping_add(next.offset as usize),
                None => from,
            };
            if let Some(into) = control.memory.at((at.slot(head) + filled) as u64, piece.len as usize) {
                // SAFETY: as in `empty`, with the roles exchanged; the slot is ours until `head` moves.
                unsafe { context.tools.kernel.stream(into, from, piece.len as usize, hint) }
            }
            filled += piece.len as usize;
        }
        context.tools.kernel.fence();
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
    fn reap(&mut self, at: JobAt, context: &mut Context<'_>) {
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
    fn resolve_by_status(&mut self, chunk: u32, at: JobAt, context: &mut Context<'_>) {
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

    /// The job was given up: it ends when the helper is outside, or when the grace is over.
    fn withdraw(&mut self, at: JobAt, context: &mut Context<'_>) {
        if self.helper == Helper::Invited {
            self.recall(at, context.control);
        }
        self.look_after_recall(at, context.control);
        // A frozen helper in the middle of a slot is the one case where bytes may land later: in its own memory,
        // when it thaws. The region at this end is not involved.
        let over = self.give_up_at.is_some_and(|t| Instant::now() >= t);
        if self.helper == Helper::Outside || over {
            self.reap(at, context);
            self.fail_open(context.ledger, OpError::Flushed);
        }
    }

    fn fail_open(&mut self, ledger: &mut Ledger, error: OpError) {
        for chunk in 0..self.chunks.len() {
            if self.chunks[chunk] == Chunk::Open {
                let (first, end) = self.bounds(chunk as u32);
                ledger.failed(self.token, self.first + first, end - first, error);
                self.chunks[chunk] = Chunk::Resolved;
            }
        }
        self.open = 0;
    }

    /// Whether it uses a local region.
    pub(super) fn uses(&self, region: RegionId) -> bool {
        self.items.iter().any(|item| item.op.local_region == region)
    }
}

/// How fast jobs go with a neighbour's help and without, in one direction: whether its core gains anything depends on
/// the pages, on the CPU, and on whether it has a core to itself just now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Bytes per nanosecond, smoothed; zero: not known.
    together: f64,
    alone: f64,
    since_asked: u32,
}

impl Pace {
    fn is_worth_asking(&mut self) -> bool {
        self.since_asked += 1;
        let worth = self.together == 0.0 || self.together >= self.alone || self.since_asked >= ASK_AGAIN;
        if worth {
            self.since_asked = 0;
        }
        worth
    }

    fn together(&mut self, bytes: u64, took: Duration) {
        smooth(&mut self.together, bytes, took, 0.5);
    }

    fn alone(&mut self, bytes: u64, took: Duration) {
        smooth(&mut self.alone, bytes, took, 0.05);
    }
}

fn smooth(rate: &mut f64, bytes: u64, took: Duration, weight: f64) {
    let sample = bytes as f64 / took.as_nanos().max(1) as f64;
    *rate = if *rate == 0.0 { sample } else { *rate + (sample - *rate) * weight };
}

/// From how many private bytes on a neighbour is offered a job.
pub(super) fn offers_from(config: &Config, neighbour: &Neighbour) -> u64 {
    match neighbour.access {
        Access::Denied(_) => 0,
        _ if config.cooperate => config.cooperate_bytes_min.max(1),
        _ => u64::MAX,
    }
}
