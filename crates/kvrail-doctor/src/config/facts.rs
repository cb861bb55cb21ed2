//! What of a host decides about settings.

use serde::Serialize;

use crate::host::Host;
use crate::installed::inventory::{AMAZON, installations};

/// What of a host decides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// RDMA devices, by name.
    pub nics: Vec<Nic>,
    /// GPUs that the driver shows.
    pub gpus: usize,
    /// The directory of the EFA installer's libfabric.
    pub efa_libraries: Option<String>,
    /// Whether the kernel copies registered pages at a fork (since 5.13), where it is known.
    pub forks_safely: Option<bool>,
    /// The address that peers reach this host under.
    pub address: Option<String>,
    /// Whether this is a pod of Kubernetes.
    pub pod: bool,
    /// NIXL, or what is in its place.
    pub nixl: Option<Nixl>,
    /// Where etcd is.
    pub etcd: Option<String>,
    /// Where NATS is.
    pub nats: Option<String>,
    /// `LD_LIBRARY_PATH` as it is.
    pub library_path: Option<String>,
}

/// An RDMA device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Its name, as in `rdmap79s0`.
    pub name: String,
    /// Whose it is.
    pub maker: Maker,
    /// Whether its first port is up.
    pub up: bool,
}

/// Whose device it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Maker {
    /// Amazon's EFA.
    Efa,
    /// NVIDIA's (Mellanox's) ConnectX or BlueField.
    Mellanox,
    /// Somebody else's, or nobody says.
    Other,
}

/// What `import nixl` finds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Nixl {
    /// What and where it is: `nixl-cu12 1.4.0 in /opt/venv`.
    pub name: String,
    /// Whether it is kvrail's (the distribution `kvrail-nixl`).
    pub is_kvrail: bool,
}

impl Facts {
    /// Asks a host. Asking before a bundle is written makes the bundle good for settings too.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let names = host.names("/sys/class/infiniband").unwrap_or_default();
        let variable = |names: &[&str]| names.iter().find_map(|name| host.variable(name)).map(str::to_owned);
        Self {
            nics: names.into_iter().map(|name| nic(host, name)).collect(),
            gpus: host.names("/proc/driver/nvidia/gpus").map_or(0, |gpus| gpus.len()),
            efa_libraries: AMAZON
                .into_iter()
                .find(|path| host.exists(&format!("{path}/libfabric.so.1")))
                .map(str::to_owned),
            forks_safely: host.value("/proc/sys/kernel/osrelease").ok().as_deref().and_then(copies_at_fork),
            address: address(host),
            pod: host.variable("KUBERNETES_SERVICE_HOST").is_some(),
            nixl: nixl(host),
            etcd: host
                .scope()
                .etcd
                .first()
                .cloned()
                .or_else(|| variable(&["ETCD_ENDPOINTS", "NIXL_ETCD_ENDPOINTS"])),
            nats: variable(&["NATS_SERVER"]),
            library_path: variable(&["LD_LIBRARY_PATH"]),
        }
    }

    /// Devices of a maker.
    pub(super) fn nics_of(&self, maker: Maker) -> impl Iterator<Item = &Nic> {
        self.nics.iter().filter(move |nic| nic.maker == maker)
    }

    /// How many EFA devices there are.
    pub(super) fn efas(&self) -> usize {
        self.nics_of(Maker::Efa).count()
    }

    /// All of it in one line.
    pub(super) fn summary(&self) -> String {
        let nics = match (self.efas(), self.nics_of(Maker::Mellanox).count(), self.nics.len()) {
            (0, 0, 0) => "no RDMA device".into(),
            (0, 0, other) => format!("{other} RDMA devices"),
            (0, mellanox, _) => format!("{mellanox} InfiniBand or RoCE devices"),
            (efas, ..) => format!("{efas} EFA devices"),
        };
        let gpus = match self.gpus {
            0 => "no GPU".into(),
            1 => "1 GPU".into(),
            gpus => format!("{gpus} GPUs"),
        };
        let nixl = match &self.nixl {
            Some(nixl) => nixl.name.clone(),
            None => "no NIXL in the Python environments that were looked at".into(),
        };
        format!("{nics}, {gpus}, {nixl}")
    }
}

fn nic(host: &Host, name: String) -> Nic {
    let of = |what: &str| format!("/sys/class/infiniband/{name}/{what}");
    let driver = host
        .entry(&of("device/driver"))
        .ok()
        .and_then(|entry| Some(entry.real.rsplit_once('/')?.1.to_owned()));
    let vendor = host.value(&of("device/vendor")).unwrap_or_default();
    let maker = match (driver.as_deref(), vendor.as_str()) {
        (Some("efa"), _) | (_, "0x1d0f") => Maker::Efa,
        (Some("mlx5_core"), _) | (_, "0x15b3") => Maker::Mellanox,
        // Names that udev's rules give to EFA's devices, where a container shows no more.
        (None, "") if name.starts_with("rdmap") => Maker::Efa,
        (None, "") if name.starts_with("mlx5_") => Maker::Mellanox,
        _ => Maker::Other,
    };
    let up = host.value(&of("ports/1/state")).map_or(true, |state| state.contains("ACTIVE"));
    Nic { name, maker, up }
}

/// Since Linux 5.13 a fork copies pages that a device has registered, and no library has to guard them.
fn copies_at_fork(release: &str) -> Option<bool> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
    Some((major, minor) >= (5, 13))
}

/// The first address that is not of this host alone.
fn address(host: &Host) -> Option<String> {
    if let Some(address) = host.variable("POD_IP") {
        return Some(address.to_owned());
    }
    let said = host.run(&["hostname", "-I"]).ok().filter(|ran| ran.is_success())?;
    let usable = |address: &&str| {
        address.parse::<std::net::IpAddr>().is_ok_and(|address| match address {
            std::net::IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            std::net::IpAddr::V6(_) => false,
        })
    };
    said.stdout.split_whitespace().find(usable).map(str::to_owned)
}

/// What `import nixl` finds in the first environment that has it; kvrail's distribution stands beside the package.
fn nixl(host: &Host) -> Option<Nixl> {
    let all = installations(host);
    let kvrail = all.environments.iter().find_map(|environment| {
        environment.packages.iter().find_map(|packages| {
            let names = host.names(packages).ok()?;
            let version = names.iter().find_map(|name| {
                name.strip_prefix("kvrail_nixl-")?.strip_suffix(".dist-info").map(str::to_owned)
            })?;
            Some(Nixl { name: format!("kvrail-nixl {version} in {}", environment.root), is_kvrail: true })
        })
    });
    kvrail.or_else(|| Some(Nixl { name: all.nixl.first()?.name(&all), is_kvrail: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_as_numbers() {
        for (release, safe) in
            [("5.13.0", true), ("6.18.5-aws", true), ("5.4.0-1103-aws", false), ("4.14.355", false)]
        {
            assert_eq!(copies_at_fork(release), Some(safe), "{release}");
        }
        assert_eq!(copies_at_fork("unknown"), None);
    }
}
