//! Lines of libfabric and its efa provider. Each error of a completion has a rule: the number says what happened, and what to do
//! differs with it.

use super::super::codes;
use super::{
    AWS_EFA, EFA_ERRNO, FI_EFA, NIXL_LIBFABRIC, Needle, PLAIN, RULE, Reference, Rule, Severity, Signature,
};
use crate::rule::Confidence;

pub(super) static ALL: [Signature; 14] = [
    Signature {
        rule: Rule {
            id: "log-efa-rail-count",
            title: "the two sides have different numbers of rails",
            severity: Severity::Warning,
            cause: "One side found more NICs than the other: another instance type, fewer devices in the pod, or a device that is down.",
            remedy: "Give both sides the same number of EFA devices.",
            story: "NIXL's libfabric plugin warns `Rail count mismatch`, and transfers between the two sides then hang or fail with a remote key that is not registered: a local rail's index is used to pick a remote key, which \
is another rail's. With heterogeneous tensor parallelism the sides often get different numbers of devices, so that it looks like a fault of the parallelism.",
            references: &[NIXL_LIBFABRIC],
            ..RULE
        },
        needle: Needle {
            literals: &["Rail count mismatch"],
            pattern: r"Rail count mismatch \(local: (?P<local>\d+), remote: (?P<remote>\d+)\)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "this side has {local} rails and its peer {remote}",
        steps: &[
            ("count the devices on both sides", "ls /sys/class/infiniband | wc -l"),
            ("ask for the same number of vpc.amazonaws.com/efa in both pods", ""),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-remote-key",
            title: "the target refused a read or write: wrong key or wrong address",
            cause: "The key that was sent is not one of the rail that it was sent to, or the address is outside of what was registered: keys of another rail, of a region that was registered anew, or of a peer that was restarted.",
            remedy: "Give both sides the same number of rails, exchange metadata again after a restart, and never reuse metadata of memory that was registered anew.",
            story: "libfabric prints `Remote key (RKEY) not registered or does not match remote IOVA` (newer ones: `Remote memory registration is invalid …`), NIXL `CQ read failed on rail N`, and the transfer hangs, because the error is not \
handed on to the transfer that it ended. Seen with heterogeneous tensor parallelism: each rail has its own key for a region, and where the two sides have unequal numbers of rails, a local rail's index picks another rail's key.

Micro-benchmarks do not show it: they have one rail, or as many on both sides. `err: 22` is EINVAL, `prov_errno: 7` the device's own code.",
            references: &[EFA_ERRNO, NIXL_LIBFABRIC],
            explained_by: &["log-efa-rail-count"],
            ..RULE
        },
        needle: Needle {
            literals: &["RKEY) not registered", "Remote memory registration is invalid", "prov_errno: 7"],
            pattern: r"(?:err: (?P<err>\d+).*)?(?:RKEY\) not registered or does not match remote IOVA|Remote memory registration is invalid)|(?:rail (?P<rail>\d+) .*)?prov_errno: 7\b",
            unless: &[],
        },
        headline: "the target refused a read or write: its key is not registered there",
        steps: &[
            ("count the rails of both sides", "ls /sys/class/infiniband | wc -l"),
            ("try the path itself, rail by rail, with verified data", "kvrail doctor probe PEER"),
            ("with unequal tensor parallelism use the same number of devices on both sides, or the UCX backend", ""),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-local-key",
            title: "the local memory of a transfer is not registered",
            cause: "The buffer was deregistered or freed while it was in use, is longer than what was registered, or was registered on another rail.",
            remedy: "Keep registrations until the last completion; register the whole buffer on every rail that is used.",
            story: "The device refuses its own side of a transfer: `Local memory registration is invalid` (older: `Local key (LKEY) invalid or does not match IOVA`), code 5. An engine that releases a request while it is in flight, or a \
cache of registrations that is keyed by the base address alone, gives keys of memory that is gone.",
            references: &[EFA_ERRNO],
            ..RULE
        },
        needle: Needle {
            literals: &["LKEY) ", "Local memory registration is invalid", "prov_errno: 5"],
            pattern: r"LKEY\) (?:not registered|invalid)|Local memory registration is invalid|(?:rail (?P<rail>\d+) .*)?prov_errno: 5\b",
            unless: &[],
        },
        headline: "the local memory of a transfer is not registered",
        steps: &[("report it to the engine that posts the transfers, with this line", "")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-unreachable",
            title: "the network drops everything that is sent to a peer",
            cause: "The peer never answered a single packet: the security group has no rule for outbound traffic to itself, or the peer is in another subnet or a secondary address range of the VPC.",
            remedy: "Add an outbound and an inbound rule for all traffic with the security group itself as destination and source; use the VPC's primary address range.",
            story: "libfabric says `Unreachable remote - never received a response`, code 15. SRD, the protocol of EFA, is judged by membership of security groups and not by addresses: an outbound rule for 0.0.0.0/0 does not let it \
through; a rule that names the group itself does. Secondary ranges like 100.64.0.0/16 drop it as well.

TCP works all the while, so that hosts see each other, metadata is exchanged and handshakes of the engine succeed. Counters tell: tx_pkts grows here, rx_pkts stays 0 there.",
            references: &[AWS_EFA, EFA_ERRNO],
            ..RULE
        },
        needle: Needle {
            literals: &["Unreachable remote", "prov_errno: 15"],
            pattern: r"Unreachable remote|(?:rail (?P<rail>\d+) .*)?prov_errno: 15\b",
            unless: &[],
        },
        headline: "nothing that EFA sends reaches the peer",
        steps: &[
            ("let the group talk to itself, outbound", "aws ec2 authorize-security-group-egress --group-id SG --ip-permissions 'IpProtocol=-1,UserIdGroupPairs=[{GroupId=SG}]'"),
            ("and inbound", "aws ec2 authorize-security-group-ingress --group-id SG --ip-permissions 'IpProtocol=-1,UserIdGroupPairs=[{GroupId=SG}]'"),
            ("let doctor decide which it is", "kvrail doctor probe PEER"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-unresponsive",
            title: "a peer stopped answering",
            cause: "The peer's process ended, hangs without driving its endpoint, or its host or NIC failed; it had answered before, or its host still does.",
            remedy: "Look at the peer's own log at that time: a crash, the OOM killer, a debugger, a stopped container.",
            story: "`Unresponsive remote (was previously responsive)` is code 13, `Unresponsive receiver` 13, 4124 or 4126 with older and newer providers. The NIC retransmitted for seconds and gave up. A peer that is stopped in a debugger, starved of \
CPU, or busy in a long call that holds Python's lock looks the same as one that is gone, because the efa provider answers handshakes only while its owner polls.",
            references: &[EFA_ERRNO],
            explained_by: &["log-oom-killer", "log-segfault", "log-segfault-bundled", "log-gpu-xid"],
            ..RULE
        },
        needle: Needle {
            literals: &["Unresponsive remote", "Unresponsive receiver", "prov_errno: 13", "prov_errno: 4124", "prov_errno: 4126"],
            pattern: r"Unresponsive (?:remote|receiver)[^(\n]*(?:\((?P<detail>[^)]+)\))?|(?:rail (?P<rail>\d+) .*)?prov_errno: (?:13|4124|4126)\b",
            unless: &[],
        },
        headline: "a peer stopped answering on EFA",
        steps: &[("read the peer's logs of that time", "kvrail doctor log PEER.log dmesg.txt")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-unknown-peer",
            title: "the target does not know the sender",
            cause: "Reads and writes need the sender's address in the target's address vector, and it is not there: connections were made in one direction only, or the target forgot the peer.",
            remedy: "Let both sides add each other before the first transfer.",
            story: "Code 14, `No valid address handle at remote side` (older: `Invalid address handle on remote`). Messages arrive without it; one-sided reads and writes do not. It appears when only the reader loads the other's metadata, when a peer was \
removed and comes back, and with the efa-direct fabric, which makes no handshake that would add it.",
            references: &[EFA_ERRNO, FI_EFA],
            ..RULE
        },
        needle: Needle {
            literals: &["No valid address handle at remote side", "nvalid address handle on remote", "prov_errno: 14"],
            pattern: r"No valid address handle at remote side|[Ii]nvalid address handle on remote|(?:rail (?P<rail>\d+) .*)?prov_errno: 14\b",
            unless: &[],
        },
        headline: "the target does not know the sender of a read or write",
        steps: &[("let both sides load each other's metadata before the first transfer", "")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-peer-restarted",
            title: "a peer's endpoint is gone: it ended or was restarted",
            cause: "The address belongs to a queue pair that no longer exists: the peer's process ended, or was restarted and has a new one that was not exchanged.",
            remedy: "Exchange metadata again after a peer's restart; find out why it restarted.",
            story: "Code 9: the remote device answers that it has no such queue pair. An engine that keeps the metadata of its peers, or an etcd that still has a dead agent's keys, sends to the old endpoint until somebody loads the new one.",
            references: &[EFA_ERRNO],
            explained_by: &["log-oom-killer", "log-segfault", "log-segfault-bundled"],
            ..RULE
        },
        needle: Needle {
            literals: &["Bad queue pair (QP) number", "Bad QP number", "nvalid receiver queue pair number", "prov_errno: 9"],
            pattern: r"Bad queue pair \(QP\) number|Bad QP number|[Ii]nvalid receiver queue pair number|(?:rail (?P<rail>\d+) .*)?prov_errno: 9\b",
            unless: &[],
        },
        headline: "a peer's endpoint is gone: its process ended or was restarted",
        steps: &[("read the peer's logs of that time", "kvrail doctor log PEER.log"), ("restart the side that still has the old metadata", "")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-receiver-not-ready",
            title: "a peer has no receive buffers left",
            cause: "Messages, and writes with immediate data, use up posted receives, and the peer does not post new ones fast enough: it does not poll, or more is in flight than it has buffers.",
            remedy: "Let the peer poll (a progress thread), or keep fewer writes with immediates in flight.",
            story: "Code 10, `Destination resource not ready` (older: `Receiver not ready`). The NIC retries for a while, as often as the endpoint allows, then gives up. Unless unsolicited receives are on, every write with immediate data takes a receive \
from the target, so that a sender with thousands of small writes in flight runs the target dry.",
            references: &[EFA_ERRNO, FI_EFA],
            ..RULE
        },
        needle: Needle {
            literals: &["Destination resource not ready", "Receiver not ready", "prov_errno: 10"],
            pattern: r"Destination resource not ready|Receiver not ready|(?:rail (?P<rail>\d+) .*)?prov_errno: 10\b",
            unless: &[],
        },
        headline: "a peer had no receive buffers left",
        steps: &[("let the receiving side make progress, as in nixl_agent_config(enable_prog_thread=True)", "")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-versions",
            title: "the two hosts have different EFA software",
            cause: "Driver, libfabric or rdma-core differ between the hosts, so that one does not understand or support what the other asks for.",
            remedy: "Install the same EFA installer on all hosts, and the same libraries in all containers.",
            story: "`Inconsistent support status detected on unsolicited write recv`, `Remote feature mismatch`, `Deprecated packet type` or `Invalid packet type`: the peers were built for each other in different years. Where libfabric can it emulates writes \
by messages and goes on at a fraction of the speed; where it cannot, transfers fail.",
            references: &[EFA_ERRNO, FI_EFA],
            ..RULE
        },
        needle: Needle {
            literals: &["Inconsistent support status detected", "inconsistent efa driver, libfabric", "Remote feature mismatch", "Deprecated packet type", "Invalid packet type", "prov_errno: 18"],
            pattern: r"Inconsistent support status detected on (?P<feature>[\w -]+)|inconsistent efa driver, libfabric|Remote feature mismatch|Deprecated packet type|Invalid packet type (?:encountered|received)|(?:rail (?P<rail>\d+) .*)?prov_errno: (?:18|4097|4098|4099|4125)\b",
            unless: &[],
        },
        headline: "this host and its peer have different EFA software",
        steps: &[("compare on both", "fi_info --version; modinfo -F version efa; cat /opt/amazon/efa_installed_packages")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-efa-error",
            title: "a transfer failed on EFA",
            cause: "The device or its provider ended an operation with an error; the code says which.",
            remedy: "See what the code means; errors of the same time on the other side mostly say more.",
            story: "Every failed operation of the efa provider carries two codes: one of libfabric (`err: 5` is EIO, 22 EINVAL, 113 EHOSTUNREACH) that is too coarse to act on, and the provider's own (`prov_errno`), which is exact: below 4096 the device's \
status, from 4096 on the provider's.",
            references: &[EFA_ERRNO],
            ..RULE
        },
        needle: Needle {
            literals: &["prov_errno: "],
            pattern: r"prov_errno: (?:[A-Z][^(\n]*\()?(?P<code>2|3|4|6|8|11|12|4096|4100|4101|4102|4103|4104|4105|4106|4107|4108|4109|411[0-9]|412[0-37])\b",
            unless: &[],
        },
        headline: "transfers failed on EFA with code {code}",
        steps: &[("try the path itself, rail by rail", "kvrail doctor probe PEER")],
        meaning: Some(("code", codes::efa)),
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-no-fabric",
            title: "libfabric found no device",
            cause: "No provider had a device for what was asked: no EFA device in the container, a libfabric without the efa provider, or FI_PROVIDER names one that is not there.",
            remedy: "Give the container its devices and search the EFA installer's libfabric first; then `fi_info -p efa` must list them.",
            story: "fi_getinfo ends with -61 (FI_ENODATA, `No data available`), the provider's output list is empty, NIXL finds `No network devices`. It is what every program above libfabric says when it sees no device, whatever the reason.

In order of frequency: the pod did not ask for vpc.amazonaws.com/efa; the libfabric that was found is not the EFA installer's; libibverbs cannot load libefa; FI_PROVIDER is misspelt.",
            references: &[Reference { title: "libfabric: fi_getinfo(3)", url: "https://ofiwg.github.io/libfabric/main/man/fi_getinfo.3.html" }],
            explained_by: &["log-no-infiniband", "log-uverbs-permission", "log-verbs-driver", "log-library-missing"],
            ..RULE
        },
        needle: Needle {
            literals: &["fi_getinfo", "No network devices found with any provider", "No network devices discovered"],
            pattern: r"fi_getinfo\b.*(?:-61\b|No data available|ENODATA)|fi_getinfo: provider (?P<provider>efa\S*) output empty list|No network devices (?:found with any provider|discovered)",
            unless: &["Using provider without"],
        },
        headline: "libfabric found no device to use",
        steps: &[
            ("see what libfabric finds", "fi_info -p efa -t FI_EP_RDM"),
            ("see what this container lacks", "kvrail doctor"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-not-implemented",
            title: "libfabric's provider does not implement what was asked",
            cause: "The provider in use is another than the caller was written for (tcp instead of efa), or older.",
            remedy: "See which provider is in use, and use the EFA installer's libfabric.",
            story: "`Function not implemented` (FI_ENOSYS, -38) from a call of libfabric. Callers that expect EFA ask for what only it has: unsolicited receives, atomics that EFA has not, memory of GPUs. With FI_PROVIDER unset and no EFA device, libfabric gives \
tcp or shm, and the first such call fails.",
            references: &[Reference { title: "libfabric: fi_errno(3)", url: "https://ofiwg.github.io/libfabric/main/man/fi_errno.3.html" }],
            explained_by: &["log-no-fabric"],
            ..RULE
        },
        needle: Needle {
            literals: &["Function not implemented", "FI_ENOSYS"],
            pattern: r"\b(?P<call>fi_\w+)\b.*(?:Function not implemented|FI_ENOSYS|\(-38\))|libfabric:\d+:.*(?:Function not implemented|FI_ENOSYS)",
            unless: &["continuing", "falling back", "<info>", "<debug>"],
        },
        headline: "libfabric's provider does not implement {call}",
        steps: &[("name the provider", "export FI_PROVIDER=efa"), ("see what libfabric finds", "fi_info -p efa")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-rail-failed",
            title: "a rail reported failed operations",
            cause: "Operations on this rail completed with an error; libfabric's own line beside it says which.",
            remedy: "Look at libfabric's warning of the same time; run with FI_LOG_LEVEL=warn if there is none.",
            story: "NIXL's libfabric plugin prints `CQ read failed on rail N with error: …` for each failed completion it takes from the completion queue. The text is the coarse code of libfabric; newer versions add prov_errno. In older versions the \
transfer that failed is not told, so that its owner waits for ever: a hang that begins with this line is one of those.",
            references: &[NIXL_LIBFABRIC],
            explained_by: &[
                "log-efa-remote-key", "log-efa-local-key", "log-efa-unreachable", "log-efa-unresponsive", "log-efa-unknown-peer", "log-efa-peer-restarted",
                "log-efa-receiver-not-ready", "log-efa-versions", "log-efa-error",
            ],
            ..RULE
        },
        needle: Needle {
            literals: &["CQ read failed on rail", "CQ error in drain interleave on rail", "fi_cq_read returned error", "Failed to submit write on rail", "Failed to submit read on rail", "fi_writedata failed on rail", "fi_read failed on rail"],
            pattern: r"(?:CQ read failed on|CQ error in drain interleave on|fi_cq_read returned error .* on|Failed to submit (?:write|read) on|fi_(?:writedata|read) failed on) rail (?P<rail>\d+)(?:(?: with error)?: (?P<error>[^:\n]*?)(?: prov_errno| len|$))?",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "operations failed on rail {rail}",
        steps: &[("have libfabric say why", "export FI_LOG_LEVEL=warn FI_LOG_PROV=efa"), ("try each rail by itself", "kvrail doctor probe PEER")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-debug-lines",
            title: "a library logs every packet",
            severity: Severity::Warning,
            cause: "The log level of libfabric or UCX is debug or trace: lines are written for every operation, on the thread that moves the data.",
            remedy: "Unset FI_LOG_LEVEL and UCX_LOG_LEVEL, or set them to warn, for anything that is measured or serves users.",
            story: "Transfers are right and a thirtieth as fast as they should be: 12.2 GB/s became 0.35 GB/s on P5 instances with nothing but FI_LOG_LEVEL=debug, which an option like --verbose had set. The log itself shows it: most of its lines are of libfabric or \
UCX at debug level.",
            references: &[Reference { title: "libfabric: fabric(7), logging interface", url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html" }, super::UCX_FAQ],
            ..RULE
        },
        needle: Needle {
            literals: &["<debug>", "<trace>", "UCX  DEBUG", "UCX  TRACE", "UCX  DATA", "UCX  REQ", "UCX  FUNC", "UCX  POLL"],
            pattern: r"(?P<library>libfabric|UCX)(?::\d+:[^<\n]{0,160}<(?:debug|trace)>|  (?:DEBUG|TRACE|DATA|REQ|FUNC|POLL)\b)",
            unless: &[],
        },
        least: 200,
        confidence: Confidence::Certain,
        headline: "{count} lines are debug output of {library}",
        steps: &[("log warnings only", "export FI_LOG_LEVEL=warn UCX_LOG_LEVEL=warn; unset FI_LOG_PROV")],
        judge: |seen, mut finding| {
            let share = seen.count().saturating_mul(100) / seen.logs.lines().max(1);
            finding.title = format!("{share} % of the lines: {}", finding.title);
            Some(finding)
        },
        ..PLAIN
    },
];
