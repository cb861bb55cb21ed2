//! An endpoint: what it is bound to, its options, and the data path.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use super::abi::{self, FI_ETOOSMALL, FI_OPT_ENDPOINT, fi_addr_t, fi_msg, fi_msg_rma, fid_ep};
use super::domain::{ADDRESS_BYTES_MAX, AddressVector};
use super::error::FabricError;
use super::fabric::{EventQueue, OneThread};
use super::handle::Handle;
use super::library::Library;
use super::queue::CompletionQueue;

/// An endpoint. What it is bound to stays open until it is closed.
pub struct Endpoint {
    handle: Arc<Handle>,
    _one_thread: OneThread,
}

/// The result of a post: the code, positive, when it was refused.
///
/// # Errors
/// `FI_EAGAIN` = not now; anything else = not at all.
#[inline]
pub const fn outcome(result: isize) -> Result<(), c_int> {
    // Codes are small; the cast keeps them.
    if result == 0 { Ok(()) } else { Err(-result as c_int) }
}

impl Endpoint {
    pub(super) const fn new(handle: Arc<Handle>) -> Self {
        Self { handle, _one_thread: PhantomData }
    }

    /// Binds a queue of completions: `FI_TRANSMIT`, `FI_RECV`, `FI_SELECTIVE_COMPLETION`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn bind_queue(&self, queue: &CompletionQueue, flags: u64) -> Result<(), FabricError> {
        self.bind("fi_ep_bind(cq)", queue.handle(), flags)
    }

    /// Binds the addresses of its peers.
    ///
    /// # Errors
    /// libfabric's.
    pub fn bind_addresses(&self, addresses: &AddressVector) -> Result<(), FabricError> {
        self.bind("fi_ep_bind(av)", addresses.handle(), 0)
    }

    /// Binds a queue of events.
    ///
    /// # Errors
    /// libfabric's: some providers know no events of such endpoints.
    pub fn bind_events(&self, events: &EventQueue) -> Result<(), FabricError> {
        self.bind("fi_ep_bind(eq)", events.handle(), 0)
    }

    fn bind(&self, call: &'static str, to: &Arc<Handle>, flags: u64) -> Result<(), FabricError> {
        // SAFETY: both are open.
        let result = unsafe { abi::fi_ep_bind(self.as_ptr(), to.as_ptr(), flags) };
        self.library().check(call, result)?;
        self.handle.stand_on(to);
        Ok(())
    }

    /// Makes it ready.
    ///
    /// # Errors
    /// libfabric's.
    pub fn enable(&self) -> Result<(), FabricError> {
        // SAFETY: the endpoint is open.
        let result = unsafe { abi::fi_enable(self.as_ptr()) };
        self.library().check("fi_enable", result)
    }

    /// Its address, for peers.
    ///
    /// # Errors
    /// libfabric's; an endpoint that is not enabled may have none.
    pub fn name(&self) -> Result<Vec<u8>, FabricError> {
        let mut bytes = vec![0_u8; ADDRESS_BYTES_MAX];
        let mut len = bytes.len();
        // SAFETY: the endpoint is open, and the buffer as long as it says.
        let result = unsafe { abi::fi_getname(self.as_ptr(), bytes.as_mut_ptr().cast(), &mut len) };
        self.library().check("fi_getname", result)?;
        if len > bytes.len() {
            return Err(self.library().error("fi_getname", -(FI_ETOOSMALL as isize)));
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Sets an option whose value is a `bool`.
    ///
    /// # Errors
    /// libfabric's: `FI_ENOPROTOOPT` where the provider has no such option, `FI_EOPNOTSUPP` where it cannot be had.
    pub fn set_flag(&self, option: c_int, value: bool) -> Result<(), FabricError> {
        self.set(option, &value)
    }

    /// Reads an option whose value is a `bool`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn flag(&self, option: c_int) -> Result<bool, FabricError> {
        // A byte, because a provider that wrote anything but 0 and 1 would be undefined as a bool.
        self.get(option, 0_u8).map(|value| value != 0)
    }

    /// Sets an option whose value is a `size_t`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn set_size(&self, option: c_int, value: usize) -> Result<(), FabricError> {
        self.set(option, &value)
    }

    /// Reads an option whose value is a `size_t`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn size(&self, option: c_int) -> Result<usize, FabricError> {
        self.get(option, 0_usize)
    }

    /// Sets an option whose value is an `int`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn set_number(&self, option: c_int, value: c_int) -> Result<(), FabricError> {
        self.set(option, &value)
    }

    /// Reads an option whose value is an `int`.
    ///
    /// # Errors
    /// libfabric's.
    pub fn number(&self, option: c_int) -> Result<c_int, FabricError> {
        self.get(option, 0)
    }

    fn set<T: Copy>(&self, option: c_int, value: &T) -> Result<(), FabricError> {
        let at = std::ptr::from_ref(value).cast();
        // SAFETY: the endpoint is open, and the value as long as it says.
        let result = unsafe { abi::fi_setopt(self.as_ptr(), FI_OPT_ENDPOINT, option, at, size_of::<T>()) };
        self.library().check("fi_setopt", result)
    }

    fn get<T: Copy>(&self, option: c_int, mut value: T) -> Result<T, FabricError> {
        let (at, mut len) = (std::ptr::from_mut(&mut value).cast(), size_of::<T>());
        // SAFETY: the endpoint is open; the value, an integer whatever its bits, is as long as it says.
        let result = unsafe { abi::fi_getopt(self.as_ptr(), FI_OPT_ENDPOINT, option, at, &mut len) };
        self.library().check("fi_getopt", result).map(|()| value)
    }

    /// Closes it now. Afterwards the provider touches neither the buffers nor the contexts of what was in flight, and reports
    /// nothing more of it: an operation that is not in the queue by then never is.
    ///
    /// This may take as long as the provider waits for its peers.
    ///
    /// # Errors
    /// libfabric's: the endpoint is abandoned, and what was in flight may still be. `FI_EBUSY` where a registration is bound to it.
    pub fn close(self) -> Result<(), FabricError> {
        Handle::close(self.handle)
    }

    /// Asks for an operation to be taken back: receives can be, transfers cannot. It ends in the queue with `FI_ECANCELED`.
    ///
    /// # Safety
    /// The context is one of an operation in flight: providers look for it, and may look into it.
    ///
    /// # Errors
    /// libfabric's.
    pub unsafe fn cancel(&self, context: *mut c_void) -> Result<(), FabricError> {
        // SAFETY: the endpoint is open; the context is the caller's promise.
        let result = unsafe { abi::fi_cancel(self.as_ptr(), context) };
        if result == 0 { Ok(()) } else { Err(self.library().error("fi_cancel", result)) }
    }

    /// Posts a receive. See [`outcome`] for results, here and below.
    ///
    /// # Safety
    /// The buffer, its registration and the context stay until the operation is in the queue; nobody else uses the buffer meanwhile.
    #[inline]
    pub unsafe fn receive(
        &self,
        buffer: *mut c_void,
        len: usize,
        desc: *mut c_void,
        context: *mut c_void,
    ) -> isize {
        let any = abi::FI_ADDR_UNSPEC;
        // SAFETY: the endpoint is open; the rest is the caller's promise.
        unsafe { abi::fi_recv(self.as_ptr(), buffer, len, desc, any, context) }
    }

    /// Posts a receive as a message.
    ///
    /// # Safety
    /// As for [`receive`](Self::receive); the message itself is copied.
    #[inline]
    pub unsafe fn receive_message(&self, message: *const fi_msg, flags: u64) -> isize {
        // SAFETY: the endpoint is open; the rest is the caller's promise.
        unsafe { abi::fi_recvmsg(self.as_ptr(), message, flags) }
    }

    /// Sends.
    ///
    /// # Safety
    /// The buffer, its registration and the context stay until the operation is in the queue; nobody writes the buffer meanwhile.
    #[inline]
    pub unsafe fn send(
        &self,
        buffer: *const c_void,
        len: usize,
        desc: *mut c_void,
        to: fi_addr_t,
        context: *mut c_void,
    ) -> isize {
        // SAFETY: the endpoint is open; the rest is the caller's promise.
        unsafe { abi::fi_send(self.as_ptr(), buffer, len, desc, to, context) }
    }

    /// Sends a message.
    ///
    /// # Safety
    /// As for [`send`](Self::send); the message itself is copied.
    #[inline]
    pub unsafe fn send_message(&self, message: *const fi_msg, flags: u64) -> isize {
        // SAFETY: the endpoint is open; the rest is the caller's promise.
        unsafe { abi::fi_sendmsg(self.as_ptr(), message, flags) }
    }

    /// Reads a peer's memory.
    ///
    /// # Safety
    /// As for [`receive`](Self::receive); the message itself is copied.
    #[inline]
    pub unsafe fn read_message(&self, message: *const fi_msg_rma, flags: u64) -> isize {
        // SAFETY: the endpoint is open; the rest is the caller's promise.
        unsafe { abi::fi_readmsg(self.as_ptr(), message, flags) }
    }

    /// Writes a peer's memory, with an immediate where `flags` has `FI_REMOTE_CQ_DATA`.
    ///
    /// # Safety
    /// As for [`send`](Self::send); the message itself is copied.
    #[inline]
    pub unsafe fn write_message(&self, message: *const fi_msg_rma, flags: u64) -> isize {
        // SAFETY: the endpoint is open; the rest is the caller's promise.
        unsafe { abi::fi_writemsg(self.as_ptr(), message, flags) }
    }

    /// Whose it is.
    #[must_use]
    pub fn library(&self) -> &Arc<Library> {
        self.handle.library()
    }

    /// The object below, for calls that are not here.
    #[must_use]
    #[inline]
    pub fn as_ptr(&self) -> *mut fid_ep {
        self.handle.as_ptr().cast()
    }

    pub(super) const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}
