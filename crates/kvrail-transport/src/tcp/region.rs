//! The memory that ops may touch: every access, by this side or for a peer, is resolved here against the region's
//! current tenant and its bounds (KR-9).

use kvrail_core::id::RegionId;
use kvrail_core::limits::REGIONS_MAX;
use kvrail_core::transport::{Device, RegionInfo, RegisterError};

use crate::memory::own;

/// A slice of local memory by name; valid only as long as its region's tenant is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slice {
    pub(crate) region: u32,
    pub(crate) generation: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

#[derive(Clone, Copy)]
struct Tenant {
    base: usize,
    len: u64,
    generation: u32,
}

/// All registered regions.
#[derive(Default)]
pub(crate) struct Regions {
    tenants: Vec<Option<Tenant>>,
}

impl Regions {
    pub(crate) fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        if region.device != Device::Host {
            return Err(RegisterError::Device(region.device));
        }
        let index = region.id.index();
        if index >= REGIONS_MAX {
            return Err(RegisterError::Exhausted(format!(
                "{} is beyond the limit of {REGIONS_MAX}",
                region.id
            )));
        }
        let refused = |why: &str| {
            Err(RegisterError::Refused(format!(
                "{} at {:#x}, {} bytes: {why}",
                region.id, region.base, region.len
            )))
        };
        let Ok(base) = usize::try_from(region.base) else { return refused("beyond the address space") };
        if region.base == 0 {
            return refused("the null address");
        }
        if region.base.checked_add(region.len).is_none_or(|end| end > isize::MAX as u64) {
            return refused("it does not fit the address space");
        }
        if region.generation.0 == 0 {
            return refused("generation 0 is nobody");
        }
        if self.tenants.len() <= index {
            self.tenants.resize(index + 1, None);
        }
        self.tenants[index] = Some(Tenant { base, len: region.len, generation: region.generation.0 });
        Ok(())
    }

    pub(crate) fn deregister(&mut self, region: RegionId) {
        if let Some(tenant) = self.tenants.get_mut(region.index()) {
            *tenant = None;
        }
    }

    /// The current tenant of a slot; 0 for none.
    pub(crate) fn generation(&self, region: RegionId) -> u32 {
        self.tenants.get(region.index()).copied().flatten().map_or(0, |t| t.generation)
    }

    /// The address of a slice, if its region has this tenant and the slice lies within.
    pub(crate) fn resolve(&self, slice: &Slice) -> Option<*mut u8> {
        let tenant = self.tenants.get(slice.region as usize).copied().flatten()?;
        let end = slice.offset.checked_add(u64::from(slice.len))?;
        let within = tenant.generation == slice.generation && end <= tenant.len;
        // `offset` is below `len`, and `base + len` fits the address space.
        within.then(|| core::ptr::with_exposed_provenance_mut(tenant.base + slice.offset as usize))
    }

    /// Copies bytes into a slice's beginning; false when the slice does not resolve, or its memory is gone.
    pub(crate) fn copy_in(&self, slice: &Slice, bytes: &[u8]) -> bool {
        debug_assert!(bytes.len() <= slice.len as usize);
        let Some(target) = self.resolve(slice) else { return false };
        // SAFETY: `resolve` gave an address inside a region that its owner registered as `len` valid, writable bytes
        // and has not deregistered; `bytes` is no longer than the slice. `bytes` is this transport's own staging
        // buffer, which nobody registers, so the two do not overlap.
        unsafe { own::copy(bytes.as_ptr(), target, bytes.len()) }.is_ok()
    }

    /// A copy of a slice's bytes; `None` when the slice does not resolve, or its memory is gone.
    pub(crate) fn copy_out(&self, slice: &Slice) -> Option<Vec<u8>> {
        let source = self.resolve(slice)?;
        let mut bytes = vec![0; slice.len as usize];
        // SAFETY: `resolve` gave the address of `slice.len` bytes inside a region that its owner registered as valid
        // and has not deregistered; `bytes` is fresh memory of that length.
        unsafe { own::copy(source.cast_const(), bytes.as_mut_ptr(), bytes.len()) }.ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvrail_core::id::Generation;

    fn info(base: u64, len: u64, generation: u32) -> RegionInfo {
        RegionInfo { id: RegionId(3), generation: Generation(generation), base, len, device: Device::Host }
    }

    fn slice(generation: u32, offset: u64, len: u32) -> Slice {
        Slice { region: 3, generation, offset, len }
    }

    #[test]
    fn only_the_current_tenant_resolves_and_only_within_its_bounds() {
        let mut regions = Regions::default();
        regions.register(&info(0x1000, 100, 7)).unwrap();
        assert_eq!(regions.resolve(&slice(7, 99, 1)).map(|p| p.addr()), Some(0x1000 + 99));
        assert!(regions.resolve(&slice(7, 100, 1)).is_none());
        assert!(regions.resolve(&slice(7, 50, 51)).is_none());
        assert!(regions.resolve(&slice(7, u64::MAX, 2)).is_none());
        assert!(regions.resolve(&slice(6, 0, 1)).is_none());
        assert!(regions.resolve(&Slice { region: 900, ..slice(7, 0, 1) }).is_none());
        regions.deregister(RegionId(3));
        assert!(regions.resolve(&slice(7, 0, 1)).is_none());
    }

    #[test]
    fn memory_that_cannot_exist_is_refused() {
        let mut regions = Regions::default();
        assert!(regions.register(&info(u64::MAX - 10, 100, 1)).is_err());
        assert!(regions.register(&info(0x1000, u64::MAX, 1)).is_err());
        assert!(regions.register(&info(0, 10, 1)).is_err());
        assert!(regions.register(&info(0x1000, 10, 0)).is_err());
        let gpu = RegionInfo { device: Device::Cuda(0), ..info(0x1000, 10, 1) };
        assert_eq!(regions.register(&gpu), Err(RegisterError::Device(Device::Cuda(0))));
    }
}
