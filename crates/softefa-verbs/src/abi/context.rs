//! Contexts: open devices.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::mem::offset_of;
use core::ptr;

use super::objects::{self, Kind, Object};
use super::{completion, domain, null_with, pair, poll, port, post};
use crate::ffi::{
    IBV_EVENT_CQ_ERR, IBV_EVENT_PORT_ACTIVE, IBV_EVENT_PORT_ERR, VERBS_ABI_IS_EXTENDED, ibv_async_element,
    ibv_async_event, ibv_context, ibv_device, verbs_context,
};
use crate::nic::{AsyncEvent, Device};

/// One open device.
#[repr(C)]
pub(super) struct Context {
    /// C reads the tables and may write into what is its own, such as the mutex.
    table: UnsafeCell<verbs_context>,
    pub(super) device: Device,
}

impl Object for Context {
    const KIND: Kind = Kind::Context;
    type Public = ibv_context;
    const PUBLIC: usize = offset_of!(verbs_context, context);
}

/// A descriptor that is always this many: there is one interrupt to choose from.
pub(super) const COMPLETION_VECTORS: c_int = 1;

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context {
    let opened = match super::device::device_of(device) {
        Ok(opened) => opened,
        Err(error) => return null_with(error),
    };
    // SAFETY: integers, pointers and optional function pointers, all of which may be zero.
    let mut table: verbs_context = unsafe { core::mem::zeroed() };
    table.sz = size_of::<verbs_context>();
    table.query_port = Some(port::query_port);
    table.query_device_ex = Some(port::query_device_ex);
    table.create_cq_ex = Some(completion::create_cq_ex);
    table.create_qp_ex = Some(pair::create_qp_ex);
    table.alloc_parent_domain = Some(domain::alloc_parent_domain);
    table.alloc_td = Some(domain::alloc_td);
    table.dealloc_td = Some(domain::dealloc_td);
    table.context.device = device;
    table.context.cmd_fd = -1;
    table.context.async_fd = opened.async_event_fd();
    table.context.num_comp_vectors = COMPLETION_VECTORS;
    table.context.mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    table.context.abi_compat = VERBS_ABI_IS_EXTENDED;
    table.context.ops.poll_cq = Some(poll::poll_cq);
    table.context.ops.req_notify_cq = Some(poll::req_notify_cq);
    table.context.ops.post_send = Some(post::post_send);
    table.context.ops.post_recv = Some(post::post_recv);
    opened.count_command(true);
    objects::publish(Box::new(Context { table: UnsafeCell::new(table), device: opened }))
}

/// Objects of the context that are still there stay usable, but for the tables that inline functions reach through it.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_close_device(context: *mut ibv_context) -> c_int {
    // SAFETY: the caller has finished with it.
    match unsafe { objects::retire::<Context>(context, |_| Ok(())) } {
        Ok(context) => {
            context.device.count_command(true);
            0
        }
        Err(error) => super::minus_one_with(error),
    }
}

/// The device of a context, or the errno.
///
/// # Safety
/// No thread closes the context meanwhile.
pub(super) unsafe fn device<'a>(context: *const ibv_context) -> Result<&'a Device, c_int> {
    // SAFETY: the caller's promise.
    unsafe { objects::find::<Context>(context) }.map(|context| &context.device).ok_or(libc::EINVAL)
}

/// Waits for an event unless the descriptor is non-blocking.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int {
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { device(context) } {
        Ok(device) => device,
        Err(error) => return super::minus_one_with(error),
    };
    // SAFETY: null or the caller's structure.
    let Some(event) = (unsafe { event.as_mut() }) else {
        return super::minus_one_with(libc::EINVAL);
    };
    loop {
        let happened = match super::channel::wait(device.async_event_fd(), || device.take_async_event()) {
            Ok(happened) => happened,
            Err(error) => return super::minus_one_with(error),
        };
        let (kind, element) = match happened {
            AsyncEvent::PortError => (IBV_EVENT_PORT_ERR, ibv_async_element { port_num: 1 }),
            AsyncEvent::PortActive => (IBV_EVENT_PORT_ACTIVE, ibv_async_element { port_num: 1 }),
            AsyncEvent::CompletionQueueError { token } => {
                let queue = ptr::with_exposed_provenance_mut(token);
                if !objects::is_live::<completion::Queue>(queue) {
                    // Destroyed since: its events are nobody's any more.
                    continue;
                }
                (IBV_EVENT_CQ_ERR, ibv_async_element { object: queue.cast() })
            }
        };
        event.event_type = kind;
        event.element = element;
        return 0;
    }
}

/// Nothing waits for acknowledgements: an object that is destroyed takes its events with it.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_ack_async_event(_event: *mut ibv_async_event) {}
