//! Lines of NIXL.

use super::super::codes;
use super::{NIXL, NIXL_LIBFABRIC, Needle, PLAIN, RULE, Reference, Rule, Severity, Signature};
use crate::rule::Confidence;

const PLUGINS: Reference = Reference {
    title: "NIXL: plugin manager",
    url: "https://github.com/ai-dynamo/nixl/blob/main/src/core/nixl_plugin_manager.cpp",
};

pub(super) static ALL: [Signature; 8] = [
    Signature {
        rule: Rule {
            id: "log-nixl-plugin",
            title: "a NIXL plugin does not load",
            cause: "The plugin's file is there and the loader refuses it, or it was built for another NIXL.",
            remedy: "See what the loader says at the end of the line: a missing library, a symbol version, another API version.",
            story: "NIXL lists a plugin as available by its file's name and finds out that it cannot be loaded only when it is asked for; at the default log level the reason (`Failed to load plugin from …: …`) is not printed at all. The program goes on with the other \
backends, mostly UCX.

Run once with NIXL_LOG_LEVEL=info to see it. `Plugin API version mismatch` means files of two NIXL releases in one plugin directory.",
            references: &[PLUGINS],
            explained_by: &["log-symbol-version", "log-nixl-core-library", "log-library-missing"],
            ..RULE
        },
        needle: Needle {
            literals: &["Failed to load plugin from", "Plugin API version mismatch for", "Plugin initialization failed for", "Failed to find nixl_plugin_init in"],
            pattern: r"(?:Failed to load plugin from|Plugin API version mismatch for|Plugin initialization failed for|Failed to find nixl_plugin_init in) (?P<plugin>[^\s:]+)(?:: (?P<reason>[^\n]*))?",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "NIXL cannot load {plugin}",
        steps: &[("see what each plugin needs and what is there", "kvrail doctor"), ("see what the loader says", "NIXL_LOG_LEVEL=info COMMAND 2>&1 | grep -i plugin")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-backend-failed",
            title: "a NIXL backend could not be created",
            cause: "The plugin is missing, does not load, or fails while it starts: no device, no memory for its buffers, a wrong name.",
            remedy: "Look at the lines before it; check the name's spelling: LIBFABRIC and UCX in capitals.",
            story: "createBackend says `unsupported backend`, `backend creation failed` or `backend initialization error`. `unsupported` is said of a plugin that was not found or not loaded, and of a name in the wrong case: `Libfabric` is not LIBFABRIC. Newer ones say `Skipping backend registration … due to the missing plugin`, and the agent goes on without a backend. The other two mean that the plugin ran and \
failed: for LIBFABRIC nearly always that it found no device.",
            references: &[NIXL, PLUGINS],
            explained_by: &[
                "log-nixl-plugin", "log-symbol-version", "log-nixl-core-library", "log-library-missing", "log-no-fabric", "log-ucx-no-transport", "log-memlock",
                "log-not-implemented",
            ],
            ..RULE
        },
        needle: Needle {
            literals: &["unsupported backend '", "backend creation failed for '", "backend initialization error for '", "Failed to initialize libfabric backend", "Skipping backend registration "],
            pattern: r"(?:unsupported backend '|backend creation failed for '|backend initialization error for '|Skipping backend registration )(?P<backend>\w+)|Failed to initialize libfabric backend: (?P<reason>[^\n]*)",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "NIXL could not create its backend {backend}",
        steps: &[("see which plugins load and what they lack", "kvrail doctor"), ("see the reason", "NIXL_LOG_LEVEL=info COMMAND")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-no-common-backend",
            title: "two agents have no backend in common",
            cause: "One side runs LIBFABRIC and the other UCX, or the memory was registered with another backend than both have.",
            remedy: "Configure the same list of backends on both sides.",
            story: "Each agent's metadata names its backends; a peer that shares none of them cannot connect: `no common backend found`, `could not find a common backend`. It happens when one side's LIBFABRIC plugin did not load and it fell back to UCX, or when prefill and decode have different settings.",
            references: &[NIXL],
            explained_by: &["log-nixl-backend-failed", "log-nixl-plugin", "log-backend-not-chosen"],
            ..RULE
        },
        needle: Needle {
            literals: &["no common backend", "could not find a common backend", "no backends are found in metadata"],
            pattern: r"no common backend|could not find a common backend|no backends are found in metadata for remote agent '(?P<agent>[^']+)'",
            unless: &[],
        },
        headline: "two agents have no backend in common",
        steps: &[("see what came up on each side", "grep -h 'was instantiated' PREFILL.log DECODE.log | sort | uniq -c")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-handshake-timeout",
            title: "a handshake over the fabric was not answered",
            cause: "Metadata came over TCP, and the first message over the fabric did not arrive: the network drops EFA's packets, or the peer does not drive its endpoint.",
            remedy: "Check the security group's rules for traffic to itself, and that the peer makes progress.",
            story: "NIXL's libfabric backend says `Handshake from peer … not received after …s; connection cannot be established`. Nothing failed before it, because a datagram that is dropped looks like one that is late. If counters of the NIC show that packets leave here and none arrive there, it is the security group \
or a secondary address range.",
            references: &[NIXL_LIBFABRIC, super::AWS_EFA],
            explained_by: &["log-efa-unreachable", "log-packets-vanish"],
            ..RULE
        },
        needle: Needle {
            literals: &["Handshake from peer '"],
            pattern: r"Handshake from peer '(?P<peer>[^']+)' not received after (?P<seconds>\d+)",
            unless: &[],
        },
        headline: "peer {peer} did not answer over the fabric within {seconds} s",
        steps: &[("let doctor decide where packets end", "kvrail doctor probe PEER"), ("see the security group's rules", "kvrail doctor --check security-group-egress")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-agents-max",
            title: "an agent has too many peers for NIXL's libfabric backend",
            cause: "The backend numbers its peers with 8 bits: beyond 256 agents none can be added.",
            remedy: "Restart agents that keep dead peers, or connect fewer: one agent for each host or rank group.",
            story: "`Cannot add agent …: agent index 256 exceeds 8-bit wire limit`. Agents that came and went count too, until the process is restarted: an autoscaled deployment reaches the limit after days, and new workers then cannot be given KV caches while old ones serve on.",
            references: &[NIXL_LIBFABRIC],
            ..RULE
        },
        needle: Needle {
            literals: &["8-bit wire limit"],
            pattern: r"Cannot add agent '(?P<agent>[^']+)': agent index (?P<index>\d+) exceeds 8-bit wire limit",
            unless: &[],
        },
        confidence: Confidence::Certain,
        headline: "agent {index} is one too many for NIXL's libfabric backend",
        steps: &[("restart the process that says so", "")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-disconnect",
            title: "NIXL lost a remote agent",
            cause: "The connection to the peer failed; the transfer that noticed it failed, and so do all later ones to this peer until it is connected anew.",
            remedy: "Find out why the peer went away; restart the side that keeps the dead connection.",
            story: "NIXL_ERR_REMOTE_DISCONNECT, in Python nixlRemoteDisconnectError. The backend saw its peer go: a timeout, a reset, a handshake without an answer. vLLM's connector does not connect anew to a peer of the same name, so that a fixed pair of prefill and decode stays broken until one is restarted, although both are \
healthy.",
            references: &[NIXL],
            explained_by: &[
                "log-ucx-peer-lost", "log-ucx-retry-exceeded", "log-efa-unresponsive", "log-efa-peer-restarted", "log-efa-unreachable", "log-nixl-handshake-timeout", "log-oom-killer",
            ],
            ..RULE
        },
        needle: Needle {
            literals: &["NIXL_ERR_REMOTE_DISCONNECT", "nixlRemoteDisconnectError"],
            pattern: r"NIXL_ERR_REMOTE_DISCONNECT|nixlRemoteDisconnectError",
            unless: &["except nixl", "import "],
        },
        confidence: Confidence::Certain,
        headline: "NIXL lost a remote agent",
        steps: &[("read the peer's logs of that time", "kvrail doctor log PEER.log"), ("restart the engine that keeps reporting it", "")],
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-nixl-status",
            title: "NIXL returned an error",
            cause: "A call to NIXL failed; the status says in which way, and lines of its backend before it say why.",
            remedy: "Look at UCX's or libfabric's lines just before; raise their levels to warn if there are none.",
            story: "NIXL has a dozen statuses for everything that its backends may meet: NIXL_ERR_BACKEND is all that is left of a message of UCX or libfabric. In Python they are exceptions (nixlBackendError and so on). A status at start is about plugins or devices, one during transfers about the peer or the memory.",
            references: &[Reference {
                title: "NIXL: statuses",
                url: "https://github.com/ai-dynamo/nixl/blob/main/src/core/nixl_enum_strings.cpp",
            }],
            explained_by: &[
                "log-nixl-backend-failed", "log-nixl-plugin", "log-no-fabric", "log-memlock", "log-gpu-memory-registration", "log-rail-failed", "log-efa-remote-key", "log-efa-error",
                "log-nixl-disconnect", "log-nixl-no-common-backend", "log-ucx-no-transport", "log-ucx-unreachable", "log-ucx-peer-lost", "log-peer-unreachable", "log-nixl-agents-max",
                "log-cuda-error", "log-cuda-out-of-memory",
            ],
            ..RULE
        },
        needle: Needle {
            literals: &["NIXL_ERR_"],
            pattern: r"\b(?P<status>NIXL_ERR_(?:BACKEND|NOT_FOUND|MISMATCH|INVALID_PARAM|NOT_ALLOWED|REPOST_ACTIVE|NOT_SUPPORTED|NOT_POSTED|CANCELED|UNKNOWN))\b",
            unless: &["NIXL_ERR_NOT_POSTED:", "telemetry", "except nixl"],
        },
        headline: "NIXL returned {status}",
        steps: &[("have the backend say why", "FI_LOG_LEVEL=warn UCX_LOG_LEVEL=warn NIXL_LOG_LEVEL=info COMMAND")],
        meaning: Some(("status", codes::nixl)),
        ..PLAIN
    },
    Signature {
        rule: Rule {
            id: "log-ucx-on-efa",
            title: "KV caches go over UCX although the host has EFA",
            severity: Severity::Warning,
            cause: "NIXL's default backend is UCX, and nothing asked for LIBFABRIC; the bundled UCX has no transport for EFA and uses TCP or datagrams.",
            remedy: "Ask for the LIBFABRIC backend in the engine's configuration.",
            story: "Transfers between nodes take 5 to 10 seconds, decode workers wait for input, and nothing fails. NIXL says `Backend UCX was instantiated`; with EFA in use it would say LIBFABRIC. Newer versions of NIXL warn that EFA devices were detected and UCX was configured.

The list of backends is ['UCX'] by default in NIXL's Python API and in vLLM; it is set in kv_connector_extra_config, for SGLang by an environment variable.",
            references: &[Reference { title: "NIXL: a warning where EFA is not used", url: "https://github.com/ai-dynamo/nixl/pull/1287" }],
            explained_by: &["log-backend-not-chosen", "log-nixl-backend-failed", "log-nixl-plugin", "log-symbol-version"],
            ..RULE
        },
        needle: Needle {
            literals: &["Backend UCX was instantiated", "Amazon EFA(s) were detected"],
            pattern: r"Backend UCX was instantiated|(?P<devices>\d+) Amazon EFA\(s\) were detected, but the UCX backend was configured",
            unless: &[],
        },
        headline: "KV caches go over UCX although the host has EFA",
        steps: &[
            ("for vLLM", "--kv-transfer-config '{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_both\",\"kv_connector_extra_config\":{\"backends\":[\"LIBFABRIC\"]}}'"),
            ("for SGLang", "export SGLANG_DISAGGREGATION_NIXL_BACKEND=LIBFABRIC"),
            ("for every program of an environment, undoably", "kvrail fix default-backend"),
        ],
        judge: |seen, mut finding| {
            use super::Mark;
            let told_by_nixl = !seen.values("devices").is_empty();
            if told_by_nixl {
                finding.confidence = Confidence::Certain;
            }
            let beside = seen.marked(Mark::LibfabricUp) > 0;
            (told_by_nixl || (seen.marked(Mark::Efa) > 0 && !beside)).then_some(finding)
        },
        ..PLAIN
    },
];
