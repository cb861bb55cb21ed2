//! Who is to be woken when something changes: blocked threads and futures alike, as [`Waker`]s.
//!
//! [`Completion`] is the one of a single transfer. Its result is written once, by whoever holds the rails; reading
//! it takes no lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

use crate::transfer::{Report, TransferError};

/// Those to be woken: any number of blocked threads, and at most one task. A task may come with another waker at
/// each poll; only its last one counts, so that the list cannot grow.
#[derive(Debug, Default)]
struct Wakers {
    threads: Vec<Waker>,
    task: Option<Waker>,
}

/// Who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    /// A thread that blocks in a call.
    Thread,
    /// The task that polls a future.
    Task,
}

impl Wakers {
    fn register(&mut self, waiter: Waiter, waker: &Waker) {
        match waiter {
            Waiter::Thread if self.threads.iter().any(|w| w.will_wake(waker)) => {}
            Waiter::Thread => self.threads.push(waker.clone()),
            Waiter::Task => self.task = Some(waker.clone()),
        }
    }

    fn take(&mut self, out: &mut Vec<Waker>) {
        out.append(&mut self.threads);
        out.extend(self.task.take());
    }

    fn clear(&mut self) {
        self.threads.clear();
        self.task = None;
    }
}

/// Threads that wait for a rare event (a notification, a peer, a region's end).
#[derive(Debug, Default)]
pub(crate) struct Watch {
    wakers: Mutex<Wakers>,
}

impl Watch {
    /// Registers before the caller looks (again) at what it waits for.
    pub(crate) fn register(&self, waker: &Waker) {
        self.wakers.lock().register(Waiter::Thread, waker);
    }

    /// Hands the wakers to `out`; the caller wakes them after it has released the rails.
    pub(crate) fn take(&self, out: &mut Vec<Waker>) {
        self.wakers.lock().take(out);
    }

    pub(crate) fn wake(&self) {
        let mut wakers = Vec::new();
        self.take(&mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }
}

const PENDING: u8 = 0;
/// Pending, and somebody is to be woken.
const WATCHED: u8 = 1;
const ENDED: u8 = 2;

/// The end of one transfer, shared between its handle and the rails' owner.
#[derive(Debug, Default)]
pub(crate) struct Completion {
    state: AtomicU8,
    result: OnceLock<Result<Report, TransferError>>,
    wakers: Mutex<Wakers>,
}

impl Completion {
    /// The result, once there is one.
    #[inline]
    pub(crate) fn result(&self) -> Option<&Result<Report, TransferError>> {
        if self.state.load(Ordering::Acquire) == ENDED { self.result.get() } else { None }
    }

    /// Writes the result; those to be woken are appended to `out`. A second call changes nothing.
    #[inline]
    pub(crate) fn end(&self, result: Result<Report, TransferError>, out: &mut Vec<Waker>) {
        // A second end of one transfer would be the engine's fault; the first one stands.
        let _ = self.result.set(result);
        if self.state.swap(ENDED, Ordering::AcqRel) == WATCHED {
            self.wakers.lock().take(out);
        }
    }

    /// Registers a waker. False: the transfer has ended, nobody will be woken.
    pub(crate) fn register(&self, waiter: Waiter, waker: &Waker) -> bool {
        let mut wakers = self.wakers.lock();
        wakers.register(waiter, waker);
        // The lock is held, so `end` finds the waker if it finds WATCHED.
        match self.state.compare_exchange(PENDING, WATCHED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(WATCHED) => true,
            Err(_) => {
                wakers.clear();
                false
            }
        }
    }

    /// Makes it fit for another posting. The handle is the only owner then.
    pub(crate) fn renew(&mut self) {
        *self.state.get_mut() = PENDING;
        self.result.take();
        self.wakers.get_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Counter(AtomicUsize);
    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_first_result_stands_and_wakes_each_waiter_once() {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(counter.clone());
        let completion = Completion::default();
        assert!(completion.register(Waiter::Thread, &waker));
        assert!(completion.register(Waiter::Thread, &waker));
        let mut woken = Vec::new();
        completion.end(Err(TransferError::AgentClosed), &mut woken);
        assert_eq!(woken.len(), 1, "a waker that is registered twice is woken once");
        assert!(!completion.register(Waiter::Thread, &waker));
        assert!(matches!(completion.result(), Some(Err(TransferError::AgentClosed))));
    }

    #[test]
    fn a_result_is_never_missed_by_a_thread_that_registers_meanwhile() {
        for _ in 0..2_000 {
            let completion = Arc::new(Completion::default());
            let ender = {
                let completion = completion.clone();
                std::thread::spawn(move || {
                    let mut woken = Vec::new();
                    completion.end(Err(TransferError::AgentClosed), &mut woken);
                    woken.into_iter().for_each(Waker::wake);
                })
            };
            let counter = Arc::new(Counter::default());
            let registered = completion.register(Waiter::Thread, &Waker::from(counter.clone()));
            ender.join().unwrap();
            assert!(completion.result().is_some());
            assert_eq!(counter.0.load(Ordering::Relaxed), usize::from(registered));
        }
    }
}
