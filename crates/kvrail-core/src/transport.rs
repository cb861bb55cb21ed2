//! The fabric as the engine sees it: rails, one-sided ops in batches, small messages, events.
//!
//! Real fabrics and the simulator implement [`Transport`]; they do not know each other. A transport never blocks
//! (except where a method says so), never calls back, and never ends an op in silence: whatever it accepted is
//! resolved exactly once by an event (KR-6).
//!
//! # What a transport owes
//! * [`Transport::post`] takes a prefix of the batch and says how long it was. Each op taken is a debt.
//! * Each debt is paid by one of [`Event::Completed`] or [`Event::Failed`], never both, never twice.
//! * After [`Transport::reset`] every debt of that peer on that route is paid in bounded time, as `Failed` with
//!   [`OpError::Flushed`] where the fabric cannot tell (KR-7).
//! * [`Caps::linger`] bounds how long after a *failed* op bytes of it may still land. A transport that can prove
//!   the contrary (it fenced the connection, it copied itself) says zero.
//! * Nothing about one op is implied by another: ops are unordered, also inside an op (KR-1).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::id::{Generation, LocalRail, PeerId, RailSet, RegionId, Route, Token};
use crate::time::Time;

/// Direction of a one-sided op, seen from the agent that posts it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// Bytes move from the peer's memory into local memory.
    Read,
    /// Bytes move from local memory into the peer's memory.
    Write,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// What proves that the bytes of a write are visible at the target (KR-2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Evidence {
    /// Each write carries an immediate; the target counts them against a slot that it granted.
    Counted,
    /// A completion at the initiator means that the bytes are visible at the target.
    Delivered,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counted => "counted",
            Self::Delivered => "delivered",
        })
    }
}

/// Fixed facts about a transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// `"shm"`, `"tcp"`, …: the name in metadata; peers must agree on it.
    pub name: &'static str,
    /// The strictest evidence that this fabric supports; the engine uses it for every write.
    pub evidence: Evidence,
    /// Largest single op, bytes. The planner cuts longer descriptors.
    pub op_bytes_max: u32,
    /// Largest message that [`Transport::send`] takes, bytes; at least [`crate::limits::MESSAGE_BYTES_MIN`].
    pub message_bytes_max: usize,
    /// Ops in flight per local rail: the send queue, and the completion queue behind it (KR-8).
    pub ops_in_flight_max: u32,
    /// Ops that the rails together are handed in one turn of the engine; rails with work share them. Small where an op
    /// costs the posting thread a call: rails then start together, completions are read in between, and a posting returns
    /// soon. [`u32::MAX`] where a batch is worth the more the longer it is (a copy by this thread).
    pub turn_ops_max: u32,
    /// Immediates of all peers that a local rail can hold unread, beside the receives posted for messages: what the
    /// engine may grant as credit (KR-8). Messages need none: beyond the receives posted the fabric holds them back
    /// at their sender ([`OpError::ReceiverNotReady`] at worst), and the sender repeats them.
    pub receives_max: u32,
    /// How long after a failed op, or after a reset, bytes of it may still land, and how long after its completion
    /// bytes of a counted write may still become visible. Zero where that is impossible.
    pub linger: Duration,
    /// How long an op may stay in flight without any progress on its route before the route is given up.
    pub stall_timeout: Duration,
}

/// A rail as its owner describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RailInfo {
    /// Device or connection name, e.g. `rdmap79s0`.
    pub name: String,
    /// Line rate, bits per second; 0 when unknown. Only ratios matter to the planner.
    pub rate_bps: u64,
}

/// Where a region's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Device {
    /// Host memory.
    Host,
    /// Memory of the GPU with this ordinal.
    Cuda(u16),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// What went over one local rail since it was opened: what a person is told when a peer is silent (KR-4).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RailCounters {
    /// Ops and messages handed to the fabric.
    pub posted: u64,
    /// Those that the fabric reported as done.
    pub completed: u64,
    /// Those that the fabric reported as failed, or that were taken back.
    pub failed: u64,
    /// Messages and immediates that arrived.
    pub received: u64,
    /// What the device itself counts, where it can be read.
    pub device: Option<DeviceCounters>,
}

/// A network device's own counters, since the rail was opened. Other processes on the same device count too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceCounters {
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent again, where the device counts them.
    pub retransmitted: Option<u64>,
}

/// A region as it is registered with a transport, or imported from a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionInfo {
    /// Slot in its owner's table.
    pub id: RegionId,
    /// Tenant of that slot.
    pub generation: Generation,
    /// Address of the first byte in its owner's address space.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// Where the bytes are.
    pub device: Device,
}

/// One fabric operation of a plan. `len` is at most [`Caps::op_bytes_max`]; both ends were bounds-checked against
/// the regions' lengths at plan time (KR-9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// Byte offset in the local region.
    pub local_offset: u64,
    /// Byte offset in the remote region.
    pub remote_offset: u64,
    /// Local region.
    pub local_region: RegionId,
    /// Remote region.
    pub remote_region: RegionId,
    /// Bytes; never zero.
    pub len: u32,
}

/// Ops of one transfer for one route, handed over together.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Whom it concerns.
    pub peer: PeerId,
    /// Which rails.
    pub route: Route,
    /// Read or write.
    pub direction: Direction,
    /// Comes back with each completion.
    pub token: Token,
    /// Index of `ops[0]` in the transfer; op `i` of the batch is op `first + i` of the transfer.
    pub first: u32,
    /// The ops.
    pub ops: &'a [Op],
    /// With [`Evidence::Counted`], the immediate that each write carries.
    pub immediate: Option<u32>,
}

/// Something that happened on the fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Ops `first..first + count` of a transfer succeeded.
    Completed {
        /// From the batch.
        token: Token,
        /// First op.
        first: u32,
        /// Number of consecutive ops.
        count: u32,
    },
    /// Ops `first..first + count` of a transfer failed. Unless [`OpError::never_landed`], the bytes of each may
    /// have landed wholly, partly or not at all.
    Failed {
        /// From the batch.
        token: Token,
        /// First op.
        first: u32,
        /// Number of consecutive ops.
        count: u32,
        /// Why.
        error: OpError,
    },
    /// A peer's write with immediate became visible in local memory.
    Immediate {
        /// The local rail that it arrived on.
        rail: LocalRail,
        /// The value.
        value: u32,
    },
    /// A message arrived. Who sent it is written inside.
    Message {
        /// The local rail that it arrived on.
        rail: LocalRail,
        /// Its bytes: input from outside.
        bytes: Vec<u8>,
    },
    /// A message could not be delivered. (Success is not reported: the peer's acknowledgement is.)
    SendFailed {
        /// To whom.
        peer: PeerId,
        /// On which route.
        route: Route,
        /// Why.
        error: OpError,
    },
    /// A local rail can no longer be used; ops in flight on it fail one by one.
    RailDown {
        /// Which.
        rail: LocalRail,
    },
    /// A local rail can be used again.
    RailUp {
        /// Which.
        rail: LocalRail,
    },
    /// The transport knows that the peer's process is gone (not merely silent). Ops in flight fail one by one.
    PeerGone {
        /// Whom.
        peer: PeerId,
    },
    /// An endpoint was replaced by a new one: immediates that were on their way to it are lost, and [`Transport::address`] may
    /// give other bytes now, which peers must be told.
    AddressChanged,
}

/// How one op or message ended badly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OpError {
    /// The peer refuses the key: unknown region, wrong generation, or outside its bounds. The op did not land.
    BadKey,
    /// The peer's process was replaced by another.
    PeerRestarted,
    /// The peer has no receive posted (after the fabric's own retries).
    ReceiverNotReady,
    /// No answer in the fabric's own time.
    Unresponsive,
    /// No way to the peer.
    Unreachable,
    /// The rail failed.
    RailDown,
    /// Taken back by a reset or by removal of the peer.
    Flushed,
    /// The operating system denied access to the memory: an errno.
    Denied(i32),
    /// A memory access fault at either end: an errno. The op did not wholly land.
    Fault(i32),
    /// A code that this version does not know.
    Unknown(u32),
}

impl OpError {
    /// Another route may succeed where this one failed.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::ReceiverNotReady
                | Self::Unresponsive
                | Self::Unreachable
                | Self::RailDown
                | Self::Flushed
                | Self::Unknown(_)
        )
    }

    /// The op certainly left no byte behind and none will come.
    #[must_use]
    pub const fn never_landed(self) -> bool {
        matches!(self, Self::BadKey | Self::Denied(_))
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadKey => f.write_str("the peer does not know the region, its generation or that range"),
            Self::PeerRestarted => f.write_str("the peer's process was replaced by another"),
            Self::ReceiverNotReady => f.write_str("the peer has no receive posted"),
            Self::Unresponsive => f.write_str("the peer does not answer"),
            Self::Unreachable => f.write_str("no way to the peer"),
            Self::RailDown => f.write_str("the rail failed"),
            Self::Flushed => f.write_str("taken back when the route was reset"),
            Self::Denied(errno) => write!(f, "access to the peer's memory was denied (errno {errno})"),
            Self::Fault(errno) => write!(f, "memory could not be accessed (errno {errno})"),
            Self::Unknown(code) => write!(f, "unknown fabric error {code}"),
        }
    }
}

/// Why a post or a send was not taken. The batch stays with the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PostError {
    /// The route cannot be used now; others may.
    RouteDown,
    /// The transport does not know this peer (any more).
    UnknownPeer,
    /// The message is longer than [`Caps::message_bytes_max`].
    TooLong,
}

/// Why memory was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RegisterError {
    /// This transport cannot reach that kind of memory.
    Device(Device),
    /// The limit on regions or pages is reached; the text names it.
    Exhausted(String),
    /// The operating system or the device said no; the text says what was tried.
    Refused(String),
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "the transport cannot register {device} memory"),
            Self::Exhausted(what) | Self::Refused(what) => f.write_str(what),
        }
    }
}

/// Why a peer cannot be added or its region imported.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PeerError {
    /// The address or key bytes do not parse; the text says where.
    Malformed(String),
    /// The peer cannot be reached by this transport (another host, another user, another version…).
    Unreachable(String),
    /// A limit of this agent is reached; the text names it.
    Exhausted(String),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) | Self::Unreachable(what) | Self::Exhausted(what) => f.write_str(what),
        }
    }
}

/// A fabric. One thread at a time owns it (KR-5).
pub trait Transport {
    /// Fixed facts.
    fn caps(&self) -> &Caps;

    /// The local rails, in the order of their indices; at least one, at most [`crate::limits::RAILS_MAX`].
    fn rails(&self) -> &[RailInfo];

    /// Appends the bytes by which a peer's transport of the same name reaches this one: goes into metadata and
    /// into the greeting.
    fn address(&self, out: &mut Vec<u8>);

    /// Makes memory reachable for peers and usable as local end of ops.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is registered then.
    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError>;

    /// Appends the bytes that a peer needs beside [`RegionInfo`] to reach a registered region; may append nothing.
    fn region_key(&self, region: RegionId, out: &mut Vec<u8>);

    /// The local rails that a registered region may be moved over: those near its memory, and registered there.
    fn region_rails(&self, region: RegionId) -> RailSet {
        let _ = region;
        RailSet::ALL
    }

    /// Ends a registration: after return no peer's op touches the memory any more. The engine calls it only when
    /// none of its own ops uses the region. May block for a bounded grace period (a peer's copy in progress).
    ///
    /// # Errors
    /// A text when the grace period ended with the memory still in use; the registration stands then.
    fn deregister(&mut self, region: RegionId) -> Result<(), String>;

    /// Introduces a peer by the bytes its [`Transport::address`] gave and returns its rails. Does not wait for the
    /// peer: connecting goes on in [`Transport::poll`], and posts answer `Ok(0)` or `RouteDown` until then.
    ///
    /// # Errors
    /// [`PeerError`]: input from outside.
    fn add_peer(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError>;

    /// Takes in an address of a known peer that may differ from the one given before (it greets again after
    /// [`Event::AddressChanged`]). Older addresses that come late change nothing. Returns whether anything changed.
    ///
    /// # Errors
    /// [`PeerError`]: input from outside; what was known stands.
    fn readdress(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<bool, PeerError> {
        let _ = (now, peer, address);
        Ok(false)
    }

    /// Forgets a peer. Its ops in flight are flushed in bounded time, by events that come after this call.
    fn remove_peer(&mut self, now: Time, peer: PeerId);

    /// Makes a peer's region usable as remote end of ops. Called again with a new generation when the peer
    /// registers anew.
    ///
    /// # Errors
    /// [`PeerError`]: input from outside.
    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, key: &[u8]) -> Result<(), PeerError>;

    /// The peer's rails that an imported region may be moved over.
    fn imported_rails(&self, peer: PeerId, region: RegionId) -> RailSet {
        let _ = (peer, region);
        RailSet::ALL
    }

    /// Starts a prefix of the batch and returns its length; 0 means "full, try after the next events".
    ///
    /// # Errors
    /// [`PostError`]: nothing was taken.
    fn post(&mut self, now: Time, batch: &Batch<'_>) -> Result<usize, PostError>;

    /// Sends a small message. `Ok(false)` means "full, try after the next events".
    ///
    /// # Errors
    /// [`PostError`]: nothing was taken.
    fn send(&mut self, now: Time, peer: PeerId, route: Route, message: &[u8]) -> Result<bool, PostError>;

    /// Makes progress and appends what happened.
    fn poll(&mut self, now: Time, events: &mut Vec<Event>);

    /// Gives up what is in flight to a peer on a route: each op fails with [`OpError::Flushed`] (or ends as it
    /// really ended) in bounded time.
    fn reset(&mut self, now: Time, peer: PeerId, route: Route);

    /// Whether the last [`Transport::poll`] moved bytes for peers, of which this side hears nothing by events: reason
    /// to poll again before sleeping, where a transport needs its target's core.
    fn served(&self) -> bool {
        false
    }

    /// What went over each local rail; empty where nothing is counted. May read files: for reports, not for the data
    /// path.
    fn rail_counters(&mut self) -> Vec<RailCounters> {
        Vec::new()
    }

    /// When [`Transport::poll`] wants to be called even if nothing arrives.
    fn poll_timeout(&self) -> Option<Time> {
        None
    }
}
