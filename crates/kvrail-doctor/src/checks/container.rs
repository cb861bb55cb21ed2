//! What a container has of its host: whether this is one, libraries that fit the host's driver, shared memory.

use crate::checks::device::seen;
use crate::examine::Check;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(crate) const CHECKS: &[Check] =
    &[Check { rule: &NOT_MOUNTED, look: efa_install }, Check { rule: &SHM, look: shared_memory }];

/// Which runtime made this container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Container {
    /// A pod.
    Kubernetes,
    /// enroot, alone or under Slurm with pyxis.
    Enroot,
    /// docker.
    Docker,
    /// podman.
    Podman,
    /// Apptainer or Singularity.
    Apptainer,
    /// Another one.
    Other,
}

impl Container {
    /// As it stands in a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "this pod",
            Self::Enroot => "this enroot container",
            Self::Docker => "this docker container",
            Self::Podman => "this podman container",
            Self::Apptainer => "this Apptainer container",
            Self::Other => "this container",
        }
    }
}

/// Whether this process runs in a container, and in whose.
pub(crate) fn container(host: &Host) -> Option<Container> {
    if host.variable("KUBERNETES_SERVICE_HOST").is_some()
        || host.exists("/var/run/secrets/kubernetes.io/serviceaccount")
    {
        return Some(Container::Kubernetes);
    }
    // Mount of `/`: what of which file system it is, and of which kind.
    let mounts = host.read("/proc/self/mountinfo").unwrap_or_default();
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (of, at) = (fields.nth(3)?, fields.next()?);
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        (at == "/").then(|| (of.to_owned(), kind.to_owned()))
    });
    let (of, kind) = root.unwrap_or_default();
    if of.contains("/pyxis_") || of.contains("enroot") {
        return Some(Container::Enroot);
    }
    let by_file = [
        ("/run/.containerenv", Container::Podman),
        ("/.singularity.d", Container::Apptainer),
        ("/.dockerenv", Container::Docker),
    ];
    let by_file = by_file.into_iter().find(|(file, _)| host.exists(file)).map(|(_, container)| container);
    by_file.or_else(|| (kind == "overlay").then_some(Container::Other))
}

static NOT_MOUNTED: Rule = Rule {
    id: "efa-install-not-mounted",
    title: "the container has no EFA libraries, or older ones than its host's driver goes with",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The host's kernel drives EFA, and the container's image came without the EFA installer's libraries in /opt/amazon/efa.",
    remedy: "Mount the host's /opt/amazon/efa, or better install EFA in the image; a library that is copied into a running container is gone with it.",
    story: "On the host `fi_info -p efa` lists the devices; in the container it is not there, or an old libfabric of the image's distribution answers. NIXL's LIBFABRIC plugin cannot \
be loaded (`version FABRIC_1.7 not found`), NIXL falls back to UCX, UCX to TCP, and each request waits seconds for its KV cache.

Devices come into a container from the host; libraries come with the image. Images for inference often have the libfabric of their distribution (Ubuntu 22.04: 1.11, Debian 12: 1.17), built for none \
of what newer devices can do.

Two ways mend it. Install EFA in the image without the kernel's part: `efa_installer.sh -y --skip-kmod`. Or mount the host's directory and put /opt/amazon/efa/lib before others: with Slurm and pyxis \
`--container-mounts=/opt/amazon/efa:/opt/amazon/efa`, with docker `-v /opt/amazon/efa:/opt/amazon/efa:ro`, in Kubernetes a hostPath volume. What a start script copies must be copied again at each start.",
    references: &[
        Reference {
            title: "AWS: get started with EFA, the installer's options",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html",
        },
        Reference { title: "pyxis: --container-mounts", url: "https://github.com/NVIDIA/pyxis/wiki/Usage" },
    ],
    explained_by: &[],
};

/// Directories of the EFA installer's libfabric, by distribution.
const INSTALLED: [&str; 2] = ["/opt/amazon/efa/lib", "/opt/amazon/efa/lib64"];
/// Where distributions and images have libraries.
const COMMON: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/libfabric/lib",
    "/opt/libfabric/lib",
];
/// The symbol version of libfabric 1.20: the first that NIXL's LIBFABRIC plugin was ever built against is newer.
const FABRIC_MIN: u32 = 7;

fn efa_install(host: &Host) -> Outcome {
    let Some(container) = container(host) else {
        return Outcome::NotApplicable("not in a container".into());
    };
    if !seen::devices(host).iter().any(seen::Device::is_efa) || seen::is_emulated(host) {
        return Outcome::NotApplicable("the host's kernel drives no EFA device".into());
    }
    let library = |directory: &str| {
        let path = format!("{directory}/libfabric.so.1");
        host.entry(&path)
            .ok()
            .map(|entry| (entry.real, host.elf(&path).ok().and_then(|elf| elf.level("FABRIC_1."))))
    };
    if let Some((real, _)) = INSTALLED.iter().find_map(|directory| library(directory)) {
        return Outcome::Healthy(format!("EFA's libraries are there: {real}"));
    }
    let searched =
        host.variable("LD_LIBRARY_PATH").unwrap_or_default().split(':').filter(|it| !it.is_empty());
    let others: Vec<_> = searched.chain(COMMON).filter_map(library).collect();
    let best = others.iter().max_by_key(|(_, level)| *level);
    if let Some((real, Some(level))) = best
        && *level >= FABRIC_MIN
    {
        return Outcome::Healthy(format!("the image has its own libfabric: {real} (FABRIC_1.{level})"));
    }
    let driver = host.value("/sys/module/efa/version").unwrap_or_else(|_| "of the kernel".into());
    let place = container.name();
    let finding = match best {
        None => Finding::new(
            &NOT_MOUNTED,
            format!("{place} has EFA devices and no libfabric: /opt/amazon/efa is not there"),
        ),
        Some((real, level)) => {
            let level = level.map_or("unknown".into(), |level| format!("FABRIC_1.{level}"));
            Finding::new(
                &NOT_MOUNTED,
                format!("{place} has no /opt/amazon/efa, and the libfabric of its image is old ({level})"),
            )
            .severity(Severity::Warning)
            .confidence(Confidence::Likely)
            .evidence(real.as_str(), level)
        }
    };
    let finding = finding
        .evidence("/opt/amazon/efa/lib/libfabric.so.1", "not there")
        .evidence("/sys/module/efa/version", driver);
    let finding = match container {
        Container::Kubernetes => finding.advice(
            "mount the node's: volumes: [{name: efa, hostPath: {path: /opt/amazon/efa}}], volumeMounts: [{name: efa, mountPath: /opt/amazon/efa, readOnly: true}]",
        ),
        Container::Enroot => finding.fix(
            "mount the host's",
            "srun --container-mounts=/opt/amazon/efa:/opt/amazon/efa …",
        ),
        _ => finding.fix("mount the host's", "docker run -v /opt/amazon/efa:/opt/amazon/efa:ro …"),
    };
    Outcome::Findings(vec![
        finding
            .fix("find its libraries first", "export LD_LIBRARY_PATH=/opt/amazon/efa/lib:$LD_LIBRARY_PATH")
            .fix(
                "or install EFA in the image, without the kernel's part",
                "./efa_installer.sh -y --skip-kmod --no-verify",
            ),
    ])
}

static SHM: Rule = Rule {
    id: "shm-too-small",
    title: "/dev/shm is too small for processes of one host to hand each other KV caches",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "Processes of one host share memory in /dev/shm, and container runtimes make it 64 MiB unless they are told otherwise.",
    remedy: "Make it larger: a memory-backed emptyDir in Kubernetes, `--shm-size` or `--ipc=host` with docker.",
    story: "A process dies of SIGBUS (`Bus error`) some time after its start, or NCCL says `Error while creating shared memory segment`, or same-host transfers \
take the network's way. tmpfs hands out pages when they are touched, so that a file is made without complaint and the process is ended when the space is used up.

vLLM's and SGLang's workers exchange messages there, NCCL its rings, libfabric's shm provider and kvrail their queues. 64 MiB is docker's default, and Kubernetes takes it over.

In Kubernetes: volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}] mounted at /dev/shm; it counts against the pod's memory limit.",
    references: &[
        Reference { title: "docker run: --shm-size", url: "https://docs.docker.com/reference/cli/docker/container/run/" },
        Reference {
            title: "Kubernetes: emptyDir of medium Memory",
            url: "https://kubernetes.io/docs/concepts/storage/volumes/#emptydir",
        },
        Reference { title: "Linux: tmpfs, size", url: "https://docs.kernel.org/filesystems/tmpfs.html" },
    ],
    explained_by: &[],
};

/// What engines with several workers have been seen to need; docker's default is a sixteenth.
const SHM_BYTES_MIN: u64 = 1 << 30;

fn shared_memory(host: &Host) -> Outcome {
    if seen::devices(host).is_empty() && seen::gpu_files(host) == 0 {
        return Outcome::NotApplicable("no RDMA device and no GPU".into());
    }
    let mounts = match host.read("/proc/self/mountinfo") {
        Ok(mounts) => mounts,
        Err(why) => return Outcome::Unknown(format!("/proc/self/mountinfo: {why}")),
    };
    // Of several mounts at one place the last one is seen.
    let mount = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/dev/shm")).next_back();
    let Some(mount) = mount else {
        return Outcome::NotApplicable("nothing is mounted at /dev/shm".into());
    };
    let options = mount.split_once(" - ").map(|(_, rest)| rest).unwrap_or_default();
    let size = options.split([' ', ',']).find_map(|option| option.strip_prefix("size=")).and_then(bytes);
    let Some(size) = size else {
        return Outcome::Healthy("/dev/shm may take half of the memory".into());
    };
    let about = kvrail_report::units::about(size);
    if size >= SHM_BYTES_MIN {
        return Outcome::Healthy(format!("/dev/shm has {about}"));
    }
    let finding = Finding::new(
        &SHM,
        format!("/dev/shm has {about}: processes that share memory end with SIGBUS when it is full"),
    )
    .evidence("/proc/self/mountinfo", format!("/dev/shm {options}"));
    let finding = match container(host) {
        Some(Container::Kubernetes) => finding
            .advice("in the pod: volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}], volumeMounts: [{name: shm, mountPath: /dev/shm}]"),
        Some(Container::Docker | Container::Podman) => finding.fix("give it more", "docker run --shm-size=16g …"),
        Some(Container::Other) => finding
            .advice("in Kubernetes mount an emptyDir of medium Memory at /dev/shm")
            .fix("with docker", "docker run --shm-size=16g …"),
        _ => finding.fix("on the host, until the next boot", "sudo mount -o remount,size=16g /dev/shm"),
    };
    Outcome::Findings(vec![finding])
}

/// A size as tmpfs prints it: `65536k`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Bundle;

    fn host(files: serde_json::Value, entries: &[&str], variables: serde_json::Value) -> Host {
        let entry = |path: &&str| {
            (
                path.to_string(),
                serde_json::json!({"kind": "file", "real": path, "mode": 420, "uid": 0, "bytes": 0}),
            )
        };
        let entries: serde_json::Map<_, _> = entries.iter().map(entry).collect();
        let bundle = serde_json::json!({
            "schema": "kvrail.bundle.v1", "complete": true, "variables": variables,
            "answers": {
                "directory": {"/sys/class/infiniband": ["mlx5_0"]},
                "file": files, "entry": entries,
            },
        });
        Host::replay(Bundle::parse(&bundle.to_string()).unwrap())
    }

    fn mounted(shm: &str, more: &[&str]) -> Outcome {
        let mounts =
            serde_json::json!({"/proc/self/mountinfo": [format!("1 0 0:1 / / rw - ext4 /dev/sda rw"), shm]});
        shared_memory(&host(mounts, more, serde_json::json!({})))
    }

    #[test]
    fn the_default_of_docker_is_found_and_half_of_the_memory_is_not() {
        let small = mounted("9 1 0:9 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k", &["/.dockerenv"]);
        let [finding] = small.findings() else { panic!("{small:?}") };
        assert!(finding.title.contains("64 MiB"), "{finding:?}");
        assert_eq!(finding.fix[0].command.as_deref(), Some("docker run --shm-size=16g …"));
        for well in
            ["9 1 0:9 / /dev/shm rw - tmpfs shm rw", "9 1 0:9 / /dev/shm rw - tmpfs shm rw,size=16777216k"]
        {
            assert!(matches!(mounted(well, &[]), Outcome::Healthy(_)), "{well}");
        }
        // What was mounted over it counts.
        let over =
            "9 1 0:9 / /dev/shm rw - tmpfs shm rw,size=65536k\n10 9 0:9 / /dev/shm rw - tmpfs shm rw,size=8g";
        assert!(matches!(mounted(over, &[]), Outcome::Healthy(_)));
    }

    #[test]
    fn containers_are_told_apart() {
        let mount = |root: &str| serde_json::json!({"/proc/self/mountinfo": [root]});
        let plain = "1 0 0:1 / / rw - ext4 /dev/sda rw";
        let none = serde_json::json!({});
        for (root, entries, variables, expected) in [
            (plain, &[][..], none.clone(), None),
            (plain, &["/.dockerenv"][..], none.clone(), Some(Container::Docker)),
            (plain, &["/run/.containerenv"][..], none.clone(), Some(Container::Podman)),
            (
                plain,
                &["/.dockerenv"][..],
                serde_json::json!({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
                Some(Container::Kubernetes),
            ),
            (
                "1 0 0:1 /enroot-data/user-1000/pyxis_66974.0 / rw - ext4 /dev/md0 rw",
                &[][..],
                none.clone(),
                Some(Container::Enroot),
            ),
            ("1 0 0:1 / / rw - overlay overlay rw", &[][..], none.clone(), Some(Container::Other)),
        ] {
            assert_eq!(container(&host(mount(root), entries, variables)), expected, "{root} {entries:?}");
        }
    }

    #[test]
    fn sizes_are_read_as_the_kernel_prints_them() {
        assert_eq!(
            [bytes("65536k"), bytes("1024"), bytes("2g"), bytes("k"), bytes("")],
            [Some(64 << 20), Some(1024), Some(2 << 30), None, None]
        );
    }
}
