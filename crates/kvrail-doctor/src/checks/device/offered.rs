//! Whether libfabric itself offers EFA: the last word on devices, libraries and permissions together.

use std::time::Duration;

use super::seen::{self, count, some};
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Lack, Ran};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static OFFERED: Rule = Rule {
    id: "efa-not-offered",
    title: "EFA devices are visible, and libfabric does not offer them",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "libfabric's efa provider opens every verbs device when it starts, and offers none if it cannot use them.",
    remedy: "Look at the findings about libraries, permissions and limits first; `fi_info -p efa -t FI_EP_RDM` with FI_LOG_LEVEL=warn says what stopped it.",
    story: "`fi_info -p efa -t FI_EP_RDM` ends with `fi_getinfo: -61 (No data available)` although the devices are there; NIXL, NCCL and MPI go over TCP without \
a word.

Between a device and libfabric's offer stand: a libfabric with an efa provider (FI_PROVIDER, FI_PROVIDER_PATH), a libibverbs and libefa of the same \
release, the file in /dev/infiniband, the right to open it, and locked memory. Each has a check of its own; this one asks for the sum.

One cause is hard to see: the provider opens ALL devices that libibverbs lists. A pod that mounts the host's /dev/infiniband instead of asking the device plugin \
for its share sees files of devices that it may not open (on some instances also a ConnectX of the host), and the provider then gives up on every one.",
    references: &[
        Reference { title: "libfabric: fi_info(1)", url: "https://ofiwg.github.io/libfabric/main/man/fi_info.1.html" },
        Reference {
            title: "AWS samples: a mounted /dev/infiniband disables EFA",
            url: "https://github.com/aws-samples/aws-do-eks/pull/63",
        },
    ],
    explained_by: &["efa-driver-missing", "efa-device-hidden", "uverbs-permission", "memlock"],
};

/// fi_info opens all devices; 32 of them take half a second on a busy host.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where fi_info is, best first: that of the EFA installer, then the search path's.
const PROGRAMS: [&str; 2] = ["/opt/amazon/efa/bin/fi_info", "fi_info"];

pub(super) fn look(host: &Host) -> Outcome {
    let devices = seen::devices(host);
    let visible: Vec<_> =
        devices.iter().filter(|it| it.is_efa() && (it.visible || seen::is_emulated(host))).collect();
    if visible.is_empty() {
        return Outcome::NotApplicable("no EFA device is visible".into());
    }
    let asked = PROGRAMS.into_iter().find_map(|program| {
        let words = [program, "-p", "efa", "-t", "FI_EP_RDM"];
        match host.run_with(&words, &[], PATIENCE) {
            Err(Lack::Absent) => None,
            answer => Some((words.join(" "), answer)),
        }
    });
    let Some((command, answer)) = asked else {
        return Outcome::NotApplicable("no fi_info is installed".into());
    };
    let finding = |title: String| Finding::new(&OFFERED, title);
    let ran = match answer {
        Ok(ran) => ran,
        Err(Lack::Late) => {
            let late = finding(format!(
                "libfabric does not answer within {} s which devices it offers",
                PATIENCE.as_secs()
            ))
            .cause("A driver or a library hangs while libfabric opens the devices.")
            .confidence(Confidence::Likely)
            .evidence(&command, "no answer in time")
            .fix("see where it hangs", format!("FI_LOG_LEVEL=info {command}"));
            return Outcome::Findings(vec![late]);
        }
        Err(why) => return Outcome::Unknown(format!("{command}: {why}")),
    };
    let domains = domains(&ran);
    if domains == 0 {
        let title = match ran.signal {
            Some(signal) => format!(
                "fi_info was ended by signal {signal} while it opened {}",
                count(visible.len(), "EFA device")
            ),
            None => {
                format!("libfabric offers none of {} that are visible", count(visible.len(), "EFA device"))
            }
        };
        let found = finding(title).evidence(&command, said(&ran));
        let others: Vec<_> = devices.iter().filter(|it| it.visible && !it.is_efa()).collect();
        let found = match others.is_empty() {
            true => found.confidence(Confidence::Likely),
            false => found
                .cause(
                    "libfabric's efa provider opens every verbs device that it sees, and /dev/infiniband has devices that are no EFA: it may have given up \
                     on one of them.",
                )
                .confidence(Confidence::Possible)
                .evidence("/dev/infiniband", some(others.iter().map(|it| it.name.as_str())))
                .advice("do not mount the host's /dev/infiniband: let the device plugin give the pod its EFA devices (vpc.amazonaws.com/efa)"),
        };
        return Outcome::Findings(vec![found.fix(
            "see what stopped it",
            format!("FI_LOG_LEVEL=info FI_LOG_PROV=efa {command} 2>&1 | head -50"),
        )]);
    }
    if domains < visible.len() {
        let found = finding(format!("libfabric offers {domains} of {}", count(visible.len(), "EFA device")))
            .cause("libfabric could not use the others: each missing one is a rail less.")
            .confidence(Confidence::Likely)
            .severity(Severity::Warning)
            .evidence(&command, format!("{domains} domains"))
            .fix(
                "see what stopped it",
                format!("FI_LOG_LEVEL=info FI_LOG_PROV=efa {command} 2>&1 | head -50"),
            );
        return Outcome::Findings(vec![found]);
    }
    Outcome::Healthy(format!("libfabric offers {}", count(visible.len(), "EFA device")))
}

/// Devices that an answer of fi_info names. `efa` and `efa-direct` both name each; the domain is the device's name, with `-rdm` after it
/// for the former.
fn domains(ran: &Ran) -> usize {
    let domains = ran.stdout.lines().filter_map(|line| line.trim().strip_prefix("domain:"));
    let device = |domain: &str| domain.trim().trim_end_matches("-rdm").trim_end_matches("-dgrm").to_owned();
    domains.map(device).collect::<std::collections::BTreeSet<_>>().len()
}

/// What it said last.
fn said(ran: &Ran) -> String {
    let lines = ran.stderr.lines().chain(ran.stdout.lines());
    let last = lines.filter(|line| !line.trim().is_empty()).last().unwrap_or("nothing");
    last.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_two_providers_offer_is_one() {
        let stdout = "provider: efa\n    domain: rdmap79s0-rdm\nprovider: efa-direct\n    domain: rdmap79s0-rdm\n    domain: rdmap80s0-rdm\n";
        assert_eq!(domains(&Ran { stdout: stdout.into(), ..Ran::default() }), 2);
        assert_eq!(
            domains(&Ran { stderr: "fi_getinfo: -61 (No data available)".into(), ..Ran::default() }),
            0
        );
    }
}
