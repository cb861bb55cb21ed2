//! Whether a NIC can read and write a GPU's memory: the kernel's part and libfabric's.

use super::driven;
use crate::checks::device::seen::{self, Device, count};
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Lack};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static UNREACHABLE: Rule = Rule {
    id: "gpu-memory-unreachable",
    title: "the NICs cannot reach the GPUs' memory: every transfer is copied through the host's",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "GPUDirect RDMA needs a kernel that lets the NIC's driver find a GPU's pages (peer memory or dma-buf) and a libfabric that was built for CUDA.",
    remedy: "Load the module that joins the NIC's driver and NVIDIA's, and use the EFA installer's libfabric.",
    story: "GPU memory does not register (`Bad address`, EFAULT), or it registers and each block is copied through the host's memory at a fraction of the rate; engines that fall back silently \
register it as host memory, and then read what is not theirs.

There are two ways in the kernel. Peer memory: the NIC's driver asks NVIDIA's for the pages. For ConnectX that is the module nvidia_peermem. EFA's own driver asks NVIDIA's directly, or \
through efa_nv_peermem with NVIDIA's open kernel modules; it never uses nvidia_peermem, so that `lsmod | grep nvidia_peermem` says nothing about EFA. The file /sys/class/infiniband/<device>/device/p2p says which it found: \
`NVIDIA`, `NVIDIA peermem`, or nothing.

dma-buf: the kernel itself passes the pages on; Linux 5.12 and NVIDIA's open kernel modules have it. The libraries must use it too: libfabric's efa provider registers CUDA memory that way from early 2026 on, \
and only if asked before.

libfabric must be built with CUDA: `fi_info -e` then lists variables that begin with FI_HMEM_CUDA. Those of distributions are built without.",
    references: &[
        Reference { title: "NVIDIA: GPUDirect RDMA", url: "https://docs.nvidia.com/cuda/gpudirect-rdma/" },
        Reference {
            title: "AWS: driver for EFA, peer memory",
            url: "https://github.com/amzn/amzn-drivers/tree/master/kernel/linux/efa",
        },
        Reference {
            title: "libfabric: CUDA memory fails to register where only dma-buf works",
            url: "https://github.com/ofiwg/libfabric/issues/12019",
        },
        Reference { title: "libfabric: fi_mr(3), FI_HMEM", url: "https://ofiwg.github.io/libfabric/main/man/fi_mr.3.html" },
    ],
    explained_by: &["gpu-missing", "efa-device-missing", "efa-driver-missing"],
};

/// The first kernel that passes dma-buf on to RDMA devices.
const DMABUF_KERNEL: (u32, u32) = (5, 12);
/// Where libfabric's programs are, best first.
const PROGRAMS: [&str; 2] = ["/opt/amazon/efa/bin/fi_info", "fi_info"];

/// How a NIC's driver gets at a GPU's pages.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Way {
    Peer(String),
    DmaBuf,
}

pub(super) fn look(host: &Host) -> Outcome {
    let gpus = driven(host);
    if gpus.is_empty() {
        return Outcome::NotApplicable("no GPU that NVIDIA's driver drives".into());
    }
    let devices = seen::devices(host);
    let Some(device) = devices.iter().find(|it| it.is_efa()).or(devices.first()) else {
        return Outcome::NotApplicable("no RDMA device".into());
    };
    if seen::is_emulated(host) {
        return Outcome::NotApplicable("an emulated device reaches no GPU".into());
    }
    let way = match way(host, device) {
        Ok(way) => way,
        Err(why) => return Outcome::Unknown(why),
    };
    let mut findings = Vec::new();
    if way.is_none() {
        findings.push(no_way(host, device, gpus.len()));
    }
    if device.is_efa() {
        findings.extend(without_cuda(host));
    }
    Outcome::of(findings, || match way {
        Some(Way::Peer(by)) => format!("{} reaches GPU memory by {by}", device.name),
        _ => format!("{} reaches GPU memory by dma-buf", device.name),
    })
}

fn way(host: &Host, device: &Device) -> Result<Option<Way>, String> {
    if device.is_efa() {
        match host.value(&format!("/sys/class/infiniband/{}/device/p2p", device.name)) {
            Ok(by) if by.contains("NVIDIA") => return Ok(Some(Way::Peer(format!("EFA's driver ({by})")))),
            Ok(_) | Err(Lack::Absent) => {}
            Err(why) => return Err(format!("/sys/class/infiniband/{}/device/p2p: {why}", device.name)),
        }
    } else if let Some(module) = ["nvidia_peermem", "nv_peer_mem"]
        .into_iter()
        .find(|module| host.exists(&format!("/sys/module/{module}")))
    {
        return Ok(Some(Way::Peer(module.into())));
    }
    Ok((is_open(host) && kernel(host) >= Some(DMABUF_KERNEL)).then_some(Way::DmaBuf))
}

/// Whether NVIDIA's kernel modules are the open ones: only these export dma-buf.
fn is_open(host: &Host) -> bool {
    host.read("/proc/driver/nvidia/version").is_ok_and(|version| version.contains("Open Kernel Module"))
}

/// The kernel's version, as in (6, 1).
fn kernel(host: &Host) -> Option<(u32, u32)> {
    let release = host.value("/proc/sys/kernel/osrelease").ok()?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn no_way(host: &Host, device: &Device, gpus: usize) -> Finding {
    let release = host.value("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "?".into());
    let modules = if is_open(host) { "open" } else { "proprietary" };
    let finding = Finding::new(
        &UNREACHABLE,
        format!(
            "no NIC can reach the memory of {}: neither peer memory nor dma-buf is there",
            count(gpus, "GPU")
        ),
    );
    let finding = if device.is_efa() {
        let p2p = format!("/sys/class/infiniband/{}/device/p2p", device.name);
        let seen = host.value(&p2p).map_or_else(|why| why.to_string(), |by| format!("`{by}`"));
        let finding = finding.evidence(p2p, seen);
        match host.value("/sys/module/efa/version") {
            Ok(version) => finding
                .cause(format!(
                    "EFA's driver {version} found no functions of NVIDIA's driver to ask for GPU pages; with the open kernel modules it needs efa_nv_peermem."
                ))
                .fix("on the host", "sudo modprobe efa_nv_peermem"),
            Err(_) => finding
                .cause("The driver efa is the kernel's own, which knows of dma-buf only, and that needs Linux 5.12 and NVIDIA's open kernel modules.")
                .fix("on the host, install the driver of the EFA installer", "sudo ./efa_installer.sh -y"),
        }
    } else {
        finding
            .cause("The module nvidia_peermem, which joins NVIDIA's driver and the NIC's, is not loaded.")
            .evidence("/sys/module/nvidia_peermem", "not there")
            .fix("on the host", "sudo modprobe nvidia_peermem")
    };
    finding
        .evidence("kernel", format!("{release}, NVIDIA's {modules} modules"))
        .advice("or use dma-buf: Linux 5.12 and NVIDIA's open kernel modules on the host")
}

/// libfabric that was built without CUDA: it defines no variable that begins with FI_HMEM_CUDA.
fn without_cuda(host: &Host) -> Option<Finding> {
    let (program, ran) =
        PROGRAMS.into_iter().find_map(|program| Some((program, host.run(&[program, "-e"]).ok()?)))?;
    let knows = |variable: &str| ran.stdout.contains(variable);
    // One that lists no variable of that kind at all says nothing about CUDA.
    if knows("FI_HMEM_CUDA") || !knows("FI_HMEM_DISABLE_P2P") {
        return None;
    }
    let finding = Finding::new(
        &UNREACHABLE,
        format!("the libfabric of {program} was built without CUDA: it takes GPU memory for the host's"),
    )
    .cause("libfabric is built for CUDA by choice, and those of distributions are not.")
    .confidence(Confidence::Likely)
    .evidence(format!("{program} -e"), "lists no FI_HMEM_CUDA_* variable");
    Some(match program {
        "fi_info" => finding
            .fix("use the EFA installer's", "export LD_LIBRARY_PATH=/opt/amazon/efa/lib:$LD_LIBRARY_PATH"),
        _ => {
            finding.advice("install the EFA installer's libfabric anew, or build libfabric with --with-cuda")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Bundle;
    use serde_json::json;

    fn with(driver: &str, p2p: Option<&str>, modules: &[&str], version: &str, release: &str) -> Outcome {
        let mut files = serde_json::Map::new();
        let mut file = |path: &str, text: &str| files.insert(path.into(), json!(text));
        file("/sys/class/infiniband/nic/device/uevent", &format!("DRIVER={driver}\n"));
        file("/proc/driver/nvidia/version", version);
        file("/proc/sys/kernel/osrelease", release);
        file("/proc/driver/nvidia/gpus/0000:53:00.0/information", "Device Minor: \t 0\n");
        file("/sys/module/efa/version", "2.17.3g");
        p2p.map(|p2p| file("/sys/class/infiniband/nic/device/p2p", p2p));
        let entry = |module: &&str| {
            let path = format!("/sys/module/{module}");
            (path.clone(), json!({"kind": "directory", "real": path, "mode": 493, "uid": 0, "bytes": 0}))
        };
        let entries: serde_json::Map<_, _> = modules.iter().map(entry).collect();
        let bundle = json!({
            "schema": "kvrail.bundle.v1", "complete": true,
            "answers": {
                "directory": {"/sys/class/infiniband": ["nic"], "/proc/driver/nvidia/gpus": ["0000:53:00.0"]},
                "file": files, "entry": entries,
            },
        });
        look(&Host::replay(Bundle::parse(&bundle.to_string()).unwrap()))
    }

    #[test]
    fn each_kind_of_nic_has_its_own_way_to_a_gpu() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05";
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.172.08";
        for well in [
            with("efa", Some("NVIDIA\n"), &[], closed, "5.10.0"),
            with("efa", Some("NVIDIA peermem\n"), &[], open, "5.10.0"),
            with("efa", Some("\n"), &[], open, "6.1.0-1-amd64"),
            with("efa", None, &[], open, "6.8.0-1021-aws"),
            with("mlx5_core", None, &["nvidia_peermem"], closed, "5.4.0"),
        ] {
            assert!(matches!(well, Outcome::Healthy(_)), "{well:?}");
        }
        for (broken, fix) in [
            (with("efa", Some("\n"), &["nvidia_peermem"], closed, "6.1.0"), "sudo modprobe efa_nv_peermem"),
            (with("efa", Some("\n"), &[], open, "5.10.0"), "sudo modprobe efa_nv_peermem"),
            (with("mlx5_core", None, &[], closed, "6.8.0"), "sudo modprobe nvidia_peermem"),
        ] {
            let [finding] = broken.findings() else { panic!("{broken:?}") };
            assert_eq!(finding.fix[0].command.as_deref(), Some(fix));
        }
    }
}
