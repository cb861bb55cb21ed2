//! Memory that somebody else allocated, by address: a tensor, a page pool, a device buffer.

use std::any::Any;
use std::fmt;

use kvrail_core::transport::Device;

/// Address range whose owner vouches for it; may carry that owner.
///
/// Other processes or devices may write to it at any time, so it never lends `&[u8]`: bytes go in and out by copy.
pub struct RawMemory {
    base: usize,
    len: usize,
    device: Device,
    owner: Option<Box<dyn Any + Send + Sync>>,
}

impl RawMemory {
    /// Host memory of `len` bytes at `base`.
    ///
    /// # Safety
    /// From this call until the value is dropped (for a registered region: until it was deregistered, or until its
    /// agent is gone): `base..base + len` stays mapped, readable and writable, and nothing in this process reads
    /// or writes it through `&` or `&mut` references while a peer or a transfer of this agent may access it.
    #[must_use]
    pub unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base: base.expose_provenance(), len, device: Device::Host, owner: None }
    }

    /// Memory of a device at a device address. It is never dereferenced by this process.
    ///
    /// # Safety
    /// As for [`RawMemory::new`], where "mapped" means allocated on that device.
    #[must_use]
    pub unsafe fn on_device(base: u64, len: usize, device: Device) -> Self {
        Self { base: base as usize, len, device, owner: None }
    }

    /// The same, keeping `owner` alive as long as the memory is in use.
    #[must_use]
    pub fn owned_by(mut self, owner: impl Any + Send + Sync) -> Self {
        self.owner = Some(Box::new(owner));
        self
    }

    /// Address of the first byte.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base as u64
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
        self.device
    }

    fn checked(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(self.device == Device::Host, "{} memory cannot be accessed by the host", self.device);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "range {offset}+{len} lies outside memory of {} bytes", self.len);
        std::ptr::with_exposed_provenance_mut(self.base + offset)
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the range lies outside the memory, or the memory is not the host's.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.checked(offset, bytes.len());
        // SAFETY: `checked` proved the range to be inside what the maker of this value promised to be writable, and
        // that promise excludes references to it, so that `bytes` is other memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// As [`RawMemory::write`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.checked(offset, bytes.len());
        // SAFETY: as in `write`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Sets every byte of a range.
    ///
    /// # Panics
    /// As [`RawMemory::write`].
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        let to = self.checked(offset, len);
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(to, byte, len) }
    }
}

impl fmt::Debug for RawMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawMemory")
            .field("base", &format_args!("{:#x}", self.base))
            .field("len", &self.len)
            .field("device", &self.device)
            .field("owned", &self.owner.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_owner_lives_exactly_as_long_as_the_memory() {
        let owner = Arc::new(());
        let mut bytes = vec![0u8; 16];
        // SAFETY: `bytes` outlives the value and is not looked at before it is gone.
        let memory = unsafe { RawMemory::new(bytes.as_mut_ptr(), bytes.len()) }.owned_by(owner.clone());
        memory.write(12, &[1, 2, 3, 4]);
        let mut tail = [0; 4];
        memory.read(12, &mut tail);
        assert_eq!((tail, Arc::strong_count(&owner)), ([1, 2, 3, 4], 2));
        drop(memory);
        assert_eq!((bytes[15], Arc::strong_count(&owner)), (4, 1));
    }

    #[test]
    #[should_panic(expected = "cannot be accessed by the host")]
    fn device_memory_is_not_dereferenced() {
        // SAFETY: the address is never used.
        let memory = unsafe { RawMemory::on_device(0x1000, 16, Device::Cuda(0)) };
        memory.fill(0, 1, 0);
    }
}
