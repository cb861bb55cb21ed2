//! What `fi_getinfo` offers, and what it is asked for.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{
    self, FI_BUS_PCI, FI_ENOMEM, fi_device_attr, fi_domain_attr, fi_ep_attr, fi_fabric_attr, fi_info,
    fi_link_attr, fi_pci_attr, fi_rx_attr, fi_tx_attr, fid_nic,
};
use super::error::FabricError;
use super::library::Library;

/// A list of offers, or one that is being written.
pub struct Info {
    head: NonNull<fi_info>,
    library: Arc<Library>,
}

// SAFETY: the list is plain memory that this owner alone changes and frees; libfabric's allocator takes any thread.
unsafe impl Send for Info {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Info {}

impl Info {
    /// Hints that ask for nothing yet. Every attribute is there, all zeros.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn hints(library: &Arc<Library>) -> Result<Edit, FabricError> {
        // SAFETY: null asks for an empty entry.
        let head = unsafe { library.dup_info(std::ptr::null()) };
        let head = head.ok_or_else(|| library.error("fi_allocinfo", -(FI_ENOMEM as isize)))?;
        Ok(Edit(Self { head, library: Arc::clone(library) }))
    }

    /// Asks what there is: none is `FI_ENODATA`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn query(
        hints: &Self,
        node: Option<&CStr>,
        service: Option<&CStr>,
        flags: u64,
    ) -> Result<Self, FabricError> {
        let library = &hints.library;
        // SAFETY: the strings and the hints are alive during the call, the list is owned from here on.
        let head = unsafe { library.get_info(node, service, flags, hints.head.as_ptr()) }?;
        let head =
            NonNull::new(head).ok_or_else(|| library.error("fi_getinfo", -(abi::FI_ENODATA as isize)))?;
        Ok(Self { head, library: Arc::clone(library) })
    }

    /// Everything that every provider offers.
    ///
    /// # Errors
    /// libfabric's.
    pub fn query_all(library: &Arc<Library>) -> Result<Self, FabricError> {
        // SAFETY: no hints, and the list is owned from here on.
        let head = unsafe { library.get_info(None, None, 0, std::ptr::null()) }?;
        let head =
            NonNull::new(head).ok_or_else(|| library.error("fi_getinfo", -(abi::FI_ENODATA as isize)))?;
        Ok(Self { head, library: Arc::clone(library) })
    }

    /// The first entry.
    #[must_use]
    pub fn first(&self) -> Entry<'_> {
        // SAFETY: the list is alive for as long as `self` is borrowed, and nobody changes it meanwhile.
        Entry { info: unsafe { self.head.as_ref() }, library: &self.library }
    }

    /// The entries, best first as libfabric sorts them.
    #[must_use]
    pub fn entries(&self) -> Entries<'_> {
        Entries { next: self.head.as_ptr(), library: &self.library, _list: PhantomData }
    }

    /// To change the first entry.
    #[must_use]
    pub const fn edit(self) -> Edit {
        Edit(self)
    }

    /// Whose it is.
    #[must_use]
    pub const fn library(&self) -> &Arc<Library> {
        &self.library
    }

    pub(super) const fn as_ptr(&self) -> *mut fi_info {
        self.head.as_ptr()
    }
}

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: ours, from this library, and no borrow of it is left.
        unsafe { self.library.free_info(self.head.as_ptr()) }
    }
}

impl std::fmt::Debug for Info {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

/// The entries of a list.
pub struct Entries<'a> {
    next: *const fi_info,
    library: &'a Arc<Library>,
    _list: PhantomData<&'a Info>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        // SAFETY: null, or an entry of a list that is borrowed for 'a.
        let info: &'a fi_info = unsafe { self.next.as_ref() }?;
        self.next = info.next;
        Some(Entry { info, library: self.library })
    }
}

/// One offer.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    info: &'a fi_info,
    library: &'a Arc<Library>,
}

/// A safe reader of an attribute that libfabric always fills; zero where it is missing after all.
macro_rules! attributes {
    ($( $(#[$doc:meta])* $name:ident: $type:ty = $attr:ident.$field:ident; )*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> $type {
            self.$attr().map_or(0, |attr| attr.$field)
        }
    )*};
}

impl<'a> Entry<'a> {
    /// The whole of it.
    #[must_use]
    pub const fn raw(&self) -> &'a fi_info {
        self.info
    }

    /// How it sends.
    #[must_use]
    pub fn tx(&self) -> Option<&'a fi_tx_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.info.tx_attr.as_ref() }
    }

    /// How it receives.
    #[must_use]
    pub fn rx(&self) -> Option<&'a fi_rx_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.info.rx_attr.as_ref() }
    }

    /// The endpoint.
    #[must_use]
    pub fn ep(&self) -> Option<&'a fi_ep_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.info.ep_attr.as_ref() }
    }

    /// The NIC.
    #[must_use]
    pub fn domain(&self) -> Option<&'a fi_domain_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.info.domain_attr.as_ref() }
    }

    /// The network.
    #[must_use]
    pub fn fabric(&self) -> Option<&'a fi_fabric_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.info.fabric_attr.as_ref() }
    }

    /// The provider, as in `efa`, or `tcp;ofi_rxm` where one stands on another.
    #[must_use]
    pub fn provider(&self) -> &'a str {
        self.fabric().map_or("", |fabric| name(fabric.prov_name))
    }

    /// The network's name, as in `efa-direct`.
    #[must_use]
    pub fn fabric_name(&self) -> &'a str {
        self.fabric().map_or("", |fabric| name(fabric.name))
    }

    /// The NIC's name, as in `rdmap0s6-rdm`, or an interface's.
    #[must_use]
    pub fn domain_name(&self) -> &'a str {
        self.domain().map_or("", |domain| name(domain.name))
    }

    /// What it can do, `FI_MSG`, `FI_RMA` …
    #[must_use]
    pub const fn caps(&self) -> u64 {
        self.info.caps
    }

    /// What it asks of its caller, `FI_CONTEXT2` …
    #[must_use]
    pub const fn mode(&self) -> u64 {
        self.info.mode
    }

    attributes! {
        /// `FI_MR_…` bits.
        mr_mode: c_int = domain.mr_mode;
        /// Bytes of a key.
        mr_key_bytes: usize = domain.mr_key_size;
        /// Bytes of an immediate.
        cq_data_bytes: usize = domain.cq_data_size;
        /// `FI_PROGRESS_…`
        data_progress: u32 = domain.data_progress;
        /// `FI_THREAD_…`
        threading: u32 = domain.threading;
        /// Longest message or transfer, bytes.
        max_msg_bytes: usize = ep.max_msg_size;
        /// `FI_PROTO_…`
        protocol: u32 = ep.protocol;
        /// `FI_EP_…`
        ep_type: u32 = ep.type_;
        /// Bytes that a provider may want before each message.
        msg_prefix_bytes: usize = ep.msg_prefix_size;
        /// Longest message that can be injected, bytes.
        inject_bytes: usize = tx.inject_size;
        /// Sends in flight.
        tx_size: usize = tx.size;
        /// Receives that can be posted.
        rx_size: usize = rx.size;
        /// Pieces of local memory in one operation.
        iov_limit: usize = tx.iov_limit;
        /// Pieces of remote memory in one operation.
        rma_iov_limit: usize = tx.rma_iov_limit;
    }

    /// The address that an endpoint of it would have; empty where it is not known before.
    #[must_use]
    pub fn source_address(&self) -> &'a [u8] {
        if self.info.src_addr.is_null() {
            return &[];
        }
        // SAFETY: not null, as long as it says, and alive with the entry.
        unsafe { std::slice::from_raw_parts(self.info.src_addr.cast(), self.info.src_addrlen) }
    }

    /// The hardware; none where the provider does not say.
    #[must_use]
    pub fn nic(&self) -> Option<Nic<'a>> {
        // SAFETY: null or alive with the entry.
        unsafe { self.info.nic.as_ref() }.map(Nic)
    }

    /// A copy of this entry alone. Its NIC is copied where the provider can.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn to_owned(&self) -> Result<Info, FabricError> {
        // SAFETY: a valid entry of this library.
        let head = unsafe { self.library.dup_info(self.info) };
        let head = head.ok_or_else(|| self.library.error("fi_dupinfo", -(FI_ENOMEM as isize)))?;
        Ok(Info { head, library: Arc::clone(self.library) })
    }

    /// All of it in libfabric's words, as `fi_info -v` prints it.
    #[must_use]
    pub fn describe(&self) -> String {
        // SAFETY: an entry of this library.
        unsafe { self.library.tostr(std::ptr::from_ref(self.info).cast(), abi::FI_TYPE_INFO) }
    }
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.provider(), self.fabric_name(), self.domain_name())
    }
}

/// The hardware below an offer.
#[derive(Clone, Copy)]
pub struct Nic<'a>(&'a fid_nic);

/// Where on the PCI bus a device is: as in `0000:00:06.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciAddress {
    /// Domain, bus, device, function.
    pub parts: (u16, u8, u8, u8),
}

impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (domain, bus, device, function) = self.parts;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl<'a> Nic<'a> {
    fn device(&self) -> Option<&'a fi_device_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.0.device_attr.as_ref() }
    }

    fn link(&self) -> Option<&'a fi_link_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.0.link_attr.as_ref() }
    }

    /// The device's name, as in `rdmap0s6`.
    #[must_use]
    pub fn device_name(&self) -> &'a str {
        self.device().map_or("", |device| name(device.name))
    }

    /// The driver's name, as in `efa`.
    #[must_use]
    pub fn driver(&self) -> &'a str {
        self.device().map_or("", |device| name(device.driver))
    }

    /// The firmware's version.
    #[must_use]
    pub fn firmware(&self) -> &'a str {
        self.device().map_or("", |device| name(device.firmware))
    }

    /// Where it is; none when it is not on a PCI bus or the provider does not say.
    #[must_use]
    pub fn pci(&self) -> Option<PciAddress> {
        // SAFETY: null or alive with the entry.
        let bus = unsafe { self.0.bus_attr.as_ref() }.filter(|bus| bus.bus_type == FI_BUS_PCI)?;
        let fi_pci_attr { domain_id, bus_id, device_id, function_id } = bus.pci;
        Some(PciAddress { parts: (domain_id, bus_id, device_id, function_id) })
    }

    /// Its rate, bits per second; 0 where it is not known.
    #[must_use]
    pub fn bits_per_second(&self) -> u64 {
        self.link().map_or(0, |link| link.speed as u64)
    }

    /// Bytes of a packet; 0 where it is not known.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.link().map_or(0, |link| link.mtu)
    }

    /// `FI_LINK_…`
    #[must_use]
    pub fn link_state(&self) -> u32 {
        self.link().map_or(abi::FI_LINK_UNKNOWN, |link| link.state)
    }

    /// The link's address in words.
    #[must_use]
    pub fn link_address(&self) -> &'a str {
        self.link().map_or("", |link| name(link.address))
    }

    /// The kind of network, as in `InfiniBand` or `Ethernet`.
    #[must_use]
    pub fn network_type(&self) -> &'a str {
        self.link().map_or("", |link| name(link.network_type))
    }
}

/// An entry that is being changed, as hints or before something is opened with it. Each call sets one thing and returns it.
#[derive(Debug)]
pub struct Edit(Info);

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

/// A name in an entry; empty where there is none or it is no UTF-8.
fn name<'a>(at: *const c_char) -> &'a str {
    if at.is_null() {
        return "";
    }
    // SAFETY: a C string of an entry, which the caller has borrowed for 'a.
    unsafe { CStr::from_ptr(at) }.to_str().unwrap_or("")
}
