//! A tally: what is in flight of one posting, and the first failure among it.
//!
//! UCX reports the end of an operation by a callback inside of [`Worker::progress`](super::Worker::progress). The callback counts, frees the
//! request, and does nothing else (nobody acts inside of a foreign callback).

use std::ffi::{c_char, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI8, AtomicPtr, AtomicU64, Ordering};

use super::abi::{
    self, UCP_AM_SEND_FLAG_EAGER, UCP_OP_ATTR_FIELD_CALLBACK, UCP_OP_ATTR_FIELD_FLAGS,
    UCP_OP_ATTR_FIELD_MEMH, UCP_OP_ATTR_FIELD_MEMORY_TYPE, UCP_OP_ATTR_FIELD_USER_DATA,
    UCP_REQUEST_ATTR_FIELD_INFO_STRING, UCP_REQUEST_ATTR_FIELD_INFO_STRING_SIZE, UCS_MEMORY_TYPE_HOST,
    ucp_request_attr_t, ucp_request_param_t, ucs_status_ptr_t, ucs_status_t,
};
use super::context::MappedMemory;
use super::library::Library;
use super::status::Status;

/// What is in flight. It and the registration stay in memory until all of it has ended, dropped or not.
pub struct Tally {
    inner: NonNull<Inner>,
}

struct Inner {
    /// Debts: operations whose callback has not run. Only the worker's thread writes it, and a load and a store are enough for that.
    pending: AtomicU64,
    /// The first failure's status; 0 = none.
    failed: AtomicI8,
    /// The operation that went in flight last, while nothing has ended since.
    last: AtomicPtr<c_void>,
    request_free: unsafe extern "C" fn(*mut c_void),
    request_query: unsafe extern "C" fn(*mut c_void, *mut ucp_request_attr_t) -> ucs_status_t,
    /// Of transfers, of messages, of everything else. UCX reads them while it is called, and writes none.
    transfer: ucp_request_param_t,
    eager: ucp_request_param_t,
    other: ucp_request_param_t,
    /// What the transfers' local bytes are in.
    _memory: MappedMemory,
}

// SAFETY: everything in it that changes is atomic; parameters are only read; a registration may be dropped by any thread.
unsafe impl Send for Tally {}

impl Tally {
    /// A tally of operations whose local bytes are in this memory.
    #[must_use]
    pub fn new(memory: &MappedMemory, library: &Library) -> Self {
        let functions = library.functions();
        let memh = if library.is_since(1, 13) { UCP_OP_ATTR_FIELD_MEMH } else { 0 };
        let told = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
        let inner = Box::into_raw(Box::new(Inner {
            pending: AtomicU64::new(0),
            failed: AtomicI8::new(0),
            last: AtomicPtr::new(ptr::null_mut()),
            request_free: functions.ucp_request_free,
            request_query: functions.ucp_request_query,
            transfer: ucp_request_param_t::default(),
            eager: ucp_request_param_t::default(),
            other: ucp_request_param_t::default(),
            _memory: memory.clone(),
        }));
        let user_data = inner.cast();
        let param = |mask| ucp_request_param_t {
            op_attr_mask: told | mask,
            cb: Some(ended),
            user_data,
            memory_type: UCS_MEMORY_TYPE_HOST,
            ..ucp_request_param_t::default()
        };
        let mut transfer = param(UCP_OP_ATTR_FIELD_MEMORY_TYPE | memh);
        transfer.memh = memory.as_ptr();
        let mut eager = param(UCP_OP_ATTR_FIELD_FLAGS);
        eager.flags = UCP_AM_SEND_FLAG_EAGER;
        // SAFETY: just allocated, and nobody else's yet.
        unsafe { (*inner).transfer = transfer };
        // SAFETY: the same.
        unsafe { (*inner).eager = eager };
        // SAFETY: the same.
        unsafe { (*inner).other = param(0) };
        // SAFETY: a box is never null.
        Self { inner: unsafe { NonNull::new_unchecked(inner) } }
    }

    fn inner(&self) -> &Inner {
        // SAFETY: allocated in `new`, freed when this is dropped at the earliest. Whoever else has the address, UCX's callback, goes
        // through the atomics.
        unsafe { self.inner.as_ref() }
    }

    pub(super) fn transfer(&self) -> *const ucp_request_param_t {
        &raw const self.inner().transfer
    }

    pub(super) fn eager(&self) -> *const ucp_request_param_t {
        &raw const self.inner().eager
    }

    pub(super) fn other(&self) -> *const ucp_request_param_t {
        &raw const self.inner().other
    }

    /// Enters what a call returned: in flight, ended, or refused.
    #[inline]
    pub(super) fn entered(&self, at: ucs_status_ptr_t) -> Result<bool, Status> {
        if at.is_null() {
            return Ok(false);
        }
        if abi::ucs_ptr_is_err(at) {
            return Err(Status::of_pointer(at));
        }
        let inner = self.inner();
        inner.pending.store(inner.pending.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        inner.last.store(at, Ordering::Relaxed);
        Ok(true)
    }

    /// Operations in flight.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.inner().pending.load(Ordering::Acquire)
    }

    /// The first failure since [`begin`](Self::begin).
    #[inline]
    #[must_use]
    pub fn failure(&self) -> Option<Status> {
        Status::check(self.inner().failed.load(Ordering::Relaxed)).err()
    }

    /// Forgets earlier failures. Nothing is in flight.
    pub fn begin(&self) {
        debug_assert_eq!(self.pending(), 0, "a posting begins after the last one has ended");
        self.inner().failed.store(0, Ordering::Relaxed);
    }

    /// What UCX says of the operation that went in flight last: which protocol, over which transport. None where it has ended
    /// meanwhile. Called between an operation and the worker's next progress, on the same thread.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        let inner = self.inner();
        let request = inner.last.load(Ordering::Relaxed);
        if request.is_null() {
            return None;
        }
        let mut words = [0_u8; 256];
        let mut attr = ucp_request_attr_t {
            field_mask: UCP_REQUEST_ATTR_FIELD_INFO_STRING | UCP_REQUEST_ATTR_FIELD_INFO_STRING_SIZE,
            debug_string: words.as_mut_ptr().cast::<c_char>(),
            debug_string_size: words.len() - 1,
            ..ucp_request_attr_t::default()
        };
        // SAFETY: nothing has ended since the request went in flight, so that it is in flight still; the buffer is as long as it says.
        let result = unsafe { (inner.request_query)(request, &mut attr) };
        Status::check(result).ok()?;
        let len = words.iter().position(|&byte| byte == 0).unwrap_or(words.len());
        Some(String::from_utf8_lossy(&words[..len]).trim().to_owned()).filter(|said| !said.is_empty())
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if self.pending() == 0 {
            // SAFETY: from a box, and no callback is left that has its address: the last thing that one does with it is to lower the
            // count, which the load above has seen.
            drop(unsafe { Box::from_raw(self.inner.as_ptr()) });
        }
        // Else a callback may still come: memory and registration stay for good.
    }
}

/// An operation has ended.
unsafe extern "C" fn ended(request: *mut c_void, status: ucs_status_t, inner: *mut c_void) {
    // SAFETY: the tally's, which stays until the count is zero.
    let inner = unsafe { &*inner.cast::<Inner>() };
    if status < 0 && inner.failed.load(Ordering::Relaxed) == 0 {
        inner.failed.store(status, Ordering::Relaxed);
    }
    inner.last.store(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the request has ended, and is freed here alone.
    unsafe { (inner.request_free)(request) };
    inner.pending.store(inner.pending.load(Ordering::Relaxed) - 1, Ordering::Release);
}
