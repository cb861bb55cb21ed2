//! A context: UCX's resources of this process, and memory that is registered with them.

use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::{
    self, UCP_ATTR_FIELD_THREAD_MODE, UCP_MEM_MAP_PARAM_FIELD_ADDRESS, UCP_MEM_MAP_PARAM_FIELD_LENGTH,
    UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE, UCP_PARAM_FIELD_FEATURES, UCP_PARAM_FIELD_MT_WORKERS_SHARED,
    UCS_MEMORY_TYPE_HOST, UCS_THREAD_MODE_SINGLE, ucp_config, ucp_context, ucp_context_attr_t, ucp_mem,
    ucp_mem_map_params_t, ucp_params_t,
};
use super::error::UcpError;
use super::library::Library;
use super::status::Status;

/// The interface that is asked for: what the oldest supported release has. Younger fields are used where the release has them.
const API: (u32, u32) = super::library::RELEASE_MIN;

/// A context, shared by those that stand on it. Any thread may use it.
#[derive(Clone)]
pub struct Context {
    handle: Arc<Handle>,
}

struct Handle {
    context: NonNull<ucp_context>,
    library: Arc<Library>,
}

// SAFETY: `Context::open` asks for a context whose workers belong to different threads, and refuses one that UCX reports as
// single-threaded; UCX then locks what its workers share.
unsafe impl Send for Handle {}
// SAFETY: the same.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the context is open, and everything that stood on it held a share of this handle.
        unsafe { (self.library.functions().ucp_cleanup)(self.context.as_ptr()) }
    }
}

/// Settings on top of those that the environment's `UCX_…` variables make, freed when it is dropped.
struct Settings<'a> {
    config: NonNull<ucp_config>,
    library: &'a Library,
}

impl<'a> Settings<'a> {
    fn read(library: &'a Library) -> Result<Self, UcpError> {
        let mut config = ptr::null_mut();
        // SAFETY: no prefix beyond `UCX_`, no file of its own; the result is written to `config`.
        let result = unsafe { (library.functions().ucp_config_read)(ptr::null(), ptr::null(), &mut config) };
        UcpError::check("ucp_config_read", result)?;
        let missing = UcpError { call: "ucp_config_read", status: Status::INVALID_PARAM };
        NonNull::new(config).map(|config| Self { config, library }).ok_or(missing)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), UcpError> {
        let wrong = |_| UcpError { call: "ucp_config_modify", status: Status::INVALID_PARAM };
        let name = CString::new(name).map_err(wrong)?;
        let value = CString::new(value).map_err(wrong)?;
        let modify = self.library.functions().ucp_config_modify;
        // SAFETY: the settings are alive; both are C strings, which are copied.
        let result = unsafe { modify(self.config.as_ptr(), name.as_ptr(), value.as_ptr()) };
        UcpError::check("ucp_config_modify", result)
    }
}

impl Drop for Settings<'_> {
    fn drop(&mut self) {
        // SAFETY: from ucp_config_read, released once.
        unsafe { (self.library.functions().ucp_config_release)(self.config.as_ptr()) }
    }
}

impl Context {
    /// Opens a context for these features (`UCP_FEATURE_…`), with settings (`TLS`, `NET_DEVICES`…, without `UCX_`) that go before the
    /// environment's.
    ///
    /// # Errors
    /// UCX's: `NO_DEVICE` where no transport is left; `UNSUPPORTED` from `ucp_context_query` where UCX was built without
    /// `--enable-mt`.
    pub fn open(library: &Arc<Library>, features: u64, settings: &[(&str, &str)]) -> Result<Self, UcpError> {
        let mut config = Settings::read(library)?;
        for (name, value) in settings {
            config.set(name, value)?;
        }
        let params = ucp_params_t {
            field_mask: UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
            features,
            mt_workers_shared: 1,
            ..ucp_params_t::default()
        };
        let mut context = ptr::null_mut();
        let init = library.functions().ucp_init_version;
        // SAFETY: parameters and settings are alive; the result is written to `context`.
        let result = unsafe { init(API.0, API.1, &params, config.config.as_ptr(), &mut context) };
        UcpError::check("ucp_init", result)?;
        let missing = UcpError { call: "ucp_init", status: Status::INVALID_PARAM };
        let context = NonNull::new(context).ok_or(missing)?;
        let handle = Handle { context, library: Arc::clone(library) };

        let mut attr =
            ucp_context_attr_t { field_mask: UCP_ATTR_FIELD_THREAD_MODE, ..ucp_context_attr_t::default() };
        // SAFETY: the context is open; the answer is written to `attr`.
        let result = unsafe { (library.functions().ucp_context_query)(context.as_ptr(), &mut attr) };
        UcpError::check("ucp_context_query", result)?;
        if attr.thread_mode == UCS_THREAD_MODE_SINGLE {
            let call = "ucp_context_query: this UCX serves one thread only";
            return Err(UcpError { call, status: Status::UNSUPPORTED });
        }
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Registers memory.
    ///
    /// # Safety
    /// The memory is there until the registration and everything made with it is dropped, and whoever else reads or writes it knows that
    /// peers do.
    ///
    /// # Errors
    /// UCX's: `NO_MEMORY` is most often the memlock limit.
    pub unsafe fn map(&self, address: *mut c_void, len: usize) -> Result<MappedMemory, UcpError> {
        let params = ucp_mem_map_params_t {
            field_mask: UCP_MEM_MAP_PARAM_FIELD_ADDRESS
                | UCP_MEM_MAP_PARAM_FIELD_LENGTH
                | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
            address,
            length: len,
            memory_type: UCS_MEMORY_TYPE_HOST,
            ..ucp_mem_map_params_t::default()
        };
        let mut memory = ptr::null_mut();
        // SAFETY: the context is open; the memory is the caller's promise; the result is written to `memory`.
        let result = unsafe { (self.library().functions().ucp_mem_map)(self.as_ptr(), &params, &mut memory) };
        UcpError::check("ucp_mem_map", result)?;
        let missing = UcpError { call: "ucp_mem_map", status: Status::INVALID_PARAM };
        let memory = NonNull::new(memory).ok_or(missing)?;
        Ok(MappedMemory { handle: Arc::new(Mapped { memory, context: self.clone() }) })
    }

    /// Whose it is.
    #[must_use]
    pub fn library(&self) -> &Arc<Library> {
        &self.handle.library
    }

    pub(super) fn as_ptr(&self) -> *mut ucp_context {
        self.handle.context.as_ptr()
    }
}

/// Memory that is registered, until the last share of it is dropped.
#[derive(Clone)]
pub struct MappedMemory {
    handle: Arc<Mapped>,
}

/// Drop order: the registration, then the context's share.
struct Mapped {
    memory: NonNull<ucp_mem>,
    context: Context,
}

// SAFETY: the handle is only given to calls that UCX locks in a context of several threads.
unsafe impl Send for Mapped {}
// SAFETY: the same.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        let unmap = self.context.library().functions().ucp_mem_unmap;
        // SAFETY: the context is open, and the registration of it; whatever uses it holds a share of this.
        let result = unsafe { unmap(self.context.as_ptr(), self.memory.as_ptr()) };
        if let Err(status) = Status::check(result) {
            log::error!("ucx: cannot end a registration: {status}");
        }
    }
}

impl MappedMemory {
    /// The key that peers need, packed: bytes that only UCX understands.
    ///
    /// # Errors
    /// UCX's.
    pub fn packed_key(&self) -> Result<Vec<u8>, UcpError> {
        let context = &self.handle.context;
        let functions = context.library().functions();
        let (mut buffer, mut len) = (ptr::null_mut(), 0);
        // SAFETY: the context and its registration are open; buffer and length are written.
        let result =
            unsafe { (functions.ucp_rkey_pack)(context.as_ptr(), self.as_ptr(), &mut buffer, &mut len) };
        UcpError::check("ucp_rkey_pack", result)?;
        // SAFETY: UCX gave the buffer, which is as long as it says and which nobody changes.
        let key = unsafe { abi::copied(buffer.cast(), len) };
        // SAFETY: from ucp_rkey_pack, released once, and copied.
        unsafe { (functions.ucp_rkey_buffer_release)(buffer) };
        Ok(key)
    }

    pub(super) fn as_ptr(&self) -> *mut ucp_mem {
        self.handle.memory.as_ptr()
    }
}
