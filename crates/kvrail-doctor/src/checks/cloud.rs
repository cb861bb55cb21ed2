//! What the instance's metadata and AWS say of its network: whether EFA's packets pass the security groups, whether they get out of the subnet,
//! whether an EFA interface is attached at all.
//!
//! These are the failures without a single error message: packets leave, none arrives. What the metadata service says is enough for
//! ranges; rules of security groups have to be asked of AWS, which takes its command line and the right to ask.

use std::collections::BTreeSet;
use std::time::Duration;

use super::device::seen;
use crate::aws::{self, Direction, Passage, Standing};
use crate::examine::Check;
use crate::finding::{Finding, Outcome};
use crate::host::{Host, InstanceFacts, InterfaceFacts, Lack};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(crate) const CHECKS: &[Check] = &[
    Check { rule: &EGRESS, look: egress },
    Check { rule: &INGRESS, look: ingress },
    Check { rule: &SECONDARY_CIDR, look: secondary_cidr },
    Check { rule: &NO_EFA_INTERFACE, look: no_efa_interface },
];

const EFA_GROUP: Reference = Reference {
    title: "AWS: prepare an EFA-enabled security group",
    url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html",
};

static EGRESS: Rule = Rule {
    id: "security-group-egress",
    title: "no security group of the EFA interface lets EFA's packets out",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "EFA's packets are let out by a rule for all traffic that names a security group of the peer; a rule for 0.0.0.0/0 does not let them out.",
    remedy: "Add an outbound rule for all traffic to the group itself, which both nodes carry.",
    story: "Transfers hang until a time-out, and nothing anywhere says why: tx_pkts of the sender counts up, rx_pkts of the receiver stays at 0. TCP between the same \
two hosts works, so that the network is thought to be well.

EFA's SRD packets are no IP traffic. The Nitro card lets them pass by membership in security groups: the sender's groups need an outbound rule for all \
traffic whose destination is a group that the receiver's interface carries. The default outbound rule, all traffic to 0.0.0.0/0, names addresses, and does not match.

Groups that people make by hand or with Terraform usually have that default rule only. The security group that EKS makes for a cluster has had the self-referencing outbound rule \
for some time; groups of node groups that were launched by other means often have not.",
    references: &[
        EFA_GROUP,
        Reference {
            title: "AWS EKS: security group requirements",
            url: "https://docs.aws.amazon.com/eks/latest/userguide/sec-group-reqs.html",
        },
    ],
    explained_by: &["no-efa-interface"],
};

static INGRESS: Rule = Rule {
    id: "security-group-ingress",
    title: "no security group of the EFA interface lets EFA's packets in",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "EFA's packets are let in by a rule for all traffic that names a security group of the peer; a rule for an address range does not let them in.",
    remedy: "Add an inbound rule for all traffic from the group itself, which both nodes carry.",
    story: "Transfers hang until a time-out, and nothing says why: tx_pkts of the sender counts up, rx_pkts of this host stays at 0.

The Nitro card lets EFA's SRD packets in by membership in security groups: this interface's groups need an inbound rule for all traffic whose source is a group \
that the sender's interface carries. A rule for the VPC's range, or for some TCP ports, lets TCP in and not EFA.

Two nodes in different groups need rules for each other's group, in both directions; the usual and simplest is one group that both carry, with rules for itself.",
    references: &[EFA_GROUP],
    explained_by: &["no-efa-interface"],
};

static SECONDARY_CIDR: Rule = Rule {
    id: "secondary-cidr",
    title: "the EFA interface is in a secondary range of the VPC",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The interface's subnet lies in a range that was added to the VPC later; EFA's packets from and to such subnets are dropped in silence.",
    remedy: "Launch the nodes in a subnet of the VPC's primary range.",
    story: "Transfers hang until a time-out, with no error anywhere: tx_pkts counts up on one side, rx_pkts stays at 0 on the other. TCP between the same hosts works, and \
the security groups are right.

A VPC is made with one IPv4 range and can be given more; 100.64.0.0/16 is the usual second one where addresses run out, and EKS is often told to put pods there. The fabric drops SRD packets \
of interfaces whose subnet lies in a secondary range, as was found on clusters whose nodes had been moved there; AWS's documents do not mention it.

It is the subnet of the EFA interface that counts. Pods with addresses of a secondary range on nodes whose EFA interfaces are in the primary one are well.",
    references: &[
        Reference {
            title: "AWS: Elastic Fabric Adapter, limitations",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa.html",
        },
        Reference {
            title: "AWS: IPv4 CIDR blocks of a VPC",
            url: "https://docs.aws.amazon.com/vpc/latest/userguide/vpc-cidr-blocks.html",
        },
    ],
    explained_by: &["no-efa-interface"],
};

static NO_EFA_INTERFACE: Rule = Rule {
    id: "no-efa-interface",
    title: "the instance was launched without an EFA interface",
    severity: Severity::Warning,
    kind: Kind::Host,
    cause: "The instance's type has EFA, but none of its network interfaces was attached with the type efa or efa-only.",
    remedy: "Launch instances with interfaces of type efa (or efa-only beyond the first); an interface cannot be changed into one.",
    story: "There is no /sys/class/infiniband, `fi_info -p efa` says that no data is available, and everything falls back to TCP. The driver is loaded and the installer ran.

EFA is a property of a network interface and not of the instance: each interface is attached as an ordinary one (ENA), as efa (ENA and EFA), or as efa-only. A launch template that names \
no interface type gets ordinary ones. On instances with several network cards only those cards carry EFA whose interface asks for it: P5 has 32 of them, and a template with one \
interface gives one rail.

The type is chosen when the interface is made; the instance has to be launched anew, with an interface of type efa for each network card.",
    references: &[
        Reference {
            title: "AWS: maximize network bandwidth on instances with EFA",
            url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html",
        },
        EFA_GROUP,
    ],
    explained_by: &[],
};

/// Longest wait for `aws`: it starts slowly, and the whole run has two seconds.
const AWS_PATIENCE: Duration = Duration::from_millis(1400);
/// Most groups that are asked about at once.
const GROUPS_MAX: usize = 32;
/// The interfaces that EFA's packets leave by.
struct EfaInterfaces<'a> {
    interfaces: Vec<&'a InterfaceFacts>,
    /// Whether it is known that they are EFA interfaces, and which.
    sure: bool,
}

/// Interfaces whose hardware address an EFA device was named after; where none is, all of the instance.
fn efa_interfaces<'a>(host: &Host, facts: &'a InstanceFacts) -> EfaInterfaces<'a> {
    let devices = host.names("/sys/class/infiniband").unwrap_or_default();
    let macs: BTreeSet<String> = devices
        .iter()
        .filter_map(|device| host.value(&format!("/sys/class/infiniband/{device}/ports/1/gids/0")).ok())
        .filter_map(|gid| aws::mac_of_gid(&gid))
        .collect();
    let own: Vec<_> = facts.interfaces.iter().filter(|interface| macs.contains(&interface.mac)).collect();
    if own.is_empty() {
        let interfaces: Vec<_> = facts.interfaces.iter().collect();
        let sure = interfaces.len() == 1;
        return EfaInterfaces { interfaces, sure };
    }
    EfaInterfaces { interfaces: own, sure: true }
}

/// What the metadata service says, or what to say instead.
fn instance(host: &Host) -> Result<InstanceFacts, Outcome> {
    host.instance().map_err(|why| {
        Outcome::NotApplicable(match why {
            Lack::Absent => "not an EC2 instance".into(),
            Lack::Late => {
                "the instance's metadata service does not answer here (containers are a hop too far where its hop limit is 1); \
                 `kvrail doctor probe` finds the same by sending"
                    .into()
            }
            why => format!("the instance's metadata: {why}"),
        })
    })
}

fn egress(host: &Host) -> Outcome {
    security_groups(host, Direction::Egress)
}

fn ingress(host: &Host) -> Outcome {
    security_groups(host, Direction::Ingress)
}

fn security_groups(host: &Host, direction: Direction) -> Outcome {
    let facts = match instance(host) {
        Ok(facts) => facts,
        Err(outcome) => return outcome,
    };
    if !seen::has_efa(host) {
        return Outcome::NotApplicable("no RDMA device whose packets would have to pass".into());
    }
    let efa = efa_interfaces(host, &facts);
    let ids: BTreeSet<&str> =
        efa.interfaces.iter().flat_map(|interface| &interface.groups).map(String::as_str).collect();
    let ids: Vec<&str> = ids.into_iter().take(GROUPS_MAX).collect();
    if ids.is_empty() {
        return Outcome::NotApplicable("the metadata service names no security group".into());
    }
    let groups = match describe(host, &facts.region, &ids) {
        Ok(groups) => groups,
        Err(why) => {
            return Outcome::NotApplicable(format!(
                "the rules of {} could not be read: {why}; `kvrail doctor probe` finds the same by sending",
                ids.join(", ")
            ));
        }
    };
    let mut findings: Vec<Finding> = Vec::new();
    let mut told: BTreeSet<&[String]> = BTreeSet::new();
    let mut by = BTreeSet::new();
    for interface in &efa.interfaces {
        // Interfaces of one instance mostly carry the same groups: one finding for all of them.
        if interface.groups.is_empty() || !told.insert(&interface.groups) {
            continue;
        }
        let own: Vec<aws::Group> =
            groups.iter().filter(|group| interface.groups.contains(&group.id)).cloned().collect();
        match aws::passage(&own, &interface.groups, direction) {
            Passage::Open { by: group } => {
                by.insert(group);
            }
            shut => findings.push(shut_out(direction, interface, &own, &shut, &facts.region, efa.sure)),
        }
    }
    Outcome::of(findings, || {
        let way = if direction == Direction::Egress { "out" } else { "in" };
        format!("all traffic within {} is let {way}", by.into_iter().collect::<Vec<_>>().join(", "))
    })
}

fn shut_out(
    direction: Direction,
    interface: &InterfaceFacts,
    own: &[aws::Group],
    shut: &Passage,
    region: &str,
    sure: bool,
) -> Finding {
    let (rule, way, verb, to) = match direction {
        Direction::Egress => (&EGRESS, "outbound", "authorize-security-group-egress", "to"),
        Direction::Ingress => (&INGRESS, "inbound", "authorize-security-group-ingress", "from"),
    };
    let groups = interface.groups.join(", ");
    let rules = match shut {
        Passage::AddressesOnly { ranges } => format!("{way} rules for addresses only: {}", ranges.join(", ")),
        Passage::ProtocolsOnly { protocols } => {
            format!("{way} rules {to} the group itself for {} only", protocols.join(", "))
        }
        Passage::Shut | Passage::Open { .. } => format!("no {way} rule that names a group or an address"),
    };
    let named = own.first().map_or(String::new(), |group| format!(" ({})", group.name));
    let group = interface.groups.first().map_or("", String::as_str);
    Finding::new(rule, format!("{groups} has no {way} rule for all traffic {to} itself: EFA's packets are dropped"))
        .evidence(format!("aws ec2 describe-security-groups {group}{named}"), rules)
        .evidence(
            format!("metadata of {}", if interface.id.is_empty() { &interface.mac } else { &interface.id }),
            format!("security groups {groups}"),
        )
        .fix(
            format!("add the rule to {group}, which both nodes must carry"),
            format!(
                "aws ec2 {verb} --region {region} --group-id {group} --ip-permissions 'IpProtocol=-1,UserIdGroupPairs=[{{GroupId={group}}}]'"
            ),
        )
        .confidence(if sure { Confidence::Certain } else { Confidence::Likely })
}

/// What AWS's command line says of groups, or why it does not.
fn describe(host: &Host, region: &str, ids: &[&str]) -> Result<Vec<aws::Group>, String> {
    let words: Vec<&str> =
        ["describe-security-groups", "--group-ids"].into_iter().chain(ids.iter().copied()).collect();
    let text = ask_aws(host, region, &words)?;
    aws::groups(&text).map_err(|error| format!("aws: {error}"))
}

/// What `aws ec2` prints, or why it prints nothing.
fn ask_aws(host: &Host, region: &str, what: &[&str]) -> Result<String, String> {
    let mut words = vec!["aws", "ec2"];
    words.extend(what);
    words.extend(["--output", "json", "--no-cli-pager"]);
    if !region.is_empty() {
        words.extend(["--region", region]);
    }
    let ran = host.run_with(&words, &[("AWS_MAX_ATTEMPTS", "1")], AWS_PATIENCE).map_err(|why| match why {
        Lack::Absent => "the AWS command line is not installed".to_owned(),
        why => format!("aws: {why}"),
    })?;
    if ran.is_success() {
        return Ok(ran.stdout);
    }
    let said = ran.stderr.lines().map(str::trim).find(|line| !line.is_empty());
    Err(format!("aws: {}", said.unwrap_or("it failed").chars().take(200).collect::<String>()))
}

fn secondary_cidr(host: &Host) -> Outcome {
    let facts = match instance(host) {
        Ok(facts) => facts,
        Err(outcome) => return outcome,
    };
    if !seen::has_efa(host) {
        return Outcome::NotApplicable("no RDMA device whose packets would have to pass".into());
    }
    let efa = efa_interfaces(host, &facts);
    let mut outside = Vec::new();
    let mut inside = 0;
    for interface in &efa.interfaces {
        match aws::standing(interface.subnet.as_deref(), interface.vpc.as_deref()) {
            Standing::Secondary { subnet, primary } => outside.push((*interface, subnet, primary)),
            Standing::Primary => inside += 1,
            Standing::Unknown => {}
        }
    }
    let Some((interface, subnet, primary)) = outside.first() else {
        if inside == 0 {
            return Outcome::NotApplicable("the metadata service tells no subnet of an EFA interface".into());
        }
        return Outcome::Healthy(format!("{inside} interfaces are in the primary range of their VPC"));
    };
    // Interfaces of pods are often in a secondary range and carry no EFA: it is only a finding if the EFA ones are known, or none is well.
    let (severity, confidence) = match (efa.sure, inside) {
        (true, _) | (false, 0) => (Severity::Error, Confidence::Likely),
        (false, _) => (Severity::Note, Confidence::Possible),
    };
    let name = if interface.id.is_empty() { &interface.mac } else { &interface.id };
    let count = match outside.len() {
        1 => format!("{name} is"),
        count => format!("{count} interfaces ({name} and more) are"),
    };
    let finding = Finding::new(
        &SECONDARY_CIDR,
        format!("{count} in {subnet}, outside of the VPC's primary range {primary}: EFA's packets are dropped"),
    )
    .evidence(format!("metadata of {name}"), format!("subnet {subnet}, VPC {primary}, all ranges {}", interface.vpc_all.join(", ")))
    .advice(format!("launch the nodes in a subnet of {primary}; keep secondary ranges for pods without EFA"))
    .fix("find such a subnet", format!("aws ec2 describe-subnets --region {} --query 'Subnets[].[SubnetId,CidrBlock,AvailabilityZone]' --output text", facts.region))
    .severity(severity)
    .confidence(confidence);
    Outcome::Findings(vec![finding])
}

fn no_efa_interface(host: &Host) -> Outcome {
    let Some(instance) = seen::instance(host) else {
        return Outcome::NotApplicable("not an instance that is known to have EFA".into());
    };
    match seen::efa_functions(host) {
        Ok(functions) if functions.is_empty() && !seen::has_efa(host) => {}
        Ok(functions) => {
            return Outcome::Healthy(format!(
                "{} has {}",
                instance.name,
                seen::count(functions.len(), "EFA function")
            ));
        }
        Err(why) => {
            return Outcome::NotApplicable(format!("the PCI devices of the host cannot be seen: {why}"));
        }
    }
    // That there is no device is told elsewhere; what the interfaces are instead, only AWS says.
    let facts = match self::instance(host) {
        Ok(facts) => facts,
        Err(outcome) => return outcome,
    };
    let filter = format!("Name=attachment.instance-id,Values={}", facts.instance_id);
    let words = ["describe-network-interfaces", "--filters", &filter];
    let told = ask_aws(host, &facts.region, &words).and_then(|text| aws::interface_types(&text));
    let types = match told {
        Ok(types) => types,
        Err(why) => {
            return Outcome::NotApplicable(format!("what the interfaces are could not be asked: {why}"));
        }
    };
    if types.is_empty() || types.iter().any(|(_, kind)| kind.starts_with("efa")) {
        return Outcome::Healthy(format!("{} has an EFA interface by AWS's word", instance.name));
    }
    let told: Vec<String> = types.iter().take(4).map(|(id, kind)| format!("{id} {kind}")).collect();
    let finding = Finding::new(
        &NO_EFA_INTERFACE,
        format!("this {} was launched without an EFA interface: {} of type interface", instance.name, types.len()),
    )
    .evidence("aws ec2 describe-network-interfaces", told.join(", "))
    .advice(format!(
        "launch it anew from a template whose NetworkInterfaces say `InterfaceType: efa` for each of its {} network cards",
        instance.efas
    ));
    Outcome::Findings(vec![finding])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::host::Bundle;

    fn host(answers: &Value) -> Host {
        let bundle = json!({"schema": "kvrail.bundle.v1", "complete": true, "answers": answers});
        Host::replay(Bundle::parse(&bundle.to_string()).unwrap())
    }

    /// A P5 with two interfaces: one in the primary range, one of pods in a secondary range.
    fn with_pods(gid: &str) -> Host {
        host(&json!({
            "directory": {"/sys/class/infiniband": ["rdmap79s0"]},
            "file": {"/sys/class/infiniband/rdmap79s0/ports/1/gids/0": gid},
            "instance": {"metadata": {"instance_type": "p5.48xlarge", "interfaces": [
                {"mac": "0e:49:61:0f:c3:11", "id": "eni-1", "subnet": "10.0.3.0/24", "vpc": "10.0.0.0/16"},
                {"mac": "0e:49:61:0f:c3:12", "id": "eni-2", "subnet": "100.64.3.0/24", "vpc": "10.0.0.0/16"},
            ]}},
        }))
    }

    #[test]
    fn it_is_the_efa_interfaces_range_that_counts_and_not_that_of_pods() {
        let well = secondary_cidr(&with_pods("fe80:0000:0000:0000:0c49:61ff:fe0f:c311"));
        assert!(matches!(well, Outcome::Healthy(_)), "{well:?}");
        let ill = secondary_cidr(&with_pods("fe80:0000:0000:0000:0c49:61ff:fe0f:c312"));
        assert!(ill.findings()[0].title.contains("100.64.3.0/24"), "{ill:?}");
        assert_eq!(ill.findings()[0].severity, Severity::Error);
        let unsure = secondary_cidr(&with_pods(""));
        assert_eq!(unsure.findings()[0].severity, Severity::Note, "{unsure:?}");
    }

    #[test]
    fn groups_that_cannot_be_read_are_no_finding_and_say_why() {
        let answers = json!({
            "directory": {"/sys/class/infiniband": ["rdmap79s0"]},
            "instance": {"metadata": {"instance_type": "p5.48xlarge", "interfaces": [{"mac": "0e:49:61:0f:c3:11", "groups": ["sg-1"]}]}},
            "command": {
                "AWS_MAX_ATTEMPTS=1 aws ec2 describe-security-groups --group-ids sg-1 --output json --no-cli-pager":
                    {"status": 254, "stderr": "\nAn error occurred (UnauthorizedOperation)"},
            },
        });
        for (without, says) in [(false, "UnauthorizedOperation"), (true, "not installed")] {
            let mut answers = answers.clone();
            if without {
                answers.as_object_mut().unwrap().remove("command");
            }
            let outcome = egress(&host(&answers));
            assert!(matches!(&outcome, Outcome::NotApplicable(why) if why.contains(says)), "{outcome:?}");
        }
    }

    #[test]
    fn an_instance_that_could_have_efa_and_was_launched_without_is_found() {
        let with = |id: &str, product: &str, kind: &str| {
            let key = "AWS_MAX_ATTEMPTS=1 aws ec2 describe-network-interfaces --filters Name=attachment.instance-id,Values=i-1 --output json --no-cli-pager";
            let told = json!({"NetworkInterfaces": [{"NetworkInterfaceId": "eni-1", "InterfaceType": kind}]});
            no_efa_interface(&host(&json!({
                "directory": {"/sys/bus/pci/devices": ["0000:00:05.0"]},
                "file": {
                    "/sys/class/dmi/id/sys_vendor": "Amazon EC2", "/sys/class/dmi/id/product_name": product,
                    "/sys/bus/pci/devices/0000:00:05.0/uevent": format!("PCI_ID=1D0F:{id}\n"),
                },
                "instance": {"metadata": {"instance_type": product, "instance_id": "i-1"}},
                "command": {key: {"status": 0, "stdout": told.to_string()}},
            })))
        };
        let ill = with("EC20", "p5.48xlarge", "interface");
        assert!(ill.findings()[0].evidence[0].seen.contains("eni-1 interface"), "{ill:?}");
        assert!(matches!(with("EC20", "p5.48xlarge", "efa-only"), Outcome::Healthy(_)));
        assert!(matches!(with("EFA2", "p5.48xlarge", "efa"), Outcome::Healthy(_)));
        assert!(matches!(with("EC20", "m5.large", "interface"), Outcome::NotApplicable(_)));
        assert!(matches!(no_efa_interface(&host(&json!({}))), Outcome::NotApplicable(_)), "a laptop");
    }
}
