//! Lines of UCX.

use super::{Needle, PLAIN, RULE, Reference, Rule, Severity, Signature, UCX_FAQ};
use crate::rule::Confidence;

const STATUS: Reference = Reference {
    title: "UCX: status codes",
    url: "https://github.com/openucx/ucx/blob/master/src/ucs/type/status.c",
};
const MLX5: Reference = Reference {
    title: "UCX: completions with errors",
    url: "https://github.com/openucx/ucx/blob/master/src/uct/ib/mlx5/ib_mlx5_log.c",
};

pub(super) static ALL: [Signature; 8] = [
    Signature {
        rule: Rule {
            id: "log-ucx-no-transport",
            title: "UCX has no transport to use",
            cause: "UCX_TLS and UCX_NET_DEVICES together leave nothing that this host has.",
            remedy: "Unset both and see that it works; then narrow one at a time.",
            story: "`no usable transports/devices (asked …)` ends the creation of the UCX context, and NIXL's UCX backend with it. The text in brackets is what was asked. Lists that were written for another machine name devices (mlx5_0:1) or transports \
(rc_mlx5) that are not here; a list that allows only memory transports leaves nothing that starts a connection.",
            references: &[UCX_FAQ],
            ..RULE
        },
        needle: Needle {
            literals: &[
                "no usable transports/devices",
                "The TLs list is empty",
                "The device lists are empty",
            ],
            pattern: r"no usable transports/devices \(asked (?P<asked>[^)\n]*)\)?|The TLs list is empty|The device lists are empty",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "UCX has no transport to use: it was asked for {asked}",
        steps: &[
            (
                "see what it has without limits",
                "env -u UCX_TLS -u UCX_NET_DEVICES ucx_info -d | grep -E 'Transport|Device'",
            ),
            ("try without limits", "unset UCX_TLS UCX_NET_DEVICES"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-not-available",
            title: "UCX lacks a transport or device that it was told to use",
            severity: Severity::Warning,
            cause: "A name in UCX_TLS or UCX_NET_DEVICES is none of this host or this build: a misspelt one, a device of another machine, or a UCX that was built without CUDA.",
            remedy: "Use one of the names that the line lists; for cuda_copy and cuda_ipc use a UCX with CUDA.",
            story: "UCX warns `transport 'x' is not available, please use one or more of: …` and goes on with the rest. If the missing one was the fast one, everything works, slowly. Missing cuda_copy or cuda_ipc means that this UCX cannot see GPU memory at all: transfers \
of it crash or go through the host.",
            references: &[UCX_FAQ],
            ..RULE
        },
        needle: Needle {
            literals: &["not available, please use one or more of"],
            pattern: r"(?P<kind>transport|device)s? (?P<name>'[^\n]*?') (?:is|are) not available, please use one or more of: (?P<available>[^\n]*)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "UCX has no {kind} {name}, which it was told to use",
        steps: &[
            ("see what it has", "ucx_info -d | grep -E 'Transport|Device'"),
            (
                "see which UCX is loaded and what it was built with",
                "ucx_info -b | grep -i cuda; kvrail doctor --check ucx-tls-excludes-network",
            ),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-retry-exceeded",
            title: "an RDMA NIC gave up reaching its peer",
            cause: "Packets were retransmitted as often as allowed and never acknowledged: a cable or switch, a port that is down, another subnet, a wrong GID index or priority flow control on RoCE, or a peer that is gone.",
            remedy: "Test the path between the two ports; on RoCE check the GID index and lossless settings.",
            story: "`Transport retry count exceeded on mlx5_0:1/RoCE (synd 0x15 vend 0x81 …)`: vendor syndrome 0x81 is a timeout of acknowledgements. It names the local port. One port among many, always the same, is a cable; all of them at once are a switch, a routing, \
or a peer that ended; some pairs only are a path between subnets.",
            references: &[MLX5],
            explained_by: &["log-oom-killer", "log-gpu-xid"],
            ..RULE
        },
        needle: Needle {
            literals: &["etry count exceeded", "retry counter exceeded"],
            pattern: r"(?P<kind>Transport retry count exceeded|Receive-no-ready retry count exceeded|transport retry counter exceeded)(?: on (?P<port>[\w:/]+))?(?: \(synd (?P<syndrome>0x[0-9a-f]+) vend (?P<vendor>0x[0-9a-f]+))?",
            unless: &[],
        },
        headline: "the NIC {port} gave up reaching a peer",
        steps: &[
            ("test the path by itself", "ib_write_bw -d mlx5_0 PEER"),
            ("see the ports", "ibv_devinfo | grep -E 'hca_id|state|link_layer'"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-remote-access",
            title: "an RDMA access to a peer's memory was refused",
            cause: "The key or address is not valid at the peer: memory that was deregistered, metadata of an earlier life of the peer, or an index that points beyond the region.",
            remedy: "Exchange metadata again after a restart, and keep memory registered until transfers have ended.",
            story: "`Remote access error on mlx5_0:1/IB` is the NIC's answer to a read or write whose key does not fit. `Local protection error` is the same for the local side. After it the connection is closed, and the operations behind it are flushed, so that the first such line is the \
one that matters.",
            references: &[MLX5],
            ..RULE
        },
        needle: Needle {
            literals: &["Remote access error", "Local protection error", "Remote operation error"],
            pattern: r"(?P<kind>Remote access error|Local protection error|Remote operation error) on (?P<port>[\w:/]+)",
            unless: &[],
        },
        headline: "the NIC {port} reported: {kind}",
        steps: &[(
            "restart the side that holds the old metadata, and look for regions that were freed while in use",
            "",
        )],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-unreachable",
            title: "UCX has no common transport with a peer",
            cause: "What one side offers the other cannot reach: different UCX_TLS, devices in different networks, or a UCX without the transport on one side.",
            remedy: "Use the same UCX, UCX_TLS and network on both sides.",
            story: "`no active messages transport to …` or `no remote registered memory access transport to …: Destination is unreachable`, then a list of transports with the reason for each. UCX compares the peer's address with its own devices when an endpoint is made; nothing was \
sent yet. RDMA devices in different subnets or with different link layers are not reachable for each other.",
            references: &[STATUS, UCX_FAQ],
            ..RULE
        },
        needle: Needle {
            literals: &[" transport to ", "Destination is unreachable"],
            pattern: r"no (?P<kind>[\w -]+) transport to (?P<peer>[^:\n]+)|UCX.*Destination is unreachable",
            unless: &[],
        },
        headline: "UCX has no common transport with a peer",
        steps: &[(
            "compare on both sides",
            "env | grep ^UCX_; ucx_info -v; ucx_info -d | grep -E 'Transport|Device'",
        )],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-peer-lost",
            title: "UCX lost a peer",
            cause: "Keepalives or transfers to the peer were not answered: it ended, hangs, or the network between broke.",
            remedy: "Look at the peer's log of that time.",
            story: "`Endpoint timeout` and `Connection reset by remote peer` are statuses of an endpoint whose other side does not answer any more; NIXL makes NIXL_ERR_REMOTE_DISCONNECT of them. With TCP a peer that closes is noticed at once, with RDMA after the NIC's retries.",
            references: &[STATUS],
            explained_by: &[
                "log-ucx-retry-exceeded",
                "log-ucx-remote-access",
                "log-oom-killer",
                "log-segfault",
                "log-gpu-xid",
            ],
            ..RULE
        },
        needle: Needle {
            literals: &["Endpoint timeout", "Connection reset by remote peer"],
            pattern: r"(?:UCX|UCS|ucp_|uct_|ucs_|status -?\d+|ep 0x[0-9a-f]+).*(?P<status>Endpoint timeout|Connection reset by remote peer)|(?P<state>Endpoint timeout) was not handled",
            unless: &["DEBUG", "TRACE", "DIAG"],
        },
        headline: "UCX lost a peer: {status}",
        steps: &[("read the peer's logs of that time", "kvrail doctor log PEER.log dmesg.txt")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-datagrams",
            title: "UCX moves data by unreliable datagrams",
            severity: Severity::Warning,
            cause: "This UCX has no connection-less RDMA transport for the NIC (SRD on EFA, DC on mlx5), and uses its fallback: datagrams that the CPU cuts, sends and acknowledges.",
            remedy: "On EFA use NIXL's LIBFABRIC backend, or a UCX with SRD (1.19 or newer); on mlx5 allow rc or dc in UCX_TLS.",
            story: "Cross-node throughput near 178 MB/s where 12 GB/s were expected, and correct data. UCX names the lanes of each endpoint at log level info: ud_verbs or ud_mlx5 for rma or am is the fallback. The UCX that is bundled with NIXL's wheels was built \
without EFA's transport.",
            references: &[UCX_FAQ, super::NIXL],
            ..RULE
        },
        needle: Needle {
            literals: &["ud_verbs", "ud_mlx5"],
            pattern: r"(?:using\b|cfg ?#\d+|cfg\[\d+\]|\b(?:rma|am|tag|rma_am)\().*(?P<transport>ud_verbs|ud_mlx5)",
            unless: &["rc_mlx5", "dc_mlx5", "rc_verbs", "srd", "Transport:", "cuda_ipc/"],
        },
        headline: "UCX moves data by {transport}: the CPU cuts and acknowledges every packet",
        steps: &[
            (
                "on EFA choose the other backend, as in vLLM",
                "--kv-transfer-config '{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_both\",\"kv_connector_extra_config\":{\"backends\":[\"LIBFABRIC\"]}}'",
            ),
            ("see what this UCX was built with", "kvrail doctor --check ucx-without-efa"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-tcp",
            title: "UCX moves data between hosts by TCP",
            severity: Severity::Warning,
            cause: "No RDMA transport could be used for the lanes between the hosts: no device in the container, a UCX without its transport, or a UCX_TLS that leaves it out.",
            remedy: "Give the container its devices; on EFA use NIXL's LIBFABRIC backend.",
            story: "Transfers take seconds and are right. At log level info UCX names the lanes of each endpoint configuration: `inter-node cfg#… rma_am(tcp/eth0)` means that writes to another host are copied into messages and sent by TCP, and GPU memory goes through the host's.",
            references: &[UCX_FAQ],
            explained_by: &[
                "log-no-infiniband",
                "log-uverbs-permission",
                "log-verbs-driver",
                "log-ucx-not-available",
            ],
            ..RULE
        },
        needle: Needle {
            literals: &["inter-node cfg"],
            pattern: r"inter-node cfg ?#\d+.*\b(?:rma|am|tag|rma_am)\((?P<lane>tcp/[\w.-]+)",
            unless: &["rc_mlx5", "dc_mlx5", "rc_verbs", "srd", "ud_"],
        },
        confidence: Confidence::Certain,
        headline: "UCX moves data between hosts by TCP: {lane}",
        steps: &[
            ("see the devices that UCX has", "ucx_info -d | grep -E 'Transport|Device'"),
            ("see what this container lacks", "kvrail doctor"),
        ],
        ..PLAIN
    },
];
