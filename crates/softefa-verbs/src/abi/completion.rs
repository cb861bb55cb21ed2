//! Completion queues: making, polling and destroying them.

use core::cell::UnsafeCell;
use core::ffi::{c_int, c_uint, c_void};
use core::mem::offset_of;
use core::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::channel::CompletionChannel;
use super::domain::Domain;
use super::hold::Hold;
use super::objects::{self, Kind, Object, Users};
use super::pair::GRH_BYTES;
use super::{context, errno_of, null_with, read_prefix};
use crate::ffi::*;
use crate::nic::{Completion, CompletionQueue, Device, Opcode, Status};

/// A completion queue.
#[repr(C)]
pub(super) struct Queue {
    public: UnsafeCell<ibv_cq_ex>,
    efa: efadv_cq,
    pub(super) queue: Arc<CompletionQueue>,
    device: Device,
    /// Held from a successful `start_poll` to `end_poll`.
    hold: Hold,
    single_threaded: bool,
    /// What the `read_*` functions read; its owner is who polls.
    current: UnsafeCell<Completion>,
    pub(super) users: Users,
    domain: *const ibv_pd,
    datagrams: Datagrams,
}

/// Numbers of the datagram pairs that receive into a queue. Mostly there are none, and then the lock is not touched.
#[derive(Default)]
struct Datagrams {
    count: AtomicU32,
    numbers: Mutex<Vec<u32>>,
}

impl Datagrams {
    fn with<R>(&self, change: impl FnOnce(&mut Vec<u32>) -> R) -> R {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut numbers);
        self.count.store(numbers.len() as u32, Ordering::Release);
        result
    }

    fn has(&self, number: u32) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.with(|numbers| numbers.contains(&number))
    }
}

impl Object for Queue {
    const KIND: Kind = Kind::CompletionQueue;
    type Public = ibv_cq;
    const PUBLIC: usize = 0;
}

const NOTHING: Completion = Completion {
    id: 0,
    status: Status::Ok,
    opcode: Opcode::Send,
    bytes: 0,
    immediate: None,
    qpn: 0,
    from_qpn: 0,
    from_handle: None,
    from: None,
    unsolicited: false,
};

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
    /// What the application gave at creation.
    pub(super) fn user_context(&self) -> *mut c_void {
        // SAFETY: the queue is there; a read of a field that only its owner changes.
        unsafe { (*self.public.get()).base.cq_context }
    }

    /// A datagram pair receives into the queue from now on.
    pub(super) fn add_datagrams(&self, pair: u32) {
        self.datagrams.with(|numbers| numbers.push(pair));
    }

    /// It does no more.
    pub(super) fn remove_datagrams(&self, pair: u32) {
        self.datagrams.with(|numbers| numbers.retain(|&number| number != pair));
    }

    /// The next completion, with a datagram's header in its length.
    fn poll(&self) -> Option<Completion> {
        let mut completion = self.queue.poll()?;
        if completion.opcode == Opcode::Receive && self.datagrams.has(completion.qpn) {
            completion.bytes += GRH_BYTES;
        }
        Some(completion)
    }

    /// Counts acknowledged events where rdma-core does.
    pub(super) fn acknowledge(&self, events: c_uint) {
        // SAFETY: the queue is there.
        let completed = unsafe { &raw mut (*self.public.get()).base.comp_events_completed };
        // SAFETY: an aligned integer that only the library changes, and only here.
        let completed = unsafe { AtomicU32::from_ptr(completed) };
        completed.fetch_add(events, Ordering::Relaxed);
    }

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

/// What is wanted of a new queue, from either of the creating functions.
struct Wanted {
    attributes: ibv_cq_init_attr_ex,
    efa: efadv_cq_init_attr,
}

/// # Safety
/// The context, channel and domain stay meanwhile.
unsafe fn create(context: *mut ibv_context, wanted: &Wanted) -> Result<*mut ibv_cq, c_int> {
    let attributes = &wanted.attributes;
    // SAFETY: the caller's promise.
    let device = unsafe { context::device(context) }?;
    let masks = IBV_CQ_INIT_ATTR_MASK_FLAGS | IBV_CQ_INIT_ATTR_MASK_PD;
    if attributes.comp_mask & !masks != 0 || attributes.wc_flags & !IBV_WC_STANDARD_FLAGS != 0 {
        return Err(libc::EOPNOTSUPP);
    }
    let flags = if attributes.comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS != 0 { attributes.flags } else { 0 };
    if flags & !IBV_CREATE_CQ_ATTR_SINGLE_THREADED != 0 || wanted.efa.flags != 0 {
        // Memory of other devices for the queue is the direct data path's, which is not here.
        return Err(libc::EOPNOTSUPP);
    }
    let cqe = attributes.cqe.checked_next_power_of_two().ok_or(libc::EINVAL)?;
    if attributes.cqe == 0
        || cqe > device.limits().completion_queue
        || attributes.comp_vector >= context::COMPLETION_VECTORS.cast_unsigned()
    {
        return Err(libc::EINVAL);
    }
    let domain = if attributes.comp_mask & IBV_CQ_INIT_ATTR_MASK_PD != 0 {
        // SAFETY: the caller's promise.
        let domain = unsafe { objects::find::<Domain>(attributes.parent_domain) };
        Some(domain.filter(|domain| domain.is_parent()).ok_or(libc::EINVAL)?)
    } else {
        None
    };
    let channel = if attributes.channel.is_null() {
        None
    } else {
        // SAFETY: the caller's promise.
        Some(unsafe { objects::find::<CompletionChannel>(attributes.channel) }.ok_or(libc::EINVAL)?)
    };
    let room = Box::<Queue>::new_uninit();
    let token = room.as_ptr().expose_provenance();
    let queue = CompletionQueue::new(device, cqe, channel.map(|channel| channel.channel.clone()), token);
    device.count_command(queue.is_ok());
    let queue = queue.map_err(errno_of)?;
    if let Some(channel) = channel {
        channel.users.add();
    }
    if let Some(domain) = domain {
        domain.users.add();
    }
    let single_threaded =
        flags & IBV_CREATE_CQ_ATTR_SINGLE_THREADED != 0 || domain.is_some_and(Domain::is_single_threaded);
    let efa = efadv_cq {
        comp_mask: 0,
        wc_read_sgid: (wanted.efa.wc_flags & EFADV_WC_EX_WITH_SGID != 0).then_some(read_sgid),
        wc_is_unsolicited: (wanted.efa.wc_flags & EFADV_WC_EX_WITH_IS_UNSOLICITED != 0)
            .then_some(is_unsolicited),
    };
    let object = Box::write(
        room,
        Queue {
            public: UnsafeCell::new(public_part(context, attributes, cqe)),
            efa,
            queue,
            device: device.clone(),
            hold: Hold::new(),
            single_threaded,
            current: UnsafeCell::new(NOTHING),
            users: Users::default(),
            domain: if domain.is_some() { attributes.parent_domain } else { ptr::null() },
            datagrams: Datagrams::default(),
        },
    );
    Ok(objects::publish(object))
}

fn public_part(context: *mut ibv_context, attributes: &ibv_cq_init_attr_ex, cqe: u32) -> ibv_cq_ex {
    // SAFETY: integers, pointers, optional function pointers and glibc's mutex and condition, which all-zero bytes are.
    let mut public: ibv_cq_ex = unsafe { core::mem::zeroed() };
    public.base.context = context;
    public.base.channel = attributes.channel;
    public.base.cq_context = attributes.cq_context;
    public.base.cqe = cqe as c_int;
    public.start_poll = Some(start_poll);
    public.next_poll = Some(next_poll);
    public.end_poll = Some(end_poll);
    public.read_opcode = Some(read_opcode);
    public.read_vendor_err = Some(read_vendor_err);
    public.read_wc_flags = Some(read_wc_flags);
    let asked = |flag| attributes.wc_flags & flag != 0;
    public.read_byte_len = asked(IBV_WC_EX_WITH_BYTE_LEN).then_some(read_byte_len);
    public.read_imm_data = asked(IBV_WC_EX_WITH_IMM).then_some(read_imm_data);
    public.read_qp_num = asked(IBV_WC_EX_WITH_QP_NUM).then_some(read_qp_num);
    public.read_src_qp = asked(IBV_WC_EX_WITH_SRC_QP).then_some(read_src_qp);
    public.read_slid = asked(IBV_WC_EX_WITH_SLID).then_some(read_slid);
    public.read_sl = asked(IBV_WC_EX_WITH_SL).then_some(read_zero);
    public.read_dlid_path_bits = asked(IBV_WC_EX_WITH_DLID_PATH_BITS).then_some(read_zero);
    public
}

fn answer(result: Result<*mut ibv_cq, c_int>) -> *mut ibv_cq_ex {
    result.map_or_else(null_with, <*mut ibv_cq>::cast)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    comp_vector: c_int,
) -> *mut ibv_cq {
    let attributes = ibv_cq_init_attr_ex {
        cqe: u32::try_from(cqe).unwrap_or(0),
        cq_context,
        channel,
        comp_vector: comp_vector.cast_unsigned(),
        wc_flags: 0,
        comp_mask: 0,
        flags: 0,
        parent_domain: ptr::null_mut(),
    };
    let wanted = Wanted { attributes, efa: efadv_cq_init_attr::default() };
    // SAFETY: the caller does not destroy what it names meanwhile.
    answer(unsafe { create(context, &wanted) }).cast()
}

pub(super) unsafe extern "C" fn create_cq_ex(
    context: *mut ibv_context,
    attributes: *mut ibv_cq_init_attr_ex,
) -> *mut ibv_cq_ex {
    // SAFETY: null or the caller's structure.
    let Some(&attributes) = (unsafe { attributes.as_ref() }) else {
        return null_with(libc::EINVAL);
    };
    let wanted = Wanted { attributes, efa: efadv_cq_init_attr::default() };
    // SAFETY: the caller does not destroy what it names meanwhile.
    answer(unsafe { create(context, &wanted) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_create_cq(
    context: *mut ibv_context,
    attributes: *mut ibv_cq_init_attr_ex,
    efa: *const efadv_cq_init_attr,
    len: u32,
) -> *mut ibv_cq_ex {
    // SAFETY: null or the caller's structure.
    let Some(&attributes) = (unsafe { attributes.as_ref() }) else {
        return null_with(libc::EINVAL);
    };
    if efa.is_null() || !super::has_field(offset_of!(efadv_cq_init_attr, wc_flags), len) {
        return null_with(libc::EINVAL);
    }
    // SAFETY: the caller says that its structure, of integers, has so many bytes.
    let Some(efa) = (unsafe { read_prefix(efa, len as usize) }) else {
        return null_with(libc::EINVAL);
    };
    if efa.comp_mask != 0 {
        return null_with(libc::EINVAL);
    }
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device,
        Err(error) => return null_with(error),
    };
    let capabilities = device.limits().capabilities;
    let mut known = 0;
    if capabilities & EFADV_DEVICE_ATTR_CAPS_CQ_WITH_SGID != 0 {
        known |= EFADV_WC_EX_WITH_SGID;
    }
    if capabilities & EFADV_DEVICE_ATTR_CAPS_UNSOLICITED_WRITE_RECV != 0 {
        known |= EFADV_WC_EX_WITH_IS_UNSOLICITED;
    }
    if efa.wc_flags & !known != 0 {
        return null_with(libc::EOPNOTSUPP);
    }
    // SAFETY: as above.
    answer(unsafe { create(context, &Wanted { attributes, efa }) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn efadv_cq_from_ibv_cq_ex(queue: *mut ibv_cq_ex) -> *mut efadv_cq {
    // SAFETY: the caller does not destroy it meanwhile.
    match unsafe { objects::find::<Queue>(queue.cast()) } {
        Some(queue) => ptr::from_ref(&queue.efa).cast_mut(),
        None => null_with(libc::EINVAL),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_cq(queue: *mut ibv_cq) -> c_int {
    // SAFETY: the caller has finished with it.
    let queue = match unsafe { objects::retire::<Queue>(queue, |queue| queue.users.none()) } {
        Ok(queue) => queue,
        Err(error) => return error,
    };
    queue.queue.close();
    queue.device.count_command(true);
    // SAFETY: the queue is out of the table, and nobody else has it.
    let channel = unsafe { (*queue.public.get()).base.channel };
    // SAFETY: it has a user, this queue, and so was not destroyed.
    if let Some(channel) = unsafe { objects::find::<CompletionChannel>(channel) } {
        channel.users.remove();
    }
    // SAFETY: as above.
    if let Some(domain) = unsafe { objects::find::<Domain>(queue.domain) } {
        domain.users.remove();
    }
    0
}

/// EFA's queues keep their size.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_resize_cq(_queue: *mut ibv_cq, _cqe: c_int) -> c_int {
    libc::EOPNOTSUPP
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

unsafe extern "C" fn start_poll(queue: *mut ibv_cq_ex, attributes: *mut ibv_poll_cq_attr) -> c_int {
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

unsafe extern "C" fn next_poll(queue: *mut ibv_cq_ex) -> c_int {
    // SAFETY: a handle that the caller uses.
    let queue = unsafe { objects::trusted::<Queue>(queue.cast()) };
    // SAFETY: called between start and end, so that this thread is the one that polls.
    unsafe { queue.advance() }
}

unsafe extern "C" fn end_poll(queue: *mut ibv_cq_ex) {
    // SAFETY: a handle that the caller uses.
    let queue = unsafe { objects::trusted::<Queue>(queue.cast()) };
    if !queue.single_threaded {
        queue.hold.release();
    }
}

unsafe extern "C" fn read_opcode(queue: *mut ibv_cq_ex) -> c_uint {
    // SAFETY: called between start and end of polling, as the functions below.
    opcode_of(unsafe { Queue::current(queue) }.opcode)
}

unsafe extern "C" fn read_vendor_err(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.status as u32
}

unsafe extern "C" fn read_byte_len(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    bytes_of(unsafe { Queue::current(queue) })
}

/// In network byte order, as the sender gave it.
unsafe extern "C" fn read_imm_data(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.immediate.unwrap_or(0)
}

unsafe extern "C" fn read_qp_num(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.qpn
}

unsafe extern "C" fn read_src_qp(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.from_qpn
}

unsafe extern "C" fn read_wc_flags(queue: *mut ibv_cq_ex) -> c_uint {
    // SAFETY: see `read_opcode`.
    flags_of(unsafe { Queue::current(queue) })
}

unsafe extern "C" fn read_slid(queue: *mut ibv_cq_ex) -> u32 {
    // SAFETY: see `read_opcode`.
    unsafe { Queue::current(queue) }.from_handle.unwrap_or(NO_HANDLE).into()
}

unsafe extern "C" fn read_zero(_queue: *mut ibv_cq_ex) -> u8 {
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
unsafe extern "C" fn read_sgid(efa: *mut efadv_cq, into: *mut ibv_gid) -> c_int {
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

unsafe extern "C" fn is_unsolicited(efa: *mut efadv_cq) -> bool {
    // SAFETY: see `read_opcode`.
    unsafe { current_of(efa) }.unsolicited
}
