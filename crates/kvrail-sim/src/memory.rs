//! One process's memory: real bytes at addresses of its own.

/// The bytes of one incarnation of a node, addressed from `base`.
#[derive(Clone, Debug)]
pub struct Arena {
    base: u64,
    bytes: Vec<u8>,
}

impl Arena {
    /// `len` bytes from address `base` on, each `fill`.
    #[must_use]
    pub fn new(base: u64, len: usize, fill: u8) -> Self {
        Self { base, bytes: vec![fill; len] }
    }

    /// Adds `len` bytes at the end; the address of the first.
    pub fn grow(&mut self, len: usize) -> u64 {
        let address = self.base + self.len();
        self.bytes.resize(self.bytes.len() + len, 0);
        address
    }

    /// Address of the first byte.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// No bytes at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn range(&self, address: u64, len: u64) -> Option<core::ops::Range<usize>> {
        let start = address.checked_sub(self.base)?;
        let end = start.checked_add(len)?;
        (end <= self.len()).then_some(start as usize..end as usize)
    }

    /// The bytes at an address, when all of them are inside.
    #[must_use]
    pub fn slice(&self, address: u64, len: u64) -> Option<&[u8]> {
        self.range(address, len).map(|range| &self.bytes[range])
    }

    /// The bytes at an address, when all of them are inside.
    #[must_use]
    pub fn slice_mut(&mut self, address: u64, len: u64) -> Option<&mut [u8]> {
        self.range(address, len).map(|range| &mut self.bytes[range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_ranges_inside_the_arena_are_reachable() {
        let mut arena = Arena::new(0x1000, 16, 7);
        assert_eq!(arena.slice(0x1000, 16), Some(&[7; 16][..]));
        assert_eq!(arena.slice(0x1010, 0), Some(&[][..]));
        assert!(arena.slice(0x0FFF, 2).is_none());
        assert!(arena.slice(0x100F, 2).is_none());
        assert!(arena.slice_mut(u64::MAX, u64::MAX).is_none());
    }
}
