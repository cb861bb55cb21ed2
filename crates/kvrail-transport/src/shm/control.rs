//! A control segment, one's own or a peer's: [`super::layout`] with words instead of numbers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::host::Nonce;
use super::inbox::{Ring, Words};
use super::layout::{
    AT_ASLEEP, AT_CLOSED, AT_INBOX, AT_INBOX_HEAD, AT_INBOX_LOCK, AT_INBOX_TAIL, AT_MAGIC, AT_NONCE,
    AT_VERSION, CONTROL_BYTES, INBOX_BYTES, MAGIC, VERSION, channel_busy, channel_helping, channel_jobs,
    region_generation, region_len, region_start,
};
use crate::memory::{Mapping, memfd};

/// A mapped control segment.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) memory: Mapping,
}

impl Control {
    /// One's own: with the descriptor to hand out.
    pub(super) fn create(nonce: Nonce) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd(CONTROL_BYTES, libc::MFD_ALLOW_SEALING)?;
        let memory = Mapping::shared(fd.as_fd(), CONTROL_BYTES, true)?;
        memory.write(AT_VERSION, &VERSION.to_le_bytes());
        memory.write(AT_NONCE, &nonce.0);
        memory.atomic_u64(AT_MAGIC).store(MAGIC, Ordering::Release);
        Ok((Self { memory }, fd))
    }

    /// A peer's.
    pub(super) fn open(fd: BorrowedFd<'_>, nonce: Nonce) -> Result<Self, String> {
        check_sealed(fd, CONTROL_BYTES as u64)?;
        let memory = Mapping::shared(fd, CONTROL_BYTES, true)
            .map_err(|e| format!("cannot map its control segment: {e}"))?;
        let (mut version, mut name) = ([0; 4], [0; 16]);
        let magic = memory.atomic_u64(AT_MAGIC).load(Ordering::Acquire);
        memory.read(AT_VERSION, &mut version);
        memory.read(AT_NONCE, &mut name);
        let version = u32::from_le_bytes(version);
        if magic != MAGIC || version != VERSION || name != nonce.0 {
            return Err(format!("its control segment is not one of version {VERSION} (it says {version})"));
        }
        Ok(Self { memory })
    }

    pub(super) fn inbox(&self) -> (Words<'_, AtomicU32>, Ring<'_>) {
        let word = |at| self.memory.atomic_u32(at);
        let words = Words {
            lock: word(AT_INBOX_LOCK),
            head: word(AT_INBOX_HEAD),
            tail: word(AT_INBOX_TAIL),
            asleep: word(AT_ASLEEP),
        };
        (words, Ring { memory: &self.memory, offset: AT_INBOX, capacity: INBOX_BYTES })
    }

    pub(super) fn word(&self, at: usize) -> &AtomicU32 {
        self.memory.atomic_u32(at)
    }

    pub(super) fn asleep(&self) -> &AtomicU32 {
        self.word(AT_ASLEEP)
    }

    pub(super) fn closed(&self) -> &AtomicU32 {
        self.word(AT_CLOSED)
    }

    pub(super) fn busy(&self, slot: u32) -> &AtomicU32 {
        self.word(channel_busy(slot))
    }

    pub(super) fn helping(&self, slot: u32) -> &AtomicU32 {
        self.word(channel_helping(slot))
    }

    pub(super) fn jobs(&self, slot: u32) -> &AtomicU32 {
        self.word(channel_jobs(slot))
    }

    pub(super) fn generation(&self, region: usize) -> &AtomicU32 {
        self.word(region_generation(region))
    }

    /// Where a region is: start and bytes. Holds while its generation does.
    pub(super) fn region(&self, region: usize) -> (u64, u64) {
        let word = |at| self.memory.atomic_u64(at).load(Ordering::Relaxed);
        (word(region_start(region)), word(region_len(region)))
    }

    /// Lets peers reach a region.
    pub(super) fn publish(&self, region: usize, generation: u32, start: u64, len: u64) {
        self.memory.atomic_u64(region_start(region)).store(start, Ordering::Relaxed);
        self.memory.atomic_u64(region_len(region)).store(len, Ordering::Relaxed);
        self.generation(region).store(generation, Ordering::Release);
    }
}

/// A file that a peer handed over may be mapped only when it cannot shrink: else any access may end in a signal.
/// Returns its bytes.
pub(super) fn check_sealed(fd: BorrowedFd<'_>, len_min: u64) -> Result<u64, String> {
    // SAFETY: no memory is involved.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Err("the memory it handed over could shrink (not sealed)".into());
    }
    let file = std::fs::File::from(fd.try_clone_to_owned().map_err(|e| e.to_string())?);
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    if len < len_min || len > isize::MAX as u64 {
        return Err(format!("the memory it handed over has {len} bytes, not {len_min}"));
    }
    Ok(len)
}
