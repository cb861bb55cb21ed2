//! Copies between the device's packets and the application's memory.
//!
//! A device that meets unmapped memory ends the operation with an error; it does not kill the program. So the application's side of each
//! copy is named by number, and the kernel makes the copy (`process_vm_readv` and `process_vm_writev` on the own process), which reports a bad
//! address. Where these calls are forbidden (seccomp in old container runtimes), plain copies take their place.

use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// One copy: `len` bytes between the device's memory at `own` and the application's at `app`.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) own: *mut u8,
    pub(super) app: u64,
    pub(super) len: usize,
}

// SAFETY: a piece is two addresses; who copies it says that they are valid then.
unsafe impl Send for Piece {}

/// Direction of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    FromApplication,
    ToApplication,
}

/// The system calls are not allowed here; found out by the first that was refused.
static FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// Copies pieces, many with one system call.
pub(super) struct Copier {
    own: Vec<libc::iovec>,
    app: Vec<libc::iovec>,
}

// SAFETY: the vectors hold addresses only for the length of one call; between calls they are empty of meaning.
unsafe impl Send for Copier {}

/// Most entries of one system call.
const VECTORS_MAX: usize = 512;

impl Copier {
    pub(super) fn new() -> Copier {
        Copier { own: Vec::with_capacity(64), app: Vec::with_capacity(64) }
    }

    /// Copies `pieces`, and says of each that could not be copied where it stands.
    ///
    /// # Safety
    /// Each piece's `own` is valid for reads (to the application) or writes (from it) of its `len` bytes.
    pub(super) unsafe fn copy(&mut self, way: Way, pieces: &[Piece], mut failed: impl FnMut(usize)) {
        let mut done = 0;
        while done < pieces.len() {
            let end = pieces.len().min(done + VECTORS_MAX);
            // SAFETY: as the caller promises.
            let copied = unsafe { self.copy_some(way, &pieces[done..end]) };
            done += copied;
            if done < end {
                // A short copy ends at a bad address, or (never seen) for no reason: the next piece alone decides.
                // SAFETY: as the caller promises.
                if unsafe { self.copy_some(way, &pieces[done..=done]) } == 0 {
                    failed(done);
                }
                done += 1;
            }
        }
    }

    /// Copies the first few of `pieces`; returns how many wholly.
    unsafe fn copy_some(&mut self, way: Way, pieces: &[Piece]) -> usize {
        if FORBIDDEN.load(Ordering::Relaxed) {
            for piece in pieces {
                // SAFETY: `own` as the caller promises; `app` lies in a region that the application has registered and keeps.
                unsafe { copy_plainly(way, piece) };
            }
            return pieces.len();
        }
        self.own.clear();
        self.app.clear();
        for piece in pieces {
            self.own.push(libc::iovec { iov_base: piece.own.cast(), iov_len: piece.len });
            let adjoins = |last: &libc::iovec| last.iov_base as u64 + last.iov_len as u64 == piece.app;
            match self.app.last_mut().filter(|last| adjoins(last)) {
                Some(last) => last.iov_len += piece.len,
                None => self
                    .app
                    .push(libc::iovec { iov_base: piece.app as *mut libc::c_void, iov_len: piece.len }),
            }
        }
        // The calling thread names the process: its first thread may have ended before the others, and has no memory then. So it is also when
        // the process is being killed, and peers must not hear of an error that no program had.
        // SAFETY: the call has no preconditions.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) } as libc::pid_t;
        let (own, owns) = (self.own.as_ptr(), self.own.len() as libc::c_ulong);
        let (app, apps) = (self.app.as_ptr(), self.app.len() as libc::c_ulong);
        let copied = match way {
            // SAFETY: `own` is valid as the caller promises; the kernel checks every address of `app`.
            Way::FromApplication => unsafe { libc::process_vm_readv(thread, own, owns, app, apps, 0) },
            // SAFETY: as above.
            Way::ToApplication => unsafe { libc::process_vm_writev(thread, own, owns, app, apps, 0) },
        };
        if copied < 0 {
            let error = std::io::Error::last_os_error().raw_os_error();
            if matches!(error, Some(libc::EPERM | libc::ENOSYS)) {
                FORBIDDEN.store(true, Ordering::Relaxed);
                // SAFETY: as the caller promises.
                return unsafe { self.copy_some(way, pieces) };
            }
            return 0;
        }
        let mut left = copied as usize;
        pieces
            .iter()
            .take_while(|piece| {
                let whole = left >= piece.len;
                left = left.saturating_sub(piece.len);
                whole
            })
            .count()
    }

    /// Whether the application's memory from `addr` on, `len` bytes, can be read.
    ///
    /// Every page is asked whether it is mapped; that it can be read, too, is tried on 1,024 pages at most.
    pub(super) fn is_readable(&mut self, addr: u64, len: u64) -> bool {
        if FORBIDDEN.load(Ordering::Relaxed) || len == 0 {
            return true;
        }
        let (first, last) = (addr & !(PAGE - 1), (addr + (len - 1)) & !(PAGE - 1));
        is_mapped(first, last + PAGE) && self.probe(addr, first, last)
    }

    fn probe(&mut self, addr: u64, first: u64, last: u64) -> bool {
        const PROBES_MAX: u64 = 1024;
        let pages = (last - first) / PAGE + 1;
        let stride = pages.div_ceil(PROBES_MAX) * PAGE;
        let mut bytes = [0_u8; PROBES_MAX as usize + 2];
        let mut places: Vec<u64> =
            (first..=last).step_by(stride as usize).map(|page| page.max(addr)).collect();
        places.push(last.max(addr));
        let pieces: Vec<Piece> = places
            .iter()
            .zip(&mut bytes)
            .map(|(&app, byte)| Piece { own: ptr::from_mut(byte), app, len: 1 })
            .collect();
        let mut readable = true;
        // SAFETY: each piece's own byte is one of `bytes`.
        unsafe { self.copy(Way::FromApplication, &pieces, |_| readable = false) };
        readable
    }
}

const PAGE: u64 = 4096;

/// Whether all pages from `first` up to `end` are mapped, whatever they may be used for.
fn is_mapped(first: u64, end: u64) -> bool {
    const CHUNK: u64 = 1 << 30;
    let mut resident = vec![0_u8; (CHUNK.min(end - first) / PAGE) as usize];
    let mut from = first;
    while from < end {
        let len = CHUNK.min(end - from);
        // SAFETY: the call reads no memory at the address; `resident` has a byte for each page of `len`.
        let outcome =
            unsafe { libc::mincore(from as *mut libc::c_void, len as usize, resident.as_mut_ptr()) };
        // Any other error than "not mapped" says nothing about the memory.
        if outcome != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM) {
            return false;
        }
        from += len;
    }
    true
}

/// # Safety
/// Both sides of the piece are valid for its length. They may overlap, and others may write to them: nothing is assumed of the bytes.
unsafe fn copy_plainly(way: Way, piece: &Piece) {
    let app = piece.app as *mut u8;
    let (from, to) = match way {
        Way::FromApplication => (app, piece.own),
        Way::ToApplication => (piece.own, app),
    };
    // SAFETY: as the caller promises.
    unsafe { ptr::copy(from, to, piece.len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copier() -> Copier {
        Copier::new()
    }

    /// Three pages, the middle one unmapped.
    fn pages_with_a_hole() -> u64 {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), 3 * 4096, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start as u64;
        // SAFETY: the page is this test's own.
        unsafe { libc::munmap((start + 4096) as *mut libc::c_void, 4096) };
        start
    }

    #[test]
    fn a_hole_in_the_memory_fails_its_own_piece_and_no_other() {
        let start = pages_with_a_hole();
        let mut source = [7_u8; 300];
        let own = source.as_mut_ptr();
        // SAFETY: the offset lies inside `source`.
        let at = |i: usize| unsafe { own.add(100 * i) };
        let pieces = [
            Piece { own: at(0), app: start + 4000, len: 96 },
            Piece { own: at(1), app: start + 4096, len: 100 },
            Piece { own: at(2), app: start + 8192, len: 100 },
        ];
        let mut failed = Vec::new();
        // SAFETY: the pieces' own sides are parts of `source`.
        unsafe { copier().copy(Way::ToApplication, &pieces, |i| failed.push(i)) };
        assert_eq!(failed, [1]);
        let mut back = [0_u8; 100];
        let piece = Piece { own: back.as_mut_ptr(), app: start + 8192, len: 100 };
        // SAFETY: the piece's own side is `back`.
        unsafe { copier().copy(Way::FromApplication, &[piece], |_| unreachable!("it is mapped")) };
        assert_eq!(back, [7; 100]);
    }

    #[test]
    fn memory_with_a_hole_is_not_readable() {
        let start = pages_with_a_hole();
        assert!(copier().is_readable(start, 4096));
        assert!(!copier().is_readable(start, 4097));
        assert!(!copier().is_readable(start + 4095, 4098));
        assert!(copier().is_readable(start + 8192, 1));
    }

    #[test]
    fn where_the_system_calls_are_forbidden_bytes_are_copied_all_the_same() {
        let (mut own, mut app) = ([1_u8; 50], [2_u8; 50]);
        let piece = Piece { own: own.as_mut_ptr(), app: app.as_mut_ptr() as u64, len: 20 };
        // SAFETY: both sides are longer than the piece.
        unsafe { copy_plainly(Way::ToApplication, &piece) };
        assert_eq!((&app[..20], &app[20..]), (&[1; 20][..], &[2; 30][..]));
        let piece = Piece { app: piece.app + 20, ..piece };
        // SAFETY: as above.
        unsafe { copy_plainly(Way::FromApplication, &piece) };
        assert_eq!((&own[..20], &own[20..]), (&[2; 20][..], &[1; 30][..]));
    }
}
