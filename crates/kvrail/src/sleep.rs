//! Sleeping until a fabric has something to do: no busy core when nothing moves.
//!
//! One sleeper at a time: the progress thread, or with inline progress the first of the waiting callers. It sleeps
//! on the fabrics' descriptors and on an eventfd by which others wake it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The descriptors to sleep on.
#[derive(Debug)]
pub(crate) struct Sleeper {
    kick: OwnedFd,
    fabrics: Vec<OwnedFd>,
    /// Whether a kick is needed: saves the system call when nobody sleeps.
    asleep: AtomicBool,
}

impl Sleeper {
    pub(crate) fn new(fabrics: Vec<OwnedFd>) -> io::Result<Self> {
        let kick = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { kick, fabrics, asleep: AtomicBool::new(false) })
    }

    /// Says that a sleep follows. The caller looks once more for work after this and before [`Sleeper::sleep`]:
    /// whoever makes work after that look sees the announcement and kicks.
    pub(crate) fn announce(&self) {
        // A read-modify-write, so that it is ordered after the kick whose flag it overwrites.
        self.asleep.swap(true, Ordering::SeqCst);
    }

    /// Takes an announcement back: there was work after all.
    pub(crate) fn stay_awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Wakes the sleeper, or keeps it from falling asleep.
    pub(crate) fn kick(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Can fail only when 2^64 kicks are pending, and then the sleeper wakes anyway.
            let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
        }
    }

    /// Sleeps until a fabric is readable, a kick, or `timeout`; for ever without one.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(1 + self.fabrics.len());
        fds.push(PollFd::from_borrowed_fd(self.kick.as_fd(), PollFlags::IN));
        fds.extend(self.fabrics.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        // EINTR is a wake-up like any other: the caller looks at everything again.
        let _ = poll(&mut fds, timeout.as_ref());
        self.asleep.store(false, Ordering::SeqCst);
        if !fds[0].revents().is_empty() {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&self.kick, &mut count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn a_kick_after_the_announcement_is_never_lost() {
        let sleeper = Arc::new(Sleeper::new(Vec::new()).unwrap());
        for _ in 0..200 {
            sleeper.announce();
            let kicker = {
                let sleeper = sleeper.clone();
                std::thread::spawn(move || sleeper.kick())
            };
            let started = Instant::now();
            sleeper.sleep(Some(Duration::from_secs(5)));
            assert!(started.elapsed() < Duration::from_secs(4), "slept through a kick");
            kicker.join().unwrap();
        }
    }

    #[test]
    fn sleep_ends_at_its_timeout() {
        let sleeper = Sleeper::new(Vec::new()).unwrap();
        sleeper.announce();
        let started = Instant::now();
        sleeper.sleep(Some(Duration::from_millis(5)));
        assert!(started.elapsed() >= Duration::from_millis(5));
    }
}
