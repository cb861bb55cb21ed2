//! Whether this process has GPUs where its host has some.

use super::{driven, nvidia_smi};
use crate::checks::container::{Container, container};
use crate::checks::device::seen::{self, count};
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Lack};
use crate::rule::{Kind, Reference, Rule, Severity};

pub(super) static MISSING: Rule = Rule {
    id: "gpu-missing",
    title: "the host has GPUs, and this process has none, or not all",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "A GPU needs NVIDIA's driver on the host, and in a container its file /dev/nvidia<n> and the driver's libraries, which the runtime adds on request.",
    remedy: "Ask for the GPUs where the container is described: `nvidia.com/gpu` in Kubernetes, `--gpus` with docker.",
    story: "`CUDA error: no CUDA-capable device is detected`, `nvidia-smi: command not found`, or `torch.cuda.is_available()` is False, on a host with eight GPUs.

NVIDIA's container runtime adds device files, libcuda and nvidia-smi to a container that asks for GPUs. Kubernetes asks through `nvidia.com/gpu` in the pod's limits; docker through \
`--gpus all`; enroot through NVIDIA_VISIBLE_DEVICES. An image or a job that sets NVIDIA_VISIBLE_DEVICES=void or none gets none.

`Driver/library version mismatch` means that the host's driver was updated while its old module stays loaded: reload the module or boot. A GPU that is missing on the PCI bus of the host fell off it: \
no container setting brings it back.",
    references: &[
        Reference {
            title: "NVIDIA container toolkit: choosing GPUs",
            url: "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html",
        },
        Reference {
            title: "Kubernetes: schedule GPUs",
            url: "https://kubernetes.io/docs/tasks/manage-gpus/scheduling-gpus/",
        },
    ],
    explained_by: &[],
};

/// What nvidia-smi says when the library in the container or on the host is of another release than the loaded module.
const MISMATCH: &str = "version mismatch";

pub(super) fn look(host: &Host) -> Outcome {
    if seen::is_emulated(host) {
        return Outcome::NotApplicable("GPUs of an emulated host cannot be used".into());
    }
    let on_bus = host
        .topology()
        .map(|topology| topology.gpus().iter().filter(|gpu| gpu.model.is_some()).count())
        .unwrap_or(0);
    let driven = driven(host);
    let place = container(host);
    if on_bus == 0 && driven.is_empty() {
        return Outcome::NotApplicable("no GPU of NVIDIA's for datacentres".into());
    }
    if driven.is_empty() {
        let finding = Finding::new(
            &MISSING,
            format!("{} on the PCI bus, and NVIDIA's driver is not loaded", count(on_bus, "GPU")),
        )
        .cause("The kernel module nvidia is not loaded on the host.")
        .evidence("/proc/driver/nvidia/gpus", "not there")
        .fix("on the host", "sudo modprobe nvidia && nvidia-smi")
        .advice("if there is no such module for this kernel, install NVIDIA's driver for it");
        return Outcome::Findings(vec![finding]);
    }
    let visible = driven.iter().filter(|gpu| gpu.is_visible(host)).count();
    if visible == 0 {
        let finding = Finding::new(
            &MISSING,
            format!(
                "the host has {}, and {} has none",
                count(driven.len(), "GPU"),
                place.map_or("this process", Container::name)
            ),
        )
        .evidence("/proc/driver/nvidia/gpus", count(driven.len(), "GPU"))
        .evidence("/dev/nvidia*", "no GPU's file");
        let set = host.variable("NVIDIA_VISIBLE_DEVICES");
        let finding = match set.filter(|value| matches!(*value, "void" | "none")) {
            Some(value) => finding
                .cause(format!(
                    "NVIDIA_VISIBLE_DEVICES={value} tells NVIDIA's container runtime to add no GPU."
                ))
                .evidence("$NVIDIA_VISIBLE_DEVICES", value),
            None if place.is_some() => finding.cause("Its runtime was not asked for any."),
            None => finding
                .cause("The driver is loaded and nothing made the GPUs' files.")
                .fix("make them", "sudo nvidia-modprobe -u -c=0"),
        };
        return Outcome::Findings(vec![match place {
            Some(Container::Kubernetes) => {
                finding.advice("in the pod's container set resources.limits `nvidia.com/gpu`")
            }
            Some(Container::Enroot) => finding.fix("ask for all", "export NVIDIA_VISIBLE_DEVICES=all"),
            Some(_) => finding.fix("ask for all", "docker run --gpus all …"),
            None => finding,
        }]);
    }
    let mut findings = Vec::new();
    match nvidia_smi(host) {
        Ok(ran) if !ran.is_success() => {
            let said: String = ran
                .stdout
                .lines()
                .chain(ran.stderr.lines())
                .next()
                .unwrap_or("nothing")
                .chars()
                .take(200)
                .collect();
            if said.contains(MISMATCH) {
                findings.push(
                    Finding::new(&MISSING, "NVIDIA's library and the loaded kernel module are of different releases")
                        .cause("The driver was updated, and the module of the old one is still loaded; or the image brings a libcuda of its own.")
                        .evidence("nvidia-smi", said)
                        .evidence("/proc/driver/nvidia/version", release(host))
                        .fix("on the host, when nothing uses the GPUs", "sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia"),
                );
            } else if said.contains("communicate with the NVIDIA driver")
                || said.contains("No devices were found")
            {
                findings.push(
                    Finding::new(
                        &MISSING,
                        format!("nvidia-smi finds no GPU, and the driver has {}", count(driven.len(), "GPU")),
                    )
                    .evidence("nvidia-smi", said)
                    .fix("on the host, what the driver says", "sudo dmesg | grep -E 'NVRM|nvidia'"),
                );
            }
        }
        // What hangs or fails otherwise is the next check's.
        Ok(_) | Err(Lack::Late | Lack::Failed(_) | Lack::Denied | Lack::NotCaptured) => {}
        Err(Lack::Absent) => {}
    }
    // A container is shown its own GPUs by the driver, and all of the host's by the bus.
    if let Some(instance) = seen::instance(host)
        && (1..instance.gpus).contains(&on_bus)
    {
        findings.push(
            Finding::new(
                &MISSING,
                format!("only {on_bus} of the {} GPUs of {} on the PCI bus", instance.gpus, instance.name),
            )
            .cause("The others fell off the bus, or failed when the host started.")
            .evidence("/sys/bus/pci/devices", count(on_bus, "GPU"))
            .fix("on the host, what the driver says", "sudo dmesg | grep -E 'NVRM: Xid|fallen off'")
            .advice("stop and start the instance: it then runs on another host"),
        );
    }
    Outcome::of(findings, || format!("{visible} of the host's {}", count(driven.len(), "GPU")))
}

/// The release of the loaded module.
fn release(host: &Host) -> String {
    let version = host.read("/proc/driver/nvidia/version").unwrap_or_default();
    version
        .lines()
        .next()
        .unwrap_or("?")
        .trim_start_matches("NVRM version:")
        .trim()
        .chars()
        .take(120)
        .collect()
}
