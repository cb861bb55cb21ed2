//! Line rates: how the kernel prints a port's, and what is known of instance types whose sources do not say.

/// The fastest port that is believed: 100 Tb/s.
const RATE_MAX_BPS: f64 = 1e14;

/// Bits per second of one lane by InfiniBand's names of speeds, as the kernel's RDMA core rounds them.
const LANES: [(&str, f64); 9] = [
    ("SDR", 2.5e9),
    ("DDR", 5e9),
    ("QDR", 10e9),
    ("FDR10", 10e9),
    ("FDR", 14e9),
    ("EDR", 25e9),
    ("HDR", 50e9),
    ("NDR", 100e9),
    ("XDR", 200e9),
];

/// Reads `ports/N/rate`: `100 Gb/sec (4X EDR)`. The number decides; where it is bad or 0, lanes times speed do.
pub(crate) fn parse_port(text: &str) -> Option<u64> {
    let text = text.trim();
    let number = text.split_once(" Gb/sec").and_then(|(number, _)| number.trim().parse::<f64>().ok());
    let stated = number.map(|gbps| gbps * 1e9);
    let plausible = |bps: &f64| (1e6..=RATE_MAX_BPS).contains(bps);
    stated.filter(plausible).or_else(|| lanes(text).filter(plausible)).map(|bps| bps.round() as u64)
}

/// `… (4X EDR)` → 4 × 25 Gb/s.
fn lanes(text: &str) -> Option<f64> {
    let (_, inner) = text.strip_suffix(')')?.rsplit_once('(')?;
    let (width, speed) = inner.split_once("X ")?;
    let (_, lane) = LANES.into_iter().find(|(name, _)| *name == speed.trim())?;
    let width: u8 = width.parse().ok()?;
    Some(f64::from(width) * lane)
}

/// Reads `class/net/NAME/speed`: 10^6 bit/s; -1 where the link is down or the driver does not say.
pub(crate) fn parse_net(text: &str) -> Option<u64> {
    let mbps: i64 = text.trim().parse().ok()?;
    let bps = u64::try_from(mbps).ok()?.checked_mul(1_000_000)?;
    (bps > 0 && bps as f64 <= RATE_MAX_BPS).then_some(bps)
}

/// Rate of each EFA device by EC2 instance type, 10^9 bit/s: the instance's network bandwidth by its EFA devices, from
/// AWS's tables of network cards. For GB200 that is 3,200 Gb/s shared by the 16 devices. Only for sources that do not
/// record rates (hwloc).
const EFA_GBPS: [(&str, u64); 7] = [
    ("p4d.24xlarge", 100),
    ("p4de.24xlarge", 100),
    ("p5.48xlarge", 100),
    ("p5en.48xlarge", 200),
    ("p6-b200.48xlarge", 400),
    ("p6-b300.48xlarge", 400),
    ("p6e-gb200.36xlarge", 200),
];

/// What [`EFA_GBPS`] says of `machine`.
pub(crate) fn of_instance_type(machine: &str) -> Option<u64> {
    EFA_GBPS.into_iter().find(|(name, _)| *name == machine).map(|(_, gbps)| gbps * 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_the_kernel_prints_them() {
        assert_eq!(parse_port("100 Gb/sec (4X EDR)\n"), Some(100_000_000_000));
        assert_eq!(parse_port("2.5 Gb/sec (1X SDR)"), Some(2_500_000_000));
        assert_eq!(parse_port("400 Gb/sec (8X HDR)"), Some(400_000_000_000));
        assert_eq!(parse_port("? Gb/sec (4X NDR)"), Some(400_000_000_000));
        for text in ["", "fast", "0 Gb/sec", "-5 Gb/sec", "inf Gb/sec", "nan Gb/sec", "1e99 Gb/sec (0X EDR)"]
        {
            assert_eq!(parse_port(text), None, "{text}");
        }
        assert_eq!(parse_net("25000\n"), Some(25_000_000_000));
        assert!(parse_net("-1").is_none() && parse_net("").is_none() && parse_net("0").is_none());
    }
}
