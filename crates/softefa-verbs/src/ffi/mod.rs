//! Types and constants of the verbs ABI, as far as the device library touches them.
//!
//! They are written by hand from the facts of `<infiniband/verbs.h>` and `<infiniband/efadv.h>` (rdma-core 44 to 65, whose structures only grow):
//! names, order and width of the fields. `tests/layout.rs` compares every size and offset with the installed headers. A field that only
//! a newer header has says so.
//!
//! Names, and what the fields mean, are the headers'.
#![allow(missing_docs, non_camel_case_types, non_snake_case)]

mod constants;
mod context;
mod device;
mod efadv;
mod objects;
mod queues;

pub use constants::*;
pub use context::*;
pub use device::*;
pub use efadv::*;
pub use objects::*;
pub use queues::*;

/// A function that is never called through its table: the device has no such operation.
pub type unused_op = Option<unsafe extern "C" fn()>;
