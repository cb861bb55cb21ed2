//! The limit of shared memory: libc's `memcpy`, block after block, from one mapped pool to the other.

use crate::error::LimitError;
use crate::memory::Pool;
use crate::pair::BatchLoop;
use crate::workload::Slots;

/// Copies each block of the source pool to its place in the destination pool.
pub(crate) struct Memcpy<'a> {
    pub(crate) source: &'a Pool,
    pub(crate) destination: &'a Pool,
    pub(crate) slots: &'a Slots,
    pub(crate) block_bytes: usize,
}

impl BatchLoop for Memcpy<'_> {
    fn batch(&mut self) -> Result<(), LimitError> {
        for (&from, &to) in self.slots.source.iter().zip(&self.slots.destination) {
            // SAFETY: `slot` gives the start of `block_bytes` mapped bytes, in two different mappings; the
            // other process does not touch either pool while a batch runs (it waits for the next request).
            unsafe { libc::memcpy(self.destination.slot(to), self.source.slot(from), self.block_bytes) };
        }
        Ok(())
    }
}
