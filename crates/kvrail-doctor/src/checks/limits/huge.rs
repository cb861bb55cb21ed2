//! Huge pages: libfabric's efa provider takes its buffers from them, and a control group may promise what it does not keep.

use crate::checks::container::{Container, container};
use crate::checks::device::seen;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static PAGES: Rule = Rule {
    id: "hugepages",
    title: "huge pages can be mapped and not used: libfabric ends with a bus error",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "libfabric's efa provider maps its buffers from the host's free huge pages, and the container's control group allows none: the first touch ends the process.",
    remedy: "Give the container huge pages (`hugepages-2Mi` in Kubernetes), or keep libfabric from them with FI_EFA_USE_HUGE_PAGE=0.",
    story: "A process dies of SIGBUS (`Bus error (core dumped)`, exit code 135) while it opens its first EFA endpoint, in a pod only; on the node the same works.

EFA's installer reserves huge pages on the host, and libfabric's efa provider takes its buffers (about 110 MB for an endpoint) from them unless FI_EFA_FORK_SAFE or FI_EFA_USE_HUGE_PAGE=0 says otherwise. If the kernel \
has none left it falls back to plain pages. But a pod without `hugepages-2Mi` has a control group whose limit is 0, and that is looked at when a page is touched, not when it is mapped: the mapping succeeds. \
Runtimes of 2023 and later also limit the reservation (hugetlb.2MB.rsvd.max), and then the mapping fails and libfabric falls back.

Huge pages also let EFA devices register more: their page tables end at about 95 GB of 4 KiB pages.",
    references: &[
        Reference { title: "libfabric: fi_efa(7), FI_EFA_USE_HUGE_PAGE", url: "https://ofiwg.github.io/libfabric/main/man/fi_efa.7.html" },
        Reference {
            title: "Kubernetes: manage huge pages",
            url: "https://kubernetes.io/docs/tasks/manage-hugepages/scheduling-hugepages/",
        },
        Reference { title: "runc: limits of reserved huge pages", url: "https://github.com/opencontainers/runc/pull/4073" },
        Reference { title: "libfabric: more than 95 GB do not register", url: "https://github.com/ofiwg/libfabric/issues/9739" },
    ],
    explained_by: &[],
};

/// What one endpoint of the efa provider takes.
const ENDPOINT_BYTES: u64 = 110 << 20;
const PAGE_BYTES: u64 = 2 << 20;

pub(super) fn look(host: &Host) -> Outcome {
    if !seen::devices(host).iter().any(seen::Device::is_efa) {
        return Outcome::NotApplicable("no EFA device".into());
    }
    if let Some(variable) = spared(host) {
        return Outcome::NotApplicable(format!("{variable} keeps libfabric from huge pages"));
    }
    let meminfo = host.read("/proc/meminfo").unwrap_or_default();
    let number = |name: &str| -> Option<u64> {
        meminfo.lines().find_map(|line| {
            line.strip_prefix(name)?.trim_start_matches(':').split_whitespace().next()?.parse().ok()
        })
    };
    let (total, free) = (number("HugePages_Total").unwrap_or(0), number("HugePages_Free").unwrap_or(0));
    let (allowed, reserved) =
        (limit(host, "max", "limit_in_bytes"), limit(host, "rsvd.max", "rsvd.limit_in_bytes"));
    let may = |limit: Option<u64>| limit.is_none_or(|bytes| bytes >= ENDPOINT_BYTES);
    let pages = format!("{free} of {total} free");
    if free > 0 && !may(allowed) && may(reserved) {
        let finding = Finding::new(
            &PAGES,
            format!(
                "{} of huge pages may be used here, and {} can be mapped: libfabric ends with SIGBUS",
                super::about(allowed.unwrap_or(0)),
                super::about(free * PAGE_BYTES)
            ),
        )
        .confidence(Confidence::Likely)
        .evidence("the control group's hugetlb.2MB limit", allowed.unwrap_or(0).to_string())
        .evidence("/proc/meminfo", format!("huge pages: {pages}"));
        let finding = match container(host) {
            Some(Container::Kubernetes) => finding
                .advice("in the pod's container set resources.requests and resources.limits `hugepages-2Mi: 5120Mi` (110 MB for each endpoint)"),
            _ => finding.advice("raise the control group's hugetlb.2MB limit"),
        };
        return Outcome::Findings(vec![
            finding.fix("or keep libfabric from them", "export FI_EFA_USE_HUGE_PAGE=0"),
        ]);
    }
    let given = allowed.is_some_and(|bytes| bytes > 0);
    if total == 0 || (free == 0 && given) {
        let finding = Finding::new(&PAGES, match total {
            0 => "the host has no huge pages: libfabric takes plain ones, and EFA registers at most about 95 GB".to_owned(),
            _ => format!("all {total} huge pages of the host are taken"),
        })
        .severity(Severity::Note)
        .cause("None were reserved, or others have them.")
        .evidence("/proc/meminfo", format!("huge pages: {pages}"))
        .fix("on the host", "sudo sysctl vm.nr_hugepages=5128");
        return Outcome::Findings(vec![finding]);
    }
    Outcome::Healthy(format!("huge pages: {pages}"))
}

/// The variable that keeps libfabric's efa provider from huge pages.
fn spared(host: &Host) -> Option<String> {
    let is = |name: &str, values: [&str; 4]| {
        host.variable(name)
            .filter(|value| values.iter().any(|it| value.eq_ignore_ascii_case(it)))
            .map(|value| format!("{name}={value}"))
    };
    match host.variable("FI_EFA_USE_HUGE_PAGE") {
        Some(_) => is("FI_EFA_USE_HUGE_PAGE", ["0", "false", "no", "off"]),
        None => is("FI_EFA_FORK_SAFE", ["1", "true", "yes", "on"]),
    }
}

/// A limit of this process's control group in bytes; none where there is none.
fn limit(host: &Host, v2: &str, v1: &str) -> Option<u64> {
    let unified = host.value(&format!("/sys/fs/cgroup/hugetlb.2MB.{v2}"));
    let value = unified.or_else(|_| host.value(&format!("/sys/fs/cgroup/hugetlb/hugetlb.2MB.{v1}"))).ok()?;
    // The old controller writes "no limit" as the largest number of pages.
    value.parse().ok().filter(|bytes: &u64| *bytes < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Bundle;
    use serde_json::json;

    fn with(free: u32, max: &str, reserved: &str, variables: serde_json::Value) -> Outcome {
        let bundle = json!({
            "schema": "kvrail.bundle.v1", "complete": true, "variables": variables,
            "answers": {
                "directory": {"/sys/class/infiniband": ["rdmap79s0"]},
                "file": {
                    "/sys/class/infiniband/rdmap79s0/device/uevent": "DRIVER=efa\n",
                    "/proc/meminfo": format!("HugePages_Total:    5128\nHugePages_Free:     {free}\n"),
                    "/sys/fs/cgroup/hugetlb.2MB.max": max, "/sys/fs/cgroup/hugetlb.2MB.rsvd.max": reserved,
                },
            },
        });
        look(&Host::replay(Bundle::parse(&bundle.to_string()).unwrap()))
    }

    #[test]
    fn pages_that_can_be_mapped_and_not_touched_are_found() {
        let none = json!({});
        let found = with(5128, "0", "max", none.clone());
        assert_eq!(found.findings()[0].severity, Severity::Error, "{found:?}");
        for (free, max, reserved, variables) in [
            (5128, "max", "max", none.clone()),
            (5128, "5368709120", "max", none.clone()),
            // The mapping fails, and libfabric takes plain pages.
            (5128, "0", "0", none.clone()),
            (0, "0", "max", none.clone()),
        ] {
            assert!(
                matches!(with(free, max, reserved, variables), Outcome::Healthy(_)),
                "{free} {max} {reserved}"
            );
        }
        for variables in [json!({"FI_EFA_USE_HUGE_PAGE": "0"}), json!({"FI_EFA_FORK_SAFE": "1"})] {
            assert!(matches!(with(5128, "0", "max", variables), Outcome::NotApplicable(_)));
        }
    }
}
