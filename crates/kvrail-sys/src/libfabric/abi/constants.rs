//! Values that calls take and return. Those that came after 1.17 say since when.

use std::ffi::c_int;

/// A version of the interface: `FI_VERSION` of the headers.
#[must_use]
pub const fn fi_version_of(major: u16, minor: u16) -> u32 {
    (major as u32) << 16 | minor as u32
}

// Capabilities, and flags of operations.
pub const FI_MSG: u64 = 1 << 1;
pub const FI_RMA: u64 = 1 << 2;
pub const FI_TAGGED: u64 = 1 << 3;
pub const FI_ATOMIC: u64 = 1 << 4;
pub const FI_MULTICAST: u64 = 1 << 5;
pub const FI_COLLECTIVE: u64 = 1 << 6;
pub const FI_READ: u64 = 1 << 8;
pub const FI_WRITE: u64 = 1 << 9;
pub const FI_RECV: u64 = 1 << 10;
pub const FI_SEND: u64 = 1 << 11;
pub const FI_TRANSMIT: u64 = FI_SEND;
pub const FI_REMOTE_READ: u64 = 1 << 12;
pub const FI_REMOTE_WRITE: u64 = 1 << 13;
pub const FI_MULTI_RECV: u64 = 1 << 16;
/// An immediate comes with the operation.
pub const FI_REMOTE_CQ_DATA: u64 = 1 << 17;
/// More follow at once: the doorbell may wait.
pub const FI_MORE: u64 = 1 << 18;
pub const FI_PEEK: u64 = 1 << 19;
pub const FI_TRIGGER: u64 = 1 << 20;
pub const FI_FENCE: u64 = 1 << 21;
pub const FI_COMPLETION: u64 = 1 << 24;
pub const FI_EVENT: u64 = FI_COMPLETION;
pub const FI_INJECT: u64 = 1 << 25;
pub const FI_INJECT_COMPLETE: u64 = 1 << 26;
pub const FI_TRANSMIT_COMPLETE: u64 = 1 << 27;
/// Complete when the bytes are in the peer's memory.
pub const FI_DELIVERY_COMPLETE: u64 = 1 << 28;
pub const FI_AFFINITY: u64 = 1 << 29;
pub const FI_COMMIT_COMPLETE: u64 = 1 << 30;
pub const FI_MATCH_COMPLETE: u64 = 1 << 31;
/// Look for devices again. Since 2.2.
pub const FI_RESCAN: u64 = 1 << 35;
pub const FI_PEER_TRANSFER: u64 = 1 << 36;
/// The registration is of memory that another device lends. Since 1.20.
pub const FI_MR_DMABUF: u64 = 1 << 40;
/// Since 2.0.
pub const FI_MR_SINGLE_USE: u64 = 1 << 41;
pub const FI_AV_USER_ID: u64 = 1 << 41;
pub const FI_PEER: u64 = 1 << 43;
pub const FI_HMEM_HOST_ALLOC: u64 = 1 << 45;
pub const FI_HMEM_DEVICE_ONLY: u64 = 1 << 46;
pub const FI_HMEM: u64 = 1 << 47;
pub const FI_RMA_PMEM: u64 = 1 << 49;
pub const FI_SOURCE_ERR: u64 = 1 << 50;
pub const FI_LOCAL_COMM: u64 = 1 << 51;
pub const FI_REMOTE_COMM: u64 = 1 << 52;
pub const FI_SHARED_AV: u64 = 1 << 53;
pub const FI_PROV_ATTR_ONLY: u64 = 1 << 54;
pub const FI_NUMERICHOST: u64 = 1 << 55;
pub const FI_RMA_EVENT: u64 = 1 << 56;
pub const FI_SOURCE: u64 = 1 << 57;
pub const FI_NAMED_RX_CTX: u64 = 1 << 58;
pub const FI_DIRECTED_RECV: u64 = 1 << 59;
/// On binding a queue: only operations with `FI_COMPLETION` complete there.
pub const FI_SELECTIVE_COMPLETION: u64 = 1 << 59;
/// On insertion of several addresses: each one's error is reported.
pub const FI_SYNC_ERR: u64 = 1 << 58;
/// EFA: more operations a second rather than bytes. Since 2.6.
pub const FI_EFA_WR_HIGH_PPS: u64 = 1 << 60;

// Modes: what a provider asks of its caller.
pub const FI_CONTEXT: u64 = 1 << 59;
pub const FI_MSG_PREFIX: u64 = 1 << 58;
pub const FI_ASYNC_IOV: u64 = 1 << 57;
/// A write with an immediate takes a posted receive.
pub const FI_RX_CQ_DATA: u64 = 1 << 56;
pub const FI_LOCAL_MR: u64 = 1 << 55;
pub const FI_CONTEXT2: u64 = 1 << 52;

// How memory is registered (`mr_mode`).
pub const FI_MR_UNSPEC: c_int = 0;
pub const FI_MR_BASIC: c_int = 1 << 0;
pub const FI_MR_SCALABLE: c_int = 1 << 1;
pub const FI_MR_LOCAL: c_int = 1 << 2;
pub const FI_MR_RAW: c_int = 1 << 3;
pub const FI_MR_VIRT_ADDR: c_int = 1 << 4;
pub const FI_MR_ALLOCATED: c_int = 1 << 5;
pub const FI_MR_PROV_KEY: c_int = 1 << 6;
pub const FI_MR_MMU_NOTIFY: c_int = 1 << 7;
pub const FI_MR_RMA_EVENT: c_int = 1 << 8;
pub const FI_MR_ENDPOINT: c_int = 1 << 9;
pub const FI_MR_HMEM: c_int = 1 << 10;
pub const FI_MR_COLLECTIVE: c_int = 1 << 11;

// Kinds of memory.
pub const FI_HMEM_SYSTEM: u32 = 0;
pub const FI_HMEM_CUDA: u32 = 1;
pub const FI_HMEM_ROCR: u32 = 2;
pub const FI_HMEM_ZE: u32 = 3;
pub const FI_HMEM_NEURON: u32 = 4;
pub const FI_HMEM_SYNAPSEAI: u32 = 5;

// Formats of addresses.
pub const FI_FORMAT_UNSPEC: u32 = 0;
pub const FI_SOCKADDR: u32 = 1;
pub const FI_SOCKADDR_IN: u32 = 2;
pub const FI_SOCKADDR_IN6: u32 = 3;
pub const FI_SOCKADDR_IB: u32 = 4;
pub const FI_ADDR_STR: u32 = 9;
pub const FI_ADDR_PSMX2: u32 = 10;
pub const FI_ADDR_IB_UD: u32 = 11;
pub const FI_ADDR_EFA: u32 = 12;
pub const FI_ADDR_PSMX3: u32 = 13;
pub const FI_ADDR_OPX: u32 = 14;
pub const FI_ADDR_CXI: u32 = 15;
/// Since 1.18.
pub const FI_ADDR_UCX: u32 = 16;
/// Since 2.3.
pub const FI_SOCKADDR_IP: u32 = 17;

pub const FI_ADDR_UNSPEC: u64 = u64::MAX;
pub const FI_ADDR_NOTAVAIL: u64 = u64::MAX;
pub const FI_KEY_NOTAVAIL: u64 = u64::MAX;

// Address vectors.
pub const FI_AV_UNSPEC: u32 = 0;
pub const FI_AV_MAP: u32 = 1;
pub const FI_AV_TABLE: u32 = 2;

// Progress.
pub const FI_PROGRESS_UNSPEC: u32 = 0;
pub const FI_PROGRESS_AUTO: u32 = 1;
pub const FI_PROGRESS_MANUAL: u32 = 2;
/// Since 1.21.
pub const FI_PROGRESS_CONTROL_UNIFIED: u32 = 3;

// Threads.
pub const FI_THREAD_UNSPEC: u32 = 0;
pub const FI_THREAD_SAFE: u32 = 1;
pub const FI_THREAD_FID: u32 = 2;
pub const FI_THREAD_DOMAIN: u32 = 3;
pub const FI_THREAD_COMPLETION: u32 = 4;
pub const FI_THREAD_ENDPOINT: u32 = 5;

// Queues that are full.
pub const FI_RM_UNSPEC: u32 = 0;
pub const FI_RM_DISABLED: u32 = 1;
pub const FI_RM_ENABLED: u32 = 2;

// Kinds of endpoints.
pub const FI_EP_UNSPEC: u32 = 0;
pub const FI_EP_MSG: u32 = 1;
pub const FI_EP_DGRAM: u32 = 2;
pub const FI_EP_RDM: u32 = 3;

// Protocols.
pub const FI_PROTO_UNSPEC: u32 = 0;
pub const FI_PROTO_RDMA_CM_IB_RC: u32 = 1;
pub const FI_PROTO_SOCK_TCP: u32 = 6;
pub const FI_PROTO_RXM: u32 = 11;
pub const FI_PROTO_SHM: u32 = 16;
pub const FI_PROTO_EFA: u32 = 20;
pub const FI_PROTO_RXM_TCP: u32 = 22;
pub const FI_PROTO_OPX: u32 = 23;
pub const FI_PROTO_CXI: u32 = 24;
pub const FI_PROTO_XNET: u32 = 25;

// Classes of traffic.
pub const FI_TC_UNSPEC: u32 = 0;
pub const FI_TC_DSCP: u32 = 0x100;
pub const FI_TC_BEST_EFFORT: u32 = 0x200;
pub const FI_TC_LOW_LATENCY: u32 = 0x201;
pub const FI_TC_DEDICATED_ACCESS: u32 = 0x202;
pub const FI_TC_BULK_DATA: u32 = 0x203;
pub const FI_TC_SCAVENGER: u32 = 0x204;
pub const FI_TC_NETWORK_CTRL: u32 = 0x205;

// Orders.
pub const FI_ORDER_NONE: u64 = 0;
pub const FI_ORDER_RAR: u64 = 1 << 0;
pub const FI_ORDER_RAW: u64 = 1 << 1;
pub const FI_ORDER_RAS: u64 = 1 << 2;
pub const FI_ORDER_WAR: u64 = 1 << 3;
pub const FI_ORDER_WAW: u64 = 1 << 4;
pub const FI_ORDER_WAS: u64 = 1 << 5;
pub const FI_ORDER_SAR: u64 = 1 << 6;
pub const FI_ORDER_SAW: u64 = 1 << 7;
pub const FI_ORDER_SAS: u64 = 1 << 8;

// Buses and links.
pub const FI_BUS_UNKNOWN: u32 = 0;
pub const FI_BUS_PCI: u32 = 1;
pub const FI_LINK_UNKNOWN: u32 = 0;
pub const FI_LINK_DOWN: u32 = 1;
pub const FI_LINK_UP: u32 = 2;

// Classes of objects.
pub const FI_CLASS_FABRIC: usize = 1;
pub const FI_CLASS_DOMAIN: usize = 2;
pub const FI_CLASS_EP: usize = 3;
pub const FI_CLASS_AV: usize = 11;
pub const FI_CLASS_MR: usize = 12;
pub const FI_CLASS_EQ: usize = 13;
pub const FI_CLASS_CQ: usize = 14;
pub const FI_CLASS_NIC: usize = 20;

// Commands of `fi_control`.
pub const FI_GETWAIT: c_int = 5;
pub const FI_ENABLE: c_int = 6;
pub const FI_DUP: c_int = 15;
pub const FI_GETWAITOBJ: c_int = 16;

// What a queue can be waited for with.
pub const FI_WAIT_NONE: u32 = 0;
pub const FI_WAIT_UNSPEC: u32 = 1;
pub const FI_WAIT_SET: u32 = 2;
pub const FI_WAIT_FD: u32 = 3;
pub const FI_WAIT_MUTEX_COND: u32 = 4;
pub const FI_WAIT_YIELD: u32 = 5;
pub const FI_WAIT_POLLFD: u32 = 6;

// Formats of completions, and when a wait for them ends.
pub const FI_CQ_FORMAT_UNSPEC: u32 = 0;
pub const FI_CQ_FORMAT_CONTEXT: u32 = 1;
pub const FI_CQ_FORMAT_MSG: u32 = 2;
pub const FI_CQ_FORMAT_DATA: u32 = 3;
pub const FI_CQ_FORMAT_TAGGED: u32 = 4;
pub const FI_CQ_COND_NONE: u32 = 0;
pub const FI_CQ_COND_THRESHOLD: u32 = 1;

// Events.
pub const FI_NOTIFY: u32 = 0;
pub const FI_CONNREQ: u32 = 1;
pub const FI_CONNECTED: u32 = 2;
pub const FI_SHUTDOWN: u32 = 3;
pub const FI_MR_COMPLETE: u32 = 4;
pub const FI_AV_COMPLETE: u32 = 5;

// Options of an endpoint, with the type of the value.
pub const FI_OPT_ENDPOINT: c_int = 0;
/// `size_t`
pub const FI_OPT_MIN_MULTI_RECV: c_int = 0;
/// `size_t`
pub const FI_OPT_CM_DATA_SIZE: c_int = 1;
pub const FI_OPT_SEND_BUF_SIZE: c_int = 4;
pub const FI_OPT_RECV_BUF_SIZE: c_int = 5;
pub const FI_OPT_TX_SIZE: c_int = 6;
pub const FI_OPT_RX_SIZE: c_int = 7;
/// `int`: `FI_HMEM_P2P_…`
pub const FI_OPT_FI_HMEM_P2P: c_int = 8;
/// `bool`. Since 1.18.
pub const FI_OPT_CUDA_API_PERMITTED: c_int = 10;
/// `bool`. Since 1.21.
pub const FI_OPT_SHARED_MEMORY_PERMITTED: c_int = 11;
/// `size_t`. Since 1.22.
pub const FI_OPT_MAX_MSG_SIZE: c_int = 12;
/// `size_t`. Since 1.22.
pub const FI_OPT_MAX_TAGGED_SIZE: c_int = 13;
/// `size_t`. Since 1.22.
pub const FI_OPT_MAX_RMA_SIZE: c_int = 14;
/// `size_t`. Since 1.22.
pub const FI_OPT_MAX_ATOMIC_SIZE: c_int = 15;
/// `size_t`. Since 1.22.
pub const FI_OPT_INJECT_MSG_SIZE: c_int = 16;
/// `size_t`. Since 1.22.
pub const FI_OPT_INJECT_TAGGED_SIZE: c_int = 17;
/// `size_t`. Since 1.22.
pub const FI_OPT_INJECT_RMA_SIZE: c_int = 18;
/// `size_t`. Since 1.22.
pub const FI_OPT_INJECT_ATOMIC_SIZE: c_int = 19;
pub const FI_HMEM_P2P_ENABLED: c_int = 0;
pub const FI_HMEM_P2P_REQUIRED: c_int = 1;
pub const FI_HMEM_P2P_PREFERRED: c_int = 2;
pub const FI_HMEM_P2P_DISABLED: c_int = 3;

// Options of the provider `efa`: negative numbers, counted up from its own.
/// `size_t`: retries while the peer has no receive posted; 7 = for ever.
pub const FI_OPT_EFA_RNR_RETRY: c_int = -(0xefa << 16);
/// `bool`. Since 1.18.
pub const FI_OPT_EFA_EMULATED_READ: c_int = FI_OPT_EFA_RNR_RETRY + 1;
/// `bool`. Since 1.18.
pub const FI_OPT_EFA_EMULATED_WRITE: c_int = FI_OPT_EFA_RNR_RETRY + 2;
/// `bool`. Since 1.18.
pub const FI_OPT_EFA_EMULATED_ATOMICS: c_int = FI_OPT_EFA_RNR_RETRY + 3;
/// `bool`. Since 1.18.
pub const FI_OPT_EFA_USE_DEVICE_RDMA: c_int = FI_OPT_EFA_RNR_RETRY + 4;
/// `bool`. Since 1.18.
pub const FI_OPT_EFA_SENDRECV_IN_ORDER_ALIGNED_128_BYTES: c_int = FI_OPT_EFA_RNR_RETRY + 5;
/// `bool`. Since 1.18.
pub const FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES: c_int = FI_OPT_EFA_RNR_RETRY + 6;
/// `bool`. Since 2.2.
pub const FI_OPT_EFA_HOMOGENEOUS_PEERS: c_int = FI_OPT_EFA_RNR_RETRY + 7;
/// `bool`: writes with an immediate take no posted receive. Since 2.5.
pub const FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV: c_int = FI_OPT_EFA_RNR_RETRY + 8;

// Types that `fi_tostr` prints.
pub const FI_TYPE_INFO: u32 = 0;
pub const FI_TYPE_EP_TYPE: u32 = 1;
pub const FI_TYPE_CAPS: u32 = 2;
pub const FI_TYPE_OP_FLAGS: u32 = 3;
pub const FI_TYPE_ADDR_FORMAT: u32 = 4;
pub const FI_TYPE_THREADING: u32 = 10;
pub const FI_TYPE_PROGRESS: u32 = 11;
pub const FI_TYPE_PROTOCOL: u32 = 12;
pub const FI_TYPE_MSG_ORDER: u32 = 13;
pub const FI_TYPE_MODE: u32 = 14;
pub const FI_TYPE_CQ_EVENT_FLAGS: u32 = 20;
pub const FI_TYPE_MR_MODE: u32 = 21;

// Types of parameters.
pub const FI_PARAM_STRING: u32 = 0;
pub const FI_PARAM_INT: u32 = 1;
pub const FI_PARAM_BOOL: u32 = 2;
pub const FI_PARAM_SIZE_T: u32 = 3;
