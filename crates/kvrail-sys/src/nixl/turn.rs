//! A lock that goes round: who asks while another holds it comes next.
//!
//! An agent is driven by a thread that calls it again and again. Under an ordinary mutex that thread takes the lock back before whoever
//! waits for it is awake, for minutes on end.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A value that one thread at a time has.
pub(super) struct Turn<T> {
    /// Held by the one who is next, while it waits.
    next: Mutex<()>,
    now: Mutex<T>,
}

impl<T> Turn<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { next: Mutex::new(()), now: Mutex::new(value) }
    }

    /// Waits for the turn. A panic in another's turn is its own affair: what is guarded are calls and handles, whole at any time.
    pub(super) fn take(&self) -> MutexGuard<'_, T> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get_mut(&mut self) -> &mut T {
        self.now.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_thread_that_takes_it_again_and_again_keeps_nobody_waiting() {
        let (turn, is_over) = (Turn::new(0u64), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let mut count = turn.take();
                    *count += 1;
                    // As long as a call of NIXL's takes.
                    let began = Instant::now();
                    while began.elapsed() < Duration::from_micros(20) {
                        std::hint::spin_loop();
                    }
                }
            });
            let began = Instant::now();
            for _ in 0..20 {
                drop(turn.take());
            }
            let took = began.elapsed();
            is_over.store(true, Ordering::Relaxed);
            assert!(took < Duration::from_secs(5), "{took:?}");
        });
    }
}
