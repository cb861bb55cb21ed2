//! A queue of completions.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use super::abi::{self, fi_addr_t, fi_cq_data_entry, fi_cq_err_entry, fid, fid_cq};
use super::error::FabricError;
use super::fabric::{OneThread, WORDS_BYTES};
use super::handle::Handle;
use super::library::text;

/// How a queue can be slept on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all: it is polled.
    None,
    /// By a file descriptor, after [`Fabric::try_wait`](super::Fabric::try_wait).
    Fd,
}

/// A queue of completions, with immediates (`FI_CQ_FORMAT_DATA`).
pub struct CompletionQueue {
    handle: Arc<Handle>,
    _one_thread: OneThread,
}

/// An operation that failed.
#[derive(Clone, Debug)]
pub struct CqFailure {
    /// All that libfabric says. `err_data` has been copied to `detail`, and is null.
    pub entry: fi_cq_err_entry,
    /// libfabric's words for `entry.err`.
    pub text: String,
    /// The provider's words for `entry.prov_errno`.
    pub provider_text: String,
    /// What else the provider said; `efa` names the peers here.
    pub detail: Vec<u8>,
}

impl CompletionQueue {
    pub(super) const fn new(handle: Arc<Handle>) -> Self {
        Self { handle, _one_thread: PhantomData }
    }

    /// Takes completions: how many, or a negated `FI_E…`. `-FI_EAGAIN` = none; `-FI_EAVAIL` = read a failure first.
    #[inline]
    pub fn read(&self, entries: &mut [fi_cq_data_entry]) -> isize {
        // SAFETY: the queue is open and has this format; the buffer has as many entries as it says.
        unsafe { abi::fi_cq_read(self.as_ptr(), entries.as_mut_ptr().cast(), entries.len()) }
    }

    /// The same, and where each came from, as far as that is known: as many as the shorter of the two has room for.
    #[inline]
    pub fn read_from(&self, entries: &mut [fi_cq_data_entry], from: &mut [fi_addr_t]) -> isize {
        let count = entries.len().min(from.len());
        // SAFETY: the queue is open and has this format; both buffers have at least `count` entries.
        unsafe { abi::fi_cq_readfrom(self.as_ptr(), entries.as_mut_ptr().cast(), count, from.as_mut_ptr()) }
    }

    /// Takes the failure that `-FI_EAVAIL` announced; none when there is none after all.
    ///
    /// # Errors
    /// The queue itself is gone.
    pub fn read_failure(&self) -> Result<Option<CqFailure>, FabricError> {
        let library = self.handle.library();
        let mut detail = vec![0_u8; WORDS_BYTES];
        let mut entry = fi_cq_err_entry {
            err_data: detail.as_mut_ptr().cast(),
            err_data_size: detail.len(),
            ..fi_cq_err_entry::default()
        };
        // SAFETY: the queue is open, the entry alive, and the room for the provider's words as long as it says.
        let result = unsafe { abi::fi_cq_readerr(self.as_ptr(), &mut entry, 0) };
        if result == 0 || result == -(abi::FI_EAGAIN as isize) {
            return Ok(None);
        }
        if result < 0 {
            return Err(library.error("fi_cq_readerr", result));
        }
        let mut words = [0; WORDS_BYTES];
        // SAFETY: the queue is open, the data is that of the entry just read, the buffer is as long as it says.
        let at = unsafe {
            abi::fi_cq_strerror(
                self.as_ptr(),
                entry.prov_errno,
                entry.err_data,
                words.as_mut_ptr(),
                words.len(),
            )
        };
        // SAFETY: null, or a string in the buffer or the provider's own.
        let provider_text = unsafe { text(at) }.unwrap_or_default();
        // A provider may have put its words into memory of its own instead: only what is in ours is kept.
        let ours = ptr::eq(entry.err_data.cast::<u8>(), detail.as_ptr());
        detail.truncate(if ours { entry.err_data_size } else { 0 });
        entry.err_data = ptr::null_mut();
        let text = library.strerror(entry.err);
        Ok(Some(CqFailure { entry, text, provider_text, detail }))
    }

    /// The file descriptor of a queue that was opened with [`Wait::Fd`]. It is the queue's, and is closed with it.
    ///
    /// # Errors
    /// libfabric's.
    pub fn wait_fd(&self) -> Result<c_int, FabricError> {
        let mut fd: c_int = -1;
        // SAFETY: the queue is open, and a queue with a descriptor writes an int.
        let result = unsafe { abi::fi_get_wait(self.as_fid(), ptr::from_mut(&mut fd).cast()) };
        self.handle.library().check("fi_control(FI_GETWAIT)", result).map(|()| fd)
    }

    /// The object below.
    #[must_use]
    #[inline]
    pub fn as_ptr(&self) -> *mut fid_cq {
        self.handle.as_ptr().cast()
    }

    pub(super) fn as_fid(&self) -> *mut fid {
        self.handle.as_ptr()
    }

    pub(super) const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}
