//! Transfers of an agent to itself: copies inside one process.
//!
//! The kernel copies. A `memcpy` would be as fast, but memory here is an address that a caller vouched for: when a tensor was freed meanwhile,
//! the kernel answers with an error where a `memcpy` ends the process.

use std::io;

use crate::error::{Error, Result, Status};
use crate::list::Desc;

/// Pieces per system call: the kernel's limit on vectors.
const BATCH: usize = 1024;
/// Bytes per system call; the kernel moves at most 2 GiB - 4 KiB.
const BATCH_BYTES: u64 = 1 << 30;

/// One copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Move {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) len: u64,
}

impl Move {
    fn split(self, at: u64) -> (Self, Self) {
        (Self { len: at, ..self }, Self { from: self.from + at, to: self.to + at, len: self.len - at })
    }
}

/// Pairs pieces.
///
/// # Errors
/// [`Status::InvalidParam`] when the lengths of a pair differ.
pub(crate) fn pair(from: &[Desc], to: &[Desc]) -> Result<Vec<Move>> {
    let pairs = from.iter().zip(to).enumerate();
    pairs
        .map(|(index, (from, to))| {
            if from.len != to.len {
                return Err(Error::new(
                    Status::InvalidParam,
                    format!(
                        "descriptor {index} has {} bytes on one side and {} on the other",
                        from.len, to.len
                    ),
                ));
            }
            Ok(Move { from: from.addr, to: to.addr, len: from.len })
        })
        .collect()
}

/// Copies, one after the other.
///
/// # Errors
/// [`Status::Backend`]: memory is not mapped (any more), or the kernel forbids the call.
pub(crate) fn copy(moves: &[Move]) -> Result<()> {
    let mut batch = Vec::with_capacity(moves.len().min(BATCH));
    let mut bytes = 0;
    for one in moves {
        let mut rest = *one;
        while rest.len > 0 {
            let (now, later) = rest.split(rest.len.min(BATCH_BYTES - bytes));
            batch.push(now);
            bytes += now.len;
            rest = later;
            if batch.len() == BATCH || bytes == BATCH_BYTES {
                flush(&mut batch)?;
                bytes = 0;
            }
        }
    }
    flush(&mut batch)
}

fn flush(batch: &mut Vec<Move>) -> Result<()> {
    let mut at = 0;
    while at < batch.len() {
        let vector = |addr: fn(&Move) -> u64| -> Vec<libc::iovec> {
            let vectors = batch[at..].iter();
            vectors
                .map(|one| libc::iovec {
                    iov_base: std::ptr::with_exposed_provenance_mut(addr(one) as usize),
                    iov_len: one.len as usize,
                })
                .collect()
        };
        let (from, to) = (vector(|one| one.from), vector(|one| one.to));
        let count = from.len() as libc::c_ulong;
        // SAFETY: it has no preconditions.
        let own = unsafe { libc::getpid() };
        // SAFETY: the vectors live through the call and hold `count` elements each. What they point to is memory that the caller of the transfer
        // vouched for when it registered it; whatever is not mapped is the kernel's error. No reference to it exists in this program.
        let moved = unsafe { libc::process_vm_writev(own, from.as_ptr(), count, to.as_ptr(), count, 0) };
        let Ok(mut moved) = u64::try_from(moved) else {
            return Err(failed(&batch[at], &io::Error::last_os_error()));
        };
        if moved == 0 {
            return Err(failed(&batch[at], &io::Error::from_raw_os_error(libc::EFAULT)));
        }
        while moved > 0 {
            let (done, rest) = batch[at].split(moved.min(batch[at].len));
            moved -= done.len;
            if rest.len > 0 {
                batch[at] = rest;
            } else {
                at += 1;
            }
        }
    }
    batch.clear();
    Ok(())
}

#[cold]
fn failed(one: &Move, error: &io::Error) -> Error {
    let Move { from, to, len } = one;
    let error_text = Error::new(
        Status::Backend,
        format!("cannot copy {len} bytes from {from:#x} to {to:#x} inside this process: {error}"),
    );
    match error.raw_os_error() {
        Some(libc::EFAULT) => {
            error_text.hint("memory was freed while it was registered: deregister it first")
        }
        _ => error_text.hint("the container's seccomp profile has to allow process_vm_writev"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(bytes: &[u8]) -> u64 {
        bytes.as_ptr().expose_provenance() as u64
    }

    #[test]
    fn thousands_of_pieces_arrive_where_they_belong() {
        let from: Vec<u8> = (0..500_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut to = vec![0; from.len()];
        let base = to.as_mut_ptr().expose_provenance() as u64;
        let count = from.len() as u64 / 100;
        // The last piece comes first.
        let moves: Vec<_> = (0..count)
            .map(|i| Move { from: addr(&from) + i * 100, to: base + (count - 1 - i) * 100, len: 100 })
            .collect();
        copy(&moves).unwrap();
        let wanted: Vec<u8> = from.chunks(100).rev().flatten().copied().collect();
        assert!(to == wanted);
    }

    #[test]
    fn memory_that_is_not_mapped_is_an_error_and_not_a_crash() {
        let from = [1u8; 100];
        let mut to = [0u8; 100];
        let base = to.as_mut_ptr().expose_provenance() as u64;
        let good = Move { from: addr(&from), to: base, len: 100 };
        for bad in
            [Move { from: 4096, ..good }, Move { to: 4096, ..good }, Move { from: u64::MAX - 4095, ..good }]
        {
            let error = copy(&[good, bad]).unwrap_err();
            assert_eq!(error.status, Status::Backend);
            assert!(error.hints[0].contains("freed"), "{error}");
        }
        assert_eq!(to, from, "what comes before the error is copied");
    }
}
