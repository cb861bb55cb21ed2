//! Whether the ports of RDMA devices are up.

use kvrail_topology::{LinkState, NicKind};

use super::seen::some;
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Lack};
use crate::rule::{Kind, Reference, Rule, Severity};

pub(super) static DOWN: Rule = Rule {
    id: "device-port-down",
    title: "the port of an RDMA device is not active",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The device is there and its port moves no data: no cable, no switch, or on InfiniBand no subnet manager.",
    remedy: "Bring the port up, or leave the device out of the transfers.",
    story: "Transfers fail or hang on some rails, or libfabric and UCX leave a device out and the rate is a part of what it was.

InfiniBand ports that are INIT have a link and wait for a subnet manager; DOWN ports have no link. RoCE ports follow their network interface: `ip link set … up`. \
EFA's driver says ACTIVE whatever the link does, so that an EFA device that is not ACTIVE has a driver in trouble (a reset, an instance that is being moved).

Hosts with unused second ports are common: where at least one port is up, a port that is down is a note.",
    references: &[
        Reference {
            title: "Linux: sysfs-class-infiniband, ports/<n>/state",
            url: "https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-class-infiniband",
        },
    ],
    explained_by: &["efa-driver-missing"],
};

pub(super) fn look(host: &Host) -> Outcome {
    let topology = match host.topology() {
        Ok(topology) => topology,
        Err(Lack::Absent) => return Outcome::NotApplicable("no /sys".into()),
        Err(why) => return Outcome::Unknown(format!("/sys: {why}")),
    };
    let rdma: Vec<_> = topology.nics().iter().filter(|nic| nic.kind == NicKind::Rdma).collect();
    if rdma.is_empty() {
        return Outcome::NotApplicable("no RDMA device".into());
    }
    let down: Vec<_> = rdma.iter().filter(|nic| !nic.state.is_usable()).collect();
    let Some(first) = down.first() else {
        return Outcome::Healthy(format!("the ports of {} RDMA devices are up", rdma.len()));
    };
    let word = match &first.state {
        LinkState::Down(word) => word.as_str(),
        _ => "?",
    };
    let efa = down.iter().any(|nic| nic.driver.as_deref() == Some("efa"));
    let names = some(down.iter().map(|nic| nic.name.as_str()));
    let title = match down.len() == rdma.len() {
        true => format!("no RDMA device has an active port: {names}"),
        false => format!("{} of {} RDMA devices have no active port: {names}", down.len(), rdma.len()),
    };
    let severity = match (down.len() == rdma.len(), efa) {
        (true, _) => Severity::Error,
        (false, true) => Severity::Warning,
        (false, false) => Severity::Note,
    };
    let place = format!("/sys/class/infiniband/{}/ports/{}/state", first.name, first.port.unwrap_or(1));
    let finding = Finding::new(&DOWN, title).severity(severity).evidence(place, word);
    let finding = match (efa, first.interfaces.first()) {
        (true, _) => finding
            .cause("EFA's driver reports its ports active as long as it works, so that this one does not.")
            .fix("on the host, what the driver says", "sudo dmesg | grep -i efa"),
        (false, Some(interface)) => {
            finding.fix("bring its interface up", format!("sudo ip link set {interface} up"))
        }
        (false, None) => finding.fix("see what the port waits for", format!("ibstat {}", first.name)),
    };
    Outcome::Findings(vec![finding])
}
