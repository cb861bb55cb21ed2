//! Raw interfaces that kvrail loads at run time.
//!
//! * [`libfabric`]: found, checked and loaded by `dlopen`; its binary interface by hand; owners that close what they open, in order.
//! * [`ucp`]: the same for UCX's UCP.
//! * [`nixl`]: NIXL's C API, from a wheel or a system's own; what a process needs to be started with for it; owners of its objects.
//! * [`elf`], [`tables`]: what a shared library says about itself, without loading it; [`trial`]: loading it to see whether it can be done.
//!
//! `unsafe` lives here and in `kvrail-transport`. Nothing here decides what is sent where.

mod dl;
pub mod elf;
pub mod libfabric;
pub mod nixl;
pub mod tables;
pub mod trial;
pub mod ucp;
