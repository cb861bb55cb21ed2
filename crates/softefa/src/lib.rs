//! Emulated EFA nodes: what `kvrail softefa` does, as a library.
//!
//! [`run`] sets up a fabric for commands and takes it down again; [`shape`] is what the nodes are made of, [`sysfs`]
//! how that looks in their private `/sys`; [`libfabric`] finds and inspects the libfabric on which they run;
//! [`library`] is the device library that makes its `efa` provider find devices.

pub mod libfabric;
pub mod library;
pub mod run;
pub mod shape;
pub mod sysfs;
