//! What there is of RDMA devices: PCI functions, the kernel's devices, the files that programs open. Several checks start from it.

use crate::host::{Answer, Host, Lack};
use crate::known::{self, Instance};

/// Amazon's PCI vendor id.
const AMAZON: &str = "1D0F";
/// PCI device ids of EFA begin so: efa0 (P4d) to efa3.
const EFA_IDS: &str = "EFA";

/// The instance type: what the user said, else what the firmware says, which on EC2's Nitro instances is the type.
pub(crate) fn instance_type(host: &Host) -> Option<String> {
    let said = host.scope().instance.clone();
    said.or_else(|| {
        let amazon = host.value("/sys/class/dmi/id/sys_vendor").ok()? == "Amazon EC2";
        host.value("/sys/class/dmi/id/product_name").ok().filter(|name| amazon && name.contains('.'))
    })
}

/// What is known of this host's instance type.
pub(crate) fn instance(host: &Host) -> Option<&'static Instance> {
    known::instance(&instance_type(host)?)
}

/// Whether the devices are those of an emulated EFA fabric: they have no files in `/dev`, and its GPUs cannot be used.
pub(crate) fn is_emulated(host: &Host) -> bool {
    host.variable("SOFTEFA_DIR").is_some()
}

/// A PCI function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Function {
    pub(crate) address: String,
    /// Vendor and device as `1D0F:EFA1`.
    pub(crate) id: String,
    pub(crate) driver: Option<String>,
}

impl Function {
    pub(crate) fn is_efa(&self) -> bool {
        self.id
            .split_once(':')
            .is_some_and(|(vendor, device)| vendor == AMAZON && device.starts_with(EFA_IDS))
    }
}

/// A line `NAME=value` of a uevent file.
fn field<'a>(uevent: &'a str, name: &str) -> Option<&'a str> {
    uevent.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

/// EFA's PCI functions.
pub(crate) fn efa_functions(host: &Host) -> Answer<Vec<Function>> {
    const DEVICES: &str = "/sys/bus/pci/devices";
    let names = match host.names(DEVICES) {
        // A machine without PCI.
        Err(Lack::Absent) => Vec::new(),
        other => other?,
    };
    let function = |address: String| {
        let uevent = host.read(&format!("{DEVICES}/{address}/uevent")).ok()?;
        let id = field(&uevent, "PCI_ID")?.to_ascii_uppercase();
        Some(Function { address, id, driver: field(&uevent, "DRIVER").map(Into::into) })
    };
    Ok(names.into_iter().filter_map(function).filter(Function::is_efa).collect())
}

/// A device of `/sys/class/infiniband`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// Kernel driver: `efa`, `mlx5_core`.
    pub(crate) driver: Option<String>,
    /// The file that programs open, `/dev/infiniband/uverbs0`; none where `ib_uverbs` knows nothing of the device.
    pub(crate) file: Option<String>,
    /// Whether that file is there.
    pub(crate) visible: bool,
}

impl Device {
    /// By its driver, or, where that cannot be seen, by the names that EFA devices have.
    pub(crate) fn is_efa(&self) -> bool {
        match &self.driver {
            Some(driver) => driver == "efa",
            None => self.name.starts_with("rdmap") || self.name.starts_with("efa"),
        }
    }
}

/// RDMA devices as the kernel shows them to this process, in the order of their names. Empty where there are none.
pub(crate) fn devices(host: &Host) -> Vec<Device> {
    let names = host.names("/sys/class/infiniband").unwrap_or_default();
    let verbs = host.names("/sys/class/infiniband_verbs").unwrap_or_default();
    let files: Vec<(String, String)> = verbs
        .into_iter()
        .filter(|name| name.starts_with("uverbs"))
        .filter_map(|name| {
            let device = host.value(&format!("/sys/class/infiniband_verbs/{name}/ibdev")).ok()?;
            Some((device, format!("/dev/infiniband/{name}")))
        })
        .collect();
    let there = host.names("/dev/infiniband").unwrap_or_default();
    let device = |name: String| {
        let uevent = host.read(&format!("/sys/class/infiniband/{name}/device/uevent")).unwrap_or_default();
        let file = files.iter().find(|(device, _)| *device == name).map(|(_, file)| file.clone());
        let base = file.as_deref().and_then(|file| file.rsplit('/').next());
        let visible = base.is_some_and(|base| there.iter().any(|name| name == base));
        Device { driver: field(&uevent, "DRIVER").map(Into::into), name, file, visible }
    };
    names.into_iter().map(device).collect()
}

/// Whether an EFA device is there.
pub(crate) fn has_efa(host: &Host) -> bool {
    devices(host).iter().any(Device::is_efa)
}

/// GPUs that this process may use: the files `/dev/nvidia0` and so on.
pub(crate) fn gpu_files(host: &Host) -> usize {
    host.names("/dev").unwrap_or_default().iter().filter(|name| gpu_minor(name).is_some()).count()
}

/// The number of `nvidia0`.
pub(crate) fn gpu_minor(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("nvidia")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The first few names, and how many others there are.
pub(crate) fn some<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let names: Vec<&str> = names.into_iter().collect();
    match names.len() {
        0..=4 => names.join(", "),
        count => format!("{} and {} others", names[..SHOWN].join(", "), count - SHOWN),
    }
}

/// `1 EFA device`, `4 EFA devices`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Live, Scope};

    #[test]
    fn files_of_gpus_are_those_with_a_number() {
        for (name, minor) in [
            ("nvidia0", Some(0)),
            ("nvidia15", Some(15)),
            ("nvidiactl", None),
            ("nvidia", None),
            ("nvidia-uvm", None),
        ] {
            assert_eq!(gpu_minor(name), minor, "{name}");
        }
    }

    #[test]
    fn the_type_is_what_the_user_said_else_what_a_nitro_instance_says() {
        let root = tempfile::tempdir().unwrap();
        let id = root.path().join("sys/class/dmi/id");
        std::fs::create_dir_all(&id).unwrap();
        let host = |instance: Option<&str>| {
            let scope = Scope { instance: instance.map(Into::into), ..Scope::default() };
            Host::live(Live::new().with_root(root.path()), scope)
        };
        assert_eq!(instance_type(&host(None)), None);
        std::fs::write(id.join("product_name"), "p5.48xlarge\n").unwrap();
        assert_eq!(instance_type(&host(None)), None, "whoever calls a laptop so");
        std::fs::write(id.join("sys_vendor"), "Amazon EC2\n").unwrap();
        assert_eq!(instance(&host(None)).map(|it| it.efas), Some(32));
        assert_eq!(instance(&host(Some("P4d.24xlarge"))).map(|it| it.efas), Some(4));
        assert_eq!(instance(&host(Some("m5.large"))), None);
    }
}
