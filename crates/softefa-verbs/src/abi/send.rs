//! Posting sends the new way: a batch is built by calls between `wr_start` and `wr_complete`, and posted as one.

use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};

use super::errno_of;
use super::memory::Handle;
use super::objects;
use super::pair::Pair;
use crate::ffi::*;
use crate::nic::{INLINE_MAX, Opcode, Payload, SEGMENTS_MAX, Segment, SendRequest};

/// A batch that is being built.
#[derive(Default)]
pub(super) struct Session {
    requests: Vec<SendRequest>,
    /// The first thing that was wrong with it; then none of it is posted. 0: nothing.
    error: c_int,
}

/// Enters the functions of the operations that were asked for into a pair's table.
pub(super) fn fill(public: &mut ibv_qp_ex, operations: u64) {
    let asked = |flag| operations & flag != 0;
    public.wr_start = Some(start);
    public.wr_complete = Some(complete);
    public.wr_abort = Some(abort);
    public.wr_send = asked(IBV_QP_EX_WITH_SEND).then_some(send);
    public.wr_send_imm = asked(IBV_QP_EX_WITH_SEND_WITH_IMM).then_some(send_imm);
    public.wr_rdma_read = asked(IBV_QP_EX_WITH_RDMA_READ).then_some(rdma_read);
    public.wr_rdma_write = asked(IBV_QP_EX_WITH_RDMA_WRITE).then_some(rdma_write);
    public.wr_rdma_write_imm = asked(IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM).then_some(rdma_write_imm);
    public.wr_set_ud_addr = Some(set_ud_addr);
    public.wr_set_sge = Some(set_sge);
    public.wr_set_sge_list = Some(set_sge_list);
    public.wr_set_inline_data = Some(set_inline_data);
    public.wr_set_inline_data_list = Some(set_inline_data_list);
}

/// # Safety
/// `pair` is a pair's handle that is in use.
unsafe fn pair_of<'a>(pair: *mut ibv_qp_ex) -> &'a Pair {
    // SAFETY: the caller's promise.
    unsafe { objects::trusted::<Pair>(pair.cast()) }
}

/// The batch of a pair whose hold the calling thread has.
///
/// # Safety
/// Called between `wr_start` and `wr_complete`, and no other reference to the batch is alive.
unsafe fn session<'a>(session: &UnsafeCell<Session>) -> &'a mut Session {
    // SAFETY: the hold makes it this thread's.
    unsafe { &mut *session.get() }
}

unsafe extern "C" fn start(pair: *mut ibv_qp_ex) {
    // SAFETY: the caller's handle, as in all functions of the table.
    let pair = unsafe { pair_of(pair) };
    pair.hold.take();
    // SAFETY: the hold was just taken.
    let session = unsafe { session(&pair.session) };
    session.requests.clear();
    session.error = 0;
}

unsafe extern "C" fn complete(pair: *mut ibv_qp_ex) -> c_int {
    // SAFETY: see `start`.
    let pair = unsafe { pair_of(pair) };
    // SAFETY: called after `wr_start`.
    let session = unsafe { session(&pair.session) };
    let mut error = session.error;
    if error == 0 && !session.requests.is_empty() {
        error = pair.pair.post_send(&session.requests).map_or_else(errno_of, |()| 0);
    }
    session.requests.clear();
    pair.hold.release();
    error
}

unsafe extern "C" fn abort(pair: *mut ibv_qp_ex) {
    // SAFETY: see `start`.
    let pair = unsafe { pair_of(pair) };
    // SAFETY: called after `wr_start`.
    unsafe { session(&pair.session) }.requests.clear();
    pair.hold.release();
}

/// Whether a request with these flags may be posted now.
pub(super) fn check_flags(pair: &Pair, flags: u32) -> Result<(), c_int> {
    let state = pair.verbs_state();
    let signaled = flags & IBV_SEND_SIGNALED != 0 || pair.caps.all_signaled;
    let known = flags & !(IBV_SEND_SIGNALED | IBV_SEND_INLINE) == 0;
    if (state == IBV_QPS_RTS || state == IBV_QPS_SQD) && signaled && known {
        Ok(())
    } else {
        Err(libc::EINVAL)
    }
}

/// Adds a request to the batch.
///
/// # Safety
/// As [`session`].
unsafe fn add(
    handle: *mut ibv_qp_ex,
    opcode: Opcode,
    immediate: Option<u32>,
    remote_key: u32,
    remote_addr: u64,
) {
    // SAFETY: see `start`.
    let pair = unsafe { pair_of(handle) };
    // SAFETY: called after `wr_start`.
    let session = unsafe { session(&pair.session) };
    if session.error != 0 {
        return;
    }
    // SAFETY: the application wrote it before this call, in this thread.
    let id = unsafe { (*handle).wr_id };
    // SAFETY: as above.
    let flags = unsafe { (*handle).wr_flags };
    if let Err(error) = check_flags(pair, flags) {
        session.error = error;
        return;
    }
    if session.requests.len() >= pair.caps.limits.max_send_wr as usize {
        session.error = libc::ENOMEM;
        return;
    }
    session.requests.push(SendRequest {
        id,
        opcode,
        immediate,
        remote_key,
        remote_addr,
        payload: Payload::EMPTY,
        to: None,
        qpn: 0,
        qkey: 0,
    });
}

unsafe extern "C" fn send(pair: *mut ibv_qp_ex) {
    // SAFETY: called after `wr_start`, as those below.
    unsafe { add(pair, Opcode::Send, None, 0, 0) };
}

unsafe extern "C" fn send_imm(pair: *mut ibv_qp_ex, immediate: u32) {
    // SAFETY: see `send`.
    unsafe { add(pair, Opcode::Send, Some(immediate), 0, 0) };
}

unsafe extern "C" fn rdma_read(pair: *mut ibv_qp_ex, key: u32, addr: u64) {
    // SAFETY: see `send`.
    unsafe { add(pair, Opcode::Read, None, key, addr) };
}

unsafe extern "C" fn rdma_write(pair: *mut ibv_qp_ex, key: u32, addr: u64) {
    // SAFETY: see `send`.
    unsafe { add(pair, Opcode::Write, None, key, addr) };
}

unsafe extern "C" fn rdma_write_imm(pair: *mut ibv_qp_ex, key: u32, addr: u64, immediate: u32) {
    // SAFETY: see `send`.
    unsafe { add(pair, Opcode::Write, Some(immediate), key, addr) };
}

/// Changes the request that was added last, or notes why not.
///
/// # Safety
/// As [`session`].
unsafe fn change(pair: *mut ibv_qp_ex, change: impl FnOnce(&Pair, &mut SendRequest) -> Result<(), c_int>) {
    // SAFETY: see `start`.
    let pair = unsafe { pair_of(pair) };
    // SAFETY: called after `wr_start`.
    let session = unsafe { session(&pair.session) };
    if session.error != 0 {
        return;
    }
    let changed = match session.requests.last_mut() {
        Some(request) => change(pair, request),
        None => Err(libc::EINVAL),
    };
    if let Err(error) = changed {
        session.error = error;
    }
}

unsafe extern "C" fn set_ud_addr(pair: *mut ibv_qp_ex, handle: *mut ibv_ah, qpn: u32, qkey: u32) {
    let set = |_: &Pair, request: &mut SendRequest| {
        if handle.is_null() {
            return Err(libc::EINVAL);
        }
        // SAFETY: a handle that the caller uses.
        let handle = unsafe { objects::trusted::<Handle>(handle) };
        request.to = Some(handle.to);
        request.qpn = qpn;
        request.qkey = qkey;
        Ok(())
    };
    // SAFETY: see `send`.
    unsafe { change(pair, set) };
}

/// How many pieces of memory a request may have: RDMA has one.
fn segments_max(pair: &Pair, opcode: Opcode) -> usize {
    let most = if opcode == Opcode::Send { pair.caps.limits.max_send_sge as usize } else { 1 };
    most.min(SEGMENTS_MAX)
}

/// A payload of the caller's pieces.
///
/// # Safety
/// `list` is valid for reads of `count` entries.
pub(super) unsafe fn segments(
    pair: &Pair,
    opcode: Opcode,
    list: *const ibv_sge,
    count: usize,
) -> Result<Payload, c_int> {
    if count > segments_max(pair, opcode) || (list.is_null() && count > 0) {
        return Err(libc::EINVAL);
    }
    let mut all = [Segment::default(); SEGMENTS_MAX];
    for (i, segment) in all.iter_mut().take(count).enumerate() {
        // SAFETY: within the caller's entries.
        let entry = unsafe { list.add(i) };
        // SAFETY: as above.
        let entry = unsafe { entry.read() };
        *segment = Segment { addr: entry.addr, len: entry.length, key: entry.lkey };
    }
    Ok(Payload::Segments { count: count as u8, list: all })
}

unsafe extern "C" fn set_sge(pair: *mut ibv_qp_ex, key: u32, addr: u64, len: u32) {
    let entry = ibv_sge { addr, length: len, lkey: key };
    // SAFETY: see `send`; one entry.
    unsafe { set_sge_list(pair, 1, &raw const entry) };
}

unsafe extern "C" fn set_sge_list(pair: *mut ibv_qp_ex, count: usize, list: *const ibv_sge) {
    let set = |pair: &Pair, request: &mut SendRequest| {
        // SAFETY: the caller's entries.
        request.payload = unsafe { segments(pair, request.opcode, list, count) }?;
        Ok(())
    };
    // SAFETY: see `send`.
    unsafe { change(pair, set) };
}

/// Bytes that a request carries itself.
pub(super) struct Inline {
    len: usize,
    max: usize,
    bytes: [u8; INLINE_MAX],
}

impl Inline {
    pub(super) fn new(pair: &Pair) -> Inline {
        let max = (pair.caps.limits.max_inline_data as usize).min(INLINE_MAX);
        Inline { len: 0, max, bytes: [0; INLINE_MAX] }
    }

    /// # Safety
    /// `addr` is valid for reads of `len` bytes.
    pub(super) unsafe fn append(&mut self, addr: *const u8, len: usize) -> Result<(), c_int> {
        if len > self.max - self.len || (addr.is_null() && len > 0) {
            return Err(libc::EINVAL);
        }
        let into = self.bytes[self.len..self.len + len].as_mut_ptr();
        if len > 0 {
            // SAFETY: the caller's bytes, into as many of ours.
            unsafe { into.copy_from_nonoverlapping(addr, len) };
        }
        self.len += len;
        Ok(())
    }

    pub(super) fn payload(self) -> Payload {
        Payload::Inline { len: self.len as u8, bytes: self.bytes }
    }
}

unsafe extern "C" fn set_inline_data(pair: *mut ibv_qp_ex, addr: *mut c_void, len: usize) {
    let piece = ibv_data_buf { addr, length: len };
    // SAFETY: see `send`; one piece.
    unsafe { set_inline_data_list(pair, 1, &raw const piece) };
}

unsafe extern "C" fn set_inline_data_list(pair: *mut ibv_qp_ex, count: usize, list: *const ibv_data_buf) {
    let set = |pair: &Pair, request: &mut SendRequest| {
        let may = match request.opcode {
            Opcode::Send => true,
            Opcode::Write => pair.caps.inline_write,
            Opcode::Read | Opcode::Receive | Opcode::ReceiveWrite => false,
        };
        if !may || (list.is_null() && count > 0) {
            return Err(libc::EINVAL);
        }
        let mut inline = Inline::new(pair);
        for i in 0..count {
            // SAFETY: within the caller's entries.
            let piece = unsafe { list.add(i) };
            // SAFETY: as above.
            let piece = unsafe { piece.read() };
            // SAFETY: the caller's bytes.
            unsafe { inline.append(piece.addr.cast(), piece.length) }?;
        }
        request.payload = inline.payload();
        Ok(())
    };
    // SAFETY: see `send`.
    unsafe { change(pair, set) };
}

/// Hints change nothing here; a request has to be there to take them.
pub(super) unsafe extern "C" fn set_processing_hints(efa: *mut efadv_qp, _hints: u32) {
    // SAFETY: EFA's part of a pair that the caller uses.
    let pair = unsafe { Pair::of_efa(efa) };
    // SAFETY: called after `wr_start`.
    let session = unsafe { session(&pair.session) };
    if session.error == 0 && session.requests.is_empty() {
        session.error = libc::EINVAL;
    }
}
