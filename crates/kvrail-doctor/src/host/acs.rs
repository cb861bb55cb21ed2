//! The question what a PCIe bridge does to requests between the devices below it: its Access Control Services.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::{Answer, Host, Lack, Live, Question};

/// Configuration space of a PCIe function; whoever is not root is shown the first 64 bytes.
const CONFIG_BYTES: u64 = 4096;
/// Where extended capabilities begin.
const EXTENDED: usize = 0x100;
/// The extended capability "Access Control Services".
const ACS: u32 = 0x000d;

/// Registers of a bridge's Access Control Services (PCI Express Base Specification, 7.7.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AcsRegisters {
    /// What it can do.
    pub capability: u16,
    /// What is switched on.
    pub control: u16,
}

impl AcsRegisters {
    /// Whether requests or completions between devices below it are sent up to the root complex (P2P Request Redirect, P2P Completion
    /// Redirect).
    #[must_use]
    pub fn redirects(self) -> bool {
        self.control & 0b1100 != 0
    }
}

impl Host {
    /// The Access Control Services of the PCI function at an address (`0000:46:01.0`); none where it has no such registers.
    ///
    /// # Errors
    /// [`Lack::Denied`] without the right to see all of the configuration space (root, and CAP_SYS_ADMIN in a container).
    pub fn acs(&self, address: &str) -> Answer<Option<AcsRegisters>> {
        self.ask(&Services(address))
    }
}

struct Services<'a>(&'a str);

impl Question for Services<'_> {
    const SECTION: &'static str = "acs";
    type Answer = Option<AcsRegisters>;

    fn key(&self) -> String {
        self.0.into()
    }

    fn ask(&self, live: &Live) -> Answer<Option<AcsRegisters>> {
        let path = live.path(&format!("/sys/bus/pci/devices/{}/config", self.0));
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(CONFIG_BYTES).read_to_end(&mut bytes)?;
        if bytes.len() <= 64 {
            return Err(Lack::Denied);
        }
        Ok(find(&bytes))
    }
}

/// Follows the list of extended capabilities. It comes from a file and may be anything: each step is checked, and there are no more
/// steps than capabilities have room.
fn find(bytes: &[u8]) -> Option<AcsRegisters> {
    let word = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let mut at = EXTENDED;
    for _ in 0..CONFIG_BYTES as usize / 8 {
        let header = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
        if header & 0xffff == ACS {
            return Some(AcsRegisters { capability: word(at + 4)?, control: word(at + 6)? });
        }
        at = (header >> 20) as usize & !3;
        if at < EXTENDED {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Scope;

    fn space(capabilities: &[(usize, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; CONFIG_BYTES as usize];
        for &(at, value) in capabilities {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_services_are_found_behind_other_capabilities_and_a_circle_ends() {
        let behind = space(&[(0x100, 0x1480_0001), (0x148, 0x0001_000d), (0x14c, 0x001d_005f)]);
        let found = find(&behind).unwrap();
        assert_eq!(found, AcsRegisters { capability: 0x5f, control: 0x1d });
        assert!(found.redirects() && !AcsRegisters { control: 0x11, ..found }.redirects());
        assert_eq!(find(&space(&[(0x100, 0x1000_0001)])), None, "a capability that leads to itself");
        assert_eq!(find(&space(&[(0x100, 0xfff0_0001)])), None, "one that leads out");
        assert_eq!(find(&behind[..0x14a]), None);
    }

    #[test]
    fn sixty_four_bytes_are_what_others_than_root_see() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("sys/bus/pci/devices/0000:46:01.0");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("config"), [0; 64]).unwrap();
        let host = Host::live(Live::new().with_root(root.path()), Scope::default());
        assert_eq!(host.acs("0000:46:01.0"), Err(Lack::Denied));
        assert_eq!(host.acs("0000:46:02.0"), Err(Lack::Absent));
    }
}
