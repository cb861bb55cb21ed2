//! Emulated EFA nodes: what `kvrail softefa` does, as a library.

pub mod library;
pub mod shape;
pub mod sysfs;
