//! A prepared transfer of NIXL's: one request that is posted again and again, or a new one each time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail_sys::nixl::{DescriptorList, NixlError, Operation, PreparedList, Request, Status};

use super::ear::Ear;
use super::{Registered, Requests, Shared};
use crate::engine::Posting;
use crate::error::{EngineError, Kind};

/// How long a posting that is dropped in flight is waited for. What has not ended by then keeps its memory for good.
const DRAIN: Duration = Duration::from_secs(5);

/// What a request is made of, as often as it is made.
pub(super) struct Making {
    pub(super) operation: Operation,
    pub(super) peer: String,
    pub(super) lists: Lists,
    pub(super) notification: Option<Vec<u8>>,
}

/// The two ways in which NIXL takes blocks.
pub(super) enum Lists {
    /// Lists that are checked and resolved with each request.
    Plain { local: DescriptorList, remote: DescriptorList },
    /// Lists that were before, with the indices that a request selects: all of them.
    Prepared { local: PreparedList, remote: PreparedList, indices: Vec<i32> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    InFlight,
    /// Ended within the call that posted it; the next look says so.
    Done,
}

/// A transfer. Its fields are dropped in this order: the request before the memory's registration and the agent.
pub(super) struct Held {
    request: Option<Request>,
    phase: Phase,
    /// Listens during the first posting of each direction, when UCX says how it moves bytes.
    ear: Option<Ear>,
    is_cancelled: bool,
    making: Making,
    registered: Arc<Registered>,
    shared: Arc<Shared>,
}

impl Held {
    /// Makes its first request, which is when NIXL checks the blocks.
    pub(super) fn new(
        making: Making,
        registered: Arc<Registered>,
        shared: Arc<Shared>,
    ) -> Result<Self, EngineError> {
        let request = shared
            .listened(|| request(&shared, &making))
            .map_err(|error| shared.failed("cannot make a request", &error))?;
        let (phase, request) = (Phase::Idle, Some(request));
        Ok(Self { request, phase, ear: None, is_cancelled: false, making, registered, shared })
    }

    fn end(&mut self, ended: Result<(), NixlError>) -> Result<(), EngineError> {
        self.phase = Phase::Idle;
        if let Some(ear) = self.ear.take() {
            self.shared.take_in(&ear.hear());
        }
        match ended {
            Err(error) => Err(self.shared.failed("a request failed", &error)),
            Ok(()) if std::mem::take(&mut self.is_cancelled) => {
                Err(EngineError::new(Kind::Engine, "the request was given up; it ended after that"))
            }
            Ok(()) => Ok(()),
        }
    }
}

fn request(shared: &Shared, making: &Making) -> Result<Request, NixlError> {
    let (backend, notification) = (&shared.backend, making.notification.as_deref());
    match &making.lists {
        Lists::Plain { local, remote } => {
            let remote = (making.peer.as_str(), remote);
            // SAFETY: whoever has the request has a share in the registration of all local blocks, and lets go of the request first.
            unsafe { backend.request(making.operation, local, remote, notification) }
        }
        Lists::Prepared { local, remote, indices } => {
            // SAFETY: as above.
            unsafe { backend.request_prepared(making.operation, local, remote, indices, notification) }
        }
    }
}

impl Posting for Held {
    fn post(&mut self) -> Result<(), EngineError> {
        if self.phase != Phase::Idle {
            return Err(EngineError::new(
                Kind::Usage,
                "a transfer is posted while its last posting is in flight",
            ));
        }
        self.is_cancelled = false;
        if self.shared.requests == Requests::Recreate {
            // The old one is released first, as who recreates requests does.
            self.request = None;
        }
        let request = match &mut self.request {
            Some(request) => request,
            none => {
                let made = request(&self.shared, &self.making);
                none.insert(made.map_err(|error| self.shared.failed("cannot make a request", &error))?)
            }
        };
        if self.shared.is_unheard(self.making.operation) {
            self.ear = Some(Ear::open());
        }
        match request.post() {
            Ok(Status::InProgress) => self.phase = Phase::InFlight,
            Ok(_) => self.phase = Phase::Done,
            Err(error) => return self.end(Err(error)),
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        let ended = match self.phase {
            Phase::Idle => return None,
            Phase::Done => Ok(()),
            Phase::InFlight => match self.request.as_mut()?.status() {
                Ok(Status::InProgress) => return None,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            },
        };
        Some(self.end(ended))
    }

    /// NIXL can release a request that is in flight, and does not say when nothing touches its memory any more. So nothing is released
    /// here: the posting is followed to its end, and then reported as given up. One that has no end is ended with the process.
    fn cancel(&mut self) {
        self.is_cancelled = self.phase != Phase::Idle;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.phase == Phase::Idle {
            return;
        }
        if self.wait(DRAIN).is_none() {
            log::error!(
                "a request is still in flight after {DRAIN:?}; its memory stays registered until the process ends"
            );
            // Neither the request nor what it writes to may go: both are lost on purpose.
            std::mem::forget(self.request.take());
            std::mem::forget(Arc::clone(&self.registered));
        }
    }
}

impl Shared {
    /// Waits until something is so, making progress; whether it came to be so.
    pub(super) fn progress_until(
        &self,
        within: Duration,
        mut is_so: impl FnMut(&Self) -> Result<bool, EngineError>,
    ) -> Result<bool, EngineError> {
        let deadline = Instant::now() + within;
        loop {
            if is_so(self)? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }
}
