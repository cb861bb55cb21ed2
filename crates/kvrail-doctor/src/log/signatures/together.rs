//! What several lines say together: judged last, with what was found before.

use super::{AWS_EFA, Mark, NIXL, NIXL_LIBFABRIC, Needle, PLAIN, RULE, Rule, Severity, Signature, VLLM_NIXL};
use crate::rule::Confidence;

/// Slower than this, in bytes per second, is no RDMA between hosts: UCX without its transport moves 0.18 GB/s, TCP about 1.
const SLOW_BYTES_PER_SECOND: f64 = 1e9;

pub(super) static ALL: [Signature; 6] = [
    Signature {
        rule: Rule {
            id: "log-backend-not-chosen",
            title: "LIBFABRIC was asked for and never came up",
            cause: "Something asked for NIXL's LIBFABRIC backend, and no line says that it was instantiated: the plugin did not load, or the setting does not reach the process.",
            remedy: "See why the plugin does not load; look whether the setting is in the environment of the workers, too.",
            story: "The one line that tells is `Backend LIBFABRIC was instantiated`; where it is missing, transfers go over another backend or fail. Settings get lost between a launcher and its workers (Ray and Slurm hand on only some variables), and a plugin that cannot load is left out in silence at the default log level.",
            references: &[NIXL_LIBFABRIC, NIXL],
            explained_by: &["log-nixl-backend-failed", "log-nixl-plugin", "log-symbol-version", "log-nixl-core-library", "log-library-missing", "log-no-fabric", "log-nixl-missing"],
            ..RULE
        },
        needle: Needle {
            literals: &["'LIBFABRIC'", "\"LIBFABRIC\"", "'Libfabric'", "\"Libfabric\"", "backend LIBFABRIC", "backend Libfabric", "backends LIBFABRIC", "backend=LIBFABRIC", "BACKEND=LIBFABRIC", "BACKENDS=LIBFABRIC"],
            pattern: r"(?i-u:backends?[\x22']?\s*[=:]\s*\[?\s*[\x22']?(?:\w+[\x22']?,\s*[\x22']?)*libfabric\b|--backends?[= ]libfabric\b|NIXL\w*_BACKENDS?=libfabric\b)",
            unless: &[],
        },
        headline: "LIBFABRIC was asked for, and no line says that it came up",
        steps: &[("see why the plugin does not load", "kvrail doctor"), ("see the reason in the log", "export NIXL_LOG_LEVEL=info")],
        judge: |seen, mut finding| {
            let other = seen.marked(Mark::UcxUp) > 0;
            if other {
                finding.title = "LIBFABRIC was asked for, and NIXL runs UCX instead".into();
            }
            // A log that has no word of any backend may be of a process that needs none.
            let failed = seen.told.iter().any(|finding| finding.rule.id == "log-nixl-backend-failed");
            (seen.marked(Mark::LibfabricUp) == 0 && (other || failed)).then_some(finding)
        },
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-packets-vanish",
            title: "packets leave, and none arrives",
            cause: "The counters show packets sent and none received: the security group does not let SRD out to itself (0.0.0.0/0 does not count), or the hosts are in a secondary address range of the VPC.",
            remedy: "Add an outbound and an inbound rule for all traffic with the group itself as the other side; use the primary address range.",
            story: "tx_pkts grows, rx_pkts stays 0, and no log has an error: the network drops SRD packets without an answer. TCP between the same hosts works. EFA's packets are judged by membership of security groups, so that a rule for all addresses is not enough outbound; addresses of a secondary range (100.64.0.0/16) are not served \
at all.",
            references: &[AWS_EFA],
            ..RULE
        },
        needle: Needle { literals: &["rx_pkts"], pattern: r"\brx_pkts\b[^\w<>!]{1,4}(?P<received>0)\b", unless: &[] },
        headline: "EFA's counters show packets sent and none received",
        steps: &[
            ("let the group talk to itself, outbound", "aws ec2 authorize-security-group-egress --group-id SG --ip-permissions 'IpProtocol=-1,UserIdGroupPairs=[{GroupId=SG}]'"),
            ("let doctor decide which it is", "kvrail doctor probe PEER"),
        ],
        judge: |seen, finding| (seen.marked(Mark::Sent) > 0 && seen.marked(Mark::Received) == 0).then_some(finding),
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-packets-never-sent",
            title: "no packet was ever sent by an EFA device",
            severity: Severity::Warning,
            cause: "The counters of sent packets are all 0: the program uses another device or no EFA at all.",
            remedy: "See which provider and device the program chose.",
            story: "All tx_pkts are 0 after a transfer: nothing went through these devices, whatever the program says of itself. It chose tcp, shared memory, or a device that is not among those that were looked at; or the counters were read inside a container that shows other devices than the process uses.",
            references: &[super::FI_EFA],
            ..RULE
        },
        needle: Needle { literals: &["tx_pkts"], pattern: r"\btx_pkts\b[^\w<>!]{1,4}(?P<sent>0)\b", unless: &[] },
        confidence: Confidence::Possible,
        headline: "the EFA devices' counters show that nothing was sent",
        steps: &[("see what libfabric chooses", "FI_LOG_LEVEL=info COMMAND 2>&1 | grep -m3 -i provider")],
        judge: |seen, finding| (seen.marked(Mark::Sent) == 0 && seen.marked(Mark::Received) == 0).then_some(finding),
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-kv-zeros",
            title: "KV blocks hold zeros after their transfer",
            cause: "The transfer was reported as done, and nothing was written where it should have been: a notification that came before the data, an address that is the region's beginning, or GPU memory that was registered as host memory.",
            remedy: "Do not serve with this combination of engine and backend; use UCX there, and run the data check that shows where the zeros begin.",
            story: "Answers are gibberish, and block statistics have `mean: 0.0, sum: 0.0` where others have 0.019. Micro-benchmarks pass, because they transfer one region from its beginning and check a constant.

Reported with NIXL's LIBFABRIC backend under vLLM, homogeneous tensor parallelism. Causes that were found since: descriptors that were all sent to the region's base; transfer ids that wrapped and met stale counters, so that the notification came early; a source that sent before its kernel had written.",
            references: &[NIXL_LIBFABRIC, VLLM_NIXL],
            explained_by: &["log-expandable-segments"],
            ..RULE
        },
        needle: Needle {
            literals: &["mean: 0", "mean=0", "mean: -0"],
            pattern: r"(?i-u:block) ?#?(?P<block>\d+)?.*mean[:=]\s*-?0(?:\.0*)?\b[^.\d].*sum[:=]\s*-?0(?:\.0*)?(?:[^.\d]|$)",
            unless: &["before transfer", "before the transfer", "initial"],
        },
        headline: "{count} block statistics are zeros after a transfer",
        steps: &[
            ("see whether the engine moves verified blocks here, and what a bad one holds", "kvrail bench --engine nixl:LIBFABRIC,nixl:UCX,kvrail"),
            ("use UCX until it is understood, as in vLLM: kv_connector_extra_config {\"backends\": [\"UCX\"]}", ""),
        ],
        judge: |seen, mut finding| {
            // One block of zeros may be one that nobody has written yet.
            let others = seen.marked(Mark::BlockWithData);
            if seen.count() < 2 && others > 0 {
                finding.confidence = Confidence::Possible;
                finding.severity = Severity::Warning;
            }
            Some(finding)
        },
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-slow-transfers",
            title: "KV transfers are slower than RDMA is",
            severity: Severity::Warning,
            cause: "The throughput that was logged is that of TCP or of datagrams cut by the CPU, not of an RDMA NIC.",
            remedy: "See which backend and transport move the data.",
            story: "0.18 GB/s between nodes is what UCX moves without a transport for EFA; TCP moves about 1 GB/s for each connection; one 100 Gb/s NIC moves 12. Data is right in all cases, so that only the throughput tells. Logging at debug level has the same effect (0.35 GB/s).",
            references: &[super::UCX_FAQ, NIXL],
            explained_by: &["log-ucx-datagrams", "log-ucx-tcp", "log-ucx-on-efa", "log-backend-not-chosen", "log-debug-lines", "log-p2p-disabled"],
            ..RULE
        },
        needle: Needle {
            literals: &["Throughput (MB/s)=", "hroughput: ", "hroughput=", "andwidth: "],
            pattern: r"(?:Throughput \(MB/s\)=(?P<megabytes>\d+(?:\.\d+)?)|(?:[tT]hroughput|[bB]andwidth)[:=] ?(?P<value>\d+(?:\.\d+)?) ?(?P<unit>[MG](?:i)?B/s))",
            unless: &["tokens/s", "prompt throughput", "ownload", "disk", "Disk", "[same-node]", "same node", "checkpoint"],
        },
        headline: "KV transfers are slower than RDMA is",
        steps: &[("see what would be used here, and why", "kvrail doctor"), ("measure the path by itself", "kvrail doctor probe PEER")],
        judge: |seen, mut finding| {
            let value = |captures: &super::super::tally::Captures| {
                let of = |wanted: &str| captures.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
                if let Some(megabytes) = of("megabytes") {
                    return Some(megabytes.parse::<f64>().ok()? * 1e6);
                }
                let scale = match of("unit")? {
                    "GB/s" => 1e9,
                    "GiB/s" => 1_073_741_824.0,
                    "MiB/s" => 1_048_576.0,
                    _ => 1e6,
                };
                Some(of("value")?.parse::<f64>().ok()? * scale)
            };
            let mut rates: Vec<f64> = seen
                .combinations()
                .flat_map(|(captures, count)| value(captures).into_iter().flat_map(|rate| std::iter::repeat_n(rate, (*count).min(64) as usize)))
                .collect();
            rates.sort_by(f64::total_cmp);
            let median = *rates.get(rates.len() / 2)?;
            // A host without RDMA can do no better; one that names neither NIXL nor EFA transfers something else.
            let applies = seen.marked(Mark::Efa) > 0 || (seen.marked(Mark::Nixl) > 0 && explained(seen));
            if !applies || median <= 0.0 || median >= SLOW_BYTES_PER_SECOND {
                return None;
            }
            finding.title = format!("KV transfers run at {:.2} GB/s (median), which is no RDMA", median / 1e9);
            Some(finding)
        },
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-silent-timeout",
            title: "transfers time out, and no line says why",
            cause: "Both sides met, transfers do not end, and nothing reports an error: packets that the network drops in silence look like this (security group, secondary address range), and so does an error entry that reaches no transfer.",
            remedy: "Read the NICs' counters on both sides while it happens: sent and not received means the network.",
            story: "Connections and handshakes succeed over TCP, the first transfer never ends, and the engine's own timeout is the only line. SRD is judged by security groups separately from TCP, and drops are not answered. The other cause that is silent: a failed operation whose error resolves no transfer in NIXL's libfabric backend; with \
FI_LOG_LEVEL=warn libfabric names it.",
            references: &[AWS_EFA, NIXL_LIBFABRIC],
            ..RULE
        },
        needle: Needle {
            literals: &["Releasing expired KV blocks", "in KVPoll.WaitingForInput", "ransfer timed out", "imeout waiting for"],
            pattern: r"Releasing expired KV blocks for request \S+ which were retrieved by 0|timed out after \d+(?:\.\d+)?s in KVPoll\.WaitingForInput|[tT]ransfer timed out|[tT]imeout waiting for (?:transfer|KV|completion|notification)",
            unless: &[],
        },
        least: 2,
        confidence: Confidence::Possible,
        headline: "{count} transfers timed out after the peers had met, and no line says why",
        steps: &[
            ("let doctor send verified transfers on each rail and read the counters of both sides", "kvrail doctor probe PEER"),
            ("by hand, on both sides, twice", "grep . /sys/class/infiniband/*/ports/1/hw_counters/[rt]x_pkts"),
            ("have libfabric name failed operations", "export FI_LOG_LEVEL=warn"),
        ],
        judge: |seen, finding| {
            let consequences = ["log-kv-expired", "log-sglang-waiting", "log-kv-load-failed"];
            let explained = seen.told.iter().any(|told| !consequences.contains(&told.rule.id));
            (seen.marked(Mark::Connected) > 0 && !explained).then_some(finding)
        },
        ..PLAIN
    },
];

/// Whether something that makes transfers slow was found.
fn explained(seen: &super::super::seen::Seen<'_>) -> bool {
    seen.told.iter().any(|told| seen.signature.rule.explained_by.contains(&told.rule.id))
}
