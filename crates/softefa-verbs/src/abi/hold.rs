//! The lock that a program holds between two calls: from `ibv_wr_start` to `ibv_wr_complete`, from `ibv_start_poll` to `ibv_end_poll`.

use core::hint;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Looks at a lock that is held, before the processor is given away.
const SPINS: u32 = 100;

/// A lock that knows its owner, so that a call out of turn is noticed rather than undefined.
///
/// Whoever ends the turn gives it back, the owner or another thread: rdma-core's is a spin lock, and libfabric relies on that. It
/// leaves a turn of polling open at a completion with an error until somebody reads that error, and of a program whose threads take
/// turns at a queue that is often another one.
pub(super) struct Hold(AtomicUsize);

impl Hold {
    /// Not held.
    pub(super) const fn new() -> Hold {
        Hold(AtomicUsize::new(0))
    }

    /// Waits for other threads; when the calling thread holds it already, it goes on holding it.
    pub(super) fn take(&self) {
        let own = own();
        let mut looks = 0;
        while let Err(owner) = self.0.compare_exchange_weak(0, own, Ordering::Acquire, Ordering::Relaxed) {
            if owner == own {
                return;
            }
            looks += 1;
            if looks < SPINS {
                hint::spin_loop();
            } else {
                // SAFETY: the call touches no memory.
                unsafe { libc::sched_yield() };
            }
        }
    }

    /// Lets go; false when nobody held it.
    pub(super) fn release(&self) -> bool {
        self.0.swap(0, Ordering::Release) != 0
    }
}

/// The calling thread; never zero.
fn own() -> usize {
    // SAFETY: the call touches no memory but the thread's own.
    (unsafe { libc::pthread_self() }) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_turn_that_one_thread_begins_may_be_ended_by_another() {
        let hold = Arc::new(Hold::new());
        hold.take();
        hold.take();
        let other = hold.clone();
        assert!(thread::spawn(move || other.release()).join().unwrap());
        let other = hold.clone();
        thread::spawn(move || other.take()).join().unwrap();
        assert!(hold.release());
        assert!(!hold.release());
    }

    #[test]
    fn turns_exclude_each_other() {
        let shared = Arc::new((Hold::new(), AtomicUsize::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || {
                    for _ in 0..10_000 {
                        shared.0.take();
                        // Two steps: others would come between them.
                        let count = shared.1.load(Ordering::Relaxed);
                        shared.1.store(count + 1, Ordering::Relaxed);
                        shared.0.release();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(shared.1.load(Ordering::Relaxed), 40_000);
    }
}
