//! Plans: prepared pairings of local and remote descriptors, posted as often as wanted.

use std::sync::Arc;
use std::time::Duration;

use kvrail_core::descriptor::Slices;
use kvrail_core::engine::PostOptions;
use kvrail_core::plan::PlanError;
use kvrail_core::transport::Direction;

use crate::agent::Agent;
use crate::core::Handle;
use crate::hints::Hints;
use crate::lane::Lane;
use crate::peer::{Peer, PeerRecord};
use crate::transfer::{Order, PostError, Transfer};

/// A prepared transfer: checked against both sides' regions, coalesced, assigned to rails. Cheap to clone; may be
/// posted many times, also concurrently, and in either direction.
///
/// A plan outlives its regions and its peer without harm: posting it then is a typed error (KR-9, KR-11).
#[derive(Clone, Debug)]
pub struct Plan {
    inner: Arc<PlanInner>,
}

#[derive(Debug)]
pub(crate) struct PlanInner {
    pub(crate) handle: Arc<Handle>,
    pub(crate) plan: Arc<kvrail_core::plan::Plan>,
    pub(crate) peer: Arc<PeerRecord>,
}

impl PlanInner {
    #[inline]
    pub(crate) fn lane(&self) -> &Lane {
        &self.handle.core.lanes[self.peer.lane]
    }
}

/// Why a plan could not be prepared.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The descriptors do not fit each other, their regions, or the peer.
    #[error("plan for {peer_name}: {error}")]
    Plan {
        /// For whom.
        peer_name: Arc<str>,
        /// What is wrong.
        error: PlanError,
    },
    /// The peer belongs to another agent.
    #[error("{peer_name} is a peer of another agent")]
    ForeignPeer {
        /// Its name.
        peer_name: Arc<str>,
    },
    /// The agent was closed.
    #[error("the agent is closed")]
    AgentClosed,
}

impl PrepareError {
    /// Whether the same call may succeed later. It never does: the arguments have to change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

impl Hints for PrepareError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Plan { error: PlanError::UnknownPeer(_), .. } => {
                vec!["the peer was removed or restarted: connect to it again".into()]
            }
            Self::Plan { error: PlanError::UnknownRegion { side, .. }, .. } => vec![match side {
                kvrail_core::plan::SideName::Local => "register the memory before preparing".into(),
                kvrail_core::plan::SideName::Remote => {
                    "import the peer's current metadata: it names the regions that it has registered".into()
                }
            }],
            _ => Vec::new(),
        }
    }
}

impl Agent {
    /// Pairs local with remote slices: slice `i` of one side with slice `i` of the other, of equal length.
    /// Everything that can be decided before the first byte moves is decided here.
    ///
    /// # Errors
    /// [`PrepareError`]; it names the slice at fault.
    pub fn prepare(
        &self,
        peer: &Peer,
        local: &impl Slices,
        remote: &impl Slices,
    ) -> Result<Plan, PrepareError> {
        let core = self.core();
        let record = peer.record();
        if !Arc::ptr_eq(self.handle(), peer.handle()) {
            return Err(PrepareError::ForeignPeer { peer_name: record.name.clone() });
        }
        let mut turn = core.lanes[record.lane].turn(core);
        if turn.closed {
            return Err(PrepareError::AgentClosed);
        }
        let started = core.clock.now();
        let plan = turn
            .engine
            .prepare(record.id, local, remote)
            .map_err(|error| PrepareError::Plan { peer_name: record.name.clone(), error })?;
        turn.prepare.record(core.clock.now().since(started));
        drop(turn);
        let (handle, peer) = (self.handle().clone(), record.clone());
        Ok(Plan { inner: Arc::new(PlanInner { handle, plan: Arc::new(plan), peer }) })
    }
}

impl Plan {
    /// Moves bytes from the local slices to the remote ones.
    #[inline]
    #[must_use = "nothing moves before `post`"]
    pub fn write(&self) -> Post<'_> {
        Post::new(self, Direction::Write)
    }

    /// Moves bytes from the remote slices to the local ones.
    #[inline]
    #[must_use = "nothing moves before `post`"]
    pub fn read(&self) -> Post<'_> {
        Post::new(self, Direction::Read)
    }

    /// Bytes that one posting moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.plan.bytes()
    }

    /// Slices per side.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        self.inner.plan.descriptors()
    }

    /// Fabric ops of one posting, after coalescing and striping.
    #[must_use]
    pub fn ops(&self) -> usize {
        self.inner.plan.ops().len()
    }

    /// Whom it concerns.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer::new(self.inner.handle.clone(), self.inner.peer.clone())
    }
}

/// A posting that is about to be made.
#[derive(Debug)]
#[must_use = "nothing moves before `post`"]
pub struct Post<'a> {
    plan: &'a Plan,
    order: Order,
}

impl<'a> Post<'a> {
    #[inline]
    fn new(plan: &'a Plan, direction: Direction) -> Self {
        Self { plan, order: Order { direction, options: PostOptions { notification: None, timeout: None } } }
    }

    /// Tells the peer when it is done: with a write, when every byte is visible there (KR-2); with a read, when the
    /// bytes have left. At most [`kvrail_core::limits::NOTIFICATION_BYTES_MAX`] bytes.
    #[inline]
    pub fn notify(mut self, message: impl Into<Vec<u8>>) -> Self {
        self.order.options.notification = Some(message.into());
        self
    }

    /// Fails the transfer when it has not ended by then; the agent's own timeout otherwise.
    #[inline]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.order.options.timeout = Some(timeout);
        self
    }

    /// Starts the transfer.
    ///
    /// # Errors
    /// [`PostError`]; nothing moves then.
    #[inline]
    pub fn post(self) -> Result<Transfer, PostError> {
        Transfer::start(self.plan.inner.clone(), self.order)
    }
}
