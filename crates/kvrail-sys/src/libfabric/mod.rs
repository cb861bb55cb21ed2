//! libfabric, loaded at run time: kvrail runs where there is none, and on whichever a machine has.
//!
//! [`Library::load`] finds one ([`Search`]), looks at its file before its code is mapped, and refuses with names and numbers
//! ([`LoadError`]). [`Info`] asks it what it offers. [`Fabric`], [`Domain`], [`Endpoint`], [`CompletionQueue`], [`EventQueue`],
//! [`AddressVector`] and [`MemoryRegion`] own its objects: each keeps alive what it stands on, and closes when nothing stands on it.
//! [`abi`] is the interface below, for what the owners do not cover.
//!
//! Invariants: a library that was named is used or refused, never replaced by another (KR-13); a library that is used is never
//! unmapped, because providers start threads.

pub mod abi;
mod domain;
mod edit;
mod endpoint;
mod error;
mod fabric;
mod file;
mod handle;
mod info;
mod library;
mod nic;
mod queue;
mod release;
mod search;

pub use domain::{AddressVector, Domain, MemoryRegion, Registration};
pub use edit::Edit;
pub use endpoint::{Endpoint, outcome};
pub use error::{FabricError, LoadError};
pub use fabric::{EqEvent, EqFailure, EventQueue, Fabric};
pub use info::{Entries, Entry, Info};
pub use library::{API_NEWEST, Library, Parameter, RELEASE_MIN, SYMBOLS_MIN, SYMBOLS_USED};
pub use nic::{Nic, PciAddress};
pub use queue::{CompletionQueue, CqFailure, Wait};
pub use release::Release;
pub use search::{Origin, SONAME, Search, VARIABLE};
