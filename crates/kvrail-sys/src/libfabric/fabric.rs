//! A network that is open, and the queue of what happens to its objects.

use std::cell::Cell;
use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::{
    self, FI_EAGAIN, FI_EAVAIL, FI_EOTHER, FI_WAIT_NONE, fi_eq_attr, fi_eq_entry, fi_eq_err_entry, fid,
    fid_eq, fid_fabric,
};
use super::domain::Domain;
use super::error::FabricError;
use super::handle::Handle;
use super::info::Info;
use super::library::{Library, text};

/// Makes a type movable between threads but not shared by them.
pub(super) type OneThread = PhantomData<Cell<()>>;

/// Longest text that a provider is given room for, bytes.
pub(super) const WORDS_BYTES: usize = 512;

/// A network.
pub struct Fabric {
    handle: Arc<Handle>,
    _one_thread: OneThread,
}

impl Fabric {
    /// Opens the network of an offer.
    ///
    /// # Errors
    /// libfabric's.
    pub fn open(info: &Info) -> Result<Self, FabricError> {
        let library = info.library();
        // SAFETY: the attributes are of an entry of this library, alive during the call.
        let fabric = unsafe { library.open_fabric(info.first().raw().fabric_attr) }?;
        // SAFETY: just opened, and it stands on nothing but the library.
        let handle = unsafe { Handle::own(fabric.cast(), "fabric", Vec::new(), library) };
        Ok(Self { handle, _one_thread: PhantomData })
    }

    /// Opens a NIC of this network.
    ///
    /// # Safety
    /// All objects that stand on the domain are used, and dropped, as the threading level in `info` asks
    /// (`Entry::threading`): with `FI_THREAD_SAFE` by any threads; with `FI_THREAD_DOMAIN` by one thread at a time together; with
    /// the levels between as libfabric's manual has it. Their types only see to it that no object is used by two threads at once.
    ///
    /// # Errors
    /// libfabric's.
    pub unsafe fn domain(&self, info: &Info) -> Result<Domain, FabricError> {
        let mut domain = ptr::null_mut();
        // SAFETY: the fabric is open, the entry alive; the result is written to `domain`.
        let result = unsafe { abi::fi_domain(self.as_ptr(), info.as_ptr(), &mut domain, ptr::null_mut()) };
        let object = self.opened("fi_domain", result, domain.cast())?;
        // SAFETY: just opened, and it stands on the fabric.
        let handle = unsafe { Handle::own(object, "domain", vec![Arc::clone(&self.handle)], self.library()) };
        Ok(Domain::new(handle))
    }

    /// Opens a queue of events with room for `size`; 0 = the provider's choice.
    ///
    /// # Errors
    /// libfabric's.
    pub fn event_queue(&self, size: usize) -> Result<EventQueue, FabricError> {
        let mut attr = fi_eq_attr { size, wait_obj: FI_WAIT_NONE, ..fi_eq_attr::default() };
        let mut eq = ptr::null_mut();
        // SAFETY: the fabric is open, the attributes alive; the result is written to `eq`.
        let result = unsafe { abi::fi_eq_open(self.as_ptr(), &mut attr, &mut eq, ptr::null_mut()) };
        let object = self.opened("fi_eq_open", result, eq.cast())?;
        // SAFETY: just opened, and it stands on the fabric.
        let handle =
            unsafe { Handle::own(object, "event queue", vec![Arc::clone(&self.handle)], self.library()) };
        Ok(EventQueue { handle, _one_thread: PhantomData })
    }

    /// Whether it is safe to sleep on the file descriptors of these queues: false = something has come, or may have; read first.
    ///
    /// # Errors
    /// libfabric's, other than that something has come.
    pub fn try_wait(&self, queues: &[&super::queue::CompletionQueue]) -> Result<bool, FabricError> {
        let mut fids: Vec<*mut fid> = queues.iter().map(|queue| queue.as_fid()).collect();
        let count = c_int::try_from(fids.len()).unwrap_or(c_int::MAX);
        // SAFETY: the fabric and the queues are open; the list has `count` entries.
        let result = unsafe { abi::fi_trywait(self.as_ptr(), fids.as_mut_ptr(), count) };
        if result == -FI_EAGAIN {
            return Ok(false);
        }
        self.library().check("fi_trywait", result).map(|()| true)
    }

    /// Whose it is.
    #[must_use]
    pub fn library(&self) -> &Arc<Library> {
        self.handle.library()
    }

    /// The object below.
    #[must_use]
    pub fn as_ptr(&self) -> *mut fid_fabric {
        self.handle.as_ptr().cast()
    }

    fn opened(
        &self,
        call: &'static str,
        result: c_int,
        object: *mut fid,
    ) -> Result<NonNull<fid>, FabricError> {
        opened(self.library(), call, result, object)
    }
}

/// An object that a call should have opened.
pub(super) fn opened(
    library: &Library,
    call: &'static str,
    result: c_int,
    object: *mut fid,
) -> Result<NonNull<fid>, FabricError> {
    library.check(call, result)?;
    NonNull::new(object).ok_or_else(|| library.error(call, -(FI_EOTHER as isize)))
}

/// A queue of what happens to objects. `efa` ends the process on some errors when an endpoint has none.
pub struct EventQueue {
    handle: Arc<Handle>,
    _one_thread: OneThread,
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub struct EqEvent {
    /// `FI_MR_COMPLETE`, `FI_AV_COMPLETE` …
    pub event: u32,
    /// To what.
    pub entry: fi_eq_entry,
}

/// Something that failed.
#[derive(Clone, Debug)]
pub struct EqFailure {
    /// `FI_E…`, positive, with libfabric's words.
    pub error: FabricError,
    /// The provider's own code, and its words for it.
    pub provider: (c_int, String),
    /// To what it happened; to be compared, never used.
    pub object: *const fid,
}

impl EventQueue {
    /// What has happened next, if anything. A failure is the inner error; the outer one means that the queue itself is gone.
    ///
    /// # Errors
    /// libfabric's.
    pub fn read(&self) -> Result<Option<Result<EqEvent, EqFailure>>, FabricError> {
        let (mut event, mut entry) = (0, fi_eq_entry::default());
        let at = ptr::from_mut(&mut entry).cast();
        // SAFETY: the queue is open, and the buffer is as long as it says.
        let result = unsafe { abi::fi_eq_read(self.as_ptr(), &mut event, at, size_of::<fi_eq_entry>(), 0) };
        if result >= 0 {
            return Ok((result > 0).then_some(Ok(EqEvent { event, entry })));
        }
        match -result {
            code if code == FI_EAGAIN as isize => Ok(None),
            code if code == FI_EAVAIL as isize => self.read_failure().map(|failure| failure.map(Err)),
            _ => Err(self.handle.library().error("fi_eq_read", result)),
        }
    }

    fn read_failure(&self) -> Result<Option<EqFailure>, FabricError> {
        let library = self.handle.library();
        let mut entry = fi_eq_err_entry::default();
        // SAFETY: the queue is open, the entry alive; no room is given for the provider's data.
        let result = unsafe { abi::fi_eq_readerr(self.as_ptr(), &mut entry, 0) };
        if result == 0 || result == -(FI_EAGAIN as isize) {
            return Ok(None);
        }
        if result < 0 {
            return Err(library.error("fi_eq_readerr", result));
        }
        let mut words = [0; WORDS_BYTES];
        // SAFETY: the queue is open, the data is that of the entry just read, the buffer is as long as it says.
        let at = unsafe {
            abi::fi_eq_strerror(
                self.as_ptr(),
                entry.prov_errno,
                entry.err_data,
                words.as_mut_ptr(),
                words.len(),
            )
        };
        // SAFETY: null, or a string in the buffer or the provider's own.
        let words = unsafe { text(at) }.unwrap_or_default();
        Ok(Some(EqFailure {
            error: library.error("event", entry.err as isize),
            provider: (entry.prov_errno, words),
            object: entry.fid,
        }))
    }

    /// The object below.
    #[must_use]
    pub fn as_ptr(&self) -> *mut fid_eq {
        self.handle.as_ptr().cast()
    }

    pub(super) const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}
