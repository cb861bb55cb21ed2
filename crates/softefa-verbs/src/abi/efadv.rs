//! EFA's own questions.

use core::ffi::{c_int, c_void};
use core::mem::offset_of;

use super::memory::{Handle, Region};
use super::objects;
use super::{Opaque, context, has_field, null_with, read_prefix, write_prefix};
use crate::ffi::*;

#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_query_device(
    context: *mut ibv_context,
    into: *mut efadv_device_attr,
    len: u32,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return error,
    };
    if into.is_null() || !has_field(offset_of!(efadv_device_attr, inline_buf_size_ex), len) {
        return libc::EINVAL;
    }
    let limits = device.limits();
    let inline = u16::try_from(limits.inline_bytes).unwrap_or(u16::MAX);
    let mut attributes = efadv_device_attr {
        comp_mask: 0,
        max_sq_wr: limits.send_queue,
        max_rq_wr: limits.receive_queue,
        max_sq_sge: limits.send_segments as u16,
        max_rq_sge: 1,
        inline_buf_size: inline,
        inline_buf_size_ex: inline,
        device_caps: limits.capabilities,
        max_rdma_size: limits.rdma_bytes,
    };
    if !has_field(offset_of!(efadv_device_attr, max_rdma_size), len) {
        // Who does not know RDMA's limit is not told that there is RDMA.
        let rdma = EFADV_DEVICE_ATTR_CAPS_RDMA_READ | EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE;
        attributes.device_caps &= !rdma;
    }
    // SAFETY: the caller says that its structure has so many bytes.
    unsafe { write_prefix(into, len as usize, &attributes) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_query_ah(handle: *mut ibv_ah, into: *mut efadv_ah_attr, len: u32) -> c_int {
    // SAFETY: the caller does not destroy it meanwhile.
    let Some(handle) = (unsafe { objects::find::<Handle>(handle) }) else {
        return libc::EINVAL;
    };
    if into.is_null() || !has_field(offset_of!(efadv_ah_attr, ahn), len) {
        return libc::EINVAL;
    }
    let attributes = efadv_ah_attr { ahn: handle.number, ..efadv_ah_attr::default() };
    // SAFETY: the caller says that its structure has so many bytes.
    unsafe { write_prefix(into, len as usize, &attributes) };
    0
}

/// Through which of the machine's interconnects a region is reached is not known: none is valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_query_mr(region: *mut ibv_mr, into: *mut efadv_mr_attr, len: u32) -> c_int {
    // SAFETY: the caller does not destroy it meanwhile.
    if unsafe { objects::find::<Region>(region) }.is_none() {
        return libc::EINVAL;
    }
    if into.is_null() || !has_field(offset_of!(efadv_mr_attr, rdma_recv_ic_id), len) {
        return libc::EINVAL;
    }
    // SAFETY: the caller says that its structure has so many bytes.
    unsafe { write_prefix(into, len as usize, &efadv_mr_attr::default()) };
    0
}

/// The longest send queue of pairs with these properties, or a negative errno.
#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_get_max_sq_depth(
    context: *mut ibv_context,
    attributes: *const efadv_sq_depth_attr,
    len: u32,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return -error,
    };
    if attributes.is_null() || !has_field(offset_of!(efadv_sq_depth_attr, max_inline_data), len) {
        return -libc::EINVAL;
    }
    // SAFETY: the caller says that its structure, of integers, has so many bytes.
    let Some(wanted) = (unsafe { read_prefix(attributes, len as usize) }) else {
        return -libc::EINVAL;
    };
    let limits = device.limits();
    let fits = wanted.comp_mask == 0
        && wanted.flags & !EFADV_SQ_DEPTH_ATTR_INLINE_WRITE == 0
        && wanted.max_send_sge <= limits.send_segments
        && wanted.max_rdma_sge <= 1
        && wanted.max_inline_data <= limits.inline_bytes;
    if fits { limits.send_queue as c_int } else { -libc::EINVAL }
}

/// The longest receive queue of pairs with these properties, or a negative errno.
#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_get_max_rq_depth(
    context: *mut ibv_context,
    attributes: *const efadv_rq_depth_attr,
    len: u32,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return -error,
    };
    if attributes.is_null() || !has_field(offset_of!(efadv_rq_depth_attr, max_recv_sge), len) {
        return -libc::EINVAL;
    }
    // SAFETY: the caller says that its structure, of integers, has so many bytes.
    let Some(wanted) = (unsafe { read_prefix(attributes, len as usize) }) else {
        return -libc::EINVAL;
    };
    if wanted.comp_mask == 0 && wanted.max_recv_sge <= 1 {
        device.limits().receive_queue as c_int
    } else {
        -libc::EINVAL
    }
}

/// The direct data path writes into a device's queues itself. This device has none to write into, and libfabric then posts through the functions.
#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_query_qp_wqs(
    _pair: *mut ibv_qp,
    _send: *mut c_void,
    _receive: *mut c_void,
    _len: u32,
) -> c_int {
    libc::EOPNOTSUPP
}

/// As [`efadv_query_qp_wqs`].
#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_query_cq(_queue: *mut ibv_cq, _into: *mut c_void, _len: u32) -> c_int {
    libc::EOPNOTSUPP
}

/// The device does not report the capability.
#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_create_comp_cntr(
    _context: *mut ibv_context,
    _attributes: *mut c_void,
    _efa: *mut c_void,
    _len: u32,
) -> Opaque {
    null_with(libc::EOPNOTSUPP)
}
