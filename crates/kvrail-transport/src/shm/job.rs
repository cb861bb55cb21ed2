//! One job at its initiator: who does which chunk, and when it is certain how each has ended.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvrail_core::id::{PeerId, RegionId, Token};
use kvrail_core::transport::{Direction, OpError};

use super::chunk::Cursor;
use super::control::Control;
use super::execute::{Ends, is_live};
use super::gate;
use super::layout::JobAt;
use super::ledger::Ledger;
use super::neighbour::Access;
use super::offer::{Advance, Context};
use super::process::{Slice, is_denial};

/// What one call may move, bytes.
const STEP_BYTES: u64 = 4 << 20;
/// For so long a helper that has joined may let the ring rest before the initiator goes on alone beside it.
const PATIENCE: Duration = Duration::from_micros(30);
/// When nothing else is left to do, it is recalled after so long. Doing its chunks over costs about as much.
const RECALL_AFTER: Duration = Duration::from_micros(150);

/// One op of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) local: *mut u8,
    pub(super) op: kvrail_core::transport::Op,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chunk {
    /// Nobody has it, or the helper has.
    Open,
    Resolved,
}

/// Where the helper stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Helper {
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
    pub(super) seq: u32,
    pub(super) token: Token,
    pub(super) first: u32,
    pub(super) direction: Direction,
    pub(super) items: Vec<Item>,
    pub(super) firsts: Vec<u32>,
    pub(super) chunks: Vec<Chunk>,
    pub(super) open: usize,
    /// First chunk that the initiator has not claimed, in a write or alone.
    pub(super) next: u32,
    pub(super) cursor: Option<Cursor>,
    /// Chunks that went into the ring and are not known to have come out.
    pub(super) streamed: Vec<u32>,
    pub(super) helper: Helper,
    pub(super) announced: bool,
    pub(super) bytes: u64,
    pub(super) opened: Instant,
    pub(super) progress: Instant,
    pub(super) give_up_at: Option<Instant>,
}

// SAFETY: the pointers are addresses of registered regions, which belong to no thread.
unsafe impl Send for Offer {}

impl Offer {
    pub(super) fn unclaimed(&self, control: &Control, at: JobAt) -> bool {
        let next = match self.direction {
            Direction::Read => control.word(at.next()).load(Ordering::Relaxed),
            Direction::Write => self.next,
        };
        (next as usize) < self.chunks.len()
    }

    pub(super) fn advance(&mut self, at: JobAt, ends: &mut Ends<'_>, context: &mut Context<'_>) -> Advance {
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
                        self.look_after_recall(context.control);
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
                        self.look_after_recall(context.control);
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
    pub(super) fn recall(&mut self, at: JobAt, control: &Control) {
        gate::revoke(control.word(at.active()), 0);
        self.helper = match (self.direction, gate::inside(control.helping(self.neighbour))) {
            // It may be inside still, but writes only to the ring, which is out of use until it has left.
            (Direction::Read, _) | (_, None) => Helper::Outside,
            (Direction::Write, Some(visit)) => Helper::Leaving(visit),
        };
        self.restart();
    }

    pub(super) fn look_after_recall(&mut self, control: &Control) {
        if let Helper::Leaving(visit) = self.helper
            && gate::inside(control.helping(self.neighbour)) != Some(visit)
        {
            self.helper = Helper::Outside;
            self.restart();
        }
    }

    /// From here on the initiator is alone: every open chunk is its own, from the first.
    pub(super) fn restart(&mut self) {
        if self.helper == Helper::Outside {
            self.next = 0;
            self.cursor = None;
        }
    }

    /// The next chunk that is the initiator's to copy whole.
    pub(super) fn claim(&mut self, at: JobAt, control: &Control) -> Option<u32> {
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

    pub(super) fn bounds(&self, chunk: u32) -> (u32, u32) {
        (self.firsts[chunk as usize], self.firsts[chunk as usize + 1])
    }

    /// Copies a chunk through the kernel. `None`: the process is gone.
    pub(super) fn copy(&mut self, chunk: u32, ends: &mut Ends<'_>, context: &mut Context<'_>) -> Option<u64> {
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
                    let error = if is_denial(errno) {
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

    /// The job was given up: it ends when the helper is outside, or when the grace is over.
    pub(super) fn withdraw(&mut self, at: JobAt, context: &mut Context<'_>) {
        if self.helper == Helper::Invited {
            self.recall(at, context.control);
        }
        self.look_after_recall(context.control);
        // A frozen helper in the middle of a slot is the one case where bytes may land later: in its own memory,
        // when it thaws. The region at this end is not involved.
        let over = self.give_up_at.is_some_and(|t| Instant::now() >= t);
        if self.helper == Helper::Outside || over {
            self.reap(at, context);
            self.fail_open(context.ledger, OpError::Flushed);
        }
    }

    pub(super) fn fail_open(&mut self, ledger: &mut Ledger, error: OpError) {
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
