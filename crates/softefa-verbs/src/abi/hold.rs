//! The lock that a program holds between two calls: from `ibv_wr_start` to `ibv_wr_complete`, from `ibv_start_poll` to `ibv_end_poll`.

use core::cell::UnsafeCell;

/// A mutex that knows its owner, so that a call out of turn is noticed rather than undefined.
pub(super) struct Hold(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a mutex is made to be used by all threads.
unsafe impl Sync for Hold {}
// SAFETY: as above.
unsafe impl Send for Hold {}

impl Hold {
    /// Not held. It must not move once it is used; all are in boxes that C has the address of.
    pub(super) const fn new() -> Hold {
        Hold(UnsafeCell::new(libc::PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP))
    }

    /// Waits for other threads; when the calling thread holds it already, it goes on holding it.
    pub(super) fn take(&self) {
        // SAFETY: an initialized mutex of the kind that answers EDEADLK to its owner.
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    /// Lets go; false when the calling thread did not hold it.
    pub(super) fn release(&self) -> bool {
        // SAFETY: an initialized mutex of the kind that answers EPERM to others than its owner.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) == 0 }
    }
}
