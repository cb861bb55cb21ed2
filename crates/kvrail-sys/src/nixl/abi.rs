//! The C API as NIXL 1.0 to 1.5 have it: types, numbers and functions, by hand.
//!
//! Source: `src/bindings/rust/wrapper.h` of NIXL, whose functions and structures used here are the same in 1.0.0, 1.1.0, 1.2.0, 1.3.0,
//! 1.4.0 and 1.5.1; the library has neither symbol versions nor a function that says its version.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::offset_of;
use std::ptr::NonNull;

/// A handle of the library's. All of them are pointers to structures that only it knows.
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 1;
/// `NIXL_CAPI_MEM_DRAM`
pub(super) const MEMORY_DRAM: c_int = 0;
pub(super) const OPERATION_READ: c_int = 0;
pub(super) const OPERATION_WRITE: c_int = 1;
pub(super) const SYNC_NONE: c_int = 0;
pub(super) const SYNC_RW: c_int = 2;

/// `nixl_capi_agent_config_t`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AgentConfig {
    pub(super) enable_prog_thread: bool,
    pub(super) enable_listen_thread: bool,
    pub(super) listen_port: c_int,
    pub(super) thread_sync: c_int,
    /// Ignored by every release so far.
    pub(super) num_workers: c_uint,
    pub(super) pthr_delay_us: u64,
    pub(super) lthr_delay_us: u64,
    pub(super) capture_telemetry: bool,
}

// As the C compiler lays it out on the 64-bit machines that wheels are made for.
const _: () = assert!(offset_of!(AgentConfig, listen_port) == 4);
const _: () = assert!(offset_of!(AgentConfig, thread_sync) == 8);
const _: () = assert!(offset_of!(AgentConfig, num_workers) == 12);
const _: () = assert!(offset_of!(AgentConfig, pthr_delay_us) == 16);
const _: () = assert!(offset_of!(AgentConfig, capture_telemetry) == 32);
const _: () = assert!(size_of::<AgentConfig>() == 40);

/// Declares the table of functions, each `nixl_capi_…` of its field's name that takes these and answers a status.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The functions. A null handle is answered with `INVALID_PARAM` by each of them, never followed.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            /// Looks all of them up; the names of those that are missing.
            pub(super) fn load(find: impl Fn(&str) -> Option<NonNull<c_void>>) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    let name = concat!("nixl_capi_", stringify!($name));
                    let $name = find(name);
                    if $name.is_none() {
                        missing.push(name);
                    }
                )*
                match ($($name,)*) {
                    ($(Some($name),)*) => Ok(Self {
                        $(
                            // SAFETY: NIXL's function of this name has the type of the field, in every release that has it.
                            $name: unsafe {
                                std::mem::transmute::<
                                    NonNull<c_void>,
                                    unsafe extern "C" fn($($argument),*) -> c_int,
                                >($name)
                            },
                        )*
                    }),
                    _ => Err(missing),
                }
            }

            /// All names, for a look into a file that is not loaded.
            pub(super) const NAMES: &'static [&'static str] = &[$(concat!("nixl_capi_", stringify!($name)),)*];
        }
    };
}

functions! {
    create_configured_agent(*const c_char, *const AgentConfig, *mut Handle);
    destroy_agent(Handle);
    get_local_md(Handle, *mut *mut c_void, *mut usize);
    load_remote_md(Handle, *const c_void, usize, *mut *mut c_char);
    invalidate_remote_md(Handle, *const c_char);
    get_available_plugins(Handle, *mut Handle);
    string_list_size(Handle, *mut usize);
    string_list_get(Handle, usize, *mut *const c_char);
    destroy_string_list(Handle);
    get_plugin_params(Handle, *const c_char, *mut Handle, *mut Handle);
    get_backend_params(Handle, Handle, *mut Handle, *mut Handle);
    destroy_mem_list(Handle);
    mem_list_size(Handle, *mut usize);
    mem_list_get(Handle, usize, *mut c_int);
    mem_type_to_string(c_int, *mut *const c_char);
    create_params(*mut Handle);
    params_add(Handle, *const c_char, *const c_char);
    params_is_empty(Handle, *mut bool);
    params_create_iterator(Handle, *mut Handle);
    params_iterator_next(Handle, *mut *const c_char, *mut *const c_char, *mut bool);
    params_destroy_iterator(Handle);
    destroy_params(Handle);
    create_backend(Handle, *const c_char, Handle, *mut Handle);
    destroy_backend(Handle);
    create_opt_args(*mut Handle);
    opt_args_add_backend(Handle, Handle);
    opt_args_set_notif_msg(Handle, *const c_void, usize);
    opt_args_set_has_notif(Handle, bool);
    destroy_opt_args(Handle);
    create_reg_dlist(c_int, *mut Handle);
    reg_dlist_add_desc(Handle, usize, usize, u64, *const c_void, usize);
    destroy_reg_dlist(Handle);
    register_mem(Handle, Handle, Handle);
    deregister_mem(Handle, Handle, Handle);
    create_xfer_dlist(c_int, *mut Handle);
    xfer_dlist_add_desc(Handle, usize, usize, u64);
    destroy_xfer_dlist(Handle);
    agent_make_connection(Handle, *const c_char, Handle);
    prep_xfer_dlist(Handle, *const c_char, Handle, *mut Handle, Handle);
    release_xfer_dlist_handle(Handle, Handle);
    make_xfer_req(Handle, c_int, Handle, *const c_int, usize, Handle, *const c_int, usize, *mut Handle, Handle);
    create_xfer_req(Handle, c_int, Handle, Handle, *const c_char, *mut Handle, Handle);
    post_xfer_req(Handle, Handle, Handle);
    get_xfer_status(Handle, Handle);
    release_xfer_req(Handle, Handle);
    destroy_xfer_req(Handle);
    create_notif_map(*mut Handle);
    get_notifs(Handle, Handle, Handle);
    notif_map_size(Handle, *mut usize);
    notif_map_get_agent_at(Handle, usize, *mut *const c_char);
    notif_map_get_notifs_size(Handle, *const c_char, *mut usize);
    notif_map_get_notif(Handle, *const c_char, usize, *mut *const c_void, *mut usize);
    notif_map_clear(Handle);
    destroy_notif_map(Handle);
}
