//! The libfabric that commands run on: found, looked at without loading it, and proven by a child that does.
//!
//! libfabric's `efa` provider is somebody else's binary. Whether it works here is decided by what it imports, so that
//! is read from its ELF tables and held against the tables of our own device library: no list is kept by hand.

mod error;
mod find;
mod inspect;
mod probe;

pub use error::Error;
pub use find::{Candidate, LIBFABRIC_VARIABLE, Origin, candidates, find};
pub use inspect::{Inspection, Provider, inspect};
pub use kvrail_sys::elf::{Elf, Import};
pub use kvrail_sys::libfabric::Release;
pub use probe::{Endpoint, Proof, load, probe};
