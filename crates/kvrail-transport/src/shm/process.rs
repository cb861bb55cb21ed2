//! A peer's process: a name that no later process can take over, and its private memory.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use kvrail_core::transport::Direction;

use super::host::start_time;

/// Slices of one call; the kernel's limit.
const SLICES_MAX: usize = 1024;
/// Bytes of one call: more gains nothing, less pays for the call.
const CALL_BYTES: usize = 2 << 20;

/// A process on this host.
#[derive(Debug)]
pub(super) struct Process {
    pid: libc::pid_t,
    /// `None` for this very process, which need not be watched.
    handle: Option<OwnedFd>,
}

impl Process {
    /// The process with this id that started at that time.
    pub(super) fn open(pid: u32, started: u64) -> io::Result<Self> {
        let raw = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        if pid == std::process::id() {
            return Ok(Self { pid: raw, handle: None });
        }
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, raw, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, whose number fits.
        let handle = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // Opened first, compared second: had the id been taken over before, the start would differ.
        if start_time(pid)? != started {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(Self { pid: raw, handle: Some(handle) })
    }

    pub(super) fn handle(&self) -> Option<RawFd> {
        self.handle.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        let Some(fd) = self.handle() else { return true };
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) <= 0 }
    }
}

/// One slice of a copy between processes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    pub(super) local: *mut u8,
    /// An address in the other process.
    pub(super) remote: u64,
    pub(super) len: usize,
}

/// How far a copy came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Progress {
    /// Slices that were copied whole, from the first.
    pub(super) done: usize,
    /// Why the one after them was not. It may have been copied in part.
    pub(super) error: Option<i32>,
}

/// Whether an errno means that this process may not look into the other at all: ptrace rules, a security module, a
/// system call filter. Nothing was copied then.
pub(super) fn is_denial(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES | libc::ENOSYS)
}

/// Room for the arguments of a call.
pub(super) struct Vectors {
    local: Box<[libc::iovec]>,
    remote: Box<[libc::iovec]>,
}

// SAFETY: the pointers in it mean something only during a call.
unsafe impl Send for Vectors {}

impl Vectors {
    pub(super) fn new() -> Self {
        let empty = || vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SLICES_MAX].into();
        Self { local: empty(), remote: empty() }
    }

    /// Copies slices in as few calls as is fastest, until all are done or one fails.
    ///
    /// A call acts on whatever process has the id *now*. A write asks before each call whether that is still the
    /// peer; a read asks after, and discards what it got from anyone else. (An id comes round again only after all
    /// others were used, so it cannot be taken over between two neighbouring system calls.)
    pub(super) fn copy(&mut self, process: &Process, direction: Direction, slices: &[Slice]) -> Progress {
        let mut done = 0;
        let mut alone = false;
        while done < slices.len() {
            let (mut count, mut bytes) = (0, 0);
            for slice in slices[done..].iter().take(if alone { 1 } else { SLICES_MAX }) {
                if count > 0 && bytes + slice.len > CALL_BYTES {
                    break;
                }
                self.local[count] = libc::iovec { iov_base: slice.local.cast(), iov_len: slice.len };
                self.remote[count] =
                    libc::iovec { iov_base: slice.remote as usize as *mut libc::c_void, iov_len: slice.len };
                bytes += slice.len;
                count += 1;
            }
            let error = match self.call(process, direction, count) {
                Ok(copied) if copied == bytes => {
                    done += count;
                    alone = false;
                    continue;
                }
                // It stops at the first fault and says how far it came, not why: that slice again, alone, says it.
                Ok(mut copied) if !alone => {
                    while copied >= slices[done].len {
                        copied -= slices[done].len;
                        done += 1;
                    }
                    alone = true;
                    continue;
                }
                Ok(_) => libc::EFAULT,
                Err(libc::EFAULT) if !alone && count > 1 => {
                    alone = true;
                    continue;
                }
                Err(errno) => errno,
            };
            return Progress { done, error: Some(error) };
        }
        Progress { done, error: None }
    }

    fn call(&self, process: &Process, direction: Direction, count: usize) -> Result<usize, i32> {
        let (local, remote) = (self.local.as_ptr(), self.remote.as_ptr());
        let count = count as libc::c_ulong;
        loop {
            let n = match direction {
                // SAFETY: `local` lists writable memory of registered regions, which their owner keeps mapped while
                // ops use them; the kernel checks `remote` against the other process.
                Direction::Read => unsafe {
                    libc::process_vm_readv(process.pid, local, count, remote, count, 0)
                },
                Direction::Write => {
                    if !process.is_alive() {
                        return Err(libc::ESRCH);
                    }
                    // SAFETY: as above, with `local` read from.
                    unsafe { libc::process_vm_writev(process.pid, local, count, remote, count, 0) }
                }
            };
            if let Ok(n) = usize::try_from(n) {
                return if direction == Direction::Read && !process.is_alive() {
                    Err(libc::ESRCH)
                } else {
                    Ok(n)
                };
            }
            match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => {}
                errno => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Options, PrivateMemory};

    fn myself() -> Process {
        Process::open(std::process::id(), 0).unwrap()
    }

    fn slices(local: &PrivateMemory, remote: u64, len: usize, count: usize) -> Vec<Slice> {
        (0..count)
            .map(|i| Slice {
                local: local.as_ptr().wrapping_add(i * len),
                remote: remote + (i * len) as u64,
                len,
            })
            .collect()
    }

    #[test]
    fn more_slices_than_one_call_takes_are_copied_both_ways() {
        let (a, b) = (
            PrivateMemory::allocate(3000 * 64, Options::default()).unwrap(),
            PrivateMemory::allocate(3000 * 64, Options::default()).unwrap(),
        );
        b.fill(0, b.len(), 7);
        let list = slices(&a, b.as_ptr() as u64, 64, 3000);
        let whole = Progress { done: 3000, error: None };
        assert_eq!(Vectors::new().copy(&myself(), Direction::Read, &list), whole);
        let mut got = vec![0; a.len()];
        a.read(0, &mut got);
        assert!(got.iter().all(|x| *x == 7));
        a.fill(0, a.len(), 9);
        assert_eq!(Vectors::new().copy(&myself(), Direction::Write, &list), whole);
        b.read(0, &mut got);
        assert!(got.iter().all(|x| *x == 9));
    }

    #[test]
    fn a_fault_names_the_slice_and_those_before_it_are_whole() {
        let a = PrivateMemory::allocate(64 << 10, Options::default()).unwrap();
        let b = PrivateMemory::allocate(64 << 10, Options::default()).unwrap();
        b.fill(0, b.len(), 5);
        for bad in [0, 1, 7, 15] {
            for direction in [Direction::Read, Direction::Write] {
                let mut list = slices(&a, b.as_ptr() as u64, 4096, 16);
                list[bad].remote = 4096;
                let progress = Vectors::new().copy(&myself(), direction, &list);
                assert_eq!(progress, Progress { done: bad, error: Some(libc::EFAULT) });
            }
        }
    }

    #[test]
    fn a_slice_that_faults_in_its_middle_is_not_done() {
        let a = PrivateMemory::allocate(64 << 10, Options::default()).unwrap();
        let b = PrivateMemory::allocate(16 << 10, Options::default()).unwrap();
        // The last slice begins in mapped memory and ends in what nobody mapped.
        let hole = Hole::after(&b);
        let mut list = slices(&a, hole.start, 4096, 2);
        list[1].len = 16 << 10;
        let progress = Vectors::new().copy(&myself(), Direction::Read, &list);
        assert_eq!(progress, Progress { done: 1, error: Some(libc::EFAULT) });
    }

    /// 12 KiB of mapped memory with nothing after it.
    struct Hole {
        start: u64,
        _memory: crate::memory::Mapping,
    }

    impl Hole {
        fn after(_: &PrivateMemory) -> Self {
            let memory = crate::memory::Mapping::anonymous(20 << 10).unwrap();
            let end = memory.as_ptr().wrapping_add(12 << 10);
            // SAFETY: the tail of our own mapping, to which no pointer is used any more.
            let _ = unsafe { libc::mprotect(end.cast(), 8 << 10, libc::PROT_NONE) };
            Self { start: memory.as_ptr() as u64, _memory: memory }
        }
    }

    #[test]
    fn a_process_with_another_start_is_another_process() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        assert!(Process::open(child.id(), started + 1).is_err());
        let process = Process::open(child.id(), started).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        let a = PrivateMemory::allocate(4096, Options::default()).unwrap();
        let list = [Slice { local: a.as_ptr(), remote: a.as_ptr() as u64, len: 64 }];
        for direction in [Direction::Read, Direction::Write] {
            let progress = Vectors::new().copy(&process, direction, &list);
            assert_eq!(progress, Progress { done: 0, error: Some(libc::ESRCH) });
        }
    }
}
