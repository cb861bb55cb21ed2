//! Memory in NIXL's terms: registrations, and lists of blocks.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use super::abi;
use super::agent::{Agent, Inner};
use super::backend::{Arguments, Backend, Owned};
use super::error::NixlError;

/// A range of host memory that is registered with a backend, until this is dropped.
///
/// Drop order: the registration ends, then its list is freed, then the share of the agent.
pub struct Registration {
    list: Owned,
    arguments: Arguments,
    inner: Arc<Inner>,
}

impl Backend {
    /// Registers host memory.
    ///
    /// # Errors
    /// What NIXL answers.
    ///
    /// # Safety
    /// The range is mapped and may be read and written by peers until the registration has been dropped, and no reference that forbids
    /// that exists meanwhile. The registration outlives every request that moves bytes of the range.
    pub unsafe fn register(&self, address: usize, len: usize) -> Result<Registration, NixlError> {
        let functions = self.inner.functions();
        let mut list = ptr::null_mut();
        // SAFETY: the answer is written to `list`.
        let code = unsafe { (functions.create_reg_dlist)(abi::MEMORY_DRAM, &mut list) };
        self.inner.check("create_reg_dlist", code)?;
        let list = Owned { handle: list, free: functions.destroy_reg_dlist };
        // SAFETY: the list is alive; no metadata is attached.
        let code = unsafe { (functions.reg_dlist_add_desc)(list.handle, address, len, 0, ptr::null(), 0) };
        self.inner.check("reg_dlist_add_desc", code)?;
        let arguments = self.arguments_with(None)?;
        let _turn = self.inner.turn();
        // SAFETY: all three are alive; the range is the caller's promise.
        let code = unsafe { (functions.register_mem)(self.inner.handle, list.handle, arguments.as_handle()) };
        self.inner.check("register_mem", code)?;
        Ok(Registration { list, arguments, inner: Arc::clone(&self.inner) })
    }
}

impl Agent {
    /// An empty list of blocks in host memory.
    ///
    /// # Errors
    /// When NIXL has no memory for it.
    pub fn blocks(&self) -> Result<DescriptorList, NixlError> {
        let functions = self.0.functions();
        let mut list = ptr::null_mut();
        // SAFETY: the answer is written to `list`.
        let code = unsafe { (functions.create_xfer_dlist)(abi::MEMORY_DRAM, &mut list) };
        self.0.check("create_xfer_dlist", code)?;
        let owned = Owned { handle: list, free: functions.destroy_xfer_dlist };
        Ok(DescriptorList { owned, inner: Arc::clone(&self.0) })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _turn = self.inner.turn();
        let (agent, list) = (self.inner.handle, self.list.handle);
        // SAFETY: registered by this agent with this list and these arguments, and only once given back.
        let code =
            unsafe { (self.inner.functions().deregister_mem)(agent, list, self.arguments.as_handle()) };
        if let Err(error) = self.inner.check("deregister_mem", code) {
            log::error!("{error}");
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registration")
    }
}

/// A list of blocks, here or at a peer. Nothing is checked before a request is made of it.
pub struct DescriptorList {
    pub(super) owned: Owned,
    inner: Arc<Inner>,
}

impl DescriptorList {
    /// Adds a block.
    ///
    /// # Errors
    /// When NIXL has no memory for it.
    pub fn push(&mut self, address: usize, len: usize) -> Result<(), NixlError> {
        // SAFETY: the list is alive and, by the exclusive reference, ours.
        let code =
            unsafe { (self.inner.functions().xfer_dlist_add_desc)(self.owned.handle, address, len, 0) };
        self.inner.check("xfer_dlist_add_desc", code)
    }
}

impl fmt::Debug for DescriptorList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DescriptorList")
    }
}
