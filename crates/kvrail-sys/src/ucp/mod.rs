//! UCX's UCP, loaded at run time: kvrail runs where there is none, and on whichever a machine has.
//!
//! [`Library::load`] finds one ([`Search`]), looks at its file before its code is mapped, and refuses with names and numbers
//! ([`LoadError`]). [`Context`], [`MappedMemory`], [`Worker`], [`Endpoint`] and [`RemoteKey`] own its objects: each keeps alive what it stands
//! on, and closes when nothing stands on it. [`Tally`] counts what is in flight. [`abi`] is the interface below.
//!
//! UCX finds its transports in a directory `ucx` beside the library that is loaded (wheels too); `UCX_MODULE_DIR` names another. All other
//! `UCX_…` variables are UCX's and take effect as always.
//!
//! Invariants: a library that was named is used or refused, never replaced by another (KR-13); a library that is used is never
//! unmapped, because it starts threads and leaves hooks behind; an operation in flight keeps its tally and its registration (KR-6,
//! KR-7).

pub mod abi;
mod context;
mod endpoint;
mod error;
mod file;
mod lanes;
mod library;
mod search;
mod status;
mod tally;
mod worker;

pub use context::{Context, MappedMemory};
pub use endpoint::{Endpoint, RemoteKey, Transport};
pub use error::{LoadError, UcpError};
pub use library::{Library, RELEASE_MIN};
pub use search::{Origin, SONAME, Search, VARIABLE};
pub use status::Status;
pub use tally::Tally;
pub use worker::{ErrorHandling, Worker};
