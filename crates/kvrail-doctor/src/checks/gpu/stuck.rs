//! Whether the GPUs answer: hanging drivers, GPUs that fell off the bus, memory that nobody can have.

use super::{driven, nvidia_smi};
use crate::checks::container::container;
use crate::checks::device::seen::{self, some};
use crate::finding::{Finding, Outcome};
use crate::host::{Host, Lack};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static STUCK: Rule = Rule {
    id: "gpu-stuck",
    title: "a GPU does not answer, has failed, or its memory is taken",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "NVIDIA's driver reports errors that only a reset of the GPU ends, or waits for it without end.",
    remedy: "Move the work away and reset the GPU; where it comes back with the same error, replace the host.",
    story: "CUDA calls hang, or allocation fails with `out of memory` on a GPU that nobody seems to use. nvidia-smi hangs as well, says `Unable to determine the device handle`, or \
prints ERR! where figures should be. A process that hangs in the driver cannot be killed, and the pod it is in never ends.

The kernel's log has the driver's reason as an Xid: 79 (fallen off the bus), 119 and 120 (the GPU's own processor does not answer), 48 and 95 (memory errors that could not be corrected), 74 (NVLink) need \
a reset or a repair. 13, 31 and 43 are errors of programs and leave the GPU as it was.

Memory that is in use while no process is shown belongs to a process in another container or to one that the driver could not end. \
A host whose GPUs are joined by NVSwitch also needs nvidia-fabricmanager running: without it CUDA fails with error 802 while nvidia-smi looks well.

The driver initialises a GPU anew for each program when its persistence mode is off, one to three seconds each: that is slow, and not stuck.",
    references: &[
        Reference {
            title: "NVIDIA: Xid errors",
            url: "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html",
        },
        Reference {
            title: "NVIDIA: driver persistence",
            url: "https://docs.nvidia.com/deploy/driver-persistence/overview.html",
        },
    ],
    explained_by: &["gpu-missing"],
};

/// Xids after which a GPU works no more until it is reset or replaced.
const FATAL: [(u32, &str); 9] = [
    (48, "a memory error that could not be corrected"),
    (62, "its internal microcontroller stopped"),
    (64, "no spare memory row is left"),
    (74, "an NVLink error"),
    (79, "it has fallen off the bus"),
    (95, "a memory error that was not contained"),
    (119, "its system processor does not answer"),
    (120, "its system processor failed"),
    (154, "the driver asks for a recovery"),
];
/// Memory that a driver and its monitors take at most on an idle GPU, in MiB.
const IDLE_MIB_MAX: u64 = 2048;

pub(super) fn look(host: &Host) -> Outcome {
    let gpus = driven(host);
    if seen::is_emulated(host) && gpus.is_empty() {
        return Outcome::NotApplicable("GPUs of an emulated host cannot be used".into());
    }
    let answer = nvidia_smi(host);
    if answer == Err(Lack::Absent) {
        return Outcome::NotApplicable("no nvidia-smi".into());
    }
    let mut findings: Vec<Finding> = fatal(host).into_iter().collect();
    let ran = match answer {
        Ok(ran) => ran,
        Err(Lack::Late) => {
            findings.push(
                Finding::new(&STUCK, "nvidia-smi does not answer within 10 s: a GPU or its driver hangs")
                    .cause("The driver waits for a GPU. Initialising GPUs takes 1 to 3 s each without persistence mode, so that a host with eight may need longer.")
                    .confidence(Confidence::Likely)
                    .evidence("nvidia-smi", "no answer within 10 s")
                    .fix("on the host, why", "sudo dmesg | grep -E 'NVRM|Xid|hung_task'")
                    .fix("on the host, keep the GPUs initialised", "sudo nvidia-smi -pm 1")
                    .fix("on the host, when nothing uses it", "sudo nvidia-smi --gpu-reset"),
            );
            return Outcome::Findings(findings);
        }
        Err(why) if findings.is_empty() => return Outcome::Unknown(format!("nvidia-smi: {why}")),
        Err(_) => return Outcome::Findings(findings),
    };
    let lines: Vec<&str> = ran.stdout.lines().chain(ran.stderr.lines()).collect();
    let broken: Vec<&str> = lines.iter().copied().filter(|line| is_broken(line)).collect();
    if let Some(first) = broken.first() {
        findings.push(
            Finding::new(&STUCK, format!("nvidia-smi reports a GPU that has failed: {}", shortened(first)))
                .cause("The driver can no longer talk to the GPU: it fell off the bus, or its own processor stopped.")
                .evidence("nvidia-smi", shortened(first))
                .fix("on the host, why", "sudo dmesg | grep -E 'NVRM|Xid'")
                .fix("on the host, when nothing uses it", "sudo nvidia-smi --gpu-reset")
                .advice("where it comes back with the error, replace the host (on EC2: stop and start the instance)"),
        );
    } else if !ran.is_success() && findings.is_empty() {
        let said = lines.first().copied().unwrap_or("nothing");
        let known = ["version mismatch", "communicate with the NVIDIA driver", "No devices were found"];
        if known.iter().any(|known| said.contains(known)) {
            return Outcome::NotApplicable("nvidia-smi finds no GPU".into());
        }
        if said.contains("is not a valid field") {
            return Outcome::NotApplicable("an nvidia-smi of a driver before 450".into());
        }
        return Outcome::Unknown(format!("nvidia-smi: {}", shortened(said)));
    }
    let states: Vec<State<'_>> = ran.stdout.lines().filter_map(State::parse).collect();
    findings.extend(prohibited(&states));
    findings.extend(uncorrected(&states));
    if findings.is_empty() {
        findings.extend(taken(host, &states));
    }
    Outcome::of(findings, || format!("{} answer", seen::count(states.len(), "GPU")))
}

/// Whether a line says that a GPU has failed.
fn is_broken(line: &str) -> bool {
    let told = [
        "ERR!",
        "Unable to determine the device handle",
        "GPU is lost",
        "GPU requires reset",
        "[Unknown Error]",
    ];
    told.iter().any(|told| line.contains(told))
}

fn shortened(line: &str) -> String {
    line.trim().chars().take(160).collect()
}

/// What the kernel's log says of GPUs that need a reset, where it may be read.
fn fatal(host: &Host) -> Option<Finding> {
    if driven(host).is_empty() {
        return None;
    }
    let log = host.run(&["dmesg"]).ok()?.stdout;
    let (line, address, xid) = log.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("NVRM: Xid (PCI:")?;
        let (address, rest) = rest.split_once(')')?;
        let xid: u32 =
            rest.trim_start_matches([':', ' ']).split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        FATAL.iter().any(|(fatal, _)| *fatal == xid).then_some((line, address, xid))
    })?;
    let meaning = FATAL.iter().find(|(fatal, _)| *fatal == xid).map_or("", |(_, meaning)| meaning);
    let finding = Finding::new(&STUCK, format!("GPU {address} reported Xid {xid}: {meaning}"))
        .cause("The driver logged an error of the GPU after which it must be reset; the log does not say whether that was done.")
        .confidence(Confidence::Likely)
        .evidence("dmesg", shortened(line))
        .fix("on the host, when nothing uses it", format!("sudo nvidia-smi --gpu-reset -i {address}.0"));
    Some(finding)
}

/// A line of the query's answer.
struct State<'a> {
    index: &'a str,
    address: &'a str,
    used_mib: Option<u64>,
    total_mib: Option<u64>,
    compute: &'a str,
    uncorrected: Option<u64>,
}

impl<'a> State<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [index, _name, address, used, total, compute, uncorrected] = fields[..] else { return None };
        index.parse::<u32>().ok()?;
        Some(Self {
            index,
            address,
            used_mib: used.parse().ok(),
            total_mib: total.parse().ok(),
            compute,
            uncorrected: uncorrected.parse().ok(),
        })
    }
}

fn prohibited(states: &[State<'_>]) -> Option<Finding> {
    let prohibited: Vec<_> = states.iter().filter(|state| state.compute == "Prohibited").collect();
    let first = prohibited.first()?;
    let names = some(prohibited.iter().map(|state| state.index));
    let finding =
        Finding::new(&STUCK, format!("GPU {names} allows no CUDA program: its compute mode is Prohibited"))
            .cause("Somebody set the compute mode, which stays until the driver is loaded anew.")
            .evidence("nvidia-smi", format!("GPU {}: compute mode Prohibited", first.index))
            .fix("on the host", format!("sudo nvidia-smi -i {} -c DEFAULT", first.index));
    Some(finding)
}

fn uncorrected(states: &[State<'_>]) -> Option<Finding> {
    let bad: Vec<_> =
        states.iter().filter(|state| state.uncorrected.is_some_and(|count| count > 0)).collect();
    let first = bad.first()?;
    let names = some(bad.iter().map(|state| state.address));
    let finding = Finding::new(
        &STUCK,
        format!("GPU {names} had memory errors that could not be corrected since its driver was loaded"),
    )
    .severity(Severity::Warning)
    .cause("A part of its memory is bad; the driver takes that part out of use when the GPU is reset.")
    .evidence(
        "nvidia-smi",
        format!("GPU {}: {} uncorrected errors", first.index, first.uncorrected.unwrap_or(0)),
    )
    .fix("on the host, when nothing uses it", format!("sudo nvidia-smi --gpu-reset -i {}", first.index));
    Some(finding)
}

/// Memory in use on a GPU on which no process is shown. In a container processes of others are not shown, nor one's own by some drivers:
/// there it is worth a note.
fn taken(host: &Host, states: &[State<'_>]) -> Option<Finding> {
    let held: Vec<_> =
        states.iter().filter(|state| state.used_mib.is_some_and(|used| used > IDLE_MIB_MAX)).collect();
    if held.is_empty() {
        return None;
    }
    const PROCESSES: [&str; 3] =
        ["nvidia-smi", "--query-compute-apps=gpu_bus_id,pid", "--format=csv,noheader"];
    let shown = host.run(&PROCESSES).ok().filter(crate::host::Ran::is_success)?.stdout;
    let nobody: Vec<_> = held.into_iter().filter(|state| !shown.contains(state.address)).collect();
    let first = nobody.first()?;
    let (used, total) = (first.used_mib.unwrap_or(0), first.total_mib.unwrap_or(0));
    let inside = container(host).is_some();
    let names = some(nobody.iter().map(|state| state.index));
    let finding = Finding::new(
        &STUCK,
        format!("GPU {names}: {used} of {total} MiB are taken, and no process of it is shown"),
    )
    .severity(if inside { Severity::Note } else { Severity::Warning })
    .confidence(Confidence::Possible)
    .cause(
        "A process in another container holds it, or one that was killed and that the driver could not end.",
    )
    .evidence("nvidia-smi", format!("GPU {}: {used} MiB used, no compute process", first.index))
    .fix("on the host, who has it open", "sudo fuser -v /dev/nvidia*");
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nvidia_smi_says_is_read_field_by_field() {
        let state =
            State::parse("3, NVIDIA H100 80GB HBM3, 00000000:86:00.0, 1024, 81559, Prohibited, [N/A]")
                .unwrap();
        assert_eq!(
            (state.index, state.used_mib, state.compute, state.uncorrected),
            ("3", Some(1024), "Prohibited", None)
        );
        for line in ["", "No devices were found", "a, b, c, d, e, f, g", "1, 2"] {
            assert!(State::parse(line).is_none(), "{line}");
        }
        assert!(is_broken("Unable to determine the device handle for GPU0000:53:00.0: Unknown Error"));
        assert!(is_broken("0, NVIDIA H100 80GB HBM3, 00000000:53:00.0, ERR!, 81559, Default, 0"));
        assert!(!is_broken("0, NVIDIA H100 80GB HBM3, 00000000:53:00.0, 0, 81559, Default, 0"));
    }
}
