//! What a device and its one port report about themselves, as the kernel's driver reports it.

use core::ffi::{c_int, c_void};

use softefa_fabric::QPS_PER_NIC_MAX;
use softefa_fabric::model::PACKET_BYTES;

use super::{context, copy_text, has_field, minus_one_with, write_prefix};
use crate::ffi::{
    _compat_ibv_port_attr, IBV_GID_TYPE_IB, IBV_LINK_LAYER_UNSPECIFIED, IBV_MTU_4096, IBV_PORT_ACTIVE,
    ibv_context, ibv_device_attr, ibv_device_attr_ex, ibv_gid, ibv_gid_entry, ibv_port_attr,
};
use crate::nic::Device;

/// Amazon's PCI vendor id.
const VENDOR: u32 = 0x1d0f;
/// The only partition key.
const PARTITION_KEY: u16 = 0xffff;
/// Objects that cost the emulation nothing: limits in the order of the real device's.
const DOMAINS_MAX: c_int = 256;
const COMPLETION_QUEUES_MAX: c_int = 2 * QPS_PER_NIC_MAX as c_int;
/// Any multiple of 4 KiB, as EFA.
const PAGE_SIZES: u64 = 0xffff_f000;
/// The physical state "link up".
const LINK_UP: u8 = 5;

/// Width and speed codes of InfiniBand whose product comes nearest to the rate from below, as the driver picks them.
fn link(rate_bps: u64) -> (u8, u8) {
    const X1: u8 = 1;
    const X4: u8 = 2;
    const X8: u8 = 4;
    const X12: u8 = 8;
    const SDR: u8 = 1;
    const DDR: u8 = 2;
    const FDR10: u8 = 8;
    const EDR: u8 = 32;
    const HDR: u8 = 64;
    match rate_bps / 1_000_000_000 {
        400.. => (X8, HDR),
        200.. => (X4, HDR),
        120.. => (X12, FDR10),
        100.. => (X4, EDR),
        60.. => (X12, DDR),
        50.. => (X1, HDR),
        40.. => (X4, FDR10),
        30.. => (X12, SDR),
        _ => (X1, EDR),
    }
}

fn describe_device(device: &Device) -> ibv_device_attr {
    let limits = device.limits();
    // SAFETY: integers and characters.
    let mut attributes: ibv_device_attr = unsafe { core::mem::zeroed() };
    copy_text(&mut attributes.fw_ver, "0.0.0.0");
    attributes.node_guid = super::device::guid(device);
    attributes.max_mr_size = limits.region_bytes;
    attributes.page_size_cap = PAGE_SIZES;
    attributes.vendor_id = VENDOR;
    attributes.vendor_part_id = limits.part;
    attributes.hw_ver = limits.part;
    attributes.max_qp = QPS_PER_NIC_MAX as c_int;
    attributes.max_qp_wr = limits.send_queue.min(limits.receive_queue) as c_int;
    // One for receives and one for RDMA.
    attributes.max_sge = 1;
    attributes.max_sge_rd = 1;
    attributes.max_cq = COMPLETION_QUEUES_MAX;
    attributes.max_cqe = limits.completion_queue as c_int;
    attributes.max_mr = limits.regions as c_int;
    attributes.max_pd = DOMAINS_MAX;
    attributes.max_ah = limits.address_handles as c_int;
    attributes.max_pkeys = 1;
    attributes.phys_port_cnt = 1;
    attributes
}

fn describe_port(device: &Device) -> ibv_port_attr {
    let (active_width, active_speed) = link(device.rate_bps());
    ibv_port_attr {
        state: IBV_PORT_ACTIVE,
        max_mtu: IBV_MTU_4096,
        active_mtu: IBV_MTU_4096,
        gid_tbl_len: 1,
        port_cap_flags: 0,
        max_msg_sz: PACKET_BYTES as u32,
        bad_pkey_cntr: 0,
        qkey_viol_cntr: 0,
        pkey_tbl_len: 1,
        lid: 0,
        sm_lid: 0,
        lmc: 1,
        max_vl_num: 1,
        sm_sl: 0,
        subnet_timeout: 0,
        init_type_reply: 0,
        active_width,
        active_speed,
        phys_state: LINK_UP,
        link_layer: IBV_LINK_LAYER_UNSPECIFIED,
        flags: 0,
        port_cap_flags2: 0,
        active_speed_ex: 0,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_device(context: *mut ibv_context, into: *mut ibv_device_attr) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return error,
    };
    if into.is_null() {
        return libc::EINVAL;
    }
    device.count_command(true);
    // SAFETY: the caller's structure, whose size has never changed.
    unsafe { write_prefix(into, size_of::<ibv_device_attr>(), &describe_device(device)) };
    0
}

pub(super) unsafe extern "C" fn query_device_ex(
    context: *mut ibv_context,
    input: *const c_void,
    into: *mut ibv_device_attr_ex,
    len: usize,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return error,
    };
    if into.is_null() || len < size_of::<ibv_device_attr>() {
        return libc::EINVAL;
    }
    // SAFETY: null or the caller's structure, whose only field is its mask.
    if unsafe { input.cast::<u32>().as_ref() }.is_some_and(|&mask| mask != 0) {
        return libc::EINVAL;
    }
    device.count_command(true);
    // SAFETY: integers.
    let mut attributes: ibv_device_attr_ex = unsafe { core::mem::zeroed() };
    attributes.orig_attr = describe_device(device);
    attributes.phys_port_cnt_ex = 1;
    // SAFETY: the caller says that its structure has so many bytes.
    unsafe { write_prefix(into, len, &attributes) };
    0
}

/// # Safety
/// `into` is valid for writes of `len` bytes; no thread closes the context meanwhile.
unsafe fn answer_port(context: *mut ibv_context, port: u8, into: *mut ibv_port_attr, len: usize) -> c_int {
    // SAFETY: the caller's promise.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return error,
    };
    if into.is_null() || port != 1 {
        return libc::EINVAL;
    }
    device.count_command(true);
    // SAFETY: the caller's promise.
    unsafe { write_prefix(into, len, &describe_port(device)) };
    0
}

pub(super) unsafe extern "C" fn query_port(
    context: *mut ibv_context,
    port: u8,
    into: *mut ibv_port_attr,
    len: usize,
) -> c_int {
    // SAFETY: the caller says that its structure has so many bytes.
    unsafe { answer_port(context, port, into, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_port(
    context: *mut ibv_context,
    port: u8,
    into: *mut _compat_ibv_port_attr,
) -> c_int {
    // SAFETY: the caller's structure is of this size at least.
    unsafe { answer_port(context, port, into.cast(), size_of::<_compat_ibv_port_attr>()) }
}

/// In units of 100 Mb/s.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_port_speed(context: *mut ibv_context, port: u32, speed: *mut u64) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return error,
    };
    // SAFETY: null or the caller's integer.
    match unsafe { speed.as_mut() } {
        Some(speed) if port == 1 => {
            *speed = device.rate_bps() / 100_000_000;
            0
        }
        _ => libc::EINVAL,
    }
}

/// The port's one address, or the errno.
///
/// # Safety
/// No thread closes the context meanwhile.
unsafe fn gid(context: *mut ibv_context, port: u32, index: u32) -> Result<ibv_gid, c_int> {
    // SAFETY: the caller's promise.
    let device = unsafe { context::device(context) }?;
    if port != 1 || index != 0 {
        return Err(libc::EINVAL);
    }
    Ok(ibv_gid { raw: device.gid().0 })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_gid(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    into: *mut ibv_gid,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let gid = match unsafe { gid(context, port.into(), index.cast_unsigned()) } {
        Ok(gid) => gid,
        Err(error) => return minus_one_with(error),
    };
    // SAFETY: null or the caller's structure.
    match unsafe { into.as_mut() } {
        Some(into) => {
            *into = gid;
            0
        }
        None => minus_one_with(libc::EINVAL),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn _ibv_query_gid_ex(
    context: *mut ibv_context,
    port: u32,
    index: u32,
    into: *mut ibv_gid_entry,
    flags: u32,
    len: usize,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let gid = match unsafe { gid(context, port, index) } {
        Ok(gid) => gid,
        Err(error) => return error,
    };
    if flags != 0
        || into.is_null()
        || !has_field(core::mem::offset_of!(ibv_gid_entry, ndev_ifindex), len as u32)
    {
        return libc::EINVAL;
    }
    // SAFETY: the caller says that its structure has so many bytes.
    unsafe { write_prefix(into, len, &entry(gid)) };
    0
}

fn entry(gid: ibv_gid) -> ibv_gid_entry {
    ibv_gid_entry { gid, gid_index: 0, port_num: 1, gid_type: IBV_GID_TYPE_IB, ndev_ifindex: 0 }
}

/// The table has one entry. Negative errno, as rdma-core gives it.
#[unsafe(no_mangle)]
unsafe extern "C" fn _ibv_query_gid_table(
    context: *mut ibv_context,
    into: *mut ibv_gid_entry,
    entries_max: usize,
    flags: u32,
    len: usize,
) -> isize {
    // SAFETY: the caller does not close the context meanwhile.
    let gid = match unsafe { gid(context, 1, 0) } {
        Ok(gid) => gid,
        Err(error) => return -(error as isize),
    };
    if flags != 0
        || into.is_null()
        || entries_max == 0
        || !has_field(core::mem::offset_of!(ibv_gid_entry, ndev_ifindex), len as u32)
    {
        return -(libc::EINVAL as isize);
    }
    // SAFETY: the caller says that its entries have so many bytes, and that there is room for one.
    unsafe { write_prefix(into, len, &entry(gid)) };
    1
}

/// For rdma-core's tools, which print it.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_gid_type(
    context: *mut ibv_context,
    port: u8,
    index: u32,
    kind: *mut u32,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    if let Err(error) = unsafe { gid(context, port.into(), index) } {
        return minus_one_with(error);
    }
    // SAFETY: null or the caller's integer.
    match unsafe { kind.as_mut() } {
        Some(kind) => {
            *kind = IBV_GID_TYPE_IB;
            0
        }
        None => minus_one_with(libc::EINVAL),
    }
}

/// The same, for the other versions of the name that `versions.S` gives it.
#[unsafe(no_mangle)]
unsafe extern "C" fn softefa_query_gid_type(
    context: *mut ibv_context,
    port: u8,
    index: u32,
    kind: *mut u32,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { ibv_query_gid_type(context, port, index, kind) }
}

/// In network byte order.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_pkey(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    key: *mut u16,
) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    if let Err(error) = unsafe { context::device(context) } {
        return minus_one_with(error);
    }
    // SAFETY: null or the caller's integer.
    match unsafe { key.as_mut() } {
        Some(key) if port == 1 && index == 0 => {
            *key = PARTITION_KEY.to_be();
            0
        }
        _ => minus_one_with(libc::EINVAL),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_pkey_index(context: *mut ibv_context, port: u8, key: u16) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = unsafe { context::device(context) };
    if device.is_ok() && port == 1 && u16::from_be(key) == PARTITION_KEY {
        0
    } else {
        minus_one_with(libc::EINVAL)
    }
}
