//! A NIC, as the programs of its node see it.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use softefa_fabric::{Gid, Limits, NicIndex};

use super::event::AsyncEvent;
use super::shared::Shared;
use super::types::{Access, Limit};

/// A NIC, as the programs of its node see it.
#[derive(Clone)]
pub struct Device {
    pub(super) shared: Arc<Shared>,
    index: NicIndex,
}

impl Device {
    /// Its name, as `ibv_devices` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        ""
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
        Path::new("")
    }

    /// Nominal rate, bits per second.
    #[must_use]
    pub fn rate_bps(&self) -> u64 {
        0
    }

    /// What it reports as its limits, and enforces.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Counts a command to the device: one that completed, or one that failed.
    pub fn count_command(&self, ok: bool) {
        let _ = ok;
    }

    /// Registers `len` bytes at `addr`, which requests name as `iova` and following; returns the key, local and remote.
    ///
    /// # Errors
    /// [`Limit::Unmapped`] when not all of it is readable memory, [`Limit::Beyond`] for more than one region can have,
    /// [`Limit::Exhausted`] when the NIC's regions or pages are used up.
    pub fn register(&self, pd: u32, addr: u64, len: u64, iova: u64, access: Access) -> Result<u32, Limit> {
        let _ = (pd, addr, len, iova, access);
        Err(Limit::Gone)
    }

    /// Ends a registration. When it returns, the device touches the memory no more.
    ///
    /// # Errors
    /// [`Limit::Gone`] when there is no such region.
    pub fn deregister(&self, key: u32) -> Result<(), Limit> {
        let _ = key;
        Err(Limit::Gone)
    }

    /// Makes `to` a known peer; returns its number. The same address has the same number in a process; handles are counted.
    ///
    /// # Errors
    /// [`Limit::Beyond`] when it is no address of a NIC, [`Limit::Exhausted`] when there are too many.
    pub fn address_handle(&self, pd: u32, to: Gid) -> Result<u16, Limit> {
        let _ = (pd, to);
        Err(Limit::Gone)
    }

    /// Takes back one [`Device::address_handle`] of `to`.
    pub fn drop_address_handle(&self, to: Gid) {
        let _ = to;
    }

    /// Readable while [`Device::take_async_event`] has something.
    #[must_use]
    pub fn async_event_fd(&self) -> RawFd {
        -1
    }

    /// What happened to the device by itself, oldest first. Never blocks.
    #[must_use]
    pub fn take_async_event(&self) -> Option<AsyncEvent> {
        None
    }
}
