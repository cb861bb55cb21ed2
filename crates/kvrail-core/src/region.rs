//! Regions: registered memory, by slot and generation (KR-9, KR-11).

use alloc::vec::Vec;
use core::fmt;

use crate::id::{Generation, RailSet, RegionId};
use crate::limits::REGIONS_MAX;
use crate::transport::{Device, RegionInfo};

/// An agent's own regions. Slots are reused; generations tell their tenants apart.
#[derive(Debug, Default)]
pub struct RegionTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

#[derive(Debug)]
struct Slot {
    generation: Generation,
    region: Option<RegionInfo>,
}

/// Why a region was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RegionError {
    /// A region has at least one byte.
    Empty,
    /// `base + len` does not fit the address space.
    Overflow {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
    /// [`REGIONS_MAX`] regions are registered.
    Exhausted,
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a region has at least one byte"),
            Self::Overflow { base, len } => {
                write!(f, "a region of {len} bytes at {base:#x} ends beyond the address space")
            }
            Self::Exhausted => write!(f, "{REGIONS_MAX} regions are registered: the limit"),
        }
    }
}

impl core::error::Error for RegionError {}

impl RegionTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a slot.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn insert(&mut self, base: u64, len: u64, device: Device) -> Result<RegionInfo, RegionError> {
        if len == 0 {
            return Err(RegionError::Empty);
        }
        if base.checked_add(len).is_none() {
            return Err(RegionError::Overflow { base, len });
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < REGIONS_MAX => {
                self.slots.push(Slot { generation: Generation(0), region: None });
                (self.slots.len() - 1) as u32
            }
            None => return Err(RegionError::Exhausted),
        };
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.next();
        let info = RegionInfo { id: RegionId(index), generation: slot.generation, base, len, device };
        slot.region = Some(info);
        self.live += 1;
        Ok(info)
    }

    /// Frees a slot; the region that was there.
    pub fn remove(&mut self, id: RegionId) -> Option<RegionInfo> {
        let region = self.slots.get_mut(id.index())?.region.take()?;
        self.free.push(id.0);
        self.live -= 1;
        Some(region)
    }

    /// The region in a slot.
    #[must_use]
    pub fn get(&self, id: RegionId) -> Option<&RegionInfo> {
        self.slots.get(id.index())?.region.as_ref()
    }

    /// Live regions in slot order.
    pub fn iter(&self) -> impl Iterator<Item = &RegionInfo> {
        self.slots.iter().filter_map(|slot| slot.region.as_ref())
    }

    /// Number of live regions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether no region is live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }
}

/// Regions as one side of a plan sees them: indexed by id, with an epoch that changes whenever anything does.
#[derive(Debug, Default)]
pub(crate) struct RegionView {
    regions: Vec<Option<(RegionInfo, RailSet)>>,
    pub(crate) epoch: u64,
}

impl RegionView {
    pub(crate) fn get(&self, id: RegionId) -> Option<&RegionInfo> {
        self.regions.get(id.index())?.as_ref().map(|(info, _)| info)
    }

    pub(crate) fn holds(&self, id: RegionId, generation: Generation) -> bool {
        self.get(id).is_some_and(|region| region.generation == generation)
    }

    /// The rails of its owner that a region may be moved over; none if it is not there.
    pub(crate) fn rails(&self, id: RegionId) -> RailSet {
        self.regions.get(id.index()).and_then(Option::as_ref).map_or(RailSet::NONE, |(_, rails)| *rails)
    }

    /// The caller has checked `id` against [`REGIONS_MAX`], and `rails` are among those that exist.
    pub(crate) fn set(&mut self, region: RegionInfo, rails: RailSet) {
        let index = region.id.index();
        if index >= self.regions.len() {
            self.regions.resize(index + 1, None);
        }
        self.regions[index] = Some((region, rails));
        self.epoch += 1;
    }

    pub(crate) fn unset(&mut self, id: RegionId) {
        if let Some(slot) = self.regions.get_mut(id.index()) {
            *slot = None;
            self.epoch += 1;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &RegionInfo> {
        self.regions.iter().flatten().map(|(info, _)| info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_has_a_new_generation() {
        let mut table = RegionTable::new();
        let first = table.insert(0x1000, 64, Device::Host).unwrap();
        assert_eq!(table.remove(first.id), Some(first));
        let second = table.insert(0x2000, 64, Device::Host).unwrap();
        assert_eq!(first.id, second.id);
        assert_ne!(first.generation, second.generation);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn impossible_regions_are_refused() {
        let mut table = RegionTable::new();
        assert_eq!(table.insert(0, 0, Device::Host), Err(RegionError::Empty));
        assert_eq!(
            table.insert(u64::MAX - 3, 8, Device::Host),
            Err(RegionError::Overflow { base: u64::MAX - 3, len: 8 })
        );
        assert!(table.is_empty());
    }
}
