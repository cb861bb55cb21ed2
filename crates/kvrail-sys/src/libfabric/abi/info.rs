//! What `fi_getinfo` offers: always allocated by libfabric, so that nothing here is longer than in the oldest supported release.

use std::ffi::{c_char, c_int, c_void};

use super::objects::{fid, fid_domain, fid_fabric};

/// How a sender behaves.
#[repr(C)]
pub struct fi_tx_attr {
    pub caps: u64,
    pub mode: u64,
    /// Flags that every operation without flags of its own has.
    pub op_flags: u64,
    pub msg_order: u64,
    pub comp_order: u64,
    /// Longest message that may be injected, bytes.
    pub inject_size: usize,
    /// Operations in flight.
    pub size: usize,
    pub iov_limit: usize,
    pub rma_iov_limit: usize,
    pub tclass: u32,
}

/// How a receiver behaves.
#[repr(C)]
pub struct fi_rx_attr {
    pub caps: u64,
    pub mode: u64,
    pub op_flags: u64,
    pub msg_order: u64,
    pub comp_order: u64,
    pub total_buffered_recv: usize,
    /// Receives that can be posted.
    pub size: usize,
    pub iov_limit: usize,
}

/// What kind an endpoint is.
#[repr(C)]
pub struct fi_ep_attr {
    /// `FI_EP_…`
    pub type_: u32,
    /// `FI_PROTO_…`
    pub protocol: u32,
    pub protocol_version: u32,
    /// Longest message or transfer, bytes.
    pub max_msg_size: usize,
    pub msg_prefix_size: usize,
    pub max_order_raw_size: usize,
    pub max_order_war_size: usize,
    pub max_order_waw_size: usize,
    pub mem_tag_format: u64,
    pub tx_ctx_cnt: usize,
    pub rx_ctx_cnt: usize,
    pub auth_key_size: usize,
    pub auth_key: *mut u8,
}

/// A NIC, or a part of one.
#[repr(C)]
pub struct fi_domain_attr {
    pub domain: *mut fid_domain,
    pub name: *mut c_char,
    /// `FI_THREAD_…`
    pub threading: u32,
    /// `FI_PROGRESS_…`
    pub control_progress: u32,
    /// `FI_PROGRESS_…`; 2.0 also calls it `progress`.
    pub data_progress: u32,
    /// `FI_RM_…`
    pub resource_mgmt: u32,
    /// `FI_AV_…`
    pub av_type: u32,
    /// `FI_MR_…` bits.
    pub mr_mode: c_int,
    pub mr_key_size: usize,
    /// Width of an immediate, bytes.
    pub cq_data_size: usize,
    pub cq_cnt: usize,
    pub ep_cnt: usize,
    pub tx_ctx_cnt: usize,
    pub rx_ctx_cnt: usize,
    pub max_ep_tx_ctx: usize,
    pub max_ep_rx_ctx: usize,
    pub max_ep_stx_ctx: usize,
    pub max_ep_srx_ctx: usize,
    pub cntr_cnt: usize,
    pub mr_iov_limit: usize,
    pub caps: u64,
    pub mode: u64,
    pub auth_key: *mut u8,
    pub auth_key_size: usize,
    pub max_err_data: usize,
    /// Registrations that the domain takes; 0 = not known.
    pub mr_cnt: usize,
    pub tclass: u32,
}

/// A network, as a provider sees it.
#[repr(C)]
pub struct fi_fabric_attr {
    pub fabric: *mut fid_fabric,
    pub name: *mut c_char,
    pub prov_name: *mut c_char,
    pub prov_version: u32,
    pub api_version: u32,
}

/// One offer of a provider.
#[repr(C)]
pub struct fi_info {
    pub next: *mut fi_info,
    pub caps: u64,
    pub mode: u64,
    pub addr_format: u32,
    pub src_addrlen: usize,
    pub dest_addrlen: usize,
    pub src_addr: *mut c_void,
    pub dest_addr: *mut c_void,
    pub handle: *mut fid,
    pub tx_attr: *mut fi_tx_attr,
    pub rx_attr: *mut fi_rx_attr,
    pub ep_attr: *mut fi_ep_attr,
    pub domain_attr: *mut fi_domain_attr,
    pub fabric_attr: *mut fi_fabric_attr,
    /// The hardware; null where a provider has none.
    pub nic: *mut fid_nic,
}

/// Names of a device.
#[repr(C)]
pub struct fi_device_attr {
    pub name: *mut c_char,
    pub device_id: *mut c_char,
    pub device_version: *mut c_char,
    pub vendor_id: *mut c_char,
    pub driver: *mut c_char,
    pub firmware: *mut c_char,
}

/// Where on the PCI bus a device is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fi_pci_attr {
    pub domain_id: u16,
    pub bus_id: u8,
    pub device_id: u8,
    pub function_id: u8,
}

/// The bus of a device; `pci` counts where `bus_type` is `FI_BUS_PCI`.
#[repr(C)]
pub struct fi_bus_attr {
    /// `FI_BUS_…`
    pub bus_type: u32,
    /// In C a union with this one member.
    pub pci: fi_pci_attr,
}

/// The link of a device.
#[repr(C)]
pub struct fi_link_attr {
    pub address: *mut c_char,
    pub mtu: usize,
    /// Bits per second; 0 = not known.
    pub speed: usize,
    /// `FI_LINK_…`
    pub state: u32,
    pub network_type: *mut c_char,
}

/// The hardware below a domain.
#[repr(C)]
pub struct fid_nic {
    pub fid: fid,
    pub device_attr: *mut fi_device_attr,
    pub bus_attr: *mut fi_bus_attr,
    pub link_attr: *mut fi_link_attr,
    pub prov_attr: *mut c_void,
}

/// One parameter of libfabric or a provider, from `fi_getparams`.
#[repr(C)]
pub struct fi_param {
    pub name: *const c_char,
    /// `FI_PARAM_…`
    pub type_: u32,
    pub help_string: *const c_char,
    /// Null where nobody has set it.
    pub value: *const c_char,
}
