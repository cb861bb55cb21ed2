//! Sleeping: one descriptor for all rails.
//!
//! Where the provider gives its queues descriptors (`tcp` of 1.17 to 2.7; neither `efa-direct`, `efa` nor `shm` does), they
//! are what wakes. Elsewhere a timer does: an idle transport is looked at every 50 µs at first, and ever more rarely, down
//! to every 5 ms, the longer nothing has come. That is also what a provider with manual progress needs of its target.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Shortest sleep by timer.
const NAP_MIN: Duration = Duration::from_micros(50);
/// Longest sleep by timer.
const NAP_MAX: Duration = Duration::from_millis(5);
/// A sleep lasts this part of the time that nothing has come.
const NAP_PART: u32 = 8;

/// How long to sleep when nothing has come for `idle`.
fn nap(idle: Duration) -> Duration {
    (idle / NAP_PART).clamp(NAP_MIN, NAP_MAX)
}

/// What a sleeper waits for.
pub(super) struct Sleeper {
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: bool,
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = checked(result)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Sleeper {
    /// Nothing to wait for yet.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: no memory is involved.
        let timer = owned(unsafe {
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
        })?;
        let sleeper = Self { epoll, timer, armed: false };
        sleeper.add(sleeper.timer.as_raw_fd())?;
        Ok(sleeper)
    }

    /// Also wakes for this descriptor, until it is closed.
    pub(super) fn add(&self, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: both descriptors are open, and the event lives during the call.
        checked(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Wakes by the timer: after as long as suits a transport to which nothing has come for `idle`.
    pub(super) fn arm_timer(&mut self, idle: Duration) {
        let sleep = nap(idle);
        self.armed = true;
        self.set(sleep);
    }

    /// The wake-up was heard: the timer is quiet until it is armed again.
    pub(super) fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            // Setting a timer also forgets that it had expired.
            self.set(Duration::ZERO);
        }
    }

    fn set(&self, after: Duration) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: after.as_secs() as libc::time_t,
            tv_nsec: after.subsec_nanos() as libc::c_long,
        };
        let spec = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the timer is open and the setting alive; the former one is not asked for. It cannot fail with a valid
        // time, which this is.
        unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(fd: RawFd, within: Duration) -> bool {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives during the call.
        unsafe { libc::poll(&mut poll, 1, within.as_millis() as libc::c_int) == 1 }
    }

    #[test]
    fn naps_grow_with_idleness_and_have_an_end() {
        assert_eq!(nap(Duration::ZERO), NAP_MIN);
        assert_eq!(nap(Duration::from_millis(8)), Duration::from_millis(1));
        assert_eq!(nap(Duration::from_secs(60)), NAP_MAX);
    }

    #[test]
    fn an_armed_sleeper_wakes_and_a_disarmed_one_does_not() {
        let mut sleeper = Sleeper::new().unwrap();
        assert!(!readable(sleeper.fd(), Duration::from_millis(20)));
        sleeper.arm_timer(Duration::from_millis(4));
        assert!(readable(sleeper.fd(), Duration::from_millis(1_000)));
        sleeper.disarm();
        assert!(!readable(sleeper.fd(), Duration::from_millis(20)));
    }
}
