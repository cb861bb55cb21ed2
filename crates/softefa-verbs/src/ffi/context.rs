//! A device's context and its two tables of operations.
//!
//! Inline functions of the headers call through these tables, so that their place is ABI. An entry that is null makes the inline
//! function answer `EOPNOTSUPP` itself.

use core::ffi::{c_int, c_void};

use super::{
    ibv_cq, ibv_cq_ex, ibv_cq_init_attr_ex, ibv_device, ibv_device_attr_ex, ibv_parent_domain_init_attr,
    ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_init_attr_ex, ibv_recv_wr, ibv_send_wr, ibv_td, ibv_td_init_attr,
    ibv_wc, unused_op,
};

#[repr(C)]
pub struct ibv_context_ops {
    pub _compat_query_device: unused_op,
    pub _compat_query_port: unused_op,
    pub _compat_alloc_pd: unused_op,
    pub _compat_dealloc_pd: unused_op,
    pub _compat_reg_mr: unused_op,
    pub _compat_rereg_mr: unused_op,
    pub _compat_dereg_mr: unused_op,
    pub alloc_mw: unused_op,
    pub bind_mw: unused_op,
    pub dealloc_mw: unused_op,
    pub _compat_create_cq: unused_op,
    pub poll_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int>,
    pub req_notify_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int>,
    pub _compat_cq_event: unused_op,
    pub _compat_resize_cq: unused_op,
    pub _compat_destroy_cq: unused_op,
    pub _compat_create_srq: unused_op,
    pub _compat_modify_srq: unused_op,
    pub _compat_query_srq: unused_op,
    pub _compat_destroy_srq: unused_op,
    pub post_srq_recv: unused_op,
    pub _compat_create_qp: unused_op,
    pub _compat_query_qp: unused_op,
    pub _compat_modify_qp: unused_op,
    pub _compat_destroy_qp: unused_op,
    pub post_send:
        Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int>,
    pub post_recv:
        Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int>,
    pub _compat_create_ah: unused_op,
    pub _compat_destroy_ah: unused_op,
    pub _compat_attach_mcast: unused_op,
    pub _compat_detach_mcast: unused_op,
    pub _compat_async_event: unused_op,
}

#[repr(C)]
pub struct ibv_context {
    pub device: *mut ibv_device,
    pub ops: ibv_context_ops,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
    pub mutex: libc::pthread_mutex_t,
    pub abi_compat: *mut c_void,
}

/// The value of `abi_compat` that says that a [`verbs_context`] surrounds the context.
pub const VERBS_ABI_IS_EXTENDED: *mut c_void = usize::MAX as *mut c_void;

/// It grows at its beginning; `sz` says how much of it there is. Newer headers have more operations above these, which this size tells
/// their inline functions are absent.
#[repr(C)]
pub struct verbs_context {
    pub query_port: Option<unsafe extern "C" fn(*mut ibv_context, u8, *mut ibv_port_attr, usize) -> c_int>,
    pub advise_mr: unused_op,
    pub alloc_null_mr: unused_op,
    pub read_counters: unused_op,
    pub attach_counters_point_flow: unused_op,
    pub create_counters: unused_op,
    pub destroy_counters: unused_op,
    pub reg_dm_mr: unused_op,
    pub alloc_dm: unused_op,
    pub free_dm: unused_op,
    pub modify_flow_action_esp: unused_op,
    pub destroy_flow_action: unused_op,
    pub create_flow_action_esp: unused_op,
    pub modify_qp_rate_limit: unused_op,
    pub alloc_parent_domain:
        Option<unsafe extern "C" fn(*mut ibv_context, *mut ibv_parent_domain_init_attr) -> *mut ibv_pd>,
    pub dealloc_td: Option<unsafe extern "C" fn(*mut ibv_td) -> c_int>,
    pub alloc_td: Option<unsafe extern "C" fn(*mut ibv_context, *mut ibv_td_init_attr) -> *mut ibv_td>,
    pub modify_cq: unused_op,
    pub post_srq_ops: unused_op,
    pub destroy_rwq_ind_table: unused_op,
    pub create_rwq_ind_table: unused_op,
    pub destroy_wq: unused_op,
    pub modify_wq: unused_op,
    pub create_wq: unused_op,
    pub query_rt_values: unused_op,
    pub create_cq_ex:
        Option<unsafe extern "C" fn(*mut ibv_context, *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex>,
    pub priv_: *mut c_void,
    pub query_device_ex: Option<
        unsafe extern "C" fn(*mut ibv_context, *const c_void, *mut ibv_device_attr_ex, usize) -> c_int,
    >,
    pub ibv_destroy_flow: unused_op,
    pub ABI_placeholder2: unused_op,
    pub ibv_create_flow: unused_op,
    pub ABI_placeholder1: unused_op,
    pub open_qp: unused_op,
    pub create_qp_ex: Option<unsafe extern "C" fn(*mut ibv_context, *mut ibv_qp_init_attr_ex) -> *mut ibv_qp>,
    pub get_srq_num: unused_op,
    pub create_srq_ex: unused_op,
    pub open_xrcd: unused_op,
    pub close_xrcd: unused_op,
    pub _ABI_placeholder3: u64,
    pub sz: usize,
    pub context: ibv_context,
}

#[repr(C)]
pub struct ibv_comp_channel {
    pub context: *mut ibv_context,
    pub fd: c_int,
    pub refcnt: c_int,
}
