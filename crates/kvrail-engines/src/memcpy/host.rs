//! Processes of this host, and what tells two hosts apart.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What tells two hosts, two boots of one, and two containers apart: where process ids mean the same.
pub(super) fn pid_realm() -> io::Result<(String, String)> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let namespace = fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned();
    Ok((boot, namespace))
}

/// When a process started, in the kernel's ticks: with its id, a name that is not used twice.
pub(super) fn start_time(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, which may hold anything; the start is field 22.
    let field = text.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19));
    let none = || io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat");
    field.and_then(|f| f.parse().ok()).ok_or_else(none)
}

/// A process that is watched until this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    gone: Arc<AtomicBool>,
    watch: Option<(OwnedFd, std::thread::JoinHandle<()>)>,
}

impl Process {
    /// The process with this id that started at that time.
    pub(super) fn watch(pid: u32, started: u64) -> io::Result<Self> {
        let gone = Arc::new(AtomicBool::new(false));
        if pid == std::process::id() {
            return Ok(Self { pid, gone, watch: None });
        }
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let process = pidfd_open(raw, PidfdFlags::empty())?;
        // Opened first, compared second: had the id been taken over before, the start would differ.
        if start_time(pid)? != started {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let (stopped, noted) = (stop.try_clone()?, Arc::clone(&gone));
        let thread = std::thread::Builder::new().name("kvrail-peer".into()).spawn(move || {
            let mut fds = [PollFd::new(&process, PollFlags::IN), PollFd::new(&stopped, PollFlags::IN)];
            // Interrupted: once more. Anything else cannot be waited for, and the peer counts as there.
            while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
            if fds[0].revents().contains(PollFlags::IN) {
                noted.store(true, Ordering::Release);
            }
        })?;
        Ok(Self { pid, gone, watch: Some((stop, thread)) })
    }

    /// Whether it has ended.
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some((stop, thread)) = self.watch.take() else { return };
        // The write of a counter that is zero does not block, and wakes the thread, which then ends.
        if rustix::io::write(stop.as_fd(), &1u64.to_ne_bytes()).is_ok() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_that_ends_is_noticed_and_another_life_of_its_id_is_not_taken_for_it() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        assert!(Process::watch(child.id(), started + 1).is_err());
        let process = Process::watch(child.id(), started).unwrap();
        assert!(!process.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !process.is_gone() {
            assert!(Instant::now() < deadline, "not noticed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn dropping_the_watch_of_a_living_process_returns() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        drop(Process::watch(child.id(), start_time(child.id()).unwrap()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
