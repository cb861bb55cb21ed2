//! Structures that the caller allocates: every field up to 2.7, those that came later as zeros.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use libc::iovec;

use super::constants::FI_ADDR_NOTAVAIL;
use super::objects::{fi_addr_t, fid, fid_mr, fid_wait, fid_xpu_ctx};

/// Room for a provider under an operation with mode `FI_CONTEXT`; its address is the operation's context.
#[repr(C)]
#[derive(Debug)]
pub struct fi_context {
    pub internal: [*mut c_void; 4],
}

/// Room for a provider under an operation with mode `FI_CONTEXT2`.
#[repr(C)]
#[derive(Debug)]
pub struct fi_context2 {
    pub internal: [*mut c_void; 8],
}

/// A message.
#[repr(C)]
#[derive(Debug)]
pub struct fi_msg {
    pub msg_iov: *const iovec,
    pub desc: *mut *mut c_void,
    pub iov_count: usize,
    pub addr: fi_addr_t,
    pub context: *mut c_void,
    pub data: u64,
}

/// A piece of a peer's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct fi_rma_iov {
    /// A virtual address or an offset, as `FI_MR_VIRT_ADDR` has it.
    pub addr: u64,
    pub len: usize,
    pub key: u64,
}

/// A transfer into or out of a peer's memory.
#[repr(C)]
#[derive(Debug)]
pub struct fi_msg_rma {
    pub msg_iov: *const iovec,
    pub desc: *mut *mut c_void,
    pub iov_count: usize,
    pub addr: fi_addr_t,
    pub rma_iov: *const fi_rma_iov,
    pub rma_iov_count: usize,
    pub context: *mut c_void,
    pub data: u64,
}

/// Memory that another device lends. Since 1.20.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_mr_dmabuf {
    pub fd: c_int,
    pub offset: u64,
    pub len: usize,
    pub base_addr: *mut c_void,
}

/// What is registered: memory, or with [`FI_MR_DMABUF`](super::FI_MR_DMABUF) what another device lends.
#[repr(C)]
#[derive(Clone, Copy)]
pub union fi_mr_attr_memory {
    pub mr_iov: *const iovec,
    /// Since 1.20.
    pub dmabuf: *const fi_mr_dmabuf,
}

/// The device that the memory is on; which member counts says `iface`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union fi_mr_attr_device {
    pub reserved: u64,
    pub cuda: c_int,
    pub ze: c_int,
    pub neuron: c_int,
    pub synapseai: c_int,
    /// Since 2.5.
    pub rocr: c_int,
}

/// A registration.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fi_mr_attr {
    pub memory: fi_mr_attr_memory,
    pub iov_count: usize,
    /// `FI_SEND`, `FI_RECV`, `FI_READ`, `FI_WRITE`, `FI_REMOTE_READ`, `FI_REMOTE_WRITE`.
    pub access: u64,
    pub offset: u64,
    pub requested_key: u64,
    pub context: *mut c_void,
    pub auth_key_size: usize,
    pub auth_key: *mut u8,
    /// `FI_HMEM_…`
    pub iface: u32,
    pub device: fi_mr_attr_device,
    /// Since 1.19.
    pub hmem_data: *mut c_void,
    /// Since 1.22.
    pub page_size: usize,
    /// Since 2.0.
    pub base_mr: *const fid_mr,
    /// Since 2.0.
    pub sub_mr_cnt: usize,
}

impl Default for fi_mr_attr {
    fn default() -> Self {
        Self {
            memory: fi_mr_attr_memory { mr_iov: ptr::null() },
            iov_count: 0,
            access: 0,
            offset: 0,
            requested_key: 0,
            context: ptr::null_mut(),
            auth_key_size: 0,
            auth_key: ptr::null_mut(),
            iface: 0,
            device: fi_mr_attr_device { reserved: 0 },
            hmem_data: ptr::null_mut(),
            page_size: 0,
            base_mr: ptr::null(),
            sub_mr_cnt: 0,
        }
    }
}

/// A vector of addresses, to be opened.
#[repr(C)]
#[derive(Debug)]
pub struct fi_av_attr {
    /// `FI_AV_…`
    pub type_: u32,
    pub rx_ctx_bits: c_int,
    /// Addresses expected; 0 = not known.
    pub count: usize,
    pub ep_per_node: usize,
    pub name: *const c_char,
    pub map_addr: *mut c_void,
    pub flags: u64,
}

impl Default for fi_av_attr {
    fn default() -> Self {
        Self {
            type_: 0,
            rx_ctx_bits: 0,
            count: 0,
            ep_per_node: 0,
            name: ptr::null(),
            map_addr: ptr::null_mut(),
            flags: 0,
        }
    }
}

/// A queue of completions, to be opened.
#[repr(C)]
#[derive(Debug)]
pub struct fi_cq_attr {
    /// Entries; 0 = the provider's choice.
    pub size: usize,
    pub flags: u64,
    /// `FI_CQ_FORMAT_…`
    pub format: u32,
    /// `FI_WAIT_…`
    pub wait_obj: u32,
    pub signaling_vector: c_int,
    /// `FI_CQ_COND_…`
    pub wait_cond: u32,
    pub wait_set: *mut fid_wait,
    /// Since 2.7.
    pub xpu_ctx: *mut fid_xpu_ctx,
}

impl Default for fi_cq_attr {
    fn default() -> Self {
        Self {
            size: 0,
            flags: 0,
            format: 0,
            wait_obj: 0,
            signaling_vector: 0,
            wait_cond: 0,
            wait_set: ptr::null_mut(),
            xpu_ctx: ptr::null_mut(),
        }
    }
}

/// A queue of events, to be opened.
#[repr(C)]
#[derive(Debug)]
pub struct fi_eq_attr {
    pub size: usize,
    pub flags: u64,
    /// `FI_WAIT_…`
    pub wait_obj: u32,
    pub signaling_vector: c_int,
    pub wait_set: *mut fid_wait,
}

impl Default for fi_eq_attr {
    fn default() -> Self {
        Self { size: 0, flags: 0, wait_obj: 0, signaling_vector: 0, wait_set: ptr::null_mut() }
    }
}

/// Where a queue's file descriptors change: the answer to `FI_GETWAIT` on `FI_WAIT_POLLFD`.
#[repr(C)]
#[derive(Debug)]
pub struct fi_wait_pollfd {
    pub change_index: u64,
    pub nfds: usize,
    pub fd: *mut libc::pollfd,
}

/// A completion with its context alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_cq_entry {
    pub op_context: *mut c_void,
}

/// A completion with its flags and length.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_cq_msg_entry {
    pub op_context: *mut c_void,
    pub flags: u64,
    pub len: usize,
}

/// A completion with its immediate.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_cq_data_entry {
    pub op_context: *mut c_void,
    pub flags: u64,
    pub len: usize,
    pub buf: *mut c_void,
    /// Counts where `flags` has `FI_REMOTE_CQ_DATA`.
    pub data: u64,
}

impl Default for fi_cq_data_entry {
    fn default() -> Self {
        Self { op_context: ptr::null_mut(), flags: 0, len: 0, buf: ptr::null_mut(), data: 0 }
    }
}

/// A completion with its tag.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_cq_tagged_entry {
    pub op_context: *mut c_void,
    pub flags: u64,
    pub len: usize,
    pub buf: *mut c_void,
    pub data: u64,
    pub tag: u64,
}

/// An operation that failed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_cq_err_entry {
    pub op_context: *mut c_void,
    pub flags: u64,
    pub len: usize,
    pub buf: *mut c_void,
    pub data: u64,
    pub tag: u64,
    pub olen: usize,
    /// `FI_E…`, positive.
    pub err: c_int,
    /// The provider's own code.
    pub prov_errno: c_int,
    /// In: where the provider may put what it has to say. Out: what it said, until the queue is read again.
    pub err_data: *mut c_void,
    /// In: room there, bytes. Out: bytes that were put there.
    pub err_data_size: usize,
    /// Since 1.20.
    pub src_addr: fi_addr_t,
}

impl Default for fi_cq_err_entry {
    fn default() -> Self {
        Self {
            op_context: ptr::null_mut(),
            flags: 0,
            len: 0,
            buf: ptr::null_mut(),
            data: 0,
            tag: 0,
            olen: 0,
            err: 0,
            prov_errno: 0,
            err_data: ptr::null_mut(),
            err_data_size: 0,
            src_addr: FI_ADDR_NOTAVAIL,
        }
    }
}

/// An event.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_eq_entry {
    pub fid: *mut fid,
    pub context: *mut c_void,
    pub data: u64,
}

impl Default for fi_eq_entry {
    fn default() -> Self {
        Self { fid: ptr::null_mut(), context: ptr::null_mut(), data: 0 }
    }
}

/// Something that failed outside an operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fi_eq_err_entry {
    pub fid: *mut fid,
    pub context: *mut c_void,
    pub data: u64,
    /// `FI_E…`, positive.
    pub err: c_int,
    /// The provider's own code.
    pub prov_errno: c_int,
    pub err_data: *mut c_void,
    pub err_data_size: usize,
}

impl Default for fi_eq_err_entry {
    fn default() -> Self {
        Self {
            fid: ptr::null_mut(),
            context: ptr::null_mut(),
            data: 0,
            err: 0,
            prov_errno: 0,
            err_data: ptr::null_mut(),
            err_data_size: 0,
        }
    }
}
