//! Polling completion queues, and reading what was polled.

use core::ffi::{c_int, c_uint};
use core::mem::offset_of;

use super::completion::Queue;
use super::objects;
use crate::ffi::*;
use crate::nic::{Completion, Opcode, Status};

/// What a completion's source is when there is no address handle for it.
const NO_HANDLE: u16 = 0xffff;

/// The verbs status for EFA's, as rdma-core's EFA library maps it.
fn status_of(status: Status) -> c_uint {
    match status {
        Status::Ok => IBV_WC_SUCCESS,
        Status::Flushed => IBV_WC_WR_FLUSH_ERR,
        Status::QpInternalError | Status::UnsupportedOp | Status::InvalidAh => IBV_WC_LOC_QP_OP_ERR,
        Status::InvalidLkey => IBV_WC_LOC_PROT_ERR,
        Status::BadLength => IBV_WC_LOC_LEN_ERR,
        Status::RemoteBadAddress => IBV_WC_REM_ACCESS_ERR,
        Status::RemoteAbort => IBV_WC_REM_ABORT_ERR,
        Status::RemoteBadDestQpn => IBV_WC_REM_INV_RD_REQ_ERR,
        Status::RemoteNotReady => IBV_WC_RNR_RETRY_EXC_ERR,
        Status::RemoteBadLength => IBV_WC_REM_INV_REQ_ERR,
        Status::RemoteBadStatus => IBV_WC_BAD_RESP_ERR,
        Status::UnresponsiveRemote | Status::UnreachableRemote => IBV_WC_RESP_TIMEOUT_ERR,
        Status::RemoteUnknownPeer => IBV_WC_REM_OP_ERR,
    }
}

/// EFA's completions tell writes from all other sends: that of a read says "send".
fn opcode_of(opcode: Opcode) -> c_uint {
    match opcode {
        Opcode::Send | Opcode::Read => IBV_WC_SEND,
        Opcode::Write => IBV_WC_RDMA_WRITE,
        Opcode::Receive => IBV_WC_RECV,
        Opcode::ReceiveWrite => IBV_WC_RECV_RDMA_WITH_IMM,
    }
}

/// Bytes are told of receives only, as EFA does.
fn bytes_of(completion: &Completion) -> u32 {
    match completion.opcode {
        Opcode::Receive | Opcode::ReceiveWrite => completion.bytes,
        Opcode::Send | Opcode::Write | Opcode::Read => 0,
    }
}

fn flags_of(completion: &Completion) -> c_uint {
    if completion.immediate.is_some() { IBV_WC_WITH_IMM } else { 0 }
}

impl Queue {
    /// The completion that was polled last.
    ///
    /// # Safety
    /// The calling thread polls the queue.
    unsafe fn current<'a>(queue: *mut ibv_cq_ex) -> &'a Completion {
        // SAFETY: a handle that is being polled.
        let queue = unsafe { objects::trusted::<Queue>(queue.cast()) };
        // SAFETY: only the thread that polls writes it, and that is this one.
        unsafe { &*queue.current.get() }
    }

    /// Takes the next completion into `current` and the public fields; `ENOENT` when there is none.
    ///
    /// # Safety
    /// The calling thread polls the queue.
    unsafe fn advance(&self) -> c_int {
        let Some(completion) = self.poll() else {
            return libc::ENOENT;
        };
        let public = self.public.get();
        // SAFETY: the fields belong to the thread that polls.
        unsafe { (*public).wr_id = completion.id };
        // SAFETY: as above.
        unsafe { (*public).status = status_of(completion.status) };
        // SAFETY: as above.
        unsafe { *self.current.get() = completion };
        0
    }
}

/// Solicited events are not EFA's.
pub(super) unsafe extern "C" fn req_notify_cq(queue: *mut ibv_cq, solicited_only: c_int) -> c_int {
    if solicited_only != 0 {
        return libc::EOPNOTSUPP;
    }
    // SAFETY: a handle that the caller uses.
    let queue = unsafe { objects::trusted::<Queue>(queue) };
    queue.queue.arm();
    0
}

pub(super) unsafe extern "C" fn poll_cq(queue: *mut ibv_cq, count: c_int, into: *mut ibv_wc) -> c_int {
    // SAFETY: a handle that the caller uses.
    let queue = unsafe { objects::trusted::<Queue>(queue) };
    let mut taken = 0;
    while taken < count {
        let Some(completion) = queue.poll() else { break };
        let entry = ibv_wc {
            wr_id: completion.id,
            status: status_of(completion.status),
            opcode: opcode_of(completion.opcode),
            vendor_err: completion.status as u32,
            byte_len: bytes_of(&completion),
            imm_data: completion.immediate.unwrap_or(0),
            qp_num: completion.qpn,
            src_qp: completion.from_qpn,
            wc_flags: flags_of(&completion),
            pkey_index: 0,
            slid: completion.from_handle.unwrap_or(NO_HANDLE),
            sl: 0,
            dlid_path_bits: 0,
        };
        // SAFETY: the caller has room for `count` entries.
        let place = unsafe { into.add(taken as usize) };
        // SAFETY: as above.
        unsafe { place.write(entry) };
        taken += 1;
    }
    taken
}

pub(super) unsafe extern "C" fn start_poll(
    queue: *mut ibv_cq_ex,
    attributes: *mut ibv_poll_cq_attr,
) -> c_int {
    // SAFETY: null or the caller's structure.
    if unsafe { attributes.as_ref() }.is_some_and(|attributes| attributes.comp_mask != 0) {
        return libc::EINVAL;
    }
    // SAFETY: a handle that the caller uses.
    let queue = unsafe { objects::trusted::<Queue>(queue.cast()) };
    if !queue.single_threaded {
        queue.hold.take();
    }
    // SAFETY: the hold, or the application's promise, makes this thread the one that polls.
    let polled = unsafe { queue.advance() };
    if polled != 0 && !queue.single_threaded {
        queue.hold.release();
    }
    polled
}

pub(super) unsafe extern "C" fn next_poll(queue: *mut ibv_cq_ex) -> c_int {
    // SAFETY: a handle that the caller uses.
    let queue = unsafe { objects::trusted::<Queue>(queue.cast()) };
    // SAFETY: called between start and end, so that this thread is the one that polls.
    unsafe { queue.advance() }
}

pub(super) unsafe extern "C" fn end_poll(queue: *mut ibv_cq_ex) {
    // SAFETY: a handle that the caller uses.
    let queue = unsafe { objects::trusted::<Queue>(queue.cast()) };
    if !queue.single_threaded {
        queue.hold.release();
    }
}

pub(super) unsafe extern "C" fn read_opcode(queue: *mut ibv_cq_ex) -> c_uint {
    // SAFETY: called between start and end of polling, as the functions below.
    opcode_of(unsafe { Queue::current(queue) }.opcode)
}

pub(super) unsafe extern "C" fn read_vendor_err(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.status as u32
}

pub(super) unsafe extern "C" fn read_byte_len(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    bytes_of(unsafe { Queue::current(queue) })
}

/// In network byte order, as the sender gave it.
pub(super) unsafe extern "C" fn read_imm_data(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.immediate.unwrap_or(0)
}

pub(super) unsafe extern "C" fn read_qp_num(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.qpn
}

pub(super) unsafe extern "C" fn read_src_qp(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.from_qpn
}

pub(super) unsafe extern "C" fn read_wc_flags(queue: *mut ibv_cq_ex) -> c_uint {
    // SAFETY: see `read_opcode`.
    flags_of(unsafe { Queue::current(queue) })
}

pub(super) unsafe extern "C" fn read_slid(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.from_handle.unwrap_or(NO_HANDLE).into()
}

pub(super) unsafe extern "C" fn read_zero(_queue: *mut ibv_cq_ex) -> u8 {
    0
}

/// The completion of a queue, of which C has EFA's part.
///
/// # Safety
/// The calling thread polls the queue.
unsafe fn current_of<'a>(efa: *mut efadv_cq) -> &'a Completion {
    let queue = efa.cast::<u8>().wrapping_sub(offset_of!(Queue, efa)).cast::<ibv_cq_ex>();
    // SAFETY: EFA's part lies in its queue.
    unsafe { Queue::current(queue) }
}

/// Only told when there is no address handle for it.
pub(super) unsafe extern "C" fn read_sgid(efa: *mut efadv_cq, into: *mut ibv_gid) -> c_int {
    // SAFETY: see `read_opcode`.
    let completion = unsafe { current_of(efa) };
    match (completion.from_handle, completion.from) {
        (None, Some(from)) => {
            // SAFETY: the caller's structure.
            unsafe { into.write(ibv_gid { raw: from.0 }) };
            0
        }
        _ => -libc::ENOENT,
    }
}

pub(super) unsafe extern "C" fn is_unsolicited(efa: *mut efadv_cq) -> bool {
    // SAFETY: see `read_opcode`.
    unsafe { current_of(efa) }.unsolicited
}
