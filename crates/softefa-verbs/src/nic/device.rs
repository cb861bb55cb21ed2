//! A NIC, as the programs of its node see it.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use softefa_fabric::{Counter, Gid, Limits, Nic, NicIndex};

use super::event::{AsyncEvent, Events};
use super::region::Region;
use super::shared::Shared;
use super::types::{Access, Limit};

/// A NIC, as the programs of its node see it.
#[derive(Clone)]
pub struct Device {
    pub(super) shared: Arc<Shared>,
    index: NicIndex,
    name: String,
    sysfs_dir: PathBuf,
    events: Arc<Events<AsyncEvent>>,
}

impl Device {
    pub(super) fn new(
        shared: &Arc<Shared>,
        index: NicIndex,
        classes: &Path,
        events: Arc<Events<AsyncEvent>>,
    ) -> Device {
        let nic = shared.core.fabric.nic(index);
        let name = nic.map(|nic| nic.name().to_owned()).unwrap_or_default();
        Device { shared: shared.clone(), index, sysfs_dir: classes.join(&name), name, events }
    }

    /// Its name, as `ibv_devices` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn gid(&self) -> Gid {
        self.index.gid()
    }

    /// Which one it is.
    #[must_use]
    pub fn index(&self) -> NicIndex {
        self.index
    }

    /// Its directory in the node's private sysfs: `<run directory>/node<N>/sys/class/infiniband/<name>`.
    #[must_use]
    pub fn sysfs_dir(&self) -> &Path {
        &self.sysfs_dir
    }

    /// Nominal rate, bits per second.
    #[must_use]
    pub fn rate_bps(&self) -> u64 {
        self.nic().rate_bps()
    }

    /// What it reports as its limits, and enforces.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.shared.core.fabric.limits()
    }

    /// Counts a command to the device: one that completed, or one that failed.
    pub fn count_command(&self, ok: bool) {
        self.nic().count(Counter::SubmittedCommands, 1);
        self.nic().count(if ok { Counter::CompletedCommands } else { Counter::CommandErrors }, 1);
    }

    /// Registers `len` bytes at `addr`, which requests name as `iova` and following; returns the key, local and remote.
    ///
    /// # Errors
    /// [`Limit::Unmapped`] when not all of it is readable memory, [`Limit::Beyond`] for more than one region can have,
    /// [`Limit::Exhausted`] when the NIC's regions or pages are used up, [`Limit::Gone`] after a fork.
    pub fn register(&self, pd: u32, addr: u64, len: u64, iova: u64, access: Access) -> Result<u32, Limit> {
        self.shared.check()?;
        let region = Region { pd, addr, len, iova, access };
        let key = self.try_register(region);
        if key.is_err() {
            self.nic().count(Counter::MrErrors, 1);
        }
        key
    }

    fn try_register(&self, region: Region) -> Result<u32, Limit> {
        let limits = self.limits();
        let Region { addr, len, iova, .. } = region;
        let in_range = addr.checked_add(len).is_some() && iova.checked_add(len).is_some();
        if len == 0 || len > limits.region_bytes || !in_range {
            return Err(Limit::Beyond);
        }
        if !super::copy::Copier::new().is_readable(addr, len) {
            return Err(Limit::Unmapped);
        }
        let me = self.shared.core.me.process;
        let nic = self.nic();
        let mut engine = self.shared.lock();
        if engine.refuses_registration(self.index)
            || !nic.take_region(me, region.pages(), limits.regions.into(), limits.pages)
        {
            return Err(Limit::Exhausted);
        }
        Ok(engine.add_region(self.index, region))
    }

    /// Ends a registration. When it returns, the device touches the memory no more.
    ///
    /// # Errors
    /// [`Limit::Gone`] when there is no such region, and after a fork.
    pub fn deregister(&self, key: u32) -> Result<(), Limit> {
        self.shared.check()?;
        let region = self.shared.lock().remove_region(self.index, key).ok_or(Limit::Gone)?;
        self.nic().give_region(self.shared.core.me.process, region.pages());
        Ok(())
    }

    /// Makes `to` a known peer; returns its number. The same address has the same number in a process; handles are counted.
    ///
    /// # Errors
    /// [`Limit::Beyond`] when it is no address of a NIC, [`Limit::Exhausted`] when there are too many, [`Limit::Gone`] after a fork.
    pub fn address_handle(&self, pd: u32, to: Gid) -> Result<u16, Limit> {
        let _ = pd; // The device keeps one handle for an address, whatever the protection domain.
        self.shared.check()?;
        let added = match to.place() {
            None => Err(Limit::Beyond),
            Some(_) => self.shared.lock().handles(self.index).add(to, self.limits().address_handles),
        };
        if added.is_err() {
            self.nic().count(Counter::AhErrors, 1);
        }
        added
    }

    /// Takes back one [`Device::address_handle`] of `to`.
    pub fn drop_address_handle(&self, to: Gid) {
        if self.shared.check().is_ok() {
            self.shared.lock().handles(self.index).remove(to);
        }
    }

    /// Readable while [`Device::take_async_event`] has something.
    #[must_use]
    pub fn async_event_fd(&self) -> RawFd {
        self.events.fd()
    }

    /// What happened to the device by itself, oldest first. Never blocks.
    #[must_use]
    pub fn take_async_event(&self) -> Option<AsyncEvent> {
        self.shared.check().ok().and_then(|()| self.events.take())
    }

    pub(super) fn nic(&self) -> &Nic {
        // A device is made for each NIC of the node, and NICs stay.
        self.shared.core.fabric.nic(self.index).expect("the fabric has this NIC")
    }
}
