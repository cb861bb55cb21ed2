//! A job: moves that were submitted together, and how far they are.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvrail_core::transport::Direction;
use parking_lot::{Condvar, Mutex};

use super::error::FileError;
use super::open::Held;
use super::worker::Room;
use crate::error::Error;

/// Bytes of one system call at most: what a cancelled job waits for, and what threads share a long move by.
const CALL_BYTES_MAX: u64 = 4 << 20;
/// Pieces of memory of one system call at most, the system's own limit.
const CALL_PIECES_MAX: usize = 1024;
/// How long a job that is dropped is waited for.
const DROP_DRAIN: Duration = Duration::from_secs(30);

/// A move whose file is one of the job's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) memory: u64,
    pub(super) len: u64,
    pub(super) offset: u64,
    pub(super) place: usize,
}

/// What threads work on.
#[derive(Debug)]
pub(super) struct Work {
    pieces: Vec<Piece>,
    held: Vec<Held>,
    direction: Direction,
    progress: Mutex<Progress>,
    quiet: Condvar,
    /// Set once nothing touches the memory any more; `progress` says how it ended.
    done: AtomicBool,
}

#[derive(Debug, Default)]
struct Progress {
    /// The first piece that is not taken wholly.
    next: usize,
    /// How much of it is taken.
    taken: u64,
    /// System calls under way.
    calls: usize,
    /// Nothing more is taken.
    stopped: bool,
    /// The first thing that went wrong.
    error: Option<Error>,
    ended: Option<Instant>,
    /// Given back when it ends.
    room: Option<Room>,
}

/// What one system call is asked for.
#[derive(Debug)]
pub(super) struct Call {
    place: usize,
    offset: u64,
    len: u64,
    /// Whether there was more to take.
    pub(super) more: bool,
}

impl Work {
    pub(super) fn new(pieces: Vec<Piece>, held: Vec<Held>, direction: Direction) -> Self {
        let done = AtomicBool::new(pieces.is_empty());
        Self { pieces, held, direction, progress: Mutex::default(), quiet: Condvar::new(), done }
    }

    pub(super) fn moves(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn admit(&self, room: Room) {
        self.progress.lock().room = Some(room);
    }

    /// Takes the next part of the work: pieces that follow each other in their file. None when all is taken.
    pub(super) fn take(&self, memory: &mut Vec<libc::iovec>) -> Option<Call> {
        let mut progress = self.progress.lock();
        if progress.stopped {
            return None;
        }
        memory.clear();
        let first = *self.pieces.get(progress.next)?;
        let mut call = Call { place: first.place, offset: first.offset + progress.taken, len: 0, more: true };
        while let Some(piece) = self.pieces.get(progress.next) {
            let follows =
                piece.place == call.place && piece.offset + progress.taken == call.offset + call.len;
            let len = (piece.len - progress.taken).min(CALL_BYTES_MAX - call.len);
            if !follows || len == 0 || memory.len() == CALL_PIECES_MAX {
                break;
            }
            let address = std::ptr::with_exposed_provenance_mut((piece.memory + progress.taken) as usize);
            memory.push(libc::iovec { iov_base: address, iov_len: len as usize });
            call.len += len;
            progress.taken += len;
            if progress.taken == piece.len {
                progress.next += 1;
                progress.taken = 0;
            }
        }
        progress.calls += 1;
        call.more = progress.next < self.pieces.len();
        Some(call)
    }

    /// Makes the call that was taken and counts it as ended.
    pub(super) fn perform(&self, call: &Call, memory: &mut [libc::iovec]) {
        let held = &self.held[call.place];
        let moved = transfer(held.raw(), self.direction, call.offset, memory);
        let outcome = moved.map_err(|(moved, source)| {
            let (device, offset, len) = (held.device, call.offset + moved, call.len - moved);
            match source {
                Some(source) => FileError::Refused { direction: self.direction, device, offset, len, source },
                None => FileError::Ended { device, offset, len },
            }
        });
        let mut progress = self.progress.lock();
        progress.calls -= 1;
        if let Err(error) = outcome {
            progress.stopped = true;
            progress.error.get_or_insert_with(|| error.into());
        }
        self.settle(&mut progress);
    }

    /// Takes nothing more. Work that is taken wholly ends as it ends.
    pub(super) fn stop(&self) {
        let mut progress = self.progress.lock();
        if progress.next < self.pieces.len() && !progress.stopped {
            progress.stopped = true;
            progress.error = Some(FileError::Cancelled.into());
            self.settle(&mut progress);
        }
    }

    fn settle(&self, progress: &mut Progress) {
        if progress.calls == 0 && (progress.stopped || progress.next == self.pieces.len()) {
            progress.room = None;
            progress.ended = Some(Instant::now());
            self.done.store(true, Ordering::Release);
            self.quiet.notify_all();
        }
    }
}

/// Moves under way. Dropping it cancels and drains them.
#[derive(Debug)]
pub struct Job {
    work: Arc<Work>,
    process: u32,
}

impl Job {
    pub(super) fn new(work: Arc<Work>) -> Self {
        Self { work, process: std::process::id() }
    }

    /// How it ended; none while bytes move. Never waits.
    ///
    /// # Errors
    /// What went wrong first, as [`FileError`] tells it.
    #[inline]
    pub fn poll(&self) -> Option<Result<(), Error>> {
        self.work.done.load(Ordering::Acquire).then(|| match &self.work.progress.lock().error {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        })
    }

    /// When it ended; none while bytes move, or when there were none to move.
    #[must_use]
    pub fn ended(&self) -> Option<Instant> {
        self.work.progress.lock().ended
    }

    /// Begins no further system call and waits until those under way returned. How the job ended is then to be had from
    /// [`Job::poll`]: one that was quicker than its cancellation ended well.
    ///
    /// # Errors
    /// [`FileError::StillMoving`] when they had not returned by `deadline`: the memory is still in use.
    pub fn cancel_and_drain(&self, deadline: Instant) -> Result<(), FileError> {
        if self.process != std::process::id() {
            // The memory is a copy of the parent's, which no thread here touches.
            return Ok(());
        }
        self.work.stop();
        self.drain(deadline)
    }

    /// Waits until it ended.
    ///
    /// # Errors
    /// [`FileError::StillMoving`] when it had not by `deadline`.
    pub fn drain(&self, deadline: Instant) -> Result<(), FileError> {
        let begin = Instant::now();
        let mut progress = self.work.progress.lock();
        while !self.work.done.load(Ordering::Acquire) {
            if self.work.quiet.wait_until(&mut progress, deadline).timed_out()
                && !self.work.done.load(Ordering::Acquire)
            {
                let waited_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(FileError::StillMoving { calls: progress.calls, waited_ms });
            }
        }
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Err(error) = self.cancel_and_drain(Instant::now() + DROP_DRAIN) {
            tracing::error!("a file transfer was dropped while the system held on to its memory: {error}");
        }
    }
}

/// Moves all of `memory` at `offset` and goes on where the system stops early. On failure: how much was moved, and why; no reason
/// when a file that is read ended.
fn transfer(
    fd: RawFd,
    direction: Direction,
    offset: u64,
    memory: &mut [libc::iovec],
) -> Result<(), (u64, Option<io::Error>)> {
    let mut left = memory;
    let mut moved = 0;
    while !left.is_empty() {
        match step(fd, direction, offset + moved, left) {
            Ok(0) if direction == Direction::Read => return Err((moved, None)),
            Ok(0) => return Err((moved, Some(io::ErrorKind::WriteZero.into()))),
            Ok(count) => {
                moved += count as u64;
                left = advance(left, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((moved, Some(error))),
        }
    }
    Ok(())
}

/// One system call.
fn step(fd: RawFd, direction: Direction, offset: u64, memory: &[libc::iovec]) -> io::Result<usize> {
    // Both were bounded when the job was submitted and when the call was taken.
    let offset = offset as libc::off64_t;
    let count = memory.len() as libc::c_int;
    let moved = match direction {
        // SAFETY: `memory` has `count` valid entries. What they point to is the caller's to have written to (`Files::submit`); the
        // kernel answers EFAULT for addresses that are not mapped.
        Direction::Read => unsafe { libc::preadv64(fd, memory.as_ptr(), count, offset) },
        // SAFETY: as above, and the memory is only read.
        Direction::Write => unsafe { libc::pwritev64(fd, memory.as_ptr(), count, offset) },
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// What is left of `memory` after its first `count` bytes.
fn advance(memory: &mut [libc::iovec], mut count: usize) -> &mut [libc::iovec] {
    let mut whole = 0;
    for piece in memory.iter() {
        if piece.iov_len > count {
            break;
        }
        count -= piece.iov_len;
        whole += 1;
    }
    let left = &mut memory[whole..];
    if let Some(first) = left.first_mut() {
        first.iov_base = first.iov_base.cast::<u8>().wrapping_add(count).cast();
        first.iov_len -= count;
    }
    left
}
