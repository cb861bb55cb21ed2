//! The device library that commands load instead of the system's libibverbs and libefa.

/// The library, as it is written into each run directory.
pub static DEVICE: &[u8] = &[];
