//! A UCP that is loaded: which file, which release, and its functions.

use std::ffi::{c_char, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{
    ucp_address, ucp_am_handler_param_t, ucp_config, ucp_context, ucp_context_attr_t, ucp_ep, ucp_ep_attr_t,
    ucp_ep_params_t, ucp_mem, ucp_mem_map_params_t, ucp_params_t, ucp_request_attr_t, ucp_request_param_t,
    ucp_rkey, ucp_worker, ucp_worker_attr_t, ucp_worker_params_t, ucs_status_ptr_t, ucs_status_t,
};
use super::error::LoadError;
use super::file;
use super::search::{Origin, Place, Search, is_loaders};
use crate::dl;

/// The oldest release that is used: the oldest whose headers the layouts are compared with.
pub const RELEASE_MIN: (u32, u32) = (1, 12);

/// Declares the table of functions, the list of their names, and how they are looked up, in one.
macro_rules! functions {
    ($( $(#[$note:meta])* $name:ident: fn($($argument:ty),*) $(-> $result:ty)?; )*) => {
        /// UCP's functions.
        pub(super) struct Functions {
            $( $(#[$note])* pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?, )*
        }

        /// Their names: what a library must have.
        pub(super) const FUNCTIONS: &[&str] = &[$(stringify!($name)),*];

        impl Functions {
            fn load(handle: NonNull<c_void>, path: &Path) -> Result<Self, LoadError> {
                Ok(Self {
                    $( $name: {
                        let at = dl::symbol(handle, stringify!($name), None).ok_or_else(|| {
                            LoadError::MissingSymbols { path: path.into(), symbols: vec![stringify!($name)] }
                        })?;
                        // SAFETY: UCP's function of this name has this type.
                        unsafe {
                            std::mem::transmute::<
                                NonNull<c_void>,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(at)
                        }
                    }, )*
                })
            }
        }
    };
}

functions! {
    ucp_get_version: fn(*mut c_uint, *mut c_uint, *mut c_uint);
    ucp_get_version_string: fn() -> *const c_char;
    ucp_config_read: fn(*const c_char, *const c_char, *mut *mut ucp_config) -> ucs_status_t;
    ucp_config_modify: fn(*mut ucp_config, *const c_char, *const c_char) -> ucs_status_t;
    ucp_config_release: fn(*mut ucp_config);
    ucp_init_version: fn(c_uint, c_uint, *const ucp_params_t, *const ucp_config, *mut *mut ucp_context) -> ucs_status_t;
    ucp_cleanup: fn(*mut ucp_context);
    ucp_context_query: fn(*mut ucp_context, *mut ucp_context_attr_t) -> ucs_status_t;
    ucp_mem_map: fn(*mut ucp_context, *const ucp_mem_map_params_t, *mut *mut ucp_mem) -> ucs_status_t;
    ucp_mem_unmap: fn(*mut ucp_context, *mut ucp_mem) -> ucs_status_t;
    ucp_rkey_pack: fn(*mut ucp_context, *mut ucp_mem, *mut *mut c_void, *mut usize) -> ucs_status_t;
    ucp_rkey_buffer_release: fn(*mut c_void);
    ucp_worker_create: fn(*mut ucp_context, *const ucp_worker_params_t, *mut *mut ucp_worker) -> ucs_status_t;
    ucp_worker_destroy: fn(*mut ucp_worker);
    ucp_worker_query: fn(*mut ucp_worker, *mut ucp_worker_attr_t) -> ucs_status_t;
    ucp_worker_release_address: fn(*mut ucp_worker, *mut ucp_address);
    ucp_worker_progress: fn(*mut ucp_worker) -> c_uint;
    ucp_worker_set_am_recv_handler: fn(*mut ucp_worker, *const ucp_am_handler_param_t) -> ucs_status_t;
    ucp_ep_create: fn(*mut ucp_worker, *const ucp_ep_params_t, *mut *mut ucp_ep) -> ucs_status_t;
    ucp_ep_close_nbx: fn(*mut ucp_ep, *const ucp_request_param_t) -> ucs_status_ptr_t;
    ucp_ep_flush_nbx: fn(*mut ucp_ep, *const ucp_request_param_t) -> ucs_status_ptr_t;
    ucp_ep_query: fn(*mut ucp_ep, *mut ucp_ep_attr_t) -> ucs_status_t;
    ucp_ep_print_info: fn(*mut ucp_ep, *mut libc::FILE);
    ucp_ep_rkey_unpack: fn(*mut ucp_ep, *const c_void, *mut *mut ucp_rkey) -> ucs_status_t;
    ucp_rkey_destroy: fn(*mut ucp_rkey);
    ucp_put_nbx: fn(*mut ucp_ep, *const c_void, usize, u64, *mut ucp_rkey, *const ucp_request_param_t) -> ucs_status_ptr_t;
    ucp_get_nbx: fn(*mut ucp_ep, *mut c_void, usize, u64, *mut ucp_rkey, *const ucp_request_param_t) -> ucs_status_ptr_t;
    ucp_am_send_nbx: fn(*mut ucp_ep, c_uint, *const c_void, usize, *const c_void, usize, *const ucp_request_param_t) -> ucs_status_ptr_t;
    ucp_request_query: fn(*mut c_void, *mut ucp_request_attr_t) -> ucs_status_t;
    ucp_request_check_status: fn(*mut c_void) -> ucs_status_t;
    ucp_request_free: fn(*mut c_void);
}

/// A UCP that is loaded, until the process ends.
pub struct Library {
    path: PathBuf,
    origin: Origin,
    release: (u32, u32, u32),
    version: String,
    passed_over: Vec<LoadError>,
    functions: Functions,
}

impl Library {
    /// Loads a UCP.
    ///
    /// Of the places of a search without a named path the first that can be used is taken; those before it are in
    /// [`passed_over`](Self::passed_over), and logged. A process shall load one only: two copies of UCX in one process are known to
    /// crash it.
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
            Some(file::inspect(&place.library)?)
        } else {
            return Err(LoadError::NotThere { path: place.library.clone(), origin: place.origin });
        };
        let handle = dl::map(&place.library).map_err(|said| {
            if is_loaders(&place.library) && dl::is_absence(&place.library, &said) {
                return LoadError::NotFound { looked: vec![said] };
            }
            LoadError::Refused { path: place.library.clone(), dlerror: said }
        })?;
        let mapped = dl::symbol(handle, "ucp_init_version", None).and_then(dl::file_of);
        let path = mapped.unwrap_or_else(|| place.library.clone());
        if seen.as_ref() != Some(&path) {
            file::inspect(&path)?;
        }
        let functions = Functions::load(handle, &path)?;
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: three numbers are written.
        unsafe { (functions.ucp_get_version)(&mut major, &mut minor, &mut patch) };
        // SAFETY: it takes nothing, and returns a string that is never freed.
        let at = unsafe { (functions.ucp_get_version_string)() };
        // SAFETY: null or a static string.
        let version = unsafe { dl::text(at) }.unwrap_or_else(|| format!("{major}.{minor}.{patch}"));
        if (major, minor) < RELEASE_MIN {
            return Err(LoadError::TooOld { path, found: version });
        }
        let release = (major, minor, patch);
        Ok(Self { path, origin: place.origin, release, version, passed_over: Vec::new(), functions })
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

    /// Its release: `(1, 13, 1)`.
    #[must_use]
    pub const fn release(&self) -> (u32, u32, u32) {
        self.release
    }

    /// Its release in its own words: `1.13.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Why those that came first in the search are not used.
    #[must_use]
    pub fn passed_over(&self) -> &[LoadError] {
        &self.passed_over
    }

    pub(super) const fn functions(&self) -> &Functions {
        &self.functions
    }

    /// Whether its release is this one or a later one.
    pub(super) fn is_since(&self, major: u32, minor: u32) -> bool {
        (self.release.0, self.release.1) >= (major, minor)
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({self})")
    }
}

impl fmt::Display for Library {
    /// As in `/usr/lib/x86_64-linux-gnu/libucp.so.0.0.0 (release 1.13.1, by the loader)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (release {}, by {})", self.path.display(), self.version, self.origin)
    }
}
