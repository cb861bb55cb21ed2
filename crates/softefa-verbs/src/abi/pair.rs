//! Queue pairs: making, changing and destroying them.

use core::cell::UnsafeCell;
use core::ffi::{c_int, c_uint};
use core::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::completion::Queue;
use super::domain::Domain;
use super::hold::Hold;
use super::objects::{self, Kind, Object};
use super::send::{self, Session};
use super::{context, errno_of, has_field, null_with, read_prefix};
use crate::ffi::*;
use crate::nic::{Device, Flags, QueuePair, State};

/// A queue pair.
#[repr(C)]
pub(super) struct Pair {
    pub(super) public: UnsafeCell<ibv_qp_ex>,
    pub(super) efa: efadv_qp,
    pub(super) pair: Arc<QueuePair>,
    pub(super) device: Device,
    pub(super) caps: Caps,
    /// Held from `wr_start` to `wr_complete` or `wr_abort`; guards `session`.
    pub(super) hold: Hold,
    pub(super) session: UnsafeCell<Session>,
    /// The state as verbs have it, which knows one more (`SQD`) than the device.
    state: AtomicU32,
    asked: Asked,
}

/// What it may carry.
#[derive(Clone, Copy)]
pub(super) struct Caps {
    pub(super) limits: ibv_qp_cap,
    /// Unreliable datagrams rather than SRD. They are carried the same way: more reliable than they need be, and in no order. What differs is that
    /// a receive begins with room for a global route header ([`GRH_BYTES`]).
    pub(super) datagram: bool,
    /// A write may carry its bytes in the request.
    pub(super) inline_write: bool,
    pub(super) all_signaled: bool,
}

/// What `ibv_modify_qp` set and `ibv_query_qp` tells.
#[derive(Default)]
struct Asked {
    qkey: AtomicU32,
    send_psn: AtomicU32,
    rnr_retry: AtomicU32,
}

impl Object for Pair {
    const KIND: Kind = Kind::QueuePair;
    type Public = ibv_qp;
    const PUBLIC: usize = 0;
}

impl Pair {
    /// Its state as verbs have it.
    pub(super) fn verbs_state(&self) -> c_uint {
        // The device may have failed it by itself.
        if self.pair.state() == State::Err { IBV_QPS_ERR } else { self.state.load(Ordering::Relaxed) }
    }

    /// The pair of EFA's part of it.
    ///
    /// # Safety
    /// `efa` came from `efadv_qp_from_ibv_qp_ex` of a pair that is still there.
    pub(super) unsafe fn of_efa<'a>(efa: *mut efadv_qp) -> &'a Pair {
        let pair = efa.cast::<u8>().wrapping_sub(offset_of!(Pair, efa)).cast::<ibv_qp>();
        // SAFETY: EFA's part lies in its pair.
        unsafe { objects::trusted::<Pair>(pair) }
    }
}

/// Bytes at the beginning of a datagram's receive that are a global route header's. EFA writes nothing there; libfabric asks for them as a
/// message prefix.
pub(super) const GRH_BYTES: u32 = 40;

/// How often a message is repeated when nothing was set: for ever, as the device does.
const RNR_RETRY_FOR_EVER: u32 = 7;

/// The errno when EFA has no such queue pair.
fn check(device: &Device, wanted: &ibv_qp_init_attr_ex, efa: &efadv_qp_init_attr) -> Result<(), c_int> {
    let capabilities = device.limits().capabilities;
    let has = |capability: u32| capabilities & capability != 0;
    let reliable = wanted.qp_type == IBV_QPT_DRIVER;
    let mut operations = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
    let mut flags = 0;
    if reliable && has(EFADV_DEVICE_ATTR_CAPS_RDMA_READ) {
        operations |= IBV_QP_EX_WITH_RDMA_READ;
    }
    if reliable && has(EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE) {
        operations |= IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
        flags |= EFADV_QP_FLAGS_INLINE_WRITE;
    }
    if has(EFADV_DEVICE_ATTR_CAPS_UNSOLICITED_WRITE_RECV) {
        flags |= EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV;
    }
    let masks = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    if efa.driver_qp_type != EFADV_QP_DRIVER_TYPE_SRD
        || efa.flags & !flags != 0
        || efa.wr_flags & !EFADV_WR_EX_WITH_PROCESSING_HINTS != 0
        || wanted.comp_mask & !masks != 0
    {
        return Err(libc::EOPNOTSUPP);
    }
    if wanted.comp_mask & IBV_QP_INIT_ATTR_PD == 0 || !wanted.srq.is_null() {
        return Err(libc::EINVAL);
    }
    if wanted.comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS != 0 && wanted.send_ops_flags & !operations != 0 {
        return Err(libc::EOPNOTSUPP);
    }
    let limits = device.limits();
    let cap = &wanted.cap;
    let fits = cap.max_send_sge <= limits.send_segments
        && cap.max_recv_sge <= 1
        && cap.max_send_wr <= limits.send_queue
        && cap.max_recv_wr <= limits.receive_queue
        && cap.max_inline_data <= limits.inline_bytes;
    if fits { Ok(()) } else { Err(libc::EINVAL) }
}

/// Makes a pair, and writes into `wanted.cap` how long its queues became.
///
/// # Safety
/// Context, domain and queues stay meanwhile.
unsafe fn create(
    context: *mut ibv_context,
    wanted: &mut ibv_qp_init_attr_ex,
    efa: &efadv_qp_init_attr,
) -> Result<*mut ibv_qp, c_int> {
    // SAFETY: the caller's promise.
    let device = unsafe { context::device(context) }?;
    check(device, wanted, efa)?;
    // SAFETY: the caller's promise.
    let domain = unsafe { objects::find::<Domain>(wanted.pd) }.ok_or(libc::EINVAL)?;
    // SAFETY: as above.
    let send = unsafe { objects::find::<Queue>(wanted.send_cq) }.ok_or(libc::EINVAL)?;
    // SAFETY: as above.
    let receive = unsafe { objects::find::<Queue>(wanted.recv_cq) }.ok_or(libc::EINVAL)?;
    let mut cap = wanted.cap;
    cap.max_send_wr = cap.max_send_wr.max(1).next_power_of_two();
    cap.max_recv_wr = cap.max_recv_wr.max(1).next_power_of_two();
    let flags = Flags { unsolicited_write_receive: efa.flags & EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV != 0 };
    let pair = QueuePair::new(
        device,
        domain.number,
        &send.queue,
        &receive.queue,
        cap.max_send_wr,
        cap.max_recv_wr,
        flags,
    );
    device.count_command(pair.is_ok());
    let pair = pair.map_err(errno_of)?;
    domain.users.add();
    send.users.add();
    receive.users.add();
    let datagram = wanted.qp_type == IBV_QPT_UD;
    if datagram {
        receive.add_datagrams(pair.number());
    }
    wanted.cap = cap;
    let public = UnsafeCell::new(public_part(context, wanted, &pair));
    let hints = efa.wr_flags & EFADV_WR_EX_WITH_PROCESSING_HINTS != 0;
    let caps = Caps {
        limits: cap,
        datagram,
        inline_write: efa.flags & EFADV_QP_FLAGS_INLINE_WRITE != 0,
        all_signaled: wanted.sq_sig_all != 0,
    };
    let asked = Asked { rnr_retry: AtomicU32::new(RNR_RETRY_FOR_EVER), ..Asked::default() };
    Ok(objects::publish(Box::new(Pair {
        public,
        efa: efadv_qp { comp_mask: 0, wr_set_processing_hints: hints.then_some(send::set_processing_hints) },
        pair,
        device: device.clone(),
        caps,
        hold: Hold::new(),
        session: UnsafeCell::new(Session::default()),
        state: AtomicU32::new(IBV_QPS_RESET),
        asked,
    })))
}

fn public_part(context: *mut ibv_context, wanted: &ibv_qp_init_attr_ex, pair: &QueuePair) -> ibv_qp_ex {
    // SAFETY: integers, pointers, optional function pointers and glibc's mutex and condition, which all-zero bytes are.
    let mut public: ibv_qp_ex = unsafe { core::mem::zeroed() };
    let base = &mut public.qp_base;
    base.context = context;
    base.qp_context = wanted.qp_context;
    base.pd = wanted.pd;
    base.send_cq = wanted.send_cq;
    base.recv_cq = wanted.recv_cq;
    base.handle = pair.number();
    base.qp_num = pair.number();
    base.state = IBV_QPS_RESET;
    base.qp_type = wanted.qp_type;
    if wanted.comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS != 0 {
        send::fill(&mut public, wanted.send_ops_flags);
    }
    public
}

/// Of the transports that verbs know, EFA has unreliable datagrams; SRD is its own, made by `efadv_create_qp_ex`.
pub(super) unsafe extern "C" fn create_qp_ex(
    context: *mut ibv_context,
    wanted: *mut ibv_qp_init_attr_ex,
) -> *mut ibv_qp {
    // SAFETY: null or the caller's structure.
    let Some(wanted) = (unsafe { wanted.as_mut() }) else {
        return null_with(libc::EINVAL);
    };
    if wanted.qp_type != IBV_QPT_UD {
        return null_with(libc::EOPNOTSUPP);
    }
    // SAFETY: the caller does not destroy what it names meanwhile.
    unsafe { create(context, wanted, &efadv_qp_init_attr::default()) }.unwrap_or_else(null_with)
}

/// Makes a pair from classic attributes.
///
/// # Safety
/// Domain and queues stay meanwhile.
unsafe fn create_classic(
    domain: *mut ibv_pd,
    wanted: &mut ibv_qp_init_attr,
    efa: &efadv_qp_init_attr,
) -> Result<*mut ibv_qp, c_int> {
    // SAFETY: the caller's promise.
    let owner = unsafe { objects::find::<Domain>(domain) }.ok_or(libc::EINVAL)?;
    // SAFETY: integers and pointers.
    let mut extended: ibv_qp_init_attr_ex = unsafe { core::mem::zeroed() };
    extended.qp_context = wanted.qp_context;
    extended.send_cq = wanted.send_cq;
    extended.recv_cq = wanted.recv_cq;
    extended.srq = wanted.srq;
    extended.cap = wanted.cap;
    extended.qp_type = wanted.qp_type;
    extended.sq_sig_all = wanted.sq_sig_all;
    extended.comp_mask = IBV_QP_INIT_ATTR_PD;
    extended.pd = domain;
    // SAFETY: the caller's promise.
    let pair = unsafe { create(owner.context(), &mut extended, efa) }?;
    wanted.cap = extended.cap;
    Ok(pair)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_qp(domain: *mut ibv_pd, wanted: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    // SAFETY: null or the caller's structure.
    let Some(wanted) = (unsafe { wanted.as_mut() }) else {
        return null_with(libc::EINVAL);
    };
    if wanted.qp_type != IBV_QPT_UD {
        return null_with(libc::EOPNOTSUPP);
    }
    // SAFETY: the caller does not destroy what it names meanwhile.
    unsafe { create_classic(domain, wanted, &efadv_qp_init_attr::default()) }.unwrap_or_else(null_with)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_create_driver_qp(
    domain: *mut ibv_pd,
    wanted: *mut ibv_qp_init_attr,
    driver_qp_type: u32,
) -> *mut ibv_qp {
    // SAFETY: null or the caller's structure.
    let Some(wanted) = (unsafe { wanted.as_mut() }) else {
        return null_with(libc::EINVAL);
    };
    if wanted.qp_type != IBV_QPT_DRIVER {
        return null_with(libc::EINVAL);
    }
    let efa = efadv_qp_init_attr { driver_qp_type, ..efadv_qp_init_attr::default() };
    // SAFETY: the caller does not destroy what it names meanwhile.
    unsafe { create_classic(domain, wanted, &efa) }.unwrap_or_else(null_with)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_create_qp_ex(
    context: *mut ibv_context,
    wanted: *mut ibv_qp_init_attr_ex,
    efa: *const efadv_qp_init_attr,
    len: u32,
) -> *mut ibv_qp {
    // SAFETY: null or the caller's structure.
    let Some(wanted) = (unsafe { wanted.as_mut() }) else {
        return null_with(libc::EINVAL);
    };
    if wanted.qp_type != IBV_QPT_DRIVER
        || efa.is_null()
        || !has_field(offset_of!(efadv_qp_init_attr, driver_qp_type), len)
    {
        return null_with(libc::EINVAL);
    }
    // SAFETY: the caller says that its structure, of integers, has so many bytes.
    let Some(efa) = (unsafe { read_prefix(efa, len as usize) }) else {
        return null_with(libc::EINVAL);
    };
    if efa.comp_mask != 0 || efa.reserved != 0 {
        return null_with(libc::EINVAL);
    }
    // SAFETY: the caller does not destroy what it names meanwhile.
    unsafe { create(context, wanted, &efa) }.unwrap_or_else(null_with)
}

/// Null for a pair that was made without the new way of posting, as in rdma-core.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_qp_to_qp_ex(pair: *mut ibv_qp) -> *mut ibv_qp_ex {
    // SAFETY: the caller does not destroy it meanwhile.
    let Some(found) = (unsafe { objects::find::<Pair>(pair) }) else {
        return core::ptr::null_mut();
    };
    // SAFETY: the table is written at creation only.
    let has_table = unsafe { (*found.public.get()).wr_start }.is_some();
    if has_table { pair.cast() } else { core::ptr::null_mut() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_qp_from_ibv_qp_ex(pair: *mut ibv_qp_ex) -> *mut efadv_qp {
    // SAFETY: the caller does not destroy it meanwhile.
    match unsafe { objects::find::<Pair>(pair.cast()) } {
        Some(pair) => core::ptr::from_ref(&pair.efa).cast_mut(),
        None => null_with(libc::EINVAL),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_qp(pair: *mut ibv_qp) -> c_int {
    // SAFETY: the caller has finished with it.
    let pair = match unsafe { objects::retire::<Pair>(pair, |_| Ok(())) } {
        Ok(pair) => pair,
        Err(error) => return error,
    };
    pair.pair.close();
    pair.device.count_command(true);
    let (number, datagram) = (pair.pair.number(), pair.caps.datagram);
    let public = pair.public.into_inner().qp_base;
    // SAFETY: it has a user, this pair, and so was not destroyed.
    if let Some(domain) = unsafe { objects::find::<Domain>(public.pd) } {
        domain.users.remove();
    }
    // SAFETY: as above.
    if datagram && let Some(queue) = unsafe { objects::find::<Queue>(public.recv_cq) } {
        queue.remove_datagrams(number);
    }
    for queue in [public.send_cq, public.recv_cq] {
        // SAFETY: as above.
        if let Some(queue) = unsafe { objects::find::<Queue>(queue) } {
            queue.users.remove();
        }
    }
    0
}

/// What has to be and what may be set on the way from one state to the next; `None` where there is no way. As the kernel's driver has it
/// for SRD.
fn transition(from: c_uint, to: c_uint) -> Option<(c_int, c_int)> {
    let way = match (from, to) {
        (_, IBV_QPS_RESET | IBV_QPS_ERR) => (0, 0),
        (IBV_QPS_RESET, IBV_QPS_INIT) => (IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY, 0),
        (IBV_QPS_INIT, IBV_QPS_INIT) => (0, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY),
        (IBV_QPS_INIT, IBV_QPS_RTR) => (0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY),
        (IBV_QPS_RTR, IBV_QPS_RTS) => (IBV_QP_SQ_PSN, IBV_QP_CUR_STATE | IBV_QP_QKEY | IBV_QP_RNR_RETRY),
        (IBV_QPS_RTS | IBV_QPS_SQD, IBV_QPS_RTS) => (0, IBV_QP_CUR_STATE | IBV_QP_QKEY),
        (IBV_QPS_RTS, IBV_QPS_SQD) => (0, IBV_QP_EN_SQD_ASYNC_NOTIFY),
        (IBV_QPS_SQD, IBV_QPS_SQD) => (0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY),
        _ => return None,
    };
    Some(way)
}

fn device_state(state: c_uint) -> State {
    match state {
        IBV_QPS_INIT => State::Init,
        IBV_QPS_RTR => State::Rtr,
        // A send queue that drains still takes requests on EFA.
        IBV_QPS_RTS | IBV_QPS_SQD => State::Rts,
        IBV_QPS_ERR => State::Err,
        _ => State::Reset,
    }
}

fn modify(pair: &Pair, wanted: &ibv_qp_attr, mask: c_int) -> Result<c_uint, c_int> {
    const KNOWN: c_int = IBV_QP_STATE
        | IBV_QP_CUR_STATE
        | IBV_QP_EN_SQD_ASYNC_NOTIFY
        | IBV_QP_PKEY_INDEX
        | IBV_QP_PORT
        | IBV_QP_QKEY
        | IBV_QP_SQ_PSN
        | IBV_QP_RNR_RETRY;
    if mask & !KNOWN != 0 {
        return Err(libc::EOPNOTSUPP);
    }
    let has = |bit: c_int| mask & bit != 0;
    let now = pair.verbs_state();
    if has(IBV_QP_CUR_STATE) && wanted.cur_qp_state != now {
        return Err(libc::EINVAL);
    }
    let next = if has(IBV_QP_STATE) { wanted.qp_state } else { now };
    let (needed, allowed) = transition(now, next).ok_or(libc::EINVAL)?;
    let given = mask & !IBV_QP_STATE;
    let valid = given & needed == needed
        && given & !(needed | allowed) == 0
        && (!has(IBV_QP_PORT) || wanted.port_num == 1)
        && (!has(IBV_QP_PKEY_INDEX) || wanted.pkey_index == 0)
        && (!has(IBV_QP_RNR_RETRY) || u32::from(wanted.rnr_retry) <= RNR_RETRY_FOR_EVER);
    if !valid {
        return Err(libc::EINVAL);
    }
    if has(IBV_QP_QKEY) {
        pair.asked.qkey.store(wanted.qkey, Ordering::Relaxed);
        pair.pair.set_qkey(wanted.qkey);
    }
    if has(IBV_QP_SQ_PSN) {
        pair.asked.send_psn.store(wanted.sq_psn, Ordering::Relaxed);
    }
    if has(IBV_QP_RNR_RETRY) {
        pair.asked.rnr_retry.store(wanted.rnr_retry.into(), Ordering::Relaxed);
        pair.pair.set_rnr_retry(wanted.rnr_retry);
    }
    pair.pair.set_state(device_state(next));
    pair.state.store(next, Ordering::Relaxed);
    Ok(next)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_modify_qp(pair: *mut ibv_qp, wanted: *mut ibv_qp_attr, mask: c_int) -> c_int {
    // SAFETY: the caller does not destroy it meanwhile.
    let Some(found) = (unsafe { objects::find::<Pair>(pair) }) else {
        return libc::EINVAL;
    };
    // SAFETY: null or the caller's structure.
    let Some(wanted) = (unsafe { wanted.as_ref() }) else {
        return libc::EINVAL;
    };
    let result = modify(found, wanted, mask);
    found.device.count_command(result.is_ok());
    match result {
        Ok(state) => {
            // SAFETY: the field is the library's, and an application changes states from one thread at a time.
            unsafe { (*found.public.get()).qp_base.state = state };
            0
        }
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_qp(
    pair: *mut ibv_qp,
    into: *mut ibv_qp_attr,
    mask: c_int,
    init: *mut ibv_qp_init_attr,
) -> c_int {
    const KNOWN: c_int = IBV_QP_STATE
        | IBV_QP_CUR_STATE
        | IBV_QP_EN_SQD_ASYNC_NOTIFY
        | IBV_QP_PKEY_INDEX
        | IBV_QP_PORT
        | IBV_QP_QKEY
        | IBV_QP_SQ_PSN
        | IBV_QP_CAP
        | IBV_QP_RNR_RETRY;
    // SAFETY: the caller does not destroy it meanwhile.
    let Some(found) = (unsafe { objects::find::<Pair>(pair) }) else {
        return libc::EINVAL;
    };
    if mask & !KNOWN != 0 {
        return libc::EOPNOTSUPP;
    }
    found.device.count_command(true);
    let state = found.verbs_state();
    // SAFETY: the pair is there; only `state` and what the application writes ever change.
    let base = unsafe { &raw mut (*found.public.get()).qp_base };
    // SAFETY: the field is the library's.
    unsafe { (*base).state = state };
    // SAFETY: null or the caller's structure.
    if let Some(into) = unsafe { into.as_mut() } {
        // SAFETY: integers.
        *into = unsafe { core::mem::zeroed() };
        into.qp_state = state;
        into.cur_qp_state = state;
        into.qkey = found.asked.qkey.load(Ordering::Relaxed);
        into.sq_psn = found.asked.send_psn.load(Ordering::Relaxed);
        into.rnr_retry = found.asked.rnr_retry.load(Ordering::Relaxed) as u8;
        into.port_num = 1;
        into.cap = found.caps.limits;
    }
    // SAFETY: null or the caller's structure.
    if let Some(init) = unsafe { init.as_mut() } {
        // SAFETY: the pair is there; these fields are written at creation only.
        let base = unsafe { &*base };
        *init = ibv_qp_init_attr {
            qp_context: base.qp_context,
            send_cq: base.send_cq,
            recv_cq: base.recv_cq,
            srq: core::ptr::null_mut(),
            cap: found.caps.limits,
            qp_type: base.qp_type,
            sq_sig_all: found.caps.all_signaled.into(),
        };
    }
    0
}

/// SRD promises no order of bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_qp_data_in_order(
    _pair: *mut ibv_qp,
    _operation: c_uint,
    _flags: u32,
) -> c_int {
    0
}
