//! The exported functions: each decodes what C says, asks the device in [`crate::nic`], and encodes the answer as rdma-core does.
//!
//! Error conventions are the verbs': a function that returns a pointer gives null and sets `errno`; one that returns `int` gives the
//! errno itself, where rdma-core does so, or -1 with `errno` set. What EFA has not got is declined with `EOPNOTSUPP`.
//!
//! # What is trusted
//! Handles come from C. The functions that create, change and destroy look each one up in the table of live objects ([`objects`]): one that was
//! destroyed, belongs to the parent of a fork or was never ours is refused with `EINVAL`. The functions that post and poll are called
//! millions of times a second and trust their handle, as rdma-core's do. Pointers to attributes are trusted to be null or valid.
//!
//! Nothing here unwinds into C: the library is built with `panic = "abort"`.

mod channel;
mod completion;
mod context;
mod declined;
mod device;
mod domain;
mod efadv;
mod hold;
mod kernel;
mod memory;
mod names;
mod objects;
mod pair;
mod poll;
mod port;
mod post;
mod rates;
mod send;
mod sysfs;

use core::ffi::{c_char, c_int, c_void};

use crate::nic::Limit;

fn set_errno(error: c_int) {
    // SAFETY: the address of the calling thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is valid and this thread's alone.
    unsafe { *errno = error };
}

/// Null, with the reason in `errno`.
fn null_with<T>(error: c_int) -> *mut T {
    set_errno(error);
    core::ptr::null_mut()
}

/// -1, with the reason in `errno`.
fn minus_one_with(error: c_int) -> c_int {
    set_errno(error);
    -1
}

/// The errno for a refusal of the device.
fn errno_of(limit: Limit) -> c_int {
    match limit {
        Limit::Beyond | Limit::Gone => libc::EINVAL,
        Limit::Exhausted => libc::ENOMEM,
        Limit::Unmapped => libc::EFAULT,
    }
}

/// Writes a structure that a caller of any version passed: zeroes its `len` bytes, and copies as many of ours as fit.
///
/// # Safety
/// `into` is valid for writes of `len` bytes.
unsafe fn write_prefix<T: Copy>(into: *mut T, len: usize, value: &T) {
    // SAFETY: the caller says that so many bytes are writable.
    unsafe { into.cast::<u8>().write_bytes(0, len) };
    let from = core::ptr::from_ref(value).cast::<u8>();
    // SAFETY: as above; ours are not more than the structure has, and it is a local one.
    unsafe { into.cast::<u8>().copy_from_nonoverlapping(from, len.min(size_of::<T>())) };
}

/// Reads a structure that a caller of any version passed. What its is shorter is zero; what it is longer has to be zero, since it would ask
/// for something that is not known here.
///
/// # Safety
/// `from` is valid for reads of `len` bytes; `T` is a structure of integers.
unsafe fn read_prefix<T: Copy + Default>(from: *const T, len: usize) -> Option<T> {
    let mut value = T::default();
    let into = core::ptr::from_mut(&mut value).cast::<u8>();
    // SAFETY: the caller says that so many bytes are readable, and ours are a local structure of integers.
    unsafe { into.copy_from_nonoverlapping(from.cast::<u8>(), len.min(size_of::<T>())) };
    for at in size_of::<T>()..len {
        // SAFETY: within the caller's bytes.
        let byte = unsafe { from.cast::<u8>().add(at) };
        // SAFETY: as above.
        if unsafe { byte.read() } != 0 {
            return None;
        }
    }
    Some(value)
}

/// Whether a structure of `len` bytes has the whole field that begins at `offset` (the headers' `vext_field_avail` asks the same).
fn has_field(offset: usize, len: u32) -> bool {
    offset < len as usize
}

/// Copies `text` into a C string of fixed size, cut where need be.
fn copy_text(into: &mut [c_char], text: &str) {
    let Some(room) = into.len().checked_sub(1) else { return };
    for (cell, byte) in into.iter_mut().zip(text.bytes().take(room).chain(core::iter::once(0))) {
        *cell = byte.cast_signed() as c_char;
    }
}

/// A pointer that a structure holds but that nothing here looks into.
type Opaque = *mut c_void;
