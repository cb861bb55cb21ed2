//! Lines of Kubernetes, Ray and etcd, and of devices that a container was not given.

use super::{EKS_EFA, Needle, PLAIN, RULE, Reference, Rule, Severity, Signature};
use crate::rule::Confidence;

const ETCD: Reference =
    Reference { title: "etcd: frequently asked questions", url: "https://etcd.io/docs/v3.5/faq/" };
const NIXLBENCH: Reference = Reference {
    title: "NIXL: nixlbench",
    url: "https://github.com/ai-dynamo/nixl/blob/main/benchmark/nixlbench/README.md",
};

pub(super) static ALL: [Signature; 10] = [
    Signature {
        rule: Rule {
            id: "log-no-infiniband",
            title: "the container has no RDMA devices",
            cause: "/dev/infiniband is not in the container: it asked for no EFA device, or was started without the devices.",
            remedy: "Ask for vpc.amazonaws.com/efa in requests and limits, or pass the devices with docker.",
            story: "`ls /dev/infiniband` says that there is no such directory, fi_info finds no efa provider (-61), and NCCL's plugin says `No data available`. The host has the devices; a container sees what it was given.

In Kubernetes the EFA device plugin gives as many devices as the pod asks for: none unless it asks. With docker each uverbs device is passed by --device.",
            references: &[EKS_EFA],
            ..RULE
        },
        needle: Needle {
            literals: &["/dev/infiniband"],
            pattern: r"/dev/infiniband(?:/\w*)?[/'\x22]*:? ?(?:[Nn]o such file or directory|[Nn]ot found|does not exist|is missing)|(?:no|missing|without) /dev/infiniband",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "the container has no /dev/infiniband",
        steps: &[
            ("in Kubernetes ask for devices", "kubectl explain pod.spec.containers.resources  # limits: {vpc.amazonaws.com/efa: 4}"),
            ("with docker", "docker run $(printf -- '--device=%s ' /dev/infiniband/uverbs*) …"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-uverbs-permission",
            title: "the process may not open the RDMA devices",
            cause: "/dev/infiniband/uverbs* is there, and its owner, mode or the container's device rules do not let this user open it.",
            remedy: "Run as a user of the devices' group, or pass the devices to the container instead of mounting /dev.",
            story: "The devices are visible, and opening one fails with `Permission denied` or `Operation not permitted`. A bind mount of /dev/infiniband shows the files and gives no right to them: the container's device controller \
must allow them, which --device, a privileged container or the device plugin does.",
            references: &[EKS_EFA],
            ..RULE
        },
        needle: Needle {
            literals: &["/dev/infiniband/uverbs", "/dev/infiniband/rdma_cm"],
            pattern: r"(?P<device>/dev/infiniband/\w+)\b.*(?:Permission denied|Operation not permitted)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "the process may not open {device}",
        steps: &[("see owner, mode and who runs it", "ls -l /dev/infiniband; id")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-unschedulable",
            title: "no node has what the pod asks for",
            cause: "The scheduler found no node with as many free devices, GPUs or huge pages as the pod asks for.",
            remedy: "See what nodes offer and what others use; a resource that no node offers has no device plugin, or no huge pages were reserved.",
            story: "The pod stays Pending, and the test that waits for it times out. The scheduler's event counts the nodes and names what is insufficient. `Insufficient vpc.amazonaws.com/efa` on nodes that have EFA means that the EFA device \
plugin does not run there, or that other pods hold the devices; hugepages-2Mi must be reserved by the node's kernel before kubelet starts.",
            references: &[EKS_EFA],
            ..RULE
        },
        needle: Needle {
            literals: &["Insufficient vpc.amazonaws.com/efa", "Insufficient nvidia.com/gpu", "Insufficient hugepages-", "Insufficient rdma/"],
            pattern: r"Insufficient (?P<resource>vpc\.amazonaws\.com/efa|nvidia\.com/\w+|hugepages-\w+|rdma/\w+)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "no node has enough free {resource} for the pod",
        steps: &[
            ("see what nodes offer and what is taken", "kubectl describe nodes | grep -A12 -E '^(Allocatable|Allocated)'"),
            ("see whether the device plugins run", "kubectl get pods -A | grep -E 'efa|nvidia-device-plugin'"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-same-node",
            title: "both pods of a test run on one node",
            severity: Severity::Warning,
            cause: "Nothing forbids it: no required anti-affinity, or labels that the rule does not match. What is measured then never crosses the network.",
            remedy: "Require anti-affinity on kubernetes.io/hostname with the label that both pods have.",
            story: "Bandwidth is far above what a NIC can do, or EFA fails because a NIC does not send to itself. `kubectl get pods -o wide` shows the same node for both pods.

Preferred anti-affinity is a wish. Required anti-affinity holds only between pods that carry the label which its selector names.",
            references: &[Reference {
                title: "Kubernetes: inter-pod affinity",
                url: "https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity",
            }],
            ..RULE
        },
        needle: Needle {
            literals: &["  Running  ", " Running "],
            pattern: r"^(?P<pod>[a-z0-9.-]*[a-z-])(?P<number>\d+)\s+\d+/\d+\s+Running\s+\d+(?: \([^)]*\))?\s+\w+\s+[\da-f.:]+\s+(?P<node>[\w.-]+)\s",
            unless: &[],
        },
        least: 2,
        headline: "pods {pod}… of one test run on the same node {node}",
        steps: &[("see where they run", "kubectl get pods -o wide"), ("check the files that deploy them", "kvrail doctor lint FILE…")],
        judge: |seen, finding| {
            let of = |captures: &super::super::tally::Captures, wanted: &str| {
                captures.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone())
            };
            let pods: Vec<_> = seen
                .combinations()
                .map(|(captures, _)| (of(captures, "pod"), of(captures, "number"), of(captures, "node")))
                .collect();
            // Replicas of anything may share a node; the two pods of a benchmark may not.
            let is_test = |pod: &Option<String>| {
                pod.as_ref().is_some_and(|pod| ["bench", "perftest", "nixl", "-test"].iter().any(|word| pod.contains(word)))
            };
            let shared = pods.iter().any(|(pod, number, node)| {
                is_test(pod)
                    && pods.iter().any(|(other, other_number, other_node)| {
                        pod == other && node == other_node && number != other_number
                    })
            });
            shared.then_some(finding)
        },
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-etcd-unreachable",
            title: "etcd does not answer",
            cause: "The address is wrong, the service has no endpoints, a network policy is in between, or etcd has no leader or a slow disk.",
            remedy: "Ask /health from where the engine runs; look at the service's endpoints and at etcd's own log.",
            story: "Agents wait for each other's metadata and end after a minute, or at once with `context deadline exceeded`, `request timed out` or `connection refused`. Metadata, leases and start barriers go through etcd; \
transfers do not, so that running ones go on.

`request timed out` comes from an etcd that is reached and cannot commit: no majority, or a disk that takes seconds for a write. `deadline exceeded` and `connection refused` mean that it is not reached.",
            references: &[ETCD],
            ..RULE
        },
        needle: Needle {
            literals: &["context deadline exceeded", "etcdserver: ", "Failed to connect to ETCD", "Watch timed out for key", "onnection refused", "no such host", "eadline Exceeded", "ailed to connect to all addresses", "ervice not known", "Error watching etcd", " etcd: ", "clientv3/retry_interceptor"],
            pattern: r"(?i-u:etcd).*(?:context deadline exceeded|[cC]onnection refused|[dD]eadline [eE]xceeded|failed to connect to all addresses|no such host|[nN]ame or service not known|[uU]navailable)|context deadline exceeded.*(?i-u:etcd)|:2379\S*.*(?:context deadline exceeded|[cC]onnection refused|no such host)|clientv3/retry_interceptor.*(?:DeadlineExceeded|Unavailable)|etcdserver: (?:request timed out|no leader|leader changed|too many requests|mvcc: database space exceeded)|Failed to connect to ETCD: (?P<error>.*)|Watch timed out for key: (?P<key>\S+)|Error (?:watching|fetching key|sending).* etcd",
            unless: &[],
        },
        headline: "etcd did not answer",
        steps: &[
            ("ask it from where the engine runs", "curl -sS --max-time 5 http://etcd-service:2379/health"),
            ("see whether the service has endpoints", "kubectl get endpoints etcd-service"),
            ("let doctor ask it", "kvrail doctor --etcd http://etcd-service:2379"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-etcd-address",
            title: "the address of etcd is not one",
            cause: "Clients of etcd want scheme, host and port, as in http://etcd-service:2379; several are parted by commas, without spaces.",
            remedy: "Write the address with its scheme and port.",
            story: "A client says that the URI is invalid, that no scheme is there, or tries a name like `http://http://…`. Tools differ in what they add: nixlbench and the C++ client want `http://`, some Python clients want host and port \
apart, and a value with quotes from a YAML file keeps them.",
            references: &[NIXLBENCH],
            ..RULE
        },
        needle: Needle {
            literals: &["nvalid uri", "nvalid URI", "nvalid url", "nvalid URL", "uri is invalid", "protocol scheme", "first path segment in URL", "http://http", "ailed to parse endpoint", "missing port"],
            pattern: r"(?i-u:etcd|:2379).*(?i-u:invalid uri|invalid url|uri is invalid|unsupported (?:uri|url|protocol) scheme|malformed (?:uri|url)|failed to parse (?:uri|url|endpoint)|missing (?:scheme|port))|(?i-u:invalid uri|invalid url|uri is invalid|first path segment in url cannot contain colon|failed to parse (?:uri|url|endpoint)).*(?i-u:etcd|:2379)|https?://https?://\S*2379",
            unless: &[],
        },
        headline: "the address of etcd cannot be understood",
        steps: &[("write scheme, host and port", "export NIXL_ETCD_ENDPOINTS=http://etcd-service:2379")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-etcd-stale",
            title: "an earlier run's state is still in etcd",
            cause: "A run that was killed left its keys behind; the next run counts them as its own participants.",
            remedy: "Delete the keys of that group only, and give each run a group of its own.",
            story: "nixlbench says that its rank is greater than or equal to the global size, or waits for a peer that was never there: the number of ranks of a killed run is still stored and has no lease. Deleting everything in etcd, as \
some instructions do, also deletes the state of whatever else uses it: Dynamo's, or Kubernetes' own.",
            references: &[NIXLBENCH],
            ..RULE
        },
        needle: Needle {
            literals: &["is greater than or equal to global size", "key missing (or etcd error)"],
            pattern: r"Rank (?P<rank>\d+) is greater than or equal to global size|peer rank (?P<peer>\d+) key missing",
            unless: &[],
        },
        headline: "an earlier run's state is still in etcd",
        steps: &[
            ("see the keys of benchmarks", "etcdctl get --prefix xferbench --keys-only"),
            ("delete those of that group only", "etcdctl del --prefix xferbench/GROUP/"),
            ("let doctor look for stale keys", "kvrail doctor --check etcd-stale-keys"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ray-actor-died",
            title: "a Ray actor died",
            cause: "The worker process of an actor ended: killed for memory, crashed, or its node went away. Ray's line lists possibilities; the worker's own log or the kernel's has the reason.",
            remedy: "Look into the worker's log and the kernel's at that time, on the actor's node.",
            story: "`The actor died unexpectedly before finishing this task` and `worker unexpectedly exits with a connection error` are what the driver sees when a worker process is gone. They name pid, ip and actor. The cause is elsewhere: a \
segmentation fault in the worker's stderr file, the OOM killer in dmesg, Ray's own memory monitor (`killed due to the node running low on memory`).",
            references: &[Reference {
                title: "Ray: fault tolerance of actors",
                url: "https://docs.ray.io/en/latest/ray-core/fault_tolerance/actors.html",
            }],
            explained_by: &["log-oom-killer", "log-segfault", "log-segfault-bundled", "log-cuda-error", "log-cuda-out-of-memory", "log-fork"],
            ..RULE
        },
        needle: Needle {
            literals: &["The actor died", "The actor is dead because", "killed due to the node running low on memory", "ActorDiedError", "actor died unexpectedly"],
            pattern: r"(?:ActorDiedError|RayActorError): (?P<reason>The actor (?:died|is dead)[^.\n]*)|The actor is dead because (?P<why>[^.\n]*)|killed due to the node running low on memory|actor died unexpectedly",
            unless: &["ray.kill"],
        },
        headline: "a Ray actor died",
        steps: &[
            ("read the last lines of the workers on its node", "tail -n 50 /tmp/ray/session_latest/logs/worker-*.err"),
            ("read the kernel's log at that time, and give both to doctor", "sudo dmesg -T > dmesg.txt; kvrail doctor log dmesg.txt worker-*.err"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-address-in-use",
            title: "a port of the transfer's side channel is taken",
            cause: "Two engines on one host use the same port for metadata, or an earlier process still holds it.",
            remedy: "Give each engine on a host its own port; with tensor or data parallelism each takes a range from it on.",
            story: "`Address already in use` at start. Metadata is exchanged over a plain TCP port: 5600 and up for vLLM's NixlConnector (VLLM_NIXL_SIDE_CHANNEL_PORT), 8998 for SGLang's bootstrap, 5555 for NIXL's own listener. Engines that run \
with host networking, or prefill and decode on one host, collide unless each is told its own; the second one sometimes goes on, and its peers reach the first one.",
            references: &[super::VLLM_NIXL],
            ..RULE
        },
        needle: Needle {
            literals: &["Address already in use", "address already in use"],
            pattern: r"(?:ZMQError|[Nn][Ii][Xx][Ll]|[Bb]ootstrap|[Ss]ide.?channel|zmq|[Dd]isaggregation|EADDRINUSE|OSError|bind).*[Aa]ddress already in use(?:.*?(?P<address>(?:tcp://)?[\w.*]+:\d{2,5}))?",
            unless: &[],
        },
        headline: "a port that an engine listens on is taken",
        steps: &[
            ("see who has it", "ss -ltnp | grep -E ':(56[0-9][0-9]|8998|5555)'"),
            ("give each vLLM engine its own", "export VLLM_NIXL_SIDE_CHANNEL_PORT=5700"),
        ],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-peer-unreachable",
            title: "the peer's metadata cannot be fetched",
            cause: "The address or port that the peer published cannot be reached from here: a loopback or private address, a closed port, or a peer that is not up yet.",
            remedy: "Publish an address that the other host reaches, and open the port between the hosts.",
            story: "NIXL says that it could not connect to an address and port, or that polling it timed out. Metadata travels over TCP before any RDMA; the address is what the peer believes to be its own: `localhost`, a docker bridge, or the \
first interface of many. A security group that lets SRD through does not let TCP through by itself.",
            references: &[super::NIXL],
            ..RULE
        },
        needle: Needle {
            literals: &["could not connect to IP", "poll timed out for ip_addr", "inet_pton failed for ip_addr", "Failed to receive message from peer, disconnecting"],
            pattern: r"could not connect to IP (?P<ip>\S+) and port (?P<port>\d+)|(?:poll timed out|inet_pton failed) for ip_addr: (?P<address>[^\s,]+)",
            unless: &[],
        },
        headline: "a peer's metadata could not be fetched",
        steps: &[("try it from here", "nc -vz PEER 5555"), ("probe the path between both hosts", "kvrail doctor probe PEER")],
        ..PLAIN
    },
];
