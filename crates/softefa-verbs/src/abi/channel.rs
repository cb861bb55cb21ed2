//! Completion channels.

use core::cell::UnsafeCell;
use core::ffi::{c_int, c_uint, c_void};
use core::ptr;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::completion::Queue;
use super::objects::{self, Kind, Object, Users};
use super::{context, minus_one_with, null_with};
use crate::ffi::{ibv_comp_channel, ibv_context, ibv_cq};
use crate::nic::Channel;

#[repr(C)]
pub(super) struct CompletionChannel {
    public: UnsafeCell<ibv_comp_channel>,
    pub(super) channel: Arc<Channel>,
    pub(super) users: Users,
}

impl Object for CompletionChannel {
    const KIND: Kind = Kind::Channel;
    type Public = ibv_comp_channel;
    const PUBLIC: usize = 0;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    // SAFETY: the caller does not close the context meanwhile.
    if let Err(error) = unsafe { context::device(context) } {
        return null_with(error);
    }
    match Channel::new() {
        Ok(channel) => {
            let public = UnsafeCell::new(ibv_comp_channel { context, fd: channel.fd(), refcnt: 0 });
            objects::publish(Box::new(CompletionChannel { public, channel, users: Users::default() }))
        }
        Err(error) => null_with(error.raw_os_error().unwrap_or(libc::ENOMEM)),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    // SAFETY: the caller has finished with it.
    match unsafe { objects::retire::<CompletionChannel>(channel, |channel| channel.users.none()) } {
        Ok(_) => 0,
        Err(error) => error,
    }
}

/// Waits until `take` gives something; with a non-blocking descriptor it asks once. The errno otherwise: `EAGAIN`, `EINTR`.
///
/// There is no deadline, as with the kernel's descriptors: who wants one polls the descriptor first.
pub(super) fn wait<T>(fd: RawFd, take: impl Fn() -> Option<T>) -> Result<T, c_int> {
    loop {
        if let Some(taken) = take() {
            return Ok(taken);
        }
        // SAFETY: asks for the flags of a descriptor; touches no memory.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        if flags < 0 {
            return Err(libc::EBADF);
        }
        if flags & libc::O_NONBLOCK != 0 {
            return Err(libc::EAGAIN);
        }
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, as said.
        if unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINTR));
        }
        if poll.revents & libc::POLLNVAL != 0 {
            return Err(libc::EBADF);
        }
    }
}

/// The oldest event. Waits for one unless the channel's descriptor is non-blocking.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut ibv_comp_channel,
    queue: *mut *mut ibv_cq,
    queue_context: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller does not destroy it meanwhile.
    let Some(it) = (unsafe { objects::find::<CompletionChannel>(channel) }) else {
        return minus_one_with(libc::EINVAL);
    };
    loop {
        let token = match wait(it.channel.fd(), || it.channel.take()) {
            Ok(token) => token,
            Err(error) => return minus_one_with(error),
        };
        let from = ptr::with_exposed_provenance_mut::<ibv_cq>(token);
        // SAFETY: the caller does not destroy the queue while it waits for its events.
        let Some(found) = (unsafe { objects::find::<Queue>(from) }) else {
            // Destroyed since: its events are nobody's any more.
            continue;
        };
        // SAFETY: null or the caller's pointer.
        if let Some(queue) = unsafe { queue.as_mut() } {
            *queue = from;
        }
        // SAFETY: as above.
        if let Some(queue_context) = unsafe { queue_context.as_mut() } {
            *queue_context = found.user_context();
        }
        return 0;
    }
}

/// Events are counted for whoever looks; nothing waits for acknowledgements, since a queue that is destroyed takes its events with it.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_ack_cq_events(queue: *mut ibv_cq, events: c_uint) {
    // SAFETY: the caller does not destroy it meanwhile.
    if let Some(queue) = unsafe { objects::find::<Queue>(queue) } {
        queue.acknowledge(events);
    }
}
