//! Registered memory of this side, and regions imported from peers.
//!
//! A region is registered on the rails near it (`RailSet`), in pieces that overlap by the longest op, so that one op is
//! always one op of the provider. Keys that this side chooses (no `FI_MR_PROV_KEY`) count up from a random start and are
//! never used twice: a stale key of a former tenant, or of a former process at the same address, meets nothing.

use std::collections::HashMap;
use std::ffi::c_void;
use std::time::{Duration, Instant};

use kvrail_core::id::{Generation, PeerId, RailSet, RegionId};
use kvrail_core::time::Time;
use kvrail_core::transport::{Device, RegionInfo, RegisterError};
use kvrail_sys::libfabric::abi::{
    self, FI_HMEM_CUDA, FI_HMEM_SYSTEM, FI_READ, FI_REMOTE_READ, FI_REMOTE_WRITE, FI_WRITE,
};
use kvrail_sys::libfabric::{Domain, FabricError, MemoryRegion, Registration};
use slab::Slab;

use super::key::{Addressing, Pieces, RegionKey};

/// How regions are registered: the same on all rails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Longest piece, bytes.
    pub(super) piece_bytes_max: u64,
    /// Longest op, bytes.
    pub(super) op_bytes_max: u32,
    /// What addresses of ops count from.
    pub(super) addressing: Addressing,
    /// The provider chooses keys (`FI_MR_PROV_KEY`).
    pub(super) provider_keys: bool,
    /// Bytes of a key.
    pub(super) key_bytes: usize,
    /// Memory of GPUs can be registered.
    pub(super) hmem: bool,
}

/// Keys that are chosen here: never one twice.
#[derive(Debug)]
pub(super) struct Keys {
    next: u64,
    mask: u64,
}

impl Keys {
    /// From a random start, keys of so many bytes.
    pub(super) fn new(start: u64, key_bytes: usize) -> Self {
        let mask = if key_bytes >= 8 { u64::MAX } else { (1 << (8 * key_bytes.max(1))) - 1 };
        Self { next: start & mask, mask }
    }

    /// The next one. (With four bytes they come again after four thousand million registrations.)
    pub(super) fn next(&mut self) -> u64 {
        let key = self.next;
        self.next = self.next.wrapping_add(1) & self.mask;
        key
    }
}

/// What registering has cost since the transport was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegistrationCost {
    /// Regions.
    pub regions: u64,
    /// Registrations: pieces of regions, on each of their rails.
    pub registrations: u64,
    /// Bytes, counted on each rail.
    pub bytes: u64,
    /// Time in `fi_mr_regattr`.
    pub time: Duration,
}

/// A region of this side.
pub(super) struct Region {
    pub(super) info: RegionInfo,
    pub(super) rails: RailSet,
    pub(super) key: RegionKey,
    pieces: Pieces,
    /// For each rail of the transport and each piece; null where it is not registered.
    descs: Vec<*mut c_void>,
    /// Dropped with the region: ends the registrations.
    _registrations: Vec<MemoryRegion>,
    /// It is being withdrawn from peers.
    pub(super) revocation: Option<Revocation>,
}

// SAFETY: descriptors are the registrations' own, which are Send and go where the region goes.
unsafe impl Send for Region {}

/// Peers that have not answered yet that they use a region no more.
#[derive(Debug)]
pub(super) struct Revocation {
    pub(super) since: Time,
    /// When those are asked again.
    pub(super) due: Time,
    pub(super) waiting: Vec<PeerId>,
}

impl Region {
    /// Registers memory on some rails.
    pub(super) fn register(
        info: &RegionInfo,
        terms: &Terms,
        domains: &[Option<&Domain>],
        rails: RailSet,
        keys: &mut Keys,
        cost: &mut RegistrationCost,
    ) -> Result<Self, RegisterError> {
        let (iface, device) = match info.device {
            Device::Host => (FI_HMEM_SYSTEM, 0),
            Device::Cuda(_) if !terms.hmem => {
                return Err(RegisterError::Refused(format!(
                    "the transport cannot register {} memory: the provider does not grant FI_HMEM (it needs a \
                     libfabric built with CUDA, the CUDA driver, and a NIC that reaches GPU memory)",
                    info.device
                )));
            }
            Device::Cuda(ordinal) => (FI_HMEM_CUDA, ordinal.into()),
        };
        let pieces = Pieces::cut(info.len, terms.piece_bytes_max, terms.op_bytes_max).ok_or_else(|| {
            RegisterError::Refused(format!("a region of {} bytes cannot be registered", info.len))
        })?;
        let on: Vec<usize> = rails.below(domains.len()).filter(|&rail| domains[rail].is_some()).collect();
        if on.is_empty() {
            return Err(RegisterError::Refused("no rail near this memory is up".into()));
        }
        RegionKey::check(&pieces, on.len(), terms.key_bytes)
            .map_err(|error| RegisterError::Exhausted(error.to_string()))?;
        let count = pieces.count() as usize;
        let mut descs = vec![std::ptr::null_mut(); domains.len() * count];
        let mut registrations = Vec::with_capacity(on.len() * count);
        let mut public = Vec::with_capacity(on.len() * count);
        let begun = Instant::now();
        let mut bytes = 0;
        for &rail in &on {
            let Some(domain) = domains[rail] else { continue };
            for piece in 0..pieces.count() {
                let range = pieces.range(piece);
                let what = Registration {
                    address: std::ptr::with_exposed_provenance_mut((info.base + range.start) as usize),
                    len: (range.end - range.start) as usize,
                    access: FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE,
                    requested_key: if terms.provider_keys { 0 } else { keys.next() },
                    iface,
                    device,
                    dmabuf: None,
                };
                // SAFETY: who registers a region with the transport vouches for its memory until it is deregistered,
                // which drops the registration; nobody lends references to it.
                let registration =
                    unsafe { domain.register(&what) }.map_err(|error| refused(&error, rail, &what))?;
                descs[rail * count + piece as usize] = registration.desc();
                public.push(registration.key());
                registrations.push(registration);
                bytes += range.end - range.start;
            }
        }
        cost.regions += 1;
        cost.registrations += registrations.len() as u64;
        cost.bytes += bytes;
        cost.time += begun.elapsed();
        let rails = on.iter().fold(RailSet::NONE, |set, &rail| set.with(rail));
        let key = RegionKey::new(terms.addressing, pieces, rails, public);
        Ok(Self { info: *info, rails, key, pieces, descs, _registrations: registrations, revocation: None })
    }

    /// Address and descriptor of the local end of an op on a rail; `None` when it lies outside the region, or the region is
    /// not registered there.
    #[inline]
    pub(super) fn slice(&self, rail: usize, offset: u64, len: u32) -> Option<(*mut c_void, *mut c_void)> {
        let piece = self.pieces.of(offset, len)?;
        if !self.rails.contains(rail) {
            return None;
        }
        let desc = *self.descs.get(rail * self.pieces.count() as usize + piece as usize)?;
        Some((std::ptr::with_exposed_provenance_mut((self.info.base + offset) as usize), desc))
    }
}

fn refused(error: &FabricError, rail: usize, what: &Registration) -> RegisterError {
    let text = format!("rail {rail} refused to register {} bytes: {error}", what.len);
    if error.is(abi::FI_ENOMEM) || error.is(abi::FI_ENOSPC) {
        let hint = "the memlock limit, the device's pages (use huge ones) or its registrations are used up";
        return RegisterError::Exhausted(format!("{text}; {hint}"));
    }
    RegisterError::Refused(text)
}

/// Regions below this number are found by index, others by hash.
const DENSE: usize = 4_096;
const NONE: u32 = u32::MAX;

/// Which import stands for a peer's region.
#[derive(Default)]
pub(super) struct Imported {
    dense: Vec<u32>,
    sparse: HashMap<u32, u32>,
}

impl Imported {
    #[inline]
    pub(super) fn get(&self, region: RegionId) -> Option<u32> {
        if let Some(&import) = self.dense.get(region.index()) {
            return (import != NONE).then_some(import);
        }
        self.sparse.get(&region.0).copied()
    }

    pub(super) fn set(&mut self, region: RegionId, import: u32) {
        let index = region.index();
        if index >= DENSE {
            self.sparse.insert(region.0, import);
            return;
        }
        if index >= self.dense.len() {
            self.dense.resize(index + 1, NONE);
        }
        self.dense[index] = import;
    }

    /// Forgets a region, if that import still stands for it.
    pub(super) fn unset(&mut self, region: RegionId, import: u32) {
        match self.dense.get_mut(region.index()) {
            Some(known) if *known == import => *known = NONE,
            Some(_) => {}
            None if self.sparse.get(&region.0) == Some(&import) => {
                self.sparse.remove(&region.0);
            }
            None => {}
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.dense.iter().copied().filter(|&import| import != NONE).chain(self.sparse.values().copied())
    }
}

/// A region of a peer.
pub(super) struct Import {
    pub(super) peer: PeerId,
    pub(super) region: RegionId,
    pub(super) generation: Generation,
    base: u64,
    key: RegionKey,
    /// Ops in flight to it.
    pub(super) in_flight: u32,
    /// Nobody posts to it any more: its owner withdrew it, or another took its place.
    pub(super) ended: bool,
}

impl Import {
    pub(super) fn new(peer: PeerId, info: &RegionInfo, key: RegionKey, ended: bool) -> Self {
        let (region, generation, base) = (info.id, info.generation, info.base);
        Self { peer, region, generation, base, key, in_flight: 0, ended }
    }

    /// Address and key of the remote end of an op on the peer's rail.
    #[inline]
    pub(super) fn slice(&self, rail: usize, offset: u64, len: u32) -> Option<super::key::RemoteSlice> {
        if self.ended {
            return None;
        }
        self.key.slice(rail, self.base, offset, len)
    }

    pub(super) fn rails(&self) -> RailSet {
        self.key.rails()
    }
}

/// Imports of all peers.
#[derive(Default)]
pub(super) struct Imports(Slab<Import>);

impl Imports {
    #[inline]
    pub(super) fn get(&self, import: u32) -> Option<&Import> {
        self.0.get(import as usize)
    }

    pub(super) fn insert(&mut self, import: Import) -> u32 {
        self.0.insert(import) as u32
    }

    #[inline]
    pub(super) fn posted(&mut self, import: u32, count: u32) {
        if let Some(import) = self.0.get_mut(import as usize) {
            import.in_flight += count;
        }
    }

    /// An op to it has ended. Returns true when it was the last one of an import that had ended.
    #[inline]
    pub(super) fn settled(&mut self, import: u32) -> bool {
        let Some(known) = self.0.get_mut(import as usize) else { return false };
        known.in_flight = known.in_flight.saturating_sub(1);
        known.ended && known.in_flight == 0
    }

    /// Ends an import: its slot is free when nothing is in flight. Returns true when that is so now.
    pub(super) fn end(&mut self, import: u32) -> bool {
        let Some(known) = self.0.get_mut(import as usize) else { return true };
        known.ended = true;
        known.in_flight == 0
    }

    /// Whether ops to an ended import of that region are in flight.
    pub(super) fn is_busy(&self, peer: PeerId, region: RegionId) -> bool {
        self.0.iter().any(|(_, i)| i.peer == peer && i.region == region && i.ended && i.in_flight > 0)
    }

    /// Forgets an import that was ended and has nothing in flight.
    pub(super) fn remove(&mut self, import: u32) {
        if self.0.get(import as usize).is_some_and(|known| known.ended && known.in_flight == 0) {
            self.0.remove(import as usize);
        }
    }
}

/// NUMA nodes of a host range, as far as the kernel says: pages that exist, a few of them looked at. `None` when it does not
/// say, or the pages lie on several nodes.
pub(super) fn numa_node_of(base: u64, len: u64) -> Option<u16> {
    const SAMPLES: usize = 32;
    let page = crate::memory::page_bytes() as u64;
    let first = base & !(page - 1);
    let pages = (base + len).div_ceil(page) - first / page;
    let step = (pages / SAMPLES as u64).max(1);
    let count = pages.min(SAMPLES as u64) as usize;
    let at = |index: usize| std::ptr::with_exposed_provenance((first + index as u64 * step * page) as usize);
    let addresses: Vec<*const c_void> = (0..count).map(at).collect();
    let mut status = vec![-1 as libc::c_int; count];
    // SAFETY: `count` addresses, which are only looked up, and as many results; no nodes, so that nothing is moved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0 as libc::c_int,
            count as libc::c_ulong,
            addresses.as_ptr(),
            std::ptr::null::<libc::c_int>(),
            status.as_mut_ptr(),
            0 as libc::c_int,
        )
    };
    if result != 0 {
        return None;
    }
    // A page that nobody has touched yet (-ENOENT) has no node: where it will be is not known.
    let node = u16::try_from(*status.first()?).ok()?;
    status.iter().all(|&s| s == i32::from(node)).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_chosen_here_start_anywhere_and_stay_in_their_width() {
        let mut keys = Keys::new(u64::MAX, 4);
        assert_eq!((keys.next(), keys.next(), keys.next()), (0xffff_ffff, 0, 1));
        let mut keys = Keys::new(41, 8);
        assert_eq!((keys.next(), keys.next()), (41, 42));
    }

    #[test]
    fn imports_are_found_wherever_their_number_lies() {
        let mut imported = Imported::default();
        for (region, import) in [(0, 7), (900, 8), (4_000, 9), (5_000_000, 10)] {
            imported.set(RegionId(region), import);
        }
        assert_eq!(imported.get(RegionId(900)), Some(8));
        assert_eq!(imported.get(RegionId(5_000_000)), Some(10));
        assert_eq!((imported.get(RegionId(1)), imported.get(RegionId(9_999))), (None, None));
        assert_eq!(imported.iter().count(), 4);
    }

    #[test]
    fn memory_that_was_touched_has_at_most_one_node_here() {
        let bytes = vec![1u8; 1 << 20];
        let node = numa_node_of(bytes.as_ptr() as u64, bytes.len() as u64);
        // Sandboxes forbid the question, and big hosts may spread pages; a laptop answers 0.
        assert!(node.is_none_or(|node| node < 1_024));
    }
}
