//! The side that posts: bursts on every rail in turn, completions in between.

use std::ops::Range;
use std::time::Instant;

use kvrail_sys::libfabric::abi::{FI_COMPLETION, FI_DELIVERY_COMPLETE, FI_REMOTE_CQ_DATA};

use super::rail::{Block, Rail};
use super::{Evidence, Fabric};
use crate::error::LimitError;
use crate::memory::Pool;
use crate::pair::{BatchLoop, DEADLINE};
use crate::workload::{Case, Op, Slots};

/// Operations posted on a rail before the next one has its turn: enough for one doorbell to pay, few enough for all rails
/// to start at once.
const BURST: usize = 16;
const IDLE_LOOKS_PER_CLOCK: u32 = 1 << 14;

/// The initiator of a case on the fabric.
#[derive(Debug)]
pub(crate) struct Initiator<'a> {
    fabric: Fabric<'a>,
    op: Op,
    flags: u64,
    answered: bool,
    /// Where each block lies here and there: laid out once, before the timing.
    blocks: Vec<Block>,
    /// Each rail's blocks.
    shares: Vec<Range<usize>>,
}

impl<'a> Initiator<'a> {
    pub(crate) fn new(fabric: Fabric<'a>, case: &Case, slots: &Slots, pool: &'a Pool) -> Self {
        let (own, others) = match case.op {
            Op::Read => (&slots.destination, &slots.source),
            Op::Write => (&slots.source, &slots.destination),
        };
        let block = |(&own, &other): (&usize, &usize)| Block {
            local: pool.slot(own),
            remote_offset: (other * case.block_bytes) as u64,
            bytes: case.block_bytes,
        };
        let (flags, answered) = match (case.op, fabric.evidence) {
            (Op::Read, _) => (FI_COMPLETION, false),
            (Op::Write, Evidence::Delivered) => (FI_COMPLETION | FI_DELIVERY_COMPLETE, false),
            (Op::Write, Evidence::Counted) => (FI_COMPLETION | FI_REMOTE_CQ_DATA, true),
        };
        let shares = shares(case.batch, fabric.rails.len());
        let blocks = own.iter().zip(others).map(block).collect();
        Self { fabric, op: case.op, flags, answered, blocks, shares }
    }
}

impl BatchLoop for Initiator<'_> {
    fn batch(&mut self) -> Result<(), LimitError> {
        let Self { fabric, op, flags, answered, blocks, shares } = self;
        let mut left = shares.clone();
        let mut clock = Clock::new();
        let (mut done, mut answers) = (0, 0);
        while done < blocks.len() || (*answered && answers == 0) {
            let before = done + answers;
            for (rail, left) in fabric.rails.iter_mut().zip(&mut left) {
                if left.start < left.end && rail.room() > 0 {
                    done += burst(rail, left, blocks, *op, *flags, &mut answers)?;
                }
                let found = rail.poll()?;
                done += found.operations;
                answers += found.messages;
            }
            clock.look(done + answers > before, done, blocks.len())?;
        }
        Ok(())
    }
}

/// Posts the next blocks of a rail's share under one doorbell; operations that completed meanwhile.
fn burst(
    rail: &mut Rail<'_>,
    left: &mut Range<usize>,
    blocks: &[Block],
    op: Op,
    flags: u64,
    answers: &mut usize,
) -> Result<usize, LimitError> {
    let mut done = 0;
    let count = left.len().min(rail.room()).min(BURST);
    let mut clock = Clock::new();
    let mut open = false;
    let mut posted = 0;
    let mut closing = false;
    while posted < count {
        let more = posted + 1 < count && !closing;
        if rail.post(op, blocks[left.start], flags, more)? {
            left.start += 1;
            posted += 1;
            open = more;
            if closing {
                break;
            }
        } else if open {
            // What was posted waits for a doorbell: the next one that is taken must ring it.
            closing = true;
            let found = rail.poll()?;
            done += found.operations;
            *answers += found.messages;
            clock.look(!found.is_nothing(), posted, count)?;
        } else {
            break;
        }
    }
    Ok(done)
}

/// Contiguous shares of `batch` blocks that differ by one block at most.
fn shares(batch: usize, rails: usize) -> Vec<Range<usize>> {
    (0..rails).map(|rail| rail * batch / rails..(rail + 1) * batch / rails).collect()
}

/// Ends a wait in which nothing happens, without asking for the time on every round.
#[derive(Debug)]
pub(super) struct Clock {
    idle_looks: u32,
    since: Option<Instant>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { idle_looks: 0, since: None }
    }

    pub(super) fn look(&mut self, progress: bool, done: usize, of: usize) -> Result<(), LimitError> {
        if progress {
            *self = Self::new();
            return Ok(());
        }
        self.idle_looks += 1;
        if self.idle_looks.is_multiple_of(IDLE_LOOKS_PER_CLOCK)
            && self.since.get_or_insert_with(Instant::now).elapsed() >= DEADLINE
        {
            return Err(LimitError::Stalled { doing: "moving blocks over the fabric", done, of });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_the_batch_once_and_are_even() {
        for (batch, rails) in [(12_800, 32), (10, 4), (3, 8), (1, 1)] {
            let shares = shares(batch, rails);
            let mut next = 0;
            for share in &shares {
                assert_eq!(share.start, next);
                next = share.end;
                assert!(share.len().abs_diff(batch / rails) <= 1, "{batch} over {rails}: {shares:?}");
            }
            assert_eq!(next, batch);
        }
    }
}
