//! A NIC that is open: its address vectors, its registrations, and what is opened on it.

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use super::abi::{
    self, FI_CQ_FORMAT_DATA, FI_EOTHER, FI_WAIT_FD, FI_WAIT_NONE, fi_addr_t, fi_av_attr, fi_cq_attr,
    fi_mr_attr, fi_mr_attr_device, fi_mr_attr_memory, fi_mr_dmabuf, fid, fid_av, fid_domain, fid_mr,
};
use super::endpoint::Endpoint;
use super::error::FabricError;
use super::fabric::{OneThread, WORDS_BYTES, opened};
use super::handle::Handle;
use super::info::Info;
use super::library::{Library, text};
use super::queue::{CompletionQueue, Wait};

/// A NIC.
pub struct Domain {
    handle: Arc<Handle>,
    _one_thread: OneThread,
}

/// Memory to be registered.
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// Where it begins.
    pub address: *mut c_void,
    /// Bytes.
    pub len: usize,
    /// `FI_SEND`, `FI_RECV`, `FI_READ`, `FI_WRITE`, `FI_REMOTE_READ`, `FI_REMOTE_WRITE`.
    pub access: u64,
    /// The key, where the caller chooses it; without `FI_MR_PROV_KEY` it must not be in use.
    pub requested_key: u64,
    /// `FI_HMEM_…`
    pub iface: u32,
    /// The device's number, where `iface` is not the system's.
    pub device: c_int,
    /// The memory as another device lends it: file descriptor and offset (libfabric 1.20 and later).
    pub dmabuf: Option<(c_int, u64)>,
}

impl Domain {
    pub(super) const fn new(handle: Arc<Handle>) -> Self {
        Self { handle, _one_thread: PhantomData }
    }

    /// Opens an endpoint. It does nothing before it is bound and enabled.
    ///
    /// # Errors
    /// libfabric's.
    pub fn endpoint(&self, info: &Info) -> Result<Endpoint, FabricError> {
        let mut ep = ptr::null_mut();
        // SAFETY: the domain is open, the entry alive; the result is written to `ep`.
        let result = unsafe { abi::fi_endpoint(self.as_ptr(), info.as_ptr(), &mut ep, ptr::null_mut()) };
        self.own("fi_endpoint", "endpoint", result, ep.cast()).map(Endpoint::new)
    }

    /// Opens a queue of completions with room for `size`; 0 = the provider's choice.
    ///
    /// # Errors
    /// libfabric's; `FI_ENOSYS` or `FI_EINVAL` where the provider has no file descriptor to give.
    pub fn completion_queue(&self, size: usize, wait: Wait) -> Result<CompletionQueue, FabricError> {
        let wait_obj = if wait == Wait::Fd { FI_WAIT_FD } else { FI_WAIT_NONE };
        let mut attr = fi_cq_attr { size, format: FI_CQ_FORMAT_DATA, wait_obj, ..fi_cq_attr::default() };
        let mut cq = ptr::null_mut();
        // SAFETY: the domain is open, the attributes alive; the result is written to `cq`.
        let result = unsafe { abi::fi_cq_open(self.as_ptr(), &mut attr, &mut cq, ptr::null_mut()) };
        self.own("fi_cq_open", "completion queue", result, cq.cast()).map(CompletionQueue::new)
    }

    /// Opens a vector of addresses: `FI_AV_…`, for about `count`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn address_vector(&self, kind: u32, count: usize) -> Result<AddressVector, FabricError> {
        let mut attr = fi_av_attr { type_: kind, count, ..fi_av_attr::default() };
        let mut av = ptr::null_mut();
        // SAFETY: the domain is open, the attributes alive; the result is written to `av`.
        let result = unsafe { abi::fi_av_open(self.as_ptr(), &mut attr, &mut av, ptr::null_mut()) };
        let handle = self.own("fi_av_open", "address vector", result, av.cast())?;
        Ok(AddressVector { handle, _one_thread: PhantomData })
    }

    /// Registers memory.
    ///
    /// # Safety
    /// The memory is there until the registration is dropped, and whoever else reads or writes it knows that the NIC does.
    ///
    /// # Errors
    /// libfabric's: `FI_ENOMEM` is most often the memlock limit, `FI_ENOKEY` a key that is in use.
    pub unsafe fn register(&self, what: &Registration) -> Result<MemoryRegion, FabricError> {
        let iov = libc::iovec { iov_base: what.address, iov_len: what.len };
        let (fd, offset) = what.dmabuf.unwrap_or((-1, 0));
        let dmabuf = fi_mr_dmabuf { fd, offset, len: what.len, base_addr: what.address };
        let lent = what.dmabuf.is_some();
        let attr = fi_mr_attr {
            memory: if lent {
                fi_mr_attr_memory { dmabuf: &dmabuf }
            } else {
                fi_mr_attr_memory { mr_iov: &iov }
            },
            iov_count: 1,
            access: what.access,
            requested_key: what.requested_key,
            iface: what.iface,
            device: device(what.device),
            ..fi_mr_attr::default()
        };
        let flags = if lent { abi::FI_MR_DMABUF } else { 0 };
        let mut mr = ptr::null_mut();
        // SAFETY: the domain is open, the attributes alive; the memory is the caller's promise; the result is written to `mr`.
        let result = unsafe { abi::fi_mr_regattr(self.as_ptr(), &attr, flags, &mut mr) };
        let handle = self.own("fi_mr_regattr", "memory region", result, mr.cast())?;
        Ok(MemoryRegion { handle, _one_thread: PhantomData })
    }

    /// Whose it is.
    #[must_use]
    pub fn library(&self) -> &Arc<Library> {
        self.handle.library()
    }

    /// The object below.
    #[must_use]
    pub fn as_ptr(&self) -> *mut fid_domain {
        self.handle.as_ptr().cast()
    }

    fn own(
        &self,
        call: &'static str,
        what: &'static str,
        result: c_int,
        object: *mut fid,
    ) -> Result<Arc<Handle>, FabricError> {
        let object = opened(self.library(), call, result, object)?;
        // SAFETY: just opened, and it stands on the domain.
        Ok(unsafe { Handle::own(object, what, vec![Arc::clone(&self.handle)], self.library()) })
    }
}

/// A device's number, with the rest of the union zero.
const fn device(number: c_int) -> fi_mr_attr_device {
    let mut device = fi_mr_attr_device { reserved: 0 };
    device.cuda = number;
    device
}

/// A vector of addresses.
pub struct AddressVector {
    handle: Arc<Handle>,
    _one_thread: OneThread,
}

impl AddressVector {
    /// Inserts one address, as an endpoint of the same provider gave it.
    ///
    /// # Errors
    /// libfabric's: `FI_EINVAL` also for bytes that are no address.
    pub fn insert(&self, address: &[u8]) -> Result<fi_addr_t, FabricError> {
        let library = self.handle.library();
        let mut at: fi_addr_t = abi::FI_ADDR_UNSPEC;
        // Providers read as many bytes as their addresses have, whatever was given: those are there.
        let mut bytes = [0_u8; ADDRESS_BYTES_MAX];
        let room = bytes.get_mut(..address.len());
        let room = room.ok_or_else(|| library.error("fi_av_insert", -(abi::FI_EINVAL as isize)))?;
        room.copy_from_slice(address);
        // SAFETY: the vector is open; the buffer is longer than any provider's address; one address is written to `at`.
        let count = unsafe {
            abi::fi_av_insert(self.as_ptr(), bytes.as_ptr().cast(), 1, &mut at, 0, ptr::null_mut())
        };
        match count {
            1 => Ok(at),
            // Not inserted, and no reason is given without FI_SYNC_ERR.
            0 => Err(library.error("fi_av_insert", -(abi::FI_EINVAL as isize))),
            count if count < 0 => Err(library.error("fi_av_insert", count as isize)),
            _ => Err(library.error("fi_av_insert", -(FI_EOTHER as isize))),
        }
    }

    /// Removes an address. Nothing may be in flight to it: `efa` has crashed then.
    ///
    /// # Errors
    /// libfabric's.
    pub fn remove(&self, at: fi_addr_t) -> Result<(), FabricError> {
        let mut at = at;
        // SAFETY: the vector is open; one address is read.
        let result = unsafe { abi::fi_av_remove(self.as_ptr(), &mut at, 1, 0) };
        self.handle.library().check("fi_av_remove", result)
    }

    /// An address in the provider's words, for people.
    #[must_use]
    pub fn words(&self, address: &[u8]) -> String {
        let mut bytes = [0_u8; ADDRESS_BYTES_MAX];
        let Some(room) = bytes.get_mut(..address.len()) else { return String::new() };
        room.copy_from_slice(address);
        let mut buffer: [c_char; WORDS_BYTES] = [0; WORDS_BYTES];
        // Room is left for an end that the provider may not write.
        let mut len = WORDS_BYTES - 1;
        // SAFETY: the vector is open; the address is longer than any provider's; the buffer is as long as it says.
        let at = unsafe {
            abi::fi_av_straddr(self.as_ptr(), bytes.as_ptr().cast(), buffer.as_mut_ptr(), &mut len)
        };
        // SAFETY: null, or the buffer, which ends in zeros.
        unsafe { text(at) }.unwrap_or_default()
    }

    /// The object below.
    #[must_use]
    pub fn as_ptr(&self) -> *mut fid_av {
        self.handle.as_ptr().cast()
    }

    pub(super) const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}

/// Longest address, bytes: the longest of today's is a name of shared memory, 256.
pub(super) const ADDRESS_BYTES_MAX: usize = 512;

/// Memory that is registered, until it is dropped.
pub struct MemoryRegion {
    handle: Arc<Handle>,
    _one_thread: OneThread,
}

impl MemoryRegion {
    /// The key for peers.
    #[must_use]
    pub fn key(&self) -> u64 {
        // SAFETY: the registration is open.
        unsafe { abi::fi_mr_key(self.as_ptr()) }
    }

    /// The descriptor for local use: valid as long as the registration is.
    #[must_use]
    pub fn desc(&self) -> *mut c_void {
        // SAFETY: the registration is open.
        unsafe { abi::fi_mr_desc(self.as_ptr()) }
    }

    /// Ends the registration now.
    ///
    /// # Errors
    /// libfabric's: the registration is abandoned, and the NIC may still reach the memory, which should stay.
    pub fn close(self) -> Result<(), FabricError> {
        Handle::close(self.handle)
    }

    /// Ties it to an endpoint and enables it, as `FI_MR_ENDPOINT` asks. The endpoint stays open as long as the registration.
    ///
    /// # Errors
    /// libfabric's.
    pub fn bind(&self, endpoint: &Endpoint) -> Result<(), FabricError> {
        let library = self.handle.library();
        // SAFETY: both are open.
        let result = unsafe { abi::fi_mr_bind(self.as_ptr(), endpoint.as_ptr().cast(), 0) };
        library.check("fi_mr_bind", result)?;
        self.handle.stand_on(endpoint.handle());
        // SAFETY: open.
        let result = unsafe { abi::fi_mr_enable(self.as_ptr()) };
        library.check("fi_mr_enable", result)
    }

    /// The object below.
    #[must_use]
    pub fn as_ptr(&self) -> *mut fid_mr {
        self.handle.as_ptr().cast()
    }
}
