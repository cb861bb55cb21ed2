//! What a supervisor and its workers say to each other: one JSON document per line over a connection on loopback.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use kvrail::TransferError;
use kvrail::engine_error::{OpError, TransferError as Cause};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::layout::Shape;
use crate::plant::Plant;
use crate::violation::Violation;

/// How an agent reaches the others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Rails {
    /// Connections per peer, on loopback.
    Tcp {
        /// How many.
        connections: u16,
    },
    /// libfabric.
    Ofi {
        /// The provider: `efa-direct`, `efa`.
        provider: String,
        /// `libfabric.so.1`, or its directory.
        libfabric: Option<PathBuf>,
        /// The first so many NICs; all otherwise.
        count: Option<u16>,
        /// When a rail without progress is given up, milliseconds; the transport's own figure otherwise.
        stall_ms: Option<u64>,
    },
}

/// What a worker is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// The agent's name.
    pub name: String,
    /// Its transport.
    pub rails: Rails,
    /// A thread of the agent makes progress; otherwise the worker's own.
    pub thread: bool,
    /// Bytes of each region.
    pub regions: Vec<u64>,
    /// Of patterns and poison.
    pub seed: u64,
    /// When a silent peer is lost, milliseconds.
    pub peer_timeout_ms: u64,
    /// A defect.
    pub plant: Option<Plant>,
}

/// Which way bytes go, seen from the initiator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Way {
    /// To the peer.
    Write,
    /// From the peer.
    Read,
}

/// Memory that a transfer uses at one end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// Which of the owner's regions, by its order in [`Part::regions`].
    pub region: usize,
    /// Where it begins.
    pub offset: u64,
}

/// A region as its owner knows it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tenant {
    /// Number in its owner's table.
    pub id: u32,
    /// Generation of that number.
    pub generation: u32,
}

/// A transfer to be posted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Posting {
    /// Its number, never used twice in a run.
    pub id: u64,
    /// The peer's name.
    pub peer: String,
    /// Which way.
    pub way: Way,
    /// The slices.
    pub shape: Shape,
    /// Here.
    pub local: Extent,
    /// There.
    pub remote: Extent,
    /// The tenant that the remote region is believed to have.
    pub tenant: Tenant,
    /// Tell the peer.
    pub notify: bool,
    /// When it must end.
    pub timeout_ms: u64,
    /// Cancel it after that many microseconds.
    pub cancel_us: Option<u64>,
}

/// What a supervisor asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Be this.
    Be(Part),
    /// Give your metadata.
    Describe,
    /// Import a peer's metadata, hexadecimal.
    Meet {
        /// The bytes.
        metadata: String,
    },
    /// A peer will post this: prepare your end.
    Expect {
        /// Its number.
        id: u64,
        /// Which way, seen from the peer.
        way: Way,
        /// The slices.
        shape: Shape,
        /// Your end.
        extent: Extent,
    },
    /// Post this.
    Post(Posting),
    /// A transfer of yours or to you has ended, or never began: look at your end, and poison it again.
    Settle {
        /// Its number.
        id: u64,
        /// What must be found.
        find: Find,
    },
    /// Look whether the poison of then is still there, and forget the transfer.
    Release {
        /// Its number.
        id: u64,
    },
    /// Deregister a region, and register its memory anew.
    Renew {
        /// Which.
        region: usize,
    },
    /// Send a message.
    Send {
        /// To whom.
        peer: String,
        /// Its number.
        number: u64,
    },
    /// Post so many small writes to a peer, each with a notification.
    Burst {
        /// To whom.
        peer: String,
        /// How many.
        count: u64,
    },
    /// Make so many agents, one after the other, that meet this peer and write to it.
    Visit {
        /// Its metadata, hexadecimal.
        metadata: String,
        /// How many.
        count: u64,
    },
    /// Count what you have.
    Count,
    /// Close the agent, and end.
    End,
}

/// What must be found where a transfer moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Find {
    /// Every byte of it.
    All,
    /// Any part of it, and nothing else.
    Some,
    /// None of it.
    None,
}

/// How a transfer ended, or why it did not begin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Well.
    Done {
        /// Fabric ops.
        ops: u32,
        /// Ops that were posted again.
        retried: u32,
    },
    /// Badly.
    Failed {
        /// How.
        class: Class,
        /// In the library's words.
        text: String,
        /// Its advice.
        hints: Vec<String>,
    },
}

/// How a transfer ended badly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Class {
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// Its deadline passed while only the peer's confirmation was missing.
    Unconfirmed,
    /// The peer was lost.
    PeerLost,
    /// The peer refused the key of a region.
    BadKey,
    /// An op failed otherwise.
    Op,
    /// The peer's region is another now.
    StaleRegion,
    /// The peer is not known (any more).
    UnknownPeer,
    /// The target's evidence is worthless.
    Overshoot,
    /// Something else.
    Other,
}

impl Class {
    /// Of an ended transfer.
    #[must_use]
    pub fn of(error: &TransferError) -> Self {
        let TransferError::Failed { error, .. } = error else { return Self::Other };
        Self::of_engine(error)
    }

    /// Of the engine's own error.
    #[must_use]
    pub fn of_engine(error: &Cause) -> Self {
        match error {
            Cause::Cancelled => Self::Cancelled,
            Cause::DeadlineExceeded { awaited: kvrail::Awaited::Confirmation, .. } => Self::Unconfirmed,
            Cause::DeadlineExceeded { .. } => Self::Deadline,
            Cause::PeerLost(_) => Self::PeerLost,
            Cause::Op { error: OpError::BadKey, .. } => Self::BadKey,
            Cause::Op { .. } => Self::Op,
            Cause::StaleRemoteRegion(_) => Self::StaleRegion,
            Cause::Overshoot => Self::Overshoot,
            _ => Self::Other,
        }
    }
}

/// What a worker says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Word {
    /// The agent is there.
    Am {
        /// Its regions.
        tenants: Vec<Tenant>,
        /// Its rails.
        rails: Vec<String>,
    },
    /// An order cannot be carried out at all.
    Cannot {
        /// Why not.
        what: String,
    },
    /// The metadata, hexadecimal.
    Metadata {
        /// The bytes.
        metadata: String,
    },
    /// A peer was imported, or why not.
    Met {
        /// Its name, or the error.
        peer: Result<String, String>,
    },
    /// An end is prepared.
    Ready {
        /// Of which transfer.
        id: u64,
    },
    /// The library refused a posting, or the plan for it. Nothing moves.
    Refused {
        /// Of which transfer.
        id: u64,
        /// How.
        class: Class,
        /// In the library's words.
        text: String,
    },
    /// It was posted.
    Posted {
        /// Of which transfer.
        id: u64,
        /// How long the call took, microseconds.
        took_us: u64,
    },
    /// It has ended.
    Ended {
        /// Which.
        id: u64,
        /// How.
        outcome: Outcome,
        /// Since it was posted, microseconds.
        took_us: u64,
    },
    /// Its notification came. What was wrong with its bytes at that moment.
    Notified {
        /// Of which transfer.
        id: u64,
        /// From whom.
        peer: String,
        /// What is wrong.
        wrong: Option<String>,
    },
    /// Its notification will not come: it failed.
    ToldOfFailure {
        /// Of which transfer.
        id: u64,
    },
    /// A message came.
    Heard {
        /// Its number.
        number: u64,
    },
    /// Whether a message was accepted.
    Sent {
        /// Its number.
        number: u64,
        /// Whether.
        accepted: bool,
    },
    /// What was found at an end.
    Settled {
        /// Of which transfer.
        id: u64,
        /// What is wrong.
        wrong: Option<Violation>,
    },
    /// The same, a while later.
    Released {
        /// Of which transfer.
        id: u64,
        /// What is wrong.
        wrong: Option<Violation>,
    },
    /// A region was registered anew, or why not.
    Renewed {
        /// Which.
        region: usize,
        /// Its tenant now, or the error.
        tenant: Result<Tenant, String>,
    },
    /// A peer is lost.
    Lost {
        /// Its name.
        peer: String,
        /// Why.
        cause: String,
    },
    /// A route went down or came up.
    Route {
        /// Whom it leads to.
        peer: String,
        /// What happened.
        what: String,
    },
    /// A burst or a visit is over: how many, or what went wrong.
    BurstEnded {
        /// How many.
        done: Result<u64, String>,
        /// How long it took, microseconds.
        took_us: u64,
    },
    /// What the worker has.
    Counted(Count),
    /// The agent is closed.
    Ending {
        /// Transfers that had not drained.
        undrained: usize,
    },
}

/// What a worker has.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Count {
    /// Resident memory, KiB.
    pub resident_kib: u64,
    /// Regions that are registered.
    pub regions: usize,
    /// Transfers that have not ended.
    pub transfers: usize,
    /// Peers that are known.
    pub peers: usize,
    /// Completions that paid no debt.
    pub unknown: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Notifications of bursts that came.
    pub heard: u64,
    /// Of those, how many came twice.
    pub heard_twice: u64,
}

/// Writes a line.
pub(crate) fn say<T: Serialize>(to: &mut impl Write, what: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(what).map_err(io::Error::other)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads a line; none at the end.
pub(crate) fn hear<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(io::Error::other)
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hexadecimal digits as bytes.
pub(crate) fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |d: u8| char::from(d).to_digit(16).map(|d| d as u8);
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
