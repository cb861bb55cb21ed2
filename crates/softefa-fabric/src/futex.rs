//! Sleeping on a word of shared memory.

use core::sync::atomic::{AtomicU32, Ordering};

/// Sleeps while `word` holds `seen`, at most `timeout_ns`; may return early for no reason.
pub(crate) fn wait(word: &AtomicU32, seen: u32, timeout_ns: u64) {
    let timeout = libc::timespec {
        tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: `word` and `timeout` outlive the call; FUTEX_WAIT (shared) only reads the word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &timeout, 0, 0) };
}

/// Adds one to `word` and wakes whoever sleeps on it.
pub(crate) fn ring(word: &AtomicU32) {
    word.fetch_add(1, Ordering::Release);
    // SAFETY: `word` is valid; FUTEX_WAKE does not touch it.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0) };
}
