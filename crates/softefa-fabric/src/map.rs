//! A file mapped into memory, shared.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::{io, ptr};

use crate::FabricError;

/// A shared mapping of a whole file.
pub(crate) struct Map {
    start: ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is memory without a thread affinity; what is in it is atomics, or guarded as its types say.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub(crate) fn new(file: &File, len: usize, path: &Path) -> Result<Map, FabricError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(FabricError::Io { action: "map", path: path.to_owned(), source });
        }
        let start = ptr::NonNull::new(start.cast()).expect("mmap never maps page 0 unasked");
        Ok(Map { start, len })
    }

    /// A place in the mapping.
    ///
    /// # Panics
    /// When it does not lie in the mapping, or is not aligned: a defect of the layout.
    pub(crate) fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.len && offset.is_multiple_of(align_of::<T>()), "layout");
        // SAFETY: the assertion says that it stays inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }.cast()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and nothing borrowed from it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
