//! Agents with NIXL's semantics over [`kvrail::Agent`].
//!
//! Callers of NIXL name memory by address, peers by name and transfers by handle, create backends, and poll. This crate keeps that
//! contract, as NIXL's Python API and C++ agent state it, over kvrail's regions, peers and plans; where NIXL's own behaviour is undefined
//! (a handle that was released, memory that is in use when it is deregistered, a peer that restarted) it is an error here.
//!
//! What is upheld: KR-1, KR-2 and KR-11 by kvrail below; KR-7 in `release` and `deregister`, which wait for the drain or refuse; KR-9 when
//! lists are prepared, against both sides' registrations; KR-13 in the backends, whose transport is chosen by configuration and told.
//!
//! * [`agent`]: agents; [`backend`]: what can be created on them; [`list`]: descriptor lists and their bytes;
//! * [`exchange`]: how metadata finds its way; [`telemetry`]; [`files`]: memory to files;
//! * [`error`]: NIXL's statuses with facts and hints.

pub mod agent;
pub mod backend;
pub mod error;
pub mod exchange;
pub mod files;
pub mod list;
mod long;
mod loopback;
mod metadata;
mod prepared;
mod request;
mod section;
pub mod telemetry;

pub use agent::{Agent, AgentConfig, Cost, DEFAULT_PORT, Handle, Known, LOCAL_SIDE, XferTelemetry};
pub use backend::{BackendKind, Params};
pub use error::{Error, Result, Status};
pub use prepared::Pieces;
pub use request::{Direction, Timing};
