//! Where GPUs and NICs are to each other: whether near ones were given together, what bridges do between them, what the firmware says.

use kvrail_topology::{Distance, Gpu, Nic, Topology, distance};

use super::driven;
use crate::checks::device::seen::{self, count, some};
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Lack};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static FAR: Rule = Rule {
    id: "gpu-nic-far",
    title: "a GPU was given NICs that are far from it, while near ones are on the host",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "GPUs and NICs are handed out by two device plugins that do not know of each other, so that a pod's NIC may hang on another PCIe switch or NUMA node than its GPU.",
    remedy: "Take whole hosts, or let the cluster hand out GPU and NIC together.",
    story: "One pod has a third of another one's rate, with the same image on the same kind of node. `nvidia-smi topo -m` shows SYS or NODE between its GPU and its NICs instead of PIX or PXB.

On P5, P5en and P6 each GPU shares a PCIe switch with its own EFA devices. Between them data goes through that switch alone; to another GPU's it goes up through the host's root complexes and, at SYS, across the link between the processors, \
where all such traffic meets.

A pod that takes all GPUs and all EFA devices of a node has no such question. For parts of a node: the EFA DRA driver pairs a GPU with its EFA devices; with device plugins the kubelet's Topology Manager \
(policy `best-effort` or `single-numa-node`) keeps them on one NUMA node at least.",
    references: &[
        Reference {
            title: "Amazon EKS: EFA DRA driver, GPU and EFA affinity",
            url: "https://docs.aws.amazon.com/eks/latest/userguide/device-management-efa.html",
        },
        Reference {
            title: "Kubernetes: Topology Manager",
            url: "https://kubernetes.io/docs/tasks/administer-cluster/topology-manager/",
        },
    ],
    explained_by: &["gpu-missing", "efa-device-hidden", "numa-unknown"],
};

pub(super) static ACS: Rule = Rule {
    id: "pcie-acs",
    title: "PCIe switches send what goes between a GPU and its NIC up to the processor",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "Access Control Services are on in bridges between GPU and NIC: requests from one to the other are redirected to the root complex.",
    remedy: "Switch ACS off in these bridges (on a host without virtual machines), in the firmware's settings or at each boot.",
    story: "GPUDirect RDMA works and reaches half of the line rate or less, or it hangs; copies between GPUs that share a switch are as slow.

Access Control Services keep devices apart that are given to different virtual machines: a switch then sends every request to the root complex, which asks the IOMMU. The way GPU–switch–NIC becomes GPU–processor–NIC, \
and both directions share one uplink.

On a host that runs no virtual machines it serves nothing. Firmware switches it on with its IOMMU or virtualisation settings. Inside a virtual machine the bridges are the hypervisor's, and stay as they are.",
    references: &[
        Reference {
            title: "NCCL: troubleshooting, PCI Access Control Services",
            url: "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
        },
    ],
    explained_by: &[],
};

pub(super) static NUMA: Rule = Rule {
    id: "numa-unknown",
    title: "the firmware does not say on which NUMA node a GPU or NIC is",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "The host has several NUMA nodes, and the firmware's tables name none for some devices (numa_node is -1), so that near and far cannot be told across root complexes.",
    remedy: "Update the firmware or switch its NUMA tables on; until then name the NICs by hand.",
    story: "Libraries choose NICs at random or in the order of their names; threads run and memory lies on the wrong processor, and rates differ from run to run.

Linux takes a device's NUMA node from the firmware (ACPI's _PXM of the root bridge). Where it is missing, /sys/bus/pci/devices/<address>/numa_node says -1, and hwloc, NCCL, NIXL and UCX take the device for equally near to all. \
Devices behind one PCIe switch are found near to each other all the same.

Virtual machines show it when the hypervisor gave them NUMA nodes and no root bridge for each. The kernel takes a correction by hand: echo 0 > /sys/bus/pci/devices/<address>/numa_node.",
    references: &[
        Reference {
            title: "Linux: sysfs-bus-pci, numa_node",
            url: "https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-bus-pci",
        },
    ],
    explained_by: &[],
};

/// The topology, or why a check does not apply.
fn topology(host: &Host) -> Result<Topology, Outcome> {
    match host.topology() {
        Ok(topology) if topology.gpus().is_empty() => Err(Outcome::NotApplicable("no GPU".into())),
        Ok(topology) if !topology.nics().iter().any(is_rdma) => {
            Err(Outcome::NotApplicable("no RDMA device".into()))
        }
        Ok(topology) => Ok(topology),
        Err(Lack::Absent) => Err(Outcome::NotApplicable("no /sys".into())),
        Err(why) => Err(Outcome::Unknown(format!("/sys: {why}"))),
    }
}

fn is_rdma(nic: &Nic) -> bool {
    nic.kind == kvrail_topology::NicKind::Rdma
}

pub(super) fn far(host: &Host) -> Outcome {
    let topology = match topology(host) {
        Ok(topology) => topology,
        Err(outcome) => return outcome,
    };
    if seen::is_emulated(host) {
        return Outcome::NotApplicable("GPUs of an emulated host cannot be used".into());
    }
    let files: Vec<_> = seen::devices(host).into_iter().filter(|it| it.visible).map(|it| it.name).collect();
    let given: Vec<&Nic> =
        topology.nics().iter().filter(|nic| is_rdma(nic) && files.contains(&nic.name)).collect();
    let visible: Vec<_> = driven(host).into_iter().filter(|gpu| gpu.is_visible(host)).collect();
    let gpus: Vec<&Gpu> =
        visible.iter().filter_map(|gpu| topology.gpu_by_pci(gpu.address.parse().ok()?)).collect();
    if given.is_empty() || gpus.is_empty() {
        return Outcome::NotApplicable("no GPU or no RDMA device is visible".into());
    }
    let nearest =
        |gpu: &Gpu, nics: &mut dyn Iterator<Item = &Nic>| nics.map(|nic| distance(&topology, gpu, nic)).min();
    let far: Vec<_> = gpus
        .iter()
        .filter_map(|gpu| {
            let mine = nearest(gpu, &mut given.iter().copied())?;
            let best = nearest(gpu, &mut topology.nics().iter().filter(|nic| is_rdma(nic)))?;
            (mine > Distance::Pxb && best <= Distance::Pxb).then_some((*gpu, mine, best))
        })
        .collect();
    let Some((gpu, mine, best)) = far.first() else {
        return Outcome::Healthy(format!("{} near {}", count(given.len(), "NIC"), count(gpus.len(), "GPU")));
    };
    let near = topology.nics().iter().filter(|nic| is_rdma(nic) && distance(&topology, gpu, nic) == *best);
    let addresses: Vec<String> = far.iter().map(|(gpu, ..)| gpu.address.to_string()).collect();
    let finding = Finding::new(
        &FAR,
        format!(
            "GPU {} has no NIC nearer than {mine}, and the host has some at {best}",
            some(addresses.iter().map(String::as_str))
        ),
    )
    .cause(format!("Between them is {}: the device plugins gave a GPU and the NICs of another one.", mine.meaning()))
    .evidence("NICs here", some(given.iter().map(|nic| nic.name.as_str())))
    .evidence(format!("NICs near GPU {}", gpu.address), some(near.map(|nic| nic.name.as_str())))
    .fix("see the whole map", "kvrail topo")
    .advice("take whole nodes, or hand out GPU and NICs together (EFA DRA driver; kubelet: --topology-manager-policy=single-numa-node)");
    Outcome::Findings(vec![finding])
}

pub(super) fn acs(host: &Host) -> Outcome {
    let topology = match topology(host) {
        Ok(topology) => topology,
        Err(outcome) => return outcome,
    };
    if is_virtual(host) {
        return Outcome::NotApplicable("a virtual machine: the bridges are the hypervisor's".into());
    }
    // Bridges below which a GPU and a NIC meet: those above both, and their own down to each.
    let mut between = std::collections::BTreeSet::new();
    for gpu in topology.gpus() {
        for nic in topology
            .nics()
            .iter()
            .filter(|nic| is_rdma(nic) && distance(&topology, gpu, nic) <= Distance::Pxb)
        {
            let paths = [&gpu.path, &nic.path].into_iter().flatten();
            between.extend(paths.flat_map(|path| path.bridges.iter().copied()));
        }
    }
    if between.is_empty() {
        return Outcome::NotApplicable("no GPU and NIC share a PCIe switch".into());
    }
    let mut redirecting = Vec::new();
    for bridge in &between {
        match host.acs(&bridge.to_string()) {
            Ok(Some(registers)) if registers.redirects() => redirecting.push((bridge.to_string(), registers)),
            Ok(_) | Err(Lack::Absent) => {}
            Err(Lack::Denied) => {
                return Outcome::NotApplicable(
                    "only root sees it: sudo kvrail doctor --check pcie-acs".into(),
                );
            }
            Err(why) => return Outcome::Unknown(format!("configuration space of {bridge}: {why}")),
        }
    }
    let Some((first, registers)) = redirecting.first() else {
        return Outcome::Healthy(format!(
            "{} between GPUs and NICs redirect nothing",
            count(between.len(), "bridge")
        ));
    };
    let finding = Finding::new(
        &ACS,
        format!(
            "{} of {} between GPUs and NICs redirect to the processor",
            redirecting.len(),
            count(between.len(), "bridge")
        ),
    )
    .evidence(
        format!("ACS control of {first}"),
        format!("{:#06x}: P2P request or completion redirect", registers.control),
    )
    .fix("until the next boot", format!("sudo setpci -s {first} ECAP_ACS+0x6.w=0000"))
    .advice(format!(
        "the same for {}; for good in the firmware: ACS off, or with it the IOMMU and virtualisation",
        some(redirecting.iter().skip(1).map(|(bridge, _)| bridge.as_str()))
    ));
    Outcome::Findings(vec![finding])
}

/// Whether this is a virtual machine. x86 processors say so; elsewhere the firmware's names do.
fn is_virtual(host: &Host) -> bool {
    let processor = host.read("/proc/cpuinfo").unwrap_or_default();
    let flags = processor.lines().find_map(|line| line.strip_prefix("flags"));
    if let Some(flags) = flags {
        return flags.split_whitespace().any(|flag| flag == "hypervisor");
    }
    let vendor = host.value("/sys/class/dmi/id/sys_vendor").unwrap_or_default();
    let product = host.value("/sys/class/dmi/id/product_name").unwrap_or_default();
    let metal = product.ends_with(".metal") || product.contains(".metal-");
    (vendor == "Amazon EC2" && !metal)
        || ["QEMU", "Google", "innotek GmbH"].contains(&vendor.as_str())
        || product.contains("Virtual")
}

pub(super) fn numa(host: &Host) -> Outcome {
    let topology = match topology(host) {
        Ok(topology) => topology,
        Err(outcome) => return outcome,
    };
    let nodes = topology.numa_nodes().len();
    if nodes < 2 {
        return Outcome::NotApplicable("one NUMA node".into());
    }
    let gpus = topology.gpus().iter().filter(|gpu| gpu.numa.is_none()).map(|gpu| gpu.address.to_string());
    let nics =
        topology.nics().iter().filter(|nic| is_rdma(nic) && nic.numa.is_none()).map(|nic| nic.name.clone());
    let without: Vec<String> = gpus.chain(nics).collect();
    if without.is_empty() {
        return Outcome::Healthy(format!("all GPUs and NICs name one of {nodes} NUMA nodes"));
    }
    let address = topology.gpus().iter().find(|gpu| gpu.numa.is_none()).map(|gpu| gpu.address);
    let address =
        address.or_else(|| topology.nics().iter().find(|nic| is_rdma(nic) && nic.numa.is_none())?.pci);
    // Where each GPU shares a switch with a NIC, nothing has to be guessed.
    let near = |gpu: &Gpu| {
        topology.nics().iter().any(|nic| is_rdma(nic) && distance(&topology, gpu, nic) <= Distance::Pxb)
    };
    let told = topology.gpus().iter().all(near);
    let finding = Finding::new(
        &NUMA,
        format!(
            "the firmware names no NUMA node for {}: {}",
            count(without.len(), "device"),
            some(without.iter().map(String::as_str))
        ),
    )
    .severity(if told { Severity::Note } else { Severity::Warning })
    .confidence(Confidence::Certain);
    Outcome::Findings(vec![match address {
        Some(address) => finding.evidence(format!("/sys/bus/pci/devices/{address}/numa_node"), "-1").fix(
            "correct it by hand until the next boot, where you know the node",
            format!("echo 0 | sudo tee /sys/bus/pci/devices/{address}/numa_node"),
        ),
        None => finding.advice("update the firmware"),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Bundle;
    use serde_json::json;

    /// A P5 of bare metal, as far as its topology goes.
    fn p5(acs: serde_json::Value, cpuinfo: &str) -> Host {
        let capture = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../kvrail-topology/fixtures/p5.capture"
        ))
        .unwrap();
        let bundle = json!({
            "schema": "kvrail.bundle.v1", "complete": true,
            "answers": {"topology": {"/sys": capture}, "file": {"/proc/cpuinfo": cpuinfo}, "acs": acs},
        });
        Host::replay(Bundle::parse(&bundle.to_string()).unwrap())
    }

    #[test]
    fn a_bridge_that_redirects_is_found_on_metal_and_not_asked_in_a_virtual_machine() {
        let redirects = json!({"0000:46:01.0": {"capability": 95, "control": 29}});
        let found = acs(&p5(redirects.clone(), "flags\t\t: fpu vme"));
        let [finding] = found.findings() else { panic!("{found:?}") };
        assert!(
            finding.fix[0].command.as_deref() == Some("sudo setpci -s 0000:46:01.0 ECAP_ACS+0x6.w=0000"),
            "{finding:?}"
        );
        assert!(matches!(acs(&p5(redirects, "flags\t\t: fpu hypervisor")), Outcome::NotApplicable(_)));
        let quiet = json!({"0000:46:01.0": {"capability": 95, "control": 17}, "0000:46:01.1": null});
        assert!(matches!(acs(&p5(quiet, "flags\t\t: fpu")), Outcome::Healthy(_)));
        let denied = json!({"0000:44:00.0": {"lack": "denied"}});
        assert!(matches!(acs(&p5(denied, "flags\t\t: fpu")), Outcome::NotApplicable(_)));
    }

    #[test]
    fn a_firmware_without_numa_nodes_is_found_and_a_p5_is_well() {
        assert!(matches!(numa(&p5(json!({}), "")), Outcome::Healthy(_)));
        let capture = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../kvrail-topology/fixtures/no-numa.capture"
        ))
        .unwrap();
        let bundle = json!({"schema": "kvrail.bundle.v1", "complete": true, "answers": {"topology": {"/sys": capture}}});
        let found = numa(&Host::replay(Bundle::parse(&bundle.to_string()).unwrap()));
        assert!(!found.findings().is_empty(), "{found:?}");
    }
}
