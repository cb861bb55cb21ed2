//! A prepared transfer: the loop that a careful C programmer would write.

use std::io;
use std::sync::Arc;

use kvrail::Memory;

use super::peer::{Peer, Reach, denied};
use crate::engine::Posting;
use crate::error::{EngineError, Kind};

/// Slices of one call at most: the kernel's limit.
pub(super) const SLICES_MAX: usize = 1024;
/// Bytes of one call at most, unless one slice alone is larger: more gains nothing.
const CALL_BYTES: usize = 2 << 20;
/// Bytes of one slice at most: a call moves no more than 2 GiB.
const SLICE_BYTES_MAX: usize = 1 << 30;

/// What goes in one piece: offsets in both memories, inside them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) local: u64,
    pub(super) remote: u64,
    pub(super) len: u64,
}

/// The copies of a transfer.
pub(super) struct Copies {
    how: How,
    /// What all addresses in `how` lie in.
    peer: Arc<Peer>,
    _memory: Memory,
    posted: bool,
}

enum How {
    Mapped(Vec<Copy>),
    Process { write: bool, calls: Vec<Call> },
}

struct Copy {
    from: *const u8,
    to: *mut u8,
    len: usize,
}

/// The arguments of one system call.
struct Call {
    local: Vec<libc::iovec>,
    remote: Vec<libc::iovec>,
    bytes: usize,
}

// SAFETY: the addresses are of memory that this value keeps alive, and that no thread has a reference into; the copy of a
// block by two postings at once is what their caller asked for.
unsafe impl Send for Copies {}

impl Copies {
    /// Lays the pieces out. They were checked against both memories.
    pub(super) fn new(memory: Memory, peer: Arc<Peer>, write: bool, pieces: &[Piece]) -> Self {
        let here =
            |offset: u64| std::ptr::with_exposed_provenance_mut::<u8>((memory.base() + offset) as usize);
        let how = match &peer.reach {
            Reach::Mapped(mapped) => How::Mapped(
                pieces
                    .iter()
                    .map(|piece| {
                        let (here, there) = (here(piece.local), mapped.at(piece.remote));
                        let (from, to) = if write { (here, there) } else { (there, here) };
                        Copy { from, to, len: piece.len as usize }
                    })
                    .collect(),
            ),
            Reach::Process => {
                let slices = pieces.iter().flat_map(|piece| {
                    (0..piece.len).step_by(SLICE_BYTES_MAX).map(|at| {
                        let len = (piece.len - at).min(SLICE_BYTES_MAX as u64) as usize;
                        let remote = (peer.base + piece.remote + at) as usize as *mut libc::c_void;
                        let local = here(piece.local + at).cast();
                        let slice = |iov_base| libc::iovec { iov_base, iov_len: len };
                        (slice(local), slice(remote))
                    })
                });
                How::Process { write, calls: calls(slices) }
            }
        };
        Self { how, peer, _memory: memory, posted: false }
    }

    fn run(&self) -> Result<(), EngineError> {
        match &self.how {
            How::Mapped(copies) => {
                for copy in copies {
                    // SAFETY: both ranges were checked against their memories, which this value and its peer keep mapped. They are
                    // two mappings; a peer that is this very process gives it another one.
                    unsafe { std::ptr::copy_nonoverlapping(copy.from, copy.to, copy.len) }
                }
            }
            How::Process { write, calls } => calls.iter().try_for_each(|call| self.call(*write, call))?,
        }
        if self.peer.process.is_gone() { Err(self.gone()) } else { Ok(()) }
    }

    fn call(&self, write: bool, call: &Call) -> Result<(), EngineError> {
        let pid = self.peer.process.pid as libc::pid_t;
        let (local, remote, count) =
            (call.local.as_ptr(), call.remote.as_ptr(), call.local.len() as libc::c_ulong);
        let moved = if write {
            // SAFETY: the local slices were checked against the memory that this value keeps alive; the kernel checks the others.
            unsafe { libc::process_vm_writev(pid, local, count, remote, count, 0) }
        } else {
            // SAFETY: as above, with the local ones written to.
            unsafe { libc::process_vm_readv(pid, local, count, remote, count, 0) }
        };
        match usize::try_from(moved) {
            Ok(moved) if moved == call.bytes => Ok(()),
            Ok(moved) => Err(EngineError::new(
                Kind::Peer,
                format!(
                    "the kernel copied {moved} of {} bytes: the target's memory is not there",
                    call.bytes
                ),
            )),
            Err(_) => Err(match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => self.gone(),
                error => denied(&error),
            }),
        }
    }

    #[cold]
    fn gone(&self) -> EngineError {
        EngineError::new(Kind::Peer, format!("the target, process {}, has ended", self.peer.process.pid))
    }
}

/// Calls that take as many slices as they may.
fn calls(slices: impl Iterator<Item = (libc::iovec, libc::iovec)>) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for (local, remote) in slices {
        let fits =
            |call: &&mut Call| call.local.len() < SLICES_MAX && call.bytes + local.iov_len <= CALL_BYTES;
        match calls.last_mut().filter(fits) {
            Some(call) => {
                call.bytes += local.iov_len;
                call.local.push(local);
                call.remote.push(remote);
            }
            None => calls.push(Call { bytes: local.iov_len, local: vec![local], remote: vec![remote] }),
        }
    }
    calls
}

impl Posting for Copies {
    #[inline]
    fn post(&mut self) -> Result<(), EngineError> {
        self.run()?;
        self.posted = true;
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        std::mem::take(&mut self.posted).then_some(Ok(()))
    }

    fn cancel(&mut self) {}
}
