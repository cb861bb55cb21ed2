//! A NIXL that is loaded: which file, its functions, and how much it writes to its log.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, Functions};
use super::error::{LoadError, NixlError, Status};
use super::install::{Installation, Search};
use crate::elf::Elf;

/// The oldest release whose functions are these.
pub const VERSION_MIN: &str = "1.0";

/// What of Abseil's `SetMinLogLevel(LogSeverityAtLeast)` stays the same in every Abseil: between the two, the name of the release.
const SET_MIN_LOG_LEVEL: (&str, &str) = ("_ZN4absl", "14SetMinLogLevelENS0_18LogSeverityAtLeastE");
/// Where NIXL keeps Abseil's log, beside the C API.
const COMMON: &str = "libnixl_common.so";

/// How much NIXL writes to standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogLevel {
    /// Everything that `NIXL_LOG_LEVEL` allowed at the start.
    All,
    /// Warnings and errors, whatever was allowed at the start.
    Warnings,
}

/// A NIXL that is loaded, until the process ends.
pub struct Library {
    installation: Installation,
    pub(super) functions: Functions,
    set_min_log_level: Option<unsafe extern "C" fn(c_int)>,
}

impl Library {
    /// Finds a NIXL and loads it.
    ///
    /// # Errors
    /// That there is none, or why the first one that is there cannot be used.
    pub fn find(search: &Search) -> Result<Arc<Self>, LoadError> {
        Self::load(Installation::find(search)?)
    }

    /// Loads a NIXL.
    ///
    /// # Errors
    /// What the loader says.
    pub fn load(installation: Installation) -> Result<Arc<Self>, LoadError> {
        let path = installation.library();
        let handle = map(path).map_err(|dlerror| LoadError::Refused { path: path.into(), dlerror })?;
        let functions = Functions::load(|name| symbol(handle, name))
            .map_err(|missing| LoadError::MissingSymbols { path: path.into(), missing })?;
        let set_min_log_level = log_switch(path).and_then(|name| symbol(handle, &name)).map(|at| {
            // SAFETY: Abseil's function of this name takes an enumeration whose type is int, and returns nothing.
            unsafe { std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn(c_int)>(at) }
        });
        Ok(Arc::new(Self { installation, functions, set_min_log_level }))
    }

    /// What was loaded.
    #[must_use]
    pub const fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Changes how much NIXL writes to its log from now on; whether it can be changed. The C API has no way to: this is Abseil's
    /// own switch, where the library exports it, as wheels do.
    pub fn set_log_level(&self, level: LogLevel) -> bool {
        let Some(set) = self.set_min_log_level else { return false };
        let least = match level {
            LogLevel::All => 0,
            LogLevel::Warnings => 1,
        };
        // SAFETY: a severity that Abseil has; it stores it atomically.
        unsafe { set(least) };
        true
    }

    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), NixlError> {
        match code {
            abi::SUCCESS => Ok(()),
            code => Err(NixlError { call, status: Status::of(code) }),
        }
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({})", self.installation.library().display())
    }
}

/// The name of the switch for the log, as the file beside the C API has it.
pub(super) fn log_switch(capi: &Path) -> Option<String> {
    let elf = Elf::read(&capi.with_file_name(COMMON)).ok()?;
    let (before, after) = SET_MIN_LOG_LEVEL;
    // `log_internal` has one of nearly the same name.
    let is_it = |name: &str| name.starts_with(before) && name.ends_with(after) && !name.contains("internal");
    elf.exports.iter().map(|(name, _)| name).find(|name| is_it(name)).cloned()
}

fn symbol(handle: NonNull<c_void>, name: &str) -> Option<NonNull<c_void>> {
    let name = CString::new(name).ok()?;
    // SAFETY: the handle is open for good; a C string. What the library depends on is searched as well.
    NonNull::new(unsafe { libc::dlsym(handle.as_ptr(), name.as_ptr()) })
}

/// Maps a library, for good: backends start threads in it. The loader's words when it does not.
pub(super) fn map(path: &Path) -> Result<NonNull<c_void>, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: a C string. Local, so that its libibverbs and the like do not meet another's by name.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    NonNull::new(handle).ok_or_else(|| {
        // SAFETY: it takes nothing; the answer is this thread's.
        let said = unsafe { libc::dlerror() };
        // SAFETY: null or a string that stays until this thread's next call of the loader.
        unsafe { text(said) }.unwrap_or_else(|| "the loader gives no reason".into())
    })
}

/// A copy of a C string; none for null.
///
/// # Safety
/// Null, or a C string that nobody changes meanwhile.
pub(super) unsafe fn text(at: *const c_char) -> Option<String> {
    if at.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
}

/// Ends the process at once with this code, after Rust's standard output and error are flushed.
///
/// An ordinary exit runs destructors of libibverbs and libnl twice in a process that has loaded NIXL's wheel, and crashes (seen with
/// 1.4.0 and 1.5.1); what other code keeps buffered must be flushed by its owner.
pub fn leave(code: i32) -> ! {
    use std::io::Write as _;
    // Whoever is to read them may be gone: nothing is left to be said to.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: it takes a number and does not return; the kernel takes everything back that the process holds.
    unsafe { libc::_exit(code) }
}
