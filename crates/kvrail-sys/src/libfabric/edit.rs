//! Hints, and offers that are changed before something is opened with them.

use std::ffi::{CString, c_char, c_int, c_void};

use super::abi::{self, FI_ENOMEM, fi_info};
use super::error::FabricError;
use super::info::Info;

/// An entry that is being changed, as hints or before something is opened with it. Each call sets one thing and returns it.
#[derive(Debug)]
pub struct Edit(pub(super) Info);

/// A setter of an attribute that every entry has.
macro_rules! setters {
    ($( $(#[$doc:meta])* $name:ident: $type:ty = $attr:ident.$field:ident; )*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, value: $type) -> Self {
            // SAFETY: null or the attribute of an entry that `self` alone owns.
            if let Some(attr) = unsafe { self.info().$attr.as_mut() } {
                attr.$field = value;
            }
            self
        }
    )*};
}

impl Edit {
    setters! {
        /// `FI_THREAD_…`
        threading: u32 = domain_attr.threading;
        /// `FI_PROGRESS_…` of control.
        control_progress: u32 = domain_attr.control_progress;
        /// `FI_PROGRESS_…` of data.
        data_progress: u32 = domain_attr.data_progress;
        /// `FI_RM_…`
        resource_mgmt: u32 = domain_attr.resource_mgmt;
        /// `FI_AV_…`
        av_type: u32 = domain_attr.av_type;
        /// `FI_MR_…` bits that the caller can meet.
        mr_mode: c_int = domain_attr.mr_mode;
        /// Bytes of an immediate, at least.
        cq_data_bytes: usize = domain_attr.cq_data_size;
        /// What the domain must be able to do: `FI_LOCAL_COMM`, `FI_REMOTE_COMM`.
        domain_caps: u64 = domain_attr.caps;
        /// `FI_TC_…`
        traffic_class: u32 = tx_attr.tclass;
        /// `FI_EP_…`
        ep_type: u32 = ep_attr.type_;
        /// `FI_PROTO_…`
        protocol: u32 = ep_attr.protocol;
        /// Flags of operations that have none of their own.
        tx_op_flags: u64 = tx_attr.op_flags;
        /// Orders of sends: `FI_ORDER_…`
        tx_msg_order: u64 = tx_attr.msg_order;
        /// Orders of their completions.
        tx_comp_order: u64 = tx_attr.comp_order;
        /// Sends in flight; 0 = the provider's choice.
        tx_size: usize = tx_attr.size;
        /// Pieces of local memory in one operation.
        tx_iov_limit: usize = tx_attr.iov_limit;
        /// Pieces of remote memory in one operation.
        rma_iov_limit: usize = tx_attr.rma_iov_limit;
        /// Bytes that can be injected, at least.
        inject_bytes: usize = tx_attr.inject_size;
        /// Flags of receives that have none of their own.
        rx_op_flags: u64 = rx_attr.op_flags;
        /// Orders of receives.
        rx_msg_order: u64 = rx_attr.msg_order;
        /// Receives that can be posted; 0 = the provider's choice.
        rx_size: usize = rx_attr.size;
    }

    /// What it must be able to do; also of the attributes for sending and receiving, where they are set.
    #[must_use]
    pub fn caps(mut self, caps: u64) -> Self {
        self.info().caps = caps;
        self
    }

    /// What the caller can do for the provider: `FI_CONTEXT`, `FI_CONTEXT2`, `FI_RX_CQ_DATA`.
    #[must_use]
    pub fn mode(mut self, mode: u64) -> Self {
        self.info().mode = mode;
        self
    }

    /// `FI_FORMAT_…`
    #[must_use]
    pub fn addr_format(mut self, format: u32) -> Self {
        self.info().addr_format = format;
        self
    }

    /// The provider, as in `efa`; none = any. A leading `^` excludes.
    ///
    /// # Errors
    /// When there is no memory, or the name has a NUL.
    pub fn provider(mut self, value: Option<&str>) -> Result<Self, FabricError> {
        // SAFETY: null or the attribute of an entry that `self` alone owns.
        if let Some(attr) = unsafe { self.info().fabric_attr.as_mut() } {
            self.0.replace(&mut attr.prov_name, value)?;
        }
        Ok(self)
    }

    /// The network's name, as in `efa-direct`; none = any.
    ///
    /// # Errors
    /// When there is no memory, or the name has a NUL.
    pub fn fabric_name(mut self, value: Option<&str>) -> Result<Self, FabricError> {
        // SAFETY: null or the attribute of an entry that `self` alone owns.
        if let Some(attr) = unsafe { self.info().fabric_attr.as_mut() } {
            self.0.replace(&mut attr.name, value)?;
        }
        Ok(self)
    }

    /// The NIC's name; none = any.
    ///
    /// # Errors
    /// When there is no memory, or the name has a NUL.
    pub fn domain_name(mut self, value: Option<&str>) -> Result<Self, FabricError> {
        // SAFETY: null or the attribute of an entry that `self` alone owns.
        if let Some(attr) = unsafe { self.info().domain_attr.as_mut() } {
            self.0.replace(&mut attr.name, value)?;
        }
        Ok(self)
    }

    /// The address that an endpoint binds; empty = none.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn source_address(mut self, address: &[u8]) -> Result<Self, FabricError> {
        let mut copy = std::ptr::null_mut();
        if !address.is_empty() {
            // SAFETY: any length may be asked for; libfabric frees addresses with `free`.
            copy = unsafe { libc::malloc(address.len()) };
            if copy.is_null() {
                return Err(self.0.library.error("fi_dupinfo", -(FI_ENOMEM as isize)));
            }
            // SAFETY: as many bytes as were allocated, and the two do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(address.as_ptr(), copy.cast(), address.len()) };
        }
        let info = self.info();
        let old = std::mem::replace(&mut info.src_addr, copy);
        info.src_addrlen = address.len();
        // SAFETY: null, or allocated with `malloc` as every address in an entry is, and no longer in the entry.
        unsafe { libc::free(old) };
        Ok(self)
    }

    /// The entry, done.
    #[must_use]
    pub fn done(self) -> Info {
        self.0
    }

    /// Asks for what these hints describe.
    ///
    /// # Errors
    /// libfabric's: nothing like that is `FI_ENODATA`.
    pub fn query(self) -> Result<Info, FabricError> {
        Info::query(&self.0, None, None, 0)
    }

    fn info(&mut self) -> &mut fi_info {
        // SAFETY: the entry is owned, and borrowed for as long as `self` is.
        unsafe { self.0.head.as_mut() }
    }
}

impl Info {
    /// Puts a copy of a string, which libfabric frees, into an entry.
    fn replace(&self, field: &mut *mut c_char, value: Option<&str>) -> Result<(), FabricError> {
        let mut copy = std::ptr::null_mut();
        if let Some(value) = value {
            let value = CString::new(value)
                .map_err(|_| self.library.error("fi_dupinfo", -(abi::FI_EINVAL as isize)))?;
            // SAFETY: a C string; libfabric frees names with `free`.
            copy = unsafe { libc::strdup(value.as_ptr()) };
            if copy.is_null() {
                return Err(self.library.error("fi_dupinfo", -(FI_ENOMEM as isize)));
            }
        }
        let old = std::mem::replace(field, copy);
        // SAFETY: null, or allocated with `malloc` as every name in an entry is, and no longer in the entry.
        unsafe { libc::free(old.cast::<c_void>()) };
        Ok(())
    }
}
