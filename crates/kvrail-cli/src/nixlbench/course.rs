//! The loop that is measured: a window of transfers in flight, as nixlbench keeps it.
//!
//! A thread has as many slots as transfers may be in flight. Each slot is prepared once and posted again and again, or prepared anew for
//! every transfer (`--recreate_xfer`), with its blocks registered once more (`--reregister_mem`). A transfer of several routes
//! is posted on all of them and has ended when all have. Preparing is part of the timed whole, as there.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvrail_engines::{Blocks, Direction, Engine, EngineError, PeerId, Posting, Registration};

use crate::endpoint::failure;
use crate::failure::Failure;
use crate::units;

use super::figures::Samples;
use super::workload::Turns;

/// Polls in vain between two looks at the clock and at the group: often enough that a dead peer ends a run within a blink, rarely
/// enough to cost nothing.
const POLLS: u32 = 4096;

/// The blocks of one slot on one route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    pub(crate) peer: PeerId,
    /// Offsets here.
    pub(crate) local: Vec<u64>,
    /// Offsets at the peer.
    pub(crate) remote: Vec<u64>,
}

/// What one thread moves: for each slot the batches of its routes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Work {
    pub(crate) slots: Vec<Vec<Batch>>,
}

/// How all threads move it.
pub(crate) struct Course<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) direction: Direction,
    pub(crate) block_bytes: u64,
    pub(crate) notification: Option<&'a [u8]>,
    pub(crate) recreate: bool,
    pub(crate) reregister: bool,
    /// Of one transfer.
    pub(crate) timeout: Duration,
    /// Whether to go on: the group is well and nobody pressed Ctrl-C.
    pub(crate) watch: &'a (dyn Fn() -> Result<(), Failure> + Sync),
}

impl Course<'_> {
    /// Runs `count` transfers in every thread; their steps, and the time from when all threads began until the last ended.
    ///
    /// # Errors
    /// The first failure of any thread; the others then end as well.
    pub(crate) fn run(&self, works: &[Work], count: u32) -> Result<(Samples, Duration), Failure> {
        let stop = AtomicBool::new(false);
        if let [work] = works {
            let began = Instant::now();
            let samples = self.thread(work, 0, count, &stop)?;
            return Ok((samples, began.elapsed()));
        }
        let start = Barrier::new(works.len());
        let ends = std::thread::scope(|scope| {
            let threads: Vec<_> = works
                .iter()
                .zip(0..)
                .map(|(work, lane)| {
                    let (stop, start) = (&stop, &start);
                    scope.spawn(move || {
                        start.wait();
                        let began = Instant::now();
                        let samples = self.thread(work, lane, count, stop);
                        if samples.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        samples.map(|samples| (samples, began, Instant::now()))
                    })
                })
                .collect();
            let panicked = || Failure::environment("a posting thread panicked");
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())))
                .collect::<Vec<_>>()
        });
        let mut all = Samples::new();
        let mut span: Option<(Instant, Instant)> = None;
        let mut failed: Option<Failure> = None;
        for end in ends {
            match end {
                Ok((samples, began, ended)) => {
                    all.add(&samples);
                    span = Some(span.map_or((began, ended), |(b, e)| (b.min(began), e.max(ended))));
                }
                // Who only stopped because another failed has nothing to say.
                Err(told) if told.what == STOPPED => {}
                Err(first) => failed = failed.or(Some(first)),
            }
        }
        match (failed, span) {
            (Some(failure), _) => Err(failure),
            (None, Some((began, ended))) => Ok((all, ended - began)),
            (None, None) => Err(Failure::environment("no posting thread ran")),
        }
    }

    fn thread(&self, work: &Work, lane: u32, count: u32, stop: &AtomicBool) -> Result<Samples, Failure> {
        let mut samples = Samples::new();
        let mut slots: Vec<_> = work.slots.iter().map(|batches| Slot::new(batches)).collect();
        let (mut issued, mut completed) = (0, 0);
        for slot in &mut slots {
            if issued < count {
                self.prepare(slot, lane, &mut samples)?;
                self.post(slot, &mut samples)?;
                issued += 1;
            }
        }
        let mut vain = 0;
        while completed < count {
            vain += 1;
            for slot in &mut slots {
                let Some((began, posted)) = slot.posted else { continue };
                if !slot.poll()? {
                    continue;
                }
                let ended = Instant::now();
                samples.transfer.record(ended - posted);
                samples.latency.record(ended - began);
                slot.posted = None;
                completed += 1;
                vain = 0;
                if issued < count {
                    if self.recreate {
                        slot.recycle();
                        self.prepare(slot, lane, &mut samples)?;
                    }
                    self.post(slot, &mut samples)?;
                    issued += 1;
                }
            }
            if vain < POLLS {
                std::hint::spin_loop();
            } else {
                vain = 0;
                self.look(&slots, stop)?;
            }
        }
        Ok(samples)
    }

    /// Makes the slot's transfer, if it has none.
    fn prepare(&self, slot: &mut Slot<'_>, lane: u32, samples: &mut Samples) -> Result<(), Failure> {
        let began = Instant::now();
        for batch in slot.batches {
            if self.reregister {
                let again = self.engine.register_again(&batch.local, self.block_bytes).map_err(failure)?;
                slot.registrations.push(again);
            }
            let blocks = Blocks {
                direction: self.direction,
                peer: batch.peer,
                lane,
                local: &batch.local,
                remote: &batch.remote,
                block_bytes: self.block_bytes,
                notification: self.notification,
                timeout: self.timeout,
            };
            slot.postings.push(self.engine.prepare(&blocks).map_err(failure)?);
        }
        samples.prepare.record(began.elapsed());
        Ok(())
    }

    fn post(&self, slot: &mut Slot<'_>, samples: &mut Samples) -> Result<(), Failure> {
        let began = Instant::now();
        for posting in &mut slot.postings {
            posting.post().map_err(failure)?;
        }
        let posted = Instant::now();
        slot.ended = 0;
        slot.posted = Some((began, posted));
        samples.post.record(posted - began);
        Ok(())
    }

    /// Nothing has ended for a while.
    #[cold]
    fn look(&self, slots: &[Slot<'_>], stop: &AtomicBool) -> Result<(), Failure> {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::peer(STOPPED));
        }
        (self.watch)()?;
        let oldest = slots.iter().filter_map(|slot| slot.posted).map(|(began, _)| began).min();
        if oldest.is_some_and(|began| began.elapsed() > self.timeout) {
            return Err(Failure::peer(format!(
                "a transfer has not ended within {}",
                units::span(self.timeout)
            ))
            .hint("raise --timeout if the sizes are large for these hosts"));
        }
        // More participants than cores: let the others on.
        std::thread::yield_now();
        Ok(())
    }
}

/// What a thread says that ends because another one failed.
const STOPPED: &str = "another posting thread failed";

/// One of the transfers in flight.
struct Slot<'a> {
    batches: &'a [Batch],
    /// One for each batch, when prepared. Before the registrations: what is in flight ends first.
    postings: Vec<Box<dyn Posting>>,
    registrations: Vec<Box<dyn Registration>>,
    /// When its posting began and returned; none while nothing is in flight.
    posted: Option<(Instant, Instant)>,
    /// Postings that have ended since, from the front.
    ended: usize,
}

impl<'a> Slot<'a> {
    fn new(batches: &'a [Batch]) -> Self {
        Self { batches, postings: Vec::new(), registrations: Vec::new(), posted: None, ended: 0 }
    }

    /// Whether all postings have ended. They are asked in order; asking one makes progress for all of an engine.
    #[inline]
    fn poll(&mut self) -> Result<bool, Failure> {
        while let Some(posting) = self.postings.get_mut(self.ended) {
            match posting.poll() {
                None => return Ok(false),
                Some(Ok(())) => self.ended += 1,
                Some(Err(error)) => return Err(failed(error)),
            }
        }
        Ok(true)
    }

    fn recycle(&mut self) {
        self.postings.clear();
        self.registrations.clear();
    }
}

#[cold]
fn failed(error: EngineError) -> Failure {
    failure(error)
}

/// The slots of `turns`: each thread and slot gets the batches that `batches` names.
pub(crate) fn works(threads: u32, turns: Turns, batches: impl Fn(u32, u64) -> Vec<Batch>) -> Vec<Work> {
    (0..threads)
        .map(|thread| Work { slots: (0..u64::from(turns.depth)).map(|slot| batches(thread, slot)).collect() })
        .collect()
}
