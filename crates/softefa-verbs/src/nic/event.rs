//! Events that a program waits for with a file descriptor: completion channels and what happens to a device by itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

/// What happened to a device by itself: what `ibv_get_async_event` reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsyncEvent {
    /// The NIC's link is down: nothing is sent or received.
    PortError,
    /// The NIC's link is up again.
    PortActive,
    /// A completion queue has overflowed: completions are lost, and it takes no more.
    CompletionQueueError {
        /// The token of the queue, as given to [`super::CompletionQueue::new`].
        token: usize,
    },
}

/// Most events that wait to be taken; later ones are lost, as they are when the kernel has no memory for them.
const EVENTS_MAX: usize = 65_536;

/// A queue of events whose descriptor is readable while it is not empty.
pub(super) struct Events<T> {
    /// An eventfd in semaphore mode: its count is never less than the number of events that wait.
    fd: OwnedFd,
    waiting: Mutex<VecDeque<T>>,
}

impl<T> Events<T> {
    pub(super) fn new() -> io::Result<Events<T>> {
        // SAFETY: the call touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Events { fd, waiting: Mutex::new(VecDeque::new()) })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn push(&self, event: T) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= EVENTS_MAX {
            return;
        }
        let one = 1_u64;
        // The count goes up first: whoever takes the event under the lock then never blocks on it.
        // SAFETY: eight readable bytes; the count cannot reach its maximum with so few events, so this does not block.
        let written = unsafe { libc::write(self.fd(), (&raw const one).cast(), size_of::<u64>()) };
        if written == size_of::<u64>() as isize {
            waiting.push_back(event);
        }
    }

    pub(super) fn take(&self) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let event = waiting.pop_front()?;
        let mut one = 0_u64;
        // SAFETY: eight writable bytes; the count is not 0 because an event waited.
        unsafe { libc::read(self.fd(), (&raw mut one).cast(), size_of::<u64>()) };
        Some(event)
    }
}

/// A completion channel: tells which completion queue has something, to a program that sleeps on a descriptor.
pub struct Channel(Events<usize>);

impl Channel {
    /// A new channel.
    ///
    /// # Errors
    /// When the process can have no more descriptors.
    pub fn new() -> io::Result<Arc<Channel>> {
        Ok(Arc::new(Channel(Events::new()?)))
    }

    /// Readable while an event waits. It blocks; who does not want that sets `O_NONBLOCK` or polls.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.fd()
    }

    /// The token of the queue whose event is the oldest; `None` when none waits. Never blocks.
    #[must_use]
    pub fn take(&self) -> Option<usize> {
        self.0.take()
    }

    pub(super) fn push(&self, token: usize) {
        self.0.push(token);
    }
}
