//! The shared memory of an emulated EFA fabric.
