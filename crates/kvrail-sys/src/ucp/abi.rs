//! UCP's binary interface, by hand from the facts of its headers: names, order and width of fields, values.
//!
//! UCP's structures say in a mask (`field_mask`, `op_attr_mask`) which of their fields are meant, and only grow at their ends. So those here
//! carry every field up to release 1.22, begin as zeros, and a field is named in the mask only where the release that is loaded has it:
//!
//! | Field | Since |
//! |---|---|
//! | `ucp_request_param_t::memh`, `ucp_ep_params_t::local_sockaddr` | 1.13 |
//! | `ucp_ep_attr_t::transports` | 1.14 |
//! | `ucp_ep_attr_t::user_data` | 1.18 |
//! | `ucp_mem_map_params_t::exported_memh_buffer` | 1.14 |
//! | `ucp_params_t::node_local_id`, `ucp_context_attr_t::device_counter_size` | 1.20 |
//! | `ucp_request_param_t::remote_datatype`, `remote`, `remote_count` | 1.22 |
//!
//! `ucs_status_t` is packed to one byte. `tests/ucp_layout.rs` compares every size, offset and value with installed headers. Names, and what
//! the fields mean, are the headers'.
#![allow(missing_docs, non_camel_case_types)]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A status: 0, `UCS_INPROGRESS`, or a negative `UCS_ERR_…`.
pub type ucs_status_t = i8;
/// Null = done, `(void *)status` = refused, anything else = a request in flight.
pub type ucs_status_ptr_t = *mut c_void;
pub type ucp_datatype_t = u64;
pub type ucs_memory_type_t = c_uint;
pub type ucs_thread_mode_t = c_uint;
pub type ucp_err_handling_mode_t = c_uint;
pub type ucp_send_nbx_callback_t =
    unsafe extern "C" fn(request: *mut c_void, status: ucs_status_t, user_data: *mut c_void);
pub type ucp_err_handler_cb_t = unsafe extern "C" fn(arg: *mut c_void, ep: *mut ucp_ep, status: ucs_status_t);
pub type ucp_am_recv_callback_t = unsafe extern "C" fn(
    arg: *mut c_void,
    header: *const c_void,
    header_length: usize,
    data: *mut c_void,
    length: usize,
    param: *const c_void,
) -> ucs_status_t;

/// Objects that only UCP sees inside of.
macro_rules! opaque {
    ($($name:ident),*) => {$(
        #[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
        }
    )*};
}

opaque!(ucp_context, ucp_config, ucp_worker, ucp_address, ucp_ep, ucp_mem, ucp_rkey);

/// A structure that begins as zeros: what its mask does not name is not read.
macro_rules! zeroed {
    ($($name:ident),*) => {$(
        impl Default for $name {
            fn default() -> Self {
                // SAFETY: integers, arrays of them, pointers and optional functions: zeros are a value of each.
                unsafe { std::mem::zeroed() }
            }
        }
    )*};
}

zeroed!(
    ucp_params_t,
    ucp_context_attr_t,
    ucp_worker_params_t,
    ucp_worker_attr_t,
    ucp_ep_params_t,
    ucp_ep_attr_t,
    ucp_mem_map_params_t,
    ucp_request_param_t,
    ucp_request_attr_t,
    ucp_am_handler_param_t
);

#[repr(C)]
pub struct ucp_params_t {
    pub field_mask: u64,
    pub features: u64,
    pub request_size: usize,
    pub request_init: Option<unsafe extern "C" fn(*mut c_void)>,
    pub request_cleanup: Option<unsafe extern "C" fn(*mut c_void)>,
    pub tag_sender_mask: u64,
    pub mt_workers_shared: c_int,
    pub estimated_num_eps: usize,
    pub estimated_num_ppn: usize,
    pub name: *const c_char,
    pub node_local_id: usize,
}

#[repr(C)]
pub struct ucp_context_attr_t {
    pub field_mask: u64,
    pub request_size: usize,
    pub thread_mode: ucs_thread_mode_t,
    pub memory_types: u64,
    pub name: [c_char; UCP_ENTITY_NAME_MAX],
    pub device_counter_size: usize,
}

/// A set of 1,024 CPUs.
#[repr(C)]
pub struct ucs_cpu_set_t {
    pub ucs_bits: [u64; 16],
}

#[repr(C)]
pub struct ucp_worker_params_t {
    pub field_mask: u64,
    pub thread_mode: ucs_thread_mode_t,
    pub cpu_mask: ucs_cpu_set_t,
    pub events: c_uint,
    pub user_data: *mut c_void,
    pub event_fd: c_int,
    pub flags: u64,
    pub name: *const c_char,
    pub am_alignment: usize,
    pub client_id: u64,
}

#[repr(C)]
pub struct ucp_worker_attr_t {
    pub field_mask: u64,
    pub thread_mode: ucs_thread_mode_t,
    pub address_flags: u32,
    pub address: *mut ucp_address,
    pub address_length: usize,
    pub max_am_header: usize,
    pub name: [c_char; UCP_ENTITY_NAME_MAX],
    pub max_debug_string: usize,
}

#[repr(C)]
pub struct ucp_err_handler_t {
    pub cb: Option<ucp_err_handler_cb_t>,
    pub arg: *mut c_void,
}

#[repr(C)]
pub struct ucs_sock_addr_t {
    pub addr: *const libc::sockaddr,
    pub addrlen: libc::socklen_t,
}

#[repr(C)]
pub struct ucp_ep_params_t {
    pub field_mask: u64,
    pub address: *const ucp_address,
    pub err_mode: ucp_err_handling_mode_t,
    pub err_handler: ucp_err_handler_t,
    pub user_data: *mut c_void,
    pub flags: c_uint,
    pub sockaddr: ucs_sock_addr_t,
    pub conn_request: *mut c_void,
    pub name: *const c_char,
    pub local_sockaddr: ucs_sock_addr_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ucp_transport_entry_t {
    pub transport_name: *const c_char,
    pub device_name: *const c_char,
}

#[repr(C)]
pub struct ucp_transports_t {
    pub entries: *mut ucp_transport_entry_t,
    pub num_entries: c_uint,
    pub entry_size: usize,
}

#[repr(C)]
pub struct ucp_ep_attr_t {
    pub field_mask: u64,
    pub name: [c_char; UCP_ENTITY_NAME_MAX],
    pub local_sockaddr: libc::sockaddr_storage,
    pub remote_sockaddr: libc::sockaddr_storage,
    pub transports: ucp_transports_t,
    pub user_data: *mut c_void,
}

#[repr(C)]
pub struct ucp_mem_map_params_t {
    pub field_mask: u64,
    pub address: *mut c_void,
    pub length: usize,
    pub flags: c_uint,
    pub prot: c_uint,
    pub memory_type: ucs_memory_type_t,
    pub exported_memh_buffer: *const c_void,
}

#[repr(C)]
pub struct ucp_request_param_t {
    pub op_attr_mask: u32,
    pub flags: u32,
    pub request: *mut c_void,
    /// The first of a union of callbacks, all of them pointers.
    pub cb: Option<ucp_send_nbx_callback_t>,
    pub datatype: ucp_datatype_t,
    pub user_data: *mut c_void,
    pub reply_buffer: *mut c_void,
    pub memory_type: ucs_memory_type_t,
    /// The first of a union of pointers.
    pub recv_info: *mut c_void,
    pub memh: *mut ucp_mem,
    pub remote_datatype: ucp_datatype_t,
    pub remote: *const c_void,
    pub remote_count: usize,
}

#[repr(C)]
pub struct ucp_request_attr_t {
    pub field_mask: u64,
    pub debug_string: *mut c_char,
    pub debug_string_size: usize,
    pub status: ucs_status_t,
    pub mem_type: ucs_memory_type_t,
}

#[repr(C)]
pub struct ucp_am_handler_param_t {
    pub field_mask: u64,
    pub id: c_uint,
    pub flags: u32,
    pub cb: Option<ucp_am_recv_callback_t>,
    pub arg: *mut c_void,
}

pub const UCP_ENTITY_NAME_MAX: usize = 32;

pub const UCP_PARAM_FIELD_FEATURES: u64 = 1 << 0;
pub const UCP_PARAM_FIELD_MT_WORKERS_SHARED: u64 = 1 << 5;

pub const UCP_FEATURE_RMA: u64 = 1 << 1;
pub const UCP_FEATURE_AM: u64 = 1 << 6;

pub const UCP_ATTR_FIELD_THREAD_MODE: u64 = 1 << 1;

pub const UCP_WORKER_PARAM_FIELD_THREAD_MODE: u64 = 1 << 0;
pub const UCP_WORKER_ATTR_FIELD_ADDRESS: u64 = 1 << 1;

pub const UCS_THREAD_MODE_SINGLE: ucs_thread_mode_t = 0;
pub const UCS_THREAD_MODE_SERIALIZED: ucs_thread_mode_t = 1;

pub const UCP_EP_PARAM_FIELD_REMOTE_ADDRESS: u64 = 1 << 0;
pub const UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE: u64 = 1 << 1;
pub const UCP_EP_PARAM_FIELD_ERR_HANDLER: u64 = 1 << 2;
pub const UCP_ERR_HANDLING_MODE_NONE: ucp_err_handling_mode_t = 0;
pub const UCP_ERR_HANDLING_MODE_PEER: ucp_err_handling_mode_t = 1;
pub const UCP_EP_CLOSE_FLAG_FORCE: u32 = 1 << 0;
pub const UCP_EP_ATTR_FIELD_TRANSPORTS: u64 = 1 << 3;

pub const UCP_MEM_MAP_PARAM_FIELD_ADDRESS: u64 = 1 << 0;
pub const UCP_MEM_MAP_PARAM_FIELD_LENGTH: u64 = 1 << 1;
pub const UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE: u64 = 1 << 4;
pub const UCS_MEMORY_TYPE_HOST: ucs_memory_type_t = 0;

pub const UCP_OP_ATTR_FIELD_CALLBACK: u32 = 1 << 1;
pub const UCP_OP_ATTR_FIELD_USER_DATA: u32 = 1 << 2;
pub const UCP_OP_ATTR_FIELD_FLAGS: u32 = 1 << 4;
pub const UCP_OP_ATTR_FIELD_MEMORY_TYPE: u32 = 1 << 6;
pub const UCP_OP_ATTR_FIELD_MEMH: u32 = 1 << 8;

pub const UCP_REQUEST_ATTR_FIELD_INFO_STRING: u64 = 1 << 0;
pub const UCP_REQUEST_ATTR_FIELD_INFO_STRING_SIZE: u64 = 1 << 1;

pub const UCP_AM_HANDLER_PARAM_FIELD_ID: u64 = 1 << 0;
pub const UCP_AM_HANDLER_PARAM_FIELD_FLAGS: u64 = 1 << 1;
pub const UCP_AM_HANDLER_PARAM_FIELD_CB: u64 = 1 << 2;
pub const UCP_AM_HANDLER_PARAM_FIELD_ARG: u64 = 1 << 3;
pub const UCP_AM_FLAG_WHOLE_MSG: u32 = 1 << 0;
/// The message goes by itself, not by a rendezvous.
pub const UCP_AM_SEND_FLAG_EAGER: u32 = 1 << 1;

pub const UCS_OK: ucs_status_t = 0;
pub const UCS_INPROGRESS: ucs_status_t = 1;
pub const UCS_ERR_NO_MESSAGE: ucs_status_t = -1;
pub const UCS_ERR_NO_RESOURCE: ucs_status_t = -2;
pub const UCS_ERR_IO_ERROR: ucs_status_t = -3;
pub const UCS_ERR_NO_MEMORY: ucs_status_t = -4;
pub const UCS_ERR_INVALID_PARAM: ucs_status_t = -5;
pub const UCS_ERR_UNREACHABLE: ucs_status_t = -6;
pub const UCS_ERR_INVALID_ADDR: ucs_status_t = -7;
pub const UCS_ERR_NOT_IMPLEMENTED: ucs_status_t = -8;
pub const UCS_ERR_MESSAGE_TRUNCATED: ucs_status_t = -9;
pub const UCS_ERR_NO_PROGRESS: ucs_status_t = -10;
pub const UCS_ERR_BUFFER_TOO_SMALL: ucs_status_t = -11;
pub const UCS_ERR_NO_ELEM: ucs_status_t = -12;
pub const UCS_ERR_SOME_CONNECTS_FAILED: ucs_status_t = -13;
pub const UCS_ERR_NO_DEVICE: ucs_status_t = -14;
pub const UCS_ERR_BUSY: ucs_status_t = -15;
pub const UCS_ERR_CANCELED: ucs_status_t = -16;
pub const UCS_ERR_SHMEM_SEGMENT: ucs_status_t = -17;
pub const UCS_ERR_ALREADY_EXISTS: ucs_status_t = -18;
pub const UCS_ERR_OUT_OF_RANGE: ucs_status_t = -19;
pub const UCS_ERR_TIMED_OUT: ucs_status_t = -20;
pub const UCS_ERR_EXCEEDS_LIMIT: ucs_status_t = -21;
pub const UCS_ERR_UNSUPPORTED: ucs_status_t = -22;
pub const UCS_ERR_REJECTED: ucs_status_t = -23;
pub const UCS_ERR_NOT_CONNECTED: ucs_status_t = -24;
pub const UCS_ERR_CONNECTION_RESET: ucs_status_t = -25;
pub const UCS_ERR_FIRST_LINK_FAILURE: ucs_status_t = -40;
pub const UCS_ERR_LAST_LINK_FAILURE: ucs_status_t = -59;
pub const UCS_ERR_FIRST_ENDPOINT_FAILURE: ucs_status_t = -60;
pub const UCS_ERR_ENDPOINT_TIMEOUT: ucs_status_t = -80;
pub const UCS_ERR_LAST_ENDPOINT_FAILURE: ucs_status_t = -89;
pub const UCS_ERR_LAST: ucs_status_t = -100;

/// Whether a status pointer is a refusal, as the headers' macro decides it.
#[inline]
#[must_use]
pub fn ucs_ptr_is_err(at: ucs_status_ptr_t) -> bool {
    at.addr() >= (UCS_ERR_LAST as isize).cast_unsigned()
}

/// Whether a status pointer is a request in flight.
#[inline]
#[must_use]
pub fn ucs_ptr_is_ptr(at: ucs_status_ptr_t) -> bool {
    !at.is_null() && !ucs_ptr_is_err(at)
}

/// A copy of bytes that UCX lent.
///
/// # Safety
/// Null, or `len` bytes that nobody changes meanwhile.
pub(super) unsafe fn copied(at: *const u8, len: usize) -> Vec<u8> {
    if at.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(at, len) }.to_vec()
}
