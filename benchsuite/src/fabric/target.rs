//! The passive side: progress for providers that need it, immediates counted and answered.

use std::os::fd::{AsFd, AsRawFd};

use kvrail_sys::libfabric::CompletionQueue;

use super::rail::Rail;
use super::{Evidence, Fabric, RailOffer};
use crate::error::LimitError;
use crate::line::Line;
use crate::workload::{Case, Op, Wait};

/// Looks at the rails that find nothing before the initiator's line is looked at, and before the target sleeps.
const IDLE_LOOKS: u32 = 64;
/// A sleep where the provider has no file descriptors to sleep on: what kvrail's timer has at first.
const SLEEP_NS: libc::c_long = 50_000;
/// A sleep on file descriptors ends by itself, should a provider forget to write to one.
const SLEEP_ON_FDS_NS: libc::c_long = 10_000_000;

/// The target of a case on the fabric.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    fabric: Fabric<'a>,
    sleeps: bool,
    /// Immediates that make a batch; none where they prove nothing.
    batch: Option<usize>,
    /// Of the rails, where each has one.
    fds: Option<Vec<libc::c_int>>,
}

impl<'a> Target<'a> {
    pub(crate) fn new(fabric: Fabric<'a>, case: &Case) -> Self {
        let counted = case.op == Op::Write && fabric.evidence == Evidence::Counted;
        let sleeps = case.wait == Wait::Block;
        let fds =
            sleeps.then(|| fabric.rails.iter().map(|rail| rail.queue().wait_fd().ok()).collect()).flatten();
        Self { fabric, sleeps, batch: counted.then_some(case.batch), fds }
    }

    pub(crate) fn meet(&mut self, rails: &[RailOffer]) -> Result<(), LimitError> {
        self.fabric.meet(rails)
    }

    /// Serves until the initiator says something.
    pub(crate) fn serve(&mut self, line: &Line) -> Result<(), LimitError> {
        let mut idle_looks = 0;
        let (mut seen, mut owed) = (0, 0);
        loop {
            let mut idle = true;
            for rail in &mut self.fabric.rails {
                let found = rail.poll()?;
                idle &= found.is_nothing();
                seen += found.immediates;
            }
            if let Some(batch) = self.batch
                && seen >= batch
            {
                seen -= batch;
                owed += 1;
            }
            if owed > 0 && self.fabric.rails.first_mut().map_or(Ok(false), Rail::send)? {
                owed -= 1;
            }
            if !idle || owed > 0 {
                idle_looks = 0;
                continue;
            }
            idle_looks += 1;
            if idle_looks >= IDLE_LOOKS {
                idle_looks = 0;
                if line.has_something() {
                    return Ok(());
                }
                if self.sleeps {
                    self.sleep(line)?;
                }
            }
        }
    }

    /// Sleeps until something may have come.
    fn sleep(&self, line: &Line) -> Result<(), LimitError> {
        let pollfd = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = vec![pollfd(line.as_fd().as_raw_fd())];
        let mut nanoseconds = SLEEP_NS;
        if let Some(rails) = &self.fds {
            for rail in &self.fabric.rails {
                let queues: [&CompletionQueue; 1] = [rail.queue()];
                let may = rail.fabric().try_wait(&queues);
                if !may.map_err(|error| LimitError::NoFabric { why: error.to_string() })? {
                    return Ok(());
                }
            }
            fds.extend(rails.iter().copied().map(pollfd));
            nanoseconds = SLEEP_ON_FDS_NS;
        }
        let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let count = fds.len() as libc::nfds_t;
        // SAFETY: `fds` has `count` entries, the time is on our stack, and no signal mask is given. Whatever the result,
        // the queues are looked at next.
        unsafe { libc::ppoll(fds.as_mut_ptr(), count, &raw const time, std::ptr::null()) };
        Ok(())
    }
}
