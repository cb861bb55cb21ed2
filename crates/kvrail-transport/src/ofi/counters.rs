//! What a network device counts, read from the tree that the kernel keeps for it: packets sent, received, sent again.
//!
//! EFA devices count in `ports/1/hw_counters`, InfiniBand's and RoCE's in `ports/1/counters`, interfaces of the
//! network stack in `net/NAME/statistics`. The counters belong to the device: other processes that use it count too.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kvrail_core::transport::DeviceCounters;

/// Longest content of a counter's file that is read, bytes: 20 digits and a line end are real.
const FILE_BYTES_MAX: u64 = 64;

/// Where a kind of device counts: a directory with `{}` for the device's name, and the files for packets sent, received
/// and sent again.
struct Place {
    directory: &'static str,
    tx: &'static str,
    rx: &'static str,
    again: Option<&'static str>,
}

const PLACES: [Place; 3] = [
    Place {
        directory: "class/infiniband/{}/ports/1/hw_counters",
        tx: "tx_pkts",
        rx: "rx_pkts",
        again: Some("retrans_pkts"),
    },
    Place {
        directory: "class/infiniband/{}/ports/1/counters",
        tx: "port_xmit_packets",
        rx: "port_rcv_packets",
        again: None,
    },
    Place { directory: "class/net/{}/statistics", tx: "tx_packets", rx: "rx_packets", again: None },
];

/// Root of the tree: what is configured, else `SYSFS_PATH`, else `/sys`.
#[must_use]
pub fn sysfs_root(configured: Option<&Path>) -> PathBuf {
    let variable = || std::env::var_os("SYSFS_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    configured.map(Path::to_path_buf).or_else(variable).unwrap_or_else(|| PathBuf::from("/sys"))
}

/// One device's counters since this was opened.
#[derive(Debug)]
pub struct Counters {
    directory: PathBuf,
    tx: &'static str,
    rx: &'static str,
    again: Option<&'static str>,
    base: DeviceCounters,
}

impl Counters {
    /// Finds a device's counters and notes what they say. `None` when it has none that can be read.
    #[must_use]
    pub fn open(sysfs: &Path, device: &str) -> Option<Self> {
        // A name is one step of a path.
        if device.is_empty() || device == "." || device.contains('/') || device.contains("..") {
            return None;
        }
        PLACES.iter().find_map(|place| {
            let directory = sysfs.join(place.directory.replace("{}", device));
            let base = DeviceCounters::default();
            let counters = Self { directory, tx: place.tx, rx: place.rx, again: place.again, base };
            let base = counters.absolute()?;
            Some(Self { base, ..counters })
        })
    }

    /// What the device has counted since [`Counters::open`]. `None` when it can no longer be read, which a device that is
    /// gone cannot.
    #[must_use]
    pub fn read(&self) -> Option<DeviceCounters> {
        let now = self.absolute()?;
        // Below what it was: the device or its driver began anew, and so do we.
        let since = |now: u64, base: u64| now.checked_sub(base).unwrap_or(now);
        Some(DeviceCounters {
            tx_packets: since(now.tx_packets, self.base.tx_packets),
            rx_packets: since(now.rx_packets, self.base.rx_packets),
            retransmitted: now.retransmitted.map(|n| since(n, self.base.retransmitted.unwrap_or(0))),
        })
    }

    fn absolute(&self) -> Option<DeviceCounters> {
        Some(DeviceCounters {
            tx_packets: number(&self.directory.join(self.tx))?,
            rx_packets: number(&self.directory.join(self.rx))?,
            retransmitted: self.again.and_then(|file| number(&self.directory.join(file))),
        })
    }
}

/// The number in a file; `None` when there is anything else.
fn number(path: &Path) -> Option<u64> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("kvrail-counters-{name}-{}", std::process::id()));
            Self(root)
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const EFA: &str = "class/infiniband/rdmap79s0/ports/1/hw_counters";

    #[test]
    fn an_efa_device_counts_from_where_it_was_opened() {
        let tree = Tree::new("efa");
        for (file, text) in [("tx_pkts", "100\n"), ("rx_pkts", "7\n"), ("retrans_pkts", "3\n")] {
            tree.write(&format!("{EFA}/{file}"), text);
        }
        let counters = Counters::open(&tree.0, "rdmap79s0").unwrap();
        assert_eq!(
            counters.read(),
            Some(DeviceCounters { retransmitted: Some(0), ..DeviceCounters::default() })
        );
        tree.write(&format!("{EFA}/tx_pkts"), "150\n");
        tree.write(&format!("{EFA}/retrans_pkts"), "4\n");
        let expected = DeviceCounters { tx_packets: 50, rx_packets: 0, retransmitted: Some(1) };
        assert_eq!(counters.read(), Some(expected));
        // After the driver was loaded anew it counts from zero.
        tree.write(&format!("{EFA}/tx_pkts"), "12\n");
        assert_eq!(counters.read().unwrap().tx_packets, 12);
    }

    #[test]
    fn other_devices_count_elsewhere() {
        let tree = Tree::new("other");
        tree.write("class/infiniband/mlx5_0/ports/1/counters/port_xmit_packets", "5");
        tree.write("class/infiniband/mlx5_0/ports/1/counters/port_rcv_packets", "6");
        tree.write("class/net/eth0/statistics/tx_packets", "5");
        tree.write("class/net/eth0/statistics/rx_packets", "6");
        for device in ["mlx5_0", "eth0"] {
            assert_eq!(Counters::open(&tree.0, device).unwrap().read().unwrap().retransmitted, None);
        }
    }

    #[test]
    fn what_cannot_be_read_is_none_and_never_zero() {
        let tree = Tree::new("broken");
        assert!(Counters::open(&tree.0, "rdmap79s0").is_none());
        tree.write(&format!("{EFA}/tx_pkts"), "N/A");
        tree.write(&format!("{EFA}/rx_pkts"), "1");
        assert!(Counters::open(&tree.0, "rdmap79s0").is_none());
        tree.write(&format!("{EFA}/tx_pkts"), &"9".repeat(1_000));
        assert!(Counters::open(&tree.0, "rdmap79s0").is_none());
        tree.write(&format!("{EFA}/tx_pkts"), "1");
        let counters = Counters::open(&tree.0, "rdmap79s0").unwrap();
        for name in ["", ".", "../..", "a/b"] {
            assert!(Counters::open(&tree.0, name).is_none(), "{name}");
        }
        std::fs::remove_dir_all(&tree.0).unwrap();
        assert_eq!(counters.read(), None);
    }

    #[test]
    fn a_configured_tree_comes_first() {
        assert_eq!(sysfs_root(Some(Path::new("/x"))), Path::new("/x"));
    }
}
