//! The library and its functions.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use softefa_verbs::ffi::*;

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions that are used. They stay: the library is never unloaded.
        pub(crate) struct Library {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Library {
            /// Loads `libibverbs.so.1` as a program that was linked with it would.
            ///
            /// # Errors
            /// When there is none or a function is missing; the loader's words.
            pub(crate) fn load() -> Result<&'static Self, String> {
                // SAFETY: a constant, terminated name; the library's initialisers are trusted as those of any library.
                let handle = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW) };
                if handle.is_null() {
                    return Err(last_error());
                }
                Ok(Box::leak(Box::new(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        let symbol = symbol(handle, name)?;
                        // SAFETY: the function of this name has this signature, which is ABI.
                        unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(symbol) }
                    },)*
                })))
            }
        }
    };
}

functions! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
    ibv_free_device_list: fn(*mut *mut ibv_device);
    ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context;
    ibv_close_device: fn(*mut ibv_context) -> c_int;
    ibv_query_gid: fn(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
    ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
    ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
    ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
    ibv_create_ah: fn(*mut ibv_pd, *mut ibv_ah_attr) -> *mut ibv_ah;
    ibv_destroy_ah: fn(*mut ibv_ah) -> c_int;
    ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
    ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
    ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut ibv_cq, c_uint);
    ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
    ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut ibv_qp) -> c_int;
    ibv_qp_to_qp_ex: fn(*mut ibv_qp) -> *mut ibv_qp_ex;
    ibv_get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
    ibv_ack_async_event: fn(*mut ibv_async_event);
    efadv_create_cq: fn(*mut ibv_context, *mut ibv_cq_init_attr_ex, *const efadv_cq_init_attr, u32) -> *mut ibv_cq_ex;
    efadv_cq_from_ibv_cq_ex: fn(*mut ibv_cq_ex) -> *mut efadv_cq;
    efadv_create_qp_ex: fn(*mut ibv_context, *mut ibv_qp_init_attr_ex, *const efadv_qp_init_attr, u32) -> *mut ibv_qp;
}

fn symbol(handle: *mut c_void, name: &'static str) -> Result<*mut c_void, String> {
    // SAFETY: the handle is open, the name terminated.
    let symbol = unsafe { libc::dlsym(handle, name.as_ptr().cast::<c_char>()) };
    if symbol.is_null() { Err(last_error()) } else { Ok(symbol) }
}

fn last_error() -> String {
    // SAFETY: returns null or a terminated string that stays until the next call of this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader says no reason".into();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
