//! Agents with NIXL's semantics over [`kvrail::Agent`].

pub mod error;
pub mod exchange;
pub mod list;

pub use error::{Error, Result, Status};
