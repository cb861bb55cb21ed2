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

use kvrail_core::transport::{Batch, Direction, OpError};

use super::Config;
use super::chunk::cut;
use super::control::Control;
use super::execute::{Ends, Tools};
use super::gate;
use super::job::{Chunk, Helper, Item, Offer};
use super::layout::{JOB_BYTES_MAX, JOB_OPS_MAX, JOBS_MAX, JobAt, OP_BYTES, STATUS_GOOD};
use super::ledger::Ledger;
use super::neighbour::{Access, Neighbour};

/// For so long a job that was given up waits for a helper that is in the middle of a copy.
const GRACE: Duration = Duration::from_secs(1);

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
    /// Who was inside when the slot's last job ended, and in which visit.
    leaving: [Option<(u32, u32)>; JOBS_MAX],
    seq: u32,
    pub(super) live: usize,
}

impl Offers {
    pub(super) fn new() -> Self {
        Self { slots: std::array::from_fn(|_| None), leaving: [None; JOBS_MAX], seq: 0, live: 0 }
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

    /// A slot can be used again when its last helper is not in the middle of something there.
    fn is_free(&mut self, control: &Control, job: usize) -> bool {
        if let Some((helper, visit)) = self.leaving[job]
            && gate::inside(control.helping(helper)) != Some(visit)
        {
            self.leaving[job] = None;
        }
        self.slots[job].is_none() && self.leaving[job].is_none()
    }

    /// Makes a job of the leading private ops of a batch; says how many it took. Zero: no slot is free.
    pub(super) fn open(
        &mut self,
        control: &Control,
        ends: &mut Ends<'_>,
        batch: &Batch<'_>,
        from: usize,
    ) -> usize {
        let Some(job) = (0..JOBS_MAX).find(|job| self.is_free(control, *job)) else { return 0 };
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
        // A chunk that is not at its end may still have bytes on their way past the cache.
        context.tools.kernel.fence();
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
        if let Some(offer) = self.slots[job].take_if(|offer| offer.open == 0) {
            gate::revoke(control.word(JobAt::new(job).active()), 0);
            self.leaving[job] =
                gate::inside(control.helping(offer.neighbour)).map(|visit| (offer.neighbour, visit));
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

/// From how many private bytes on a neighbour is offered a job.
pub(super) fn offers_from(config: &Config, neighbour: &Neighbour) -> u64 {
    match neighbour.access {
        Access::Denied(_) => 0,
        _ if config.cooperate => config.cooperate_bytes_min.max(1),
        _ => u64::MAX,
    }
}
