//! Conversions between the kernel's records and the library's, which librdmacm imports: without them it could not be loaded. There is no connection
//! manager for EFA, so that nothing here calls them.

use core::ffi::c_int;

use crate::ffi::{ibv_ah_attr, ibv_gid, ibv_qp_attr};

#[repr(C)]
#[derive(Clone, Copy)]
struct KernelRoute {
    dgid: [u8; 16],
    flow_label: u32,
    sgid_index: u8,
    hop_limit: u8,
    traffic_class: u8,
    _reserved: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct KernelHandle {
    grh: KernelRoute,
    dlid: u16,
    sl: u8,
    src_path_bits: u8,
    static_rate: u8,
    is_global: u8,
    port_num: u8,
    _reserved: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct KernelPair {
    _mask: u32,
    _state: u32,
    cur_qp_state: u32,
    path_mtu: u32,
    path_mig_state: u32,
    qkey: u32,
    rq_psn: u32,
    sq_psn: u32,
    dest_qp_num: u32,
    qp_access_flags: u32,
    ah_attr: KernelHandle,
    alt_ah_attr: KernelHandle,
    max_send_wr: u32,
    max_recv_wr: u32,
    max_send_sge: u32,
    max_recv_sge: u32,
    max_inline_data: u32,
    pkey_index: u16,
    alt_pkey_index: u16,
    en_sqd_async_notify: u8,
    sq_draining: u8,
    max_rd_atomic: u8,
    max_dest_rd_atomic: u8,
    min_rnr_timer: u8,
    port_num: u8,
    timeout: u8,
    retry_cnt: u8,
    rnr_retry: u8,
    alt_port_num: u8,
    alt_timeout: u8,
    _reserved: [u8; 5],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct KernelPath {
    dgid: [u8; 16],
    sgid: [u8; 16],
    dlid: u16,
    slid: u16,
    raw_traffic: u32,
    flow_label: u32,
    reversible: u32,
    mtu: u32,
    pkey: u16,
    hop_limit: u8,
    traffic_class: u8,
    numb_path: u8,
    sl: u8,
    mtu_selector: u8,
    rate_selector: u8,
    rate: u8,
    packet_life_time_selector: u8,
    packet_life_time: u8,
    preference: u8,
}

/// `ibv_sa_path_rec`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Path {
    dgid: ibv_gid,
    sgid: ibv_gid,
    dlid: u16,
    slid: u16,
    raw_traffic: c_int,
    flow_label: u32,
    hop_limit: u8,
    traffic_class: u8,
    reversible: c_int,
    numb_path: u8,
    pkey: u16,
    sl: u8,
    mtu_selector: u8,
    mtu: u8,
    rate_selector: u8,
    rate: u8,
    packet_life_time_selector: u8,
    packet_life_time: u8,
    preference: u8,
}

// Sizes of the kernel's records, which are ABI.
const _: () = assert!(size_of::<KernelHandle>() == 32);
const _: () = assert!(size_of::<KernelPair>() == 144);
const _: () = assert!(size_of::<KernelPath>() == 64);
const _: () = assert!(size_of::<Path>() == 64);

/// Copies fields of the same name, and of the same width but for those that only hold small numbers.
macro_rules! copy {
    ($from:expr => $to:expr; $( $field:ident ),*) => { $( $to.$field = $from.$field as _; )* };
}

/// # Safety
/// Each is null or a record of its kind, and they are not the same.
unsafe fn records<'a, T, F>(to: *mut T, from: *const F) -> Option<(&'a mut T, &'a F)> {
    // SAFETY: the caller's promise.
    let to = unsafe { to.as_mut() }?;
    // SAFETY: as above.
    let from = unsafe { from.as_ref() }?;
    Some((to, from))
}

fn handle_of(from: &KernelHandle, to: &mut ibv_ah_attr) {
    to.grh.dgid.raw = from.grh.dgid;
    copy!(from.grh => to.grh; flow_label, sgid_index, hop_limit, traffic_class);
    copy!(from => to; dlid, sl, src_path_bits, static_rate, is_global, port_num);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_copy_ah_attr_from_kern(to: *mut ibv_ah_attr, from: *const KernelHandle) {
    // SAFETY: null or the caller's records.
    if let Some((to, from)) = unsafe { records(to, from) } {
        handle_of(from, to);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_copy_qp_attr_from_kern(to: *mut ibv_qp_attr, from: *const KernelPair) {
    // SAFETY: null or the caller's records.
    let Some((to, from)) = (unsafe { records(to, from) }) else { return };
    copy!(from => to; cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags);
    copy!(from => to.cap; max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data);
    copy!(from => to; pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining, max_rd_atomic);
    copy!(from => to; max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry);
    copy!(from => to; alt_port_num, alt_timeout);
    handle_of(&from.ah_attr, &mut to.ah_attr);
    handle_of(&from.alt_ah_attr, &mut to.alt_ah_attr);
}

macro_rules! copy_path {
    ($from:expr => $to:expr) => {
        copy!($from => $to; dlid, slid, raw_traffic, flow_label, reversible, mtu, pkey, hop_limit, traffic_class);
        copy!($from => $to; numb_path, sl, mtu_selector, rate_selector, rate, packet_life_time_selector);
        copy!($from => $to; packet_life_time, preference);
    };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_copy_path_rec_from_kern(to: *mut Path, from: *const KernelPath) {
    // SAFETY: null or the caller's records.
    let Some((to, from)) = (unsafe { records(to, from) }) else { return };
    to.dgid.raw = from.dgid;
    to.sgid.raw = from.sgid;
    copy_path!(from => to);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_copy_path_rec_to_kern(to: *mut KernelPath, from: *const Path) {
    // SAFETY: null or the caller's records.
    let Some((to, from)) = (unsafe { records(to, from) }) else { return };
    to.dgid = from.dgid.raw;
    to.sgid = from.sgid.raw;
    copy_path!(from => to);
}
