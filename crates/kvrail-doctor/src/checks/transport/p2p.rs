//! Whether NICs are kept from reading and writing GPU memory by themselves.

use super::truth;
use crate::checks::device::seen;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Kind, Reference, Rule, Severity};

pub(super) static P2P_DISABLED: Rule = Rule {
    id: "p2p-disabled",
    title: "a variable keeps NICs from reading GPU memory, or EFA from its RDMA",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "With peer-to-peer access off, each byte of GPU memory is copied through host memory on both sides; with device RDMA off, reads and writes are emulated with messages.",
    remedy: "Unset the variable; the defaults use what the hardware has.",
    story: "Transfers between GPUs are right and far below the line rate, those between host memories are well. On P5 46 GB/s with four rails became a small part of it with nothing but FI_HMEM_DISABLE_P2P=1.

The variable makes libfabric treat GPU memory as if no NIC could reach it: data are staged in host memory, which costs two copies over PCIe and the processor's time. It is set to look for the cause of a crash or a \
corruption, and stays. libfabric's log says hmem_disable_p2p=1 at level info.

FI_EFA_USE_DEVICE_RDMA=0 is about all memory: reads and writes become messages that the other side's processor must take in. UCX_IB_GPU_DIRECT_RDMA=no is UCX's own switch for the same as the first.",
    references: &[
        Reference { title: "libfabric: fi_provider and HMEM variables", url: "https://ofiwg.github.io/libfabric/main/man/fi_mr.3.html" },
        Reference { title: "libfabric: fi_efa(7)", url: "https://ofiwg.github.io/libfabric/main/man/fi_efa.7.html" },
    ],
    explained_by: &[],
};

pub(super) fn look(host: &Host) -> Outcome {
    let devices = seen::devices(host);
    if devices.is_empty() {
        return Outcome::NotApplicable("no RDMA device that could reach GPU memory".into());
    }
    let set = |name: &'static str| Some((name, host.variable(name)?));
    let mut findings = Vec::new();
    let mut off = |name: &str, value: &str, title: String, command: String, severity: Severity| {
        findings.push(
            Finding::new(&P2P_DISABLED, title)
                .evidence(format!("${name}"), value)
                .fix("let the hardware do it", command)
                .severity(severity),
        );
    };
    if let Some((name, value)) = set("FI_HMEM_DISABLE_P2P").filter(|(_, value)| truth(value) == Some(true)) {
        let title = format!("{name}={value}: GPU memory is copied through host memory on its way to the NIC");
        off(name, value, title, format!("export {name}=0"), Severity::Error);
    }
    if let Some((name, value)) = set("FI_HMEM")
        && !super::passes(value, |kind| kind.eq_ignore_ascii_case("cuda"))
        && seen::gpu_files(host) > 0
    {
        let title = format!("{name}={value}: libfabric takes no memory of NVIDIA GPUs");
        off(name, value, title, format!("unset {name}"), Severity::Error);
    }
    if let Some((name, value)) =
        set("FI_EFA_USE_DEVICE_RDMA").filter(|(_, value)| truth(value) == Some(false))
        && devices.iter().any(seen::Device::is_efa)
    {
        let title = format!("{name}={value}: EFA's reads and writes are emulated with messages");
        off(name, value, title, format!("unset {name}"), Severity::Error);
    }
    if let Some((name, value)) =
        set("UCX_IB_GPU_DIRECT_RDMA").filter(|(_, value)| truth(value) == Some(false))
    {
        let title = format!("{name}={value}: UCX copies GPU memory through host memory");
        off(name, value, title, format!("unset {name}"), Severity::Warning);
    }
    Outcome::of(findings, || "nothing keeps NICs from GPU memory, or EFA from its RDMA".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::host;
    use super::*;

    #[test]
    fn each_switch_is_found_where_there_is_a_nic_and_in_every_spelling() {
        for (name, value) in [
            ("FI_HMEM_DISABLE_P2P", "1"),
            ("FI_HMEM_DISABLE_P2P", "True"),
            ("FI_EFA_USE_DEVICE_RDMA", "off"),
            ("UCX_IB_GPU_DIRECT_RDMA", "n"),
        ] {
            let outcome = look(&host(&json!({name: value}), true));
            assert!(outcome.findings()[0].title.starts_with(name), "{outcome:?}");
            assert!(matches!(look(&host(&json!({name: value}), false)), Outcome::NotApplicable(_)));
        }
        for (name, value) in
            [("FI_HMEM_DISABLE_P2P", "0"), ("FI_EFA_USE_DEVICE_RDMA", "1"), ("UCX_IB_GPU_DIRECT_RDMA", "try")]
        {
            assert!(
                matches!(look(&host(&json!({name: value}), true)), Outcome::Healthy(_)),
                "{name}={value}"
            );
        }
    }
}
