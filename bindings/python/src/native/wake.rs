//! Waking an event loop: one eventfd per loop, whatever the number of transfers.
//!
//! The rails' owner must never wait for the GIL. So the end of a transfer is noted in a list of numbers and the eventfd becomes readable; the loop, which
//! watches it as it watches its sockets, takes the list and resolves its futures by itself (`kvrail._aio`).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::{Wake, Waker};

use parking_lot::Mutex;
use pyo3::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use crate::own::Own;

/// What is due in one event loop.
#[derive(Debug)]
pub(crate) struct Due {
    fd: OwnedFd,
    /// Numbers of the waits that are over; at most one entry per wait that was begun.
    numbers: Mutex<Vec<u64>>,
}

impl Due {
    fn push(&self, number: u64) {
        let mut numbers = self.numbers.lock();
        let first = numbers.is_empty();
        numbers.push(number);
        drop(numbers);
        if first {
            // Full only when it is readable already; nothing else can fail.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }
}

/// An event loop's wake-ups.
#[pyclass(frozen, module = "kvrail")]
pub(crate) struct Wakeups {
    due: Own<Arc<Due>>,
}

#[pymethods]
impl Wakeups {
    #[new]
    fn new() -> PyResult<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(std::io::Error::from)?;
        Ok(Self { due: Own::new(Arc::new(Due { fd, numbers: Mutex::default() })) })
    }

    /// Readable when something is due.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.due.get()?.fd.as_raw_fd())
    }

    /// Takes the numbers of the waits that are over.
    fn drain(&self) -> PyResult<Vec<u64>> {
        let due = self.due.get()?;
        // First the descriptor, then the list: what comes in between makes it readable again.
        let _ = rustix::io::read(&due.fd, &mut [0u8; 8]);
        Ok(std::mem::take(&mut *due.numbers.lock()))
    }
}

impl Wakeups {
    pub(crate) fn due(&self) -> PyResult<&Arc<Due>> {
        self.due.get()
    }
}

/// Those who are to be told of one event: any number of tasks, in any number of loops.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    list: Mutex<Vec<(Arc<Due>, u64)>>,
}

impl Subscribers {
    /// As a waker; all clones of one `Subscribers` are the same waker.
    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        self.clone().into()
    }

    pub(crate) fn add(&self, due: &Arc<Due>, number: u64) {
        self.list.lock().push((due.clone(), number));
    }

    pub(crate) fn remove(&self, due: &Arc<Due>, number: u64) {
        self.list.lock().retain(|(other, n)| *n != number || !Arc::ptr_eq(other, due));
    }
}

impl Wake for Subscribers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let list = std::mem::take(&mut *self.list.lock());
        list.iter().for_each(|(due, number)| due.push(*number));
    }
}
