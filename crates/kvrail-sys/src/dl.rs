//! The loader: libraries that are mapped when they are wanted, and stay mapped.

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// Maps a library for good, because such libraries start threads and leave handlers behind; or the loader's reason.
///
/// Its symbols stay its own (`RTLD_LOCAL`), so that its libibverbs and the like do not meet another's by name.
pub(crate) fn map(library: &Path) -> Result<NonNull<c_void>, String> {
    let name = CString::new(library.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a C string.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    NonNull::new(handle).ok_or_else(|| {
        // SAFETY: it takes nothing; the answer is this thread's.
        let said = unsafe { libc::dlerror() };
        // SAFETY: null or a string that stays until this thread's next call of the loader.
        unsafe { text(said) }.unwrap_or_else(|| "the loader gives no reason".into())
    })
}

/// Whether what the loader said means that it knows no such library. It has no other way to say so: a library that it found, but
/// cannot take, it names with its directory.
pub(crate) fn is_absence(library: &Path, said: &str) -> bool {
    said.starts_with(&format!("{}: ", library.display()))
}

/// A symbol of a mapped library or of those it needs; of a version, where one is given.
pub(crate) fn symbol(handle: NonNull<c_void>, name: &str, version: Option<&str>) -> Option<NonNull<c_void>> {
    let name = CString::new(name).ok()?;
    let at = match version {
        Some(version) => {
            let version = CString::new(version).ok()?;
            // SAFETY: the handle is open for good; both names are C strings.
            unsafe { libc::dlvsym(handle.as_ptr(), name.as_ptr(), version.as_ptr()) }
        }
        // SAFETY: the handle is open for good; the name is a C string.
        None => unsafe { libc::dlsym(handle.as_ptr(), name.as_ptr()) },
    };
    NonNull::new(at)
}

/// The file that an address is mapped from, links resolved.
pub(crate) fn file_of(at: NonNull<c_void>) -> Option<PathBuf> {
    // SAFETY: zeros are a value of this structure of pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; the answer is written to `info`.
    if unsafe { libc::dladdr(at.as_ptr(), &mut info) } == 0 {
        return None;
    }
    // SAFETY: the loader's name of a library that stays mapped.
    let path = PathBuf::from(unsafe { text(info.dli_fname) }?);
    path.canonicalize().ok().or(Some(path))
}

/// A copy of a C string; none for null.
///
/// # Safety
/// Null, or a C string that nobody changes meanwhile.
pub(crate) unsafe fn text(at: *const c_char) -> Option<String> {
    if at.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
}
