//! Every figure that is compared: structures with all their fields, parts of unions, constants.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use kvrail_sys::libfabric::abi::*;

use super::headers::Figure;

/// Structures and all their fields: `field = "name"` where C has another name at that place.
macro_rules! structures {
    ($( $name:ident { $( $field:ident $(= $c_field:literal)? ),* } )*) => {
        /// The structures' fields, by name of the structure.
        pub(crate) fn fields() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
            BTreeMap::from([$( (stringify!($name), BTreeSet::from([$( stringify!($field) ),*])) ),*])
        }

        fn places() -> Vec<Figure> {
            let mut all = Vec::new();
            $(
                all.push(Figure {
                    label: concat!("size of ", stringify!($name)).into(),
                    rust: size_of::<$name>() as i64,
                    c: concat!("sizeof(struct ", stringify!($name), ")").into(),
                });
                $({
                    #[allow(unused_assignments, unused_mut)]
                    let mut c_field = stringify!($field);
                    $( c_field = $c_field; )?
                    all.push(Figure {
                        label: concat!(stringify!($name), ".", stringify!($field)).into(),
                        rust: offset_of!($name, $field) as i64,
                        c: format!(concat!("offsetof(struct ", stringify!($name), ", {})"), c_field),
                    });
                })*
            )*
            all
        }
    };
}

structures! {
    fi_tx_attr { caps, mode, op_flags, msg_order, comp_order, inject_size, size, iov_limit, rma_iov_limit, tclass }
    fi_rx_attr { caps, mode, op_flags, msg_order, comp_order, total_buffered_recv, size, iov_limit }
    fi_ep_attr { type_ = "type", protocol, protocol_version, max_msg_size, msg_prefix_size, max_order_raw_size, max_order_war_size, max_order_waw_size, mem_tag_format, tx_ctx_cnt, rx_ctx_cnt, auth_key_size, auth_key }
    fi_domain_attr { domain, name, threading, control_progress, data_progress, resource_mgmt, av_type, mr_mode, mr_key_size, cq_data_size, cq_cnt, ep_cnt, tx_ctx_cnt, rx_ctx_cnt, max_ep_tx_ctx, max_ep_rx_ctx, max_ep_stx_ctx, max_ep_srx_ctx, cntr_cnt, mr_iov_limit, caps, mode, auth_key, auth_key_size, max_err_data, mr_cnt, tclass }
    fi_fabric_attr { fabric, name, prov_name, prov_version, api_version }
    fi_info { next, caps, mode, addr_format, src_addrlen, dest_addrlen, src_addr, dest_addr, handle, tx_attr, rx_attr, ep_attr, domain_attr, fabric_attr, nic }
    fi_device_attr { name, device_id, device_version, vendor_id, driver, firmware }
    fi_pci_attr { domain_id, bus_id, device_id, function_id }
    fi_bus_attr { bus_type, pci = "attr.pci" }
    fi_link_attr { address, mtu, speed, state, network_type }
    fid_nic { fid, device_attr, bus_attr, link_attr, prov_attr }
    fi_param { name, type_ = "type", help_string, value }
    fid { fclass, context, ops }
    fi_ops { size, close, bind, control, ops_open, tostr, ops_set }
    fid_fabric { fid, ops, api_version }
    fi_ops_fabric { size, domain, passive_ep, eq_open, wait_open, trywait, domain2 }
    fid_domain { fid, ops, mr }
    fi_ops_domain { size, av_open, cq_open, endpoint, scalable_ep, cntr_open, poll_open, stx_ctx, srx_ctx, query_atomic, query_collective, endpoint2, xpu_ctx }
    fi_ops_mr { size, reg, regv, regattr }
    fid_mr { fid, mem_desc, key }
    fid_ep { fid, ops, cm, msg, rma, tagged, atomic, collective }
    fi_ops_ep { size, cancel, getopt, setopt, tx_ctx, rx_ctx, rx_size_left, tx_size_left, export_xpu }
    fi_ops_cm { size, setname, getname, getpeer, connect, listen, accept, reject, shutdown, join }
    fi_ops_msg { size, recv, recvv, recvmsg, send, sendv, sendmsg, inject, senddata, injectdata }
    fi_ops_rma { size, read, readv, readmsg, write, writev, writemsg, inject, writedata, injectdata }
    fid_cq { fid, ops }
    fi_ops_cq { size, read, readfrom, readerr, sread, sreadfrom, signal, strerror, export_xpu }
    fid_eq { fid, ops }
    fi_ops_eq { size, read, readerr, write, sread, strerror }
    fid_av { fid, ops }
    fi_ops_av { size, insert, insertsvc, insertsym, remove, lookup, straddr, av_set, insert_auth_key, lookup_auth_key, set_user_id, lookup2 }
    fi_context { internal }
    fi_context2 { internal }
    fi_msg { msg_iov, desc, iov_count, addr, context, data }
    fi_rma_iov { addr, len, key }
    fi_msg_rma { msg_iov, desc, iov_count, addr, rma_iov, rma_iov_count, context, data }
    fi_mr_dmabuf { fd, offset, len, base_addr }
    fi_mr_attr { memory = "mr_iov", iov_count, access, offset, requested_key, context, auth_key_size, auth_key, iface, device, hmem_data, page_size, base_mr, sub_mr_cnt }
    fi_av_attr { type_ = "type", rx_ctx_bits, count, ep_per_node, name, map_addr, flags }
    fi_cq_attr { size, flags, format, wait_obj, signaling_vector, wait_cond, wait_set, xpu_ctx }
    fi_eq_attr { size, flags, wait_obj, signaling_vector, wait_set }
    fi_wait_pollfd { change_index, nfds, fd }
    fi_cq_entry { op_context }
    fi_cq_msg_entry { op_context, flags, len }
    fi_cq_data_entry { op_context, flags, len, buf, data }
    fi_cq_tagged_entry { op_context, flags, len, buf, data, tag }
    fi_cq_err_entry { op_context, flags, len, buf, data, tag, olen, err, prov_errno, err_data, err_data_size, src_addr }
    fi_eq_entry { fid, context, data }
    fi_eq_err_entry { fid, context, data, err, prov_errno, err_data, err_data_size }
}

macro_rules! constants {
    ($( $name:ident ),* $(,)?) => {
        fn constants() -> Vec<Figure> {
            vec![$( Figure { label: stringify!($name).into(), rust: $name as i64, c: stringify!($name).into() } ),*]
        }
    };
}

constants!(
    FI_MSG,
    FI_RMA,
    FI_TAGGED,
    FI_ATOMIC,
    FI_MULTICAST,
    FI_COLLECTIVE,
    FI_READ,
    FI_WRITE,
    FI_RECV,
    FI_SEND,
    FI_TRANSMIT,
    FI_REMOTE_READ,
    FI_REMOTE_WRITE,
    FI_MULTI_RECV,
    FI_REMOTE_CQ_DATA,
    FI_MORE,
    FI_PEEK,
    FI_TRIGGER,
    FI_FENCE,
    FI_COMPLETION,
    FI_EVENT,
    FI_INJECT,
    FI_INJECT_COMPLETE,
    FI_TRANSMIT_COMPLETE,
    FI_DELIVERY_COMPLETE,
    FI_AFFINITY,
    FI_COMMIT_COMPLETE,
    FI_MATCH_COMPLETE,
    FI_RESCAN,
    FI_PEER_TRANSFER,
    FI_MR_DMABUF,
    FI_MR_SINGLE_USE,
    FI_AV_USER_ID,
    FI_PEER,
    FI_HMEM_HOST_ALLOC,
    FI_HMEM_DEVICE_ONLY,
    FI_HMEM,
    FI_RMA_PMEM,
    FI_SOURCE_ERR,
    FI_LOCAL_COMM,
    FI_REMOTE_COMM,
    FI_SHARED_AV,
    FI_PROV_ATTR_ONLY,
    FI_NUMERICHOST,
    FI_RMA_EVENT,
    FI_SOURCE,
    FI_NAMED_RX_CTX,
    FI_DIRECTED_RECV,
    FI_SELECTIVE_COMPLETION,
    FI_SYNC_ERR,
    FI_EFA_WR_HIGH_PPS,
    FI_CONTEXT,
    FI_MSG_PREFIX,
    FI_ASYNC_IOV,
    FI_RX_CQ_DATA,
    FI_LOCAL_MR,
    FI_CONTEXT2,
    FI_MR_UNSPEC,
    FI_MR_BASIC,
    FI_MR_SCALABLE,
    FI_MR_LOCAL,
    FI_MR_RAW,
    FI_MR_VIRT_ADDR,
    FI_MR_ALLOCATED,
    FI_MR_PROV_KEY,
    FI_MR_MMU_NOTIFY,
    FI_MR_RMA_EVENT,
    FI_MR_ENDPOINT,
    FI_MR_HMEM,
    FI_MR_COLLECTIVE,
    FI_HMEM_SYSTEM,
    FI_HMEM_CUDA,
    FI_HMEM_ROCR,
    FI_HMEM_ZE,
    FI_HMEM_NEURON,
    FI_HMEM_SYNAPSEAI,
    FI_FORMAT_UNSPEC,
    FI_SOCKADDR,
    FI_SOCKADDR_IN,
    FI_SOCKADDR_IN6,
    FI_SOCKADDR_IB,
    FI_ADDR_STR,
    FI_ADDR_PSMX2,
    FI_ADDR_IB_UD,
    FI_ADDR_EFA,
    FI_ADDR_PSMX3,
    FI_ADDR_OPX,
    FI_ADDR_CXI,
    FI_ADDR_UCX,
    FI_SOCKADDR_IP,
    FI_ADDR_UNSPEC,
    FI_ADDR_NOTAVAIL,
    FI_KEY_NOTAVAIL,
    FI_AV_UNSPEC,
    FI_AV_MAP,
    FI_AV_TABLE,
    FI_PROGRESS_UNSPEC,
    FI_PROGRESS_AUTO,
    FI_PROGRESS_MANUAL,
    FI_PROGRESS_CONTROL_UNIFIED,
    FI_THREAD_UNSPEC,
    FI_THREAD_SAFE,
    FI_THREAD_FID,
    FI_THREAD_DOMAIN,
    FI_THREAD_COMPLETION,
    FI_THREAD_ENDPOINT,
    FI_RM_UNSPEC,
    FI_RM_DISABLED,
    FI_RM_ENABLED,
    FI_EP_UNSPEC,
    FI_EP_MSG,
    FI_EP_DGRAM,
    FI_EP_RDM,
    FI_PROTO_UNSPEC,
    FI_PROTO_RDMA_CM_IB_RC,
    FI_PROTO_SOCK_TCP,
    FI_PROTO_RXM,
    FI_PROTO_SHM,
    FI_PROTO_EFA,
    FI_PROTO_RXM_TCP,
    FI_PROTO_OPX,
    FI_PROTO_CXI,
    FI_PROTO_XNET,
    FI_TC_UNSPEC,
    FI_TC_DSCP,
    FI_TC_BEST_EFFORT,
    FI_TC_LOW_LATENCY,
    FI_TC_DEDICATED_ACCESS,
    FI_TC_BULK_DATA,
    FI_TC_SCAVENGER,
    FI_TC_NETWORK_CTRL,
    FI_ORDER_NONE,
    FI_ORDER_RAR,
    FI_ORDER_RAW,
    FI_ORDER_RAS,
    FI_ORDER_WAR,
    FI_ORDER_WAW,
    FI_ORDER_WAS,
    FI_ORDER_SAR,
    FI_ORDER_SAW,
    FI_ORDER_SAS,
    FI_BUS_UNKNOWN,
    FI_BUS_PCI,
    FI_LINK_UNKNOWN,
    FI_LINK_DOWN,
    FI_LINK_UP,
    FI_CLASS_FABRIC,
    FI_CLASS_DOMAIN,
    FI_CLASS_EP,
    FI_CLASS_AV,
    FI_CLASS_MR,
    FI_CLASS_EQ,
    FI_CLASS_CQ,
    FI_CLASS_NIC,
    FI_GETWAIT,
    FI_ENABLE,
    FI_DUP,
    FI_GETWAITOBJ,
    FI_WAIT_NONE,
    FI_WAIT_UNSPEC,
    FI_WAIT_SET,
    FI_WAIT_FD,
    FI_WAIT_MUTEX_COND,
    FI_WAIT_YIELD,
    FI_WAIT_POLLFD,
    FI_CQ_FORMAT_UNSPEC,
    FI_CQ_FORMAT_CONTEXT,
    FI_CQ_FORMAT_MSG,
    FI_CQ_FORMAT_DATA,
    FI_CQ_FORMAT_TAGGED,
    FI_CQ_COND_NONE,
    FI_CQ_COND_THRESHOLD,
    FI_NOTIFY,
    FI_CONNREQ,
    FI_CONNECTED,
    FI_SHUTDOWN,
    FI_MR_COMPLETE,
    FI_AV_COMPLETE,
    FI_OPT_ENDPOINT,
    FI_OPT_MIN_MULTI_RECV,
    FI_OPT_CM_DATA_SIZE,
    FI_OPT_SEND_BUF_SIZE,
    FI_OPT_RECV_BUF_SIZE,
    FI_OPT_TX_SIZE,
    FI_OPT_RX_SIZE,
    FI_OPT_FI_HMEM_P2P,
    FI_OPT_CUDA_API_PERMITTED,
    FI_OPT_SHARED_MEMORY_PERMITTED,
    FI_OPT_MAX_MSG_SIZE,
    FI_OPT_MAX_TAGGED_SIZE,
    FI_OPT_MAX_RMA_SIZE,
    FI_OPT_MAX_ATOMIC_SIZE,
    FI_OPT_INJECT_MSG_SIZE,
    FI_OPT_INJECT_TAGGED_SIZE,
    FI_OPT_INJECT_RMA_SIZE,
    FI_OPT_INJECT_ATOMIC_SIZE,
    FI_HMEM_P2P_ENABLED,
    FI_HMEM_P2P_REQUIRED,
    FI_HMEM_P2P_PREFERRED,
    FI_HMEM_P2P_DISABLED,
    FI_OPT_EFA_RNR_RETRY,
    FI_OPT_EFA_EMULATED_READ,
    FI_OPT_EFA_EMULATED_WRITE,
    FI_OPT_EFA_EMULATED_ATOMICS,
    FI_OPT_EFA_USE_DEVICE_RDMA,
    FI_OPT_EFA_SENDRECV_IN_ORDER_ALIGNED_128_BYTES,
    FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES,
    FI_OPT_EFA_HOMOGENEOUS_PEERS,
    FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV,
    FI_TYPE_INFO,
    FI_TYPE_EP_TYPE,
    FI_TYPE_CAPS,
    FI_TYPE_OP_FLAGS,
    FI_TYPE_ADDR_FORMAT,
    FI_TYPE_THREADING,
    FI_TYPE_PROGRESS,
    FI_TYPE_PROTOCOL,
    FI_TYPE_MSG_ORDER,
    FI_TYPE_MODE,
    FI_TYPE_CQ_EVENT_FLAGS,
    FI_TYPE_MR_MODE,
    FI_PARAM_STRING,
    FI_PARAM_INT,
    FI_PARAM_BOOL,
    FI_PARAM_SIZE_T,
    FI_SUCCESS,
    FI_EOTHER,
    FI_ETOOSMALL,
    FI_EOPBADSTATE,
    FI_EAVAIL,
    FI_EBADFLAGS,
    FI_ENOEQ,
    FI_EDOMAIN,
    FI_ENOCQ,
    FI_ECRC,
    FI_ETRUNC,
    FI_ENOKEY,
    FI_ENOAV,
    FI_EOVERRUN,
    FI_ENORX,
    FI_ENOMR,
    FI_EFIREWALLADDR,
    FI_EPERM,
    FI_ENOENT,
    FI_EINTR,
    FI_EIO,
    FI_E2BIG,
    FI_EBADF,
    FI_EAGAIN,
    FI_ENOMEM,
    FI_EACCES,
    FI_EFAULT,
    FI_EBUSY,
    FI_ENODEV,
    FI_EINVAL,
    FI_EMFILE,
    FI_ENOSPC,
    FI_ENOSYS,
    FI_EWOULDBLOCK,
    FI_ENOMSG,
    FI_ENODATA,
    FI_EPROTO,
    FI_EOVERFLOW,
    FI_EMSGSIZE,
    FI_ENOPROTOOPT,
    FI_EOPNOTSUPP,
    FI_EADDRINUSE,
    FI_EADDRNOTAVAIL,
    FI_ENETDOWN,
    FI_ENETUNREACH,
    FI_ECONNABORTED,
    FI_ECONNRESET,
    FI_ENOBUFS,
    FI_EISCONN,
    FI_ENOTCONN,
    FI_ESHUTDOWN,
    FI_ETIMEDOUT,
    FI_ECONNREFUSED,
    FI_EHOSTDOWN,
    FI_EHOSTUNREACH,
    FI_EALREADY,
    FI_EINPROGRESS,
    FI_EREMOTEIO,
    FI_ECANCELED,
    FI_EKEYREJECTED,
);

/// Parts of unions, which C has no names for, and widths that an offset does not show.
fn parts() -> Vec<Figure> {
    let figure =
        |label: &str, rust: usize, c: &str| Figure { label: label.into(), rust: rust as i64, c: c.into() };
    vec![
        figure("dmabuf", offset_of!(fi_mr_attr, memory), "offsetof(struct fi_mr_attr, dmabuf)"),
        figure("mr memory", size_of::<fi_mr_attr_memory>(), "sizeof(((struct fi_mr_attr *)0)->mr_iov)"),
        figure("mr device", size_of::<fi_mr_attr_device>(), "sizeof(((struct fi_mr_attr *)0)->device)"),
        figure(
            "device.cuda",
            0,
            "offsetof(struct fi_mr_attr, device.cuda) - offsetof(struct fi_mr_attr, device)",
        ),
        figure(
            "device.rocr",
            0,
            "offsetof(struct fi_mr_attr, device.rocr) - offsetof(struct fi_mr_attr, device)",
        ),
        figure(
            "progress",
            offset_of!(fi_domain_attr, data_progress),
            "offsetof(struct fi_domain_attr, progress)",
        ),
        figure("mr_mode", size_of::<i32>(), "sizeof(((struct fi_domain_attr *)0)->mr_mode)"),
        figure("iface", size_of::<u32>(), "sizeof(((struct fi_mr_attr *)0)->iface)"),
        figure("addr_format", size_of::<u32>(), "sizeof(((struct fi_info *)0)->addr_format)"),
        figure("tclass of tx", size_of::<u32>(), "sizeof(((struct fi_tx_attr *)0)->tclass)"),
        figure("err", size_of::<i32>(), "sizeof(((struct fi_cq_err_entry *)0)->err)"),
        figure("link speed", size_of::<usize>(), "sizeof(((struct fi_link_attr *)0)->speed)"),
        // What FABRIC_1.3 ends with is where ours ends; later headers go on behind it.
        figure(
            "end of fi_domain_attr",
            offset_of!(fi_domain_attr, tclass) + 4,
            "offsetof(struct fi_domain_attr, tclass) + sizeof(((struct fi_domain_attr *)0)->tclass)",
        ),
        figure(
            "end of fi_ep_attr",
            offset_of!(fi_ep_attr, auth_key) + 8,
            "offsetof(struct fi_ep_attr, auth_key) + sizeof(((struct fi_ep_attr *)0)->auth_key)",
        ),
        figure("version 2.5", fi_version_of(2, 5) as usize, "FI_VERSION(2, 5)"),
    ]
}

/// Everything.
pub(crate) fn all() -> Vec<Figure> {
    let mut all = places();
    all.extend(parts());
    all.extend(constants());
    all
}

/// What came after 1.17, by the release that it came with: only headers older than that may lack it.
pub(crate) const YOUNGER: &[((u16, u16), &[&str])] = &[
    (
        (1, 18),
        &[
            "FI_ADDR_UCX",
            "FI_OPT_CUDA_API_PERMITTED",
            "FI_OPT_EFA_EMULATED_READ",
            "FI_OPT_EFA_EMULATED_WRITE",
            "FI_OPT_EFA_EMULATED_ATOMICS",
            "FI_OPT_EFA_USE_DEVICE_RDMA",
            "FI_OPT_EFA_SENDRECV_IN_ORDER_ALIGNED_128_BYTES",
            "FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES",
        ],
    ),
    ((1, 19), &["fi_mr_attr.hmem_data"]),
    (
        (1, 20),
        &[
            "size of fi_mr_dmabuf",
            "fi_mr_dmabuf.fd",
            "fi_mr_dmabuf.offset",
            "fi_mr_dmabuf.len",
            "fi_mr_dmabuf.base_addr",
            "dmabuf",
            "fi_cq_err_entry.src_addr",
            "fi_ops_av.insert_auth_key",
            "fi_ops_av.lookup_auth_key",
            "fi_ops_av.set_user_id",
            "FI_MR_DMABUF",
            "FI_ENOMR",
        ],
    ),
    ((1, 21), &["FI_OPT_SHARED_MEMORY_PERMITTED", "FI_PROGRESS_CONTROL_UNIFIED"]),
    (
        (1, 22),
        &[
            "fi_mr_attr.page_size",
            "FI_OPT_MAX_MSG_SIZE",
            "FI_OPT_MAX_TAGGED_SIZE",
            "FI_OPT_MAX_RMA_SIZE",
            "FI_OPT_MAX_ATOMIC_SIZE",
            "FI_OPT_INJECT_MSG_SIZE",
            "FI_OPT_INJECT_TAGGED_SIZE",
            "FI_OPT_INJECT_RMA_SIZE",
            "FI_OPT_INJECT_ATOMIC_SIZE",
        ],
    ),
    ((2, 0), &["fi_mr_attr.base_mr", "fi_mr_attr.sub_mr_cnt", "progress", "FI_MR_SINGLE_USE", "FI_EPROTO"]),
    ((2, 2), &["FI_RESCAN", "FI_EFIREWALLADDR", "FI_OPT_EFA_HOMOGENEOUS_PEERS"]),
    ((2, 3), &["FI_SOCKADDR_IP"]),
    ((2, 5), &["device.rocr", "FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV"]),
    ((2, 6), &["FI_EFA_WR_HIGH_PPS"]),
    (
        (2, 7),
        &[
            "fi_ops_domain.xpu_ctx",
            "fi_ops_ep.export_xpu",
            "fi_ops_cq.export_xpu",
            "fi_ops_av.lookup2",
            "fi_cq_attr.xpu_ctx",
        ],
    ),
];

/// Sizes that count only where the headers have the last field that is here.
pub(crate) const GROWN: &[(&str, &str)] = &[
    ("size of fi_ops_domain", "fi_ops_domain.xpu_ctx"),
    ("size of fi_ops_ep", "fi_ops_ep.export_xpu"),
    ("size of fi_ops_cq", "fi_ops_cq.export_xpu"),
    ("size of fi_ops_av", "fi_ops_av.lookup2"),
    ("size of fi_mr_attr", "fi_mr_attr.sub_mr_cnt"),
    ("size of fi_cq_attr", "fi_cq_attr.xpu_ctx"),
    ("size of fi_cq_err_entry", "fi_cq_err_entry.src_addr"),
];

/// Sizes that count only where the headers do not go on behind the last field that is here, with what comes there.
pub(crate) const GOES_ON: &[(&str, &str)] = &[
    ("size of fi_domain_attr", "offsetof(struct fi_domain_attr, max_ep_auth_key)"),
    ("size of fi_ep_attr", "offsetof(struct fi_ep_attr, xpu_ctx)"),
];
