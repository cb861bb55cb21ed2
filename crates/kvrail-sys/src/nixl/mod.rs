//! NIXL, loaded at run time through its C API, `libnixl_capi.so`, which its wheels bring.
//!
//! [`Installation::find`] looks for one ([`Search`]) without loading anything; [`Surroundings`] says what the environment of a process
//! that is to load it must have, because the loader and NIXL read theirs when the process, or the library, starts.
//! [`Library::load`] loads it and refuses with names ([`LoadError`]). [`Agent`] and [`Backend`], [`Registration`], [`DescriptorList`],
//! [`PreparedList`] and [`Request`] own its objects: each keeps alive what it stands on, and gives it back in the order that NIXL needs.
//!
//! A process that has loaded NIXL must end by `_exit` once its output is flushed ([`leave`]): its wheels bring libibverbs and libnl a
//! second time, and their destructors crash at an ordinary exit.
//!
//! Invariants: what was named is used or refused, never replaced (KR-13); a library that is used is never unmapped.

mod abi;
mod agent;
mod backend;
mod error;
mod install;
mod library;
mod lists;
mod needs;
mod request;
mod surroundings;
mod turn;

pub use agent::{Agent, Config, Notification, Threads};
pub use backend::{Backend, PluginFacts};
pub use error::{LoadError, NixlError, Status};
pub use install::{Installation, LIBRARY, Origin, Search, VARIABLE};
pub use library::{Library, LogLevel, VERSION_MIN, leave};
pub use lists::{DescriptorList, Registration};
pub use needs::{Lack, lacks};
pub use request::{Operation, PreparedList, Request};
pub use surroundings::Surroundings;
