//! Transfers: one posting of a plan, and the handle to it.
//!
//! A handle is polled, waited for or awaited. Dropping it cancels and drains: until the last completion the memory
//! stays registered and alive (KR-7). A transfer ends exactly once, in a report or in an error that says what was
//! awaited and how far it came (KR-4).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kvrail_core::engine::{PostOptions, TransferProgress, TransferReport};
use kvrail_core::error::{self, PeerLostCause, PostTransferError};
use kvrail_core::id::Token;
use kvrail_core::time::Time;
use kvrail_core::transport::Direction;

use crate::config::Id;
use crate::hints::Hints;
use crate::plan::PlanInner;
use crate::progress::{Awaited, Progress};
use crate::silence::Silence;
use crate::watch::{Completion, Waiter};

/// How a transfer ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Bytes moved.
    pub bytes: u64,
    /// Fabric ops that moved them.
    pub ops: u32,
    /// Ops that were posted again, on another route or after a failure.
    pub retried_ops: u32,
    /// From the posting to its first op on the fabric.
    pub queued: Duration,
    /// From the first op on the fabric to the end of the transfer, as this agent saw it.
    pub wire: Duration,
}

impl Report {
    #[inline]
    pub(crate) fn new(report: &TransferReport, ended: Time) -> Self {
        Self {
            bytes: report.bytes,
            ops: report.ops,
            retried_ops: report.ops_retried,
            queued: report.first_op_at.since(report.posted_at),
            wire: ended.since(report.first_op_at),
        }
    }

    /// From the posting to the end.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.queued + self.wire
    }
}

/// How a transfer ended badly. Every rail is quiet then: no byte of it moves any more (KR-7).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The transfer failed; the bytes at the target are in an unknown state.
    #[error("transfer with {peer_name}: {error}{}", told(silence))]
    Failed {
        /// With whom.
        peer_name: Arc<str>,
        /// What happened.
        error: error::TransferError,
        /// When something did not come (a deadline passed, a silent peer is lost): what the rails counted meanwhile,
        /// and what that probably means.
        silence: Option<Arc<Silence>>,
    },
    /// The agent was closed meanwhile.
    #[error("the agent is closed")]
    AgentClosed,
}

/// A silence behind the error that it belongs to.
fn told(silence: &Option<Arc<Silence>>) -> String {
    silence.as_ref().map_or_else(String::new, |silence| format!("; {silence}"))
}

impl TransferError {
    /// What the rails counted while something did not come.
    #[must_use]
    pub fn silence(&self) -> Option<&Silence> {
        match self {
            Self::Failed { silence, .. } => silence.as_deref(),
            Self::AgentClosed => None,
        }
    }

    /// Whether the same plan may succeed when it is posted again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if error.is_retryable())
    }

    /// Whether it ended because its handle was cancelled or dropped.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Failed { error: error::TransferError::Cancelled, .. })
    }

    /// Whether its deadline passed.
    #[must_use]
    pub fn is_deadline(&self) -> bool {
        matches!(self, Self::Failed { error: error::TransferError::DeadlineExceeded { .. }, .. })
    }
}

impl Hints for TransferError {
    fn hints(&self) -> Vec<String> {
        let Self::Failed { error, silence, .. } = self else { return Vec::new() };
        let mut hints = match error {
            error::TransferError::DeadlineExceeded { awaited: error::Awaited::Window, .. } => {
                vec!["the peer does not read its notifications".into()]
            }
            error::TransferError::PeerLost(PeerLostCause::Restarted | PeerLostCause::Gone) => {
                vec!["import the new process's metadata and prepare the plans again".into()]
            }
            error::TransferError::Op { .. } => {
                vec!["import the peer's current metadata: it may have deregistered the region".into()]
            }
            _ => Vec::new(),
        };
        hints.extend(silence.iter().flat_map(|silence| silence.hints()));
        hints
    }
}

/// Why a transfer was not started. Nothing moves.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The engine refused.
    #[error("cannot post to {peer_name}: {error}")]
    Refused {
        /// To whom.
        peer_name: Arc<str>,
        /// Why.
        error: PostTransferError,
    },
    /// The handle's last posting has not ended: wait for it, or post the plan anew for another handle.
    #[error("the handle's last posting to {peer_name} has not ended")]
    InFlight {
        /// To whom.
        peer_name: Arc<str>,
    },
    /// The agent was closed.
    #[error("the agent is closed")]
    AgentClosed,
}

impl PostError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::InFlight { .. } | Self::Refused { error: PostTransferError::TooManyTransfers(_), .. }
        )
    }
}

impl Hints for PostError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused { error: PostTransferError::UnknownPeer(_), .. } => {
                vec!["the peer was removed or restarted: connect to it and prepare the plan again".into()]
            }
            Self::Refused { error: PostTransferError::StaleRemoteRegion(_), .. } => {
                vec!["import the peer's current metadata and prepare the plan again".into()]
            }
            Self::Refused { error: PostTransferError::StaleLocalRegion(_), .. } => {
                vec!["prepare the plan again from regions that are registered".into()]
            }
            Self::Refused { error: PostTransferError::TooManyTransfers(_), .. } => {
                vec!["wait for a transfer to end, or raise transfers_max".into()]
            }
            _ => Vec::new(),
        }
    }
}

/// How a plan is to be posted.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) direction: Direction,
    pub(crate) options: PostOptions,
}

/// A transfer in flight, or ended.
#[derive(Debug)]
#[must_use = "dropping a transfer cancels it"]
pub struct Transfer {
    plan: Arc<PlanInner>,
    order: Order,
    completion: Arc<Completion>,
    token: Token,
}

impl Transfer {
    #[inline]
    pub(crate) fn start(plan: Arc<PlanInner>, order: Order) -> Result<Self, PostError> {
        let completion = Arc::new(Completion::default());
        let token = plan.post(&order, || completion.clone())?;
        Ok(Self { plan, order, completion, token })
    }

    /// The result, if it has ended. Drives the rails once if it has not and progress is inline.
    #[inline]
    #[must_use]
    pub fn poll(&self) -> Option<Result<Report, TransferError>> {
        if let Some(result) = self.completion.result() {
            return Some(result.clone());
        }
        let core = &self.plan.handle.core;
        if core.progress == Progress::Inline {
            core.drive(core.clock.now());
        }
        self.completion.result().cloned()
    }

    /// Whether it has ended. Never drives.
    #[inline]
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.completion.result().is_some()
    }

    /// Blocks until it has ended: at the latest soon after its timeout.
    ///
    /// # Errors
    /// [`TransferError`].
    #[inline]
    pub fn wait(&self) -> Result<Report, TransferError> {
        match self.completion.result() {
            Some(result) => result.clone(),
            None => self.wait_until(Time::NEVER).unwrap_or(Err(TransferError::AgentClosed)),
        }
    }

    /// Blocks until it has ended, at most for `timeout`; `None` when it goes on.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<Report, TransferError>> {
        match self.completion.result() {
            Some(result) => Some(result.clone()),
            None => self.wait_until(self.plan.handle.core.clock.after(timeout)),
        }
    }

    fn wait_until(&self, deadline: Time) -> Option<Result<Report, TransferError>> {
        self.plan.handle.core.wait_until(deadline, End(&self.completion))
    }

    /// Asks for an early end. The transfer drains, and then ends as cancelled, or as it really ended if that came
    /// first. Returns at once.
    pub fn cancel(&self) {
        if self.is_ended() {
            return;
        }
        let core = &self.plan.handle.core;
        let mut turn = self.plan.lane().turn(core);
        let now = core.clock.now();
        let state = &mut *turn;
        state.engine.cancel(now, self.token);
        turn.drive(now);
        turn.leave_to_driver();
    }

    /// How far it is; `None` when it has ended.
    #[must_use]
    pub fn progress(&self) -> Option<TransferProgress> {
        if self.is_ended() {
            return None;
        }
        self.plan.lane().turn(&self.plan.handle.core).engine.progress_of(self.token)
    }

    /// Posts the same plan again, with the same direction, notification and timeout. Reuses this handle: the
    /// cheapest way to repeat.
    ///
    /// # Errors
    /// [`PostError`]; [`PostError::InFlight`] unless the last posting has ended.
    #[inline]
    pub fn post(&mut self) -> Result<(), PostError> {
        if !self.is_ended() {
            return Err(PostError::InFlight { peer_name: self.plan.peer.name.clone() });
        }
        let completion = &mut self.completion;
        self.token = self.plan.post(&self.order, || {
            match Arc::get_mut(completion) {
                Some(completion) => completion.renew(),
                // Whoever ended it is about to drop its share.
                None => *completion = Arc::new(Completion::default()),
            }
            completion.clone()
        })?;
        Ok(())
    }
}

impl PlanInner {
    /// Posts, and with small transfers or inline progress starts it in this thread.
    #[inline]
    fn post(&self, order: &Order, completion: impl FnOnce() -> Arc<Completion>) -> Result<Token, PostError> {
        let core = &*self.handle.core;
        let started = core.clock.now();
        let mut turn = self.lane().turn(core);
        if turn.closed {
            return Err(PostError::AgentClosed);
        }
        let token = turn
            .engine
            .post(started, &self.plan, order.direction, order.options.clone())
            .map_err(|error| PostError::Refused { peer_name: self.peer.name.clone(), error })?;
        turn.expect(token, completion());
        let inline =
            core.progress == Progress::Inline || self.plan.bytes() <= core.config.value(Id::InlineBytes);
        if inline && self.plan.ops().len() as u64 > u64::from(turn.fabric.caps().turn_ops_max) {
            turn.launch(started);
        } else if inline {
            turn.advance(started);
        }
        if !inline || core.progress == Progress::Thread && turn.engine.has_unposted() {
            turn.leave_to_driver();
        }
        let posted = core.clock.now();
        turn.settle(Some(posted));
        turn.post.record(posted.since(started));
        Ok(token)
    }
}

/// Waits for the end of one transfer.
struct End<'a>(&'a Arc<Completion>);

impl Awaited for End<'_> {
    type Output = Result<Report, TransferError>;

    #[inline]
    fn ready(&mut self) -> Option<Self::Output> {
        self.0.result().cloned()
    }

    fn register(&mut self, waker: &Waker) {
        self.0.register(Waiter::Thread, waker);
    }
}

/// With inline progress a pending future drives the rails at each poll and asks to be polled again at once: an
/// executor that has nothing else to do spins. Prefer [`Progress::Thread`] under an executor.
impl Future for Transfer {
    type Output = Result<Report, TransferError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut &*self).poll(context)
    }
}

/// The same for a handle that several hold. Of several tasks that poll it, the last one is woken.
impl Future for &Transfer {
    type Output = Result<Report, TransferError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = Transfer::poll(&self) {
            return Poll::Ready(result);
        }
        if self.completion.register(Waiter::Task, context.waker()) {
            if self.plan.handle.core.progress == Progress::Inline {
                context.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        Poll::Ready(self.completion.result().cloned().unwrap_or(Err(TransferError::AgentClosed)))
    }
}

impl Drop for Transfer {
    #[inline]
    fn drop(&mut self) {
        self.cancel();
    }
}
