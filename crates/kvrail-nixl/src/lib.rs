//! Agents with NIXL's semantics over [`kvrail::Agent`].

pub mod error;
pub mod exchange;
pub mod files;
pub mod list;
pub mod telemetry;

pub use error::{Error, Result, Status};
