//! The table of live objects: which addresses are handles that this process was given and has not destroyed.
//!
//! After a fork the child begins with an empty table: the parent's objects are not its own. Whose table it is, is seen by the process id, so that
//! no lock that another thread held at the fork is ever waited for.

use core::ptr;
use std::collections::HashMap;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a handle is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Context,
    Domain,
    ThreadDomain,
    Region,
    Handle,
    Channel,
    CompletionQueue,
    QueuePair,
}

/// A structure that C sees the beginning of, or another part at a fixed place.
pub(super) trait Object: Sized {
    /// What it is.
    const KIND: Kind;
    /// The part that C has a pointer to.
    type Public;
    /// Where that part is.
    const PUBLIC: usize;
}

struct Table {
    pid: u32,
    live: Mutex<HashMap<usize, Kind>>,
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());

fn table() -> &'static Table {
    let pid = std::process::id();
    loop {
        let now = TABLE.load(Ordering::Acquire);
        // SAFETY: null, or a table that was published below and is never freed.
        if let Some(table) = unsafe { now.as_ref() }
            && table.pid == pid
        {
            return table;
        }
        let fresh = Box::into_raw(Box::new(Table { pid, live: Mutex::new(HashMap::new()) }));
        if TABLE.compare_exchange(now, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: it was made above and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

fn with_live<R>(f: impl FnOnce(&mut HashMap<usize, Kind>) -> R) -> R {
    f(&mut table().live.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Gives an object to C.
pub(super) fn publish<T: Object>(object: Box<T>) -> *mut T::Public {
    let public = Box::into_raw(object).cast::<u8>().wrapping_add(T::PUBLIC).cast::<T::Public>();
    with_live(|live| live.insert(public as usize, T::KIND));
    public
}

/// Whether `handle` is a live object's.
pub(super) fn is_live<T: Object>(handle: *const T::Public) -> bool {
    with_live(|live| live.get(&(handle as usize)) == Some(&T::KIND))
}

/// The object of a handle that is trusted to be one.
///
/// # Safety
/// `handle` came from [`publish`] of the same `T`, and the object outlives `'a`.
#[inline]
pub(super) unsafe fn trusted<'a, T: Object>(handle: *const T::Public) -> &'a T {
    let object = handle.cast::<u8>().wrapping_sub(T::PUBLIC).cast::<T>();
    // SAFETY: the caller's promise; objects are only changed through atomics, locks and cells.
    unsafe { &*object }
}

/// The object of `handle`, if it is a live one's.
///
/// # Safety
/// No thread destroys the object while the reference is used: the rule for all verbs objects.
pub(super) unsafe fn find<'a, T: Object>(handle: *const T::Public) -> Option<&'a T> {
    if !is_live::<T>(handle) {
        return None;
    }
    // SAFETY: the table says that it came from `publish`, and the caller that it stays.
    Some(unsafe { trusted::<T>(handle) })
}

/// Takes an object back from C: `Ok` with the object, or the errno, when it is none or `may_go` objects.
///
/// # Safety
/// No thread uses the object any more.
pub(super) unsafe fn retire<T: Object>(
    handle: *mut T::Public,
    may_go: impl FnOnce(&T) -> Result<(), i32>,
) -> Result<Box<T>, i32> {
    with_live(|live| {
        if live.get(&(handle as usize)) != Some(&T::KIND) {
            return Err(libc::EINVAL);
        }
        // SAFETY: the table says that it came from `publish`; its lock keeps it there.
        may_go(unsafe { trusted::<T>(handle) })?;
        live.remove(&(handle as usize));
        let object = handle.cast::<u8>().wrapping_sub(T::PUBLIC).cast::<T>();
        // SAFETY: it came from a box in `publish`, and has just left the table, so that this happens once.
        Ok(unsafe { Box::from_raw(object) })
    })
}

/// How many objects depend on this one. It can only go when none does.
#[derive(Default)]
pub(super) struct Users(AtomicU32);

impl Users {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// `EBUSY` while there are some.
    pub(super) fn none(&self) -> Result<(), i32> {
        if self.0.load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(libc::EBUSY) }
    }
}
