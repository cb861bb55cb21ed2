//! Whether EFA's PCI functions have become RDMA devices.

use super::seen::{self, count, some};
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Kind, Reference, Rule, Severity};

pub(super) static DRIVER: Rule = Rule {
    id: "efa-driver-missing",
    title: "EFA's PCI functions are there, and the kernel makes no RDMA devices of them",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The kernel's module efa drives EFA's PCI functions, and ib_uverbs lets programs use them; one of the two is not at work.",
    remedy: "Load both modules on the host; install EFA's driver there if the kernel has none.",
    story: "`fi_info -p efa` finds nothing, /dev/infiniband is empty or not there, and `lspci` shows the devices all the same.

After a kernel update the driver of the EFA installer must have been built for the new kernel (DKMS does that, if the kernel's headers are there); kernels of small \
distributions come without the module. In a container nothing can be mended: the modules are the host's.

A driver that is loaded and did not take a function says why in the kernel's log. A function that vfio-pci holds was given to a virtual machine.",
    references: &[
        Reference {
            title: "AWS: get started with EFA",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html",
        },
        Reference {
            title: "AWS: Linux kernel driver for EFA",
            url: "https://github.com/amzn/amzn-drivers/tree/master/kernel/linux/efa",
        },
    ],
    explained_by: &[],
};

pub(super) fn look(host: &Host) -> Outcome {
    let functions = match seen::efa_functions(host) {
        Ok(functions) if functions.is_empty() => {
            return Outcome::NotApplicable("no EFA function on the PCI bus".into());
        }
        Ok(functions) => functions,
        Err(why) => return Outcome::Unknown(format!("/sys/bus/pci/devices: {why}")),
    };
    let loaded = |module: &str| host.exists(&format!("/sys/module/{module}"));
    let all = functions.len();
    let without: Vec<_> = functions.iter().filter(|it| it.driver.as_deref() != Some("efa")).collect();
    let reinstall = |finding: Finding| {
        finding.advice(
            "if there is no such module for this kernel, install the EFA installer's driver on the host: sudo ./efa_installer.sh -y",
        )
    };
    if !without.is_empty() {
        let names = some(without.iter().map(|it| it.address.as_str()));
        let finding = Finding::new(
            &DRIVER,
            format!(
                "{} of {} EFA functions have no RDMA device: the driver efa does not drive them",
                without.len(),
                all
            ),
        )
        .evidence("/sys/bus/pci/devices", names);
        let other = without.iter().find_map(|it| it.driver.as_deref());
        let finding = match (loaded("efa"), other) {
            (_, Some(other)) => finding
                .cause(format!("The driver {other} holds them."))
                .evidence("driver", other)
                .advice(format!(
                    "give them back from {other} (virtual machines and user-space drivers use vfio-pci)"
                )),
            (false, None) => reinstall(
                finding
                    .cause("The kernel module efa is not loaded on the host.")
                    .evidence("/sys/module/efa", "not there")
                    .fix("on the host", "sudo modprobe efa"),
            ),
            (true, None) => finding
                .cause("The kernel module efa is loaded, and did not take them; the kernel's log says why.")
                .evidence("/sys/module/efa/version", version(host))
                .fix("on the host", "sudo dmesg | grep -i efa"),
        };
        return Outcome::Findings(vec![finding]);
    }
    if !loaded("ib_uverbs") && host.names("/sys/class/infiniband_verbs").is_err() {
        let finding = Finding::new(&DRIVER, "programs cannot use the EFA devices: ib_uverbs is not loaded")
            .cause("The kernel module ib_uverbs makes the files /dev/infiniband/uverbs*, and is not loaded on the host.")
            .evidence("/sys/class/infiniband_verbs", "not there")
            .fix("on the host", "sudo modprobe ib_uverbs");
        return Outcome::Findings(vec![finding]);
    }
    Outcome::Healthy(format!("the driver efa {} drives {}", version(host), count(all, "EFA device")))
}

/// The driver's version; that of the kernel itself has none.
fn version(host: &Host) -> String {
    host.value("/sys/module/efa/version").unwrap_or_else(|_| "of the kernel".into())
}
