//! Completion queues: making and destroying them.

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
use super::{context, errno_of, null_with, poll, read_prefix};
use crate::ffi::*;
use crate::nic::{Completion, CompletionQueue, Device, Opcode, Status};

/// A completion queue.
#[repr(C)]
pub(super) struct Queue {
    pub(super) public: UnsafeCell<ibv_cq_ex>,
    pub(super) efa: efadv_cq,
    pub(super) queue: Arc<CompletionQueue>,
    device: Device,
    /// Held from a successful `start_poll` to `end_poll`.
    pub(super) hold: Hold,
    pub(super) single_threaded: bool,
    /// What the `read_*` functions read; its owner is who polls.
    pub(super) current: UnsafeCell<Completion>,
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
    pub(super) fn poll(&self) -> Option<Completion> {
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
        wc_read_sgid: (wanted.efa.wc_flags & EFADV_WC_EX_WITH_SGID != 0).then_some(poll::read_sgid),
        wc_is_unsolicited: (wanted.efa.wc_flags & EFADV_WC_EX_WITH_IS_UNSOLICITED != 0)
            .then_some(poll::is_unsolicited),
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
    public.start_poll = Some(poll::start_poll);
    public.next_poll = Some(poll::next_poll);
    public.end_poll = Some(poll::end_poll);
    public.read_opcode = Some(poll::read_opcode);
    public.read_vendor_err = Some(poll::read_vendor_err);
    public.read_wc_flags = Some(poll::read_wc_flags);
    let asked = |flag| attributes.wc_flags & flag != 0;
    public.read_byte_len = asked(IBV_WC_EX_WITH_BYTE_LEN).then_some(poll::read_byte_len);
    public.read_imm_data = asked(IBV_WC_EX_WITH_IMM).then_some(poll::read_imm_data);
    public.read_qp_num = asked(IBV_WC_EX_WITH_QP_NUM).then_some(poll::read_qp_num);
    public.read_src_qp = asked(IBV_WC_EX_WITH_SRC_QP).then_some(poll::read_src_qp);
    public.read_slid = asked(IBV_WC_EX_WITH_SLID).then_some(poll::read_slid);
    public.read_sl = asked(IBV_WC_EX_WITH_SL).then_some(poll::read_zero);
    public.read_dlid_path_bits = asked(IBV_WC_EX_WITH_DLID_PATH_BITS).then_some(poll::read_zero);
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
