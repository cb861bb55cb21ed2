//! What goes into an engine and comes out of it: settings, options, events, reports.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::{PeerState, Phase};
use crate::error::{PeerLostCause, TransferError};
use crate::id::{Incarnation, PeerId, Route, Token, TransferId};
use crate::limits::{MESSAGE_BYTES_MIN, NAME_BYTES_MAX, RAILS_MAX, TRANSFERS_MAX};
use crate::time::Time;
use crate::transport::{OpError, Transport};

/// How an engine behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// The agent's name, 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// The agent's life: random, chosen once per process (KR-11).
    pub incarnation: Incarnation,
    /// How long a transfer may take when its posting does not say. Default 30 s.
    pub transfer_timeout: Duration,
    /// How long every route to a peer may be down without a word from it. Default 10 s.
    pub peer_timeout: Duration,
    /// How soon a route that failed is probed; doubles up to one second. Default 1 ms.
    pub route_retry: Duration,
    /// Ops of at least this many bytes may be striped over several routes. Default 128 KiB.
    pub stripe_bytes_min: u32,
    /// Notifications and messages that may wait for [`Engine::poll_event`](super::Engine::poll_event) before peers are
    /// made to wait. With counted
    /// evidence each peer may add [`SLOTS_PER_PEER`](crate::limits::SLOTS_PER_PEER) that were accepted before their bytes
    /// came. Default 65,536.
    pub inbox_messages_max: usize,
    /// Transfers at a time. Default and limit [`TRANSFERS_MAX`].
    pub transfers_max: usize,
}

impl EngineConfig {
    /// The defaults under a name and an incarnation.
    #[must_use]
    pub fn new(name: impl Into<String>, incarnation: Incarnation) -> Self {
        Self {
            name: name.into(),
            incarnation,
            transfer_timeout: Duration::from_secs(30),
            peer_timeout: Duration::from_secs(10),
            route_retry: Duration::from_millis(1),
            stripe_bytes_min: 128 << 10,
            inbox_messages_max: 65_536,
            transfers_max: TRANSFERS_MAX,
        }
    }
}

/// Why an engine was not made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ConfigError {
    /// A setting is outside its range.
    OutOfRange {
        /// The setting.
        setting: &'static str,
        /// What it may be.
        range: String,
    },
    /// The transport breaks its contract.
    Transport(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { setting, range } => write!(f, "`{setting}` must be {range}"),
            Self::Transport(what) => f.write_str(what),
        }
    }
}

impl core::error::Error for ConfigError {}

/// How one posting differs from the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostOptions {
    /// Delivered at the peer once every byte is visible where it was written; at most
    /// [`NOTIFICATION_BYTES_MAX`](crate::limits::NOTIFICATION_BYTES_MAX).
    pub notification: Option<Vec<u8>>,
    /// Instead of [`EngineConfig::transfer_timeout`].
    pub timeout: Option<Duration>,
}

/// How a transfer went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferReport {
    /// Bytes moved.
    pub bytes: u64,
    /// Fabric ops.
    pub ops: u32,
    /// Ops that were repeated on another route.
    pub ops_retried: u32,
    /// When it was posted.
    pub posted_at: Time,
    /// When the fabric took its first op.
    pub first_op_at: Time,
    /// When it ended.
    pub ended_at: Time,
}

/// How far a transfer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferProgress {
    /// What it waits for.
    pub phase: Phase,
    /// Ops that succeeded.
    pub ops_done: u32,
    /// Ops in flight.
    pub ops_in_flight: u32,
    /// Ops in all.
    pub ops: u32,
}

/// What the engine tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// The one terminal event of a transfer posted here (KR-4).
    TransferEnded {
        /// As [`Engine::post`](super::Engine::post) returned it.
        token: Token,
        /// The transfer.
        id: TransferId,
        /// Whom it concerned.
        peer: PeerId,
        /// How it ended.
        result: Result<TransferReport, TransferError>,
    },
    /// A peer's notification or message. Every byte of its transfer is visible (KR-2).
    Notification {
        /// Who.
        peer: PeerId,
        /// The peer's name.
        name: Arc<str>,
        /// The transfer it belongs to; none for a message of its own.
        transfer: Option<TransferId>,
        /// What it says.
        message: Vec<u8>,
    },
    /// A peer's transfer that had a notification failed: the one terminal event on this side (KR-4).
    PeerTransferFailed {
        /// Who.
        peer: PeerId,
        /// The peer's name.
        name: Arc<str>,
        /// The transfer.
        transfer: TransferId,
        /// Its notification.
        message: Vec<u8>,
    },
    /// The peer answered: transfers can start.
    PeerReady {
        /// Who.
        peer: PeerId,
    },
    /// The peer is gone. Its transfers end as they drain.
    PeerLost {
        /// Who.
        peer: PeerId,
        /// The peer's name.
        name: Arc<str>,
        /// Why.
        cause: PeerLostCause,
    },
    /// A route was given up; its ops go over the others.
    RouteDown {
        /// Whom it led to.
        peer: PeerId,
        /// Which.
        route: Route,
        /// Why.
        error: OpError,
    },
    /// A route works again.
    RouteUp {
        /// Whom it leads to.
        peer: PeerId,
        /// Which.
        route: Route,
    },
}

/// A peer as it is known now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Its name.
    pub name: Arc<str>,
    /// Its life.
    pub incarnation: Incarnation,
    /// How far the acquaintance goes.
    pub state: PeerState,
    /// Its routes, and whether each is usable.
    pub routes: Vec<(Route, bool)>,
    /// Transfers to it.
    pub transfers: u32,
}

pub(super) fn check(config: &EngineConfig, transport: &dyn Transport) -> Result<(), ConfigError> {
    let out_of_range = |setting, range: String| Err(ConfigError::OutOfRange { setting, range });
    if config.name.is_empty() || config.name.len() > NAME_BYTES_MAX {
        return out_of_range("name", alloc::format!("1 to {NAME_BYTES_MAX} bytes"));
    }
    if config.transfers_max == 0 || config.transfers_max > TRANSFERS_MAX {
        return out_of_range("transfers_max", alloc::format!("1 to {TRANSFERS_MAX}"));
    }
    if config.inbox_messages_max == 0 {
        return out_of_range("inbox_messages_max", "at least 1".into());
    }
    if config.route_retry.is_zero() {
        return out_of_range("route_retry", "longer than zero".into());
    }
    if config.stripe_bytes_min == 0 {
        return out_of_range("stripe_bytes_min", "at least 1".into());
    }
    let caps = transport.caps();
    if transport.rails().is_empty() || transport.rails().len() > RAILS_MAX {
        return Err(ConfigError::Transport("a transport has 1 to 64 rails"));
    }
    if caps.op_bytes_max == 0 || caps.ops_in_flight_max == 0 || caps.stall_timeout.is_zero() {
        return Err(ConfigError::Transport("a transport's limits are not zero"));
    }
    if caps.message_bytes_max < MESSAGE_BYTES_MIN {
        return Err(ConfigError::Transport("a transport carries messages of MESSAGE_BYTES_MIN"));
    }
    Ok(())
}
