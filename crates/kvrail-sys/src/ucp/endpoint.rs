//! An endpoint: the way to one peer's worker, the peer's keys, and the operations in flight.

use std::ffi::{c_uint, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI8, Ordering};
use std::time::Duration;

use super::abi::{
    self, UCP_EP_CLOSE_FLAG_FORCE, UCP_OP_ATTR_FIELD_FLAGS, ucp_ep, ucp_err_handler_t, ucp_request_param_t,
    ucp_rkey, ucs_status_t,
};
use super::error::UcpError;
use super::library::Library;
use super::status::Status;
use super::tally::Tally;
use super::worker::{ErrorHandling, Handle as WorkerHandle, OneThread};

/// How long an endpoint that is dropped may take to close before it is left to its worker's end.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What has become of an endpoint, written by UCX's error handler.
#[derive(Default)]
pub(super) struct Fate {
    status: AtomicI8,
}

impl Fate {
    pub(super) fn handler(&self) -> ucp_err_handler_t {
        ucp_err_handler_t { cb: Some(failed), arg: ptr::from_ref(self).cast_mut().cast() }
    }
}

unsafe extern "C" fn failed(fate: *mut c_void, _ep: *mut ucp_ep, status: ucs_status_t) {
    // SAFETY: the endpoint's own, which is dropped after it, and atomic.
    let fate = unsafe { &*fate.cast::<Fate>() };
    fate.status.store(status, Ordering::Relaxed);
}

/// An endpoint.
pub struct Endpoint {
    handle: Rc<Handle>,
    _one_thread: OneThread,
}

/// Drop order: the endpoint, then what its error handler writes to, then the worker's share.
pub(super) struct Handle {
    ep: NonNull<ucp_ep>,
    fate: Option<Box<Fate>>,
    worker: Rc<WorkerHandle>,
    handling: ErrorHandling,
    is_closed: std::cell::Cell<bool>,
}

impl Handle {
    fn library(&self) -> &Arc<Library> {
        self.worker.library()
    }

    /// Closes the endpoint, once: by force what can be forced, else after what is in flight.
    fn close(&self, within: Duration) -> Result<(), UcpError> {
        if self.is_closed.replace(true) {
            return Ok(());
        }
        let force = match self.handling {
            ErrorHandling::Peer => UCP_EP_CLOSE_FLAG_FORCE,
            ErrorHandling::None => 0,
        };
        let param = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_FLAGS,
            flags: force,
            ..ucp_request_param_t::default()
        };
        // SAFETY: the endpoint is open, and not used again.
        let at = unsafe { (self.library().functions().ucp_ep_close_nbx)(self.ep.as_ptr(), &param) };
        let result = if abi::ucs_ptr_is_ptr(at) {
            // SAFETY: the request of the call above, without a callback, freed here alone.
            unsafe { self.worker.finish(at, within) }
        } else if abi::ucs_ptr_is_err(at) {
            Err(Status::of_pointer(at))
        } else {
            Ok(())
        };
        result.map_err(|status| UcpError { call: "ucp_ep_close", status })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.close(CLOSE_MAX) {
            // The worker will take it down; until then UCX may still call the handler.
            log::debug!("ucx: {error}");
            std::mem::forget(self.fate.take());
        }
    }
}

/// What carries an endpoint's operations.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Transport {
    /// `tcp`, `cma`, `posix`, `rc_mlx5`, `srd`…
    pub name: String,
    /// `eth0`, `memory`, `mlx5_0:1`…
    pub device: String,
    /// What the lane is for, in UCX's words (`rma_bw#0 am`); empty where this UCX does not say.
    pub uses: String,
}

impl Endpoint {
    /// Takes an endpoint over.
    ///
    /// # Safety
    /// The endpoint is open on the worker, belongs to nobody else, and its error handler, if it has one, writes to `fate`.
    pub(super) unsafe fn own(
        ep: NonNull<ucp_ep>,
        fate: Box<Fate>,
        worker: &Rc<WorkerHandle>,
        handling: ErrorHandling,
    ) -> Self {
        let handle = Handle {
            ep,
            fate: Some(fate),
            worker: Rc::clone(worker),
            handling,
            is_closed: std::cell::Cell::new(false),
        };
        Self { handle: Rc::new(handle), _one_thread: PhantomData }
    }

    /// Why UCX has given the endpoint up, if it has. What is in flight then ends with that error; nothing new can be posted.
    #[must_use]
    pub fn failure(&self) -> Option<Status> {
        let fate = self.handle.fate.as_ref()?;
        Status::check(fate.status.load(Ordering::Relaxed)).err()
    }

    /// Unpacks a peer's key. The bytes come from [`MappedMemory::packed_key`](super::MappedMemory::packed_key) there; UCX checks little of
    /// them: whoever calls has seen to it that they are such a key, whole.
    ///
    /// # Errors
    /// UCX's: `UNREACHABLE` where no transport leads to that memory.
    pub fn key(&self, packed: &[u8]) -> Result<RemoteKey, UcpError> {
        // A copy with room behind it, aligned for whatever UCX reads of it; zeros end lists.
        let mut words = vec![0_u64; packed.len() / 8 + 8];
        // SAFETY: the words have room for the key, and do not overlap it.
        unsafe { ptr::copy_nonoverlapping(packed.as_ptr(), words.as_mut_ptr().cast(), packed.len()) };
        self.is_open().map_err(|status| UcpError { call: "ucp_ep_rkey_unpack", status })?;
        let mut key = ptr::null_mut();
        let unpack = self.library().functions().ucp_ep_rkey_unpack;
        // SAFETY: the endpoint is open, the bytes alive; the result is written to `key`.
        let result = unsafe { unpack(self.as_ptr(), words.as_ptr().cast(), &mut key) };
        UcpError::check("ucp_ep_rkey_unpack", result)?;
        let missing = UcpError { call: "ucp_ep_rkey_unpack", status: Status::INVALID_PARAM };
        let key = NonNull::new(key).ok_or(missing)?;
        Ok(RemoteKey { key, endpoint: Rc::clone(&self.handle) })
    }

    /// Puts bytes into a peer's memory. `Ok(true)` = in flight, and on the tally until it has ended; `Ok(false)` = ended at once. An end
    /// says that the local bytes may be reused; that they are in the peer's memory says the end of a [`flush`](Self::flush) behind it.
    ///
    /// # Safety
    /// The local bytes lie in the memory that the tally was made with, and nobody writes them until the operation has ended. The remote
    /// ones lie in the memory of the key.
    ///
    /// # Errors
    /// UCX's: nothing is in flight.
    #[inline]
    pub unsafe fn put(
        &self,
        tally: &Tally,
        local: *const c_void,
        len: usize,
        remote: u64,
        key: &RemoteKey,
    ) -> Result<bool, Status> {
        self.is_open()?;
        let put = self.library().functions().ucp_put_nbx;
        // SAFETY: endpoint and key are open, and of each other; the bytes are the caller's promise; the parameters are the tally's, which
        // stays until the operation has ended.
        let at = unsafe { put(self.as_ptr(), local, len, remote, key.key.as_ptr(), tally.transfer()) };
        tally.entered(at)
    }

    /// Gets bytes of a peer's memory. An end says that they are here.
    ///
    /// # Safety
    /// As for [`put`](Self::put), but nobody reads or writes the local bytes until the operation has ended.
    ///
    /// # Errors
    /// UCX's: nothing is in flight.
    #[inline]
    pub unsafe fn get(
        &self,
        tally: &Tally,
        local: *mut c_void,
        len: usize,
        remote: u64,
        key: &RemoteKey,
    ) -> Result<bool, Status> {
        self.is_open()?;
        let get = self.library().functions().ucp_get_nbx;
        // SAFETY: as for `put`.
        let at = unsafe { get(self.as_ptr(), local, len, remote, key.key.as_ptr(), tally.transfer()) };
        tally.entered(at)
    }

    /// Ends when every operation posted before it is complete at the peer.
    ///
    /// # Errors
    /// UCX's: nothing is in flight.
    #[inline]
    pub fn flush(&self, tally: &Tally) -> Result<bool, Status> {
        self.is_open()?;
        // SAFETY: the endpoint is open; the parameters are the tally's, which stays until the flush has ended.
        let at = unsafe { (self.library().functions().ucp_ep_flush_nbx)(self.as_ptr(), tally.other()) };
        tally.entered(at)
    }

    /// Sends a short active message to the peer's handler of this number. The context has `UCP_FEATURE_AM`.
    ///
    /// # Safety
    /// The bytes stay, and nobody writes them, until the operation has ended.
    ///
    /// # Errors
    /// UCX's: nothing is in flight.
    pub unsafe fn message(&self, tally: &Tally, id: u32, bytes: *const [u8]) -> Result<bool, Status> {
        self.is_open()?;
        let send = self.library().functions().ucp_am_send_nbx;
        let (at, len, id): (*const c_void, usize, c_uint) = (bytes.cast(), bytes.len(), id);
        // SAFETY: the endpoint is open; the bytes are the caller's promise; the parameters are the tally's.
        let at = unsafe { send(self.as_ptr(), id, ptr::null(), 0, at, len, tally.eager()) };
        tally.entered(at)
    }

    /// Closes it now: what is in flight ends with an error under [`ErrorHandling::Peer`], and is waited for under
    /// [`ErrorHandling::None`]. The endpoint cannot be used afterwards: operations are refused.
    ///
    /// # Errors
    /// UCX's; `TIMED_OUT` when it takes longer than it may: the endpoint then goes with its worker.
    pub fn close(&self, within: Duration) -> Result<(), UcpError> {
        self.handle.close(within)
    }

    /// An endpoint that was closed is UCX's no more.
    #[inline]
    pub(super) fn is_open(&self) -> Result<(), Status> {
        if self.handle.is_closed.get() { Err(Status::NOT_CONNECTED) } else { Ok(()) }
    }

    pub(super) fn library(&self) -> &Arc<Library> {
        self.handle.library()
    }

    #[inline]
    pub(super) fn as_ptr(&self) -> *mut ucp_ep {
        self.handle.ep.as_ptr()
    }
}

/// A peer's key, for one endpoint. It keeps the endpoint open.
pub struct RemoteKey {
    key: NonNull<ucp_rkey>,
    endpoint: Rc<Handle>,
}

impl Drop for RemoteKey {
    fn drop(&mut self) {
        // SAFETY: the key is open, and goes before its endpoint.
        unsafe { (self.endpoint.library().functions().ucp_rkey_destroy)(self.key.as_ptr()) }
    }
}
