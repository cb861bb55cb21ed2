//! Packets that leave and do not arrive: which direction, and by whose rule.

use crate::aws::{self, Direction, Group, Passage, Standing};
use crate::finding::Finding;
use crate::probe::facts::{Facts, Side};
use crate::probe::rules::{NOTHING_RETURNS, SECONDARY_CIDR};
use crate::rule::Confidence;

/// One way between the hosts.
struct Way<'a> {
    from: &'a Side,
    to: &'a Side,
}

/// A security group that lets nothing pass.
struct Shut {
    group: String,
    direction: Direction,
    host: String,
    peer: String,
    why: String,
}

/// Findings for packets that were lost in one direction or both.
pub(super) fn judge(facts: &Facts, to_there: bool, to_here: bool) -> Vec<Finding> {
    let (here, there) = (&facts.here, &facts.there);
    let mut ways = Vec::new();
    if to_there {
        ways.push(Way { from: here, to: there });
    }
    if to_here {
        ways.push(Way { from: there, to: here });
    }
    let title = match ways.as_slice() {
        [Way { from, to }] => {
            format!("nothing that {} sends over {} arrives at {}", from.name(), facts.carrier, to.name())
        }
        _ => format!(
            "nothing that {} and {} send each other over {} arrives",
            here.name(),
            there.name(),
            facts.carrier
        ),
    };
    if !facts.carrier.starts_with("efa") {
        let finding = Finding::new(&NOTHING_RETURNS, title)
            .cause("the fabric drops the packets: a partition (P_Key), a VLAN, a GID of another subnet, or a filter on its switches")
            .confidence(Confidence::Possible)
            .advice("compare the partitions, VLANs and GIDs of both ports")
            .fix("the ports and GIDs here", "kvrail topo");
        return vec![finding];
    }
    let shut: Vec<Shut> = ways.iter().flat_map(shut).collect();
    let known = ways.iter().all(|way| groups(way.from).is_some() && groups(way.to).is_some());
    let secondary = secondary(&[here, there]);
    let mut findings = Vec::new();
    if shut.is_empty() {
        findings.extend(secondary.clone());
    }
    // Where the rules are known and right they are not blamed.
    if !shut.is_empty() || !known || secondary.is_none() {
        findings.push(blamed(Finding::new(&NOTHING_RETURNS, title), &ways, &shut, known, secondary.as_ref()));
    }
    findings
}

fn blamed(
    finding: Finding,
    ways: &[Way<'_>],
    shut: &[Shut],
    known: bool,
    secondary: Option<&Finding>,
) -> Finding {
    let mut finding = finding;
    if let Some(first) = shut.first() {
        let word = word(first.direction);
        finding = finding.cause(format!(
            "security group {} of {} has no {word} rule for all traffic that names {}: {}; 0.0.0.0/0 does not cover EFA",
            first.group, first.host, first.peer, first.why
        ));
        for one in shut {
            let seen = format!("{}: {}", word_long(one.direction), one.why);
            finding = finding.evidence(format!("security group {} of {}", one.group, one.host), seen);
            finding = finding.fix(
                format!("let {} packets pass", word_long(one.direction)),
                authorise(&one.group, &one.peer, one.direction),
            );
        }
        if let Some(secondary) = secondary {
            finding = finding.advice(format!("and then: {}", secondary.title));
        }
        return finding;
    }
    if known {
        return finding
            .cause("the security groups let the packets pass, so that something else drops them: another VPC or zone, a network ACL, a NIC that is broken")
            .confidence(Confidence::Possible)
            .advice("are both hosts in one VPC and one availability zone")
            .fix("the state of the devices on both hosts", "kvrail doctor");
    }
    finding = finding.confidence(Confidence::Likely);
    let one_way = match ways {
        [Way { from, to }] => Some((from, to)),
        _ => None,
    };
    finding = finding.cause(match one_way {
        Some((from, to)) => format!(
            "most probably the security group of {} has no egress rule that names itself (0.0.0.0/0 does not cover EFA), or that of {} no \
ingress rule from it",
            from.name(),
            to.name()
        ),
        None => "most probably the security group has no egress rule that names itself (0.0.0.0/0 does not cover EFA), or no ingress rule from \
itself"
            .into(),
    });
    finding = finding.fix(
        "the rules as they are; SG is the security group of the EFA interfaces",
        "aws ec2 describe-security-groups --group-ids $SG",
    );
    let mut added: Vec<String> = Vec::new();
    for way in ways {
        let (from, to) = (ids(way.from), ids(way.to));
        let (own, peer) =
            (from.first().map_or("$SG", String::as_str), to.first().map_or("$SG", String::as_str));
        for (text, command) in [
            ("let packets out to members of the group", authorise(own, peer, Direction::Egress)),
            ("let packets in from members of the group", authorise(peer, own, Direction::Ingress)),
        ] {
            // One group for both hosts: both ways need the same two rules.
            if !added.contains(&command) {
                finding = finding.fix(text, command.clone());
                added.push(command);
            }
        }
    }
    if ways.iter().all(|way| way.from.instance.is_none() && way.to.instance.is_none()) {
        return finding.advice(
            "a subnet in a secondary range of the VPC (100.64.0.0/16) shows the same; neither side reaches the instance's metadata service to tell",
        );
    }
    finding
}

/// The command that adds a rule for all traffic to or from a group.
fn authorise(group: &str, peer: &str, direction: Direction) -> String {
    let word = word(direction);
    format!(
        "aws ec2 authorize-security-group-{word} --group-id {group} --ip-permissions 'IpProtocol=-1,UserIdGroupPairs=[{{GroupId={peer}}}]'"
    )
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

fn word_long(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "outbound",
        Direction::Ingress => "inbound",
    }
}

/// The groups of a side's interfaces.
fn ids(side: &Side) -> Vec<String> {
    let interfaces = side.instance.iter().flat_map(|instance| &instance.interfaces);
    let mut ids: Vec<String> = interfaces.flat_map(|interface| interface.groups.clone()).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The rules of a side's groups, where they are known.
fn groups(side: &Side) -> Option<Vec<Group>> {
    let ids = ids(side);
    let told = aws::groups(side.security_groups.as_ref()?).ok()?;
    let own: Vec<Group> = told.into_iter().filter(|group| ids.contains(&group.id)).collect();
    (!own.is_empty()).then_some(own)
}

/// The groups that stop packets on their way.
fn shut(way: &Way<'_>) -> Vec<Shut> {
    let of = |side: &Side, peer: &Side, direction| {
        let own = groups(side)?;
        let peers = ids(peer);
        let why = match aws::passage(&own, &peers, direction) {
            Passage::Open { .. } => return None,
            Passage::AddressesOnly { ranges } => {
                format!("its rules name addresses only ({})", ranges.join(", "))
            }
            Passage::ProtocolsOnly { protocols } => {
                format!("its rules let only {} pass", protocols.join(", "))
            }
            Passage::Shut => "no rule names a group".into(),
        };
        let group = own.first()?.id.clone();
        // Most clusters have one group for all nodes: the rule then names itself.
        let peer = if peers.contains(&group) { group.clone() } else { peers.first()?.clone() };
        Some(Shut { group, direction, host: side.host.clone(), peer, why })
    };
    [of(way.from, way.to, Direction::Egress), of(way.to, way.from, Direction::Ingress)]
        .into_iter()
        .flatten()
        .collect()
}

/// A finding where a side's interfaces are in a secondary range.
fn secondary(sides: &[&Side]) -> Option<Finding> {
    sides.iter().find_map(|side| {
        let interfaces = side.instance.as_ref()?.interfaces.iter();
        interfaces.map(|interface| (interface, aws::standing(interface.subnet.as_deref(), interface.vpc.as_deref()))).find_map(
            |(interface, standing)| match standing {
                Standing::Secondary { subnet, primary } => Some(
                    Finding::new(
                        &SECONDARY_CIDR,
                        format!("{} is in {subnet}, which is no part of its VPC's first range {primary}", side.name()),
                    )
                    .confidence(Confidence::Likely)
                    .evidence(format!("interface {} of {}", interface.id, side.host), format!("subnet {subnet}"))
                    .advice(format!("attach the EFA interfaces to a subnet within {primary}"))
                    .fix(
                        "the subnets of the VPC",
                        "aws ec2 describe-subnets --query 'Subnets[].[SubnetId,CidrBlock,AvailabilityZone]' --output table",
                    ),
                ),
                Standing::Primary | Standing::Unknown => None,
            },
        )
    })
}
