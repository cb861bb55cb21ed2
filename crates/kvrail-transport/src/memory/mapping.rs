//! A mapping: address space that this process owns and gives back when dropped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// What a transparent huge page covers on every platform that Linux builds them for with 4 KiB base pages.
const THP_BYTES: usize = 2 << 20;

/// A range of mapped memory.
///
/// Other processes (or devices) may write to it at any time, so it never lends `&[u8]`: bytes go in and out by copy.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, owned by this value until it is dropped; nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: shared access goes through atomics or through copies whose result nobody relies on to be free of races.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory that no other process sees.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, None, len >= THP_BYTES)
    }

    /// The first `len` bytes of a file that stands for memory. `align` starts the mapping on a huge-page boundary.
    pub(crate) fn shared(fd: BorrowedFd<'_>, len: usize, align: bool) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED | libc::MAP_NORESERVE, Some(fd), align)
    }

    /// As [`Mapping::shared`], and the pages are set aside at once: fails where there are not enough of them.
    pub(crate) fn shared_reserved(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED, Some(fd), false)
    }

    fn map(len: usize, flags: libc::c_int, fd: Option<BorrowedFd<'_>>, align: bool) -> io::Result<Self> {
        let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        if !align {
            return mmap(std::ptr::null_mut(), len, access, flags, fd).map(|base| Self { base, len });
        }
        // Reserve more than needed, map over the aligned part, return the ends.
        let around = len.checked_add(THP_BYTES).ok_or_else(|| {
            io::Error::new(io::ErrorKind::OutOfMemory, "length overflows the address space")
        })?;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let outer =
            Self { base: mmap(std::ptr::null_mut(), around, libc::PROT_NONE, reserve, -1)?, len: around };
        let skip = outer.base.as_ptr().align_offset(THP_BYTES);
        let start = outer.base.as_ptr().wrapping_add(skip);
        let base = mmap(start, len, access, flags | libc::MAP_FIXED, fd)?;
        std::mem::forget(outer);
        let end = skip + len.next_multiple_of(page_bytes());
        drop_range(start.wrapping_sub(skip), skip);
        drop_range(start.wrapping_add(end - skip), around - end);
        Ok(Self { base, len })
    }

    /// Address of the first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// A mapping is never empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `offset`, when `len` bytes from there lie inside.
    pub(crate) fn at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| self.as_ptr().wrapping_add(offset))
    }

    fn checked(&self, offset: usize, len: usize) -> *mut u8 {
        self.at(offset as u64, len)
            .unwrap_or_else(|| panic!("range {offset}+{len} lies outside a mapping of {} bytes", self.len))
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the range lies outside the mapping.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.checked(offset, bytes.len());
        // SAFETY: `checked` proved that the destination is mapped; the source is a borrowed slice, which by its
        // aliasing rule cannot be this mapping, as the mapping never lends references to its bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the range lies outside the mapping.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.checked(offset, bytes.len());
        // SAFETY: as in `write`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Sets every byte of a range.
    ///
    /// # Panics
    /// When the range lies outside the mapping.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        let to = self.checked(offset, len);
        // SAFETY: `checked` proved that the range is mapped.
        unsafe { std::ptr::write_bytes(to, byte, len) }
    }

    /// Touches every page now, so that no transfer pays for it.
    ///
    /// # Errors
    /// The system's, e.g. out of memory.
    pub fn prefault(&self) -> io::Result<()> {
        match self.advise(libc::MADV_POPULATE_WRITE) {
            // Linux before 5.14: touch the pages by hand.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                for offset in (0..self.len).step_by(page_bytes()) {
                    self.atomic_u8(offset).fetch_or(0, std::sync::atomic::Ordering::Relaxed);
                }
                Ok(())
            }
            other => other,
        }
    }

    pub(crate) fn advise_huge(&self) -> io::Result<()> {
        self.advise(libc::MADV_HUGEPAGE)
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is exactly this mapping; both kinds of advice used here keep its contents.
        let rc = unsafe { libc::madvise(self.as_ptr().cast(), self.len, advice) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn atomic_u8(&self, offset: usize) -> &AtomicU8 {
        let at = self.checked(offset, 1);
        // SAFETY: inside the mapping, which outlives the borrow; every concurrent access of it is atomic too.
        unsafe { AtomicU8::from_ptr(at) }
    }

    pub(crate) fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        let at = self.checked(offset, 4).cast::<u32>();
        assert!(at.is_aligned(), "offset {offset} is not aligned");
        // SAFETY: inside the mapping, which outlives the borrow, and aligned; every access of it is atomic.
        unsafe { AtomicU32::from_ptr(at) }
    }

    pub(crate) fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        let at = self.checked(offset, 8).cast::<u64>();
        assert!(at.is_aligned(), "offset {offset} is not aligned");
        // SAFETY: inside the mapping, which outlives the borrow, and aligned; every access of it is atomic.
        unsafe { AtomicU64::from_ptr(at) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop_range(self.as_ptr(), self.len);
    }
}

/// Bytes of a base page.
#[must_use]
pub fn page_bytes() -> usize {
    // SAFETY: no memory is involved.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

fn mmap(
    at: *mut u8,
    len: usize,
    access: libc::c_int,
    flags: libc::c_int,
    fd: libc::c_int,
) -> io::Result<NonNull<u8>> {
    // SAFETY: without MAP_FIXED the kernel picks free address space; with it, `at` lies in a reservation that the
    // caller owns and has lent to nobody.
    let base = unsafe { libc::mmap(at.cast(), len, access, flags, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

fn drop_range(base: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: the caller owns the range and no pointer into it is used afterwards.
        let _ = unsafe { libc::munmap(base.cast(), len) };
    }
}
