//! Addresses of emulated NICs.

use core::fmt;

use crate::{NICS_PER_NODE_MAX, NODES_MAX};

/// The GID of one NIC: link-local as EFA's are, with node and NIC in its interface identifier.
///
/// Real GIDs hold the MAC address, which no program may interpret; these hold what a person wants to read in a log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gid(pub [u8; 16]);

/// Bytes 8 to 10: a locally administered vendor prefix that no real NIC has.
const MARK: [u8; 3] = [0x02, 0xef, 0xa0];

impl Gid {
    /// The GID of NIC `nic` on `node`, both from 0.
    #[must_use]
    pub const fn of(node: u32, nic: u32) -> Gid {
        let mut raw = [0; 16];
        raw[0] = 0xfe;
        raw[1] = 0x80;
        raw[8] = MARK[0];
        raw[9] = MARK[1];
        raw[10] = MARK[2];
        raw[11] = 0xff;
        raw[12] = 0xfe;
        raw[13] = (node >> 8) as u8;
        raw[14] = node as u8;
        raw[15] = nic as u8;
        Gid(raw)
    }

    /// Node and NIC, if this is the GID of an emulated NIC.
    #[must_use]
    pub fn place(self) -> Option<(u32, u32)> {
        let node = u32::from(self.0[13]) << 8 | u32::from(self.0[14]);
        let nic = u32::from(self.0[15]);
        (node < NODES_MAX && nic < NICS_PER_NODE_MAX && self == Gid::of(node, nic)).then_some((node, nic))
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As `/sys/class/infiniband/*/ports/1/gids/0` prints it: eight groups of four hexadecimal digits.
impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pair) in self.0.chunks_exact(2).enumerate() {
            let separator = if i == 0 { "" } else { ":" };
            write!(f, "{separator}{:02x}{:02x}", pair[0], pair[1])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_tells_its_node_and_nic_and_no_other_address_does() {
        for node in 0..NODES_MAX {
            for nic in 0..NICS_PER_NODE_MAX {
                assert_eq!(Gid::of(node, nic).place(), Some((node, nic)));
            }
        }
        assert_eq!(Gid([0; 16]).place(), None);
        assert_eq!(Gid::of(NODES_MAX, 0).place(), None);
        assert_eq!(Gid::of(1, 2).to_string(), "fe80:0000:0000:0000:02ef:a0ff:fe00:0102");
    }
}
