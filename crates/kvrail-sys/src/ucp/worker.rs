//! A worker: what one thread at a time drives.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::abi::{
    self, UCP_AM_FLAG_WHOLE_MSG, UCP_AM_HANDLER_PARAM_FIELD_ARG, UCP_AM_HANDLER_PARAM_FIELD_CB,
    UCP_AM_HANDLER_PARAM_FIELD_FLAGS, UCP_AM_HANDLER_PARAM_FIELD_ID, UCP_EP_PARAM_FIELD_ERR_HANDLER,
    UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE, UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, UCP_ERR_HANDLING_MODE_NONE,
    UCP_ERR_HANDLING_MODE_PEER, UCP_WORKER_ATTR_FIELD_ADDRESS, UCP_WORKER_PARAM_FIELD_THREAD_MODE, UCS_OK,
    UCS_THREAD_MODE_SERIALIZED, ucp_am_handler_param_t, ucp_ep_params_t, ucp_worker, ucp_worker_attr_t,
    ucp_worker_params_t, ucs_status_t,
};
use super::context::Context;
use super::endpoint::{Endpoint, Fate};
use super::error::UcpError;
use super::library::Library;
use super::status::Status;

/// Of a worker and all that is opened on it: one thread at a time. Whoever sends them elsewhere sends all of them, and synchronises.
pub(super) type OneThread = PhantomData<*mut ()>;

/// A worker.
pub struct Worker {
    handle: Rc<Handle>,
    _one_thread: OneThread,
}

/// Drop order: the worker, then what its callbacks write to, then the context's share.
pub(super) struct Handle {
    worker: NonNull<ucp_worker>,
    /// Messages that have come. Boxed, because the worker keeps its address.
    messages: Box<AtomicU64>,
    context: Context,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the worker is open and nobody else has it. Endpoints that could not be closed go with it; afterwards nothing of it
        // touches memory, because what moved it were this process's calls and the queues that are closed here.
        unsafe { (self.context.library().functions().ucp_worker_destroy)(self.worker.as_ptr()) }
    }
}

impl Handle {
    pub(super) fn as_ptr(&self) -> *mut ucp_worker {
        self.worker.as_ptr()
    }

    pub(super) fn library(&self) -> &Arc<Library> {
        self.context.library()
    }

    pub(super) fn progress(&self) -> u32 {
        // SAFETY: the worker is open, and this thread is the only one with it.
        unsafe { (self.library().functions().ucp_worker_progress)(self.worker.as_ptr()) }
    }

    /// Drives the worker until a request has ended, at most so long; the request is freed either way.
    ///
    /// # Safety
    /// A request of this worker, in flight or ended, without a callback, that nobody else frees.
    pub(super) unsafe fn finish(
        &self,
        request: *mut std::ffi::c_void,
        within: Duration,
    ) -> Result<(), Status> {
        let functions = self.library().functions();
        let deadline = Instant::now() + within;
        let result = loop {
            self.progress();
            // SAFETY: the caller's promise.
            let status = unsafe { (functions.ucp_request_check_status)(request) };
            if status != abi::UCS_INPROGRESS {
                break Status::check(status);
            }
            if Instant::now() >= deadline {
                break Err(Status::TIMED_OUT);
            }
        };
        // SAFETY: the caller's promise; UCX keeps what is still in flight until it ends.
        unsafe { (functions.ucp_request_free)(request) };
        result
    }
}

/// Whether UCX watches over the peers of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorHandling {
    /// A peer that dies is an error, as far as the transports notice; the endpoint can be closed by force. Transports that cannot
    /// do that are left out.
    Peer,
    /// UCX assumes that peers live: `ucx_perftest`'s default.
    None,
}

impl Worker {
    /// Opens a worker.
    ///
    /// # Errors
    /// UCX's.
    pub fn open(context: &Context) -> Result<Self, UcpError> {
        let params = ucp_worker_params_t {
            field_mask: UCP_WORKER_PARAM_FIELD_THREAD_MODE,
            thread_mode: UCS_THREAD_MODE_SERIALIZED,
            ..ucp_worker_params_t::default()
        };
        let mut worker = ptr::null_mut();
        let create = context.library().functions().ucp_worker_create;
        // SAFETY: the context is open, the parameters alive; the result is written to `worker`.
        let result = unsafe { create(context.as_ptr(), &params, &mut worker) };
        UcpError::check("ucp_worker_create", result)?;
        let missing = UcpError { call: "ucp_worker_create", status: Status::INVALID_PARAM };
        let worker = NonNull::new(worker).ok_or(missing)?;
        let handle = Handle { worker, messages: Box::default(), context: context.clone() };
        Ok(Self { handle: Rc::new(handle), _one_thread: PhantomData })
    }

    /// Its address, for peers: bytes that only UCX understands.
    ///
    /// # Errors
    /// UCX's.
    pub fn address(&self) -> Result<Vec<u8>, UcpError> {
        let functions = self.library().functions();
        let mut attr =
            ucp_worker_attr_t { field_mask: UCP_WORKER_ATTR_FIELD_ADDRESS, ..ucp_worker_attr_t::default() };
        // SAFETY: the worker is open; the answer is written to `attr`.
        let result = unsafe { (functions.ucp_worker_query)(self.handle.as_ptr(), &mut attr) };
        UcpError::check("ucp_worker_query", result)?;
        // SAFETY: UCX gave the address, which is as long as it says and which nobody changes.
        let address = unsafe { abi::copied(attr.address.cast(), attr.address_length) };
        // SAFETY: from ucp_worker_query, released once, and copied.
        unsafe { (functions.ucp_worker_release_address)(self.handle.as_ptr(), attr.address) };
        Ok(address)
    }

    /// Makes progress; whether there was any.
    #[inline]
    pub fn progress(&self) -> bool {
        self.handle.progress() != 0
    }

    /// Counts active messages of this number from now on, and lets go of what is in them. The context has `UCP_FEATURE_AM`.
    ///
    /// # Errors
    /// UCX's.
    pub fn count_messages(&self, id: u32) -> Result<(), UcpError> {
        let param = ucp_am_handler_param_t {
            field_mask: UCP_AM_HANDLER_PARAM_FIELD_ID
                | UCP_AM_HANDLER_PARAM_FIELD_FLAGS
                | UCP_AM_HANDLER_PARAM_FIELD_CB
                | UCP_AM_HANDLER_PARAM_FIELD_ARG,
            id,
            flags: UCP_AM_FLAG_WHOLE_MSG,
            cb: Some(arrived),
            arg: ptr::from_ref(&*self.handle.messages).cast_mut().cast(),
        };
        let set = self.library().functions().ucp_worker_set_am_recv_handler;
        // SAFETY: the worker is open, the parameters alive; the counter is dropped after the worker.
        let result = unsafe { set(self.handle.as_ptr(), &param) };
        UcpError::check("ucp_worker_set_am_recv_handler", result)
    }

    /// How many messages have come since [`count_messages`](Self::count_messages).
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.handle.messages.load(Ordering::Relaxed)
    }

    /// Makes an endpoint to a peer's worker. The connection itself is made by the first operation.
    ///
    /// The bytes come from [`address`](Self::address) of the peer's worker. UCX checks little of them: whoever calls has seen to it that
    /// they are such an address, whole.
    ///
    /// # Errors
    /// UCX's: `UNREACHABLE` where both sides have no transport in common, `INVALID_ADDR`.
    pub fn connect(&self, address: &[u8], handling: ErrorHandling) -> Result<Endpoint, UcpError> {
        // UCX reads a header before it knows any length: what is shorter than an address can be is refused here. The copy is aligned for
        // whatever UCX reads of it, and zeros behind it end lists.
        if address.len() < ADDRESS_BYTES_MIN {
            return Err(UcpError { call: "ucp_ep_create", status: Status::INVALID_PARAM });
        }
        let mut words = vec![0_u64; address.len() / 8 + 8];
        // SAFETY: the words have room for the address, and do not overlap it.
        unsafe { ptr::copy_nonoverlapping(address.as_ptr(), words.as_mut_ptr().cast(), address.len()) };
        let fate = Box::<Fate>::default();
        let (mode, handler) = match handling {
            ErrorHandling::Peer => (UCP_ERR_HANDLING_MODE_PEER, UCP_EP_PARAM_FIELD_ERR_HANDLER),
            ErrorHandling::None => (UCP_ERR_HANDLING_MODE_NONE, 0),
        };
        let params = ucp_ep_params_t {
            field_mask: UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | handler,
            address: words.as_ptr().cast(),
            err_mode: mode,
            err_handler: fate.handler(),
            ..ucp_ep_params_t::default()
        };
        let mut ep = ptr::null_mut();
        let create = self.library().functions().ucp_ep_create;
        // SAFETY: the worker is open, parameters and address alive; the endpoint's fate outlives it; the result is written to `ep`.
        let result = unsafe { create(self.handle.as_ptr(), &params, &mut ep) };
        UcpError::check("ucp_ep_create", result)?;
        let missing = UcpError { call: "ucp_ep_create", status: Status::INVALID_PARAM };
        let ep = NonNull::new(ep).ok_or(missing)?;
        // SAFETY: just made on this worker, with this fate, and nobody else's.
        Ok(unsafe { Endpoint::own(ep, fate, &self.handle, handling) })
    }

    /// Whose it is.
    #[must_use]
    pub fn library(&self) -> &Arc<Library> {
        self.handle.library()
    }
}

/// Shortest address: a worker's 64-bit id, and a device list that is empty.
const ADDRESS_BYTES_MIN: usize = 9;

/// Counts a message.
unsafe extern "C" fn arrived(
    counter: *mut std::ffi::c_void,
    _header: *const std::ffi::c_void,
    _header_length: usize,
    _data: *mut std::ffi::c_void,
    _length: usize,
    _param: *const std::ffi::c_void,
) -> ucs_status_t {
    // SAFETY: the worker's own counter, which is dropped after the worker.
    let counter = unsafe { &*counter.cast::<AtomicU64>() };
    counter.fetch_add(1, Ordering::Relaxed);
    UCS_OK
}
