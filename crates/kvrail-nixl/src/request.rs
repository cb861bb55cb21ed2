//! Requests: a transfer that was prepared, is posted, asked about, posted again, and released.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail::{Plan, PostError, Transfer, TransferError};
use parking_lot::Mutex;

use crate::agent::notifications;
use crate::backend::BackendKind;
use crate::error::{Error, Result, Status};
use crate::files;
use crate::long;
use crate::loopback::{self, Move};

pub use kvrail_core::transport::Direction;

/// How long a release waits for a transfer in flight to drain once it was cancelled.
const DRAIN: Duration = Duration::from_secs(5);

/// How far a request is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// Never posted.
    NotPosted,
    /// In flight.
    InFlight,
    /// All bytes have arrived.
    Done,
    /// It ended badly; nothing of it moves any more.
    Failed(Error),
}

/// When the last posting of a request began, and how long its parts took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timing {
    /// Beginning, microseconds of the monotonic clock.
    pub started_us: u64,
    /// The call that posted, microseconds, rounded up.
    pub post_us: u64,
    /// To the end of the transfer, microseconds, rounded up.
    pub total_us: u64,
}

/// What a request moves, and by what.
pub(crate) enum Work {
    /// Between agents.
    Fabric { agent: kvrail::Agent, plan: Plan, transfer: Option<Transfer> },
    /// Inside this one.
    Loopback(Vec<Move>),
    /// Between memory and files.
    Files { files: Arc<files::Files>, moves: Vec<files::FileMove>, job: Option<files::Job> },
}

struct State {
    work: Work,
    notification: Vec<u8>,
    /// The transfer was posted with that notification: it may be posted again as it is.
    same_notification: bool,
    progress: Progress,
    posted: Option<Instant>,
    timing: Timing,
}

/// A transfer that was prepared.
pub(crate) struct Request {
    pub(crate) remote: Arc<str>,
    pub(crate) remote_generation: u64,
    pub(crate) direction: Direction,
    pub(crate) backend: BackendKind,
    pub(crate) bytes: u64,
    pub(crate) descriptors: u64,
    state: Mutex<State>,
}

/// What an agent wants to know of a step that a request took.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing new.
    None,
    /// It was posted and is in flight.
    Posted(Duration),
    /// It ended well now, that long after it was posted; the notification is for this agent itself.
    Finished { total: Duration, loopback: Option<Vec<u8>> },
    /// It ended badly now.
    Failed(Error),
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

/// Microseconds of the monotonic clock.
fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// The error for a transfer that ended badly.
pub(crate) fn ended(error: &TransferError) -> Error {
    let lost = matches!(
        error,
        TransferError::Failed { error: kvrail::engine_error::TransferError::PeerLost(_), .. }
    );
    let status = match error {
        _ if error.is_cancelled() => Status::Cancelled,
        _ if lost => Status::RemoteDisconnect,
        _ => Status::Backend,
    };
    Error::told(status, error)
}

fn refused(error: &PostError) -> Error {
    use kvrail::engine_error::PostTransferError as Refused;
    let status = match error {
        PostError::InFlight { .. } => Status::RepostActive,
        PostError::Refused { error: Refused::UnknownPeer(_), .. } => Status::RemoteDisconnect,
        PostError::Refused {
            error: Refused::StaleLocalRegion(_) | Refused::StaleRemoteRegion(_), ..
        } => Status::NotFound,
        PostError::Refused { error: Refused::NotificationTooLong(_), .. } => Status::InvalidParam,
        _ => Status::Backend,
    };
    Error::told(status, error)
}

/// What is known of a request when it is made.
pub(crate) struct Parts {
    pub(crate) remote: Arc<str>,
    pub(crate) remote_generation: u64,
    pub(crate) direction: Direction,
    pub(crate) backend: BackendKind,
    pub(crate) bytes: u64,
    pub(crate) descriptors: u64,
    pub(crate) notification: Vec<u8>,
    pub(crate) work: Work,
}

impl Request {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { remote, remote_generation, direction, backend, bytes, descriptors, notification, work } =
            parts;
        let state = State {
            work,
            notification,
            same_notification: false,
            progress: Progress::NotPosted,
            posted: None,
            timing: Timing::default(),
        };
        let state = Mutex::new(state);
        Self { remote, remote_generation, direction, backend, bytes, descriptors, state }
    }

    /// Posts, or posts again. A notification that is given replaces the request's own from now on.
    pub(crate) fn post(&self, notification: Option<Vec<u8>>) -> Result<Step> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.look();
        if state.progress == Progress::InFlight {
            return Err(Error::new(
                Status::RepostActive,
                "the transfer is in flight; it can be posted again when it has ended",
            ));
        }
        if let Some(notification) = notification.filter(|new| *new != state.notification) {
            notifications::check_length(&notification)?;
            state.notification = notification;
            state.same_notification = false;
        }
        state.timing = Timing { started_us: monotonic_us(), ..Timing::default() };
        let started = Instant::now();
        state.posted = Some(started);
        let posted = state.start(self.direction);
        let post = started.elapsed();
        state.timing.post_us = micros(post);
        match posted {
            Err(error) => {
                state.progress = Progress::Failed(error.clone());
                Err(error)
            }
            Ok(true) => {
                state.progress = Progress::Done;
                state.timing.total_us = state.timing.post_us;
                let message = (!state.notification.is_empty()).then(|| state.notification.clone());
                let loopback = message.filter(|_| matches!(state.work, Work::Loopback(_)));
                Ok(Step::Finished { total: post, loopback })
            }
            Ok(false) => {
                state.progress = Progress::InFlight;
                Ok(Step::Posted(post))
            }
        }
    }

    /// How far it is, and what is new about that.
    pub(crate) fn poll(&self) -> (Progress, Step) {
        let mut state = self.state.lock();
        let step = state.look();
        (state.progress.clone(), step)
    }

    /// Times of its last posting.
    pub(crate) fn timing(&self) -> Timing {
        self.state.lock().timing
    }

    /// What carries it, for an estimate.
    pub(crate) fn plan(&self) -> Option<Plan> {
        match &self.state.lock().work {
            Work::Fabric { plan, .. } => Some(plan.clone()),
            _ => None,
        }
    }

    /// Cancels what is in flight and waits until nothing moves any more (KR-7).
    ///
    /// # Errors
    /// [`Status::RepostActive`]: it still moves. The request and its memory have to be kept.
    pub(crate) fn end(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.look();
        if state.progress != Progress::InFlight {
            return Ok(());
        }
        let drained = match &mut state.work {
            Work::Fabric { transfer: Some(transfer), .. } => {
                transfer.cancel();
                transfer.wait_timeout(DRAIN).is_some()
            }
            Work::Files { job: Some(job), .. } => job.cancel_and_drain(Instant::now() + DRAIN).is_ok(),
            _ => true,
        };
        if drained {
            state.look();
            return Ok(());
        }
        Err(Error::new(
            Status::RepostActive,
            format!(
                "the transfer was cancelled and has not drained within {DRAIN:?}: its memory is still in use"
            ),
        )
        .hint("keep the memory, and release the handle again later"))
    }
}

impl State {
    /// Starts the work. True: it has ended already.
    fn start(&mut self, direction: Direction) -> Result<bool> {
        match &mut self.work {
            Work::Loopback(moves) => loopback::copy(moves).map(|()| true),
            Work::Fabric { agent, plan, transfer } => {
                if let Some(transfer) = transfer.as_mut().filter(|_| self.same_notification) {
                    transfer.post().map_err(|error| refused(&error))?;
                } else {
                    let post = match direction {
                        Direction::Write => plan.write(),
                        Direction::Read => plan.read(),
                    };
                    let parts = long::split(&self.notification);
                    // Parts are numbered for one message: the next posting sends others.
                    self.same_notification = parts.is_none();
                    let post = match (parts, self.notification.as_slice()) {
                        (None, []) => post,
                        (None, message) => post.notify(message),
                        (Some(mut parts), _) => {
                            let last = parts.pop().unwrap_or_default();
                            let peer = plan.peer();
                            parts.into_iter().try_for_each(|part| notifications::send(agent, &peer, part))?;
                            post.notify(last)
                        }
                    };
                    *transfer = Some(post.post().map_err(|error| refused(&error))?);
                }
                let transfer = transfer.as_ref().expect("posted");
                if !transfer.is_ended() {
                    return Ok(false);
                }
                match transfer.poll() {
                    Some(Err(error)) => Err(ended(&error)),
                    _ => Ok(true),
                }
            }
            Work::Files { files, moves, job } => {
                // SAFETY: the memory of the moves lies in what was registered when the request was made, and who registered it promised that it may be
                // touched until it was deregistered.
                let submitted = unsafe { files.submit(moves, direction) };
                *job = Some(submitted?);
                Ok(false)
            }
        }
    }

    /// Takes in an end that came meanwhile.
    fn look(&mut self) -> Step {
        if self.progress != Progress::InFlight {
            return Step::None;
        }
        let end = match &mut self.work {
            Work::Fabric { transfer: Some(transfer), .. } => {
                transfer.poll().map(|end| end.map(|report| report.total()).map_err(|error| ended(&error)))
            }
            Work::Files { job: Some(job), .. } => job.poll().map(|end| {
                end.map(|()| match (self.posted, job.ended()) {
                    (Some(posted), Some(ended)) => ended.saturating_duration_since(posted),
                    _ => Duration::ZERO,
                })
            }),
            _ => None,
        };
        match end {
            None => Step::None,
            Some(Ok(total)) => {
                let total = total.max(Duration::from_micros(self.timing.post_us));
                self.progress = Progress::Done;
                self.timing.total_us = micros(total);
                Step::Finished { total, loopback: None }
            }
            Some(Err(error)) => {
                self.progress = Progress::Failed(error.clone());
                Step::Failed(error)
            }
        }
    }
}
