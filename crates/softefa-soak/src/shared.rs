//! A file that several processes map.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

/// The mapping. Processes and devices write to it at any time: it is looked at through copies and atomics only.
#[derive(Debug)]
pub(crate) struct Shared {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and is accessed through copies and atomics only.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Makes the file, all zero.
    pub(crate) fn create(path: &Path, len: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(len as u64)?;
        Self::map(&file, len)
    }

    /// Maps a file that is there.
    pub(crate) fn open(path: &Path, len: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::map(&file, len)
    }

    fn map(file: &std::fs::File, len: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is there.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { at, len })
    }

    /// Memory of this process only.
    pub(crate) fn private(len: usize) -> io::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: as in `map`.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { at, len })
    }

    pub(crate) fn address(&self) -> u64 {
        self.at.as_ptr().expose_provenance() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    fn check(&self, at: usize, len: usize) {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "{at} + {len} of {}", self.len);
    }

    /// Copies bytes out.
    pub(crate) fn read<'a>(&self, at: usize, len: usize, into: &'a mut Vec<u8>) -> &'a [u8] {
        self.check(at, len);
        into.resize(len, 0);
        // SAFETY: checked above.
        let from = unsafe { self.at.as_ptr().add(at) };
        // SAFETY: `len` bytes of the mapping into as many of the vector. A device may be writing: then the copy holds some of the old
        // and some of the new bytes, which is what a program would see.
        unsafe { into.as_mut_ptr().copy_from_nonoverlapping(from, len) };
        into
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: checked above.
        let into = unsafe { self.at.as_ptr().add(at) };
        // SAFETY: as in `read`.
        unsafe { into.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Makes bytes zero.
    pub(crate) fn clear(&self, at: usize, len: usize) {
        self.check(at, len);
        // SAFETY: checked above.
        let into = unsafe { self.at.as_ptr().add(at) };
        // SAFETY: as in `read`.
        unsafe { into.write_bytes(0, len) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it outlives the value.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}
