//! The speed table: what is measured, beside whom, and what kvrail must reach.
//!
//! A row is one workload. Its engines take turns on it, and each of its checks reads one figure from what they
//! reported.

use super::reading::Metric;

/// Whom kvrail is set beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// NIXL with its UCX backend as it comes.
    NixlUcx,
    /// NIXL over UCX with both sides copying through shared memory, its best for private memory.
    NixlUcxPosix,
    /// NIXL over UCX's tcp.
    NixlUcxTcp,
    /// NIXL's LIBFABRIC backend over the tcp provider.
    NixlLibfabricTcp,
    /// NIXL's LIBFABRIC backend over the efa provider.
    NixlLibfabricEfa,
    /// fi_read and fi_write on the provider that kvrail uses.
    FabricLoop,
    /// libc's memcpy between the mapped pools.
    Memcpy,
    /// process_vm_readv/writev, 64 blocks a call, on one core.
    ProcessVm,
    /// send/recv on one connection, asleep while there is nothing.
    TcpLoop,
    /// send/recv on one connection, never asleep.
    TcpSpin,
}

impl Peer {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NixlUcx => "NIXL UCX",
            Self::NixlUcxPosix => "NIXL UCX posix",
            Self::NixlUcxTcp => "NIXL UCX tcp",
            Self::NixlLibfabricTcp => "NIXL LIBFABRIC tcp",
            Self::NixlLibfabricEfa => "NIXL LIBFABRIC efa",
            Self::FabricLoop => "fi_read/fi_write loop",
            Self::Memcpy => "memcpy loop",
            Self::ProcessVm => "process_vm loop",
            Self::TcpLoop => "send/recv loop",
            Self::TcpSpin => "spinning send/recv loop",
        }
    }
}

/// What kvrail's figure is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// At least this share of the peer's figure.
    Share { of: Peer, at_least: f64 },
    /// At most this much.
    AtMost { limit: f64 },
    /// Nothing: the peer's figure is shown.
    Shown { of: Peer },
}

impl Bound {
    pub(crate) const fn peer(self) -> Option<Peer> {
        match self {
            Self::Share { of, .. } | Self::Shown { of } => Some(of),
            Self::AtMost { .. } => None,
        }
    }
}

/// One figure of a row and its bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) metric: Metric,
    pub(crate) bound: Bound,
}

/// The blocks that a row moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) block_bytes: u64,
    pub(crate) batch: u64,
    pub(crate) pool_bytes: u64,
    pub(crate) scattered: bool,
    pub(crate) iterations: u64,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A paged KV cache: scattered blocks of a larger pool.
pub(crate) const KV: Shape =
    Shape { block_bytes: 32 * KIB, batch: 12_800, pool_bytes: 1024 * MIB, scattered: true, iterations: 5 };
const RUN_64_MIB: Shape =
    Shape { block_bytes: 64 * MIB, batch: 1, pool_bytes: 64 * MIB, scattered: false, iterations: 20 };
/// 419 MB: 128 blocks of a 50-layer model in one run.
const RUN_419_MB: Shape =
    Shape { block_bytes: 400 * MIB, batch: 1, pool_bytes: 400 * MIB, scattered: false, iterations: 5 };
const ONE_4_KIB: Shape =
    Shape { block_bytes: 4 * KIB, batch: 1, pool_bytes: MIB, scattered: false, iterations: 20_000 };

/// What a row runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Moves blocks.
    Transfer { op: &'static str, transport: &'static str, memory: &'static str, shape: Shape },
    /// Creates an agent, registers 10,000 regions, exports and imports metadata.
    Control,
}

impl Work {
    pub(crate) fn needs_huge_pages(&self) -> bool {
        matches!(self, Self::Transfer { memory: "huge", .. })
    }
}

/// One workload and its checks.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) work: Work,
    /// Options of `kvrail bench` beyond those that `work` gives.
    pub(crate) options: &'static [&'static str],
    pub(crate) checks: Vec<Check>,
}

impl Row {
    /// The peers that its checks name, each once.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let mut peers: Vec<Peer> = self.checks.iter().filter_map(|check| check.bound.peer()).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

/// Keeps the copy of private memory on the initiator's core.
const ONE_CORE: &[&str] = &["--cooperate", "off"];

/// Every row, in the order of the report.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for op in ["read", "write"] {
        rows.extend(shared(op));
        rows.extend(private(op));
        rows.extend(runs(op));
        rows.extend(tcp(op));
        rows.push(ofi_tcp(op));
    }
    rows.push(control());
    rows
}

fn bandwidth(bound: Bound) -> Check {
    Check { metric: Metric::Bandwidth, bound }
}

fn latency(bound: Bound) -> Check {
    Check { metric: Metric::Latency, bound }
}

fn shared(op: &'static str) -> Vec<Row> {
    let moved = |memory, shape| Work::Transfer { op, transport: "shm", memory, shape };
    vec![
        Row {
            name: format!("shared-kv-{op}"),
            work: moved("shared", KV),
            options: &[],
            checks: vec![
                bandwidth(Bound::Share { of: Peer::NixlUcx, at_least: 2.3 }),
                bandwidth(Bound::Share { of: Peer::Memcpy, at_least: 0.9 }),
                Check { metric: Metric::Prepare, bound: Bound::AtMost { limit: 250.0 } },
                Check { metric: Metric::Prepare, bound: Bound::Shown { of: Peer::NixlUcx } },
            ],
        },
        Row {
            name: format!("huge-kv-{op}"),
            work: moved("huge", KV),
            options: &[],
            checks: vec![
                bandwidth(Bound::Share { of: Peer::NixlUcx, at_least: 3.0 }),
                bandwidth(Bound::Shown { of: Peer::Memcpy }),
            ],
        },
        Row {
            name: format!("shared-4kib-{op}"),
            work: moved("shared", ONE_4_KIB),
            options: &[],
            checks: vec![
                latency(Bound::AtMost { limit: 0.5 }),
                latency(Bound::Shown { of: Peer::NixlUcx }),
                latency(Bound::Shown { of: Peer::Memcpy }),
            ],
        },
    ]
}

fn private(op: &'static str) -> Vec<Row> {
    let moved = |shape| Work::Transfer { op, transport: "shm", memory: "private", shape };
    vec![
        Row {
            name: format!("private-one-core-kv-{op}"),
            work: moved(KV),
            options: ONE_CORE,
            checks: vec![
                bandwidth(Bound::Share { of: Peer::NixlUcx, at_least: 1.25 }),
                bandwidth(Bound::Share { of: Peer::ProcessVm, at_least: 0.95 }),
            ],
        },
        Row {
            name: format!("private-kv-{op}"),
            work: moved(KV),
            options: &[],
            checks: vec![bandwidth(Bound::Share { of: Peer::NixlUcxPosix, at_least: 1.0 })],
        },
        Row {
            name: format!("private-4kib-{op}"),
            work: moved(ONE_4_KIB),
            options: &[],
            checks: vec![
                latency(Bound::AtMost { limit: 3.0 }),
                latency(Bound::Shown { of: Peer::NixlUcx }),
                latency(Bound::Shown { of: Peer::ProcessVm }),
            ],
        },
    ]
}

fn runs(op: &'static str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (size, shape) in [("64mib", RUN_64_MIB), ("419mb", RUN_419_MB)] {
        for (memory, limit) in [("shared", Peer::Memcpy), ("private", Peer::ProcessVm)] {
            rows.push(Row {
                name: format!("{memory}-{size}-{op}"),
                work: Work::Transfer { op, transport: "shm", memory, shape },
                options: &[],
                checks: vec![
                    bandwidth(Bound::Share { of: limit, at_least: 0.9 }),
                    bandwidth(Bound::Shown { of: Peer::NixlUcx }),
                ],
            });
        }
    }
    rows
}

fn tcp(op: &'static str) -> Vec<Row> {
    let moved = |shape| Work::Transfer { op, transport: "tcp", memory: "private", shape };
    let beside_ucx = match op {
        "read" => Bound::Share { of: Peer::NixlUcxTcp, at_least: 2.0 },
        _ => Bound::Shown { of: Peer::NixlUcxTcp },
    };
    vec![
        Row {
            name: format!("tcp-kv-{op}"),
            work: moved(KV),
            options: &[],
            checks: vec![
                bandwidth(Bound::Share { of: Peer::TcpLoop, at_least: 0.9 }),
                bandwidth(beside_ucx),
                bandwidth(Bound::Share { of: Peer::NixlLibfabricTcp, at_least: 1.0 }),
                bandwidth(Bound::Shown { of: Peer::TcpSpin }),
            ],
        },
        Row {
            name: format!("tcp-4kib-{op}"),
            work: moved(ONE_4_KIB),
            options: &[],
            checks: vec![
                latency(Bound::AtMost { limit: 12.0 }),
                latency(Bound::Shown { of: Peer::NixlUcxTcp }),
                latency(Bound::Shown { of: Peer::NixlLibfabricTcp }),
                latency(Bound::Shown { of: Peer::TcpSpin }),
            ],
        },
    ]
}

/// The libfabric transport over the provider that every machine has.
fn ofi_tcp(op: &'static str) -> Row {
    Row {
        name: format!("ofi-tcp-kv-{op}"),
        work: Work::Transfer { op, transport: "ofi", memory: "private", shape: KV },
        options: &["--provider", "tcp"],
        checks: fabric_checks(Peer::NixlLibfabricTcp),
    }
}

/// What kvrail must reach on every provider: nearly what the provider gives, clearly more than NIXL, and a caller that is
/// not kept.
pub(crate) fn fabric_checks(nixl: Peer) -> Vec<Check> {
    vec![
        bandwidth(Bound::Share { of: Peer::FabricLoop, at_least: 0.9 }),
        bandwidth(Bound::Share { of: nixl, at_least: 1.5 }),
        Check { metric: Metric::Post, bound: Bound::AtMost { limit: 1_000.0 } },
        Check { metric: Metric::Post, bound: Bound::Shown { of: nixl } },
    ]
}

fn control() -> Row {
    let limits = [
        (Metric::CreateAgent, 20.0),
        (Metric::Register, 5.0),
        (Metric::MetadataBytes, 160_000.0),
        (Metric::Import, 3.0),
    ];
    let checks = limits.into_iter().flat_map(|(metric, limit)| {
        [Bound::AtMost { limit }, Bound::Shown { of: Peer::NixlUcx }].map(|bound| Check { metric, bound })
    });
    Row { name: "control".into(), work: Work::Control, options: &[], checks: checks.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_requires_something() {
        let rows = all();
        let mut names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rows.len());
        for row in &rows {
            let required = row.checks.iter().any(|check| !matches!(check.bound, Bound::Shown { .. }));
            assert!(required, "{} requires nothing", row.name);
        }
    }
}
