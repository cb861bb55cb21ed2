//! PCI addresses, the way from a root complex to a function, and what a PCIe link carries.

use std::fmt;
use std::str::FromStr;

/// Address of a PCI function: `0000:4f:00.0`. Ordered as `CUDA_DEVICE_ORDER=PCI_BUS_ID` orders GPUs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciAddress {
    /// Segment. More than 16 bits where a driver makes up its own (Intel VMD starts at `10000`).
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device on the bus, 0–31.
    pub device: u8,
    /// Function of the device, 0–7.
    pub function: u8,
}

impl PciAddress {
    /// An address of its four parts, as libfabric's `fi_pci_attr` holds them.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Self {
        Self { domain, bus, device, function }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// A text that is no PCI address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no PCI address; write 0000:4f:00.0 or 4f:00.0")]
pub struct BadPciAddress(pub String);

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    /// Reads `0000:4f:00.0`, `4f:00.0` (domain 0) and NVIDIA's `00000000:4F:00.0`.
    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        parse(text).ok_or_else(|| BadPciAddress(text.chars().take(64).collect()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let address = PciAddress {
        domain: hex(domain, 8)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok()?,
        function: u8::try_from(hex(function, 1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

/// One to `digits` hexadecimal digits and nothing else (`from_str_radix` alone would take a sign).
pub(crate) fn hex(text: &str, digits: usize) -> Option<u32> {
    let plain = (1..=digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u32::from_str_radix(text, 16).ok() } else { None }
}

/// A root complex (host bridge): where a PCI tree begins. sysfs calls it `pci0000:44`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RootComplex {
    /// Segment.
    pub domain: u32,
    /// First bus.
    pub bus: u8,
}

impl fmt::Display for RootComplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}", self.domain, self.bus)
    }
}

impl RootComplex {
    /// Reads `pci0000:44`.
    fn parse(text: &str) -> Option<Self> {
        let (domain, bus) = text.strip_prefix("pci")?.split_once(':')?;
        Some(Self { domain: hex(domain, 8)?, bus: u8::try_from(hex(bus, 2)?).ok()? })
    }
}

/// The way from a root complex to a function.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PciPath {
    /// Where it begins.
    pub root: RootComplex,
    /// The bridges between, outermost (the root port) first.
    pub bridges: Vec<PciAddress>,
}

/// The most bridges above a function; a PCI segment has 256 buses.
const BRIDGES_MAX: usize = 256;

impl PciPath {
    /// The last PCI function on a path of sysfs and the way to it:
    /// `devices/pci0000:44/0000:44:00.0/0000:45:00.0/infiniband/x` → `0000:45:00.0` below `0000:44:00.0`.
    pub(crate) fn parse(path: &str) -> Option<(PciAddress, PciPath)> {
        let mut parts = path.split('/').skip_while(|part| RootComplex::parse(part).is_none());
        let root = RootComplex::parse(parts.next()?)?;
        let mut bridges: Vec<PciAddress> = Vec::new();
        for part in parts {
            // A VMD's own root (pci10000:e0) lies below the function that is the VMD; that function counts as a bridge.
            if RootComplex::parse(part).is_some() {
                continue;
            }
            match parse(part) {
                Some(address) if bridges.len() < BRIDGES_MAX => bridges.push(address),
                _ => break,
            }
        }
        let address = bridges.pop()?;
        Some((address, PciPath { root, bridges }))
    }
}

/// What a PCIe link carries in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PciLink {
    /// Bits of data per second, after line encoding and before packet headers (which take 5–20 % more).
    pub bps: u64,
    /// Speed of a lane in 10^6 transfers per second, and the number of lanes; `None` where only the product is known
    /// (hwloc).
    pub lanes: Option<(u32, u8)>,
}

/// Speeds of PCIe generations 1 to 6 in 10^6 transfers per second, with the share that line encoding leaves: 8b/10b,
/// 128b/130b, and flits of 242 of 256 bytes (PCI Express Base 6.0, 4.2).
const GENERATIONS: [(u32, u64, u64); 6] = [
    (2_500, 8, 10),
    (5_000, 8, 10),
    (8_000, 128, 130),
    (16_000, 128, 130),
    (32_000, 128, 130),
    (64_000, 242, 256),
];

impl PciLink {
    /// The link of `width` lanes at `mega_transfers` × 10^6 transfers per second; `None` for a speed or width that PCIe
    /// does not have.
    pub fn new(mega_transfers: u32, width: u8) -> Option<Self> {
        let (_, data, of) = GENERATIONS.into_iter().find(|(speed, ..)| *speed == mega_transfers)?;
        if !matches!(width, 1 | 2 | 4 | 8 | 12 | 16 | 32) {
            return None;
        }
        let bps = u64::from(mega_transfers) * 1_000_000 * u64::from(width) * data / of;
        Some(Self { bps, lanes: Some((mega_transfers, width)) })
    }

    /// The link of `current_link_speed` (`16.0 GT/s PCIe`) and `current_link_width` (`8`).
    pub(crate) fn parse(speed: &str, width: &str) -> Option<Self> {
        Self::new(parse_speed(speed)?, width.trim().parse().ok()?)
    }

    /// PCIe generation, where known.
    pub fn generation(&self) -> Option<u8> {
        let (speed, _) = self.lanes?;
        GENERATIONS.iter().position(|(it, ..)| *it == speed).map(|index| index as u8 + 1)
    }

    /// 10^9 bytes per second.
    pub fn gbytes_per_second(&self) -> f64 {
        self.bps as f64 / 8e9
    }
}

/// `16.0 GT/s PCIe` → 16,000.
pub(crate) fn parse_speed(text: &str) -> Option<u32> {
    let (number, unit) = text.trim().split_once(' ')?;
    let speed: f64 = number.parse().ok()?;
    let plain = unit.starts_with("GT/s") && (0.1..=1000.0).contains(&speed);
    plain.then_some((speed * 1000.0).round() as u32)
}

impl fmt::Display for PciLink {
    /// `Gen5 x16`, or `63.0 GB/s` where the lanes are not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.generation(), self.lanes) {
            (Some(generation), Some((_, width))) => write!(f, "Gen{generation} x{width}"),
            _ => write!(f, "{:.1} GB/s", self.gbytes_per_second()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_linux_libfabric_and_nvidia_print_them() {
        let address = PciAddress::new(0, 0x4f, 0, 0);
        for text in ["0000:4f:00.0", "4f:00.0", "00000000:4F:00.0"] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        assert_eq!(address.to_string(), "0000:4f:00.0");
        assert_eq!("10000:e1:00.0".parse::<PciAddress>().unwrap().to_string(), "10000:e1:00.0");
        for text in ["", ".", "4f:00", "0000:4f:20.0", "0000:4f:00.8", "+f:00.0", "0000:100:00.0", "é:00.0"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_way_to_a_function_is_its_sysfs_path() {
        let path =
            "devices/pci0000:44/0000:44:00.0/0000:45:00.0/0000:46:01.0/0000:4f:00.0/infiniband/rdmap79s0";
        let (address, way) = PciPath::parse(path).unwrap();
        assert_eq!(address.to_string(), "0000:4f:00.0");
        assert_eq!(way.root.to_string(), "0000:44");
        assert_eq!(way.bridges.len(), 3);
        let (address, way) = PciPath::parse("devices/platform/soc/pci0001:00/0001:00:00.0/x").unwrap();
        assert_eq!((address.domain, way.bridges.len()), (1, 0));
        let vmd = "devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme";
        assert_eq!(PciPath::parse(vmd).unwrap().1.bridges.len(), 2);
        assert_eq!(PciPath::parse("devices/virtual/net/lo"), None);
    }

    #[test]
    fn a_link_carries_lanes_times_speed_less_encoding() {
        let gbytes = |speed, width| {
            let link = PciLink::parse(speed, width)?;
            Some((link.gbytes_per_second() * 100.0).round() / 100.0)
        };
        assert_eq!(gbytes("2.5 GT/s PCIe", "1"), Some(0.25));
        assert_eq!(gbytes("16.0 GT/s PCIe", "8\n"), Some(15.75));
        assert_eq!(gbytes("32.0 GT/s PCIe", "16"), Some(63.02));
        assert_eq!(gbytes("64.0 GT/s PCIe", "16"), Some(121.0));
        for (speed, width) in [("Unknown", "8"), ("16.0 GT/s", "0"), ("16.0 GT/s", "255"), ("17.0 GT/s", "8")]
        {
            assert_eq!(gbytes(speed, width), None, "{speed} {width}");
        }
        assert_eq!(PciLink::new(32_000, 16).unwrap().to_string(), "Gen5 x16");
    }
}
