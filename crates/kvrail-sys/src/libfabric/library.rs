//! A libfabric that is loaded: which file, which release, and the functions that have to be looked up.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, fi_fabric_attr, fi_info, fi_param, fid_fabric};
use super::error::{FabricError, LoadError};
use super::file::{File, file_version};
use super::release::Release;
use super::search::{Origin, Place, Search, is_loaders};
use crate::dl;
pub(super) use crate::dl::text;

/// The oldest release that is used: Debian 12's, the oldest whose headers and library the tests are run with. (Its symbols alone would
/// do since 1.9; `efa`'s reads and writes by the device, and the options that say whether they are emulated, need 1.18.)
pub const RELEASE_MIN: (u32, u32) = (1, 17);

/// Highest `FABRIC_1.n` that such a release defines, so that an older one is refused before it is mapped.
pub const SYMBOLS_MIN: u32 = 6;

/// The version of `fi_getinfo`, `fi_freeinfo` and `fi_dupinfo` that is used: the last one whose `fi_info` every supported release has.
/// Newer libfabrics keep it and convert.
pub const SYMBOLS_USED: &str = "FABRIC_1.3";

/// The newest interface that is asked for: the structures in [`abi`] have every field that libfabric reads or writes under it.
pub const API_NEWEST: u32 = abi::fi_version_of(2, 6);

type GetInfo =
    unsafe extern "C" fn(u32, *const c_char, *const c_char, u64, *const fi_info, *mut *mut fi_info) -> c_int;

/// The functions that are not in tables.
struct Functions {
    getinfo: GetInfo,
    freeinfo: unsafe extern "C" fn(*mut fi_info),
    dupinfo: unsafe extern "C" fn(*const fi_info) -> *mut fi_info,
    fabric: unsafe extern "C" fn(*mut fi_fabric_attr, *mut *mut fid_fabric, *mut c_void) -> c_int,
    version: unsafe extern "C" fn() -> u32,
    strerror: unsafe extern "C" fn(c_int) -> *const c_char,
    tostr: unsafe extern "C" fn(*const c_void, c_int) -> *mut c_char,
    getparams: unsafe extern "C" fn(*mut *mut fi_param, *mut c_int) -> c_int,
    freeparams: unsafe extern "C" fn(*mut fi_param),
}

/// A libfabric that is loaded, until the process ends.
pub struct Library {
    path: PathBuf,
    origin: Origin,
    file_version: Option<String>,
    release: Option<Release>,
    symbols: u32,
    version: u32,
    passed_over: Vec<LoadError>,
    functions: Functions,
}

/// A parameter of libfabric or of one of its providers.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Parameter {
    /// The environment variable that sets it, as in `FI_TCP_IFACE`.
    pub name: String,
    /// What it does.
    pub help: String,
    /// Its value, where somebody has set it.
    pub value: Option<String>,
}

impl Library {
    /// Loads a libfabric.
    ///
    /// Of the places of a search without a named path the first that can be used is taken; those before it are in
    /// [`passed_over`](Self::passed_over), and logged.
    ///
    /// # Errors
    /// Why the named one cannot be used; else why the first that is there cannot, or that there is none.
    pub fn load(search: &Search) -> Result<Arc<Self>, LoadError> {
        let mut passed_over = Vec::new();
        for place in search.places() {
            match Self::open(&place) {
                Ok(mut library) => {
                    for error in &passed_over {
                        log::warn!("passed over: {error}");
                    }
                    library.passed_over = passed_over;
                    return Ok(Arc::new(library));
                }
                Err(error) if search.named().is_some() => return Err(error),
                // The loader not having one is ordinary.
                Err(LoadError::NotFound { .. }) => {}
                Err(error) => passed_over.push(error),
            }
        }
        Err(passed_over.into_iter().next().unwrap_or_else(|| LoadError::NotFound { looked: search.looked() }))
    }

    fn open(place: &Place) -> Result<Self, LoadError> {
        let seen = if is_loaders(&place.library) {
            None
        } else if place.library.is_file() {
            // Before it is mapped: another machine's or an old one shall not run its constructors here.
            Some(File::inspect(&place.library)?).map(|file| file.check(None).map(|()| file)).transpose()?
        } else {
            return Err(LoadError::NotThere { path: place.library.clone(), origin: place.origin });
        };
        let handle = map(&place.library)?;
        let path = mapped_path(handle).unwrap_or_else(|| place.library.clone());
        let file = match seen {
            Some(file) if file.path == path => file,
            _ => File::inspect(&path)?,
        };
        file.check(None)?;
        let functions = Functions::load(handle, &file)?;
        // SAFETY: it takes nothing and returns a number.
        let version = unsafe { (functions.version)() };
        file.check(Some(version))?;
        let File { path, symbols, release, .. } = file;
        Ok(Self {
            file_version: file_version(&path),
            path,
            origin: place.origin,
            release,
            symbols,
            version,
            passed_over: Vec::new(),
            functions,
        })
    }

    /// The file that is mapped, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who led to it.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// The version in the file's name, as in `1.31.0` of `libfabric.so.1.31.0`; none when the name has none, as in wheels.
    #[must_use]
    pub fn file_version(&self) -> Option<&str> {
        self.file_version.as_deref()
    }

    /// The release that the file is, from its name or its symbols.
    #[must_use]
    pub const fn release(&self) -> Option<Release> {
        self.release
    }

    /// Highest `n` of the `FABRIC_1.n` that the file defines.
    #[must_use]
    pub const fn symbols(&self) -> u32 {
        self.symbols
    }

    /// What `fi_version` says, `(major, minor)`: the release that it was built as.
    #[must_use]
    pub const fn version(&self) -> (u32, u32) {
        (self.version >> 16, self.version & 0xffff)
    }

    /// The interface to ask for in `fi_getinfo`: the newest that both sides know.
    #[must_use]
    pub const fn api_version(&self) -> u32 {
        if self.version < API_NEWEST { self.version } else { API_NEWEST }
    }

    /// Why those that came first in the search are not used.
    #[must_use]
    pub fn passed_over(&self) -> &[LoadError] {
        &self.passed_over
    }

    /// libfabric's words for a code, positive or negated.
    #[must_use]
    pub fn strerror(&self, code: c_int) -> String {
        // SAFETY: it takes any number, and returns a string that is never freed.
        let at = unsafe { (self.functions.strerror)(code.saturating_abs()) };
        // SAFETY: the string is static.
        unsafe { text(at) }.unwrap_or_else(|| "unknown error".into())
    }

    /// An error of a call, from its negative result.
    #[must_use]
    pub fn error(&self, call: &'static str, result: isize) -> FabricError {
        let code = c_int::try_from(result.unsigned_abs()).unwrap_or(c_int::MAX);
        FabricError { call, code, text: self.strerror(code) }
    }

    /// A result of a call that is 0 or a negated code.
    pub(super) fn check(&self, call: &'static str, result: c_int) -> Result<(), FabricError> {
        if result == 0 { Ok(()) } else { Err(self.error(call, result as isize)) }
    }

    /// The parameters of libfabric and its providers, with the values that the environment gives them.
    ///
    /// # Errors
    /// When libfabric has no memory for them.
    pub fn parameters(&self) -> Result<Vec<Parameter>, FabricError> {
        let (mut params, mut count) = (std::ptr::null_mut(), 0);
        // SAFETY: both are written to; the list is ours until it is freed below.
        let result = unsafe { (self.functions.getparams)(&mut params, &mut count) };
        self.check("fi_getparams", result)?;
        let mut all = Vec::new();
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the list has `count` entries.
            let at = unsafe { params.add(index) };
            // SAFETY: an entry of the list, which nobody changes.
            let param = unsafe { &*at };
            // SAFETY: null or a string of the list.
            let (Some(name), help) = (unsafe { text(param.name) }, param.help_string) else { continue };
            // SAFETY: null or a string of the list.
            let help = unsafe { text(help) }.unwrap_or_default();
            // SAFETY: null or a string of the list.
            let value = unsafe { text(param.value) };
            all.push(Parameter { name, help, value });
        }
        if !params.is_null() {
            // SAFETY: from fi_getparams, freed once, and everything is copied.
            unsafe { (self.functions.freeparams)(params) };
        }
        Ok(all)
    }

    /// A value in libfabric's words: flags, modes, a whole `fi_info`.
    ///
    /// # Safety
    /// `value` points to what `kind`, one of `FI_TYPE_…`, prints.
    #[must_use]
    pub unsafe fn tostr(&self, value: *const c_void, kind: u32) -> String {
        // SAFETY: the caller's promise. The answer is in a buffer of this thread until the next call.
        let at = unsafe { (self.functions.tostr)(value, kind as c_int) };
        // SAFETY: null or a string that stays until this thread's next call.
        unsafe { text(at) }.unwrap_or_default()
    }

    /// `fi_getinfo` itself.
    ///
    /// # Safety
    /// Strings and hints are null or valid; the answer is freed with [`free_info`](Self::free_info).
    pub(super) unsafe fn get_info(
        &self,
        node: Option<&CStr>,
        service: Option<&CStr>,
        flags: u64,
        hints: *const fi_info,
    ) -> Result<*mut fi_info, FabricError> {
        let mut found = std::ptr::null_mut();
        let text = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the caller's promise; the version is one that this libfabric has.
        let result = unsafe {
            (self.functions.getinfo)(self.api_version(), text(node), text(service), flags, hints, &mut found)
        };
        self.check("fi_getinfo", result).map(|()| found)
    }

    /// A copy of an entry without those behind it; with null an empty one.
    ///
    /// # Safety
    /// Null or valid, and allocated by this libfabric.
    pub(super) unsafe fn dup_info(&self, info: *const fi_info) -> Option<NonNull<fi_info>> {
        // SAFETY: the caller's promise.
        NonNull::new(unsafe { (self.functions.dupinfo)(info) })
    }

    /// Frees an entry and those behind it.
    ///
    /// # Safety
    /// Null or valid, allocated by this libfabric, and not used again.
    pub(super) unsafe fn free_info(&self, info: *mut fi_info) {
        // SAFETY: the caller's promise.
        unsafe { (self.functions.freeinfo)(info) }
    }

    /// Opens a network.
    ///
    /// # Safety
    /// The attributes are of an entry of this libfabric.
    pub(super) unsafe fn open_fabric(
        &self,
        attr: *mut fi_fabric_attr,
    ) -> Result<NonNull<fid_fabric>, FabricError> {
        let mut fabric = std::ptr::null_mut();
        // SAFETY: the caller's promise.
        let result = unsafe { (self.functions.fabric)(attr, &mut fabric, std::ptr::null_mut()) };
        self.check("fi_fabric", result)?;
        NonNull::new(fabric).ok_or_else(|| self.error("fi_fabric", -(abi::FI_EOTHER as isize)))
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({self})")
    }
}

impl fmt::Display for Library {
    /// As in `/usr/lib/libfabric.so.1.20.0 (release 1.17, file 1.20.0, symbols up to FABRIC_1.6, by the loader)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.version();
        write!(f, "{} (release {major}.{minor}", self.path.display())?;
        if let Some(version) = &self.file_version {
            write!(f, ", file {version}")?;
        }
        write!(f, ", symbols up to FABRIC_1.{}, by {})", self.symbols, self.origin)
    }
}

impl Functions {
    #[allow(clippy::missing_transmute_annotations, reason = "each field has its type in the structure")]
    fn load(handle: NonNull<c_void>, file: &File) -> Result<Self, LoadError> {
        /// Looks one up and gives it its type, which is that of the field it is for.
        macro_rules! function {
            ($name:literal, $version:expr) => {{
                let at = symbol(handle, file, $name, $version)?;
                // SAFETY: libfabric's function of this name and version has the type of the field.
                unsafe { std::mem::transmute::<NonNull<c_void>, _>(at) }
            }};
        }
        Ok(Self {
            getinfo: function!("fi_getinfo", SYMBOLS_USED),
            freeinfo: function!("fi_freeinfo", SYMBOLS_USED),
            dupinfo: function!("fi_dupinfo", SYMBOLS_USED),
            fabric: function!("fi_fabric", "FABRIC_1.1"),
            version: function!("fi_version", "FABRIC_1.0"),
            strerror: function!("fi_strerror", "FABRIC_1.0"),
            tostr: function!("fi_tostr", "FABRIC_1.0"),
            getparams: function!("fi_getparams", "FABRIC_1.0"),
            freeparams: function!("fi_freeparams", "FABRIC_1.0"),
        })
    }
}

fn symbol(
    handle: NonNull<c_void>,
    file: &File,
    symbol: &'static str,
    version: &'static str,
) -> Result<NonNull<c_void>, LoadError> {
    dl::symbol(handle, symbol, Some(version)).ok_or_else(|| LoadError::MissingSymbol {
        path: file.path.clone(),
        symbol,
        version,
        found: file.symbols_found(),
    })
}

/// Maps a library.
fn map(library: &Path) -> Result<NonNull<c_void>, LoadError> {
    dl::map(library).map_err(|said| {
        if is_loaders(library) && dl::is_absence(library, &said) {
            return LoadError::NotFound { looked: vec![said] };
        }
        LoadError::Refused { path: library.into(), dlerror: said }
    })
}

/// The file that was mapped, links resolved.
fn mapped_path(handle: NonNull<c_void>) -> Option<PathBuf> {
    dl::file_of(dl::symbol(handle, "fi_version", Some("FABRIC_1.0"))?)
}
