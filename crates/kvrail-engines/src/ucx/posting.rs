//! A transfer: its blocks, posted a window at a time.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail_sys::ucp::{Status, Tally};

use super::lane::{Lane, Open, gone, lock};
use super::used::Said;
use super::words;
use crate::engine::{Direction, Posting};
use crate::error::{EngineError, Kind};

/// How long what is in flight may take to end by itself once a posting has failed or was given up; then the endpoint is closed by force.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// How long until the lane is ended instead: enough for an endpoint to close, and short enough for whoever waits.
const END_MAX: Duration = Duration::from_secs(2);
/// Polls between two looks at the clock: a look costs a third of a poll that finds nothing.
const POLLS_PER_LOOK: u32 = 32;
/// Polls in a row that find nothing before a waiter lets other threads run: the peer's may need the core.
const IDLE_POLLS_MAX: u32 = 256;

/// A prepared transfer.
pub(super) struct Transfer {
    pub(super) lane: Arc<Mutex<Lane>>,
    pub(super) peer: usize,
    pub(super) direction: Direction,
    /// Addresses here and there, in the order of posting.
    pub(super) blocks: Box<[(u64, u64)]>,
    pub(super) block_bytes: usize,
    pub(super) notification: Option<Box<[u8]>>,
    pub(super) window: u64,
    pub(super) timeout: Duration,
    pub(super) tally: Tally,
    /// What the local blocks are in: let go of when nothing is in flight, or never.
    pub(super) memory: ManuallyDrop<Memory>,
    pub(super) said: Arc<Said>,
    /// Whether UCX has been asked how it moves such blocks: once is enough.
    pub(super) is_described: Cell<bool>,
    pub(super) flight: Option<Flight>,
}

/// A posting in flight.
pub(super) struct Flight {
    phase: Phase,
    /// The next block.
    next: usize,
    deadline: Instant,
    polls: u32,
    /// Polls since something moved.
    idle_polls: u32,
    /// Why it will fail, and since when that is known.
    trouble: Option<(Trouble, Instant)>,
    is_closed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Blocks are posted.
    Moving,
    /// All blocks are posted, and behind writes a flush.
    Ending,
    /// The notification is on its way.
    Telling,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Failed(Status),
    Late,
    Cancelled,
}

impl Transfer {
    /// Posts what may be posted now, and goes on to the next phase when this one has ended; whether all have.
    fn advance(&self, open: &Open, flight: &mut Flight) -> Result<bool, Status> {
        let link = open.links.get(self.peer).ok_or(Status::NOT_CONNECTED)?;
        loop {
            match flight.phase {
                Phase::Moving => {
                    while self.tally.pending() < self.window {
                        let Some(&(local, remote)) = self.blocks.get(flight.next) else {
                            if self.direction == Direction::Write {
                                link.endpoint.flush(&self.tally)?;
                            }
                            flight.phase = Phase::Ending;
                            break;
                        };
                        let at = std::ptr::with_exposed_provenance_mut(local as usize);
                        let (ep, key, len) = (&link.endpoint, &link.key, self.block_bytes);
                        let posted = match self.direction {
                            // SAFETY: `prepare` has checked both ranges against their memories; this side's is kept until nothing
                            // is in flight, and a benchmark writes it between postings only.
                            Direction::Write => unsafe { ep.put(&self.tally, at, len, remote, key) },
                            // SAFETY: the same.
                            Direction::Read => unsafe { ep.get(&self.tally, at, len, remote, key) },
                        }?;
                        flight.next += 1;
                        if posted && !self.is_described.replace(true) {
                            self.said.note(self.direction, self.block_bytes, self.tally.describe());
                        }
                    }
                    if flight.phase == Phase::Moving {
                        return Ok(false);
                    }
                }
                Phase::Ending if self.tally.pending() == 0 && self.tally.failure().is_none() => {
                    let Some(notification) = &self.notification else { return Ok(true) };
                    // SAFETY: the bytes are this transfer's, which does not change them; whoever drops it while they are in flight
                    // leaves them (see `drop`).
                    unsafe { link.notify(&self.tally, &raw const **notification) }?;
                    flight.phase = Phase::Telling;
                }
                Phase::Telling if self.tally.pending() == 0 => return Ok(true),
                Phase::Ending | Phase::Telling => return Ok(false),
            }
        }
    }

    /// Looks at a posting in flight: how it ended, if it has.
    fn look(&self, lane: &mut Lane, flight: &mut Flight) -> Option<Result<(), EngineError>> {
        let Some(open) = lane.alive() else { return Some(Err(gone())) };
        let moved = open.worker.progress();
        flight.idle_polls = if moved { 0 } else { flight.idle_polls.saturating_add(1) };
        if flight.trouble.is_none() {
            let failed = match self.advance(open, flight) {
                Ok(true) if self.tally.failure().is_none() => return Some(Ok(())),
                Ok(_) => self.tally.failure(),
                Err(status) => Some(status),
            };
            flight.polls = flight.polls.wrapping_add(1);
            if let Some(status) = failed {
                flight.trouble = Some((Trouble::Failed(status), Instant::now()));
            } else if !moved && flight.polls.is_multiple_of(POLLS_PER_LOOK) {
                let now = Instant::now();
                if now >= flight.deadline {
                    flight.trouble = Some((Trouble::Late, now));
                }
            }
        }
        let (trouble, since) = flight.trouble?;
        if self.tally.pending() == 0 {
            return Some(Err(self.error(open, flight, trouble)));
        }
        let elapsed = since.elapsed();
        if elapsed >= DRAIN_MAX && !flight.is_closed {
            flight.is_closed = true;
            if let Some(link) = open.links.get(self.peer)
                && let Err(error) = link.endpoint.close(DRAIN_MAX)
            {
                log::debug!("ucx: {error}");
            }
        } else if elapsed >= END_MAX {
            let error = self.error(open, flight, trouble);
            lane.end();
            return Some(Err(error));
        }
        None
    }

    fn error(&self, open: &Open, flight: &Flight, trouble: Trouble) -> EngineError {
        let way = match self.direction {
            Direction::Write => "write",
            Direction::Read => "read",
        };
        let what = format!(
            "a {way} of {} blocks of {} bytes, of which {} were posted",
            self.blocks.len(),
            self.block_bytes,
            flight.next
        );
        // What UCX says of the endpoint is nearer to the cause than what became of one operation.
        let cause = open.links.get(self.peer).and_then(|link| link.endpoint.failure());
        match trouble {
            Trouble::Failed(status) => words::operation(&what, cause.unwrap_or(status)),
            Trouble::Late => match cause {
                Some(status) => words::operation(&what, status),
                None => EngineError::new(
                    Kind::Peer,
                    format!("ucx: {what}, did not end within {:?}", self.timeout),
                )
                .hint(
                    "see whether the peer's process runs and is driven; a stopped one keeps its connections",
                ),
            },
            Trouble::Cancelled => EngineError::new(Kind::Usage, format!("ucx: {what}, was given up")),
        }
    }
}

impl Posting for Transfer {
    fn post(&mut self) -> Result<(), EngineError> {
        if self.flight.is_some() {
            return Err(EngineError::new(Kind::Usage, "ucx: posted again before the last posting has ended"));
        }
        let mut flight = Flight {
            phase: Phase::Moving,
            next: 0,
            deadline: Instant::now() + self.timeout,
            polls: 0,
            idle_polls: 0,
            trouble: None,
            is_closed: false,
        };
        let mut lane = lock(&self.lane);
        let open = lane.alive().ok_or_else(gone)?;
        self.tally.begin();
        if let Err(status) = self.advance(open, &mut flight) {
            let trouble = Trouble::Failed(status);
            if self.tally.pending() == 0 {
                return Err(self.error(open, &flight, trouble));
            }
            flight.trouble = Some((trouble, Instant::now()));
        }
        drop(lane);
        self.flight = Some(flight);
        Ok(())
    }

    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        let Some(mut flight) = self.flight.take() else {
            return Some(Err(EngineError::new(Kind::Usage, "ucx: looked at before it was posted")));
        };
        let ended = self.look(&mut lock(&self.lane), &mut flight);
        if ended.is_none() {
            self.flight = Some(flight);
        }
        ended
    }

    fn wait(&mut self, within: Duration) -> Option<Result<(), EngineError>> {
        let deadline = Instant::now() + within;
        let mut polls = 0_u32;
        loop {
            if let Some(ended) = self.poll() {
                return Some(ended);
            }
            polls = polls.wrapping_add(1);
            if polls.is_multiple_of(POLLS_PER_LOOK) && Instant::now() >= deadline {
                return None;
            }
            if self.flight.as_ref().is_some_and(|flight| flight.idle_polls >= IDLE_POLLS_MAX) {
                std::thread::yield_now();
            }
        }
    }

    fn cancel(&mut self) {
        if let Some(flight) = &mut self.flight
            && flight.trouble.is_none()
        {
            flight.trouble = Some((Trouble::Cancelled, Instant::now()));
        }
    }
}

impl Drop for Transfer {
    /// Ends what is in flight before the memory is let go of (KR-7).
    fn drop(&mut self) {
        self.cancel();
        let deadline = Instant::now() + END_MAX * 2;
        while self.flight.is_some() && self.poll().is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        if self.flight.is_none() {
            // SAFETY: not used again, and dropped once.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        } else {
            std::mem::forget(self.notification.take());
        }
    }
}
