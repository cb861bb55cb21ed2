//! The hardware that an offer stands on.

use super::abi::{self, FI_BUS_PCI, fi_device_attr, fi_link_attr, fi_pci_attr, fid_nic};
use super::info::name;

/// The hardware below an offer.
#[derive(Clone, Copy)]
pub struct Nic<'a>(pub(super) &'a fid_nic);

/// Where on the PCI bus a device is: as in `0000:00:06.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciAddress {
    /// Domain, bus, device, function.
    pub parts: (u16, u8, u8, u8),
}

impl std::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (domain, bus, device, function) = self.parts;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl<'a> Nic<'a> {
    fn device(&self) -> Option<&'a fi_device_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.0.device_attr.as_ref() }
    }

    fn link(&self) -> Option<&'a fi_link_attr> {
        // SAFETY: null or alive with the entry.
        unsafe { self.0.link_attr.as_ref() }
    }

    /// The device's name, as in `rdmap0s6`.
    #[must_use]
    pub fn device_name(&self) -> &'a str {
        self.device().map_or("", |device| name(device.name))
    }

    /// The driver's name, as in `efa`.
    #[must_use]
    pub fn driver(&self) -> &'a str {
        self.device().map_or("", |device| name(device.driver))
    }

    /// The firmware's version.
    #[must_use]
    pub fn firmware(&self) -> &'a str {
        self.device().map_or("", |device| name(device.firmware))
    }

    /// Where it is; none when it is not on a PCI bus or the provider does not say.
    #[must_use]
    pub fn pci(&self) -> Option<PciAddress> {
        // SAFETY: null or alive with the entry.
        let bus = unsafe { self.0.bus_attr.as_ref() }.filter(|bus| bus.bus_type == FI_BUS_PCI)?;
        let fi_pci_attr { domain_id, bus_id, device_id, function_id } = bus.pci;
        Some(PciAddress { parts: (domain_id, bus_id, device_id, function_id) })
    }

    /// Its rate, bits per second; 0 where it is not known.
    #[must_use]
    pub fn bits_per_second(&self) -> u64 {
        self.link().map_or(0, |link| link.speed as u64)
    }

    /// Bytes of a packet; 0 where it is not known.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.link().map_or(0, |link| link.mtu)
    }

    /// `FI_LINK_…`
    #[must_use]
    pub fn link_state(&self) -> u32 {
        self.link().map_or(abi::FI_LINK_UNKNOWN, |link| link.state)
    }

    /// The link's address in words.
    #[must_use]
    pub fn link_address(&self) -> &'a str {
        self.link().map_or("", |link| name(link.address))
    }

    /// The kind of network, as in `InfiniBand` or `Ethernet`.
    #[must_use]
    pub fn network_type(&self) -> &'a str {
        self.link().map_or("", |link| name(link.network_type))
    }
}
