//! Pools of slots, and the pattern that tells each word where it belongs.
//!
//! A pool is written by this process, by the other one and by the kernel for either; so it is only ever
//! touched through raw pointers, never through a slice.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::LimitError;

const HUGE_PAGE_BYTES: usize = 2 << 20;
const POISON: u64 = 0xA5A5_A5A5_A5A5_A5A5;
const WORD_BYTES: usize = size_of::<u64>();

/// Kind of memory behind a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Memory {
    /// A memory file that both processes map, ordinary pages
    Shared,
    /// A memory file that both processes map, 2 MiB pages that the administrator reserved
    Huge,
    /// Anonymous memory of one process
    Private,
}

/// A memory file that a pool can be mapped from, in both processes.
#[derive(Debug)]
pub(crate) struct Backing {
    file: OwnedFd,
    bytes: usize,
}

impl Backing {
    /// A file for a pool of `bytes`; none for private memory.
    pub(crate) fn of(memory: Memory, bytes: usize) -> Result<Option<Self>, LimitError> {
        let (flags, bytes) = match memory {
            Memory::Private => return Ok(None),
            Memory::Shared => (libc::MFD_CLOEXEC, bytes),
            Memory::Huge => (libc::MFD_CLOEXEC | libc::MFD_HUGETLB, bytes.next_multiple_of(HUGE_PAGE_BYTES)),
        };
        // SAFETY: the name is a NUL-terminated literal; the call takes nothing else by pointer.
        let fd = unsafe { libc::memfd_create(c"kvrail-limits".as_ptr(), flags) };
        if fd < 0 {
            return Err(LimitError::last_os("creating a memory file"));
        }
        // SAFETY: `fd` was returned by the kernel just now and nothing else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a plain system call on a descriptor that we own.
        if unsafe { libc::ftruncate(file.as_raw_fd(), bytes as libc::off_t) } != 0 {
            return Err(LimitError::last_os("sizing a memory file"));
        }
        Ok(Some(Self { file, bytes }))
    }
}

/// Mapped memory cut into slots of one block.
#[derive(Debug)]
pub(crate) struct Pool {
    base: *mut u8,
    mapped_bytes: usize,
    block_bytes: usize,
    slots: usize,
}

impl Pool {
    /// Maps `backing`, or fresh private memory where there is none.
    pub(crate) fn map(
        backing: Option<&Backing>,
        slots: usize,
        block_bytes: usize,
    ) -> Result<Self, LimitError> {
        let (mapped_bytes, flags, fd) = match backing {
            Some(file) => (file.bytes, libc::MAP_SHARED, file.file.as_raw_fd()),
            None => (slots * block_bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so no existing mapping is replaced; the result is checked below.
        let base = unsafe { libc::mmap(ptr::null_mut(), mapped_bytes, access, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(LimitError::last_os("mapping a pool"));
        }
        Ok(Self { base: base.cast(), mapped_bytes, block_bytes, slots })
    }

    pub(crate) fn address(&self) -> usize {
        self.base as usize
    }

    /// Bytes of all slots together.
    pub(crate) fn bytes(&self) -> usize {
        self.slots * self.block_bytes
    }

    /// Start of a slot; `block_bytes` from here are inside the mapping.
    pub(crate) fn slot(&self, slot: usize) -> *mut c_void {
        assert!(slot < self.slots);
        self.base.wrapping_add(slot * self.block_bytes).cast()
    }

    fn words_per_slot(&self) -> usize {
        self.block_bytes / WORD_BYTES
    }

    fn word(&self, index: usize) -> u64 {
        assert!(index < self.slots * self.words_per_slot());
        let word = self.base.cast::<u64>().wrapping_add(index);
        // SAFETY: the assertion keeps `index` inside the mapping, which is page-aligned and lives as long as
        // `self`; volatile because another process may write here at any time.
        unsafe { word.read_volatile() }
    }

    fn set_words(&self, value: impl Fn(usize) -> u64) {
        for index in 0..self.slots * self.words_per_slot() {
            let word = self.base.cast::<u64>().wrapping_add(index);
            // SAFETY: `index` is inside the mapping, which is page-aligned and lives as long as `self`.
            unsafe { word.write(value(index)) };
        }
    }

    /// Gives every word a value of its own, another one for every seed.
    pub(crate) fn fill(&self, seed: u64) {
        self.set_words(|index| pattern(seed, index));
    }

    /// Makes every word one that no pattern is mistaken for.
    pub(crate) fn poison(&self) {
        self.set_words(|_| POISON);
    }

    /// Checks that slot `own[i]` holds what slot `source[i]` of a pool filled with `seed` held, and that no
    /// other slot was written.
    pub(crate) fn check(&self, seed: u64, own: &[usize], source: &[usize]) -> Result<(), LimitError> {
        let mut from = vec![None; self.slots];
        for (&own, &source) in own.iter().zip(source) {
            from[own] = Some(source);
        }
        let words = self.words_per_slot();
        for (slot, source) in from.into_iter().enumerate() {
            for at in 0..words {
                let expected = source.map_or(POISON, |source| pattern(seed, source * words + at));
                let found = self.word(slot * words + at);
                if found != expected {
                    return Err(LimitError::WrongBytes { slot, offset: at * WORD_BYTES, found, expected });
                }
            }
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `map`, has this length, and no pointer into it outlives `self`:
        // the loops that hold one also hold the pool.
        unsafe { libc::munmap(self.base.cast(), self.mapped_bytes) };
    }
}

fn pattern(seed: u64, index: usize) -> u64 {
    (index as u64).wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved_pool() -> Pool {
        let source = Pool::map(None, 4, 64).unwrap();
        let pool = Pool::map(None, 4, 64).unwrap();
        source.fill(9);
        pool.poison();
        // SAFETY: both slots are 64 mapped bytes of different mappings.
        unsafe { libc::memcpy(pool.slot(2), source.slot(1), 64) };
        pool
    }

    #[test]
    fn a_moved_block_passes_the_check() {
        assert!(moved_pool().check(9, &[2], &[1]).is_ok());
    }

    #[test]
    fn a_block_of_another_slot_or_seed_and_a_stray_write_are_found() {
        let pool = moved_pool();
        assert!(pool.check(9, &[2], &[3]).is_err());
        assert!(pool.check(8, &[2], &[1]).is_err());
        assert!(matches!(pool.check(9, &[], &[]), Err(LimitError::WrongBytes { slot: 2, offset: 0, .. })));
    }
}
