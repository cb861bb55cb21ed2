//! Emulated EFA nodes: what `kvrail softefa` does, as a library.

pub mod library;
