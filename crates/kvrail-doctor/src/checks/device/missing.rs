//! Whether the instance has the EFA devices that its type can have.

use super::seen::{self, count};
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Kind, Reference, Rule, Severity};

pub(super) static MISSING: Rule = Rule {
    id: "efa-device-missing",
    title: "the instance was started without EFA devices, or with fewer than its type has",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "An instance has an EFA device for each network interface of the type `efa` or `efa-only` that it was started with, and only for those.",
    remedy: "Start the instance with one EFA interface for each of its network cards; they cannot be added while it runs.",
    story: "Everything is installed, `fi_info -p efa` says `No data available`, and transfers go over TCP, ten to a hundred times slower. Or all works, and \
the rate is a fraction of what the instance type's page promises.

EFA is a property of each network interface, chosen when the instance is started: a launch template that names one interface of the default type gives \
a P5 instance with none of its 32 EFA devices. A template that was written for P4d and taken over gives four. Node groups of eksctl need `efaEnabled: true`; \
with Karpenter the pod that asks for `vpc.amazonaws.com/efa` decides.

The devices are counted on the PCI bus, where a container sees all of the host's, so that a container that was merely given too few is another finding: \
efa-device-hidden.",
    references: &[
        Reference {
            title: "AWS: network bandwidth of instances with several network cards",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html",
        },
        Reference {
            title: "AWS: the instance type in the firmware's tables",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html",
        },
    ],
    explained_by: &["no-efa-interface"],
};

pub(super) fn look(host: &Host) -> Outcome {
    let there = match seen::efa_functions(host) {
        Ok(functions) => functions.len(),
        Err(why) => return Outcome::Unknown(format!("/sys/bus/pci/devices: {why}")),
    };
    if seen::is_emulated(host) {
        return Outcome::Healthy(format!("an emulated fabric has {}", count(there, "EFA device")));
    }
    let Some(instance) = seen::instance(host) else {
        return match there {
            0 => Outcome::NotApplicable("no EFA device, and no instance type that has some".into()),
            _ => Outcome::Healthy(count(there, "EFA device")),
        };
    };
    let (name, all) = (instance.name, instance.efas);
    if there >= all {
        return Outcome::Healthy(format!("{there} of the {all} EFA devices of {name}"));
    }
    let finding = match there {
        0 => Finding::new(
            &MISSING,
            format!("{name} can have {}, and this one was started without any", count(all, "EFA device")),
        ),
        _ => Finding::new(
            &MISSING,
            format!(
                "{there} of the {all} EFA devices of {name}: {} of {}",
                instance.gbytes(there),
                instance.gbytes(all)
            ),
        )
        .severity(Severity::Warning),
    };
    let finding = finding
        .evidence("/sys/bus/pci/devices", format!("{there} functions of Amazon's EFA (1d0f:efa0–efa3)"))
        .evidence("instance type", name)
        .fix(
            "see which interfaces it was started with",
            "aws ec2 describe-instances --instance-ids $(cat /sys/class/dmi/id/board_asset_tag) --query \
             'Reservations[].Instances[].NetworkInterfaces[].[Attachment.NetworkCardIndex,InterfaceType]'",
        )
        .advice(format!(
            "in the launch template, give each of the {all} network cards an interface with InterfaceType=efa-only (the first one's beside its \
             plain interface), and start the instance anew; with eksctl: efaEnabled: true"
        ));
    Outcome::Findings(vec![finding])
}
