//! An EFA device in software, under the verbs ABI.
//!
//! Linked as `libibverbs.so.1` (and `libefa.so.1`), it takes the place of rdma-core's libraries and the kernel's driver: libfabric's
//! `efa` provider opens it as it opens the real device. [`nic`] is the device, in plain Rust; `ffi` has the ABI's types, `abi` its functions.

mod abi;
pub mod ffi;
pub mod nic;
