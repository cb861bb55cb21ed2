//! PCI facts: addresses, ids, links.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Amazon's PCI vendor id.
pub const VENDOR_AMAZON: u16 = 0x1d0f;
/// NVIDIA's PCI vendor id.
pub const VENDOR_NVIDIA: u16 = 0x10de;

/// A PCI function's address: `domain:bus:device.function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// PCI segment.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Slot on the bus, 0–31.
    pub device: u8,
    /// Function in the slot, 0–7.
    pub function: u8,
}

impl PciAddress {
    /// Function `function` of slot `device` on `bus` of segment 0, where all devices of an EC2 instance sit.
    pub const fn new(bus: u8, device: u8, function: u8) -> PciAddress {
        PciAddress { domain: 0, bus, device, function }
    }

    /// The name that rdma-core's renaming rule (by PCI path) gives an RDMA device at this address on EC2.
    pub fn rdma_name(&self) -> String {
        let PciAddress { domain, bus, device, function } = self;
        let domain = if *domain == 0 { String::new() } else { format!("P{domain}") };
        let function = if *function == 0 { String::new() } else { format!("f{function}") };
        format!("rdma{domain}p{bus}s{device}{function}")
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a PCI address: expected domain:bus:device.function in hexadecimal, e.g. 0000:4f:00.0")]
pub struct BadPciAddress(pub String);

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    fn from_str(text: &str) -> Result<PciAddress, BadPciAddress> {
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let address = PciAddress {
                domain: u16::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: u8::from_str_radix(device, 16).ok()?,
                function: u8::from_str_radix(function, 16).ok()?,
            };
            // One spelling per address: `+1` and `1` are not two devices.
            (address.device < 32 && address.function < 8 && address.to_string() == text.to_ascii_lowercase())
                .then_some(address)
        };
        parse().ok_or_else(|| BadPciAddress(text.to_string()))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = BadPciAddress;

    fn try_from(text: String) -> Result<PciAddress, BadPciAddress> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> String {
        address.to_string()
    }
}

/// What a PCI function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciIds {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem device id.
    pub subsystem_device: u16,
    /// Class, subclass and programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

impl PciIds {
    /// A function of Amazon's whose subsystem ids repeat the device's, as those of EC2 do.
    pub const fn amazon(device: u16, class: u32) -> PciIds {
        PciIds {
            vendor: VENDOR_AMAZON,
            device,
            subsystem_vendor: VENDOR_AMAZON,
            subsystem_device: device,
            class,
            revision: 0,
        }
    }

    /// A function of NVIDIA's; revision a1, as all data-centre parts have.
    pub const fn nvidia(device: u16, subsystem_device: u16, class: u32) -> PciIds {
        PciIds {
            vendor: VENDOR_NVIDIA,
            device,
            subsystem_vendor: VENDOR_NVIDIA,
            subsystem_device,
            class,
            revision: 0xa1,
        }
    }
}

/// Class code of an Ethernet controller: EFA's.
pub const CLASS_ETHERNET: u32 = 0x02_00_00;
/// Class code of a 3D controller: a data-centre GPU's.
pub const CLASS_3D: u32 = 0x03_02_00;
/// Class code of a PCI-to-PCI bridge.
pub const CLASS_BRIDGE: u32 = 0x06_04_00;
/// Class code "other bridge": an NVSwitch's.
pub const CLASS_OTHER_BRIDGE: u32 = 0x06_80_00;

/// A PCI Express link: generation and lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciLink {
    /// PCI Express generation, 1–6.
    pub generation: u8,
    /// Lanes: 1, 2, 4, 8, 16 or 32.
    pub width: u8,
}

impl PciLink {
    /// A link of `generation` with `width` lanes.
    pub const fn new(generation: u8, width: u8) -> PciLink {
        PciLink { generation, width }
    }

    /// Transfers per second and lane in units of 10⁸ (25 = 2.5 GT/s).
    fn decitransfers(self) -> u64 {
        match self.generation {
            0 | 1 => 25,
            2 => 50,
            generation => 80 << (generation.min(6) - 3),
        }
    }

    /// What one direction carries in bit/s, line coding taken off (8b/10b up to generation 2, 128b/130b after).
    pub fn bits_per_second(self) -> u64 {
        let raw = self.decitransfers() * 100_000_000 * u64::from(self.width);
        if self.generation <= 2 { raw / 10 * 8 } else { raw / 130 * 128 }
    }

    /// The speed as the kernel prints it in `current_link_speed`.
    pub fn speed_text(self) -> String {
        let deci = self.decitransfers();
        format!("{}.{} GT/s PCIe", deci / 10, deci % 10)
    }

    /// Whether a device can have such a link.
    pub fn is_valid(self) -> bool {
        (1..=6).contains(&self.generation) && matches!(self.width, 1 | 2 | 4 | 8 | 16 | 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_written() {
        let address = PciAddress::new(0x4f, 0x1b, 1);
        assert_eq!(address.to_string(), "0000:4f:1b.1");
        assert_eq!("0000:4f:1b.1".parse(), Ok(address));
        for bad in ["", "4f:00.0", "0000:4f:20.0", "0000:4f:00.8", "0000:4f:00", "0:4f:00.0", "0000:+4:00.0"]
        {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rdma_names_are_those_of_ec2() {
        assert_eq!(PciAddress::new(0x4f, 0, 0).rdma_name(), "rdmap79s0");
        assert_eq!(PciAddress::new(0x10, 0x1b, 0).rdma_name(), "rdmap16s27");
    }

    #[test]
    fn a_link_carries_what_hwloc_computes_for_it() {
        // hwloc prints 15.753846, 31.507692 and 63.015385 GB/s for these on EC2.
        assert_eq!(PciLink::new(4, 8).bits_per_second() / 1_000_000, 126_030);
        assert_eq!(PciLink::new(5, 8).bits_per_second() / 1_000_000, 252_061);
        assert_eq!(PciLink::new(5, 16).bits_per_second() / 1_000_000, 504_123);
        assert_eq!(PciLink::new(1, 1).speed_text(), "2.5 GT/s PCIe");
        assert_eq!(PciLink::new(5, 16).speed_text(), "32.0 GT/s PCIe");
    }
}
