//! How transfers and peers end badly: facts only; advice belongs to the program.

use alloc::string::String;
use core::fmt;

use crate::id::{PeerId, RegionId};
use crate::limits::NOTIFICATION_BYTES_MAX;
use crate::transport::{OpError, PeerError};

/// What a transfer was waiting for (KR-4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Awaited {
    /// The peer's answer to the greeting.
    Greeting,
    /// A slot or credit that the peer grants.
    Credit,
    /// A usable route: all are down.
    Route,
    /// Completions of ops in flight.
    Completions {
        /// How many.
        in_flight: u32,
    },
    /// The target's word that every byte is visible.
    Confirmation,
    /// Room for the notification: the peer does not acknowledge earlier ones.
    Window,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Greeting => f.write_str("the peer's answer to the greeting"),
            Self::Credit => f.write_str("a slot or credit of the peer"),
            Self::Route => f.write_str("a usable route; all are down"),
            Self::Completions { in_flight } => write!(f, "completions of {in_flight} ops in flight"),
            Self::Confirmation => f.write_str("the peer's confirmation that every byte is visible"),
            Self::Window => f.write_str("the peer's acknowledgement of earlier notifications"),
        }
    }
}

/// How a transfer failed. Every rail is quiet when this is reported (KR-7).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TransferError {
    /// It was cancelled, and has drained.
    Cancelled,
    /// Its deadline passed.
    DeadlineExceeded {
        /// What was awaited then.
        awaited: Awaited,
        /// Ops that had succeeded.
        ops_done: u32,
        /// Ops in all.
        ops: u32,
    },
    /// The peer is gone.
    PeerLost(PeerLostCause),
    /// An op failed in a way that no other route mends.
    Op {
        /// Index of the op in its plan.
        op: u32,
        /// The peer's region.
        remote_region: RegionId,
        /// Byte offset in that region.
        remote_offset: u64,
        /// Bytes.
        len: u32,
        /// Why.
        error: OpError,
    },
    /// The peer replaced a region of the plan while the transfer moved: prepare a new plan.
    StaleRemoteRegion(RegionId),
    /// The target counted more immediates than were posted: its evidence is worthless.
    Overshoot,
}

impl TransferError {
    /// The same plan may succeed when it is posted again.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::DeadlineExceeded { .. } | Self::Overshoot => true,
            Self::Cancelled | Self::PeerLost(_) | Self::StaleRemoteRegion(_) => false,
            Self::Op { error, .. } => error.is_retryable(),
        }
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("the transfer was cancelled"),
            Self::DeadlineExceeded { awaited, ops_done, ops } => {
                write!(f, "the deadline passed with {ops_done} of {ops} ops done, waiting for {awaited}")
            }
            Self::PeerLost(cause) => write!(f, "the peer is lost: {cause}"),
            Self::Op { op, remote_region, remote_offset, len, error } => write!(
                f,
                "op {op} ({len} bytes at offset {remote_offset} of remote {remote_region}) failed: {error}"
            ),
            Self::StaleRemoteRegion(region) => {
                write!(f, "the peer replaced remote {region} while the transfer moved")
            }
            Self::Overshoot => {
                f.write_str("the target counted more writes than were posted; the transfer proves nothing")
            }
        }
    }
}

impl core::error::Error for TransferError {}

/// Why a peer is not there any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PeerLostCause {
    /// It said goodbye.
    Closed,
    /// Its process is gone.
    Gone,
    /// Another process runs under its name (KR-11).
    Restarted,
    /// It had given this agent up, and greeted anew: what was under way is void on both sides.
    Reconnected,
    /// Every route is down and nothing was heard for [`crate::engine::EngineConfig::peer_timeout`].
    Silent,
    /// It was removed here.
    Removed,
}

impl fmt::Display for PeerLostCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "it said goodbye",
            Self::Gone => "its process is gone",
            Self::Restarted => "another process runs under its name",
            Self::Reconnected => "it had given this agent up and greeted anew",
            Self::Silent => "every route to it is down and it does not answer",
            Self::Removed => "it was removed here",
        })
    }
}

/// Why a transfer was not accepted. Nothing was started.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PostTransferError {
    /// The peer is not known (any more).
    UnknownPeer(PeerId),
    /// A local region of the plan was deregistered since the plan was made.
    StaleLocalRegion(RegionId),
    /// The peer deregistered a region of the plan, or the plan is older than its last metadata.
    StaleRemoteRegion(RegionId),
    /// The notification is longer than [`NOTIFICATION_BYTES_MAX`].
    NotificationTooLong(usize),
    /// As many transfers as configured are active: wait for one to end.
    TooManyTransfers(usize),
}

impl fmt::Display for PostTransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPeer(peer) => write!(f, "{peer} is not known (any more)"),
            Self::StaleLocalRegion(region) => {
                write!(f, "local {region} was deregistered since the plan was prepared")
            }
            Self::StaleRemoteRegion(region) => {
                write!(f, "remote {region} was deregistered or replaced since the plan was prepared")
            }
            Self::NotificationTooLong(len) => {
                write!(f, "a notification of {len} bytes; the limit is {NOTIFICATION_BYTES_MAX}")
            }
            Self::TooManyTransfers(limit) => write!(f, "{limit} transfers are active: the limit"),
        }
    }
}

impl core::error::Error for PostTransferError {}

/// Why a message was not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SendMessageError {
    /// The peer is not known (any more).
    UnknownPeer(PeerId),
    /// The peer has not acknowledged earlier ones: try later.
    Full,
    /// Longer than [`NOTIFICATION_BYTES_MAX`].
    TooLong(usize),
}

impl fmt::Display for SendMessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPeer(peer) => write!(f, "{peer} is not known (any more)"),
            Self::Full => f.write_str("the peer has not acknowledged earlier messages"),
            Self::TooLong(len) => {
                write!(f, "a message of {len} bytes; the limit is {NOTIFICATION_BYTES_MAX}")
            }
        }
    }
}

impl core::error::Error for SendMessageError {}

/// Why a peer was not added.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AddPeerError {
    /// Its metadata does not offer this transport.
    NoSuchTransport {
        /// What this engine drives.
        wanted: &'static str,
        /// What the metadata offers.
        offered: String,
    },
    /// It is this agent itself.
    Itself,
    /// As many peers as possible are known.
    TooManyPeers,
    /// The transport refused it or one of its regions.
    Transport(PeerError),
}

impl fmt::Display for AddPeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchTransport { wanted, offered } => {
                write!(f, "the peer's metadata offers {offered}, not {wanted}")
            }
            Self::Itself => f.write_str("the metadata is this agent's own"),
            Self::TooManyPeers => write!(f, "{} peers are known: the limit", crate::limits::PEERS_MAX),
            Self::Transport(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AddPeerError {}

/// Why a region could not be removed. It stays registered.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RemoveRegionError {
    /// It is not registered.
    Unknown(RegionId),
    /// A transfer of this agent still uses it: cancel or await it first (KR-7).
    Busy(RegionId),
    /// A peer still copies from or to it.
    InUse(String),
}

impl fmt::Display for RemoveRegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(region) => write!(f, "{region} is not registered"),
            Self::Busy(region) => write!(f, "{region} is used by a transfer in progress"),
            Self::InUse(what) => f.write_str(what),
        }
    }
}

impl core::error::Error for RemoveRegionError {}
