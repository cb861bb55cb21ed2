//! What `fi_getinfo` offers, and what it is asked for.

use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{
    self, FI_ENOMEM, fi_domain_attr, fi_ep_attr, fi_fabric_attr, fi_info, fi_rx_attr, fi_tx_attr,
};
use super::edit::Edit;
use super::error::FabricError;
use super::library::Library;
use super::nic::Nic;

/// A list of offers, or one that is being written.
pub struct Info {
    pub(super) head: NonNull<fi_info>,
    pub(super) library: Arc<Library>,
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

/// A name in an entry; empty where there is none or it is no UTF-8.
pub(super) fn name<'a>(at: *const c_char) -> &'a str {
    if at.is_null() {
        return "";
    }
    // SAFETY: a C string of an entry, which the caller has borrowed for 'a.
    unsafe { CStr::from_ptr(at) }.to_str().unwrap_or("")
}
