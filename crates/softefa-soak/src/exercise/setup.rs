//! From nothing to a process that peers may use.

use std::sync::atomic::Ordering;
use std::time::Duration;

use softefa_fabric::clock::now_ns;
use softefa_fabric::{FaultKind, Gid};
use softefa_verbs::ffi::ibv_device;

use super::explain;
use super::worker::{Regions, Worker};
use crate::board::{Phase, Stage};
use crate::memory::{SOURCE_BYTES, source_number};
use crate::pattern;
use crate::verbs::{Library, Rail, Refused, Region, Wanted};

/// Longest wait until memory can be registered.
const REGISTER_MAX_NS: u64 = 20_000_000_000;
/// What a process says that was not needed any more.
pub(super) const STOPPED: &str = "the run ended before its memory could be registered";
const REGISTER_AGAIN: Duration = Duration::from_millis(1);
/// Room for everything that may complete between two looks.
const COMPLETIONS: u32 = 4096;

impl Worker {
    /// Opens all NICs, registers memory, posts receives, and tells the peers.
    pub(super) fn set_up(&mut self) -> Result<(), String> {
        let library = Library::load().map_err(|e| format!("cannot load libibverbs.so.1: {e}"))?;
        let mut source = vec![0; SOURCE_BYTES];
        pattern::fill(&mut source, source_number(self.rank));
        self.memory.write(self.rank, 0, &source);
        let devices = Devices::list(library)?;
        if devices.0.len() != self.schedule.nics {
            return Err(format!("{} devices are listed, not {}", devices.0.len(), self.schedule.nics));
        }
        let traffic = self.schedule.traffic;
        let wanted = Wanted {
            sends: traffic.in_flight as u32,
            receives: traffic.receives as u32,
            completions: COMPLETIONS,
            unsolicited: traffic.unsolicited,
            rnr_retry: traffic.rnr_retry,
            classic_poll: traffic.classic_poll,
        };
        for (number, device) in devices.0.iter().enumerate() {
            let rail = Rail::open(library, *device, &wanted).map_err(|e| format!("NIC {number}: {e}"))?;
            let gid = rail.gid().map_err(|e| format!("NIC {number} tells no address: {e}"))?;
            let own = Gid::of(self.rank.node() as u32, number as u32);
            if gid != own {
                return Err(format!("NIC {number} has the address {gid}, not {own}"));
            }
            self.rails.push(rail);
        }
        for rail in 0..self.schedule.nics {
            self.prepare(rail)?;
        }
        let cell = self.board.cell(self.rank);
        cell.memory.store(self.memory.area_address(self.rank), Ordering::Release);
        cell.set_stage(Stage::Ready);
        Ok(())
    }

    fn prepare(&mut self, rail: usize) -> Result<(), String> {
        let area = core::ptr::with_exposed_provenance_mut(self.memory.area_address(self.rank) as usize);
        let area = self.register(rail, area, self.memory.area_bytes())?;
        let local = self.register(rail, self.local.as_ptr(), self.local.len())?;
        self.regions.push(Regions { area, local });
        let mut handles = Vec::new();
        for node in 0..self.schedule.nodes as u32 {
            for nic in 0..self.schedule.nics as u32 {
                let made = self.rails[rail].handle(Gid::of(node, nic));
                handles.push(made.map_err(|e| format!("no address handle for node {node} NIC {nic}: {e}"))?);
            }
        }
        self.handles.push(handles);
        for index in 0..self.schedule.traffic.receives {
            self.post_receive(rail, index);
        }
        let told = &self.board.cell(self.rank).rails[rail];
        told.qpn.store(self.rails[rail].qpn(), Ordering::Relaxed);
        told.key.store(self.regions[rail].area.remote_key(), Ordering::Relaxed);
        Ok(())
    }

    /// Registers memory, again and again while a fault forbids it.
    fn register(&self, rail: usize, at: *mut u8, len: usize) -> Result<Region, String> {
        let deadline = now_ns() + REGISTER_MAX_NS;
        loop {
            match self.rails[rail].register(at, len) {
                Ok(region) => return Ok(region),
                // The run may end before the fault does.
                Err(error) if self.may_be_refused(rail, error) && self.board.phase() == Phase::Stop => {
                    return Err(STOPPED.into());
                }
                Err(error) if now_ns() < deadline && self.may_be_refused(rail, error) => {
                    std::thread::sleep(REGISTER_AGAIN);
                }
                Err(error) => return Err(format!("cannot register {len} bytes on NIC {rail}: {error}")),
            }
        }
    }

    fn may_be_refused(&self, rail: usize, error: Refused) -> bool {
        let kind = FaultKind::NoRegistration;
        error.0 == libc::ENOMEM && explain::was_active(&self.schedule, &self.board, self.here(rail), kind)
    }

    /// Registers something for a moment, as programs do while they work.
    pub(super) fn register_for_a_moment(&mut self) {
        let rail = self.random.below(self.schedule.nics as u64) as usize;
        match self.rails[rail].register(self.local.as_ptr(), self.local.len()) {
            Ok(region) => {
                if let Err(error) = self.rails[rail].deregister(region) {
                    self.violate(&format!("a region could not be deregistered: {error}"));
                }
            }
            Err(error) if self.may_be_refused(rail, error) => {}
            Err(error) => self.violate(&format!("memory could not be registered on NIC {rail}: {error}")),
        }
    }

    /// Gives everything back.
    pub(super) fn leave(&mut self) {
        let mut wrong = Vec::new();
        let regions = self.regions.drain(..);
        for (rail, regions) in self.rails.iter().zip(regions) {
            for region in [regions.area, regions.local] {
                wrong.extend(
                    rail.deregister(region).err().map(|e| format!("a region could not be deregistered: {e}")),
                );
            }
        }
        for (rail, handles) in self.rails.iter().zip(self.handles.drain(..)) {
            for handle in handles {
                wrong.extend(
                    rail.drop_handle(handle).err().map(|e| format!("a handle could not be destroyed: {e}")),
                );
            }
        }
        for rail in self.rails.drain(..) {
            wrong.extend(rail.close().err());
        }
        wrong.iter().for_each(|text| self.violate(text));
    }
}

/// The list of devices, freed in the end.
struct Devices(Vec<*mut ibv_device>, &'static Library, *mut *mut ibv_device);

impl Devices {
    fn list(library: &'static Library) -> Result<Self, String> {
        let mut count = 0;
        // SAFETY: the result is a local integer.
        let list = unsafe { (library.ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            return Err(format!("devices cannot be listed: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: the list has `count` entries.
        let devices = unsafe { std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0)) };
        Ok(Self(devices.to_vec(), library, list))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // SAFETY: from `ibv_get_device_list`, freed once.
        unsafe { (self.1.ibv_free_device_list)(self.2) };
    }
}
