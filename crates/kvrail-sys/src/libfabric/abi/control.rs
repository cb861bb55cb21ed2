//! Calls that set up and tear down.
//!
//! # Safety
//! All of them: objects are alive, made by the libfabric whose tables they carry, and used by one thread at a time as far as the domain's
//! threading level asks for that; pointers are what libfabric's manual asks for; null is allowed where the manual allows it.
#![allow(clippy::missing_safety_doc, reason = "one promise for all of them, in the module's words")]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use super::caller::{fi_av_attr, fi_cq_attr, fi_eq_attr, fi_mr_attr};
use super::constants::{FI_ENABLE, FI_GETWAIT};
use super::errno::FI_ENOSYS;
use super::info::fi_info;
use super::objects::{
    fi_addr_t, fi_ops_domain, fi_ops_fabric, fid, fid_av, fid_cq, fid_domain, fid_ep, fid_eq, fid_fabric,
    fid_mr,
};
use super::{call, call_young};

/// The table of an object.
macro_rules! table {
    ($object:expr, $field:ident) => {
        // SAFETY: the caller's promise: the object is alive.
        unsafe { (*$object).$field }
    };
}

/// The table that an object's `fid` has.
macro_rules! fid_table {
    ($fid:expr) => {
        table!($fid, ops)
    };
}

pub unsafe fn fi_close(object: *mut fid) -> c_int {
    call!(fid_table!(object), close, object)
}

pub unsafe fn fi_bind(object: *mut fid, to: *mut fid, flags: u64) -> c_int {
    call!(fid_table!(object), bind, object, to, flags)
}

pub unsafe fn fi_control(object: *mut fid, command: c_int, argument: *mut c_void) -> c_int {
    call!(fid_table!(object), control, object, command, argument)
}

/// `what` points to an `int` for `FI_WAIT_FD`, to a `fi_wait_pollfd` for `FI_WAIT_POLLFD`.
pub unsafe fn fi_get_wait(object: *mut fid, what: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { fi_control(object, FI_GETWAIT, what) }
}

pub unsafe fn fi_open_ops(
    object: *mut fid,
    name: *const c_char,
    flags: u64,
    ops: *mut *mut c_void,
    context: *mut c_void,
) -> c_int {
    call!(fid_table!(object), ops_open, object, name, flags, ops, context)
}

pub unsafe fn fi_domain(
    fabric: *mut fid_fabric,
    info: *mut fi_info,
    domain: *mut *mut fid_domain,
    context: *mut c_void,
) -> c_int {
    call!(table!(fabric, ops), domain, fabric, info, domain, context)
}

/// With flags, which a table may be too old for.
pub unsafe fn fi_domain2(
    fabric: *mut fid_fabric,
    info: *mut fi_info,
    domain: *mut *mut fid_domain,
    flags: u64,
    context: *mut c_void,
) -> c_int {
    call_young!(table!(fabric, ops), fi_ops_fabric, domain2, fabric, info, domain, flags, context)
}

pub unsafe fn fi_eq_open(
    fabric: *mut fid_fabric,
    attr: *mut fi_eq_attr,
    eq: *mut *mut fid_eq,
    context: *mut c_void,
) -> c_int {
    call!(table!(fabric, ops), eq_open, fabric, attr, eq, context)
}

pub unsafe fn fi_trywait(fabric: *mut fid_fabric, fids: *mut *mut fid, count: c_int) -> c_int {
    call!(table!(fabric, ops), trywait, fabric, fids, count)
}

pub unsafe fn fi_endpoint(
    domain: *mut fid_domain,
    info: *mut fi_info,
    ep: *mut *mut fid_ep,
    context: *mut c_void,
) -> c_int {
    call!(table!(domain, ops), endpoint, domain, info, ep, context)
}

/// With flags, which a table may be too old for.
pub unsafe fn fi_endpoint2(
    domain: *mut fid_domain,
    info: *mut fi_info,
    ep: *mut *mut fid_ep,
    flags: u64,
    context: *mut c_void,
) -> c_int {
    call_young!(table!(domain, ops), fi_ops_domain, endpoint2, domain, info, ep, flags, context)
}

pub unsafe fn fi_cq_open(
    domain: *mut fid_domain,
    attr: *mut fi_cq_attr,
    cq: *mut *mut fid_cq,
    context: *mut c_void,
) -> c_int {
    call!(table!(domain, ops), cq_open, domain, attr, cq, context)
}

pub unsafe fn fi_av_open(
    domain: *mut fid_domain,
    attr: *mut fi_av_attr,
    av: *mut *mut fid_av,
    context: *mut c_void,
) -> c_int {
    call!(table!(domain, ops), av_open, domain, attr, av, context)
}

pub unsafe fn fi_mr_regattr(
    domain: *mut fid_domain,
    attr: *const fi_mr_attr,
    flags: u64,
    mr: *mut *mut fid_mr,
) -> c_int {
    call!(table!(domain, mr), regattr, domain.cast(), attr, flags, mr)
}

pub unsafe fn fi_mr_bind(mr: *mut fid_mr, to: *mut fid, flags: u64) -> c_int {
    // SAFETY: the caller's promise; a registration begins with its `fid`.
    unsafe { fi_bind(mr.cast(), to, flags) }
}

pub unsafe fn fi_mr_enable(mr: *mut fid_mr) -> c_int {
    // SAFETY: the caller's promise; a registration begins with its `fid`.
    unsafe { fi_control(mr.cast(), FI_ENABLE, ptr::null_mut()) }
}

pub unsafe fn fi_mr_desc(mr: *mut fid_mr) -> *mut c_void {
    table!(mr, mem_desc)
}

pub unsafe fn fi_mr_key(mr: *mut fid_mr) -> u64 {
    table!(mr, key)
}

pub unsafe fn fi_ep_bind(ep: *mut fid_ep, to: *mut fid, flags: u64) -> c_int {
    // SAFETY: the caller's promise; an endpoint begins with its `fid`.
    unsafe { fi_bind(ep.cast(), to, flags) }
}

pub unsafe fn fi_enable(ep: *mut fid_ep) -> c_int {
    // SAFETY: the caller's promise; an endpoint begins with its `fid`.
    unsafe { fi_control(ep.cast(), FI_ENABLE, ptr::null_mut()) }
}

pub unsafe fn fi_getname(ep: *mut fid_ep, address: *mut c_void, len: *mut usize) -> c_int {
    call!(table!(ep, cm), getname, ep.cast(), address, len)
}

pub unsafe fn fi_setname(ep: *mut fid_ep, address: *mut c_void, len: usize) -> c_int {
    call!(table!(ep, cm), setname, ep.cast(), address, len)
}

pub unsafe fn fi_getopt(
    ep: *mut fid_ep,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut usize,
) -> c_int {
    call!(table!(ep, ops), getopt, ep.cast(), level, name, value, len)
}

pub unsafe fn fi_setopt(
    ep: *mut fid_ep,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: usize,
) -> c_int {
    call!(table!(ep, ops), setopt, ep.cast(), level, name, value, len)
}

pub unsafe fn fi_cancel(ep: *mut fid_ep, context: *mut c_void) -> isize {
    call!(table!(ep, ops), cancel, ep.cast(), context)
}

pub unsafe fn fi_av_insert(
    av: *mut fid_av,
    addresses: *const c_void,
    count: usize,
    into: *mut fi_addr_t,
    flags: u64,
    context: *mut c_void,
) -> c_int {
    call!(table!(av, ops), insert, av, addresses, count, into, flags, context)
}

pub unsafe fn fi_av_remove(av: *mut fid_av, addresses: *mut fi_addr_t, count: usize, flags: u64) -> c_int {
    call!(table!(av, ops), remove, av, addresses, count, flags)
}

pub unsafe fn fi_av_lookup(av: *mut fid_av, at: fi_addr_t, address: *mut c_void, len: *mut usize) -> c_int {
    call!(table!(av, ops), lookup, av, at, address, len)
}

/// The address in words, in `buffer`; null where the provider has no words for it.
pub unsafe fn fi_av_straddr(
    av: *mut fid_av,
    address: *const c_void,
    buffer: *mut c_char,
    len: *mut usize,
) -> *const c_char {
    let table = table!(av, ops);
    if table.is_null() {
        return ptr::null();
    }
    // SAFETY: not null, and every supported release has this entry.
    let entry = unsafe { (*table).straddr };
    // SAFETY: the caller's promise.
    entry.map_or(ptr::null(), |words| unsafe { words(av, address, buffer, len) })
}
