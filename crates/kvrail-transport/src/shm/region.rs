//! Regions as this transport needs them: where local ones are, and how remote ones are reached.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvrail_core::id::RegionId;
use kvrail_core::limits::REGIONS_MAX;
use kvrail_core::transport::{Device, PeerError, RegionInfo, RegisterError};

use crate::memory::registry::{self, Backing};

/// A registered region.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Local {
    base: u64,
    len: u64,
    /// Zero: nothing is registered here.
    pub(super) generation: u32,
    /// The shareable memory that it lies in, by number; zero for private memory.
    memory: u32,
    offset: u64,
}

impl Local {
    /// The address of a range, when it lies inside.
    #[inline]
    pub(super) fn at(&self, offset: u64, len: u32) -> Option<*mut u8> {
        let inside = self.generation != 0 && within(offset, u64::from(len), self.len);
        inside.then(|| (self.base + offset) as usize as *mut u8)
    }
}

#[inline]
fn within(offset: u64, len: u64, whole: u64) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= whole)
}

/// All registered regions, by their number.
#[derive(Debug, Default)]
pub(super) struct Locals {
    slots: Vec<Local>,
    /// Shareable memory that some region lies in: what peers may ask for, and how many regions it has.
    shared: HashMap<u32, (Arc<OwnedFd>, usize)>,
    /// Regions come in runs from one memory: the last one found, and when that was known to hold.
    recent: Option<(u32, Backing)>,
}

impl Locals {
    #[inline]
    pub(super) fn find(&self, region: RegionId) -> Option<&Local> {
        self.slots.get(region.index())
    }

    /// Returns where peers find it: its address, or its offset in shareable memory.
    pub(super) fn insert(&mut self, region: &RegionInfo) -> Result<u64, RegisterError> {
        if region.device != Device::Host {
            return Err(RegisterError::Device(region.device));
        }
        let index = region.id.index();
        if index >= REGIONS_MAX {
            return Err(RegisterError::Exhausted(format!(
                "{} is beyond the limit of {REGIONS_MAX} regions",
                region.id
            )));
        }
        let refuse = |text: String| Err::<u64, _>(RegisterError::Refused(text));
        if region.generation.0 == 0 {
            return refuse(format!("{} has generation 0, which means none", region.id));
        }
        if region.len == 0 || region.base.checked_add(region.len).is_none_or(|end| end > isize::MAX as u64) {
            return refuse(format!(
                "{}: {} bytes at {:#x} are no memory",
                region.id, region.len, region.base
            ));
        }
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Local::default());
        }
        if self.slots[index].generation != 0 {
            return refuse(format!("{} is registered already", region.id));
        }
        let mut local = Local {
            base: region.base,
            len: region.len,
            generation: region.generation.0,
            memory: 0,
            offset: 0,
        };
        if let Some((memory, offset)) = self.backing(region.base, region.len) {
            local.memory = memory;
            local.offset = offset;
        }
        self.slots[index] = local;
        Ok(if local.memory == 0 { local.base } else { local.offset })
    }

    fn backing(&mut self, base: u64, len: u64) -> Option<(u32, u64)> {
        let epoch = registry::epoch();
        let known = self.recent.as_ref().filter(|(at, _)| *at == epoch);
        let offset = match known.and_then(|(_, backing)| backing.offset_of(base, len)) {
            Some(offset) => offset,
            None => {
                let backing = registry::find(base, len)?;
                let offset = backing.offset_of(base, len)?;
                self.recent = Some((epoch, backing));
                offset
            }
        };
        let (_, backing) = self.recent.as_ref()?;
        self.shared.entry(backing.id).or_insert_with(|| (backing.fd.clone(), 0)).1 += 1;
        Some((backing.id, offset))
    }

    pub(super) fn remove(&mut self, region: RegionId) {
        let Some(slot) = self.slots.get_mut(region.index()) else { return };
        let memory = std::mem::take(slot).memory;
        if let Some((_, regions)) = self.shared.get_mut(&memory) {
            *regions -= 1;
            if *regions == 0 {
                self.shared.remove(&memory);
                self.recent = None;
            }
        }
    }

    /// What a peer gets when it asks for a memory: only what some region lies in.
    pub(super) fn shared(&self, memory: u32) -> Option<&OwnedFd> {
        self.shared.get(&memory).map(|(fd, _)| &**fd)
    }

    /// A private region needs no key; a shareable one says which memory and where in it.
    pub(super) fn key(&self, region: RegionId, out: &mut Vec<u8>) {
        if let Some(local) = self.find(region).filter(|l| l.memory != 0) {
            put_varint(u64::from(local.memory), out);
            put_varint(local.offset, out);
        }
    }
}

/// A peer's region.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Remote {
    /// Zero: nothing is imported here.
    pub(super) generation: u32,
    /// Index in [`super::neighbour::Neighbour::memories`], plus one; zero for private memory.
    pub(super) memory: u32,
    /// Address of its first byte at its owner (private), or its offset in the memory.
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Remote {
    /// Where a range begins, when it lies inside.
    #[inline]
    pub(super) fn at(&self, offset: u64, len: u32) -> Option<u64> {
        within(offset, u64::from(len), self.len).then_some(self.start.wrapping_add(offset))
    }
}

/// What a key says: memory and offset, or nothing for private memory.
pub(super) fn decode_key(key: &[u8]) -> Result<Option<(u32, u64)>, PeerError> {
    if key.is_empty() {
        return Ok(None);
    }
    let malformed = || PeerError::Malformed("a shm region key is two varints, or nothing".into());
    let mut rest = key;
    let memory = take_varint(&mut rest).ok_or_else(malformed)?;
    let offset = take_varint(&mut rest).ok_or_else(malformed)?;
    match u32::try_from(memory) {
        Ok(memory) if memory != 0 && rest.is_empty() => Ok(Some((memory, offset))),
        _ => Err(malformed()),
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        let bits = u64::from(byte & 0x7F);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Options, SharedMemory};
    use kvrail_core::id::Generation;
    use proptest::prelude::*;

    fn info(id: u32, base: u64, len: u64) -> RegionInfo {
        RegionInfo { id: RegionId(id), generation: Generation(1), base, len, device: Device::Host }
    }

    #[test]
    fn a_key_is_empty_for_private_memory_and_a_few_bytes_for_shared() {
        let memory = SharedMemory::allocate(1 << 20, Options::default()).unwrap();
        let mut locals = Locals::default();
        locals.insert(&info(0, memory.as_ptr() as u64 + 8192, 4096)).unwrap();
        let private = [0u8; 64];
        locals.insert(&info(1, private.as_ptr() as u64, 64)).unwrap();
        let mut key = Vec::new();
        locals.key(RegionId(1), &mut key);
        assert_eq!(decode_key(&key), Ok(None));
        locals.key(RegionId(0), &mut key);
        assert_eq!(decode_key(&key), Ok(Some((memory.id(), 8192))));
        assert!(key.len() <= 8);
    }

    #[test]
    fn a_memory_is_handed_out_only_while_a_region_lies_in_it() {
        let memory = SharedMemory::allocate(1 << 20, Options::default()).unwrap();
        let mut locals = Locals::default();
        assert!(locals.shared(memory.id()).is_none());
        for id in 0..2 {
            locals.insert(&info(id, memory.as_ptr() as u64, 4096)).unwrap();
        }
        locals.remove(RegionId(0));
        assert!(locals.shared(memory.id()).is_some());
        locals.remove(RegionId(1));
        assert!(locals.shared(memory.id()).is_none());
    }

    #[test]
    fn memory_that_cannot_be_is_refused() {
        let mut locals = Locals::default();
        assert!(locals.insert(&info(0, u64::MAX - 10, 100)).is_err());
        assert!(locals.insert(&info(0, 4096, 0)).is_err());
        assert!(locals.insert(&info(REGIONS_MAX as u32, 4096, 8)).is_err());
        let cuda = RegionInfo { device: Device::Cuda(1), ..info(0, 4096, 8) };
        assert_eq!(locals.insert(&cuda), Err(RegisterError::Device(Device::Cuda(1))));
        locals.insert(&info(0, 4096, 8)).unwrap();
        assert!(locals.insert(&info(0, 4096, 8)).is_err(), "twice");
    }

    proptest! {
        #[test]
        fn any_key_is_one_or_a_typed_error(key in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Ok(Some((memory, _))) = decode_key(&key) {
                prop_assert!(memory != 0);
            }
        }

        #[test]
        fn varints_come_back(value in any::<u64>()) {
            let mut out = Vec::new();
            put_varint(value, &mut out);
            let mut rest = &out[..];
            prop_assert_eq!(take_varint(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }
}
