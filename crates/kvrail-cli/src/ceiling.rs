//! The ceiling: what a plain memory copy of the same blocks reaches here, in turns with the transfers.
//!
//! One end of the copy is the case's own region, the other is memory of this process with the same kind of pages and
//! the same disorder of blocks. Each posting thread of the case is one copying thread here.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};

use crate::case::{Case, Geometry, Layout, Memory, Op, sample};
use crate::failure::Failure;
use crate::pattern::Bytes;
use crate::pool::Pool;

/// The other end of the plain copies.
pub(crate) struct Ceiling {
    lanes: Vec<Lane>,
    op: Op,
}

/// What one thread copies.
struct Lane {
    memory: MmapMut,
    copies: Vec<Copy>,
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    pool: u64,
    here: usize,
    len: usize,
}

impl Ceiling {
    /// Bytes that [`Ceiling::new`] will allocate for a case.
    pub(crate) fn bytes(case: &Case) -> u64 {
        let blocks = case.blocks() / u64::from(case.threads);
        u64::from(case.threads) * Self::places(case, blocks) * case.block_bytes
    }

    fn places(case: &Case, blocks: u64) -> u64 {
        match case.layout {
            Layout::Contiguous => blocks,
            Layout::Scattered => blocks + blocks / 4 + 1,
        }
    }

    /// Allocates and touches the memory.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub(crate) fn new(case: &Case, geometry: &Geometry) -> Result<Self, Failure> {
        let lanes =
            (0..case.threads).map(|thread| Lane::new(case, geometry, thread)).collect::<Result<_, _>>()?;
        Ok(Self { lanes, op: case.op })
    }

    /// Copies every block once, on all threads at once; the wall time of it.
    pub(crate) fn lap(&mut self, pool: &Pool) -> Duration {
        let op = self.op;
        if let [lane] = self.lanes.as_mut_slice() {
            let start = Instant::now();
            lane.run(pool, op);
            return start.elapsed();
        }
        let barrier = Barrier::new(self.lanes.len());
        let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
            let threads: Vec<_> = self
                .lanes
                .iter_mut()
                .map(|lane| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        let start = Instant::now();
                        lane.run(pool, op);
                        (start, Instant::now())
                    })
                })
                .collect();
            threads.into_iter().filter_map(|t| t.join().ok()).collect()
        });
        let first = spans.iter().map(|s| s.0).min();
        let last = spans.iter().map(|s| s.1).max();
        first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

impl Lane {
    fn new(case: &Case, geometry: &Geometry, thread: u32) -> Result<Self, Failure> {
        let first = Geometry::slot(case, thread, 0).start;
        let last = Geometry::slot(case, thread, case.slots - 1).end;
        let pool = &geometry.initiator[first..last];
        let blocks = pool.len() as u64;
        let places = Self::places(case, blocks, thread);
        let bytes = Ceiling::places(case, blocks) * case.block_bytes;
        let refused = |e: std::io::Error| {
            Failure::environment(format!("cannot allocate {bytes} bytes for the plain copy: {e}"))
                .hint("use a smaller --pool, --block or --batch")
        };
        let mut memory = MmapMut::map_anon(bytes as usize).map_err(refused)?;
        if case.memory == Memory::Huge {
            // Advice only: where the kernel declines, the copy runs on the pages that there are.
            let _ = memory.advise(Advice::HugePage);
        }
        memory.fill(1);
        let mut copies: Vec<Copy> = Vec::with_capacity(pool.len());
        for (&pool, place) in pool.iter().zip(places) {
            let next =
                Copy { pool, here: (place * case.block_bytes) as usize, len: case.block_bytes as usize };
            match copies.last_mut() {
                // A batch of adjacent blocks is one copy, as it is one op for a transport.
                Some(last)
                    if case.layout == Layout::Contiguous
                        && (last.len as u64) < case.transfer_bytes()
                        && last.pool + last.len as u64 == next.pool
                        && last.here + last.len == next.here =>
                {
                    last.len += next.len;
                }
                _ => copies.push(next),
            }
        }
        Ok(Self { memory, copies })
    }

    fn places(case: &Case, blocks: u64, thread: u32) -> Vec<u64> {
        match case.layout {
            Layout::Contiguous => (0..blocks).collect(),
            Layout::Scattered => sample(Ceiling::places(case, blocks), blocks, case.seed ^ u64::from(thread)),
        }
    }

    fn run(&mut self, pool: &Pool, op: Op) {
        for copy in &self.copies {
            let here = &mut self.memory[copy.here..copy.here + copy.len];
            match op {
                Op::Write => pool.read(copy.pool, here),
                Op::Read => pool.write(copy.pool, here),
            }
        }
    }
}
