//! An object of libfabric that is open: what it stands on stays open longer.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::abi::{self, FI_EBUSY, fid};
use super::error::FabricError;
use super::library::Library;

/// Closes its object when the last owner is gone, and only then lets go of what the object stands on.
///
/// Drop order: the object, then its `below` in the order in which they were added, then the library's count.
pub(super) struct Handle {
    object: NonNull<fid>,
    what: &'static str,
    /// Whether `close` has been called: the object is gone, or abandoned.
    is_closed: bool,
    below: Mutex<Vec<Arc<Handle>>>,
    library: Arc<Library>,
}

// SAFETY: closing an object from another thread than the one that opened it is allowed by libfabric; that no other thread uses the
// object or, as far as the domain's threading level asks, its domain at that time is what `Fabric::domain` makes its caller promise.
unsafe impl Send for Handle {}
// SAFETY: through a shared reference a handle gives its object's address, its library and, under a lock, its list. It calls the
// object only when it is dropped, which nobody shares.
unsafe impl Sync for Handle {}

impl Handle {
    /// Takes an object over.
    ///
    /// # Safety
    /// The object is open, belongs to nobody else, and stands on no more than `below`.
    pub(super) unsafe fn own(
        object: NonNull<fid>,
        what: &'static str,
        below: Vec<Arc<Self>>,
        library: &Arc<Library>,
    ) -> Arc<Self> {
        Arc::new(Self {
            object,
            what,
            is_closed: false,
            below: Mutex::new(below),
            library: Arc::clone(library),
        })
    }

    pub(super) const fn as_ptr(&self) -> *mut fid {
        self.object.as_ptr()
    }

    pub(super) const fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// Keeps another object open for as long as this one is.
    pub(super) fn stand_on(&self, other: &Arc<Self>) {
        // A list that a panic left is still a list.
        self.below.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(other));
    }
}

impl Handle {
    /// Closes the object now, if nothing else stands on it, and says how that went.
    ///
    /// A failure abandons the object: providers may have taken half of it down, so that a second try is not safe. What it stands on is
    /// let go of all the same.
    pub(super) fn close(this: Arc<Self>) -> Result<(), FabricError> {
        let library = Arc::clone(&this.library);
        let Some(mut handle) = Arc::into_inner(this) else {
            return Err(library.error("fi_close", -(FI_EBUSY as isize)));
        };
        handle.is_closed = true;
        handle.close_object()
    }

    /// Calls `fi_close`; once.
    fn close_object(&mut self) -> Result<(), FabricError> {
        // SAFETY: the object is open, nobody else is left who could use it, and the callers see to it that this is the only call.
        let result = unsafe { abi::fi_close(self.object.as_ptr()) };
        self.library.check("fi_close", result)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.is_closed {
            return;
        }
        if let Err(error) = self.close_object() {
            // What stands below will say busy too: one line each, and the process goes on with what it leaks.
            let why = if error.is(FI_EBUSY) { "; something still uses it, it stays open" } else { "" };
            log::error!("libfabric: cannot close a {}: {error}{why}", self.what);
        }
    }
}
