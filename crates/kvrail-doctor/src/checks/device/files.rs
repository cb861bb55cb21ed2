//! Whether this process has the files of the RDMA devices, and may open them.

use super::seen::{self, Device, count, some};
use crate::checks::container::{Container, container};
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Lack};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static HIDDEN: Rule = Rule {
    id: "efa-device-hidden",
    title: "the host has RDMA devices, and this process has no files for them",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "Programs reach an RDMA device by its file /dev/infiniband/uverbs*; a container has those files that its runtime gives it, and no others.",
    remedy: "Ask for the devices where the container is described: `vpc.amazonaws.com/efa` in Kubernetes, `--device` with docker.",
    story: "In the container `ls /sys/class/infiniband` shows all devices of the host, `ls /dev/infiniband` shows nothing or less, and `fi_info -p efa` says \
`No data available`. vLLM, NIXL and NCCL then use TCP.

/sys is the host's in every container; /dev is the container's own. In Kubernetes the EFA device plugin (or the EFA DRA driver) adds the files when the pod's limits have \
`vpc.amazonaws.com/efa: N`, and nothing else does, privileged pods apart. The number must fit the GPUs: on P5 four EFA devices belong to each GPU, \
and with `efa: 1` a GPU has 12.5 GB/s of its 50.

With docker give each file: `--device /dev/infiniband/uverbs0`, and so on. A mount of the directory (`-v /dev/infiniband:/dev/infiniband`) shows the files without the right to open them.",
    references: &[
        Reference {
            title: "Amazon EKS: manage EFA devices",
            url: "https://docs.aws.amazon.com/eks/latest/userguide/device-management-efa.html",
        },
        Reference {
            title: "docker run: --device",
            url: "https://docs.docker.com/reference/cli/docker/container/run/#device",
        },
    ],
    explained_by: &["efa-driver-missing"],
};

pub(super) static PERMISSION: Rule = Rule {
    id: "uverbs-permission",
    title: "the files of the RDMA devices are there, and this process may not open them",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The files /dev/infiniband/uverbs* need read and write permission, and in a container also a device rule of its control group.",
    remedy: "Give the user the permission, or let the container's runtime give the devices instead of a mounted directory.",
    story: "`ibv_devices` lists the devices, `ibv_devinfo` says `Failed to open device`, libfabric finds none.

Two rights are needed. The file's permission bits: udev's rules of rdma-core give 0666; a host without these rules leaves 0600 to root. \
And in a container the device rule of the control group: a directory that is mounted into it (hostPath, -v) brings the files and not the rule, and even root is told \
`Operation not permitted`. Kubernetes' device plugins and docker's --device add the rule.

A device whose driver is being reset fails to open as well, with another error.",
    references: &[
        Reference {
            title: "rdma-core: udev rules of the verbs devices",
            url: "https://github.com/linux-rdma/rdma-core/blob/master/Documentation/udev.md",
        },
        Reference {
            title: "Linux: device controller of control groups",
            url: "https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller",
        },
    ],
    explained_by: &["efa-device-hidden"],
};

pub(super) fn hidden(host: &Host) -> Outcome {
    if seen::is_emulated(host) {
        return Outcome::NotApplicable("devices of an emulated fabric have no files".into());
    }
    let devices = seen::devices(host);
    if devices.is_empty() {
        return elsewhere(host);
    }
    let without: Vec<&Device> = devices.iter().filter(|it| it.file.is_some() && !it.visible).collect();
    let all = devices.iter().filter(|it| it.file.is_some()).count();
    if all == 0 {
        return Outcome::NotApplicable("no RDMA device has a verbs file".into());
    }
    let container = container(host);
    if without.is_empty() {
        return Outcome::Healthy(format!("{} in /dev/infiniband", count(all, "device")));
    }
    let what = if without.iter().all(|it| it.is_efa()) { "EFA device" } else { "RDMA device" };
    let seen = all - without.len();
    if seen > 0 {
        return share(host, &devices, container);
    }
    let place = container.map_or("this host", Container::name);
    let finding =
        Finding::new(&HIDDEN, format!("the host has {}, and {place} has the file of none", count(all, what)))
            .evidence("/sys/class/infiniband", some(without.iter().map(|it| it.name.as_str())))
            .evidence(
                "/dev/infiniband",
                host.names("/dev/infiniband").map_or_else(|why| why.to_string(), |_| "no uverbs*".into()),
            );
    let share = match (seen::instance(host), seen::gpu_files(host)) {
        (Some(instance), gpus @ 1..) if instance.gpus > 0 => {
            (gpus * instance.efas / instance.gpus).clamp(1, all)
        }
        _ => all,
    };
    let finding = match container {
        Some(container) => give(finding.cause("Its runtime was not asked for them."), container, share),
        None => finding
            .cause("The kernel has the devices, and nothing made their files: udev is not running, or has no rules for them.")
            .fix("make them", "sudo modprobe ib_uverbs && sudo udevadm trigger --subsystem-match=infiniband_verbs"),
    };
    Outcome::Findings(vec![finding])
}

/// EFA's driver has devices, and this network namespace shows none: RDMA devices may be bound to namespaces.
fn elsewhere(host: &Host) -> Outcome {
    let driven = seen::efa_functions(host).unwrap_or_default();
    let driven = driven.iter().filter(|it| it.driver.as_deref() == Some("efa")).count();
    if driven == 0 {
        return Outcome::NotApplicable("no RDMA device".into());
    }
    let finding = Finding::new(
        &HIDDEN,
        format!("the driver efa drives {}, and this network namespace shows none", count(driven, "device")),
    )
    .cause("The kernel binds RDMA devices to network namespaces here (rdma system netns exclusive), and they are in another one.")
    .confidence(Confidence::Likely)
    .evidence("/sys/class/infiniband", "empty")
    .fix("on the host, share them between namespaces (before any container starts)", "sudo rdma system set netns shared");
    Outcome::Findings(vec![finding])
}

/// Some are there: enough for the GPUs that are there?
fn share(host: &Host, devices: &[Device], container: Option<Container>) -> Outcome {
    let efa: Vec<_> = devices.iter().filter(|it| it.is_efa()).collect();
    let (all, seen) = (efa.len(), efa.iter().filter(|it| it.visible).count());
    let told = format!("{seen} of the host's {} are in /dev/infiniband", count(all, "EFA device"));
    let gpus = seen::gpu_files(host);
    let Some(instance) = seen::instance(host).filter(|it| it.gpus > 0 && gpus > 0) else {
        return Outcome::Healthy(told);
    };
    let share = gpus * instance.efas / instance.gpus;
    if seen >= share.min(all) {
        return Outcome::Healthy(format!("{told}, the share of {}", count(gpus, "GPU")));
    }
    let finding = Finding::new(
        &HIDDEN,
        format!(
            "{} for {}: {} of the {} that are theirs on {}",
            count(seen, "EFA device"),
            count(gpus, "GPU"),
            instance.gbytes(seen),
            instance.gbytes(share),
            instance.name
        ),
    )
    .severity(Severity::Warning)
    .cause(format!(
        "{} of {} were given; {} belong to {}.",
        seen,
        count(all, "EFA device"),
        share,
        count(gpus, "GPU")
    ))
    .evidence("/dev/infiniband", format!("{seen} of {all} verbs devices"))
    .evidence("/dev", count(gpus, "GPU"));
    Outcome::Findings(vec![give(finding, container.unwrap_or(Container::Other), share)])
}

/// How a runtime is asked for devices.
fn give(finding: Finding, container: Container, number: usize) -> Finding {
    match container {
        Container::Kubernetes => finding
            .advice(format!(
                "in the pod's container set resources.requests and resources.limits `vpc.amazonaws.com/efa: {number}`"
            ))
            .fix(
                "see that the nodes offer them (the EFA device plugin runs)",
                "kubectl get nodes -o custom-columns='NODE:.metadata.name,EFA:.status.allocatable.vpc\\.amazonaws\\.com/efa'",
            ),
        Container::Enroot => finding.advice(
            "enroot takes /dev as it is on the host unless ENROOT_RESTRICT_DEV is set; mount the files with --container-mounts=/dev/infiniband:/dev/infiniband",
        ),
        _ => finding.fix(
            "give it the files, as the host's shell lists them",
            "docker run $(printf -- '--device %s ' /dev/infiniband/uverbs*) --ulimit memlock=-1 …",
        ),
    }
}

pub(super) fn permission(host: &Host) -> Outcome {
    if seen::is_emulated(host) {
        return Outcome::NotApplicable("devices of an emulated fabric have no files".into());
    }
    let devices = seen::devices(host);
    let files: Vec<_> =
        devices.iter().filter(|it| it.visible).filter_map(|it| Some((it, it.file.as_deref()?))).collect();
    if files.is_empty() {
        return Outcome::NotApplicable("no RDMA device's file is here".into());
    }
    let answers: Vec<_> = files.iter().map(|(device, file)| (*device, *file, host.opens(file))).collect();
    let of = |lack: fn(&Lack) -> bool| -> Vec<_> {
        answers.iter().filter(|(.., answer)| answer.as_ref().is_err_and(lack)).collect()
    };
    let denied = of(|why| *why == Lack::Denied);
    let mut findings = Vec::new();
    if let Some((_, file, _)) = denied.first() {
        let entry = host.entry(file).ok();
        let open_to_all = entry.as_ref().is_some_and(|entry| entry.mode & 0o006 == 0o006);
        let finding = Finding::new(
            &PERMISSION,
            format!(
                "{} of {} may not be opened: {}",
                denied.len(),
                count(files.len(), "RDMA device"),
                some(denied.iter().map(|(device, ..)| device.name.as_str()))
            ),
        )
        .evidence(*file, "permission denied")
        .evidence(
            "its permission bits",
            entry.map_or("?".into(), |it| format!("{:04o}, owner {}", it.mode, it.uid)),
        );
        findings.push(match (open_to_all || is_root(host), container(host)) {
            (true, Some(container)) => {
                give(
                    finding.cause(
                        "The file's bits allow it and the control group's device rule does not: the directory was mounted into the container instead of the \
                         devices given to it.",
                    ),
                    container,
                    denied.len(),
                )
            }
            (true, None) => finding
                .cause("The file's bits allow it: a control group's device rule or a security module does not.")
                .confidence(Confidence::Likely)
                .advice("see DeviceAllow= of the service's unit, and the audit log"),
            (false, _) => finding
                .cause("The file belongs to another user, and its bits leave others out.")
                .fix("on the host, until the next boot", format!("sudo chmod 0666 {file}"))
                .advice("install rdma-core on the host: its udev rules give the files 0666"),
        });
    }
    let others: Vec<_> = of(|why| !matches!(why, Lack::Denied | Lack::NotCaptured));
    if let Some((device, file, answer)) = others.first() {
        let why = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
        findings.push(
            Finding::new(
                &PERMISSION,
                format!("{} of {} cannot be opened", others.len(), count(files.len(), "RDMA device")),
            )
            .cause("The device's driver refuses: it is being reset, or the device is gone.")
            .confidence(Confidence::Likely)
            .evidence(*file, why)
            .fix(
                "on the host, what its driver says",
                format!("sudo dmesg | grep -i {}", device.driver.as_deref().unwrap_or("infiniband")),
            ),
        );
    }
    if findings.is_empty() && answers.iter().any(|(.., answer)| answer == &Err(Lack::NotCaptured)) {
        return Outcome::Unknown("the bundle does not say whether the devices can be opened".into());
    }
    Outcome::of(findings, || format!("{} can be opened", count(files.len(), "RDMA device")))
}

/// Whether this process runs as root, in its user namespace.
fn is_root(host: &Host) -> bool {
    let status = host.read("/proc/self/status").unwrap_or_default();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1).map(str::to_owned));
    uid.as_deref() == Some("0")
}
