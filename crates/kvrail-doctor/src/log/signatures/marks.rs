//! Lines that are no failure by themselves, and say something about those that are.

use super::Needle;

/// What a log was seen to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Mark {
    /// The host has EFA.
    Efa,
    /// NIXL's LIBFABRIC backend came up.
    LibfabricUp,
    /// NIXL's UCX backend came up.
    UcxUp,
    /// A connection or handshake succeeded.
    Connected,
    /// A channel between hosts goes over sockets.
    NcclChannelOverSocket,
    /// A counter of sent packets that is not zero.
    Sent,
    /// A counter of received packets that is not zero.
    Received,
    /// A block that has data after a transfer.
    BlockWithData,
    /// Anything of NIXL.
    Nixl,
}

pub(in super::super) static MARKS: [(Mark, Needle); 9] = [
    (
        Mark::Efa,
        Needle {
            literals: &[
                "Amazon EFA(s) were detected",
                "rdmap",
                "provider: efa",
                "FI_PROVIDER=efa",
                "FI_PROVIDER: efa",
                ":efa:",
                "vpc.amazonaws.com/efa",
                "AWS Libfabric",
            ],
            pattern: r"Amazon EFA\(s\) were detected|\brdmap\d+s\d+|provider: efa\b|FI_PROVIDER\s*[=:]\s*efa\b|libfabric:\d+:\d+:\w*:efa:|vpc\.amazonaws\.com/efa:? *[1-9]|AWS Libfabric",
            unless: &["Insufficient"],
        },
    ),
    (
        Mark::LibfabricUp,
        Needle {
            literals: &["Backend LIBFABRIC was instantiated"],
            pattern: r"Backend LIBFABRIC was instantiated",
            unless: &["no ", "not "],
        },
    ),
    (
        Mark::UcxUp,
        Needle {
            literals: &["Backend UCX was instantiated"],
            pattern: r"Backend UCX was instantiated",
            unless: &["no ", "not "],
        },
    ),
    (
        Mark::Connected,
        Needle {
            literals: &[
                "NIXL compatibility check passed",
                "Successfully established connection for",
                "Successfully created connection for agent",
                "Handshake stored: peer=",
                "is now CONNECTED",
                "handshake took",
            ],
            pattern: r"NIXL compatibility check passed|Successfully (?:established|created) connection for|Handshake stored: peer=|is now CONNECTED|handshake took",
            unless: &[],
        },
    ),
    (
        Mark::NcclChannelOverSocket,
        Needle { literals: &["via NET/Socket/"], pattern: r"via NET/Socket/", unless: &[] },
    ),
    (Mark::Sent, Needle { literals: &["tx_pkts"], pattern: r"\btx_pkts\b\W{1,4}[1-9]\d*", unless: &[] }),
    (Mark::Received, Needle { literals: &["rx_pkts"], pattern: r"\brx_pkts\b\W{1,4}[1-9]\d*", unless: &[] }),
    (
        Mark::BlockWithData,
        Needle {
            literals: &["mean: ", "mean="],
            pattern: r"(?i-u:block).*mean[:=]\s*-?(?:[1-9]|0?\.0*[1-9]|\d+(?:\.\d+)?e)",
            unless: &[],
        },
    ),
    (
        Mark::Nixl,
        Needle {
            literals: &[
                "NixlConnector",
                "NIXL agent",
                "nixl_agent",
                "NIXL INFO",
                "nixlbench",
                "Initializing NIXL",
            ],
            pattern: r"NixlConnector|NIXL agent|nixl_agent|NIXL INFO|nixlbench|Initializing NIXL",
            unless: &[],
        },
    ),
];
