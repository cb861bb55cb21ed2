//! Memory that regions are made of, and who keeps it alive.
//!
//! * [`SharedMemory`]: peers of the same host map it and copy without a system call. The best choice on one host.
//! * [`PrivateMemory`]: what `malloc` gives; peers of the same host reach it through the kernel.
//! * [`RawMemory`]: an address range that somebody else allocated, by an unsafe promise.
//!
//! [`Memory`] is a share of any of them. A region holds one until its registration has ended (KR-7), so that an
//! allocation cannot disappear under a transfer.

use std::fmt;
use std::sync::Arc;

use kvrail_core::transport::Device;
use kvrail_transport::memory::share_of;

pub use kvrail_transport::memory::{
    AllocateError, HugePages, Options, Pages, PrivateMemory, Share, SharedMemory, page_bytes,
};
pub use kvrail_transport::raw::RawMemory;

/// A range of an allocation, and a share in its ownership. Cheap to clone and to slice.
#[derive(Clone)]
pub struct Memory {
    owner: Arc<Owner>,
    offset: usize,
    len: usize,
}

#[derive(Debug)]
enum Owner {
    Shared(SharedMemory),
    Private(PrivateMemory),
    Raw(RawMemory),
}

/// Why bytes of a memory cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The range ends outside.
    #[error("{len} bytes at offset {offset} end outside memory of {memory_len} bytes")]
    OutOfRange {
        /// Offset that was asked for, bytes.
        offset: u64,
        /// Length that was asked for, bytes.
        len: u64,
        /// Bytes that there are.
        memory_len: u64,
    },
    /// The bytes are a device's; the host does not touch them.
    #[error("{0} memory cannot be accessed by the host")]
    NotHost(Device),
}

/// `Ok` when `len` bytes at `offset` lie inside `memory_len` bytes.
pub(crate) fn check_range(offset: u64, len: u64, memory_len: u64) -> Result<(), AccessError> {
    match offset.checked_add(len) {
        Some(end) if end <= memory_len => Ok(()),
        _ => Err(AccessError::OutOfRange { offset, len, memory_len }),
    }
}

impl Memory {
    /// Zeroed memory that peers of the same host can map, in huge pages where there are any.
    ///
    /// # Errors
    /// [`AllocateError`].
    pub fn shared(len: usize) -> Result<Self, AllocateError> {
        SharedMemory::allocate(len, Options::default()).map(Self::from)
    }

    /// Zeroed memory that only this process maps.
    ///
    /// # Errors
    /// [`AllocateError`].
    pub fn private(len: usize) -> Result<Self, AllocateError> {
        PrivateMemory::allocate(len, Options::default()).map(Self::from)
    }

    fn whole(owner: Owner) -> Self {
        let len = match &owner {
            Owner::Shared(memory) => memory.len(),
            Owner::Private(memory) => memory.len(),
            Owner::Raw(memory) => memory.len(),
        };
        Self { owner: Arc::new(owner), offset: 0, len }
    }

    /// A part of this range; shares the allocation's ownership.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<Self, AccessError> {
        check_range(offset as u64, len as u64, self.len as u64)?;
        Ok(Self { owner: self.owner.clone(), offset: self.offset + offset, len })
    }

    /// Offset in the allocation of a range that the host may touch.
    fn host_range(&self, offset: usize, len: usize) -> Result<usize, AccessError> {
        check_range(offset as u64, len as u64, self.len as u64)?;
        match self.device() {
            Device::Host => Ok(self.offset + offset),
            device => Err(AccessError::NotHost(device)),
        }
    }

    /// Address of the first byte, in this process or on the device.
    #[must_use]
    pub fn base(&self) -> u64 {
        let base = match &*self.owner {
            Owner::Shared(memory) => memory.as_ptr().addr() as u64,
            Owner::Private(memory) => memory.as_ptr().addr() as u64,
            Owner::Raw(memory) => memory.base(),
        };
        base + self.offset as u64
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes are.
    #[must_use]
    pub fn device(&self) -> Device {
        match &*self.owner {
            Owner::Shared(_) | Owner::Private(_) => Device::Host,
            Owner::Raw(memory) => memory.device(),
        }
    }

    /// The file behind it, for another process that is to map the same bytes; none unless it is shared memory.
    #[must_use]
    pub fn share(&self) -> Option<Share> {
        share_of(self.base(), self.len as u64).filter(|_| self.device() == Device::Host)
    }

    /// Copies bytes in. What a peer writes at the same time may be mixed with them.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was copied.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        let at = self.host_range(offset, bytes.len())?;
        match &*self.owner {
            Owner::Shared(memory) => memory.write(at, bytes),
            Owner::Private(memory) => memory.write(at, bytes),
            Owner::Raw(memory) => memory.write(at, bytes),
        }
        Ok(())
    }

    /// Copies bytes out. What a peer writes at the same time may be seen in part.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was copied.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), AccessError> {
        let at = self.host_range(offset, bytes.len())?;
        match &*self.owner {
            Owner::Shared(memory) => memory.read(at, bytes),
            Owner::Private(memory) => memory.read(at, bytes),
            Owner::Raw(memory) => memory.read(at, bytes),
        }
        Ok(())
    }

    /// Sets every byte of a range.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was written.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), AccessError> {
        let at = self.host_range(offset, len)?;
        match &*self.owner {
            Owner::Shared(memory) => memory.fill(at, len, byte),
            Owner::Private(memory) => memory.fill(at, len, byte),
            Owner::Raw(memory) => memory.fill(at, len, byte),
        }
        Ok(())
    }
}

impl From<SharedMemory> for Memory {
    fn from(memory: SharedMemory) -> Self {
        Self::whole(Owner::Shared(memory))
    }
}

impl From<PrivateMemory> for Memory {
    fn from(memory: PrivateMemory) -> Self {
        Self::whole(Owner::Private(memory))
    }
}

impl From<RawMemory> for Memory {
    fn from(memory: RawMemory) -> Self {
        Self::whole(Owner::Raw(memory))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &*self.owner {
            Owner::Shared(_) => "shared",
            Owner::Private(_) => "private",
            Owner::Raw(_) => "raw",
        };
        write!(f, "Memory({kind}, {} bytes at {:#x} on {})", self.len, self.base(), self.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_slice_addresses_the_right_bytes() {
        let whole = Memory::shared(64 << 10).unwrap();
        let slice = whole.slice(4096, 8192).unwrap().slice(100, 50).unwrap();
        assert_eq!(slice.base(), whole.base() + 4196);
        slice.fill(0, 50, 7).unwrap();
        let mut seen = [0; 52];
        whole.read(4195, &mut seen).unwrap();
        assert_eq!((seen[0], seen[1], seen[50], seen[51]), (0, 7, 7, 0));
    }

    #[test]
    fn ranges_outside_are_errors_also_when_they_overflow() {
        let memory = Memory::private(4096).unwrap().slice(1024, 1024).unwrap();
        assert!(memory.write(1023, &[1]).is_ok());
        assert!(memory.write(1024, &[1]).is_err());
        assert!(memory.fill(usize::MAX, 2, 0).is_err());
        assert!(memory.read(0, &mut [0; 1025]).is_err());
        assert!(memory.slice(1, usize::MAX).is_err());
    }
}
