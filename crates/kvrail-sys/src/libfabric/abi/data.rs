//! Calls of the data path and of the queues: a look at the table, a look at the entry, the call.
//!
//! # Safety
//! All of them: objects are alive, made by the libfabric whose tables they carry, and used by one thread at a time as far as the domain's
//! threading level asks for that. Buffers and contexts stay where they are until the operation has completed, and what is posted may be
//! read or written by a device until then. Results are 0 or a count, or a negated `FI_E…`.
#![allow(clippy::missing_safety_doc, reason = "one promise for all of them, in the module's words")]
#![allow(clippy::too_many_arguments, reason = "the calls are libfabric's")]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use super::call;
use super::caller::{fi_cq_err_entry, fi_eq_err_entry, fi_msg, fi_msg_rma};
use super::constants::FI_ADDR_NOTAVAIL;
use super::errno::FI_ENOSYS;
use super::objects::{fi_addr_t, fid_cq, fid_ep, fid_eq};

/// A table of an object.
macro_rules! table {
    ($object:expr, $field:ident) => {
        // SAFETY: the caller's promise: the object is alive.
        unsafe { (*$object).$field }
    };
}

#[inline]
pub unsafe fn fi_recv(
    ep: *mut fid_ep,
    buffer: *mut c_void,
    len: usize,
    desc: *mut c_void,
    from: fi_addr_t,
    context: *mut c_void,
) -> isize {
    call!(table!(ep, msg), recv, ep, buffer, len, desc, from, context)
}

#[inline]
pub unsafe fn fi_recvmsg(ep: *mut fid_ep, message: *const fi_msg, flags: u64) -> isize {
    call!(table!(ep, msg), recvmsg, ep, message, flags)
}

#[inline]
pub unsafe fn fi_send(
    ep: *mut fid_ep,
    buffer: *const c_void,
    len: usize,
    desc: *mut c_void,
    to: fi_addr_t,
    context: *mut c_void,
) -> isize {
    call!(table!(ep, msg), send, ep, buffer, len, desc, to, context)
}

#[inline]
pub unsafe fn fi_sendmsg(ep: *mut fid_ep, message: *const fi_msg, flags: u64) -> isize {
    call!(table!(ep, msg), sendmsg, ep, message, flags)
}

#[inline]
pub unsafe fn fi_inject(ep: *mut fid_ep, buffer: *const c_void, len: usize, to: fi_addr_t) -> isize {
    call!(table!(ep, msg), inject, ep, buffer, len, to)
}

#[inline]
pub unsafe fn fi_read(
    ep: *mut fid_ep,
    buffer: *mut c_void,
    len: usize,
    desc: *mut c_void,
    from: fi_addr_t,
    at: u64,
    key: u64,
    context: *mut c_void,
) -> isize {
    call!(table!(ep, rma), read, ep, buffer, len, desc, from, at, key, context)
}

#[inline]
pub unsafe fn fi_readmsg(ep: *mut fid_ep, message: *const fi_msg_rma, flags: u64) -> isize {
    call!(table!(ep, rma), readmsg, ep, message, flags)
}

#[inline]
pub unsafe fn fi_write(
    ep: *mut fid_ep,
    buffer: *const c_void,
    len: usize,
    desc: *mut c_void,
    to: fi_addr_t,
    at: u64,
    key: u64,
    context: *mut c_void,
) -> isize {
    call!(table!(ep, rma), write, ep, buffer, len, desc, to, at, key, context)
}

#[inline]
pub unsafe fn fi_writemsg(ep: *mut fid_ep, message: *const fi_msg_rma, flags: u64) -> isize {
    call!(table!(ep, rma), writemsg, ep, message, flags)
}

#[inline]
pub unsafe fn fi_writedata(
    ep: *mut fid_ep,
    buffer: *const c_void,
    len: usize,
    desc: *mut c_void,
    data: u64,
    to: fi_addr_t,
    at: u64,
    key: u64,
    context: *mut c_void,
) -> isize {
    call!(table!(ep, rma), writedata, ep, buffer, len, desc, data, to, at, key, context)
}

#[inline]
pub unsafe fn fi_inject_write(
    ep: *mut fid_ep,
    buffer: *const c_void,
    len: usize,
    to: fi_addr_t,
    at: u64,
    key: u64,
) -> isize {
    call!(table!(ep, rma), inject, ep, buffer, len, to, at, key)
}

#[inline]
pub unsafe fn fi_cq_read(cq: *mut fid_cq, entries: *mut c_void, count: usize) -> isize {
    call!(table!(cq, ops), read, cq, entries, count)
}

#[inline]
pub unsafe fn fi_cq_readfrom(
    cq: *mut fid_cq,
    entries: *mut c_void,
    count: usize,
    from: *mut fi_addr_t,
) -> isize {
    call!(table!(cq, ops), readfrom, cq, entries, count, from)
}

/// `timeout` in milliseconds; negative = for ever.
pub unsafe fn fi_cq_sread(
    cq: *mut fid_cq,
    entries: *mut c_void,
    count: usize,
    condition: *const c_void,
    timeout: c_int,
) -> isize {
    call!(table!(cq, ops), sread, cq, entries, count, condition, timeout)
}

/// `entry` is not null.
pub unsafe fn fi_cq_readerr(cq: *mut fid_cq, entry: *mut fi_cq_err_entry, flags: u64) -> isize {
    // SAFETY: the caller's promise. A release that does not know the field leaves it as it is, which must not look like a peer.
    unsafe { (*entry).src_addr = FI_ADDR_NOTAVAIL };
    call!(table!(cq, ops), readerr, cq, entry, flags)
}

pub unsafe fn fi_cq_signal(cq: *mut fid_cq) -> c_int {
    call!(table!(cq, ops), signal, cq)
}

/// The provider's words for an error, in `buffer` or its own; null where it has none.
pub unsafe fn fi_cq_strerror(
    cq: *mut fid_cq,
    prov_errno: c_int,
    err_data: *const c_void,
    buffer: *mut c_char,
    len: usize,
) -> *const c_char {
    let table = table!(cq, ops);
    if table.is_null() {
        return ptr::null();
    }
    // SAFETY: not null, and every supported release has this entry.
    let entry = unsafe { (*table).strerror };
    // SAFETY: the caller's promise.
    entry.map_or(ptr::null(), |words| unsafe { words(cq, prov_errno, err_data, buffer, len) })
}

#[inline]
pub unsafe fn fi_eq_read(
    eq: *mut fid_eq,
    event: *mut u32,
    buffer: *mut c_void,
    len: usize,
    flags: u64,
) -> isize {
    call!(table!(eq, ops), read, eq, event, buffer, len, flags)
}

pub unsafe fn fi_eq_readerr(eq: *mut fid_eq, entry: *mut fi_eq_err_entry, flags: u64) -> isize {
    call!(table!(eq, ops), readerr, eq, entry, flags)
}

/// The provider's words for an error, in `buffer` or its own; null where it has none.
pub unsafe fn fi_eq_strerror(
    eq: *mut fid_eq,
    prov_errno: c_int,
    err_data: *const c_void,
    buffer: *mut c_char,
    len: usize,
) -> *const c_char {
    let table = table!(eq, ops);
    if table.is_null() {
        return ptr::null();
    }
    // SAFETY: not null, and every supported release has this entry.
    let entry = unsafe { (*table).strerror };
    // SAFETY: the caller's promise.
    entry.map_or(ptr::null(), |words| unsafe { words(eq, prov_errno, err_data, buffer, len) })
}
