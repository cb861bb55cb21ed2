//! Posting the classic way: linked lists of work requests.

use core::ffi::{c_int, c_uint};

use super::errno_of;
use super::memory::Handle;
use super::objects;
use super::pair::{GRH_BYTES, Pair};
use super::send::{self, Inline};
use crate::ffi::*;
use crate::nic::{Opcode, Payload, ReceiveRequest, Segment, SendRequest};

/// The request of `wr`. RDMA is posted the new way only, as with rdma-core.
///
/// # Safety
/// `wr` is a work request of the caller, its pointers valid.
unsafe fn decode(pair: &Pair, wr: &ibv_send_wr) -> Result<SendRequest, c_int> {
    send::check_flags(pair, wr.send_flags)?;
    let immediate = match wr.opcode {
        IBV_WR_SEND => None,
        IBV_WR_SEND_WITH_IMM => Some(wr.imm_data),
        _ => return Err(libc::EINVAL),
    };
    let count = usize::try_from(wr.num_sge).map_err(|_| libc::EINVAL)?;
    let payload = if wr.send_flags & IBV_SEND_INLINE != 0 {
        // SAFETY: the caller's entries and bytes.
        unsafe { inline(pair, wr.sg_list, count) }?
    } else {
        // SAFETY: the caller's entries.
        unsafe { send::segments(pair, Opcode::Send, wr.sg_list, count) }?
    };
    // SAFETY: a send's target is of this kind.
    let target = unsafe { wr.wr.ud };
    if target.ah.is_null() {
        return Err(libc::EINVAL);
    }
    // SAFETY: a handle that the caller uses.
    let handle = unsafe { objects::trusted::<Handle>(target.ah) };
    Ok(SendRequest {
        id: wr.wr_id,
        opcode: Opcode::Send,
        immediate,
        remote_key: 0,
        remote_addr: 0,
        payload,
        to: Some(handle.to),
        qpn: target.remote_qpn,
        qkey: target.remote_qkey,
    })
}

/// # Safety
/// `list` is valid for reads of `count` entries, and each of those names readable bytes.
unsafe fn inline(pair: &Pair, list: *const ibv_sge, count: usize) -> Result<Payload, c_int> {
    if list.is_null() && count > 0 {
        return Err(libc::EINVAL);
    }
    let mut inline = Inline::new(pair);
    for i in 0..count {
        // SAFETY: within the caller's entries.
        let entry = unsafe { list.add(i) };
        // SAFETY: as above.
        let entry = unsafe { entry.read() };
        // SAFETY: the caller's bytes.
        unsafe { inline.append(entry.addr as *const u8, entry.length as usize) }?;
    }
    Ok(inline.payload())
}

pub(super) unsafe extern "C" fn post_send(
    pair: *mut ibv_qp,
    first: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: a handle that the caller uses.
    let pair = unsafe { objects::trusted::<Pair>(pair) };
    let mut next = first;
    // SAFETY: null or the caller's work request, here and for its successors.
    while let Some(wr) = unsafe { next.as_ref() } {
        // SAFETY: as above.
        let request = unsafe { decode(pair, wr) };
        let posted = request.and_then(|request| pair.pair.post_send(&[request]).map_err(errno_of));
        if let Err(error) = posted {
            // SAFETY: null or the caller's pointer.
            if let Some(bad) = unsafe { bad.as_mut() } {
                *bad = next;
            }
            return error;
        }
        next = wr.next;
    }
    0
}

/// # Safety
/// `wr` is a work request of the caller, its pointers valid.
unsafe fn decode_receive(state: c_uint, datagram: bool, wr: &ibv_recv_wr) -> Result<ReceiveRequest, c_int> {
    if state == IBV_QPS_RESET || state == IBV_QPS_ERR {
        return Err(libc::EINVAL);
    }
    let mut into = match wr.num_sge {
        0 => Segment::default(),
        1 => {
            // SAFETY: null or the caller's entry.
            let entry = unsafe { wr.sg_list.as_ref() }.ok_or(libc::EINVAL)?;
            Segment { addr: entry.addr, len: entry.length, key: entry.lkey }
        }
        _ => return Err(libc::EINVAL),
    };
    if datagram {
        into.len = into.len.checked_sub(GRH_BYTES).ok_or(libc::EINVAL)?;
        into.addr = into.addr.wrapping_add(GRH_BYTES.into());
    }
    Ok(ReceiveRequest { id: wr.wr_id, into })
}

pub(super) unsafe extern "C" fn post_recv(
    pair: *mut ibv_qp,
    first: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: a handle that the caller uses.
    let pair = unsafe { objects::trusted::<Pair>(pair) };
    let state = pair.verbs_state();
    let mut next = first;
    // SAFETY: null or the caller's work request, here and for its successors.
    while let Some(wr) = unsafe { next.as_ref() } {
        // SAFETY: as above.
        let request = unsafe { decode_receive(state, pair.caps.datagram, wr) };
        let posted = request.and_then(|request| pair.pair.post_receive(&request).map_err(errno_of));
        if let Err(error) = posted {
            // SAFETY: null or the caller's pointer.
            if let Some(bad) = unsafe { bad.as_mut() } {
                *bad = next;
            }
            return error;
        }
        next = wr.next;
    }
    0
}
