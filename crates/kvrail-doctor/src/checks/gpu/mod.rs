//! GPUs: whether they answer, and whether a NIC can reach their memory.

mod distance;
mod missing;
mod reach;
mod stuck;

use crate::examine::Check;
use crate::host::{Answer, Host, Ran};

pub(crate) const CHECKS: &[Check] = &[
    Check { rule: &missing::MISSING, look: missing::look },
    Check { rule: &stuck::STUCK, look: stuck::look },
    Check { rule: &reach::UNREACHABLE, look: reach::look },
    Check { rule: &distance::FAR, look: distance::far },
    Check { rule: &distance::ACS, look: distance::acs },
    Check { rule: &distance::NUMA, look: distance::numa },
];

/// A GPU that NVIDIA's driver drives.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Driven {
    /// PCI address, `0000:53:00.0`.
    address: String,
    /// The number of its file `/dev/nvidia0`.
    minor: Option<u32>,
}

impl Driven {
    /// Whether this process has its file.
    fn is_visible(&self, host: &Host) -> bool {
        self.minor.is_some_and(|minor| host.exists(&format!("/dev/nvidia{minor}")))
    }
}

/// GPUs that NVIDIA's driver drives on the host, whoever may use them. Empty where there is no such driver.
fn driven(host: &Host) -> Vec<Driven> {
    const GPUS: &str = "/proc/driver/nvidia/gpus";
    let addresses = host.names(GPUS).unwrap_or_default();
    let driven = |address: String| {
        let information = host.read(&format!("{GPUS}/{address}/information")).unwrap_or_default();
        let minor =
            information.lines().find_map(|line| line.strip_prefix("Device Minor:")?.trim().parse().ok());
        Driven { address, minor }
    };
    addresses.into_iter().map(driven).collect()
}

/// What is asked of nvidia-smi. The fields are of every driver since 450; one that a driver does not know fails the whole query.
const QUERY: [&str; 3] = [
    "nvidia-smi",
    "--query-gpu=index,name,pci.bus_id,memory.used,memory.total,compute_mode,ecc.errors.uncorrected.volatile.total",
    "--format=csv,noheader,nounits",
];

/// Asks nvidia-smi once for all checks. A GPU that is not kept initialised takes one to three seconds.
fn nvidia_smi(host: &Host) -> Answer<Ran> {
    host.run_with(&QUERY, &[], std::time::Duration::from_secs(10))
}
