//! Peers: remote agents' incarnations, and the choice of the transport that reaches each.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use kvrail_core::engine::PeerState;
use kvrail_core::error::{AddPeerError, PeerLostCause, SendMessageError};
use kvrail_core::id::{Generation, Incarnation, PeerId, RegionId, Route};
use kvrail_core::transport::{Device, RegionInfo};
use kvrail_core::wire::DecodeError;
use kvrail_core::wire::metadata::Metadata;

use crate::agent::Agent;
use crate::core::{Core, Handle};
use crate::hints::Hints;
use crate::memory::{AccessError, check_range};
use crate::progress::Awaited;
use crate::region::Slice;
use crate::silence::Silence;
use crate::watch::Watch;

/// What is kept of a peer beside the engine's own state.
#[derive(Debug)]
pub(crate) struct PeerRecord {
    pub(crate) name: Arc<str>,
    pub(crate) incarnation: Incarnation,
    pub(crate) lane: usize,
    pub(crate) id: PeerId,
    pub(crate) choice: TransportChoice,
    pub(crate) lost: OnceLock<PeerLostCause>,
    /// Those who wait for it to be ready, or lost.
    pub(crate) met: Watch,
}

/// A transport that an agent was to have and has not.
#[derive(Debug)]
pub(crate) struct Absent {
    /// The index of the lane that comes next in the order of preference.
    pub(crate) before: usize,
    pub(crate) passed_over: PassedOver,
}

/// A remote agent in one of its lives (KR-11): a restarted process is another peer.
#[derive(Clone)]
pub struct Peer {
    handle: Arc<Handle>,
    record: Arc<PeerRecord>,
}

/// Which transport reaches a peer, and why not one that was preferred.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TransportChoice {
    /// What is used.
    pub chosen: &'static str,
    /// What was preferred and could not be used, in order of preference.
    pub passed_over: Vec<PassedOver>,
}

/// A transport that does not reach a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PassedOver {
    /// Its name.
    pub transport: &'static str,
    /// Why not.
    pub reason: PassedOverReason,
}

/// Why a transport was passed over.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PassedOverReason {
    /// This agent does not have it: it was to be used where it is possible, and here it is not.
    NotHere(Arc<str>),
    /// It does not reach the peer.
    Peer(AddPeerError),
}

impl fmt::Display for PassedOverReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHere(why) => f.write_str(why),
            Self::Peer(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for TransportChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.chosen)?;
        for PassedOver { transport, reason } in &self.passed_over {
            write!(f, "; not {transport}: {reason}")?;
        }
        Ok(())
    }
}

/// Why metadata could not be imported.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The bytes are not metadata, or another version's, or damaged.
    #[error("cannot read the metadata: {0}")]
    Metadata(#[from] DecodeError),
    /// The metadata is this agent's own.
    #[error("the metadata is this agent's own")]
    Itself,
    /// No transport of this agent reaches the peer.
    #[error("no transport reaches {peer_name}: {}", list(tried))]
    NoTransport {
        /// The peer.
        peer_name: String,
        /// What was tried.
        tried: Vec<PassedOver>,
    },
    /// More metadata of a known peer could not be imported; what was known stands.
    #[error("cannot import {peer_name} over {transport}: {error}")]
    Import {
        /// The peer.
        peer_name: String,
        /// The transport that reaches it.
        transport: &'static str,
        /// Why.
        error: AddPeerError,
    },
    /// The agent was closed.
    #[error("the agent is closed")]
    AgentClosed,
}

fn list(tried: &[PassedOver]) -> String {
    let tried: Vec<_> = tried.iter().map(|p| format!("{}: {}", p.transport, p.reason)).collect();
    tried.join("; ")
}

impl ConnectError {
    /// Whether the same bytes may be accepted later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Import { .. })
    }
}

impl Hints for ConnectError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Metadata(DecodeError::Version { .. }) => vec!["run the same kvrail on both sides".into()],
            Self::NoTransport { tried, .. } if tried.iter().all(|p| p.transport == "shm") => {
                vec!["shm reaches only processes of the same user on the same host; add tcp".into()]
            }
            Self::NoTransport { .. } => vec![format!(
                "enable a transport that both agents have (builder, or {})",
                crate::config::TRANSPORT_VARIABLE
            )],
            _ => Vec::new(),
        }
    }
}

/// Why a peer is not ready.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitReadyError {
    /// It has not answered in time.
    #[error("{peer_name} did not answer within {waited:?}: {silence}")]
    Deadline {
        /// Whom it concerns.
        peer_name: Arc<str>,
        /// Time waited.
        waited: Duration,
        /// What the rails counted, and what that probably means.
        silence: Box<Silence>,
    },
    /// It is lost.
    #[error("{peer_name} is lost: {cause}")]
    Lost {
        /// Whom it concerns.
        peer_name: Arc<str>,
        /// Why.
        cause: PeerLostCause,
    },
}

impl WaitReadyError {
    /// Whether waiting again may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }
}

impl Hints for WaitReadyError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Deadline { silence, .. } => silence.hints(),
            Self::Lost { .. } => vec!["import the metadata of the process that runs now".into()],
        }
    }
}

/// Why a message was not accepted. Nothing was sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The engine refused.
    #[error("cannot send to {peer_name}: {error}")]
    Refused {
        /// To whom.
        peer_name: Arc<str>,
        /// Why.
        error: SendMessageError,
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

impl SendError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Refused { error: SendMessageError::Full, .. })
    }
}

impl Hints for SendError {}

/// Memory of a peer, as its metadata names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RemoteRegion {
    /// Its number in the peer's table.
    pub id: RegionId,
    /// Which tenant of that number.
    pub generation: Generation,
    /// Address of the first byte in the peer's address space: to find a region by, not to be used here.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// Where the bytes are.
    pub device: Device,
}

impl RemoteRegion {
    fn of(info: &RegionInfo) -> Self {
        let RegionInfo { id, generation, base, len, device } = *info;
        Self { id, generation, base, len, device }
    }

    /// A descriptor of `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn slice(&self, offset: u64, len: u64) -> Result<Slice, AccessError> {
        check_range(offset, len, self.len)?;
        Ok(Slice { region: self.id, offset, len })
    }
}

impl Peer {
    pub(crate) fn new(handle: Arc<Handle>, record: Arc<PeerRecord>) -> Self {
        Self { handle, record }
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(crate) fn record(&self) -> &Arc<PeerRecord> {
        &self.record
    }

    /// The name it gave itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its life.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.record.incarnation
    }

    /// The transport that reaches it.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        self.record.choice.chosen
    }

    /// The same with what was preferred and passed over, and why (KR-13).
    #[must_use]
    pub fn transport_choice(&self) -> &TransportChoice {
        &self.record.choice
    }

    /// How far the acquaintance goes.
    #[must_use]
    pub fn state(&self) -> PeerState {
        if let Some(cause) = self.record.lost.get() {
            return PeerState::Lost(*cause);
        }
        let core = &*self.handle.core;
        let turn = core.lanes[self.record.lane].turn(core);
        turn.engine.peer(self.record.id).map_or(PeerState::Lost(PeerLostCause::Removed), |view| view.state)
    }

    /// Blocks until both agents know each other and transfers can start, at most for `timeout`. Nobody has to wait:
    /// what is posted earlier begins then.
    ///
    /// # Errors
    /// [`WaitReadyError`], with what the rails counted when the peer is silent.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), WaitReadyError> {
        let core = &self.handle.core;
        let peer_name = || self.record.name.clone();
        match core.wait_until(core.clock.after(timeout), Meeting(self)) {
            Some(Ok(())) => Ok(()),
            Some(Err(cause)) => Err(WaitReadyError::Lost { peer_name: peer_name(), cause }),
            None => {
                let silence = Box::new(self.silence());
                Err(WaitReadyError::Deadline { peer_name: peer_name(), waited: timeout, silence })
            }
        }
    }

    /// What the rails of its transport counted, and what that means if the peer does not answer. Reads the devices' counters:
    /// for reports, not for a loop.
    #[must_use]
    pub fn silence(&self) -> Silence {
        let core = &*self.handle.core;
        let now = core.clock.now();
        core.lanes[self.record.lane].turn(core).silence(now)
    }

    /// Its routes, and whether each is usable.
    #[must_use]
    pub fn routes(&self) -> Vec<(Route, bool)> {
        let core = &*self.handle.core;
        let turn = core.lanes[self.record.lane].turn(core);
        turn.engine.peer(self.record.id).map_or_else(Vec::new, |view| view.routes)
    }

    /// Its regions that were imported, by number.
    #[must_use]
    pub fn regions(&self) -> Vec<RemoteRegion> {
        let core = &*self.handle.core;
        let turn = core.lanes[self.record.lane].turn(core);
        turn.engine.peer_regions(self.record.id).map(RemoteRegion::of).collect()
    }

    /// Its region of that number, as it was imported last.
    #[must_use]
    pub fn region(&self, id: RegionId) -> Option<RemoteRegion> {
        let core = &*self.handle.core;
        let turn = core.lanes[self.record.lane].turn(core);
        turn.engine.peer_region(self.record.id, id).map(RemoteRegion::of)
    }

    /// Forgets it: its transfers drain and fail, its plans become errors.
    pub fn disconnect(&self) {
        let core = &*self.handle.core;
        core.forget(&self.record);
        let mut peers = core.peers.lock();
        if peers.get(&self.record.name).is_some_and(|known| Arc::ptr_eq(known, &self.record)) {
            peers.remove(&self.record.name);
        }
    }
}

/// Waits for a peer to be ready, or lost.
struct Meeting<'a>(&'a Peer);

impl Awaited for Meeting<'_> {
    type Output = Result<(), PeerLostCause>;

    fn ready(&mut self) -> Option<Self::Output> {
        match self.0.state() {
            PeerState::Ready => Some(Ok(())),
            PeerState::Lost(cause) => Some(Err(cause)),
            _ => None,
        }
    }

    fn register(&mut self, waker: &Waker) {
        self.0.record.met.register(waker);
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.record, &other.record)
    }
}

impl Eq for Peer {}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} {} over {})", self.record.name, self.record.incarnation, self.record.choice.chosen)
    }
}

impl Core {
    fn forget(&self, record: &PeerRecord) {
        let mut turn = self.lanes[record.lane].turn(self);
        let now = self.clock.now();
        let state = &mut *turn;
        state.engine.remove_peer(now, &mut *state.fabric, record.id);
        turn.drive(now);
        turn.leave_to_driver();
    }

    /// Imports into the first transport that takes the peer.
    fn introduce(&self, metadata: &Metadata) -> Result<Arc<PeerRecord>, ConnectError> {
        let mut passed_over = Vec::new();
        let mut absent = self.absent.iter().peekable();
        for (index, lane) in self.lanes.iter().enumerate() {
            while let Some(absent) = absent.next_if(|absent| absent.before <= index) {
                passed_over.push(absent.passed_over.clone());
            }
            match self.import(index, metadata)? {
                Ok(id) => {
                    let record = Arc::new(PeerRecord {
                        name: metadata.name.as_str().into(),
                        incarnation: metadata.incarnation,
                        lane: index,
                        id,
                        choice: TransportChoice { chosen: lane.name, passed_over },
                        lost: OnceLock::new(),
                        met: Watch::default(),
                    });
                    lane.turn(self).remember(record.clone());
                    return Ok(record);
                }
                Err(error) => {
                    let reason = PassedOverReason::Peer(error);
                    passed_over.push(PassedOver { transport: lane.name, reason });
                }
            }
        }
        passed_over.extend(absent.map(|absent| absent.passed_over.clone()));
        Err(ConnectError::NoTransport { peer_name: metadata.name.clone(), tried: passed_over })
    }

    fn import(&self, lane: usize, metadata: &Metadata) -> Result<Result<PeerId, AddPeerError>, ConnectError> {
        let mut turn = self.lanes[lane].turn(self);
        if turn.closed {
            return Err(ConnectError::AgentClosed);
        }
        let now = self.clock.now();
        let state = &mut *turn;
        match state.engine.add_peer(now, &mut *state.fabric, metadata) {
            Err(AddPeerError::Itself) => Err(ConnectError::Itself),
            result => {
                // The greeting goes out at once.
                turn.drive(now);
                turn.leave_to_driver();
                Ok(result)
            }
        }
    }
}

impl Agent {
    /// Imports a peer's metadata and begins to connect; does not wait for the peer. Metadata of the same life of a
    /// known peer adds its regions to what is known. Metadata of another life under the same name makes a new peer
    /// and ends the old one (KR-11).
    ///
    /// The transport is the first of this agent's that reaches the peer; [`Peer::transport_choice`] says why others
    /// were passed over, and so does the log, once.
    ///
    /// # Errors
    /// [`ConnectError`]. The bytes are input from outside.
    pub fn connect(&self, metadata: &[u8]) -> Result<Peer, ConnectError> {
        let metadata = Metadata::decode(metadata)?;
        let core = self.core();
        let mut peers = core.peers.lock();
        let known = peers.get(metadata.name.as_str()).cloned();
        if let Some(record) = &known
            && record.incarnation == metadata.incarnation
            && record.lost.get().is_none()
        {
            return match core.import(record.lane, &metadata)? {
                Ok(id) if id == record.id => Ok(Peer::new(self.handle().clone(), record.clone())),
                Ok(id) => {
                    // The engine had lost the peer meanwhile and met it anew.
                    let choice = record.choice.clone();
                    let (name, incarnation, lane) = (record.name.clone(), record.incarnation, record.lane);
                    let lost = OnceLock::new();
                    let record = Arc::new(PeerRecord {
                        name,
                        incarnation,
                        lane,
                        id,
                        choice,
                        lost,
                        met: Watch::default(),
                    });
                    core.lanes[lane].turn(core).remember(record.clone());
                    peers.insert(record.name.clone(), record.clone());
                    Ok(Peer::new(self.handle().clone(), record))
                }
                Err(error) => {
                    let transport = record.choice.chosen;
                    Err(ConnectError::Import { peer_name: metadata.name, transport, error })
                }
            };
        }
        let record = core.introduce(&metadata)?;
        peers.insert(record.name.clone(), record.clone());
        drop(peers);
        if let Some(old) = known {
            core.forget(&old);
        }
        tracing::info!(
            agent = %core.name, peer = %record.name, incarnation = %record.incarnation,
            transport = %record.choice, "peer connected"
        );
        Ok(Peer::new(self.handle().clone(), record))
    }

    /// The peer of that name that was imported last.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<Peer> {
        let record = self.core().peers.lock().get(name).cloned()?;
        Some(Peer::new(self.handle().clone(), record))
    }

    /// All peers that were imported, lost ones included until they are imported again.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let peers = self.core().peers.lock();
        peers.values().map(|record| Peer::new(self.handle().clone(), record.clone())).collect()
    }

    /// Sends a message; it arrives exactly once, as a notification, independently of transfers.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::is_retryable`] when earlier ones are not acknowledged yet.
    pub fn send(&self, peer: &Peer, message: impl Into<Vec<u8>>) -> Result<(), SendError> {
        let core = self.core();
        let record = peer.record();
        if !Arc::ptr_eq(self.handle(), peer.handle()) {
            return Err(SendError::ForeignPeer { peer_name: record.name.clone() });
        }
        let mut turn = core.lanes[record.lane].turn(core);
        if turn.closed {
            return Err(SendError::AgentClosed);
        }
        turn.engine
            .send_message(record.id, message.into())
            .map_err(|error| SendError::Refused { peer_name: record.name.clone(), error })?;
        turn.drive(core.clock.now());
        turn.leave_to_driver();
        Ok(())
    }
}
