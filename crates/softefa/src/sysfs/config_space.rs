//! The PCI configuration space of a function: the 256 bytes that a file `config` holds.

use crate::shape::{BridgeKind, PciIds, PciLink};

/// Bytes of the conventional configuration space.
pub(super) const BYTES: usize = 256;

/// Offset of the PCI Express capability here; devices choose it freely.
const EXPRESS: usize = 0x40;
/// Offset of the subsystem ids capability of a bridge here.
const BRIDGE_SUBSYSTEM: usize = 0x80;

/// What sets a bridge's configuration space apart.
pub(super) struct BridgeHeader {
    pub(super) kind: BridgeKind,
    pub(super) primary: u8,
    pub(super) secondary: u8,
    pub(super) subordinate: u8,
}

/// Fills in the standard header (type 0, or type 1 with bus numbers for a bridge), and a PCI Express capability with
/// the link's speed and width where there is a link. Layout: PCI Local Bus 3.0, 6.1 and 6.2; PCI-to-PCI Bridge
/// Architecture 1.2, 3.2; PCI Express Base 5.0, 7.5.3.
pub(super) fn bytes(
    ids: &PciIds,
    link: Option<PciLink>,
    bridge: Option<&BridgeHeader>,
    multifunction: bool,
) -> [u8; BYTES] {
    let mut space = [0u8; BYTES];
    let mut put16 = |at: usize, value: u16| space[at..at + 2].copy_from_slice(&value.to_le_bytes());
    put16(0x00, ids.vendor);
    put16(0x02, ids.device);
    // Command: memory decoding, bus mastering, legacy interrupt off. Status: has capabilities.
    put16(0x04, 0x0406);
    put16(0x06, if link.is_some() || bridge.is_some() { 0x0010 } else { 0 });
    // Revision below, class above.
    put16(0x08, u16::from(ids.revision) | (ids.class as u16) << 8);
    put16(0x0a, (ids.class >> 8) as u16);
    let kind = u16::from(bridge.is_some()) | if multifunction { 0x80 } else { 0 };
    put16(0x0e, kind);
    match bridge {
        Some(bridge) => {
            put16(0x18, u16::from(bridge.primary) | u16::from(bridge.secondary) << 8);
            put16(0x1a, u16::from(bridge.subordinate));
            put16(0x34, EXPRESS as u16);
            put16(BRIDGE_SUBSYSTEM, 0x000d);
            put16(BRIDGE_SUBSYSTEM + 4, ids.subsystem_vendor);
            put16(BRIDGE_SUBSYSTEM + 6, ids.subsystem_device);
        }
        None => {
            put16(0x2c, ids.subsystem_vendor);
            put16(0x2e, ids.subsystem_device);
            put16(0x34, if link.is_some() { EXPRESS as u16 } else { 0 });
        }
    }
    if let Some(link) = link {
        let next = if bridge.is_some() { BRIDGE_SUBSYSTEM as u16 } else { 0 };
        put16(EXPRESS, 0x0010 | next << 8);
        let port_type = match bridge.map(|bridge| bridge.kind) {
            None => 0,
            Some(BridgeKind::RootPort) => 4,
            Some(BridgeKind::SwitchUpstream) => 5,
            Some(BridgeKind::SwitchDownstream) => 6,
        };
        put16(EXPRESS + 0x02, 2 | port_type << 4);
        let speed_and_width = u16::from(link.generation) | u16::from(link.width) << 4;
        // Link capabilities, link status, and the vector of supported speeds (bit 1 = 2.5 GT/s).
        put16(EXPRESS + 0x0c, speed_and_width);
        put16(EXPRESS + 0x12, speed_and_width);
        put16(EXPRESS + 0x2c, ((1u16 << link.generation) - 1) << 1);
    }
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_says_which_buses_it_leads_to() {
        let header =
            BridgeHeader { kind: BridgeKind::RootPort, primary: 0x44, secondary: 0x45, subordinate: 0x54 };
        let space =
            bytes(&PciIds::amazon(0x0200, 0x06_04_00), Some(PciLink::new(4, 8)), Some(&header), false);
        assert_eq!(space[..4], [0x0f, 0x1d, 0x00, 0x02]);
        assert_eq!(space[0x08..0x0c], [0x00, 0x00, 0x04, 0x06]);
        assert_eq!(space[0x0e], 1);
        assert_eq!(space[0x18..0x1b], [0x44, 0x45, 0x54]);
        let express = usize::from(space[0x34]);
        assert_eq!(space[express], 0x10);
        assert_eq!(space[express + 0x12], 0x84);
    }
}
