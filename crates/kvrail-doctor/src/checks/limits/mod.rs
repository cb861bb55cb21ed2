//! What the kernel lets a process have: locked memory, huge pages, open files, capabilities.

mod huge;

use crate::checks::container::{Container, container};
use crate::checks::device::seen;
use crate::examine::Check;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Kind, Reference, Rule, Severity};

pub(crate) const CHECKS: &[Check] = &[
    Check { rule: &MEMLOCK, look: memlock },
    Check { rule: &huge::PAGES, look: huge::look },
    Check { rule: &OPEN_FILES, look: open_files },
    Check { rule: &CAPABILITIES, look: capabilities },
];

static MEMLOCK: Rule = Rule {
    id: "memlock",
    title: "too little memory may be locked for a NIC to use it",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "An RDMA NIC uses memory that is locked, and the kernel's limit for locked memory (RLIMIT_MEMLOCK) is smaller than a KV cache.",
    remedy: "Give the process an unlimited memlock limit, or the capability IPC_LOCK, which lifts it.",
    story: "Registration fails with `Cannot allocate memory` although the host has plenty, or the first small regions register and the \
KV cache does not; libfabric's efa provider may fail while it opens its endpoints.

A NIC reads and writes memory by physical address, so that registered memory must stay where it is: the driver locks it, and locked \
memory counts against RLIMIT_MEMLOCK. Distributions set it to 64 KiB or 8 MiB. A process with the capability IPC_LOCK is not limited. Containers inherit \
the limit of their runtime's daemon, not of the login shell in which `ulimit -l` says `unlimited`.

In a user namespace (rootless containers, enroot) IPC_LOCK lifts nothing: the kernel asks for it in the first namespace.

In Kubernetes there is no field for it: the runtime's unit (containerd, docker) sets it, or the pod gets IPC_LOCK. For Slurm, PropagateResourceLimitsExcept=MEMLOCK \
keeps the small limit of the submitting host away.",
    references: &[
        Reference { title: "Linux: getrlimit(2), RLIMIT_MEMLOCK", url: "https://man7.org/linux/man-pages/man2/getrlimit.2.html" },
        Reference { title: "AWS: get started with EFA", url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html" },
    ],
    explained_by: &[],
};

/// What one GPU's share of a KV cache takes at least; less than this is the limit of a distribution, not of an administrator.
const MEMLOCK_BYTES_MIN: u64 = 16 << 30;
/// The bit of CAP_IPC_LOCK.
const IPC_LOCK: u64 = 1 << 14;
/// The bit of CAP_SYS_PTRACE.
const SYS_PTRACE: u64 = 1 << 19;

/// What the process is: its limits and capabilities.
struct Process {
    limits: String,
    effective: Option<u64>,
    /// Whether it is in a user namespace of its own (rootless podman, enroot, `unshare -r`).
    namespaced: bool,
}

impl Process {
    fn of(host: &Host) -> Result<Self, Outcome> {
        let limits = host
            .read("/proc/self/limits")
            .map_err(|why| Outcome::Unknown(format!("/proc/self/limits: {why}")))?;
        let status = host.read("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        // The first namespace maps all 2^32 - 1 users to themselves.
        let namespaced = host
            .read("/proc/self/uid_map")
            .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]) && !map.trim().is_empty());
        let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        Ok(Self { limits, effective, namespaced })
    }

    /// Soft and hard limit of a line of `/proc/self/limits`; `None` for unlimited.
    fn limit(&self, name: &str) -> Option<(Option<u64>, Option<u64>)> {
        let line = self.limits.lines().find_map(|line| line.strip_prefix(name))?;
        let mut fields = line.split_whitespace().map(|field| field.parse().ok());
        Some((fields.next()?, fields.next()?))
    }

    fn has(&self, capability: u64) -> bool {
        self.effective.is_some_and(|bits| bits & capability != 0)
    }
}

fn memlock(host: &Host) -> Outcome {
    if seen::devices(host).is_empty() {
        return Outcome::NotApplicable("no RDMA device needs locked memory".into());
    }
    let process = match Process::of(host) {
        Ok(process) => process,
        Err(outcome) => return outcome,
    };
    let Some((soft, hard)) = process.limit("Max locked memory") else {
        return Outcome::Unknown("/proc/self/limits names no limit of locked memory".into());
    };
    let Some(bytes) = soft else { return Outcome::Healthy("memlock is unlimited".into()) };
    let lifts = process.has(IPC_LOCK);
    if lifts && !process.namespaced {
        return Outcome::Healthy(format!(
            "memlock is {}, and the capability IPC_LOCK lifts it",
            about(bytes)
        ));
    }
    if bytes >= MEMLOCK_BYTES_MIN {
        return Outcome::Healthy(format!("memlock is {}", about(bytes)));
    }
    let title = match lifts {
        true => format!(
            "only {} of memory may be locked: IPC_LOCK does not lift that in a user namespace",
            about(bytes)
        ),
        false => format!("only {} of memory may be locked, and the process has no IPC_LOCK", about(bytes)),
    };
    let told =
        |limit: Option<u64>| limit.map_or_else(|| "unlimited".into(), |bytes| format!("{bytes} bytes"));
    let mut finding = Finding::new(&MEMLOCK, title)
        .evidence("/proc/self/limits", format!("Max locked memory {}, at most {}", told(soft), told(hard)));
    if lifts {
        finding = finding
            .cause("The kernel asks for IPC_LOCK in the first user namespace; this container has one of its own, in which even root has it for nothing.")
            .evidence("/proc/self/uid_map", "a user namespace of its own");
    }
    if hard.is_none_or(|hard| hard >= MEMLOCK_BYTES_MIN) {
        finding = finding.fix("in the shell or script that starts the program", "ulimit -l unlimited");
    }
    Outcome::Findings(vec![match container(host) {
        Some(Container::Kubernetes) => finding
            .advice("in the pod's container set securityContext.capabilities.add: [IPC_LOCK]")
            .fix(
                "or on the node",
                "sudo mkdir -p /etc/systemd/system/containerd.service.d && printf '[Service]\\nLimitMEMLOCK=infinity\\n' | \
                 sudo tee /etc/systemd/system/containerd.service.d/memlock.conf && sudo systemctl daemon-reload && sudo systemctl restart containerd",
            ),
        Some(Container::Docker | Container::Podman | Container::Other) => {
            finding.fix("with docker", "docker run --ulimit memlock=-1 …")
        }
        Some(Container::Enroot) => finding
            .fix(
                "on the compute nodes",
                "printf '[Service]\\nLimitMEMLOCK=infinity\\n' | sudo tee /etc/systemd/system/slurmd.service.d/memlock.conf",
            )
            .advice("in slurm.conf PropagateResourceLimitsExcept=MEMLOCK keeps the submitting host's limit away"),
        Some(Container::Apptainer) | None => finding.fix(
            "for those who log in",
            "printf '* - memlock unlimited\\n' | sudo tee /etc/security/limits.d/90-memlock.conf",
        ),
    }])
}

static OPEN_FILES: Rule = Rule {
    id: "open-files",
    title: "few files may be open, and each rail and each connection is several",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "The limit of open files (RLIMIT_NOFILE) is what old systems gave; connections, device files and event channels of many rails come to more.",
    remedy: "Raise the soft limit where the program is started.",
    story: "`Too many open files` (EMFILE) under load, or an engine accepts no more requests, or agents beyond some number of peers cannot connect.

Each RDMA device takes a file for itself and one for each completion channel, in each library that opens it; TCP takes one for each connection, and an engine one for each request that it serves. \
With 32 rails and a few dozen peers that is more than the 1,024 that shells and services still get as soft limit; the hard limit is mostly far higher, and raising the soft limit to it takes no right.

Systems keep 1,024 as soft limit because programs that use select() break above it. Inference engines do not.",
    references: &[Reference {
        title: "Linux: getrlimit(2), RLIMIT_NOFILE",
        url: "https://man7.org/linux/man-pages/man2/getrlimit.2.html",
    }],
    explained_by: &[],
};

/// What a process with 32 rails, TCP to each of some dozen peers and an HTTP server comes to.
const FILES_MIN: u64 = 4096;
/// What systems give; more than this was someone's choice.
const FILES_DEFAULT: u64 = 1024;

fn open_files(host: &Host) -> Outcome {
    let devices = seen::devices(host).len();
    if devices == 0 {
        return Outcome::NotApplicable("no RDMA device".into());
    }
    let process = match Process::of(host) {
        Ok(process) => process,
        Err(outcome) => return outcome,
    };
    let Some((soft, hard)) = process.limit("Max open files") else {
        return Outcome::NotApplicable("/proc/self/limits names no limit of open files".into());
    };
    let Some(soft) = soft.filter(|soft| *soft < FILES_MIN) else {
        return Outcome::Healthy(format!(
            "{} files may be open",
            soft.map_or_else(|| "any number of".into(), |soft| soft.to_string())
        ));
    };
    let wanted = hard.map_or(65536, |hard| hard.min(65536));
    let finding = Finding::new(&OPEN_FILES, format!("{soft} files may be open, with {devices} RDMA devices"))
        .severity(if soft < FILES_DEFAULT || devices >= 16 { Severity::Warning } else { Severity::Note })
        .evidence(
            "/proc/self/limits",
            format!(
                "Max open files {soft}, at most {}",
                hard.map_or_else(|| "unlimited".into(), |hard| hard.to_string())
            ),
        );
    Outcome::Findings(vec![match wanted > soft {
        true => finding.fix("in the shell or script that starts the program", format!("ulimit -n {wanted}")),
        false => finding.fix("with docker", "docker run --ulimit nofile=65536 …"),
    }])
}

static CAPABILITIES: Rule = Rule {
    id: "capabilities",
    title: "processes of this host may not copy from each other's memory",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "Copying from another process (process_vm_readv, cross-memory attach) is a debugger's right, and the kernel's setting keeps it to those with the capability SYS_PTRACE.",
    remedy: "Give the containers SYS_PTRACE, or set kernel.yama.ptrace_scope to 0 on hosts that are not shared.",
    story: "Transfers between processes of one host are slower than expected, or fail with `process_vm_readv … Operation not permitted`: UCX leaves its transport cma out or ends with that error, libfabric's shm provider \
copies each block twice, kvrail takes the way through its ring.

The kernel's module Yama has four settings. 0: processes of one user may. 1 (Ubuntu's default): only a parent, or whom the process names. 2: only with SYS_PTRACE. 3: nobody. \
Containers drop SYS_PTRACE unless it is asked for, and processes in different pods see each other only if they share a PID namespace.

Transfers between hosts do not need it.",
    references: &[
        Reference {
            title: "Linux: Yama, ptrace_scope",
            url: "https://docs.kernel.org/admin-guide/LSM/Yama.html",
        },
        Reference { title: "UCX: CMA and ptrace_scope", url: "https://github.com/openucx/ucx/issues/3046" },
        Reference {
            title: "Linux: process_vm_readv(2), permissions",
            url: "https://man7.org/linux/man-pages/man2/process_vm_readv.2.html",
        },
    ],
    explained_by: &[],
};

fn capabilities(host: &Host) -> Outcome {
    if seen::devices(host).is_empty() && seen::gpu_files(host) == 0 {
        return Outcome::NotApplicable("no RDMA device and no GPU".into());
    }
    let process = match Process::of(host) {
        Ok(process) => process,
        Err(outcome) => return outcome,
    };
    const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";
    let scope = host.value(SCOPE).unwrap_or_else(|_| "0".into());
    let may = process.has(SYS_PTRACE);
    let (severity, what) = match scope.as_str() {
        "1" if !may => (Severity::Note, "only from a process that names them, or from their children"),
        "2" if !may => (Severity::Warning, "at all without SYS_PTRACE"),
        "3" => (Severity::Warning, "at all"),
        _ => {
            let by = if may { "SYS_PTRACE" } else { "one user" };
            return Outcome::Healthy(format!("processes of {by} may copy from each other"));
        }
    };
    let finding = Finding::new(&CAPABILITIES, format!("processes may not copy from each other {what}"))
        .severity(severity)
        .evidence(SCOPE, scope.as_str())
        .evidence("/proc/self/status", format!("CapEff {:016x}", process.effective.unwrap_or(0)));
    let finding = match (container(host), scope.as_str()) {
        (_, "3") => {
            finding.advice("3 stays until the next boot: set kernel.yama.ptrace_scope=0 in /etc/sysctl.d")
        }
        (Some(Container::Kubernetes), _) => {
            finding.advice("in the pod's container set securityContext.capabilities.add: [SYS_PTRACE]")
        }
        (Some(_), _) => finding.fix("with docker", "docker run --cap-add SYS_PTRACE …"),
        (None, _) => finding.fix("on a host that is not shared", "sudo sysctl kernel.yama.ptrace_scope=0"),
    };
    Outcome::Findings(vec![finding])
}

fn about(bytes: u64) -> String {
    kvrail_report::units::about(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Bundle;

    fn with(limit: &str, capabilities: &str) -> Outcome {
        memlock(&host(limit, capabilities, "0 0 4294967295", "0"))
    }

    fn host(limit: &str, capabilities: &str, uid_map: &str, scope: &str) -> Host {
        let bundle = serde_json::json!({
            "schema": "kvrail.bundle.v1", "complete": true,
            "answers": {
                "directory": {"/sys/class/infiniband": ["rdmap79s0"]},
                "file": {
                    "/proc/self/limits": [format!("Max locked memory         {limit}              {limit}              bytes     ")],
                    "/proc/self/status": [format!("CapEff:\t{capabilities}")],
                    "/proc/self/uid_map": uid_map, "/proc/sys/kernel/yama/ptrace_scope": scope,
                },
            },
        });
        Host::replay(Bundle::parse(&bundle.to_string()).unwrap())
    }

    #[test]
    fn a_small_limit_is_found_unless_a_capability_lifts_it() {
        let found = with("65536", "0000000000000000");
        assert!(found.findings()[0].title.contains("64 KiB"), "{found:?}");
        for (limit, capabilities) in [("65536", "0000000000004000"), ("unlimited", "0"), ("68719476736", "0")]
        {
            assert!(matches!(with(limit, capabilities), Outcome::Healthy(_)), "{limit} {capabilities}");
        }
    }
    #[test]
    fn a_capability_of_a_user_namespace_lifts_nothing() {
        let found = memlock(&host("65536", "000001ffffffffff", "0 1000 1", "0"));
        assert!(found.findings()[0].title.contains("user namespace"), "{found:?}");
    }

    #[test]
    fn copying_between_processes_is_a_matter_of_yama_and_a_capability() {
        for (scope, bits, expected) in [
            ("0", "0", None),
            ("1", "0", Some(Severity::Note)),
            ("2", "0", Some(Severity::Warning)),
            ("2", "80000", None),
            ("3", "80000", Some(Severity::Warning)),
        ] {
            let outcome = capabilities(&host("unlimited", bits, "0 0 4294967295", scope));
            assert_eq!(
                outcome.findings().first().map(|found| found.severity),
                expected,
                "{scope} {bits}: {outcome:?}"
            );
        }
    }
}
