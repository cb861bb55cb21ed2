//! kvrail moves KV-cache blocks between agents over many rails, fast and provably correct.
//!
//! ```
//! use kvrail::{Agent, Descriptors, Memory};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two agents; usually in two processes, on two hosts.
//! let prefill = Agent::builder("prefill-0").build()?;
//! let decode = Agent::builder("decode-0").build()?;
//!
//! // Memory that both register. A region keeps it alive as long as anything moves.
//! let source = prefill.register(Memory::shared(1 << 20)?)?;
//! let target = decode.register(Memory::shared(1 << 20)?)?;
//! source.fill(0, 1 << 20, 7)?;
//!
//! // Metadata travels by any way you like; `serve` and `connect_to` are one.
//! let peer = prefill.connect(&decode.metadata()?)?;
//!
//! // Pair slices once, post as often as you like.
//! let blocks = 0..16u64;
//! let local: Descriptors = blocks.clone().map(|b| source.slice(b << 16, 32 << 10)).collect::<Result<_, _>>()?;
//! let remote: Descriptors = blocks.map(|b| target.slice(b << 15, 32 << 10)).collect::<Result<_, _>>()?;
//! let plan = prefill.prepare(&peer, &local, &remote)?;
//! let report = plan.write().notify("request 42").post()?.wait()?;
//! assert_eq!(report.bytes, 16 * 32 << 10);
//!
//! // The notification comes after every byte is visible.
//! let notification = decode.wait_notification(Duration::from_secs(5))?;
//! assert_eq!(notification.message, b"request 42");
//! let mut last = [0; 1];
//! target.read((16 * 32 << 10) - 1, &mut last)?;
//! assert_eq!(last, [7]);
//! # Ok(()) }
//! ```
//!
//! # Nouns
//! An [`Agent`] is one process's endpoint. A [`Region`] is registered memory. [`Descriptors`] are slices of regions.
//! A [`Plan`] pairs local with remote descriptors: checked, coalesced, assigned to rails, reusable. A [`Transfer`] is
//! one posting of a plan. A [`Peer`] is a remote agent in one of its lives. A [`Notification`] is a peer's message,
//! delivered only after every byte of its transfer is visible.
//!
//! # What holds
//! Each transfer ends exactly once, in a [`Report`] or in an error, at the latest soon after its timeout (KR-4);
//! dropping a handle cancels, and memory stays alive until the last completion (KR-7); every descriptor is checked
//! against both sides' regions before a byte moves (KR-9); a restarted peer is another peer (KR-11); what transport
//! is used is said, and what was asked for and is not possible is an error (KR-13).
//!
//! # Configuration
//! The builder sets what the code knows; `KVRAIL_TRANSPORT=shm,ofi,tcp` and the variables of [`config::KNOBS`] and
//! [`config::TEXTS`] override it, because who deploys a container cannot change its code. What was chosen, by whom, and what
//! was passed over is logged once when an agent starts and once per peer, and can be read back: [`Agent::config`],
//! [`Agent::facts`], [`Peer::transport_choice`].
//!
//! # Many rails
//! [`TransportConfig::ofi`] drives one rail per NIC over libfabric, which is loaded when the agent is built. Without a choice
//! it is used where this host has an RDMA NIC that libfabric can use; named, it is used or is an error.
//!
//! ```no_run
//! use kvrail::{Agent, TransportConfig};
//!
//! let decode = Agent::builder("decode-0")
//!     .transports([TransportConfig::shm(), TransportConfig::ofi().provider("efa-direct".parse()?)])
//!     .build()?;
//! for transport in decode.facts().transports {
//!     println!("{transport}"); // ofi over provider efa-direct of libfabric …, 32 rails of 3200 Gb/s together, …
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Errors
//! One enum per operation, with `is_retryable()`; `Display` states facts, [`Hints`] gives advice. What ends because something
//! did not come carries a [`Silence`]: what each rail sent and received meanwhile, and what that probably means.
#![forbid(unsafe_code)]

mod agent;
mod builder;
mod clock;
pub mod config;
mod core;
mod facts;
mod graveyard;
mod hints;
mod inbox;
mod lane;
pub mod memory;
mod peer;
mod plan;
mod progress;
mod region;
pub mod rendezvous;
mod silence;
mod sleep;
mod stats;
mod transfer;
mod transports;
mod watch;

pub use agent::{Agent, CloseError, NamedRailStats, Stats, TransportStats};
pub use builder::{AgentBuilder, BuildError};
pub use facts::{Facts, TransportFacts};
pub use hints::Hints;
pub use inbox::{Notification, PeerEvent, WaitNotificationError};
pub use memory::Memory;
pub use peer::{
    ConnectError, PassedOver, PassedOverReason, Peer, RemoteRegion, SendError, TransportChoice,
    WaitReadyError,
};
pub use plan::{Plan, Post, PrepareError};
pub use progress::Progress;
pub use region::{DeregisterError, Deregistration, MetadataError, Region, RegisterError, Slice};
pub use silence::{Silence, SilentRail};
pub use stats::Latency;
pub use transfer::{PostError, Report, Transfer, TransferError};
pub use transports::{OpenError, TransportConfig};

pub use kvrail_core::descriptor::{Descriptors, Run, Slices};
pub use kvrail_core::engine::{PeerState, TransferProgress};
pub use kvrail_core::error::{Awaited, PeerLostCause};
pub use kvrail_core::id::{Generation, Incarnation, RegionId, Route};
pub use kvrail_transport::silence::Cause as SilenceCause;

pub use kvrail_core::transport::{Device, DeviceCounters, Evidence, RailCounters, RailInfo};

/// What can be said of the transport ofi: its provider, its affinity, and what it found.
pub mod ofi {
    pub use kvrail_transport::ofi::facts::{LibraryFacts, PassedOver, RailFacts, RailState, Receives, Wait};
    pub use kvrail_transport::ofi::{Affinity, Facts, OpenError, Provider};
}

/// What the engine reports, inside this crate's errors.
pub mod engine_error {
    pub use kvrail_core::error::{
        AddPeerError, PostTransferError, RemoveRegionError, SendMessageError, TransferError,
    };
    pub use kvrail_core::plan::{PlanError, SideName};
    pub use kvrail_core::region::RegionError;
    pub use kvrail_core::transport::{OpError, PeerError, PostError, RegisterError};
    pub use kvrail_core::wire::DecodeError;
}
