//! Which file a number means: borrowed descriptors and files opened from a path.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::error::FileError;

/// What to open, and how: `ro` or `rw`, then any of `direct`, `sync`, `noatime` and `create`, a colon, the path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PathSpec {
    path: PathBuf,
    writable: bool,
    create: bool,
    flags: i32,
}

impl PathSpec {
    /// None for anything else, which then is not a path.
    pub(super) fn parse(meta: &[u8]) -> Option<Self> {
        let colon = meta.iter().position(|byte| *byte == b':')?;
        let (modes, path) = (std::str::from_utf8(&meta[..colon]).ok()?, &meta[colon + 1..]);
        let mut modes = modes.split(',');
        let writable = match modes.next()? {
            "ro" => false,
            "rw" => true,
            _ => return None,
        };
        if path.is_empty() || path.contains(&0) {
            return None;
        }
        let mut spec =
            Self { path: Path::new(OsStr::from_bytes(path)).into(), writable, create: false, flags: 0 };
        for mode in modes {
            match mode {
                "direct" => spec.flags |= libc::O_DIRECT,
                "sync" => spec.flags |= libc::O_SYNC,
                "noatime" => spec.flags |= libc::O_NOATIME,
                "create" => spec.create = true,
                _ => return None,
            }
        }
        Some(spec)
    }

    fn open(&self) -> io::Result<File> {
        // A FIFO without a peer must not stop the caller; regular files and devices do not heed the flag.
        let mut flags = self.flags | libc::O_NONBLOCK;
        if self.create {
            // The standard library wants write access for that, the system does not.
            flags |= libc::O_CREAT;
        }
        OpenOptions::new().read(true).write(self.writable).mode(0o644).custom_flags(flags).open(&self.path)
    }
}

/// A file's identity, whatever descriptor it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self { device: stat.st_dev as u64, inode: stat.st_ino as u64 })
    }
}

/// A registered file.
#[derive(Debug)]
pub(super) enum Known {
    /// The caller's descriptor, with how many registrations it has.
    Borrowed { identity: Identity, registrations: usize },
    /// Opened here.
    Opened(Arc<OwnedFd>),
}

impl Known {
    pub(super) fn open(spec: &PathSpec) -> Result<Self, FileError> {
        let file = spec.open().map_err(|source| FileError::Open { path: spec.path.clone(), source })?;
        Ok(Self::Opened(Arc::new(file.into())))
    }

    pub(super) fn borrow(device: u64) -> Result<Self, FileError> {
        let identity = with_descriptor(device, |fd| {
            let identity = Identity::of(fd)?;
            Ok((identity, rustix::fs::fcntl_getfl(fd)?))
        });
        let (identity, flags) = identity.map_err(|source| FileError::NotOpen { device, source })?;
        if flags.contains(OFlags::APPEND) {
            return Err(FileError::Appends { device });
        }
        Ok(Self::Borrowed { identity, registrations: 1 })
    }

    pub(super) fn is_borrowed(&self) -> bool {
        matches!(self, Self::Borrowed { .. })
    }

    /// One registration more of a borrowed descriptor.
    pub(super) fn again(&mut self, device: u64) -> Result<(), FileError> {
        let mut now = Self::borrow(device)?;
        if let (Self::Borrowed { registrations: before, .. }, Self::Borrowed { registrations, .. }) =
            (&*self, &mut now)
        {
            *registrations += before;
        }
        *self = now;
        Ok(())
    }

    /// One registration less; whether it was the last.
    pub(super) fn forget_one(&mut self) -> bool {
        match self {
            Self::Borrowed { registrations, .. } => {
                *registrations -= 1;
                *registrations == 0
            }
            Self::Opened(_) => true,
        }
    }

    /// The file for the time of a job.
    pub(super) fn hold(&self, device: u64) -> Result<Held, FileError> {
        let identity = match self {
            Self::Opened(fd) => return Ok(Held { device, fd: Descriptor::Owned(fd.clone()) }),
            Self::Borrowed { identity, .. } => *identity,
        };
        let held = with_descriptor(device, |fd| {
            match fd.try_clone_to_owned() {
                Ok(own) => Ok((Identity::of(own.as_fd())?, Descriptor::Owned(Arc::new(own)))),
                // No number is left for a second descriptor: the caller's has to do.
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                    Ok((Identity::of(fd)?, Descriptor::Borrowed(fd.as_raw_fd())))
                }
                Err(error) => Err(error),
            }
        });
        match held {
            Ok((found, fd)) if found == identity => Ok(Held { device, fd }),
            Ok(_) => Err(FileError::Replaced { device }),
            Err(source) => Err(FileError::NotOpen { device, source }),
        }
    }
}

/// A file that a job moves bytes of.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) device: u64,
    fd: Descriptor,
}

#[derive(Debug)]
enum Descriptor {
    Owned(Arc<OwnedFd>),
    Borrowed(RawFd),
}

impl Held {
    pub(super) fn raw(&self) -> RawFd {
        match &self.fd {
            Descriptor::Owned(fd) => fd.as_raw_fd(),
            Descriptor::Borrowed(fd) => *fd,
        }
    }
}

fn with_descriptor<T>(device: u64, ask: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    let raw = RawFd::try_from(device).map_err(|_| bad())?;
    // SAFETY: the number is not negative, and lives no longer than this call. That it is open is not known and nothing here relies
    // on it: it is only handed to system calls, which answer EBADF for a number that is closed.
    let fd = unsafe { BorrowedFd::borrow_raw(raw) };
    ask(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_nixl_takes_for_one_and_anything_else_means_a_descriptor() {
        let spec = |writable, create, flags| PathSpec { path: "/p:q".into(), writable, create, flags };
        for (meta, expected) in [
            ("ro:/p:q", Some(spec(false, false, 0))),
            ("rw:/p:q", Some(spec(true, false, 0))),
            ("rw,create:/p:q", Some(spec(true, true, 0))),
            (
                "ro,direct,sync,noatime:/p:q",
                Some(spec(false, false, libc::O_DIRECT | libc::O_SYNC | libc::O_NOATIME)),
            ),
            ("", None),
            ("/p:q", None),
            ("rw", None),
            ("rw:", None),
            ("RW:/p:q", None),
            ("w:/p:q", None),
            ("rw,:/p:q", None),
            ("rw,sparse:/p:q", None),
            ("rw:/p\0:q", None),
        ] {
            assert_eq!(PathSpec::parse(meta.as_bytes()), expected, "{meta:?}");
        }
        assert_eq!(PathSpec::parse(b"\xff:/p"), None);
    }
}
