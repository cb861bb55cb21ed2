//! A lane: one worker, and its endpoints to the peers. One thread posts on it; others may drive it meanwhile, one at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvrail_sys::ucp::{
    Context, Endpoint, ErrorHandling, MappedMemory, RemoteKey, Status, Tally, Transport, UcpError, Worker,
};

use super::metadata::Metadata;
use super::used::Said;
use super::words;
use crate::engine::Direction;
use crate::error::{EngineError, Kind};

/// Number of the active message that carries notifications.
const NOTIFICATION: u32 = 7;
/// Bytes that are read from a peer to see that it can be reached.
const PROBE_BYTES: u64 = 8;

/// A lane, or what is left of one.
pub(super) struct Lane {
    open: Option<Open>,
}

/// Drop order: keys and endpoints, then the worker.
pub(super) struct Open {
    pub(super) links: Vec<Link>,
    pub(super) worker: Worker,
}

/// The way to one peer. Drop order: the key, then the endpoint.
pub(super) struct Link {
    pub(super) key: RemoteKey,
    pub(super) endpoint: Endpoint,
}

// SAFETY: a worker and everything on it (endpoints, keys) are in this one value, share counts among themselves only, and go from thread
// to thread together. The worker is opened for threads that take turns; the mutex around each lane makes them.
unsafe impl Send for Lane {}

impl Lane {
    pub(super) fn open(context: &Context) -> Result<Self, UcpError> {
        let worker = Worker::open(context)?;
        worker.count_messages(NOTIFICATION)?;
        Ok(Self { open: Some(Open { links: Vec::new(), worker }) })
    }

    /// The worker and its endpoints, unless the lane has ended.
    pub(super) fn alive(&mut self) -> Option<&mut Open> {
        self.open.as_mut()
    }

    /// Ends everything on it: nothing of it touches memory afterwards.
    pub(super) fn end(&mut self) {
        self.open = None;
    }

    /// Whether anything moved.
    pub(super) fn progress(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.worker.progress())
    }

    /// Notifications that have come.
    pub(super) fn messages(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.worker.messages())
    }

    pub(super) fn address(&self) -> Result<Vec<u8>, EngineError> {
        let open = self.open.as_ref().ok_or_else(gone)?;
        open.worker.address().map_err(|error| words::call("the worker's address", &error))
    }

    /// Meets a peer: makes an endpoint, unpacks the key, and reads a few bytes of the peer's memory into `scratch`, so that a peer that
    /// cannot be reached is one now, and what is used is known.
    pub(super) fn connect(
        &mut self,
        peer: &Metadata,
        worker: &[u8],
        handling: ErrorHandling,
        scratch: (&MappedMemory, u64),
        said: &Said,
        within: Duration,
    ) -> Result<Vec<Transport>, EngineError> {
        let deadline = Instant::now() + within;
        let open = self.open.as_mut().ok_or_else(gone)?;
        let of = |what: &'static str| move |error: UcpError| words::call(what, &error);
        let endpoint = open.worker.connect(worker, handling).map_err(of("no way to the peer"))?;
        let key = endpoint.key(&peer.key).map_err(of("the peer's key"))?;
        let link = Link { key, endpoint };

        let tally = Tally::new(scratch.0, open.worker.library());
        let refused = |status| words::operation("the first read of the peer's memory", status);
        let len = peer.len.min(PROBE_BYTES) as usize;
        let local = std::ptr::with_exposed_provenance_mut(scratch.1 as usize);
        // SAFETY: the scratch has room, stays as long as the lane, and nobody looks at it; the remote bytes are the peer's memory's first.
        let posted = unsafe { link.endpoint.get(&tally, local, len, peer.base, &link.key) };
        if posted.map_err(refused)? {
            said.note(Direction::Read, len, tally.describe());
        }
        loop {
            open.worker.progress();
            if tally.pending() == 0 {
                break;
            }
            if Instant::now() >= deadline {
                return Err(EngineError::new(
                    Kind::Peer,
                    format!("ucx: the peer did not answer within {within:?}: the first read of its memory has not ended"),
                )
                .hint("see whether its process runs and is driven, and whether the network lets it answer"));
            }
            std::thread::yield_now();
        }
        if let Some(status) = tally.failure().or_else(|| link.endpoint.failure()) {
            return Err(refused(status));
        }
        let transports = link.endpoint.transports().map_err(of("what the endpoint uses"))?;
        open.links.push(link);
        Ok(transports)
    }
}

impl Link {
    /// Sends a notification.
    ///
    /// # Safety
    /// The bytes stay, unchanged, until the tally has counted its end.
    pub(super) unsafe fn notify(&self, tally: &Tally, bytes: *const [u8]) -> Result<bool, Status> {
        // SAFETY: the caller's promise.
        unsafe { self.endpoint.message(tally, NOTIFICATION, bytes) }
    }
}

/// Takes a lane's turn.
pub(super) fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    // A lane that a panic left is still a lane.
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lane was given up.
pub(super) fn gone() -> EngineError {
    EngineError::new(
        Kind::Engine,
        "ucx: this lane was ended, because operations on it did not end by themselves",
    )
    .hint("start the engine anew")
}
