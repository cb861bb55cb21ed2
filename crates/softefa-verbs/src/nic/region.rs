//! Memory regions: what the device may touch, and under which key.

use super::hash::Map;
use super::types::Access;

/// A registered piece of the application's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    /// Protection domain.
    pub(super) pd: u32,
    /// Where it is.
    pub(super) addr: u64,
    /// Bytes.
    pub(super) len: u64,
    /// The address by which requests name its first byte.
    pub(super) iova: u64,
    pub(super) access: Access,
}

impl Region {
    /// Pages of 4 KiB that it touches.
    pub(super) fn pages(&self) -> u64 {
        match self.len {
            0 => 0,
            len => (self.addr + (len - 1)) / 4096 - self.addr / 4096 + 1,
        }
    }

    /// Where `len` bytes from `iova` on are, if all of them lie in the region.
    pub(super) fn locate(&self, iova: u64, len: u64) -> Option<u64> {
        let offset = iova.checked_sub(self.iova)?;
        (offset.checked_add(len)? <= self.len).then(|| self.addr + offset)
    }
}

/// The regions of one process, on all its NICs.
#[derive(Default)]
pub(super) struct Regions(Map<(u32, u32), Region>);

impl Regions {
    pub(super) fn insert(&mut self, nic: u32, key: u32, region: Region) {
        self.0.insert((nic, key), region);
    }

    pub(super) fn contains(&self, nic: u32, key: u32) -> bool {
        self.0.contains_key(&(nic, key))
    }

    pub(super) fn remove(&mut self, nic: u32, key: u32) -> Option<Region> {
        self.0.remove(&(nic, key))
    }

    /// Where the bytes are that a request names, if NIC, key, protection domain, range and access are right.
    pub(super) fn locate(
        &self,
        (nic, pd): (u32, u32),
        key: u32,
        (iova, len): (u64, u64),
        access: Access,
    ) -> Option<u64> {
        let region = self.0.get(&(nic, key))?;
        if region.pd != pd || !region.access.allows(access) {
            return None;
        }
        region.locate(iova, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_its_own_bytes_on_its_own_nic_and_nothing_else() {
        let mut regions = Regions::default();
        let access = Access(Access::LOCAL_WRITE.0 | Access::REMOTE_READ.0);
        regions.insert(1, 77, Region { pd: 5, addr: 0x10_000, len: 100, iova: 0x500, access });
        let locate = |nic, pd, key, iova, len, access| regions.locate((nic, pd), key, (iova, len), access);
        let read = Access::REMOTE_READ;
        assert_eq!(locate(1, 5, 77, 0x500, 100, read), Some(0x10_000));
        assert_eq!(locate(1, 5, 77, 0x540, 36, read), Some(0x10_040));
        assert_eq!(locate(1, 5, 77, 0x540, 37, read), None);
        assert_eq!(locate(1, 5, 77, 0x4ff, 1, read), None);
        assert_eq!(locate(1, 5, 77, u64::MAX, 2, read), None);
        assert_eq!(locate(0, 5, 77, 0x500, 1, read), None, "another NIC");
        assert_eq!(locate(1, 4, 77, 0x500, 1, read), None, "another protection domain");
        assert_eq!(locate(1, 5, 78, 0x500, 1, read), None, "another key");
        assert_eq!(locate(1, 5, 77, 0x500, 1, Access::REMOTE_WRITE), None);
    }

    #[test]
    fn a_region_has_the_pages_that_it_touches() {
        let region = |addr, len| Region { pd: 0, addr, len, iova: addr, access: Access(0) };
        let pages = [(0x1000, 1), (0x1000, 4096), (0x1000, 4097), (0x1fff, 2), (0x1000, 0)];
        assert_eq!(pages.map(|(addr, len)| region(addr, len).pages()), [1, 1, 2, 2, 0]);
    }
}
