//! Regions: memory that is registered with every transport of an agent, and its metadata.
//!
//! A [`Region`] owns a share of its memory. Dropping it deregisters: at once when nothing uses it, otherwise as soon
//! as the last transfer has drained; until then the memory stays alive (KR-7).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvrail_core::descriptor::{Descriptors, Run, Slices};
use kvrail_core::error::RemoveRegionError;
use kvrail_core::id::{Generation, RegionId};
use kvrail_core::region::RegionError;
use kvrail_core::transport::{self, Device, RegionInfo};
use kvrail_core::wire::metadata::{Metadata, TransportMetadata};

use crate::agent::Agent;
use crate::core::{Core, Handle};
use crate::hints::Hints;
use crate::memory::{AccessError, Memory, check_range};

/// Registered memory, and a share in its ownership. Dropping it deregisters: at once when nothing uses it, otherwise
/// as soon as the last transfer has drained; until then the memory stays alive (KR-7).
pub struct Region {
    handle: Arc<Handle>,
    info: RegionInfo,
    memory: Option<Memory>,
}

/// A descriptor: bytes of a region, local or remote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Slice {
    /// The region.
    pub region: RegionId,
    /// Offset in the region, bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Slices for Slice {
    fn count(&self) -> u64 {
        1
    }

    fn runs(&self) -> impl Iterator<Item = Run> {
        std::iter::once(Run { region: self.region, offset: self.offset, len: self.len, stride: 0, count: 1 })
    }
}

impl FromIterator<Slice> for Descriptors {
    fn from_iter<I: IntoIterator<Item = Slice>>(slices: I) -> Self {
        slices.into_iter().map(|slice| (slice.region, slice.offset, slice.len)).collect()
    }
}

impl From<Slice> for Descriptors {
    fn from(slice: Slice) -> Self {
        std::iter::once(slice).collect()
    }
}

/// Why memory could not be registered. Nothing is registered then, of a list nothing at all.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The range is impossible, or there are too many.
    #[error("cannot register region {index} of the list: {error}")]
    Region {
        /// Position in the list.
        index: usize,
        /// What is wrong.
        error: RegionError,
    },
    /// A transport refused.
    #[error("{transport} refused to register {memory}: {error}")]
    Transport {
        /// The transport.
        transport: &'static str,
        /// What was to be registered.
        memory: String,
        /// Why.
        error: transport::RegisterError,
    },
    /// The agent was closed.
    #[error("the agent is closed")]
    AgentClosed,
}

impl RegisterError {
    /// Whether the same call may succeed later: a limit may have been lifted.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Transport { error: transport::RegisterError::Exhausted(_), .. })
    }
}

impl Hints for RegisterError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Transport { error: transport::RegisterError::Device(_), transport, .. } => {
                vec![format!("build the agent without {transport}, or register host memory")]
            }
            _ => Vec::new(),
        }
    }
}

/// Why metadata could not be written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The region belongs to another agent.
    #[error("{0} belongs to another agent")]
    ForeignRegion(RegionId),
    /// The agent was closed.
    #[error("the agent is closed")]
    AgentClosed,
}

impl MetadataError {
    /// Whether the same call may succeed later. It never does.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

impl Hints for MetadataError {}

/// Why a region was not deregistered in time. It is on its way out and keeps its memory until then.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{region} was not free within {waited:?}: {reason}")]
#[non_exhaustive]
pub struct DeregisterError {
    /// Which.
    pub region: RegionId,
    /// Time waited.
    pub waited: Duration,
    /// What held it up.
    pub reason: RemoveRegionError,
}

impl DeregisterError {
    /// Whether the region may be free later. It always may: deregistration goes on by itself.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }
}

impl Hints for DeregisterError {
    fn hints(&self) -> Vec<String> {
        match self.reason {
            RemoveRegionError::Busy(_) => vec!["wait for the transfers that use it, or cancel them".into()],
            _ => Vec::new(),
        }
    }
}

impl Agent {
    /// Registers memory with every transport.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is registered.
    pub fn register(&self, memory: impl Into<Memory>) -> Result<Region, RegisterError> {
        let mut regions = self.register_many(vec![memory.into()])?;
        Ok(regions.pop().expect("one was registered"))
    }

    /// Registers a list at once: much cheaper than one by one, and all or nothing.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is registered.
    pub fn register_many(&self, memory: Vec<Memory>) -> Result<Vec<Region>, RegisterError> {
        let core = self.core();
        let mut infos = Vec::with_capacity(memory.len());
        let mut regions = core.regions.lock();
        let table = &mut regions.table;
        let mut failure = None;
        for (index, memory) in memory.iter().enumerate() {
            match table.insert(memory.base(), memory.len() as u64, memory.device()) {
                Ok(info) => infos.push(info),
                Err(error) => {
                    failure = Some(RegisterError::Region { index, error });
                    break;
                }
            }
        }
        if failure.is_none() {
            failure = core.register(&infos, &memory).err();
        }
        if let Some(error) = failure {
            infos.iter().rev().for_each(|info| _ = table.remove(info.id));
            return Err(error);
        }
        drop(regions);
        let handle = self.handle();
        let regions = infos.into_iter().zip(memory);
        Ok(regions
            .map(|(info, memory)| Region { handle: handle.clone(), info, memory: Some(memory) })
            .collect())
    }

    /// This agent's public metadata with all its regions: what a peer imports with [`Agent::connect`].
    ///
    /// # Errors
    /// [`MetadataError`].
    pub fn metadata(&self) -> Result<Vec<u8>, MetadataError> {
        // The lock is held on, so that no region ends between the list and its keys.
        let regions = self.core().regions.lock();
        self.core().describe(regions.usable().copied().collect())
    }

    /// The same with some regions only; importing it adds to what the peer knows.
    ///
    /// # Errors
    /// [`MetadataError`].
    pub fn metadata_of(&self, regions: &[&Region]) -> Result<Vec<u8>, MetadataError> {
        let foreign = regions.iter().find(|region| !Arc::ptr_eq(&region.handle, self.handle()));
        if let Some(region) = foreign {
            return Err(MetadataError::ForeignRegion(region.info.id));
        }
        let _no_region_ends = self.core().regions.lock();
        self.core().describe(regions.iter().map(|region| region.info).collect())
    }
}

impl Core {
    /// Registers with every lane, or with none.
    fn register(&self, infos: &[RegionInfo], memory: &[Memory]) -> Result<(), RegisterError> {
        for (index, lane) in self.lanes.iter().enumerate() {
            let mut turn = lane.turn(self);
            if turn.closed {
                return Err(RegisterError::AgentClosed);
            }
            let state = &mut *turn;
            let refused = infos.iter().enumerate().find_map(|(i, info)| {
                state.engine.add_region(&mut *state.fabric, info).err().map(|error| (i, error))
            });
            let Some((failed, error)) = refused else { continue };
            self.roll_back(&mut turn, &infos[..failed]);
            drop(turn);
            for lane in &self.lanes[..index] {
                self.roll_back(&mut lane.turn(self), infos);
            }
            let memory = format!("{:?}", memory[failed]);
            return Err(RegisterError::Transport { transport: lane.name, memory, error });
        }
        Ok(())
    }

    fn roll_back(&self, turn: &mut crate::lane::Turn<'_>, infos: &[RegionInfo]) {
        let state = &mut **turn;
        for info in infos.iter().rev() {
            // No peer and no plan can know the region yet: nothing can hold it.
            if let Err(error) = state.engine.remove_region(&mut *state.fabric, info.id) {
                tracing::error!(agent = %self.name, region = %info.id, %error, "cannot roll back a registration");
            }
        }
    }

    fn describe(&self, regions: Vec<RegionInfo>) -> Result<Vec<u8>, MetadataError> {
        let mut transports = Vec::with_capacity(self.lanes.len());
        for lane in &self.lanes {
            let turn = lane.turn(self);
            if turn.closed {
                return Err(MetadataError::AgentClosed);
            }
            transports.push(TransportMetadata::of(&*turn.fabric, &regions));
        }
        let (name, incarnation) = (self.name.clone(), self.incarnation);
        Ok(Metadata { name, incarnation, transports, regions }.encode())
    }
}

impl Region {
    /// Its number, for descriptors.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.info.id
    }

    /// Which tenant of that number.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.info.generation
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.info.len
    }

    /// Never true: a region has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.info.len == 0
    }

    /// Address of the first byte.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.info.base
    }

    /// Where the bytes are.
    #[must_use]
    pub fn device(&self) -> Device {
        self.info.device
    }

    /// A descriptor of `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn slice(&self, offset: u64, len: u64) -> Result<Slice, AccessError> {
        check_range(offset, len, self.info.len)?;
        Ok(Slice { region: self.info.id, offset, len })
    }

    /// The memory behind it.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("taken only at the end")
    }

    /// Copies bytes in; see [`Memory::write`].
    ///
    /// # Errors
    /// [`AccessError`]; nothing was copied.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        self.memory().write(offset, bytes)
    }

    /// Copies bytes out; see [`Memory::read`].
    ///
    /// # Errors
    /// [`AccessError`]; nothing was copied.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.memory().read(offset, bytes)
    }

    /// Sets every byte of a range; see [`Memory::fill`].
    ///
    /// # Errors
    /// [`AccessError`]; nothing was written.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), AccessError> {
        self.memory().fill(offset, len, byte)
    }

    /// Ends the registration and waits until nothing touches the memory any more; then returns it.
    ///
    /// # Errors
    /// [`DeregisterError`] after `timeout`; deregistration goes on by itself.
    pub fn deregister(self, timeout: Duration) -> Result<Memory, DeregisterError> {
        self.condemn().wait(timeout)
    }

    /// Begins to end the registration; at once when nothing uses it.
    #[must_use = "whoever does not wait may drop the region"]
    pub fn condemn(mut self) -> Deregistration {
        let memory = self.memory.take().expect("taken only at the end");
        let free = self.handle.core.condemn(self.info, memory.clone());
        Deregistration { handle: self.handle.clone(), region: self.info.id, memory, free }
    }
}

/// A registration that is about to end, or has.
#[derive(Debug)]
pub struct Deregistration {
    handle: Arc<Handle>,
    region: RegionId,
    memory: Memory,
    /// Set once nothing touches the memory any more; `None` when nothing did.
    free: Option<Arc<AtomicBool>>,
}

impl Deregistration {
    /// Whether nothing touches the memory any more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.free.as_ref().is_none_or(|free| free.load(Ordering::Acquire))
    }

    /// Waits until nothing touches the memory any more; then returns it.
    ///
    /// # Errors
    /// [`DeregisterError`] after `timeout`; deregistration goes on by itself.
    pub fn wait(self, timeout: Duration) -> Result<Memory, DeregisterError> {
        let core = &self.handle.core;
        let Some(free) = &self.free else { return Ok(self.memory) };
        let started = core.clock.now();
        if core.wait_until(core.clock.after(timeout), core.graveyard.until(free)).is_some() {
            return Ok(self.memory);
        }
        let reason = core.held_up_by(free).unwrap_or(RemoveRegionError::Busy(self.region));
        Err(DeregisterError { region: self.region, waited: core.clock.now().since(started), reason })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.handle.core.condemn(self.info, memory);
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RegionInfo { id, generation, len, device, .. } = self.info;
        write!(f, "Region({id} generation {} of {len} bytes on {device})", generation.0)
    }
}
