//! The rules of what goes wrong between two hosts.

use crate::rule::{Kind, Reference, Rule, Severity};

/// What is looked for.
pub const RULES: &[&Rule] = &[
    &SAME_NODE,
    &NOT_THE_FABRIC,
    &NOTHING_RETURNS,
    &SECONDARY_CIDR,
    &WRONG_DEVICE,
    &DEAD_RAIL,
    &NO_ANSWER,
    &WRONG_BYTES,
    &EMULATED_WRITES,
    &DEBUG_LOGGING,
    &SLOW_RAIL,
    &VERSIONS_DIFFER,
    &RAILS_UNEQUAL,
];

const EFA_GROUP: Reference = Reference {
    title: "AWS: get started with EFA, the security group",
    url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html",
};
const EFA_LIMITS: Reference = Reference {
    title: "AWS: Elastic Fabric Adapter, EFA limitations",
    url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa.html",
};
const FI_EFA: Reference = Reference {
    title: "libfabric: fi_efa(7)",
    url: "https://ofiwg.github.io/libfabric/main/man/fi_efa.7.html",
};
const FI_ENDPOINT: Reference = Reference {
    title: "libfabric: fi_endpoint(3), reliable datagrams",
    url: "https://ofiwg.github.io/libfabric/main/man/fi_endpoint.3.html",
};
const EFA_COUNTERS: Reference = Reference {
    title: "AWS: monitor an EFA, its counters",
    url: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-working-monitor.html",
};

pub(super) static SAME_NODE: Rule = Rule {
    id: "probe-same-node",
    title: "both ends of the probe are on one node",
    severity: Severity::Warning,
    kind: Kind::Probe,
    cause: "The two processes run on one kernel, so that no byte of theirs has to cross the network.",
    remedy: "Place the second pod on another node: required anti-affinity on kubernetes.io/hostname.",
    story: "A benchmark of two pods shows 40 GB/s and more, or nothing at all, and neither says anything about the network between two \
hosts.\n\nA scheduler puts two small pods on one node if nothing forbids it. What is measured then is memory, or a NIC that talks to itself: EFA has \
no loop-back of that kind through which a NIC reaches itself, so that such a test may also hang. The probe compares the identity of the running kernels (boot_id), which \
containers cannot hide, and NODE_NAME where the pod has it.",
    references: &[Reference {
        title: "Kubernetes: assigning pods to nodes, anti-affinity",
        url: "https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/",
    }],
    explained_by: &[],
};

pub(super) static NOT_THE_FABRIC: Rule = Rule {
    id: "probe-not-the-fabric",
    title: "the bytes go over TCP although RDMA devices are there",
    severity: Severity::Error,
    kind: Kind::Probe,
    cause: "One side has no RDMA device, or no libfabric that drives it, so that the two sides have nothing faster than TCP in common.",
    remedy: "Give both sides the devices and a libfabric with the provider of the fabric, then probe again.",
    story: "Everything works and is five to a hundred times slower than it should be: blocks that take milliseconds take seconds, and no log has an \
error.\n\nTwo sides use what both of them have. If one pod was not given its EFA devices, or loads a libfabric without the efa provider, what remains is TCP, \
and most engines take it in silence. The probe does the same, and says so: it names the side that lacks something, and what it lacks. `kvrail doctor` on that side finds \
why.",
    references: &[FI_EFA, EFA_GROUP],
    explained_by: &[],
};

pub(super) static NOTHING_RETURNS: Rule = Rule {
    id: "probe-nothing-returns",
    title: "packets are sent over the fabric and do not arrive",
    severity: Severity::Error,
    kind: Kind::Probe,
    cause: "Something between the hosts drops the packets by rule; on AWS nearly always a security group without a rule that names itself.",
    remedy: "Add an outbound and an inbound rule for all traffic whose other end is the security group itself; 0.0.0.0/0 is not enough.",
    story: "The devices are there, fi_info lists them, TCP works, ssh works, and each transfer hangs. Nobody reports an error: tx_pkts rises on one \
side, and rx_pkts stays where it is on the other.\n\nEFA's packets have no IP address that a rule could match. A security group lets them pass only by a rule \
that names a security group: one for outbound traffic to itself, and one for inbound traffic from itself, both for all traffic. The usual outbound \
rule to 0.0.0.0/0 does not cover them, and that is the mistake: everything else works with it.\n\nBoth hosts have to be in one VPC, and EFA traffic is not routed. A subnet in a secondary range \
of the VPC (100.64.0.0/16) is another known cause with the same signs. The probe counts packets on both devices, so that it says which direction is blocked.",
    references: &[EFA_GROUP, EFA_LIMITS, EFA_COUNTERS],
    explained_by: &["probe-secondary-cidr", "probe-same-node"],
};

pub(super) static SECONDARY_CIDR: Rule = Rule {
    id: "probe-secondary-cidr",
    title: "packets do not arrive, and a host is in a secondary range of its VPC",
    severity: Severity::Error,
    kind: Kind::Probe,
    cause: "The subnet lies in a range that was added to the VPC later; the fabric's packets from or to there are dropped.",
    remedy: "Attach the EFA interfaces to a subnet in the VPC's first range.",
    story: "The same signs as a security group that lacks a rule: packets leave, nothing comes back, no error anywhere; and the rules of the security group \
are right.\n\nClusters that run out of addresses get a second range, often 100.64.0.0/16, and their pods' interfaces are put there. TCP works in it. Nodes whose EFA interfaces \
are in subnets of that range have been seen to lose all EFA traffic. The instance's metadata service says both ranges, and the probe compares them.",
    references: &[
        EFA_LIMITS,
        Reference {
            title: "AWS: VPC CIDR blocks",
            url: "https://docs.aws.amazon.com/vpc/latest/userguide/vpc-cidr-blocks.html",
        },
    ],
    explained_by: &[],
};

pub(super) static WRONG_DEVICE: Rule = Rule {
    id: "probe-wrong-device",
    title: "the devices of one side send nothing",
    severity: Severity::Error,
    kind: Kind::Probe,
    cause: "Operations were posted and the device sent no packet: it is the wrong one, not configured, down, or may not be opened.",
    remedy: "Look at the device on that side: its port, its driver, its permissions, and whether it is the one that was meant.",
    story: "Transfers hang or fail at once, and tx_pkts of the device does not move. That rules out everything between the hosts: nothing has left this \
one.\n\nThe device may be another than the one that carries the network (a management NIC, a device of a pod's neighbour), its port may be down, or the instance's interface may \
be attached without EFA. `kvrail topo` lists the devices with their ports, and `kvrail doctor` looks at drivers and permissions.",
    references: &[EFA_COUNTERS, FI_EFA],
    explained_by: &["probe-same-node"],
};

pub(super) static DEAD_RAIL: Rule = Rule {
    id: "probe-dead-rail",
    title: "one rail of several is dead",
    severity: Severity::Error,
    kind: Kind::Probe,
    cause: "A pair of NICs moves nothing while its siblings do: its interface has another security group or subnet, its port is down, or it is broken.",
    remedy: "Compare the interface of that NIC with its siblings': security groups, subnet, port; leave it out until then.",
    story: "Large transfers hang or fail, small ones work now and then: whatever is striped over all rails waits for the one that is \
dead.\n\nSecurity groups and subnets belong to each network interface, so that one of 32 can be attached otherwise than the rest; EFA's driver says that a port is up whatever its \
link does. Only packets tell. The probe opens each pair of NICs by itself, so that one dead rail does not hide behind the others. Until it is mended, leave it out: kvrail does \
by itself after a few seconds; others hang.",
    references: &[EFA_COUNTERS, EFA_GROUP],
    explained_by: &["probe-same-node"],
};

pub(super) static NO_ANSWER: Rule = Rule {
    id: "probe-no-answer",
    title: "a rail fails, and its packets do not say why",
    severity: Severity::Error,
    kind: Kind::Probe,
    cause: "Packets go both ways or cannot be counted, and transfers fail all the same.",
    remedy: "Read what the engine says of it; probe again when both hosts are idle, then with another provider (--over efa).",
    story: "The two hosts talk over the control connection, and a rail between them fails although packets arrive in both directions, or where nobody \
counts packets.\n\nThat is no security group: those drop all packets of a direction. What remains is a device that refuses (a stale address handle, a key, a protection domain), a process that is \
starved of its cores, a firewall for TCP ports where the rail is TCP, or a defect. What the engine said is among the evidence.",
    references: &[FI_ENDPOINT, FI_EFA],
    explained_by: &["probe-same-node"],
};

pub(super) static WRONG_BYTES: Rule = Rule {
    id: "probe-wrong-bytes",
    title: "bytes arrive wrong",
    severity: Severity::Error,
    kind: Kind::Probe,
    cause: "A transfer ended well and its target does not hold what the source held.",
    remedy: "Use neither the rail nor the library for anything until this is understood; probe again over another provider to tell which it is.",
    story: "The worst of all: the transfer ends, every counter is right, and the model answers gibberish.\n\nEach word of what the probe moves names its place, so that a wrong one \
tells where it comes from. Zeros or bytes that were never written: the transfer ended before its bytes were there, or they went elsewhere. Stale: an earlier transfer's. Swapped, or of another place: an \
address was wrong. Single bits: hardware. The finding names the rail and the kind; a provider that reports completions early shows itself here.",
    references: &[FI_ENDPOINT],
    explained_by: &[],
};

pub(super) static EMULATED_WRITES: Rule = Rule {
    id: "probe-emulated-writes",
    title: "the provider emulates RDMA by messages",
    severity: Severity::Warning,
    kind: Kind::Probe,
    cause: "The efa provider moves writes or reads by messages and copies, since the device or the API that was asked for has no RDMA.",
    remedy: "Use a libfabric of release 1.18 or newer and leave FI_EFA_USE_DEVICE_RDMA unset or 1.",
    story: "Transfers are right and several times slower, with one core busy on each side: the target must poll for a write to go on.\n\nThe efa provider offers RMA on every device. Where the \
device has no RDMA write (some generations), or the program asks for a libfabric API before 1.18, it emulates it by messages. FI_EFA_USE_DEVICE_RDMA=0 has the same effect. \
The provider says so if it is asked (FI_OPT_EFA_EMULATED_READ, FI_OPT_EFA_EMULATED_WRITE), and nobody else does.",
    references: &[FI_EFA],
    explained_by: &[],
};

pub(super) static DEBUG_LOGGING: Rule = Rule {
    id: "probe-debug-logging",
    title: "a library logs every packet, so that figures are far too low",
    severity: Severity::Warning,
    kind: Kind::Probe,
    cause: "A log level of debug or trace writes lines for every operation, on the thread that moves the data.",
    remedy: "Unset the variable, or set it to warn, on that side.",
    story: "Transfers are right, and a tenth or a thirtieth as fast as they should be: on P5 instances 12 GB/s became 0.35 GB/s with nothing but \
FI_LOG_LEVEL=debug.\n\nThe level comes from the environment of one side, often a job file of months ago, and slows both. The probe reads the environment of both, which is why it should be started as \
the workload is: in the same container, with the same variables.",
    references: &[
        Reference {
            title: "libfabric: fabric(7), logging interface",
            url: "https://ofiwg.github.io/libfabric/main/man/fabric.7.html",
        },
        Reference {
            title: "UCX: FAQ, UCX_LOG_LEVEL",
            url: "https://openucx.readthedocs.io/en/master/faq.html",
        },
    ],
    explained_by: &[],
};

pub(super) static SLOW_RAIL: Rule = Rule {
    id: "probe-slow-rail",
    title: "a rail is far slower than it should be",
    severity: Severity::Warning,
    kind: Kind::Probe,
    cause: "The rail carries a fraction of its line rate or of what its siblings carry.",
    remedy: "Look at what shares the NIC, at its PCIe link (kvrail topo), and at packets that are sent again.",
    story: "A transfer that is striped evenly over all rails ends when the slowest does, so that one rail at a tenth of its rate makes all of them slow.\n\nThe probe measures one rail after the other with blocks of \
1 MiB in host memory, several in flight. A healthy NIC comes near its line rate. Far below it are a PCIe link that came up narrow or slow, a NIC of another process, \
memory of another NUMA node, a path with loss (packets are sent again), and a debug log level. All rails equally slow on a shared or emulated host is no fault of \
theirs: there the ceiling is the host's.",
    references: &[EFA_COUNTERS],
    explained_by: &["probe-debug-logging", "probe-emulated-writes", "probe-same-node"],
};

pub(super) static VERSIONS_DIFFER: Rule = Rule {
    id: "probe-versions-differ",
    title: "the two sides have different releases",
    severity: Severity::Note,
    kind: Kind::Probe,
    cause: "The two containers were built at different times or load libfabric from different places.",
    remedy: "Use one image for both sides.",
    story: "It mostly works. When it does not, nothing says why: a provider's protocol, the choice between efa and efa-direct, and defaults change between \
releases of libfabric.\n\nThe release that a library says it is, its file name and its symbol version are three things; the probe compares the release and the provider that each side drives its \
devices with. Where one side has efa-direct and the other does not, efa is probed, since both have that.",
    references: &[Reference {
        title: "libfabric: releases",
        url: "https://github.com/ofiwg/libfabric/releases",
    }],
    explained_by: &[],
};

pub(super) static RAILS_UNEQUAL: Rule = Rule {
    id: "probe-rails-unequal",
    title: "the two sides have different numbers of NICs",
    severity: Severity::Note,
    kind: Kind::Probe,
    cause: "The instances, or what their containers were given, differ.",
    remedy: "Give both the same number of devices (vpc.amazonaws.com/efa), where the instances have them.",
    story: "kvrail moves blocks between 32 rails and one. Engines that use the index of a local rail to choose a remote key do not: they fail with `RKEY not registered` \
or hang on the first rail that the other side lacks.\n\nThe side with fewer NICs bounds the rate. In the probe its NICs are paired with several of the other's, so that each NIC of \
both sides is tried at least once.",
    references: &[Reference {
        title: "AWS: EFA with Kubernetes, requesting devices",
        url: "https://docs.aws.amazon.com/eks/latest/userguide/node-efa.html",
    }],
    explained_by: &[],
};
