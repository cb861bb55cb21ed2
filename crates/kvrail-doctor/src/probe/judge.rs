//! The judgement: from what two hosts saw to what is wrong between them. A pure function of [`Facts`].
//!
//! A rail that fails is read by its packets. Those that leave one device and do not come to the other were dropped between
//! them; a device that sends nothing has not sent; where packets go both ways something else is wrong, and what it is is not claimed. Only then is it
//! asked how many rails show the same sign: one of many has a cause of its own.

mod passage;
mod speed;

use super::facts::{Counted, End, Facts, Place, Rail, Side};
use super::rules::{
    DEAD_RAIL, DEBUG_LOGGING, EMULATED_WRITES, NO_ANSWER, NOT_THE_FABRIC, RAILS_UNEQUAL, SAME_NODE,
    VERSIONS_DIFFER, WRONG_BYTES, WRONG_DEVICE,
};
use crate::checks::logging::LEVELS;
use crate::finding::Finding;
use crate::rule::{Confidence, Severity};
pub use speed::far_below;

/// Rails that a finding names one by one.
const NAMED_MAX: usize = 6;
/// What is wrong, as far as it shows.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(same_node(facts));
    findings.extend(not_the_fabric(facts));
    findings.extend(dead(facts));
    findings.extend(wrong_bytes(facts));
    findings.extend(emulated(facts));
    findings.extend(debug_logging(facts));
    findings.extend(speed::slow(facts));
    findings.extend(versions_differ(facts));
    findings.extend(rails_unequal(facts));
    findings
}

/// What a rail that failed shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sign {
    /// The device of a side cannot be opened.
    NotOpened(Place),
    /// The device of a side has sent no packet.
    Silent(Place),
    /// Packets that were sent in these directions did not arrive.
    Lost { to_there: bool, to_here: bool },
    /// Nobody counts packets, or they go both ways.
    Unexplained,
}

fn sign(rail: &Rail) -> Option<Sign> {
    let silent = |counted: Option<Counted>| counted.is_some_and(|counted| counted.tx == 0);
    match &rail.end {
        End::Works | End::NotMeasured => None,
        End::NotOpened { at, .. } => Some(Sign::NotOpened(*at)),
        _ if silent(rail.counted_here) => Some(Sign::Silent(Place::Here)),
        _ if silent(rail.counted_there) => Some(Sign::Silent(Place::There)),
        _ => Some(match (rail.counted_here, rail.counted_there) {
            (Some(here), Some(there)) if here.rx == 0 || there.rx == 0 => {
                Sign::Lost { to_there: there.rx == 0, to_here: here.rx == 0 }
            }
            // Only one side counts: nothing returns, and which way it was lost cannot be told.
            (Some(one), None) | (None, Some(one)) if one.rx == 0 => {
                Sign::Lost { to_there: true, to_here: true }
            }
            _ => Sign::Unexplained,
        }),
    }
}

/// Findings for rails that failed: one for each sign.
fn dead(facts: &Facts) -> Vec<Finding> {
    let mut groups: Vec<(Sign, Vec<&Rail>)> = Vec::new();
    for rail in &facts.rails {
        let Some(sign) = sign(rail) else { continue };
        if matches!(sign, Sign::NotOpened(at) if emulates(facts, at)) {
            // That is what is wrong with it, and it is told as such.
            continue;
        }
        match groups.iter_mut().find(|(known, _)| *known == sign) {
            Some((_, rails)) => rails.push(rail),
            None => groups.push((sign, vec![rail])),
        }
    }
    let some_work = facts.rails.iter().any(Rail::works);
    groups.into_iter().flat_map(|(sign, rails)| told(facts, sign, &rails, some_work)).collect()
}

fn told(facts: &Facts, sign: Sign, rails: &[&Rail], some_work: bool) -> Vec<Finding> {
    let names = names(rails);
    let working = facts.rails.iter().filter(|rail| rail.works()).count();
    let finding = match sign {
        _ if some_work && sign != Sign::Unexplained => {
            let (verb, what) = match sign {
                Sign::NotOpened(at) => ("cannot be opened", format!("its device on {}", host(facts, at))),
                Sign::Silent(at) => ("sends nothing", format!("its device on {}", host(facts, at))),
                _ => ("loses its packets", lost(facts, sign)),
            };
            let cause = format!(
                "{what} {}, and {working} other rail{} between the same hosts work{}: it is this interface's own fault, its port, its \
security group or its subnet",
                if matches!(sign, Sign::Lost { .. }) { "do not arrive" } else { verb },
                if working == 1 { "" } else { "s" },
                if working == 1 { "s" } else { "" },
            );
            let are = if rails.len() == 1 { "is" } else { "are" };
            let title = format!("{} of {} rails {are} dead: {names}", rails.len(), facts.rails.len());
            let mut finding = Finding::new(&DEAD_RAIL, title).cause(cause).confidence(Confidence::Likely);
            if let Some(name) = rails.first().map(|rail| &rail.here).filter(|name| !name.is_empty()) {
                finding = finding
                    .fix("look at its port on both hosts", format!("cat /sys/class/infiniband/{name}/ports/1/state"))
                    .advice("compare its network interface's security groups and subnet with those of its siblings");
                let left: Vec<&str> = facts
                    .rails
                    .iter()
                    .filter(|rail| rail.works() && !rail.here.is_empty())
                    .map(|rail| rail.here.as_str())
                    .collect();
                finding = finding
                    .fix("leave it out until then", format!("export KVRAIL_OFI_DEVICES={}", left.join(",")));
            }
            finding
        }
        Sign::NotOpened(at) | Sign::Silent(at) => {
            let where_ = host(facts, at);
            let title = if matches!(sign, Sign::Silent(_)) {
                format!("no device of {where_} sends a packet, though operations were posted: {names}")
            } else {
                format!("no device of {where_} can be opened: {names}")
            };
            Finding::new(&WRONG_DEVICE, title)
                .confidence(if matches!(sign, Sign::Silent(_)) {
                    Confidence::Likely
                } else {
                    Confidence::Certain
                })
                .cause(match sign {
                    Sign::Silent(_) => format!(
                        "nothing has left {where_}, so that nothing between the hosts is to blame: these are not the devices that carry the network, their ports \
are down, or their interfaces are attached without EFA"
                    ),
                    _ => "the device files cannot be opened or the driver refuses: permissions, limits, another user of the device".into(),
                })
                .fix(format!("on {where_}: the devices, their ports and drivers"), "kvrail topo")
                .fix(format!("on {where_}: drivers, permissions, limits"), "kvrail doctor")
        }
        Sign::Lost { to_there, to_here } => {
            return passage::judge(facts, to_there, to_here)
                .into_iter()
                .map(|finding| with_evidence(finding, facts, rails))
                .collect();
        }
        Sign::Unexplained => {
            let counted = rails.iter().any(|rail| rail.counted_here.is_some());
            let cause = match (counted, facts.is_fabric()) {
                (true, _) => {
                    "packets go both ways, so that no security group is in the way; a device refuses, or a process is starved"
                }
                (false, true) => {
                    "the devices' counters cannot be read, so that nothing tells a dropped packet from a stopped peer"
                }
                (false, false) => {
                    "a firewall for TCP ports other than the control connection's, or a starved process"
                }
            };
            let finding =
                Finding::new(&NO_ANSWER, format!("{names}: transfers fail, and packets do not say why"))
                    .cause(cause)
                    .confidence(Confidence::Possible);
            if facts.is_fabric() {
                finding
                    .fix(
                        "try the provider's other path",
                        format!("kvrail doctor probe --over efa {}", facts.there.host),
                    )
                    .fix("look at both hosts", "kvrail doctor")
            } else {
                finding.advice(
                    "let the hosts reach each other on all TCP ports: a rail's port is any that is free",
                )
            }
        }
    };
    vec![with_evidence(finding, facts, rails)]
}

/// Whether the provider of a side emulates RDMA by messages, which kvrail does not accept.
fn emulates(facts: &Facts, at: Place) -> bool {
    let emulated = match at {
        Place::Here => facts.emulated[0],
        Place::There => facts.emulated[1],
    };
    emulated.is_some_and(|(read, write)| read || write)
}

/// What the packets and the engine say; the engine first where the packets say nothing.
fn with_evidence(mut finding: Finding, facts: &Facts, rails: &[&Rail]) -> Finding {
    let why = rails.iter().find_map(|rail| match &rail.end {
        End::NotOpened { why, .. } | End::NotMet { why } => Some(why.clone()),
        End::Failed { step, why } => Some(format!("{step}: {why}")),
        End::Works | End::NotMeasured => None,
    });
    let engine = |finding: Finding| match &why {
        Some(why) => finding.evidence("what the engine says", why.clone()),
        None => finding,
    };
    let opaque = rails.iter().any(|rail| matches!(sign(rail), Some(Sign::Unexplained | Sign::NotOpened(_))));
    if opaque {
        finding = engine(finding);
    }
    for rail in rails.iter().take(NAMED_MAX) {
        let mut seen = Vec::new();
        for (side, counted) in [(&facts.here, rail.counted_here), (&facts.there, rail.counted_there)] {
            match counted {
                Some(Counted { tx, rx, .. }) => {
                    seen.push(format!("{}: {tx} packets sent, {rx} received", side.host))
                }
                None => seen.push(format!("{}: not counted", side.host)),
            }
        }
        finding = finding.evidence(format!("rail {}", rail.name()), seen.join("; "));
    }
    if opaque { finding } else { engine(finding) }
}

fn host(facts: &Facts, at: Place) -> String {
    facts.side(at).name()
}

fn lost(facts: &Facts, sign: Sign) -> String {
    let (here, there) = (facts.here.name(), facts.there.name());
    match sign {
        Sign::Lost { to_there: true, to_here: false } => format!("what {here} sends to {there}"),
        Sign::Lost { to_there: false, to_here: true } => format!("what {there} sends to {here}"),
        _ => format!("what {here} and {there} send each other"),
    }
}

fn names(rails: &[&Rail]) -> String {
    let mut listed: Vec<String> = rails.iter().take(NAMED_MAX).map(|rail| rail.name()).collect();
    if rails.len() > NAMED_MAX {
        listed.push(format!("and {} more", rails.len() - NAMED_MAX));
    }
    listed.join(", ")
}

fn same_node(facts: &Facts) -> Option<Finding> {
    let Facts { here, there, .. } = facts;
    if here.machine.is_empty() || here.machine != there.machine {
        return None;
    }
    let title = format!("both ends are on one node: {} and {}", here.name(), there.name());
    let mut finding =
        Finding::new(&SAME_NODE, title).evidence("/proc/sys/kernel/random/boot_id", here.machine.clone());
    if let Some(node) = &here.node_name {
        finding = finding.evidence("$NODE_NAME", node.clone());
    }
    Some(
        finding
            .advice("require anti-affinity of the two pods on the topology key kubernetes.io/hostname")
            .fix("see where pods are", "kubectl get pods -o wide"),
    )
}

fn not_the_fabric(facts: &Facts) -> Option<Finding> {
    let sides = [&facts.here, &facts.there];
    if facts.is_fabric() || facts.carrier_named || sides.iter().all(|side| side.nics.is_empty()) {
        return None;
    }
    let lacks: Vec<(&Side, String)> = sides
        .iter()
        .filter_map(|side| {
            if side.nics.is_empty() {
                return Some((*side, "has no RDMA device".to_owned()));
            }
            let why = side.no_provider.as_ref()?;
            Some((
                *side,
                format!("has {} RDMA devices and no libfabric that drives them ({why})", side.nics.len()),
            ))
        })
        .collect();
    let title = match lacks.as_slice() {
        [] => {
            let provider =
                |side: &Side| side.libfabric.as_ref().map_or("none".into(), |l| l.provider.clone());
            format!(
                "the bytes go over {}: {} would use {}, {} would use {}",
                facts.carrier,
                facts.here.host,
                provider(&facts.here),
                facts.there.host,
                provider(&facts.there)
            )
        }
        lacks => {
            let each: Vec<_> = lacks.iter().map(|(side, what)| format!("{} {what}", side.name())).collect();
            format!("the bytes go over {}: {}", facts.carrier, each.join("; "))
        }
    };
    let mut finding = Finding::new(&NOT_THE_FABRIC, title);
    for side in sides {
        let mut devices: Vec<&str> = side.nics.iter().take(NAMED_MAX).map(|nic| nic.name.as_str()).collect();
        if side.nics.len() > NAMED_MAX {
            devices.push("…");
        }
        let devices = devices.join(", ");
        let said = match &side.libfabric {
            _ if devices.is_empty() => "no RDMA device".into(),
            Some(library) => format!("{devices}; libfabric {} with {}", library.release, library.provider),
            None => format!("{devices}; no provider"),
        };
        finding = finding.evidence(side.host.clone(), said);
    }
    for (side, _) in &lacks {
        finding = finding.fix(format!("on {}: find what is missing", side.name()), "kvrail doctor");
    }
    if lacks.is_empty() {
        finding = finding.advice("load the same libfabric on both sides").fix(
            "or name a provider that both have",
            format!("kvrail doctor probe --over efa {}", facts.there.host),
        );
    }
    if lacks.iter().any(|(side, _)| side.nics.is_empty()) {
        finding =
            finding.advice("in Kubernetes give the pod devices: resources.limits `vpc.amazonaws.com/efa`");
    }
    Some(finding)
}

fn wrong_bytes(facts: &Facts) -> Vec<Finding> {
    let bad: Vec<&Rail> = facts.rails.iter().filter(|rail| !rail.wrong.is_empty()).collect();
    let Some(first) = bad.first().and_then(|rail| rail.wrong.first()) else { return Vec::new() };
    let title =
        format!("{}: a {} ended well and its bytes are wrong: {}", names(&bad), first.step, first.like);
    let mut finding = Finding::new(&WRONG_BYTES, title);
    for rail in bad.iter().take(NAMED_MAX) {
        for wrong in rail.wrong.iter().take(2) {
            let seen =
                format!("{} of its bytes, the first at offset {}: {}", wrong.bytes, wrong.offset, wrong.like);
            finding = finding.evidence(format!("rail {}, {}", rail.name(), wrong.step), seen);
        }
    }
    let other = if facts.carrier == "efa" { "efa-direct" } else { "efa" };
    if facts.is_fabric() {
        let again = format!("kvrail doctor probe --over {other} {}", facts.there.host);
        finding = finding.fix("tell the provider from the hardware", again);
    }
    vec![finding.advice("take the rail, or the library, out of service until this is understood")]
}

fn emulated(facts: &Facts) -> Vec<Finding> {
    let sides = [(&facts.here, facts.emulated[0]), (&facts.there, facts.emulated[1])];
    let found = sides.into_iter().filter_map(|(side, emulated)| {
        let what = match emulated? {
            (true, true) => "reads and writes",
            (true, false) => "reads",
            (false, true) => "writes",
            (false, false) => return None,
        };
        let title = format!("{} on {} emulates {what} by messages", facts.carrier, side.name());
        let mut finding = Finding::new(&EMULATED_WRITES, title)
            .evidence("FI_OPT_EFA_EMULATED_READ, FI_OPT_EFA_EMULATED_WRITE", what);
        if let Some(library) = &side.libfabric {
            finding = finding.evidence(library.path.clone(), format!("release {}", library.release));
        }
        if let Some(value) = side.variables.get("FI_EFA_USE_DEVICE_RDMA") {
            finding = finding
                .evidence("$FI_EFA_USE_DEVICE_RDMA", value.clone())
                .fix(format!("on {}", side.host), "unset FI_EFA_USE_DEVICE_RDMA");
        }
        if facts.rails.iter().any(|rail| matches!(rail.end, End::NotOpened { .. })) {
            finding = finding.severity(Severity::Error).fix(
                "probe the path that has no emulation",
                format!("kvrail doctor probe --over efa-direct {}", facts.there.host),
            );
        }
        Some(finding.advice("use the newest EFA installer's libfabric on both sides"))
    });
    found.collect()
}

fn debug_logging(facts: &Facts) -> Vec<Finding> {
    let found = [&facts.here, &facts.there].into_iter().flat_map(|side| {
        LEVELS.iter().filter_map(move |(name, slow)| {
            let value = side.variables.get(*name)?;
            slow.iter().any(|level| value.eq_ignore_ascii_case(level)).then(|| {
                let title = format!("{name}={value} on {} writes lines for every operation", side.name());
                Finding::new(&DEBUG_LOGGING, title)
                    .evidence(format!("${name} on {}", side.host), value.clone())
                    .fix(format!("on {}: log warnings only", side.host), format!("export {name}=warn"))
            })
        })
    });
    found.collect()
}

fn versions_differ(facts: &Facts) -> Option<Finding> {
    let Facts { here, there, .. } = facts;
    let mut differ = Vec::new();
    if here.kvrail != there.kvrail {
        differ.push(("kvrail", here.kvrail.clone(), there.kvrail.clone()));
    }
    if let (Some(ours), Some(theirs)) = (&here.libfabric, &there.libfabric) {
        if ours.release != theirs.release {
            differ.push(("libfabric", ours.release.clone(), theirs.release.clone()));
        }
        if ours.provider != theirs.provider && !facts.carrier_named {
            differ.push(("provider", ours.provider.clone(), theirs.provider.clone()));
        }
    }
    let (what, ours, theirs) = differ.first()?;
    let title = format!("{what} is {ours} on {} and {theirs} on {}", here.host, there.host);
    let finding = Finding::new(&VERSIONS_DIFFER, title);
    let finding = differ.iter().fold(finding, |finding, (what, ours, theirs)| {
        finding.evidence(*what, format!("{}: {ours}; {}: {theirs}", here.host, there.host))
    });
    let paths = [here, there].map(|side| side.libfabric.as_ref().map_or("none".into(), |l| l.path.clone()));
    Some(finding.evidence("libfabric", paths.join(" and ")).advice("use one image for both sides"))
}

fn rails_unequal(facts: &Facts) -> Option<Finding> {
    let (ours, theirs) = (facts.here.nics.len(), facts.there.nics.len());
    if ours == theirs || ours == 0 || theirs == 0 {
        return None;
    }
    let title = format!("{} has {ours} NICs and {} has {theirs}", facts.here.name(), facts.there.name());
    let types = [&facts.here, &facts.there].map(|side| {
        side.instance.as_ref().map_or("unknown".into(), |instance| instance.instance_type.clone())
    });
    Some(
        Finding::new(&RAILS_UNEQUAL, title)
            .severity(Severity::Note)
            .evidence("instance types", types.join(" and "))
            .advice("request the same number of vpc.amazonaws.com/efa for both pods, where the instances have them"),
    )
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
