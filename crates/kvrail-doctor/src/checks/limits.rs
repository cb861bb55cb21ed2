//! What the kernel lets a process have: locked memory, huge pages, open files, capabilities.

use crate::examine::Check;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Kind, Reference, Rule, Severity};

pub(crate) const CHECKS: &[Check] = &[Check { rule: &MEMLOCK, look: memlock }];

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

fn memlock(host: &Host) -> Outcome {
    if host.names("/sys/class/infiniband").map_or(true, |names| names.is_empty()) {
        return Outcome::NotApplicable("no RDMA device needs locked memory".into());
    }
    let soft = match host.read("/proc/self/limits") {
        Ok(limits) => limits.lines().find_map(|line| {
            Some(line.strip_prefix("Max locked memory")?.split_whitespace().next()?.to_owned())
        }),
        Err(why) => return Outcome::Unknown(format!("/proc/self/limits: {why}")),
    };
    let Some(soft) = soft else {
        return Outcome::Unknown("/proc/self/limits names no limit of locked memory".into());
    };
    let Ok(bytes) = soft.parse::<u64>() else { return Outcome::Healthy(format!("memlock is {soft}")) };
    let effective = host.read("/proc/self/status").ok().and_then(|status| {
        let line =
            status.lines().find_map(|line| line.strip_prefix("CapEff:").map(str::trim).map(str::to_owned))?;
        u64::from_str_radix(&line, 16).ok()
    });
    if effective.is_some_and(|bits| bits & IPC_LOCK != 0) {
        return Outcome::Healthy(format!(
            "memlock is {}, and the capability IPC_LOCK lifts it",
            about(bytes)
        ));
    }
    if bytes >= MEMLOCK_BYTES_MIN {
        return Outcome::Healthy(format!("memlock is {}", about(bytes)));
    }
    let finding = Finding::new(
        &MEMLOCK,
        format!("only {} of memory may be locked, and the process has no IPC_LOCK", about(bytes)),
    )
    .evidence("/proc/self/limits", format!("Max locked memory {bytes} bytes"))
    .fix(
        "on a host, for those who log in",
        "printf '* - memlock unlimited\\n' | sudo tee /etc/security/limits.d/90-memlock.conf",
    )
    .fix("with docker", "docker run --ulimit memlock=-1 …")
    .advice("in Kubernetes add `IPC_LOCK` to the container's securityContext.capabilities.add");
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
        let bundle = serde_json::json!({
            "schema": "kvrail.bundle.v1", "complete": true,
            "answers": {
                "directory": {"/sys/class/infiniband": ["rdmap79s0"]},
                "file": {
                    "/proc/self/limits": [format!("Max locked memory         {limit}              {limit}              bytes     ")],
                    "/proc/self/status": [format!("CapEff:\t{capabilities}")],
                },
            },
        });
        memlock(&Host::replay(Bundle::parse(&bundle.to_string()).unwrap()))
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
}
