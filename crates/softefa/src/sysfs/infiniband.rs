//! RDMA devices: `…/infiniband/<device>`, `…/infiniband_verbs/uverbs<n>`, and their classes.

use super::counters::{self, CounterNames, LIFESPAN};
use super::tree::Tree;
use super::{SysfsError, pci};
use crate::shape::{NicShape, Shape};

/// Version of the kernel's verbs interface, in `class/infiniband_verbs`.
const VERBS_ABI: u32 = 6;
/// Version of EFA's own part of it.
const EFA_ABI: u32 = 1;
/// Character device numbers of verbs devices: a fixed block of 32 minors, then the kernel's dynamic ones.
const VERBS_MAJOR: u32 = 231;
const VERBS_MINOR: usize = 192;
const VERBS_FIXED: usize = 32;
const VERBS_DYNAMIC_MAJOR: u32 = 510;

pub(super) fn write(
    tree: &mut Tree,
    shape: &Shape,
    gid: &dyn Fn(usize) -> [u8; 16],
    names: CounterNames<'_>,
) -> Result<(), SysfsError> {
    tree.line("sys/class/infiniband_verbs/abi_version", VERBS_ABI)?;
    for (index, nic) in shape.nics.iter().enumerate() {
        let gid = gid(index);
        write_device(tree, shape, nic, &gid)?;
        write_port(tree, shape, nic, &gid)?;
        write_verbs(tree, shape, nic, index)?;
        let directories = counter_directories(shape, index);
        for (directory, names) in directories.iter().zip([names.port, names.device]) {
            tree.line(&format!("{directory}/{LIFESPAN}"), 10)?;
            for name in names {
                tree.own_file(&format!("{directory}/{name}"), counters::content(0))?;
            }
        }
    }
    Ok(())
}

/// Where the counters of NIC `index` are, from the node's root: its port's, its own.
pub(super) fn counter_directories(shape: &Shape, index: usize) -> [String; 2] {
    let device = shape.nics.get(index).map(|nic| device_path(shape, nic)).unwrap_or_default();
    [format!("{device}/ports/1/hw_counters"), format!("{device}/hw_counters")]
}

fn device_path(shape: &Shape, nic: &NicShape) -> String {
    format!("{}/infiniband/{}", pci::path(shape, nic.address), nic.name)
}

fn write_device(tree: &mut Tree, shape: &Shape, nic: &NicShape, gid: &[u8; 16]) -> Result<(), SysfsError> {
    let path = device_path(shape, nic);
    // EFA is neither a channel adapter nor an RNIC; the RDMA core calls that 7.
    tree.line(&format!("{path}/node_type"), "7: unspecified")?;
    tree.line(&format!("{path}/node_guid"), groups(&gid[8..]))?;
    tree.line(&format!("{path}/sys_image_guid"), groups(&[0; 8]))?;
    // EFA's driver gives neither; its user-space provider gets the firmware's version from the device.
    tree.line(&format!("{path}/node_desc"), "")?;
    tree.line(&format!("{path}/fw_ver"), "")?;
    tree.line(&format!("{path}/uevent"), format_args!("NAME={}", nic.name))?;
    tree.link(&format!("{path}/device"), &pci::path(shape, nic.address))?;
    tree.link(&format!("{path}/subsystem"), "sys/class/infiniband")?;
    tree.link(&format!("sys/class/infiniband/{}", nic.name), &path)
}

fn write_port(tree: &mut Tree, shape: &Shape, nic: &NicShape, gid: &[u8; 16]) -> Result<(), SysfsError> {
    let path = format!("{}/ports/1", device_path(shape, nic));
    // The driver reports these whatever the link does; only counters and completions tell that a rail is dead.
    tree.line(&format!("{path}/state"), "4: ACTIVE")?;
    tree.line(&format!("{path}/phys_state"), "5: LinkUp")?;
    tree.line(&format!("{path}/rate"), rate(nic.rate_bps))?;
    tree.line(&format!("{path}/lid"), "0x0")?;
    tree.line(&format!("{path}/lid_mask_count"), 1)?;
    tree.line(&format!("{path}/sm_lid"), "0x0")?;
    tree.line(&format!("{path}/sm_sl"), 0)?;
    tree.line(&format!("{path}/cap_mask"), "0x00000000")?;
    tree.line(&format!("{path}/link_layer"), "Unknown")?;
    tree.line(&format!("{path}/gids/0"), groups(gid))?;
    tree.line(&format!("{path}/gid_attrs/types/0"), "IB/RoCE v1")?;
    // EFA's GID belongs to no network interface: reading ndevs/0 fails on a real one, so the file is left out.
    tree.directory(&format!("{path}/gid_attrs/ndevs"))?;
    tree.line(&format!("{path}/pkeys/0"), "0xffff")
}

fn write_verbs(tree: &mut Tree, shape: &Shape, nic: &NicShape, index: usize) -> Result<(), SysfsError> {
    let name = format!("uverbs{index}");
    let path = format!("{}/infiniband_verbs/{name}", pci::path(shape, nic.address));
    let (major, minor) = match index {
        0..VERBS_FIXED => (VERBS_MAJOR, VERBS_MINOR + index),
        _ => (VERBS_DYNAMIC_MAJOR, index - VERBS_FIXED),
    };
    tree.line(&format!("{path}/ibdev"), &nic.name)?;
    tree.line(&format!("{path}/abi_version"), EFA_ABI)?;
    tree.line(&format!("{path}/dev"), format_args!("{major}:{minor}"))?;
    let uevent = format!("MAJOR={major}\nMINOR={minor}\nDEVNAME=infiniband/{name}\nDEVMODE=0666\n");
    tree.file(&format!("{path}/uevent"), uevent)?;
    tree.link(&format!("{path}/device"), &pci::path(shape, nic.address))?;
    tree.link(&format!("{path}/subsystem"), "sys/class/infiniband_verbs")?;
    tree.link(&format!("sys/class/infiniband_verbs/{name}"), &path)
}

/// Bytes as groups of four hexadecimal digits, as GIDs and GUIDs are printed.
fn groups(bytes: &[u8]) -> String {
    let group = |pair: &[u8]| pair.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(2).map(group).collect::<Vec<_>>().join(":")
}

/// A rate as the RDMA core prints it. EFA's driver has to express it as lanes times InfiniBand speed and takes the
/// largest pair that is not above the device's Gb/s; the core then prints that pair's product.
fn rate(bps: u64) -> &'static str {
    match bps / 1_000_000_000 {
        400.. => "400 Gb/sec (8X HDR)",
        200.. => "200 Gb/sec (4X HDR)",
        120.. => "120 Gb/sec (12X FDR10)",
        100.. => "100 Gb/sec (4X EDR)",
        60.. => "60 Gb/sec (12X DDR)",
        50.. => "50 Gb/sec (1X HDR)",
        40.. => "40 Gb/sec (4X FDR10)",
        30.. => "30 Gb/sec (12X SDR)",
        _ => "25 Gb/sec (1X EDR)",
    }
}
